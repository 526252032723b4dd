"""The generations that the worker knows, and the one that runs.

Whether a request is accepted is decided without an await in between, so of several at the same moment exactly as
many win as there is room for. A generation's task owns it from its turn until a terminal state.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Final, Self

from genaid_server.image.core.drawing import Assumption, Drawing
from genaid_server.image.core.engine import EngineInfo, ImageEngine
from genaid_server.image.core.generation import Failure, Generation, GenerationState, ImageInfo, Limits
from genaid_server.image.core.process import ImageEvent
from genaid_server.image.core.progress import Calibration, Progress
from genaid_server.image.core.settings import ImageModel
from genaid_server.image.core.spec import GenerationSpec
from genaid_server.kit.errors import (
    AlreadyTerminalError,
    DomainError,
    NotFoundError,
    ServerBusyError,
    ServerError,
)
from genaid_server.kit.request_ids import RequestIds, check_request_id
from genaid_server.kit.tasks import to_the_end
from genaid_server.kit.watchable import Watchable

log = logging.getLogger(__name__)

SHOWN_EVERY: Final = 0.1
"""Seconds that a progress stands at least, unless a stage ends or begins, or an image: to tell it takes processor time
from the engine, and quick models make hundreds of steps a second."""


@dataclass(eq=False)
class Kept:
    """One generation with what belongs to it; only `Generations` changes it.

    Whoever has it in hand has its images, also when it is forgotten meanwhile.
    """

    snapshot: Watchable[Generation]
    fresh: ImageModel | None
    pngs: tuple[bytes, ...] = ()
    task: asyncio.Task[None] | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def now(self) -> Generation:
        """The generation as it is now."""
        return self.snapshot.value

    def watch(self) -> AsyncIterator[Generation]:
        """The generation as it is now, then each newer state up to the last."""
        return self.snapshot.watch()

    def image(self, index: int) -> tuple[ImageInfo, bytes]:
        """One image. Raises NotFoundError; ServerBusyError while it is not finished."""
        if not self.now.state.terminal:
            raise ServerBusyError(f"Generation {self.now.id} is not complete yet", state=self.now.state.name.lower())
        if not 0 <= index < len(self.pngs):
            raise NotFoundError(f"Generation {self.now.id} has no image {index}", generationId=self.now.id)
        return self.now.images[index], self.pngs[index]


class Generations:
    """Owner of every generation; use it as an async context manager, which cancels what is not finished.

    `now` gives the time in seconds since the epoch.
    """

    def __init__(
        self, engine: ImageEngine, calibration: Calibration, limits: Limits, now: Callable[[], float] = time.time
    ) -> None:
        self._engine, self._calibration, self._limits, self._now = engine, calibration, limits, now
        self._entries: dict[str, Kept] = {}
        self._made: RequestIds[Kept] = RequestIds()
        self._waiting: deque[Kept] = deque()
        self._running: Kept | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        self._sweeper = asyncio.create_task(self._sweep_for_ever(), name="generation sweeper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        if self._running is not None:  # there will be no next image: no need to spare the loaded model
            await to_the_end(self.stop_engine())
        self.end_watches()

    async def create(self, spec: GenerationSpec, request_id: str = "") -> Generation:
        """Accept a generation; a known `request_id` returns the one that it made.

        Raises ServerBusyError, ServerError (the engine was stopped), ModelNotFoundError (none to draw with),
        InvalidRequestError (a request id that is too long).
        """
        return (await self._accept(spec, request_id)).now

    @asynccontextmanager
    async def made_for(self, spec: GenerationSpec) -> AsyncIterator[Kept]:
        """A generation for one caller alone: when the block ends it is cancelled, if it isn't finished, and forgotten.
        Its images are there for as long as the block, whoever forgets it meanwhile. Raises what `create` raises."""
        entry = await self._accept(spec, "")
        try:
            yield entry
        finally:
            await to_the_end(self._discard(entry))

    async def _accept(self, spec: GenerationSpec, request_id: str) -> Kept:
        check_request_id(request_id)
        while True:
            if (known := self._made.known(request_id)) is not None:
                return known
            settings = self._engine.settings
            model = await self._engine.next_model()
            # From here to the end there is no await: what is checked is still so when it is acted on.
            if (known := self._made.known(request_id)) is not None:
                return known
            if self._engine.settings == settings:  # else the model is not the one that would draw now
                return self._register(spec, request_id, model)

    def _register(self, spec: GenerationSpec, request_id: str, model: ImageModel) -> Kept:
        if self._closing:
            raise ServerError("The image worker is shutting down.")
        if self._running is not None and len(self._waiting) >= self._limits.queue_depth:
            raise ServerBusyError(
                "Server is busy generating another image" + (" and the queue is full" if self._waiting else ""),
                suggestion="Wait for the running generation to finish, or cancel it, and try again.",
            )
        now = self._now()
        identity = f"gen_{int(now * 1000)}_{secrets.token_hex(8)}"
        entry = Kept(Watchable(Generation(identity, spec, model.id, now, now)), model)
        self._entries[identity] = entry
        self._made.remember(request_id, entry)
        self._waiting.append(entry)
        self._take_turns()
        if entry is not self._running:
            entry.fresh = None  # when its turn comes, the default may be another
        return entry

    def get(self, identity: str) -> Generation:
        """Return a generation. Raises NotFoundError."""
        return self._entry(identity).now

    def newest_first(self) -> list[Generation]:
        """Every generation, the newest first."""
        return [entry.now for entry in reversed(self._entries.values())]

    def watch(self, identity: str) -> AsyncIterator[Generation]:
        """A generation as it is now, then each newer state up to the last. Raises NotFoundError."""
        return self._entry(identity).watch()

    async def cancel(self, identity: str) -> Generation:
        """Cancel a generation and return when nothing computes for it any more.

        Cancelling a cancelled one changes nothing. Raises NotFoundError, AlreadyTerminalError.
        """
        entry = self._entry(identity)
        if not entry.now.state.terminal:
            await self._cancel(entry)
        if entry.now.state is not GenerationState.CANCELLED:
            raise AlreadyTerminalError(
                f"Generation {identity} is already {entry.now.state.name.lower()}", state=entry.now.state.name.lower()
            )
        return entry.now

    async def delete(self, identity: str) -> None:
        """Forget a generation and its images, cancelling it first where it is not finished. Raises NotFoundError."""
        await self._discard(self._entry(identity))

    async def _discard(self, entry: Kept) -> None:
        if not entry.now.state.terminal:
            await self._cancel(entry)
        self._forget(entry)

    def image(self, identity: str, index: int) -> tuple[ImageInfo, bytes]:
        """One image of a complete generation. Raises NotFoundError; ServerBusyError while it is not finished."""
        return self._entry(identity).image(index)

    async def stop_engine(self) -> EngineInfo:
        """Cancel everything, free the memory, and refuse generations until the engine is started.

        All of that is done at once, also where the caller leaves; who stays waits until the engine is gone.
        """
        cancelled = self._cancel_everything()
        stopped = self._engine.stop()
        for entry in cancelled:
            await entry.done.wait()
        return await stopped

    def _cancel_everything(self) -> list[Kept]:
        """Begin to cancel what is not finished; returns what takes a while."""
        while self._waiting:
            self._finish(self._waiting.popleft(), GenerationState.CANCELLED)
        if self._running is None:
            return []
        self._cancel_task(self._running)
        return [self._running]

    def end_watches(self) -> None:
        """End the watches of generations that are not finished; the service is going away."""
        for entry in self._entries.values():
            entry.snapshot.close()

    def sweep(self) -> None:
        """Forget what finished longer ago than results are kept."""
        oldest = self._now() - self._limits.result_ttl
        for entry in list(self._entries.values()):
            if entry.now.state.terminal and entry.now.updated_at < oldest:
                self._forget(entry)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._limits.cleanup_interval)
            self.sweep()

    def _entry(self, identity: str) -> Kept:
        entry = self._entries.get(identity)
        if entry is None:
            raise NotFoundError("Generation not found", generationId=identity[:100])
        return entry

    def _forget(self, entry: Kept) -> None:
        self._entries.pop(entry.now.id, None)
        self._made.forget(lambda made: made is entry)

    def _take_turns(self) -> None:
        """Give the engine to the next one that waits, and tell the others their place."""
        if self._running is None and self._waiting:
            entry = self._running = self._waiting.popleft()
            self._update(entry, queue_position=0)
            entry.task = asyncio.create_task(self._run(entry), name=f"generation {entry.now.id}")
            entry.task.add_done_callback(partial(self._turn_over, entry))
        for place, entry in enumerate(self._waiting):
            self._update(entry, queue_position=place + 1)

    async def _cancel(self, entry: Kept) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._finish(entry, GenerationState.CANCELLED)
            self._take_turns()
        else:
            self._cancel_task(entry)
            await entry.done.wait()

    def _cancel_task(self, entry: Kept) -> None:
        if entry.task is not None:
            entry.task.cancel()

    async def _run(self, entry: Kept) -> None:
        """The turn of one generation: gets the engine, draws, and settles it; `_turn_over` does what remains."""
        began = time.monotonic()
        drawing = Drawing(
            self._engine,
            self._calibration,
            entry.now.spec,
            self._limits.cancel_grace,
            partial(self._show, entry),
            lambda model_id: self._update(entry, model_id=model_id),
        )
        try:
            assumed = Assumption(entry.now.model_id, self._engine.settings.variant, entry.fresh)
            self._update(entry, state=GenerationState.IN_PROGRESS)
            await drawing.draw(assumed, lambda images: self._complete(entry, images, time.monotonic() - began))
        except DomainError as error:
            self._finish(
                entry, GenerationState.ERROR, progress=None, failure=Failure(error.reason, error.message, error.facts)
            )

    def _turn_over(self, entry: Kept, task: asyncio.Task[None]) -> None:
        """Settle what the turn left open and give the engine to the next one.

        A task that is cancelled before its first step never runs at all, so this can't be a `finally` in it.
        """
        if task.cancelled():
            self._finish(entry, GenerationState.CANCELLED, progress=None)
        elif error := task.exception():
            log.error("generation %s failed unexpectedly", entry.now.id, exc_info=error)
            self._finish(entry, GenerationState.ERROR, progress=None, failure=Failure("SERVER_ERROR", "Internal error"))
        self._running = None
        self._take_turns()
        entry.done.set()

    def _show(self, entry: Kept, progress: Progress) -> None:
        """Tell how far it is, where that is worth telling; what is left out, the next look at the clock tells."""
        shown = entry.now.progress
        elsewhere = shown is None or (shown.stage, shown.current_image) != (progress.stage, progress.current_image)
        last = progress.current_step == progress.total_steps
        if elsewhere or last or abs(self._now() - entry.now.updated_at) >= SHOWN_EVERY:
            self._update(entry, progress=progress)

    def _complete(self, entry: Kept, images: list[ImageEvent], seconds: float) -> None:
        entry.pngs = tuple(image.png for image in images)
        infos = tuple(
            ImageInfo(
                image.index,
                image.seed,
                image.width,
                image.height,
                len(image.png),
                hashlib.sha256(image.png).hexdigest(),
            )
            for image in images
        )
        last = entry.now.progress
        progress = replace(last, percentage=100.0) if last else None
        self._finish(entry, GenerationState.COMPLETE, images=infos, seconds=seconds, progress=progress)
        self._make_room(entry)

    def _make_room(self, newest: Kept) -> None:
        """Forget the oldest results beyond the bounds, never the newest one."""
        finished = [entry for entry in self._entries.values() if entry.now.state.terminal and entry is not newest]
        size = sum(len(png) for entry in [*finished, newest] for png in entry.pngs)
        number = len(finished) + 1
        for entry in sorted(finished, key=lambda entry: entry.now.updated_at):
            if number <= self._limits.max_results and size <= self._limits.max_result_bytes:
                break
            self._forget(entry)
            number -= 1
            size -= sum(len(png) for png in entry.pngs)

    def _update(self, entry: Kept, **changes: object) -> None:
        changed = replace(entry.now, **changes)  # type: ignore[arg-type]
        if changed != entry.now and not entry.now.state.terminal:
            entry.snapshot.set(replace(changed, updated_at=self._now()))

    def _finish(self, entry: Kept, state: GenerationState, **changes: object) -> None:
        self._update(entry, state=state, queue_position=0, expires_at=self._now() + self._limits.result_ttl, **changes)
        entry.snapshot.close()
