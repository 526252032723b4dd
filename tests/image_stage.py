"""An image engine with a resource manager whose part the test plays, in the test's own event loop."""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from genaid_server.image.core.engine import ImageEngine
from genaid_server.image.core.generation import Generation, Limits
from genaid_server.image.core.generations import Generations
from genaid_server.image.core.lease import (
    EngineNeed,
    ImagePlacement,
    ImageSize,
    Lease,
    LeaseState,
    ManagerAwayError,
    Prospect,
)
from genaid_server.image.core.progress import Calibration
from genaid_server.image.core.settings import WHOLE, ImageModel
from genaid_server.image.core.spec import GenerationSpec
from genaid_server.kit.errors import DomainError, InsufficientResourcesError, ModelNotFoundError
from genaid_server.supervision.logbook import Logbook
from genaid_server.supervision.supervisor import ServerState
from worker import children

PATIENCE = 100.0  # seconds; a bound for a machine that is busy, not an expectation
LATER = 3600.0  # seconds: not in this test
FAKE = Path(__file__).parent / "fakes" / "image_engine.py"
OBLIGING = (sys.executable, str(FAKE), "no misbehaviour")
DEAF = (sys.executable, str(FAKE), "deaf")
TELLING = (
    sys.executable,
    "-c",
    """
import json, os
from genaid_server.supervision import frames

def send(event, **values):
    os.write(1, frames.encode({"event": event, **values}))

reader = frames.FrameReader()
while data := os.read(0, 65536):
    for frame in reader.feed(data):
        send("log", level="INFO", message="options " + json.dumps(frame.header["options"]))
        send("ready")
""",
)
"""A program that says which options it was given."""
SMALL, LARGE = ImageSize(64, 64), ImageSize(1024, 1024)
SPEC = GenerationSpec("a cat", width=64, height=64, steps=2, seed=1)
NO_ROOM = InsufficientResourcesError("too little", required="2", available="1", suggestion="buy some")
AWAY = ManagerAwayError("nobody answers")
FASTEST = ImagePlacement()


class Stream:
    """One lease in the hands of the test."""

    def __init__(self, name: str, tenant: str, need: EngineNeed, resident: bool, model: ImageModel) -> None:
        self.name, self.tenant, self.need, self.resident, self.model = name, tenant, need, resident, model
        self.news: asyncio.Queue[Lease | Exception | None] = asyncio.Queue()
        self.over = asyncio.Event()
        self.alive_at_the_end: list[psutil.Process] = []

    def tell(
        self, state: LeaseState, after: float = 0.0, placement: ImagePlacement = FASTEST, reason: str = ""
    ) -> None:
        self.news.put_nowait(Lease(self.name, state, self.model, reason, after, placement))

    def wait(self, reason: str = "") -> None:
        self.tell(LeaseState.WAITING, reason=reason)

    def grant(self, placement: ImagePlacement = FASTEST) -> None:
        self.tell(LeaseState.GRANTED, placement=placement)

    def reclaim(self, after: float = 0.0) -> None:
        self.tell(LeaseState.RECLAIM, after, reason="somebody else")

    def fail(self, error: Exception) -> None:
        self.news.put_nowait(error)

    def close(self) -> None:
        self.news.put_nowait(None)

    async def taken(self) -> None:
        """Return when the engine knows of all news; it takes note of them in the same step."""
        while self.news.qsize():  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0)

    async def updates(self) -> AsyncGenerator[Lease, None]:
        try:
            while (news := await self.news.get()) is not None:
                if isinstance(news, Exception):
                    raise news
                yield news
        finally:
            self.alive_at_the_end = children()
            self.over.set()


@dataclass
class Manager:
    """A resource manager whose part the test plays. It grants at once while `generous`; `room` is what it has.

    `installed` are its models. What it is asked before a lease waits for `open_for_questions`.
    """

    installed: dict[str, ImageModel]
    generous: bool = True
    room: bool | DomainError = True
    away: bool = False
    placement: ImagePlacement = FASTEST
    streams: list[Stream] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)
    asked_room: asyncio.Event = field(default_factory=asyncio.Event)
    open_for_questions: asyncio.Event = field(default_factory=asyncio.Event)
    reports: list[tuple[str, ImageSize, int]] = field(default_factory=list)
    reported: asyncio.Event = field(default_factory=asyncio.Event)
    open_for_reports: asyncio.Event = field(default_factory=asyncio.Event)
    report_error: Exception | None = None
    asked: asyncio.Queue[Stream] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.open_for_reports.set()
        self.open_for_questions.set()

    async def resolve(self, model_id: str, tenant_id: str = "") -> ImageModel:
        if tenant_id:
            self.announced.append(model_id)
        await self.open_for_questions.wait()
        if self.away:
            raise AWAY
        return self._model(model_id)

    def _model(self, model_id: str) -> ImageModel:
        if model_id in self.installed:
            return self.installed[model_id]
        if model_id or len(self.installed) != 1:
            raise ModelNotFoundError(f"there is no {model_id}" if model_id else "there is not just one")
        return next(iter(self.installed.values()))

    async def prospect(self, need: EngineNeed) -> Prospect:
        assert need.size == SMALL
        self.asked_room.set()
        await self.open_for_questions.wait()
        if isinstance(self.room, DomainError):
            raise self.room
        return Prospect(self._model(need.model_id), self.room)

    def hold(self, tenant_id: str, need: EngineNeed, *, resident: bool = False) -> AsyncGenerator[Lease, None]:
        try:
            model = self._model(need.model_id)
        except ModelNotFoundError as error:
            refused = Stream("", tenant_id, need, resident, ImageModel("", "", ()))
            refused.fail(error)
            return refused.updates()
        stream = Stream(f"lease-{len(self.streams) + 1}", tenant_id, need, resident, model)
        self.streams.append(stream)
        self.asked.put_nowait(stream)
        if self.generous:
            stream.grant(self.placement)
        return stream.updates()

    async def report_use(self, lease_id: str, size: ImageSize, peak_ram_bytes: int) -> None:
        self.reports.append((lease_id, size, peak_ram_bytes))
        self.reported.set()
        await self.open_for_reports.wait()
        if self.report_error:
            raise self.report_error

    async def next(self) -> Stream:
        """The next lease that is asked for, of those that nobody has looked at."""
        return await self.asked.get()


def model_in(folder: Path, name: str) -> ImageModel:
    """A model whose only file is there."""
    file = folder / f"{name}.gguf"
    file.write_bytes(b"x" * 1_000_003)
    return ImageModel(name, name.title(), ((WHOLE, file),))


@dataclass
class Scene:
    """An engine and its manager."""

    engine: ImageEngine
    manager: Manager
    logbook: Logbook
    model: Path
    folder: Path

    @property
    def pid(self) -> int | None:
        return self.engine.info.value.life.pid

    @property
    def log(self) -> str:
        return "\n".join(record.message for record in self.logbook.tail(1000))

    async def until(self, wanted: ServerState) -> None:
        async for info in self.engine.info.watch():
            if info.life.state is wanted:
                return

    @asynccontextmanager
    async def generations(self, queue_depth: int = 5, cancel_grace: float = 2.0) -> AsyncIterator[Generations]:
        limits = Limits(queue_depth=queue_depth, cancel_grace=cancel_grace)
        async with Generations(self.engine, Calibration(self.folder / "calibration.json"), limits) as generations:
            yield generations


@asynccontextmanager
async def scene(
    folder: Path,
    *,
    command: Sequence[str] = OBLIGING,
    keep_alive: float = LATER,
    generous: bool = True,
    default_model: str = "",
) -> AsyncIterator[Scene]:
    """An engine in a scene that nothing is left of afterwards."""
    model = model_in(folder, "tiny")
    manager, logbook = Manager({"tiny": model}, generous), Logbook(folder / "engine.log")
    before = asyncio.all_tasks()
    try:
        async with (
            asyncio.timeout(PATIENCE),
            ImageEngine(
                manager, logbook, command=command, keep_alive=keep_alive, default_model=default_model
            ) as engine,
        ):
            yield Scene(engine, manager, logbook, model.files[0][1], folder)
    finally:
        logbook.close()
    assert asyncio.all_tasks() == before
    assert all(stream.over.is_set() for stream in manager.streams)
    assert children() == []


async def finished(generations: Generations, identity: str) -> Generation:
    return [state async for state in generations.watch(identity)][-1]


async def drawing(generations: Generations, identity: str) -> None:
    """Return once the engine works for it."""
    async for generation in generations.watch(identity):
        if generation.progress and generation.progress.stage.name == "DIFFUSION":
            return
