"""The LLM makes room for an image engine and comes back: real engines, in a memory that holds either, and not both."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from conftest import DemoModels
from fakes.gateway import until
from genaid_client import (
    EngineEvent,
    InsufficientResourcesError,
    Lease,
    LeaseState,
    Llm,
    LlmConfig,
    LlmServing,
    OffloadPhase,
    ServerBusyError,
    ServerError,
    ServerState,
    StopReason,
    TenantKind,
)
from genaid_server.resource.core.llm import process
from llm_service import (
    IMAGE,
    PATIENCE,
    FakeProgram,
    LlmService,
    alive,
    ask,
    chat,
    engines,
    fake_program,
)
from scarce import (
    CUT_OFF,
    STORIES,
    TWO,
    WISHES,
    Place,
    draining,
    evaluated,
    made_room,
    messages,
    offloaded,
    talking,
)

KEY = "sesame-opens-no-door-0815"

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="the fake program is started by a shell script")

COMING_BACK = {"never_ready": ServerState.STARTING, "forgets": ServerState.RUNNING}
"""Where an engine stays on its way back that is planned to."""

type Deed = Callable[[LlmService], Awaitable[object]]


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


async def stop(service: LlmService) -> None:
    await service.client.llm.stop()


async def forget(service: LlmService) -> None:
    assert await service.client.orchestration.forget_offloaded_llm()


async def require_gone(service: LlmService, place: Place, last: Llm) -> None:
    """Nobody has started the engine since its `last` life, and nobody will."""
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        assert await service.client.orchestration.get_offloaded_llm() is None
        assert not await service.client.orchestration.forget_offloaded_llm()
        assert [lease.kind for lease in (await service.client.orchestration.list_leases()).leases] == [TenantKind.IMAGE]
    assert (place.saved, place.conversations, engines()) == (None, [], [])
    stopped = await service.client.llm.get()
    assert (stopped.state, stopped.offloaded, stopped.generation) == (ServerState.STOPPED, False, last.generation)


# --- there and back


async def test_it_makes_room_and_comes_back_as_it_was(service: LlmService, place: Place) -> None:
    before = await service.client.llm.start("talker", config=WISHES)
    first = await evaluated(before, STORIES[0])
    running = place.saved
    assert running is not None
    assert (running.request.model_id, running.port, running.offloaded_at, running.slots) == (
        *("talker", before.port, None, {}),
    )
    plan = await service.client.orchestration.plan_image_generation(IMAGE)
    assert (plan.possible, plan.would_need_offload) == (True, True)
    assert [(leaving.tenant_id, leaving.kind) for leaving in plan.departures] == [("llm", TenantKind.LLM)]
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        assert not alive(before.pid)
        gone = await service.until(lambda llm: llm.last_event is EngineEvent.OFFLOADED)
        assert (gone.state, gone.offloaded, gone.pid, gone.model_id) == (ServerState.STOPPED, True, None, "talker")
        assert gone.stop_reason is StopReason.OFFLOADED
        found = await offloaded(service)
        assert (found.phase, found.model_id, found.config, found.was_running, found.last_error) == (
            *(OffloadPhase.OFFLOADED, "talker", before.config, True, ""),
        )
        assert (found.serving.port, found.reason) == (before.port, plan.explanation)
        assert found.saved_tokens > first
        saved = place.saved
        assert saved is not None
        assert replace(saved, offloaded_at=None, reason="", slots={}) == running
        assert (saved.reason, saved.slots) == (found.reason, {0: found.saved_tokens})
        assert saved.offloaded_at == pytest.approx(found.save_time.timestamp(), abs=1e-5)
        assert place.conversations == ["slot-0.bin"]
    after = await service.back(generation=2)
    assert (after.port, after.config, after.serving, after.model_id) == (
        *(before.port, before.config, before.serving, "talker"),
    )
    assert (after.pid != before.pid, after.generation, after.last_event) == (True, 2, EngineEvent.READY)
    assert await service.client.orchestration.get_offloaded_llm() is None
    assert (place.saved, place.conversations, engines()) == (running, [], [after.pid])
    assert await evaluated(after, STORIES[0]) <= first * 0.05
    said = [line.partition(": ")[0] for line in await messages(service)]
    assert [line for line in said if not line.startswith(("starting", "srv"))] == [
        *("engine started", "engine ready", "is being offloaded", "engine offloaded", "engine started", "engine ready"),
        "it is back",
    ]


async def test_once_it_has_worked_its_size_is_measured(service: LlmService) -> None:
    """At the next start as well; one that was never asked anything has not shown what it takes."""

    async def lease() -> Lease:
        (held,) = (await service.client.orchestration.list_leases()).leases
        return held

    before = await service.client.llm.start("talker", config=WISHES)
    estimated = await lease()
    assert not estimated.measured
    async with made_room(service, before):
        pass
    idle = await service.back(generation=2)
    assert not (await lease()).measured
    await evaluated(idle, STORIES[0])
    async with made_room(service, idle):
        pass
    await service.back(generation=3)
    measured = await lease()
    assert measured.measured
    # The estimate leaves out what the process takes before it loads anything: some tens of MiB.
    assert 0.5 * estimated.ram_bytes < measured.ram_bytes < estimated.ram_bytes + 100 * 2**20
    await service.client.llm.stop()
    await service.client.llm.start("talker", config=WISHES)
    assert (await lease()).ram_bytes == measured.ram_bytes


async def test_a_request_in_flight_is_answered_whole(service: LlmService) -> None:
    llm = await service.client.llm.start("talker", config=WISHES)
    async with talking(llm, 2000) as request, service.image_engine() as engine:
        await engine.until(LeaseState.WAITING)
        leaving = await service.until(lambda llm: llm.offloaded)
        assert not request.done()
        assert (leaving.state, leaving.pid) == (ServerState.RUNNING, llm.pid)
        assert (await offloaded(service)).phase is OffloadPhase.OFFLOADING
        await engine.until(LeaseState.GRANTED)
        assert await request == 2000
    await service.back(generation=2)


async def test_a_request_that_takes_too_long_is_cut_off(place: Place) -> None:
    async with place.open(drain_timeout_seconds=0.1) as service:
        llm = await service.client.llm.start("talker", config=WISHES)
        async with draining(service, llm) as (engine, request):
            await engine.until(LeaseState.GRANTED)
            with pytest.raises(CUT_OFF):
                await request
            assert (await offloaded(service)).saved_tokens == 0
        assert "requests that took longer than 0.1 s are cut off" in await messages(service)
        await service.back(generation=2)


async def test_with_a_key(service: LlmService, place: Place) -> None:
    before = await service.client.llm.start("talker", config=WISHES, serving=LlmServing(api_key=KEY))
    first = await evaluated(before, STORIES[0], key=KEY)
    await service.make_room()
    after = await service.back(generation=2)
    assert (await chat(after))[0] == 401
    assert await evaluated(after, STORIES[0], key=KEY) <= first * 0.05
    await service.client.llm.stop()
    told = [line for line in await messages(service) if KEY in line]
    assert (told, place.saved, place.conversations) == ([], None, [])


async def test_several_conversations_survive(service: LlmService, place: Place) -> None:
    before = await service.client.llm.start("talker", config=TWO)
    first = [await evaluated(before, story) for story in STORIES]
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        assert place.conversations == ["slot-0.bin", "slot-1.bin"]
        assert (await offloaded(service)).saved_tokens > sum(first)
    after = await service.back(generation=2)
    for story, tokens in zip(STORIES, first, strict=True):
        assert await evaluated(after, story) <= tokens * 0.05


@posix_only
async def test_a_program_of_the_user_is_treated_alike(fake: LlmService, place: Place) -> None:
    before = await fake.client.llm.start("talker", config=TWO)
    async with fake.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        assert (await offloaded(fake)).saved_tokens == 200
        assert place.conversations == ["slot-0.bin", "slot-1.bin"]
    after = await fake.back(generation=2)
    assert (after.port, after.variant, place.conversations) == (before.port, "own", [])
    assert (await ask(after, "GET", "/restored")) == (200, 200)


@posix_only
async def test_a_program_without_slots_loses_its_caches_and_nothing_else(
    fake: LlmService, place: Place, program: FakeProgram
) -> None:
    program.plan(slots=501)
    before = await fake.client.llm.start("talker", config=TWO)
    async with fake.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        assert ((await offloaded(fake)).saved_tokens, place.conversations) == (0, [])
    assert (await fake.back(generation=2)).port == before.port
    said = await messages(fake)
    assert said.count("whether requests are being computed is not known: HTTP status 501") == 1
    assert said.count("no prompt cache is saved: HTTP status 501") == 1


async def test_with_ample_memory_it_stays(place: Place) -> None:
    async with replace(place, memory={}).open() as service:
        llm = await service.client.llm.start("talker", config=WISHES)
        for _ in range(2):
            plan = await service.client.orchestration.plan_image_generation(IMAGE)
            assert (plan.would_need_offload, plan.departures) == (False, ())
            await service.make_room()
            assert (await service.client.orchestration.get_offloaded_llm(), await service.client.llm.get()) == (
                None,
                llm,
            )


async def test_images_that_follow_each_other_share_one_absence(place: Place) -> None:
    async with place.open(reload_delay_seconds=3600) as service:
        await service.client.llm.start("talker", config=WISHES)
        for _ in range(3):
            await service.make_room()
            assert (await offloaded(service)).phase is OffloadPhase.OFFLOADED
        assert (await service.client.llm.start("talker", config=WISHES)).generation == 2


async def test_an_idle_image_engine_is_told_how_long_it_may_stay(place: Place) -> None:
    async with place.open(reload_delay_seconds=0.5) as service:
        await service.client.llm.start("talker", config=WISHES)
        async with service.image_engine() as engine:
            lease = await engine.until(LeaseState.RECLAIM)
            assert lease.reclaim_after_seconds == 0.5
        await service.back(generation=2)


@posix_only
@pytest.mark.parametrize("plan", ["never_ready", "forgets"])
async def test_a_reload_makes_way_for_another_image(fake: LlmService, program: FakeProgram, plan: str) -> None:
    before = await fake.client.llm.start("talker", config=TWO)
    program.plan(**{plan: True})
    await fake.make_room()
    loading = await fake.until(lambda llm: llm.generation == 2 and llm.state is COMING_BACK[plan])
    assert (loading.offloaded, (await offloaded(fake)).phase) == (True, OffloadPhase.RELOADING)
    async with fake.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        assert not alive(loading.pid)
        found = await offloaded(fake)
        assert (found.phase, found.failed_attempts, found.saved_tokens) == (OffloadPhase.OFFLOADED, 0, 200)
        program.plan()
    after = await fake.back(generation=3)
    assert (after.generation, after.port) == (3, before.port)
    assert (await ask(after, "GET", "/restored")) == (200, 200)
    assert "is stopped again: the next image needs its memory" in await messages(fake)


# --- somebody thinks better of it


async def test_the_model_of_one_that_comes_back_stays(service: LlmService) -> None:
    llm = await service.client.llm.start("talker", config=WISHES)
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        with pytest.raises(ServerBusyError, match="on its way back with it"):
            await service.client.models.delete("talker")
    await service.back(generation=llm.generation + 1)
    await service.client.llm.stop()
    await service.client.models.delete("talker")


async def test_a_start_whose_caller_leaves_brings_it_back_all_the_same(service: LlmService, place: Place) -> None:
    before = await service.client.llm.start("talker", config=WISHES)
    first = await evaluated(before, STORIES[0])
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        await deserted(service, engine.until(LeaseState.RECLAIM, reclaim_after=0))
    after = await service.back(generation=2)
    assert (after.port, await evaluated(after, STORIES[0]) <= first * 0.05) == (before.port, True)
    assert (place.saved is not None and place.saved.offloaded_at, place.conversations) == (None, [])
    await service.make_room()
    await service.back(generation=3)


@posix_only
async def test_what_was_started_for_a_caller_who_left_survives_as_well(place: Place, program: FakeProgram) -> None:
    program.plan(never_ready=True)
    async with place.open(program=program.name) as service:
        await deserted(service, service.loading())
        loading = await service.loading()

        async def loaded() -> bool:
            with suppress(aiohttp.ClientConnectorError):  # it does not listen yet
                return (await ask(loading, "POST", "/health/200"))[0] == 200
            return False

        await until(loaded)
        await service.serving(generation=1)
        await until(lambda: place.saved is not None)


async def deserted(service: LlmService, moment: Awaitable[object]) -> None:
    """Start it, and hang up at a moment."""
    start = asyncio.create_task(service.client.llm.start("talker", config=WISHES))
    await moment
    start.cancel()
    await asyncio.wait([start])


async def test_an_image_that_is_given_up_before_it_is_gone_lets_it_stay(service: LlmService, place: Place) -> None:
    llm = await service.client.llm.start("talker", config=WISHES)
    running = place.saved
    async with draining(service, llm) as (engine, request):
        await engine.end()
        stays = await service.until(lambda llm: not llm.offloaded)
        assert (stays.state, stays.pid, request.done()) == (ServerState.RUNNING, llm.pid, False)
        assert (await service.client.orchestration.get_offloaded_llm(), place.saved) == (None, running)
    await service.make_room()
    assert (await service.back(generation=2)).port == llm.port


@pytest.mark.parametrize("end", [stop, forget])
async def test_an_end_while_it_is_offloaded_is_one(service: LlmService, place: Place, end: Deed) -> None:
    llm = await service.client.llm.start("talker", config=WISHES)
    await chat(llm)
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        await end(service)
    await require_gone(service, place, llm)
    assert (await service.client.llm.start("talker")).generation == 2


@pytest.mark.parametrize("end", [stop, forget])
async def test_an_end_while_its_requests_finish_is_one(service: LlmService, place: Place, end: Deed) -> None:
    llm = await service.client.llm.start("talker", config=WISHES)
    async with draining(service, llm) as (engine, request):
        await end(service)
        with pytest.raises(CUT_OFF):
            await request
        assert not alive(llm.pid)
        await engine.until(LeaseState.GRANTED)
    await require_gone(service, place, llm)


@posix_only
@pytest.mark.parametrize("plan", ["never_ready", "forgets"])
@pytest.mark.parametrize("end", [stop, forget])
async def test_an_end_while_it_comes_back_is_one(
    fake: LlmService, place: Place, program: FakeProgram, end: Deed, plan: str
) -> None:
    await fake.client.llm.start("talker", config=TWO)
    program.plan(**{plan: True})
    await fake.make_room()
    loading = await fake.until(lambda llm: llm.generation == 2 and llm.state is COMING_BACK[plan])
    await end(fake)
    await require_gone(fake, place, loading)
    assert not any(line.startswith("could not be brought back") for line in await messages(fake))


@posix_only
async def test_an_end_while_a_start_reads_its_caches_is_one(place: Place, program: FakeProgram) -> None:
    async with place.open(program=program.name, reload_delay_seconds=3600) as service:
        await service.client.llm.start("talker", config=TWO)
        program.plan(forgets=True)
        await service.make_room()
        start = asyncio.create_task(service.client.llm.start("talker", config=TWO))
        reading = await service.until(lambda llm: llm.generation == 2 and llm.state is ServerState.RUNNING)
        assert not start.done()
        await service.client.llm.stop()
        with pytest.raises(ServerError, match="was stopped"):
            await start
        await require_gone(service, place, reading)


async def test_there_is_nothing_to_forget_of_one_that_runs(service: LlmService) -> None:
    llm = await service.client.llm.start("talker", config=WISHES)
    assert not await service.client.orchestration.forget_offloaded_llm()
    assert await service.client.llm.get() == llm


# --- somebody wants it back


async def test_a_start_does_not_wait_for_the_delay(place: Place) -> None:
    async with place.open(reload_delay_seconds=3600) as service:
        before = await service.client.llm.start("talker", config=WISHES)
        first = await evaluated(before, STORIES[0])
        async with service.image_engine() as engine:
            assert (await engine.until(LeaseState.RECLAIM)).reclaim_after_seconds == 3600
            start = asyncio.create_task(service.client.llm.start("talker", config=WISHES))
            await engine.until(LeaseState.RECLAIM, reclaim_after=0)
            assert not start.done()
        after = await start
        assert (after.generation, after.port, after.offloaded) == (2, before.port, False)
        assert await evaluated(after, STORIES[0]) <= first * 0.05
        assert (await service.client.orchestration.get_offloaded_llm(), place.conversations) == (None, [])
        (lease,) = (await service.client.orchestration.list_leases()).leases
        assert (lease.kind, lease.state) == (TenantKind.LLM, LeaseState.GRANTED)


async def test_a_start_while_its_requests_finish_does_not_keep_it(service: LlmService, place: Place) -> None:
    wishes = replace(WISHES, parallel_requests=2)
    llm = await service.client.llm.start("talker", config=wishes)
    first = await evaluated(llm, STORIES[0])
    async with draining(service, llm) as (engine, request):
        same = await service.client.llm.start("talker", config=wishes)
        assert (same.pid, same.offloaded) == (llm.pid, True)
        request.cancel()
        await engine.until(LeaseState.GRANTED)
        assert (await offloaded(service)).saved_tokens > first
        assert place.conversations == ["slot-0.bin", "slot-1.bin"]
    assert await evaluated(await service.back(generation=2), STORIES[0]) <= first * 0.05


@posix_only
async def test_a_start_while_it_is_being_stopped_is_one(
    place: Place, program: FakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STOP_GRACE", 0.5)
    program.plan(ignore_term=True)
    async with place.open(program=program.name) as service:
        before = await service.client.llm.start("talker", config=TWO)
        async with service.image_engine() as engine:
            await engine.until(LeaseState.WAITING)
            await service.until(lambda llm: llm.state is ServerState.STOPPING)
            start = asyncio.create_task(service.client.llm.start("talker", config=TWO))
            await engine.until(LeaseState.GRANTED)
            await engine.until(LeaseState.RECLAIM, reclaim_after=0)
            program.plan()
        after = await start
        assert (after.generation, after.port, after.offloaded) == (2, before.port, False)
        assert (await ask(after, "GET", "/restored")) == (200, 200)
        (lease,) = (await service.client.orchestration.list_leases()).leases
        assert (lease.kind, lease.state) == (TenantKind.LLM, LeaseState.GRANTED)


async def test_another_model_takes_the_place_of_the_one_that_is_offloaded(
    service: LlmService, place: Place, demo_models: DemoModels
) -> None:
    await service.install(demo_models.llm, "other")
    before = await service.client.llm.start("talker", config=WISHES)
    await chat(before)
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        with pytest.raises(ServerBusyError, match="talker"):
            await service.client.llm.start("other")
        assert (await offloaded(service)).model_id == "talker"
        start = asyncio.create_task(service.client.llm.start("other", replace=True))
        async with asyncio.timeout(PATIENCE):
            while await service.client.orchestration.get_offloaded_llm() is not None:
                pass
        assert not start.done()
    after = await start
    assert (after.model_id, after.generation, after.offloaded) == ("other", 2, False)
    assert (place.saved is not None and place.saved.request.model_id, place.conversations) == ("other", [])
    await service.make_room()
    assert (await service.back(generation=3)).model_id == "other"


@posix_only
async def test_another_model_takes_the_place_of_the_one_that_comes_back(fake: LlmService, program: FakeProgram) -> None:
    await fake.client.llm.start("talker", config=TWO)
    program.plan(never_ready=True)
    await fake.make_room()
    await fake.loading()
    program.plan()
    after = await fake.client.llm.start("talker", config=replace(TWO, parallel_requests=1), replace=True)
    assert (after.generation, after.offloaded, await fake.client.orchestration.get_offloaded_llm()) == (3, False, None)
    assert (await ask(after, "GET", "/restored")) == (200, 0)
    assert not any(line.startswith("could not be brought back") for line in await messages(fake))


async def test_a_restart_brings_it_back(service: LlmService, place: Place) -> None:
    before = await service.client.llm.start("talker", config=WISHES)
    await chat(before)
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        restart = asyncio.create_task(service.client.llm.restart())
        await engine.until(LeaseState.RECLAIM, reclaim_after=0)
        assert not restart.done()
    after = await restart
    assert (after.generation, after.config, after.port) == (2, before.config, before.port)
    assert (await service.client.orchestration.get_offloaded_llm(), place.conversations) == (None, [])


async def test_a_start_has_an_image_engine_in_its_way_leave(service: LlmService) -> None:
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        start = asyncio.create_task(service.client.llm.start("talker", config=WISHES))
        lease = await engine.until(LeaseState.RECLAIM, reclaim_after=0)
        assert lease.reason.startswith("The image engine (diffusion, ")
        assert not start.done()
        waiting = [
            each for each in (await service.client.orchestration.list_leases()).leases if each.kind is TenantKind.LLM
        ]
        assert [each.state for each in waiting] == [LeaseState.WAITING]
    assert (await start).generation == 1


async def test_what_can_never_fit_stops_nothing(service: LlmService) -> None:
    llm = await service.client.llm.start("talker", config=WISHES)
    huge = LlmConfig(context_size=32_768, parallel_requests=64)
    with pytest.raises(InsufficientResourcesError) as caught:
        await service.client.llm.start("talker", config=huge, replace=True)
    facts = caught.value.metadata
    assert int(facts["required"]) > int(facts["available"]) > 0
    assert facts["suggestion"]
    assert await service.client.llm.get() == llm
