"""The LLM's way out of memory, and back.

It leaves when another engine needs its place: requests in flight finish, the prompt caches are saved, and it is
stopped. It comes back by itself, as soon as memory allows and no more images are made, and makes way again for an image
that comes meanwhile. What is to run is on disk all the time, so that it also comes back after the service was killed.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from genaid_server.kit.errors import DomainError
from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core.leases.lease import LeaseRequest
from genaid_server.resource.core.leases.leases import Leases
from genaid_server.resource.core.llm.offloaded import OffloadedLlm, Phase
from genaid_server.resource.core.llm.saved import SavedFile, SavedLlm
from genaid_server.resource.core.llm.slots import LOOK_INTERVAL, Endpoint, PromptCaches, SlotsApi, discard
from genaid_server.supervision.logbook import Level, Logbook

log = logging.getLogger(__name__)

FIRST_RETRY: Final = 1.0  # seconds, doubled up to LAST_RETRY
LAST_RETRY: Final = 60.0
FOUND_ON_DISK: Final = "The resource manager ended without having stopped it."


class Engine(Protocol):
    """What is done with the engine on the way."""

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it serves; None where it doesn't."""

    @property
    def lease_request(self) -> LeaseRequest:
        """What it needs."""

    @property
    def starting(self) -> bool:
        """Whether a start is under way that somebody waits for."""

    async def settled(self) -> None:
        """Return when no start is under way that somebody waits for."""

    async def halt(self) -> None:
        """Stop it, as one that comes back."""

    async def bring_back(self, port: int) -> None:
        """Load it again as it was, on the same port where that is free. Raises DomainError."""

    def learn_memory(self) -> None:
        """Take note of what it takes while it has worked."""


@dataclass(frozen=True, slots=True)
class OffloadSettings:
    """`drain_timeout` is how long requests in flight may take, `settle_delay` how long image engines have to tell of
    themselves after a restart; both in seconds. Prompt caches are saved below `slots`, in a folder a model."""

    drain_timeout: float = 30.0
    settle_delay: float = 0.0
    slots: Path = Path()


@dataclass(frozen=True, slots=True)
class _Failure:
    """What loading it again failed with last; `next_at` is in seconds since the epoch."""

    attempts: int
    message: str
    next_at: float


class Offloading:
    """Where the LLM is on its way; `close` ends it. `on_change` is called after each change of `present`."""

    def __init__(
        self,
        engine: Engine,
        leases: Leases,
        slots: SlotsApi,
        file: SavedFile,
        logbook: Logbook,
        settings: OffloadSettings,
        on_change: Callable[[], None],
    ) -> None:
        self._engine, self._leases, self._slots, self._file = engine, leases, slots, file
        self._logbook, self._settings, self._on_change = logbook, settings, on_change
        self._saved: SavedLlm | None = None
        self._phase = Phase.OFFLOADED
        self._failure: _Failure | None = None
        self._returning: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def offloaded(self) -> bool:
        """Whether it makes room, or has, and is not back yet."""
        return self._saved is not None and self._saved.offloaded_at is not None

    @property
    def present(self) -> OffloadedLlm | None:
        """The LLM that comes back, if there is one."""
        saved, failure = self._saved, self._failure
        if saved is None or saved.offloaded_at is None:
            return None
        return OffloadedLlm(
            model_id=saved.request.model_id,
            config=saved.llm,
            serving=replace(saved.request.serving, port=saved.port),
            was_running=True,
            saved_at=saved.offloaded_at,
            reason=saved.reason,
            phase=self._phase,
            failed_attempts=failure.attempts if failure else 0,
            last_error=failure.message if failure else "",
            next_attempt_at=failure.next_at if failure and self._phase is Phase.FAILED else None,
            saved_tokens=sum(saved.slots.values()),
        )

    # --- what happens to the engine

    async def serves(self, saved: SavedLlm) -> None:
        """It serves from now on, as `saved` says; what it left in its prompt caches is read back first."""
        if self.offloaded and self._phase is Phase.OFFLOADING:  # it serves still, and is about to leave
            return
        before, endpoint = self._saved, self._engine.endpoint
        if before is not None and before.offloaded_at is not None and before.llm == saved.llm and endpoint is not None:
            caches = self._caches(endpoint, before)
            await caches.restore(before.slots)
            if self._saved is not before:  # somebody has given up on it meanwhile
                return
            caches.discard()
            self._logbook.append(Level.INFO, "it is back")
        self._failure = None
        self._keep(saved)

    async def leave(self, reason: str) -> None:
        """Make room, and return when it is gone. One that is cancelled before it is stopped stays."""
        if self.offloaded and self._returning is not None and not self._returning.done():
            await to_the_end(self._make_way())
            return
        await self._engine.settled()
        if self._saved is None or self.offloaded:  # stopped by somebody, or not loaded after all
            await asyncio.sleep(LOOK_INTERVAL)
            return
        self._logbook.append(Level.INFO, f"makes room: {reason}")
        self._phase = Phase.OFFLOADING
        self._keep(replace(self._saved, offloaded_at=time.time(), reason=reason, slots={}))
        try:
            await self._finish_work()
        except asyncio.CancelledError:
            self._stay()
            raise
        if self._saved is not None:
            await to_the_end(self._go())

    async def _finish_work(self) -> None:
        """Wait for requests in flight, and save the prompt caches."""
        endpoint, saved = self._engine.endpoint, self._saved
        if endpoint is None or saved is None:
            return
        caches = self._caches(endpoint, saved)
        if not await caches.drain(self._settings.drain_timeout):
            seconds = self._settings.drain_timeout
            self._logbook.append(Level.WARN, f"requests that took longer than {seconds:g} s are cut off")
        slots = await caches.save()
        if slots:
            self._engine.learn_memory()
        if self._saved is not None:
            self._keep(replace(self._saved, slots=slots, port=endpoint.port))

    async def _go(self) -> None:
        await self._engine.halt()
        self._phase = Phase.OFFLOADED
        if not self._engine.starting:
            self.come_back(0.0)
        self._on_change()

    def _stay(self) -> None:
        if self._saved is not None and not self._closing:
            self._logbook.append(Level.INFO, "stays: no room is needed any more")
            self._discard()
            self._keep(replace(self._saved, offloaded_at=None, reason="", slots={}))

    # --- the way back

    def recover(self, saved: SavedLlm) -> None:
        """Bring back what an earlier process has left on disk."""
        self._logbook.append(Level.INFO, f"{saved.request.model_id} ran before, and is brought back")
        self._phase = Phase.OFFLOADED
        at = time.time() if saved.offloaded_at is None else saved.offloaded_at
        self._keep(replace(saved, offloaded_at=at, reason=saved.reason or FOUND_ON_DISK))
        self.come_back(self._settings.settle_delay)

    def recover_nothing(self) -> None:
        """Remove what an earlier process has left on disk."""
        self._file.remove()
        discard(self._settings.slots)

    def come_back(self, delay: float = FIRST_RETRY) -> None:
        """Try to, `delay` seconds from now, unless somebody has given up on it or that is under way already."""
        if self.offloaded and not self._closing and (self._returning is None or self._returning.done()):
            self._returning = asyncio.create_task(self._return(delay), name="LLM return")
            self._returning.add_done_callback(_tell_of_failure)

    async def hurry(self) -> None:
        """Somebody starts it now: don't wait in the background any more."""
        await self._end_return()
        if self._phase is Phase.FAILED:
            self._phase = Phase.OFFLOADED
            self._on_change()

    async def give_up(self) -> None:
        """Forget what is to run. A start under way is not ended by this."""
        await self._end_return()
        if self._saved is not None:
            self._discard()
        self._saved, self._failure = None, None
        self._file.remove()
        self._on_change()

    def closing(self) -> None:
        """The service is about to stop: no room is made any more, and nothing comes back."""
        self._closing = True

    async def close(self) -> None:
        """End what is under way."""
        self.closing()
        await self._end_return()

    async def _return(self, delay: float = 0.0) -> None:
        """Load it again as soon as memory allows; ends when it serves."""
        attempts = self._failure.attempts if self._failure else 0
        while True:
            await asyncio.sleep(delay)
            try:
                async with self._leases.hold(
                    replace(self._engine.lease_request, background=True), leave=self.leave
                ) as tenancy:
                    await tenancy.granted()
                    self._phase = Phase.RELOADING
                    self._on_change()
                    await self._engine.bring_back(self._saved.port if self._saved else 0)
                return
            except DomainError as error:
                if self._closing:
                    return
                delay = min(FIRST_RETRY * 2.0 ** min(attempts, 10), LAST_RETRY)
                attempts += 1
                self._phase, self._failure = Phase.FAILED, _Failure(attempts, error.message, time.time() + delay)
                cause = error.message.partition("\n")[0]
                self._logbook.append(Level.ERROR, f"could not be brought back, again in {delay:g} s: {cause}")
                self._on_change()

    async def _make_way(self) -> None:
        """Give up the place that it was coming back to, and try again later."""
        self._logbook.append(Level.INFO, "makes way for another image")
        await self._end_return()
        await self._go()

    async def _end_return(self) -> None:
        returning, self._returning = self._returning, None
        if returning is not None and returning is not asyncio.current_task():
            returning.cancel()
            await asyncio.wait([returning])

    # --- what is kept

    def _keep(self, saved: SavedLlm) -> None:
        self._saved = saved
        self._file.write(saved)
        self._on_change()

    def _caches(self, endpoint: Endpoint, saved: SavedLlm) -> PromptCaches:
        return PromptCaches(self._slots, endpoint, self._settings.slots / saved.request.model_id, self._logbook)

    def _discard(self) -> None:
        if self._saved is not None:
            discard(self._settings.slots / self._saved.request.model_id)


def _tell_of_failure(returning: "asyncio.Task[None]") -> None:
    """Nobody awaits the result: what was not foreseen must not be silent."""
    if not returning.cancelled() and (error := returning.exception()) is not None:
        log.error("bringing the LLM back failed unexpectedly", exc_info=error)
