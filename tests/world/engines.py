"""Engine children that are played in the test's own loop: they load, work, crash and stop as they are told to.

They stand where `supervision.child` starts a process, and speak the frames of the built-in engines; all that drives
them is the real code.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core.llm.slots import EngineEndpoint, SlotsError, file_name
from genaid_server.supervision import frames
from genaid_server.supervision.child import Exit

FIRST_PID: Final = 2**23
"""No process of any system has such an id, or a higher one."""
FIRST_PORT: Final = 20_000
DYING: Final = 0.01
"""Seconds that a killed child takes to be gone."""


class Kind(StrEnum):
    """Which engine."""

    LLM = "llm"
    IMAGE = "image"


@dataclass(frozen=True)
class Manners:
    """How a life goes. `loading` is in seconds, None for ever; so is `drawing`.

    `fails` ends it while it loads. One that is `stubborn` does not stop when it is asked to.
    """

    loading: float | None = 0.2
    drawing: float | None = 0.2
    fails: bool = False
    stubborn: bool = False


GOOD: Final = Manners()


class EngineChild:
    """One child. Has what the engines use of `supervision.child.Child`."""

    def __init__(
        self,
        nursery: "Nursery",
        kind: Kind,
        number: int,
        tell: Callable[[bytes], None],
        print_: Callable[[bytes], None],
    ) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self.kind, self.pid, self.port = kind, FIRST_PID + number, FIRST_PORT + number % 10_000
        self.loaded = False
        self.paths: tuple[Path, ...] = ()
        self._nursery, self._tell, self._print = nursery, tell, print_
        self._manners = nursery.next_life(kind)
        self._exited: asyncio.Future[Exit] = loop.create_future()
        self._reader = frames.FrameReader()
        self._slots = Path()
        self._job = ""
        self._drawing: asyncio.TimerHandle | None = None

    # --- what the engines use

    @property
    def alive(self) -> bool:
        return not self._exited.done()

    async def exited(self) -> Exit:
        return await asyncio.shield(self._exited)

    def write(self, data: bytes) -> None:
        if self.alive:
            for frame in self._reader.feed(data):
                self._loop.call_soon(self._obey, frame.header)

    async def stop(self, grace: float) -> None:
        if self.alive and not self._manners.stubborn:
            self._loop.call_later(DYING, self.end, 0)
        if self.alive:
            await asyncio.wait([self._exited], timeout=grace)
        await self.kill()

    def strike(self) -> None:
        if self.alive:
            self._loop.call_soon(self.end, -9)

    async def kill(self) -> None:
        self.strike()
        await self.exited()

    # --- what it does

    def end(self, code: int) -> None:
        """It is gone."""
        self.loaded = False
        if self._drawing is not None:
            self._drawing.cancel()
        if self.alive:
            self._exited.set_result(Exit(code))

    def behave(self) -> None:
        """From now on it does what it should, and what it has left undone it does now."""
        before, self._manners = self._manners, GOOD
        if before.loading is None and self.paths and not self.loaded:
            self._load_within(GOOD.loading)
        if before.drawing is None and self._job:
            self._draw_within(GOOD.drawing, self._job)

    def slots(self, slot: int) -> Path:
        """The file of a prompt cache."""
        return self._slots / file_name(slot)

    def _obey(self, order: Mapping[str, Any]) -> None:
        if not self.alive:
            return
        match order["op"]:
            case "load":
                self._open(order)
            case "generate":
                self._job = order["job"]
                self._say("stage", job=self._job, stage="diffusion", image=1, step=0, steps=order["steps"])
                self._draw_within(self._manners.drawing, self._job)
            case "cancel" if order["job"] == self._job and self._manners.drawing is not None:
                self._job = ""
                self._say("cancelled", job=order["job"])

    def _open(self, order: Mapping[str, Any]) -> None:
        self._slots = Path(order.get("slot_save_path", ""))
        self.paths = tuple(Path(path) for path in (order["model"], *order.get("components", {}).values()) if path)
        self._nursery.opened(self, str(order.get("alias", "")))
        if self._manners.fails or not all(path.is_file() for path in self.paths):
            self._print(b"it can't be loaded\n")
            self.end(1)
            return
        self._load_within(self._manners.loading)

    def _load_within(self, seconds: float | None) -> None:
        if seconds is not None:
            self._loop.call_later(seconds, self._be_ready)

    def _be_ready(self) -> None:
        if self.alive and not self.loaded:
            self.loaded = True
            self._nursery.served.add(self.pid)
            self._say("ready", port=self.port)

    def _draw_within(self, seconds: float | None, job: str) -> None:
        if seconds is not None:
            self._drawing = self._loop.call_later(seconds, self._finish, job)

    def _finish(self, job: str) -> None:
        if self.alive and job == self._job:
            self._job = ""
            self._tell(
                frames.encode({"event": "image", "job": job, "index": 0, "seed": 1, "width": 64, "height": 64}, PNG)
            )
            self._say("done", job=job)

    def _say(self, event: str, **values: object) -> None:
        self._tell(frames.encode({"event": event, **values}))


PNG: Final = b"\x89PNG, as far as anybody looks"


@dataclass
class Nursery:
    """All children, and how the next ones will be. `opened` is told of each that opens files, and under which name."""

    opened: Callable[[EngineChild, str], None]
    children: list[EngineChild] = field(default_factory=list)
    served: set[int] = field(default_factory=set)
    manners: dict[Kind, Manners] = field(default_factory=dict)

    def living(self, kind: Kind) -> list[EngineChild]:
        return [child for child in self.children if child.kind is kind and child.alive]

    def next_life(self, kind: Kind) -> Manners:
        """How the life goes that begins now; the one after it is a good one."""
        return self.manners.pop(kind, GOOD)

    def all_behave(self) -> None:
        self.manners.clear()
        for child in self.children:
            if child.alive:
                child.behave()

    def starter(self, kind: Kind) -> Callable[..., Any]:
        """What stands in the place of `supervision.child.child`."""

        @asynccontextmanager
        async def child(
            argv: Sequence[str],
            on_stdout: Callable[[bytes], None],
            on_stderr: Callable[[bytes], None],
            env: Mapping[str, str] | None = None,
            grace: float = 5.0,
        ) -> AsyncIterator[EngineChild]:
            await asyncio.sleep(0)
            born = EngineChild(self, kind, len(self.children), on_stdout, on_stderr)
            self.children.append(born)
            try:
                await asyncio.sleep(0)
                yield born
            finally:
                await to_the_end(born.stop(grace))

        return child

    # --- the HTTP API of the LLM engine

    async def healthy(self, host: str, port: int, timeout: float) -> bool:
        await asyncio.sleep(0)
        return any(child.loaded for child in self.living(Kind.LLM) if child.port == port)

    async def slots(self, engine: EngineEndpoint) -> list[bool]:
        await self._at(engine)
        return [False]

    async def save(self, engine: EngineEndpoint, slot: int, name: str) -> int:
        path = (await self._at(engine)).slots(slot)
        path.write_bytes(json.dumps(name).encode())
        return 7

    async def restore(self, engine: EngineEndpoint, slot: int, name: str) -> int:
        if not (await self._at(engine)).slots(slot).is_file():
            raise SlotsError("there is no such file")
        return 7

    async def _at(self, engine: EngineEndpoint) -> EngineChild:
        await asyncio.sleep(0.01)
        for child in self.living(Kind.LLM):
            if child.loaded and child.port == engine.port:
                return child
        raise SlotsError("nobody answers")
