"""Where the LLM engine is, and the requests that wait for it.

One watch is followed for as long as the gateway runs, so that a request to an engine that runs costs no call. A request
to one that doesn't waits as long as the engine is on its way, and so it does while the engine makes room for an image:
then it is held back even where the engine runs, because its prompt caches are being saved or restored.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Final, cast

from genaid_client import AsyncClient, GenaidError, Llm, ServerState
from genaid_server.gateway.http.errors import RETRY_AFTER, SERVER_BUSY, SERVER_ERROR, ApiError, from_client
from genaid_server.gateway.http.single_flight import SingleFlight
from genaid_server.kit.backoff import Backoff
from genaid_server.kit.watchable import Watchable

log = logging.getLogger(__name__)

RETRY: Final = Backoff(first=0.1, longest=2.0)
RESTARTED_WITHIN: Final = 5.0
"""Seconds that a crashed engine may take to start again. Whether it will nobody tells; the delays grow to 3.2 s."""
REPLACED_WITHIN: Final = 0.5
"""Seconds between the end of an engine and the start of the one that replaces it."""
NOTICED_WITHIN: Final = 2.0
"""Seconds until the end of an engine that no longer answers is known."""


class NothingRunsError(ApiError):
    """No engine runs, and none is on its way."""


@dataclass(frozen=True, slots=True)
class View:
    """The engine, and since when (time of the event loop) it is in this state of this life, offloaded or not."""

    llm: Llm
    since: float

    def then(self, llm: Llm, now: float) -> "View":
        """The next view. One that was away is not judged by how long that was, once nobody brings it back."""
        return View(llm, self.since if _condition(llm) == _condition(self.llm) else now)


def will_serve(llm: Llm, seconds: float) -> bool:
    """Whether an engine that has been in its state for so many seconds runs, or is going to without being told."""
    return seconds < _patience(llm)


def _patience(llm: Llm) -> float:
    """Seconds that a state may last until nothing is to be expected of it any more."""
    if llm.offloaded:
        return math.inf
    match llm.state:
        case ServerState.STOPPED:
            return REPLACED_WITHIN
        case ServerState.CRASHED:
            return RESTARTED_WITHIN
        case _:
            return math.inf


class LlmMirror:
    """Knows the LLM engine from the resource manager; use it in an `async with`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._views: Watchable[View | None] = Watchable(None)
        self._ended = False
        self._flight = SingleFlight()

    async def __aenter__(self) -> "LlmMirror":
        self._flight.start("llm", self._follow)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._flight.close()

    def end_waiting(self) -> None:
        """Refuse every request that waits, and each later one."""
        self._ended = True
        self._views.close()

    async def present(self) -> Llm:
        """The engine as it is known to be. Raises ApiError (503) where nobody tells."""
        view = self._views.value
        return view.llm if view is not None else await self._ask()

    async def made_room(self, lost: Llm) -> bool:
        """Whether an engine that did not answer to the end has made room for an image, and did not die by itself.

        Waits until its end is known, for NOTICED_WITHIN at most.
        """
        deadline = asyncio.get_running_loop().time() + NOTICED_WITHIN
        view = self._views.value
        while not self._ended and view is not None and _runs(view.llm) and _same_life(view.llm, lost):
            if not await self._changed(view, deadline):
                return False
            view = self._views.value
        return view is not None and view.llm.offloaded

    async def serving(self, patience: float, failed: Llm | None = None) -> Llm:
        """The engine as soon as it runs, for which a caller waits at most `patience` seconds.

        `failed` is an engine that did not answer just now: its next life is waited for.
        Raises NothingRunsError where none is on its way, and ApiError (503) where it does not come in time.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            if self._ended:
                raise ApiError(503, SERVER_ERROR, "The gateway is shutting down.", headers=RETRY_AFTER, close=True)
            view = self._views.value
            llm, since = (view.llm, view.since) if view is not None else (await self._ask(), loop.time())
            running = _runs(llm)
            if running and llm.base_url is not None and not _same_life(llm, failed):
                return llm
            end = max(began, since) + NOTICED_WITHIN if running else since + _patience(llm)
            if not await self._changed(view, min(end, began + patience)):
                raise _refusal(llm, hopeless=not will_serve(llm, loop.time() - since))

    async def _changed(self, view: View | None, deadline: float) -> bool:
        """Wait until there is another view than this, or none any more; False where that takes too long."""
        try:
            watch = cast("AsyncGenerator[View | None, None]", self._views.watch())
            async with asyncio.timeout_at(deadline), aclosing(watch) as views:
                async for now in views:
                    if now is not view:
                        break
        except TimeoutError:
            return False
        return True

    async def _ask(self) -> Llm:
        """The engine, while it can't be watched. Raises ApiError (503)."""
        try:
            return await self._flight.share("llm now", self._client.llm.get)
        except GenaidError as error:
            raise from_client(error, "resource manager") from error

    def _learn(self, llm: Llm) -> None:
        known, now = self._views.value, asyncio.get_running_loop().time()
        self._views.set(View(llm, now) if known is None else known.then(llm, now))

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                async with aclosing(self._client.llm.watch()) as states:
                    async for llm in states:
                        self._learn(llm)
                        failures = 0
            except GenaidError as error:
                log.debug("the LLM engine can't be watched: %s", error.message)
            self._views.set(None)
            failures += 1
            await asyncio.sleep(RETRY.delay(failures))


def _runs(llm: Llm) -> bool:
    """Whether it takes requests now."""
    return llm.state is ServerState.RUNNING and not llm.offloaded


def _same_life(llm: Llm, other: Llm | None) -> bool:
    return other is not None and _life(llm) == _life(other)


def _life(llm: Llm) -> tuple[int, datetime | None]:
    # Where the manager was started again as well, it counts from the beginning.
    return llm.generation, llm.start_time


def _condition(llm: Llm) -> tuple[object, ...]:
    return llm.state, llm.offloaded, *_life(llm)


def _refusal(llm: Llm, *, hopeless: bool) -> ApiError:
    """What a request gets that has waited in vain."""
    cause = llm.last_error.partition("\n")[0].rstrip(".:")
    if llm.offloaded:
        last = f" It could not be loaded again yet: {cause}." if cause else ""
        message = f"The LLM makes room for an image and comes back by itself.{last} Try again shortly."
        return ApiError(503, SERVER_BUSY, message, headers=RETRY_AFTER)
    if llm.state is ServerState.RUNNING:
        message = "The LLM engine runs but doesn't answer. Try again, or restart it: genaid llm restart"
        return ApiError(503, SERVER_ERROR, message, headers=RETRY_AFTER)
    if llm.state is ServerState.STOPPED:
        last = f" The last start failed: {cause}." if cause else ""
        return NothingRunsError(503, SERVER_ERROR, f"No language model runs.{last} Start one: genaid llm start MODEL")
    if hopeless:
        message = f"The LLM engine crashed and did not come back: {cause}. Start it again: genaid llm start MODEL"
        return NothingRunsError(503, SERVER_ERROR, message)
    message = f"The LLM engine is not ready yet ({llm.state}). Try again shortly."
    return ApiError(503, SERVER_BUSY, message, headers=RETRY_AFTER)
