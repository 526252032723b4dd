"""One life of the image engine: the service's end of the pipe to `engines/image.py`."""

import asyncio
import itertools
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from genaid_server.image.core.settings import WHOLE, ImageEngineConfig
from genaid_server.image.core.spec import GenerationSpec
from genaid_server.kit.errors import BackendError
from genaid_server.supervision import frames
from genaid_server.supervision.child import Child, child
from genaid_server.supervision.logbook import Level, LineSplitter, Logbook, guess_level
from genaid_server.supervision.process import MAX_REASON, engine_environment, with_last_lines

BUILT_IN: Final = (sys.executable, "-P", "-m", "genaid_server.engines.image")
LAST_LINES: Final = 10

type Report = Callable[[int, int], None]
"""Told by an engine that loads how many parts of how many are loaded."""


@dataclass(frozen=True)
class StageEvent:
    """Where the job is: `diffusion` with steps of one image, or `decoding`."""

    stage: str
    image: int
    step: int
    steps: int


@dataclass(frozen=True)
class ImageEvent:
    """One image is there, as PNG bytes. `index` counts from 0."""

    index: int
    seed: int
    width: int
    height: int
    png: bytes


type JobEvent = StageEvent | ImageEvent


class JobCancelledError(Exception):
    """The engine says that the job is cancelled: nothing computes for it any more."""


class EngineProcess:
    """A running engine child. Loads one model, then computes one job at a time.

    This is the seam behind which engines elsewhere may stand: load, generate into events, cancel, close
    (the block of `engine_process` is its close).
    """

    def __init__(self, config: ImageEngineConfig, logbook: Logbook, report: Report) -> None:
        self._config, self._logbook, self._report = config, logbook, report
        self._frames, self._stderr = frames.FrameReader(), LineSplitter()
        self._child: Child | None = None
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events: asyncio.Queue[frames.Frame | None] = asyncio.Queue()
        self._job = ""
        self._jobs = itertools.count(1)
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._broken = ""

    @property
    def config(self) -> ImageEngineConfig:
        """What it was started with."""
        return self._config

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the child has not ended yet."""
        return self._process.alive

    async def ready(self) -> None:
        """Wait until the model is loaded. Raises BackendError where it can't be, or the child dies."""
        end = asyncio.ensure_future(self._process.exited())
        try:
            either: list[asyncio.Future[Any]] = [self._loaded, end]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._loaded.done():
                raise BackendError(
                    f"The image engine died while loading {self._config.model.id}: {await self.exited()}"
                )
            self._loaded.result()
        finally:
            end.cancel()
            if self._loaded.done() and not self._loaded.cancelled():
                self._loaded.exception()

    async def exited(self) -> str:
        """Wait for the child's end and tell why, with its last lines."""
        end = await self._process.exited()
        self._say(self._stderr.flush())
        self._events.put_nowait(None)
        return with_last_lines(self._broken or str(end), self._last)

    async def generate(self, spec: GenerationSpec) -> AsyncGenerator[JobEvent]:
        """Compute the images of `spec` and yield what happens; ends after the last image.

        Raises JobCancelledError once a cancelled job has ended; BackendError where the library fails or the
        child dies.
        """
        self._job = f"{next(self._jobs)}"
        job = {**asdict(spec), "sampler": spec.sampler.value, "model_name": self._config.model.name}
        self._send({"op": "generate", "job": self._job, **job})
        while (frame := await self._next_event()) is not None:
            header = frame.header
            match header["event"]:
                case "stage":
                    yield StageEvent(header["stage"], header["image"], header["step"], header["steps"])
                case "image":
                    yield ImageEvent(header["index"], header["seed"], header["width"], header["height"], frame.payload)
                case "done":
                    return
                case "cancelled":
                    raise JobCancelledError
                case "error":
                    raise BackendError(f"The image engine failed: {header['message']}"[:MAX_REASON])
        raise BackendError(f"The image engine died: {await self.exited()}")

    async def cancel(self, grace: float) -> bool:
        """Ask the engine to stop the present job and wait up to `grace` seconds until it has.

        Returns whether nothing computes any more: False where the engine is in a part that it can't leave.
        """
        self._send({"op": "cancel", "job": self._job})
        try:
            async with asyncio.timeout(grace):
                while (frame := await self._next_event()) is not None:
                    if frame.header["event"] in ("done", "cancelled", "error"):
                        break
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """The child is dead: wake whoever waits for an event of it."""
        self._events.put_nowait(None)

    async def _next_event(self) -> frames.Frame | None:
        """The next event of the present job, or None when the child is gone."""
        while True:
            if self._events.empty() and not self._process.alive:
                return None
            frame = await self._events.get()
            if frame is None or frame.header["job"] == self._job:
                return frame

    @property
    def _process(self) -> Child:
        assert self._child is not None  # noqa: S101 - set before anybody gets this object
        return self._child

    def _send(self, header: dict[str, Any]) -> None:
        self._process.write(frames.encode(header))

    def attach(self, process: Child) -> None:
        """Take the started child and have it load the model."""
        self._child = process
        files = {component: str(path) for component, path in self._config.model.files}
        self._send(
            {
                "op": "load",
                "model": files.pop(WHOLE, None),
                "components": files,
                "threads": self._config.threads,
                "options": asdict(self._config.options),
            }
        )

    def on_stdout(self, data: bytes) -> None:
        """Take frames from the child; one that doesn't speak the protocol is killed."""
        if self._broken:
            return
        try:
            for frame in self._frames.feed(data):
                self._on_frame(frame)
        except (frames.FrameError, KeyError, TypeError, ValueError) as error:
            self._broken = f"it doesn't speak the engine protocol ({error})"
            self._process.strike()

    def on_stderr(self, data: bytes) -> None:
        """Take what the child and its libraries print."""
        self._say(self._stderr.feed(data))

    def _say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._note(guess_level(line), line)

    def _note(self, level: Level, line: str) -> None:
        self._logbook.append(level, line)
        if level > Level.DEBUG:
            self._last.append(line)

    def _on_frame(self, frame: frames.Frame) -> None:
        header = frame.header
        match header["event"]:
            case "log":
                self._note(Level[header["level"]], header["message"])
            case "loading":
                self._report(int(header["done"]), int(header["total"]))
            case "ready":
                if not self._loaded.done():
                    self._loaded.set_result(None)
            case "failed":
                if not self._loaded.done():
                    message = f"The model {self._config.model.id} could not be loaded: {header['message']}"
                    self._loaded.set_exception(BackendError(message[:MAX_REASON]))
            case "stage" | "image" | "done" | "cancelled" | "error" if isinstance(header["job"], str):
                self._events.put_nowait(frame)
            case unknown:
                raise ValueError(f"event {unknown!r}")


@asynccontextmanager
async def engine_process(
    config: ImageEngineConfig, report: Report, logbook: Logbook, command: Sequence[str] = ()
) -> AsyncIterator[EngineProcess]:
    """Start an engine child that loads the model; it is dead when the block ends.

    `command` is the argv of the engine program, empty for the built-in one.
    """
    engine = EngineProcess(config, logbook, report)
    argv = list(command or BUILT_IN)
    try:
        async with child(
            argv, engine.on_stdout, engine.on_stderr, engine_environment(os.environ), grace=1.0
        ) as process:
            engine.attach(process)
            yield engine
    finally:
        engine.close()
