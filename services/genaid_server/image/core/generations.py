"""The generations that the worker knows, and the one that runs.

Whether a request is accepted is decided without an await in between, so of several at the same moment exactly as
many win as there is room for. A generation's task owns it from its turn until a terminal state.
"""

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial
from types import TracebackType
from typing import Final, Self

from genaid_server.image.core.engine import Engine, EngineInfo
from genaid_server.image.core.process import EngineProcess, ImageEvent, JobEvent, StageEvent
from genaid_server.image.core.progress import Calibration, Progress, Stage, Timings, Tracker
from genaid_server.image.core.spec import GenerationSpec
from genaid_server.image.core.tenancy import Size
from genaid_server.kit.errors import (
    AlreadyTerminalError,
    BackendError,
    DomainError,
    NotFoundError,
    ServerBusyError,
    ServerError,
)
from genaid_server.kit.tasks import to_the_end
from genaid_server.kit.watchable import Watchable
from genaid_server.supervision.supervisor import State as EngineState

log = logging.getLogger(__name__)

TICK: Final = 0.25  # seconds between looks at the clock, for stages that report nothing
SHOWN_EVERY: Final = 0.1
"""Seconds that a progress stands at least, unless a stage ends or begins, or an image: to tell it takes processor time
from the engine, and quick models make hundreds of steps a second."""
MAX_REQUEST_ID: Final = 128


class State(Enum):
    """Where a generation is in its life."""

    PENDING = auto()
    IN_PROGRESS = auto()
    COMPLETE = auto()
    ERROR = auto()
    CANCELLED = auto()

    @property
    def terminal(self) -> bool:
        """Whether nothing comes after it."""
        return self in (State.COMPLETE, State.ERROR, State.CANCELLED)


@dataclass(frozen=True)
class ImageInfo:
    """One image, without its bytes. `index` counts from 0; `sha256` is hexadecimal."""

    index: int
    seed: int
    width: int
    height: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Failure:
    """Why a generation failed: a stable reason, a message for people, and facts for programs, by their names."""

    code: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """A generation as it is at one moment. Times are in seconds since the epoch, `seconds` is a duration."""

    id: str
    spec: GenerationSpec
    model_id: str
    created_at: float
    updated_at: float
    state: State = State.PENDING
    progress: Progress | None = None
    images: tuple[ImageInfo, ...] = ()
    failure: Failure | None = None
    seconds: float | None = None
    expires_at: float | None = None
    queue_position: int = 0


@dataclass(frozen=True)
class Limits:
    """How much is kept and how many wait. Times are in seconds."""

    queue_depth: int = 0
    result_ttl: float = 300.0
    cleanup_interval: float = 60.0
    max_results: int = 100
    max_result_bytes: int = 268_435_456
    cancel_grace: float = 2.0


@dataclass
class _Entry:
    """One generation with what belongs to it; only `Generations` touches it."""

    snapshot: Watchable[Generation]
    request_id: str
    pngs: tuple[bytes, ...] = ()
    task: asyncio.Task[None] | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def now(self) -> Generation:
        return self.snapshot.value


class Generations:
    """Owner of every generation; use it as an async context manager, which cancels what is not finished.

    `now` gives the time in seconds since the epoch.
    """

    def __init__(
        self, engine: Engine, calibration: Calibration, limits: Limits, now: Callable[[], float] = time.time
    ) -> None:
        self._engine, self._calibration, self._limits, self._now = engine, calibration, limits, now
        self._entries: dict[str, _Entry] = {}
        self._by_request: dict[str, str] = {}
        self._waiting: deque[_Entry] = deque()
        self._running: _Entry | None = None
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
        await self.cancel_all()
        self.end_watches()

    async def create(self, spec: GenerationSpec, request_id: str = "") -> Generation:
        """Accept a generation; a known `request_id` returns the one that it made.

        Raises ServerBusyError, ServerError (the engine was stopped), ModelNotFoundError (none to draw with).
        """
        if known := self._known(request_id):
            return known
        model = await self._engine.selected()
        # From here to the end there is no await: what is checked is still so when it is acted on.
        if known := self._known(request_id):
            return known
        if self._closing:
            raise ServerError("The image worker is shutting down.")
        if self._running is not None and len(self._waiting) >= self._limits.queue_depth:
            raise ServerBusyError(
                "Server is busy generating another image" + (" and the queue is full" if self._waiting else ""),
                suggestion="Wait for the running generation to finish, or cancel it, and try again.",
            )
        now = self._now()
        identity = f"gen_{int(now * 1000)}_{secrets.token_hex(8)}"
        entry = _Entry(Watchable(Generation(identity, spec, model.model_id, now, now)), request_id)
        self._entries[identity] = entry
        if request_id:
            self._by_request[request_id] = identity
        self._waiting.append(entry)
        self._take_turns()
        return entry.now

    def get(self, identity: str) -> Generation:
        """Return a generation. Raises NotFoundError."""
        return self._entry(identity).now

    def newest_first(self) -> list[Generation]:
        """Every generation, the newest first."""
        return [entry.now for entry in reversed(self._entries.values())]

    def watch(self, identity: str) -> AsyncIterator[Generation]:
        """A generation as it is now, then each newer state up to the last. Raises NotFoundError."""
        return self._entry(identity).snapshot.watch()

    async def cancel(self, identity: str) -> Generation:
        """Cancel a generation and return when nothing computes for it any more.

        Cancelling a cancelled one changes nothing. Raises NotFoundError, AlreadyTerminalError.
        """
        entry = self._entry(identity)
        if not entry.now.state.terminal:
            await self._cancel(entry)
        if entry.now.state is not State.CANCELLED:
            raise AlreadyTerminalError(
                f"Generation {identity} is already {entry.now.state.name.lower()}", state=entry.now.state.name.lower()
            )
        return entry.now

    async def delete(self, identity: str) -> None:
        """Forget a generation and its images, cancelling it first where it is not finished. Raises NotFoundError."""
        entry = self._entry(identity)
        if not entry.now.state.terminal:
            await self._cancel(entry)
        self._forget(entry)

    def image(self, identity: str, index: int) -> tuple[ImageInfo, bytes]:
        """One image of a complete generation. Raises NotFoundError; ServerBusyError while it is not finished."""
        entry = self._entry(identity)
        if not entry.now.state.terminal:
            raise ServerBusyError(f"Generation {identity} is not complete yet", state=entry.now.state.name.lower())
        if not 0 <= index < len(entry.pngs):
            raise NotFoundError(f"Generation {identity} has no image {index}", generationId=identity)
        return entry.now.images[index], entry.pngs[index]

    async def stop_engine(self) -> EngineInfo:
        """Cancel everything, free the memory, and refuse generations until the engine is started."""
        return await to_the_end(self._stop_engine())

    async def _stop_engine(self) -> EngineInfo:
        self._engine.refuse()
        await self.cancel_all()
        return await self._engine.stop()

    async def cancel_all(self) -> None:
        """Cancel everything that is not finished."""
        for entry in list(self._entries.values()):
            if not entry.now.state.terminal:
                await self._cancel(entry)

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

    def _known(self, request_id: str) -> Generation | None:
        identity = self._by_request.get(request_id) if request_id else None
        return self._entries[identity].now if identity else None

    def _entry(self, identity: str) -> _Entry:
        entry = self._entries.get(identity)
        if entry is None:
            raise NotFoundError("Generation not found", generationId=identity[:100])
        return entry

    def _forget(self, entry: _Entry) -> None:
        self._entries.pop(entry.now.id, None)
        if entry.request_id:
            self._by_request.pop(entry.request_id, None)

    def _take_turns(self) -> None:
        """Give the engine to the next one that waits, and tell the others their place."""
        if self._running is None and self._waiting:
            entry = self._running = self._waiting.popleft()
            entry.task = asyncio.create_task(self._run(entry), name=f"generation {entry.now.id}")
            entry.task.add_done_callback(partial(self._turn_over, entry))
        for place, entry in enumerate(self._waiting):
            self._update(entry, queue_position=place + 1)

    async def _cancel(self, entry: _Entry) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._finish(entry, State.CANCELLED)
            self._take_turns()
        elif entry.task is not None:
            entry.task.cancel()
            await entry.done.wait()

    async def _run(self, entry: _Entry) -> None:
        """The turn of one generation: gets the engine, draws, and settles it; `_turn_over` does what remains."""
        began = time.monotonic()
        try:
            with self._engine.use() as use:
                config = await self._engine.selected()
                expected = self._calibration.expect(config.model_id, config.variant, entry.now.spec)
                tracker = Tracker(entry.now.spec, expected)
                self._update(entry, state=State.IN_PROGRESS, model_id=config.model_id, progress=tracker.progress())
                images = await self._draw(entry, tracker)
                self._complete(entry, images, time.monotonic() - began)
                use.made = _size(entry)
                self._calibration.learn(config.model_id, config.variant, entry.now.spec, self._measured(tracker))
        except DomainError as error:
            self._finish(entry, State.ERROR, progress=None, failure=Failure(error.reason, error.message, error.facts))

    def _turn_over(self, entry: _Entry, task: asyncio.Task[None]) -> None:
        """Settle what the turn left open and give the engine to the next one.

        A task that is cancelled before its first step never runs at all, so this can't be a `finally` in it.
        """
        if task.cancelled():
            self._finish(entry, State.CANCELLED, progress=None)
        elif error := task.exception():
            log.error("generation %s failed unexpectedly", entry.now.id, exc_info=error)
            self._finish(entry, State.ERROR, progress=None, failure=Failure("SERVER_ERROR", "Internal error"))
        self._running = None
        self._take_turns()
        entry.done.set()

    async def _draw(self, entry: _Entry, tracker: Tracker) -> list[ImageEvent]:
        ticker = asyncio.create_task(self._tick(entry, tracker), name="generation ticker")
        try:
            return await self._load_and_generate(entry, tracker)
        finally:
            ticker.cancel()
            await asyncio.wait([ticker])

    async def _load_and_generate(self, entry: _Entry, tracker: Tracker) -> list[ImageEvent]:
        follower = asyncio.create_task(self._follow_load(entry, tracker), name="generation load follower")
        try:
            process = await self._engine.ready(_size(entry))
        except asyncio.CancelledError:
            await to_the_end(self._engine.abandon_load())
            raise
        finally:
            follower.cancel()
            await asyncio.wait([follower])
        tracker.loaded()
        self._show(entry, tracker)
        images: list[ImageEvent] = []
        try:
            async with aclosing(process.generate(entry.now.spec)) as events:
                async for event in events:
                    self._take(event, tracker, images)
                    self._show(entry, tracker)
                    await asyncio.sleep(0)  # where several events came at once, watchers see the end of a stage as well
        except asyncio.CancelledError:
            await to_the_end(self._interrupt(process))
            raise
        if len(images) != entry.now.spec.count:
            raise BackendError(f"The image engine made {len(images)} of {entry.now.spec.count} images.")
        return images

    async def _interrupt(self, process: EngineProcess) -> None:
        if self._closing:  # there will be no next image: no need to spare the loaded model
            await self._engine.stop()
        else:
            await self._engine.interrupt(process, self._limits.cancel_grace)

    def _take(self, event: JobEvent, tracker: Tracker, images: list[ImageEvent]) -> None:
        match event:
            case StageEvent(Stage.DECODING, image, _, _):
                tracker.decoding(image)
            case StageEvent(_, image, step, steps):
                tracker.diffusion(image, step, steps)
            case ImageEvent():
                images.append(event)

    async def _follow_load(self, entry: _Entry, tracker: Tracker) -> None:
        async with self._engine.loading() as lives:
            async for life in lives:
                if life.state is EngineState.STARTING and life.pid is not None:  # before that it waits for memory
                    tracker.loading(life.loaded, life.to_load)
                    self._show(entry, tracker)

    def _measured(self, tracker: Tracker) -> Timings:
        """What the stages took. That of loading leaves out the wait for memory, which says nothing of the next time."""
        measured, load_seconds = tracker.measured(), self._engine.info.value.life.load_seconds
        if math.isnan(measured.load) or load_seconds is None:
            return measured
        return replace(measured, load=load_seconds)

    async def _tick(self, entry: _Entry, tracker: Tracker) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._show(entry, tracker)

    def _show(self, entry: _Entry, tracker: Tracker) -> None:
        """Tell how far it is, where that is worth telling; what is left out, the next look at the clock tells."""
        progress, shown = tracker.progress(), entry.now.progress
        elsewhere = shown is None or (shown.stage, shown.current_image) != (progress.stage, progress.current_image)
        last = progress.current_step == progress.total_steps
        if elsewhere or last or abs(self._now() - entry.now.updated_at) >= SHOWN_EVERY:
            self._update(entry, progress=progress)

    def _complete(self, entry: _Entry, images: list[ImageEvent], seconds: float) -> None:
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
        self._finish(entry, State.COMPLETE, images=infos, seconds=seconds, progress=progress)
        self._make_room(entry)

    def _make_room(self, newest: _Entry) -> None:
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

    def _update(self, entry: _Entry, **changes: object) -> None:
        changed = replace(entry.now, **changes)  # type: ignore[arg-type]
        if changed != entry.now and not entry.now.state.terminal:
            entry.snapshot.set(replace(changed, updated_at=self._now()))

    def _finish(self, entry: _Entry, state: State, **changes: object) -> None:
        self._update(entry, state=state, queue_position=0, expires_at=self._now() + self._limits.result_ttl, **changes)
        entry.snapshot.close()


def _size(entry: _Entry) -> Size:
    return Size(entry.now.spec.width, entry.now.spec.height)
