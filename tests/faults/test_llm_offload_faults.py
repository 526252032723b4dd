"""Engines that fail on their way out of memory and back, and services that end or are killed meanwhile."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from conftest import DemoModels
from fakes.gateway import until
from genaid_client import (
    EngineEvent,
    LeaseState,
    Llm,
    OffloadPhase,
    ServerError,
    ServerState,
)
from genaid_server.resource.core.llm.saved import FILE
from llm_service import (
    FakeProgram,
    ImageEngine,
    LlmService,
    ask,
    chat,
    engines,
    fake_program,
)
from scarce import (
    STORIES,
    TWO,
    WISHES,
    Place,
    draining,
    evaluated,
    made_room,
    messages,
    offloaded,
)

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="the fake program is started by a shell script")

type Step = Callable[[LlmService, Llm], AbstractAsyncContextManager[object]]


@pytest.fixture(scope="module")
def scarce(tmp_path_factory: pytest.TempPathFactory, demo_models: DemoModels) -> Place:
    return asyncio.run(Place.make(tmp_path_factory.mktemp("scarce"), demo_models))


@pytest.fixture
def place(scarce: Place, tmp_path: Path) -> Place:
    return replace(scarce, data_dir=tmp_path / "data")


@pytest.fixture
async def service(place: Place) -> AsyncIterator[LlmService]:
    async with place.open() as running:
        yield running


@pytest.fixture
def program(tmp_path: Path) -> FakeProgram:
    return fake_program(tmp_path)


@pytest.fixture
async def fake(place: Place, program: FakeProgram) -> AsyncIterator[LlmService]:
    async with place.open(program=program.name) as running:
        yield running


# --- engines that fail


async def test_one_that_can_not_be_loaded_is_tried_again(service: LlmService, place: Place) -> None:
    before = await service.client.llm.start("talker", config=WISHES)
    first = await evaluated(before, STORIES[0])
    path = Path((await service.client.models.get("talker")).path)
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        away = path.rename(path.with_suffix(".away"))
    failed = await service.until(lambda llm: llm.last_event is EngineEvent.RELOAD_FAILED)
    assert (failed.offloaded, failed.pid, "talker" in failed.last_error) == (True, None, True)
    found = await offloaded(service)
    assert (found.phase, found.failed_attempts, found.last_error) == (OffloadPhase.FAILED, 1, failed.last_error)
    assert found.next_attempt_time is not None
    assert found.next_attempt_time > found.save_time
    assert place.saved is not None
    assert place.saved.slots == {0: found.saved_tokens}
    away.rename(path)
    after = await service.back(generation=2)
    assert (after.port, after.last_error) == (before.port, "")
    assert await evaluated(after, STORIES[0]) <= first * 0.05
    assert [line for line in await messages(service) if line.startswith("could not be brought back, again in 1 s: ")]


async def test_a_start_does_not_wait_for_the_next_attempt(service: LlmService) -> None:
    before = await service.client.llm.start("talker", config=WISHES)
    path = Path((await service.client.models.get("talker")).path)
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        away = path.rename(path.with_suffix(".away"))
    await service.until(lambda llm: llm.last_event is EngineEvent.RELOAD_FAILED)
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        start = asyncio.create_task(service.client.llm.start("talker", config=WISHES))
        await engine.until(LeaseState.RECLAIM, reclaim_after=0)
        found = await offloaded(service)
        assert (found.phase, found.failed_attempts, found.next_attempt_time) == (OffloadPhase.RELOADING, 1, None)
        away.rename(path)
    assert (await start).port == before.port


async def test_a_start_that_fails_is_not_the_end(service: LlmService) -> None:
    before = await service.client.llm.start("talker", config=WISHES)
    path = Path((await service.client.models.get("talker")).path)
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        away = path.rename(path.with_suffix(".away"))
        start = asyncio.create_task(service.client.llm.start("talker", config=WISHES))
        await engine.until(LeaseState.RECLAIM, reclaim_after=0)
    with pytest.raises(ServerError, match="could not be loaded"):
        await start
    assert (await offloaded(service)).model_id == "talker"
    away.rename(path)
    assert (await service.back(generation=2)).port == before.port


async def test_one_that_dies_while_its_requests_finish_comes_back(service: LlmService) -> None:
    before = await service.client.llm.start("talker", config=WISHES)
    async with draining(service, before) as (engine, _):
        psutil.Process(before.pid).kill()
        await engine.until(LeaseState.GRANTED)
        assert (await offloaded(service)).phase is OffloadPhase.OFFLOADED
        assert engines() == []
    after = await service.back(generation=2)
    assert (after.port, after.generation) == (before.port, 2)


@posix_only
async def test_one_that_dies_while_its_caches_are_saved_comes_back_without_them(
    fake: LlmService, place: Place, program: FakeProgram
) -> None:
    program.plan(scribbles=True)
    before = await fake.client.llm.start("talker", config=TWO)
    async with saving(fake, place) as engine:
        program.plan()
        psutil.Process(before.pid).kill()
        await engine.until(LeaseState.GRANTED)
        assert (await offloaded(fake)).saved_tokens == 0
    after = await fake.back(generation=2)
    assert (after.port, place.conversations, await ask(after, "GET", "/restored")) == (before.port, [], (200, 0))


@posix_only
async def test_a_service_that_is_killed_while_caches_are_saved_does_without_them(
    place: Place, program: FakeProgram
) -> None:
    program.plan(scribbles=True)
    async with AsyncExitStack() as longer, place.open(program=program.name) as service:
        before = await service.client.llm.start("talker", config=TWO)
        await longer.enter_async_context(saving(service, place))
        remains = Remains.of(place)
    assert (place.saved, place.conversations, engines()) == (None, [], [])
    remains.put_back()
    program.plan()
    async with place.open_again(program=program.name) as service:
        after = await service.back(generation=1)
        assert (after.port, place.conversations, await ask(after, "GET", "/restored")) == (before.port, [], (200, 0))


@asynccontextmanager
async def saving(service: LlmService, place: Place) -> AsyncIterator[ImageEngine]:
    """An image engine waits for an LLM whose caches are being saved."""
    async with service.image_engine() as engine:
        await engine.until(LeaseState.WAITING)
        await until(lambda: place.conversations == ["slot-0.bin"])
        yield engine


@posix_only
async def test_one_that_dies_while_it_is_loaded_comes_back(fake: LlmService, program: FakeProgram) -> None:
    before = await fake.client.llm.start("talker", config=TWO)
    program.plan(never_ready=True)
    await fake.make_room()
    loading = await fake.loading()
    program.plan()
    psutil.Process(loading.pid).kill()
    after = await fake.back(generation=3)
    assert (after.port, after.generation) == (before.port, 3)
    assert (await ask(after, "GET", "/restored")) == (200, 200)


async def test_one_that_dies_when_it_is_back_is_restarted_where_it_was(service: LlmService, place: Place) -> None:
    before = await service.client.llm.start("talker", config=WISHES)
    await service.make_room()
    psutil.Process((await service.back(generation=2)).pid).kill()
    after = await service.back(generation=3)
    assert (after.port, after.restarts, (await chat(after))[0]) == (before.port, 1, 200)
    await service.make_room()
    assert (await service.back(generation=4)).port == before.port
    assert place.saved is not None


async def test_the_first_restart_after_a_crash_is_on_the_same_port(service: LlmService) -> None:
    before = await service.client.llm.start("talker", config=WISHES)
    psutil.Process(before.pid).kill()
    after = await service.serving(generation=2)
    assert (after.port, after.serving == before.serving) == (before.port, True)


# --- a service that ends


async def test_a_service_that_ends_leaves_nothing_to_bring_back(place: Place) -> None:
    async with place.open() as service:
        await chat(await service.client.llm.start("talker", config=WISHES))
        async with service.image_engine() as engine:
            await engine.until(LeaseState.GRANTED)
    assert (place.saved, place.conversations, engines()) == (None, [], [])
    log = (place.data_dir / "logs" / "llm-engine.log").read_text("utf-8")
    assert "could not be brought back" not in log
    async with place.open_again() as service:
        assert await service.client.orchestration.get_offloaded_llm() is None
        assert (await service.client.llm.get()).generation == 0


async def test_a_service_that_ends_while_requests_finish_leaves_nothing_either(place: Place) -> None:
    async with AsyncExitStack() as longer, place.open() as service:
        llm = await service.client.llm.start("talker", config=WISHES)
        await longer.enter_async_context(draining(service, llm))
    assert (place.saved, place.conversations, engines()) == (None, [], [])
    assert "stays" not in (place.data_dir / "logs" / "llm-engine.log").read_text("utf-8")


# --- a service that is killed


@dataclass(frozen=True)
class Remains:
    """What a service that is killed at this moment would leave behind of an LLM."""

    place: Place
    folder: Path

    @classmethod
    def of(cls, place: Place) -> "Remains":
        folder = place.data_dir.parent / "remains"
        shutil.copytree(place.data_dir / "slots", folder / "slots")
        shutil.copy2(place.data_dir / FILE, folder)
        return cls(place, folder)

    def put_back(self) -> None:
        shutil.copytree(self.folder, self.place.data_dir, dirs_exist_ok=True)


async def left_behind(place: Place, step: Step) -> tuple[Llm, int]:
    """Have an LLM read a story, and leave what a service leaves that is killed in a step; it and the story's tokens."""
    async with place.open(reload_delay_seconds=3600) as service:
        llm = await service.client.llm.start("talker", config=WISHES)
        tokens = await evaluated(llm, STORIES[0])
        async with step(service, llm):
            remains = Remains.of(place)
    remains.put_back()
    return llm, tokens


@asynccontextmanager
async def running(service: LlmService, llm: Llm) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("step", [running, draining, made_room])
async def test_what_a_killed_service_had_is_brought_back(place: Place, step: Step) -> None:
    before, tokens = await left_behind(place, step)
    async with place.open_again() as service:
        after = await service.back(generation=1)
        assert (after.port, after.config, after.serving, after.model_id, after.reasons) == (
            *(before.port, before.config, before.serving, "talker", before.reasons),
        )
        assert (await service.client.llm.start("talker", config=WISHES)).pid == after.pid
        again = await evaluated(after, STORIES[0])
        assert again <= tokens * 0.05 if step is made_room else again == tokens
        assert (place.conversations, engines()) == ([], [after.pid])


async def test_what_a_killed_service_had_is_started_as_it_was_and_not_as_configured(place: Place) -> None:
    before, _ = await left_behind(place, made_room)
    async with place.open_again(model="talker") as service:
        after = await service.back(generation=1)
        assert (after.generation, after.config, after.port) == (1, before.config, before.port)


async def test_another_model_that_is_configured_meanwhile_wins(place: Place, demo_models: DemoModels) -> None:
    async with place.open() as service:
        await service.install(demo_models.llm, "other")
        llm = await service.client.llm.start("talker", config=WISHES)
        await chat(llm)
        async with made_room(service, llm):
            remains = Remains.of(place)
    remains.put_back()
    async with place.open_again(model="other") as service:
        after = await service.until(lambda llm: llm.state is ServerState.RUNNING and llm.model_id == "other")
        assert (after.offloaded, await service.client.orchestration.get_offloaded_llm()) == (False, None)
        assert (place.saved is not None and place.saved.request.model_id, place.conversations) == ("other", [])
        assert engines() == [after.pid]


async def test_a_model_that_is_gone_is_not_brought_back(place: Place) -> None:
    async with place.open() as service:
        llm = await service.client.llm.start("talker", config=WISHES)
        await chat(llm)
        async with made_room(service, llm):
            remains = Remains.of(place)
            await service.client.llm.stop()
            await service.client.models.delete("talker")
    remains.put_back()
    await require_nothing_back(place)
    log = (place.data_dir / "logs" / "llm-engine.log").read_text("utf-8")
    assert "what ran before is not brought back: " in log


async def test_what_can_not_be_read_is_not_brought_back(place: Place) -> None:
    await left_behind(place, made_room)
    assert place.conversations == ["slot-0.bin"]
    (place.data_dir / FILE).write_bytes(b"{")
    await require_nothing_back(place)


async def require_nothing_back(place: Place) -> None:
    """Nothing comes back, and no conversations stay on the disk."""
    async with place.open_again() as service:
        assert (
            await service.client.orchestration.get_offloaded_llm(),
            (await service.client.llm.get()).generation,
        ) == (None, 0)
        assert (place.saved, place.conversations, engines()) == (None, [], [])
