"""What the image worker knows, near at hand: a poll costs no call to it, and nothing here matters if it is lost.

A running generation is followed with a watch. A finished one is kept as the bytes of its answer and asked for again at
most once a second, so that an expired one is gone within that time. An id that is not here is asked from the worker,
and a generation whose watch breaks is forgotten: the next poll asks again, and finds out what is true.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, cast

from genaid_client import (
    AsyncClient,
    ConnectionFailedError,
    Engine,
    GenaidError,
    Generation,
    GenerationSpec,
    GenerationState,
    NotFoundError,
)
from genaid_server.gateway.http.single_flight import SingleFlight
from genaid_server.gateway.images import rest
from genaid_server.kit.backoff import Backoff
from genaid_server.kit.watchable import Watchable

log = logging.getLogger(__name__)

REVALIDATE_AFTER: Final = 1.0  # seconds
IDLE_AFTER: Final = 60.0  # seconds without a poll after which a finished generation is let go
CACHE_BYTES: Final = 64 * 1024 * 1024
OFF_LOOP_BYTES: Final = 1024 * 1024  # images that encode for longer than about a millisecond
RETRY: Final = Backoff(first=0.1, longest=2.0)


class _MirrorEntry:
    """One generation; `failure` says why following it ended early."""

    __slots__ = ("body", "checked", "failure", "followed", "states")

    def __init__(self, generation: Generation, checked: float) -> None:
        self.states = Watchable(generation)
        self.checked = checked
        self.followed = False
        self.body: bytes | None = None
        self.failure: GenaidError | None = None

    @property
    def generation(self) -> Generation:
        return self.states.value

    def cost(self) -> int:
        """Bytes that it occupies, about."""
        spec = self.generation.spec
        return 1024 + 4 * (len(spec.prompt) + len(spec.negative_prompt)) + len(self.body or b"")


class Mirror:
    """A copy of the image worker's state, which polls are answered from; use it in an `async with`.

    Methods that take a generation's id raise NotFoundError, and all of them what the client raises.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        clock: Callable[[], float] = time.monotonic,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._client = client
        self._clock = clock
        self._cache_bytes = cache_bytes
        self._entries: OrderedDict[str, _MirrorEntry] = OrderedDict()
        self._following: set[str] = set()
        self._engine: Engine | None = None
        self._flight = SingleFlight()

    async def __aenter__(self) -> "Mirror":
        self._flight.start("engine", self._follow_engine)
        self._flight.start("idle", self._let_idle_go)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._flight.close()

    def end_watches(self) -> None:
        """End every `watch`, after its watcher has seen the last state."""
        for entry in self._entries.values():
            entry.states.close()

    async def busy(self) -> bool:
        """Whether an image is being made or a generation waits."""
        engine = self._engine
        if engine is None:
            engine = await self._flight.share("engine now", self._client.engine.get)
        return engine.busy or bool(self._following)

    async def create(self, spec: GenerationSpec) -> Generation:
        """Ask for images; done to the end even if the caller leaves."""
        return await self._flight.share(object(), lambda: self._create(spec))

    async def cancel(self, generation_id: str) -> Generation:
        """Cancel a generation; done to the end even if the caller leaves."""
        return await self._flight.share(("cancel", generation_id), lambda: self._cancel(generation_id))

    async def get(self, generation_id: str) -> Generation:
        """The generation, at most a second old."""
        return (await self._fresh(generation_id)).generation

    async def answer(self, generation_id: str) -> bytes:
        """The JSON document of the generation, images included, at most a second old."""
        entry = await self._fresh(generation_id)
        if entry.body is not None:
            return entry.body
        if entry.generation.state is GenerationState.COMPLETE:
            return await self._flight.share(("answer", generation_id), lambda: self._build(entry))
        entry.body = rest.state(entry.generation)
        return entry.body

    async def image(self, generation_id: str, index: int) -> bytes:
        """The PNG of one image of a complete generation."""
        return await self._flight.share(
            ("image", generation_id, index), lambda: self._client.images.get_image(generation_id, index)
        )

    async def watch(self, generation_id: str) -> AsyncGenerator[Generation, None]:
        """The generation as it is now, then each newer state, until a terminal one.

        Raises ConnectionFailedError where the worker goes away meanwhile.
        """
        entry = await self._fresh(generation_id)
        async with aclosing(cast("AsyncGenerator[Generation, None]", entry.states.watch())) as states:
            async for generation in states:
                yield generation
        if entry.failure is not None:
            raise entry.failure

    def let_idle_go(self) -> None:
        """Forget finished generations that nobody has asked for in a while."""
        now = self._clock()
        for generation_id, entry in list(self._entries.items()):
            if not entry.followed and now - entry.checked >= IDLE_AFTER:
                del self._entries[generation_id]

    async def _fresh(self, generation_id: str) -> _MirrorEntry:
        entry = self._entries.get(generation_id)
        if entry is not None and (entry.followed or self._clock() - entry.checked < REVALIDATE_AFTER):
            self._entries.move_to_end(generation_id)
            return entry
        return await self._flight.share(("ask", generation_id), lambda: self._ask(generation_id))

    async def _ask(self, generation_id: str) -> _MirrorEntry:
        try:
            return self._learn(await self._client.images.get(generation_id))
        except NotFoundError:
            self._forget(generation_id)
            raise

    async def _create(self, spec: GenerationSpec) -> Generation:
        return self._learn(await self._client.images.create(spec)).generation

    async def _cancel(self, generation_id: str) -> Generation:
        return self._learn(await self._client.images.cancel(generation_id)).generation

    def _learn(self, generation: Generation) -> _MirrorEntry:
        entry = self._entries.get(generation.id)
        if entry is not None:
            self._update(entry, generation)
            self._entries.move_to_end(generation.id)
            return entry
        entry = self._entries[generation.id] = _MirrorEntry(generation, self._clock())
        if generation.state.terminal:
            self._settle(entry)
        else:
            entry.followed = True
            self._following.add(generation.id)
            self._flight.start(object(), lambda: self._follow(entry))
        return entry

    def _update(self, entry: _MirrorEntry, generation: Generation) -> None:
        entry.checked = self._clock()
        if entry.generation.state.terminal:
            return  # it is the last one: whatever comes after it was on its way before
        entry.body = None
        entry.states.set(generation)
        if generation.state.terminal:
            self._settle(entry)

    def _settle(self, entry: _MirrorEntry) -> None:
        entry.followed = False
        self._following.discard(entry.generation.id)
        entry.states.close()
        self._make_room()

    def _forget(self, generation_id: str) -> None:
        entry = self._entries.get(generation_id)
        if entry is not None and not entry.followed:
            del self._entries[generation_id]

    async def _follow(self, entry: _MirrorEntry) -> None:
        generation_id = entry.generation.id
        lost: GenaidError = ConnectionFailedError("The image worker ended the watch.")
        try:
            async with aclosing(self._client.images.watch(generation_id)) as generations:
                async for generation in generations:
                    self._update(entry, generation)
        except GenaidError as error:
            lost = error
        finally:
            if entry.followed:
                entry.failure = lost
                self._settle(entry)
                self._forget(generation_id)

    async def _build(self, entry: _MirrorEntry) -> bytes:
        generation = entry.generation
        try:
            images = [await self._client.images.get_image(generation.id, info.index) for info in generation.images]
        except NotFoundError:
            self._forget(generation.id)
            raise
        if sum(map(len, images)) > OFF_LOOP_BYTES:
            body = await asyncio.to_thread(rest.complete, generation, images)
        else:
            body = rest.complete(generation, images)
        if len(body) <= self._cache_bytes:
            entry.body = body
            self._make_room()
        return body

    def _make_room(self) -> None:
        finished = [(key, entry.cost()) for key, entry in self._entries.items() if not entry.followed]
        excess = sum(cost for _, cost in finished) - self._cache_bytes
        for key, cost in finished:
            if excess <= 0:
                return
            del self._entries[key]
            excess -= cost

    async def _follow_engine(self) -> None:
        failures = 0
        while True:
            try:
                async with aclosing(self._client.engine.watch()) as engines:
                    async for engine in engines:
                        self._engine = engine
                        failures = 0
            except GenaidError as error:
                log.debug("the image worker's engine can't be watched: %s", error.message)
            self._engine = None
            failures += 1
            await asyncio.sleep(RETRY.delay(failures))

    async def _let_idle_go(self) -> None:
        while True:
            await asyncio.sleep(IDLE_AFTER)
            self.let_idle_go()
