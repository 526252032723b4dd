"""Every life of the image engine holds a lease: asked for before anything is loaded, given back when it is dead."""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from genaid_server.image.core import engine_lease
from genaid_server.image.core.generation import GenerationState
from genaid_server.image.core.lease import ImagePlacement, ImageSize
from genaid_server.image.core.settings import EngineOptions
from genaid_server.kit.backoff import Backoff
from genaid_server.kit.errors import BackendError, InsufficientResourcesError, ServerError
from genaid_server.supervision.supervisor import ServerState
from image_stage import (
    AWAY,
    DEAF,
    FAKE,
    LARGE,
    LATER,
    NO_ROOM,
    SMALL,
    SPEC,
    TELLING,
    Scene,
    drawing,
    finished,
    scene,
)
from worker import children

# --- a life


async def test_nothing_is_loaded_before_the_lease_is_granted_and_it_ends_after_the_process(tmp_path: Path) -> None:
    async with scene(tmp_path, generous=False) as stage:
        starting = asyncio.create_task(stage.engine.start("tiny"))
        lease = await stage.manager.next()
        lease.wait("the LLM is offloaded")
        async for records in stage.logbook.watch(1):
            if any("waiting for memory: the LLM is offloaded" in record.message for record in records):
                break
        assert children() == []
        assert stage.engine.info.value.life.state is ServerState.STARTING
        lease.grant()
        info = await starting
        assert [child.pid for child in children()] == [info.life.pid]
        assert (lease.need.model_id, lease.need.variant, lease.need.size) == ("tiny", "cpu", SMALL)
        assert not lease.over.is_set()
        await stage.engine.stop()
        assert lease.over.is_set()
        assert lease.alive_at_the_end == []


async def test_all_lives_of_a_worker_are_one_tenant(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        await stage.engine.start("tiny")
        await stage.engine.stop()
        await stage.engine.start("tiny")
        first, second = stage.manager.streams
        assert first.tenant == second.tenant
        assert first.tenant.startswith("image-worker-")
    folder = tmp_path / "other"
    folder.mkdir()
    async with scene(folder) as other:
        await other.engine.start("tiny")
        assert other.manager.streams[0].tenant != first.tenant


async def test_a_refusal_reaches_who_asked_and_the_next_one_may_have_more_luck(tmp_path: Path) -> None:
    async with scene(tmp_path, generous=False) as stage, stage.generations() as generations:
        starting = asyncio.create_task(stage.engine.start("tiny"))
        (await stage.manager.next()).fail(NO_ROOM)
        with pytest.raises(InsufficientResourcesError) as refusal:
            await starting
        assert refusal.value.facts == {"required": "2", "available": "1", "suggestion": "buy some"}
        created = await generations.create(SPEC)
        (await stage.manager.next()).fail(NO_ROOM)
        failure = (await finished(generations, created.id)).failure
        assert failure is not None
        assert (failure.code, failure.message) == ("INSUFFICIENT_RESOURCES", "too little")
        stage.manager.generous = True
        drawn = await finished(generations, (await generations.create(SPEC)).id)
        assert drawn.state is GenerationState.COMPLETE


@pytest.mark.parametrize("end", ["failure", "silence"])
async def test_a_lease_that_breaks_off_before_it_is_granted_is_an_error(tmp_path: Path, end: str) -> None:
    async with scene(tmp_path, generous=False) as stage:
        starting = asyncio.create_task(stage.engine.start("tiny"))
        lease = await stage.manager.next()
        lease.wait()
        if end == "failure":
            lease.fail(AWAY)
        else:
            lease.close()
        with pytest.raises(ServerError):
            await starting
        assert len(stage.manager.streams) == 1


async def test_to_stop_an_engine_that_waits_for_memory_ends_its_lease(tmp_path: Path) -> None:
    async with scene(tmp_path, generous=False) as stage:
        starting = asyncio.create_task(stage.engine.start("tiny"))
        lease = await stage.manager.next()
        await stage.engine.stop()
        assert lease.over.is_set()
        with pytest.raises(ServerError, match="was stopped"):
            await starting


async def test_to_cancel_a_generation_that_waits_for_memory_ends_its_lease(tmp_path: Path) -> None:
    async with scene(tmp_path, generous=False) as stage, stage.generations() as generations:
        created = await generations.create(SPEC)
        lease = await stage.manager.next()
        assert (await generations.cancel(created.id)).state is GenerationState.CANCELLED
        assert lease.over.is_set()
        assert stage.engine.info.value.life.state is ServerState.STOPPED


async def test_an_engine_that_dies_gives_its_memory_back(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        pid = (await stage.engine.start("tiny")).life.pid
        psutil.Process(pid).kill()
        await stage.manager.streams[0].over.wait()
        await stage.until(ServerState.CRASHED)


async def test_an_engine_that_died_is_given_to_nobody_while_its_lease_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_lease, "REPORT_PATIENCE", 0.2)
    async with scene(tmp_path, command=DEAF) as stage:
        stage.manager.open_for_reports.clear()
        with stage.engine.use():
            process = await stage.engine.ready(SMALL)
            psutil.Process(process.pid).kill()
            await process.exited()
        await stage.manager.reported.wait()
        assert stage.engine.info.value.life.state is ServerState.RUNNING  # as nobody was told otherwise yet
        with stage.engine.use():
            assert (await stage.engine.ready(SMALL)).alive
        assert stage.engine.info.value.life.restarts == 1
        stage.manager.open_for_reports.set()


# --- how large


async def test_nothing_is_asked_for_an_image_that_the_lease_covers(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        for size in (ImageSize(512, 256), ImageSize(64, 2048), ImageSize(512, 256), SMALL):
            with stage.engine.use():
                await stage.engine.ready(size)
        assert [stream.need.size for stream in stage.manager.streams] == [ImageSize(512, 256)]


async def test_a_larger_image_takes_a_larger_lease_in_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_lease, "RETRY", Backoff(0.0, 0.25))
    async with scene(tmp_path, generous=False) as stage:
        starting = asyncio.create_task(stage.engine.start("tiny"))
        first = await stage.manager.next()
        first.grant()
        pid = (await starting).life.pid
        with stage.engine.use():
            getting = asyncio.create_task(stage.engine.ready(LARGE))
            second = await stage.manager.next()
            second.wait()
            assert not first.over.is_set()
            first.close()  # the manager ends it when the second is granted, and neither is heard of at once
            await first.over.wait()
            for _ in range(10):
                await asyncio.sleep(0)
            second.grant()
            process = await getting
        assert process.pid == pid
        assert (second.tenant, second.need.size, second.resident) == (first.tenant, LARGE, False)
        assert first.over.is_set()
        assert not second.over.is_set()
        with stage.engine.use():
            await stage.engine.ready(LARGE)
        assert len(stage.manager.streams) == 2
        await stage.engine.stop()
        assert second.over.is_set()


async def test_a_larger_lease_that_is_refused_leaves_the_first(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        pid = (await stage.engine.start("tiny")).life.pid
        stage.manager.generous = False
        with stage.engine.use():
            getting = asyncio.create_task(stage.engine.ready(LARGE))
            first, second = await stage.manager.next(), await stage.manager.next()
            second.fail(NO_ROOM)
            with pytest.raises(InsufficientResourcesError, match="too little"):
                await getting
        with stage.engine.use():
            assert (await stage.engine.ready(SMALL)).pid == pid
        assert not first.over.is_set()
        assert len(stage.manager.streams) == 2


async def test_a_cancelled_wait_for_a_larger_lease_leaves_the_first(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        await stage.engine.start("tiny")
        stage.manager.generous = False
        created = await generations.create(replace(SPEC, width=1024, height=1024))
        first, second = await stage.manager.next(), await stage.manager.next()
        await generations.cancel(created.id)
        assert second.over.is_set()
        assert not first.over.is_set()
        assert stage.engine.info.value.life.state is ServerState.RUNNING


@pytest.mark.parametrize("moment", ["before", "while it waits"])
async def test_a_reclaimed_engine_does_not_wait_for_a_larger_lease(tmp_path: Path, moment: str) -> None:
    """It would wait for somebody who waits for it."""
    async with scene(tmp_path) as stage:
        pid = (await stage.engine.start("tiny")).life.pid
        first = await stage.manager.next()
        stage.manager.generous = False
        with stage.engine.use():
            if moment == "before":
                first.reclaim(LATER)
                await first.taken()
            getting = asyncio.create_task(stage.engine.ready(LARGE))
            second = await stage.manager.next()
            if moment != "before":
                second.wait()
                first.reclaim(LATER)
                await second.over.wait()
                second = await stage.manager.next()
            assert first.over.is_set()
            assert first.alive_at_the_end == []
            assert second.need.size == LARGE
            second.grant()
            process = await getting
        assert process.pid != pid
        assert not second.over.is_set()


async def test_the_next_life_begins_with_the_size_that_was_wanted_last(tmp_path: Path) -> None:
    async with scene(tmp_path, command=DEAF) as stage, stage.generations(cancel_grace=0) as generations:
        for spec in (replace(SPEC, width=1024), replace(SPEC, width=512)):
            created = await generations.create(spec)
            await drawing(generations, created.id)
            await stage.engine.start("tiny")  # which joins it
            await generations.cancel(created.id)  # the engine is killed and started again
        sizes = [stream.need.size for stream in stage.manager.streams]
        assert sizes == [ImageSize(1024, 64), ImageSize(1024, 64), ImageSize(512, 64)]
        await stage.engine.start("tiny", threads=1, replace_running=True)
        assert stage.manager.streams[-1].need.size == SMALL


async def test_a_start_makes_nobody_leave_and_the_first_image_loads_the_model(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        stage.manager.room = False
        info = await stage.engine.start("tiny")
        assert (info.life.state, info.accepting, stage.manager.streams) == (ServerState.STOPPED, True, [])
        assert info.life.config is not None
        assert info.life.config.model_id == "tiny"
        created = await generations.create(SPEC)
        assert (await finished(generations, created.id)).failure is None
        stage.manager.room = ServerError("nobody is asked")
        again = await stage.engine.start("tiny")  # it is there already
        stage.manager.room = False
        assert (again.life.state, len(stage.manager.streams)) == (ServerState.RUNNING, 1)
        other = await stage.engine.start("tiny", threads=1, replace_running=True)
        assert (other.life.state, children()) == (ServerState.STOPPED, [])


async def test_a_start_of_what_can_never_fit_changes_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        before = await stage.engine.start("tiny")
        stage.manager.room = InsufficientResourcesError("too large", required="2", available="1")
        with pytest.raises(InsufficientResourcesError, match="too large"):
            await stage.engine.start("tiny", threads=1, replace_running=True)
        assert stage.engine.info.value.life == before.life


# --- how


async def test_the_engine_computes_as_its_placement_says(tmp_path: Path) -> None:
    async with scene(tmp_path, command=TELLING) as stage:
        stage.manager.placement = ImagePlacement(
            vae_tiling=True, max_vram_bytes=7, reason="decoding in tiles saves memory"
        )
        asked = EngineOptions(flash_attention=True, offload_to_cpu=True, max_vram_bytes=9)
        given = replace(asked, vae_tiling=True, max_vram_bytes=7)
        started = await stage.engine.start("tiny", options=asked)
        assert started.life.config is not None
        assert started.life.config.options == given
        told = next(line for line in stage.log.splitlines() if line.startswith("options "))
        assert EngineOptions(**json.loads(told.removeprefix("options "))) == given
        assert "decoding in tiles saves memory" in stage.log.splitlines()
        assert stage.manager.streams[0].need.options == asked
        joined = await stage.engine.start("tiny", options=asked)
        assert joined.life.pid == started.life.pid
        stopped = await stage.engine.stop()
        assert stopped.life.config is not None
        assert stopped.life.config.options == asked


async def test_a_larger_lease_with_another_placement_takes_another_engine(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        pid = (await stage.engine.start("tiny")).life.pid
        stage.manager.placement = ImagePlacement(vae_tiling=True)
        with stage.engine.use():
            process = await stage.engine.ready(LARGE)
        assert process.pid != pid
        config = stage.engine.info.value.life.config
        assert config is not None
        assert config.options.vae_tiling
        first, second, third = stage.manager.streams
        assert first.over.is_set()
        assert second.over.is_set()
        assert second.alive_at_the_end == []
        assert third.need.size == LARGE
        assert not third.need.options.vae_tiling


# --- giving back


@pytest.mark.parametrize(("keep_alive", "after"), [(LATER, 0.0), (-1.0, 0.0), (LATER, 0.05)])
async def test_an_idle_engine_leaves_when_its_memory_is_wanted_back(
    tmp_path: Path, keep_alive: float, after: float
) -> None:
    async with scene(tmp_path, keep_alive=keep_alive) as stage:
        await stage.engine.start("tiny")
        (lease,) = stage.manager.streams
        lease.reclaim(after)
        await lease.over.wait()
        assert lease.alive_at_the_end == []
        await stage.until(ServerState.STOPPED)
        assert stage.engine.info.value.life.event == "unloaded"
        assert stage.engine.info.value.accepting
        assert "the resource manager asks for the memory back: somebody else" in stage.log


async def test_an_engine_that_works_leaves_afterwards(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        with stage.engine.use():
            pid = (await stage.engine.ready(SMALL)).pid
            (lease,) = stage.manager.streams
            lease.reclaim()
            await lease.taken()
            await stage.engine.start("tiny")  # which joins the life, and whose end does not make it idle
            await asyncio.sleep(0)
            assert (stage.engine.info.value.life.state, stage.pid) == (ServerState.RUNNING, pid)
            assert not lease.over.is_set()
        await lease.over.wait()


async def test_work_that_comes_at_the_last_moment_finds_an_engine(tmp_path: Path) -> None:
    async with scene(tmp_path, keep_alive=0) as stage:
        for moments in range(5):  # between the end of the time, the decision to unload, and what comes of it
            with stage.engine.use():
                await stage.engine.ready(SMALL)
            for _ in range(moments):
                await asyncio.sleep(0)
            with stage.engine.use():
                process = await stage.engine.ready(SMALL)
                for _ in range(5):
                    await asyncio.sleep(0)  # what was decided before would be done now
                life = stage.engine.info.value.life
                assert (process.alive, life.state, life.pid) == (True, ServerState.RUNNING, process.pid)


async def test_the_shorter_time_counts(tmp_path: Path) -> None:
    async with scene(tmp_path, keep_alive=0.05) as stage:
        with stage.engine.use():
            await stage.engine.ready(SMALL)
            (lease,) = stage.manager.streams
            lease.reclaim(LATER)
        await lease.over.wait()


async def test_what_was_to_be_given_back_may_be_kept_after_all(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        with stage.engine.use():
            pid = (await stage.engine.ready(SMALL)).pid
            (lease,) = stage.manager.streams
            lease.reclaim()
            lease.grant()
            await lease.taken()
        with stage.engine.use():
            assert (await stage.engine.ready(SMALL)).pid == pid
        lease.reclaim(LATER)
        lease.reclaim(0.0)
        await lease.over.wait()


@pytest.mark.parametrize(("after", "lives"), [(LATER, 1), (0.0, 2)])
async def test_generations_that_wait_run_on_where_the_manager_has_time(
    tmp_path: Path, after: float, lives: int
) -> None:
    async with scene(tmp_path, generous=False) as stage, stage.generations() as generations:
        created = [await generations.create(SPEC) for _ in range(2)]
        lease = await stage.manager.next()
        stage.manager.generous = True
        lease.grant()
        lease.reclaim(after)
        for generation in created:
            assert (await finished(generations, generation.id)).state is GenerationState.COMPLETE
        assert len(stage.manager.streams) == lives


async def test_an_engine_that_nobody_waits_for_leaves_once_it_is_loaded(tmp_path: Path) -> None:
    async with scene(tmp_path, command=DEAF) as stage, stage.generations(cancel_grace=0) as generations:
        created = await generations.create(SPEC)
        await drawing(generations, created.id)
        stage.manager.generous = False
        await stage.manager.next()
        await generations.cancel(created.id)  # the engine is killed and started again
        lease = await stage.manager.next()
        lease.grant()
        lease.reclaim()
        await lease.over.wait()
        await stage.until(ServerState.STOPPED)


async def test_an_engine_that_is_killed_while_its_memory_is_wanted_back_is_not_started_again(tmp_path: Path) -> None:
    async with scene(tmp_path, command=DEAF) as stage, stage.generations(cancel_grace=0) as generations:
        created = await generations.create(SPEC)
        await drawing(generations, created.id)
        (lease,) = stage.manager.streams
        lease.reclaim(LATER)
        await generations.cancel(created.id)
        assert stage.engine.info.value.life.state is ServerState.STOPPED
        assert len(stage.manager.streams) == 1


# --- a manager that goes away


@pytest.mark.parametrize("end", ["failure", "silence"])
async def test_a_lease_whose_stream_broke_off_is_asked_for_again(tmp_path: Path, end: str) -> None:
    async with scene(tmp_path, generous=False) as stage:
        starting = asyncio.create_task(stage.engine.start("tiny"))
        first = await stage.manager.next()
        first.grant(ImagePlacement(vae_tiling=True))
        pid = (await starting).life.pid
        with stage.engine.use():
            if end == "failure":
                first.fail(ServerError("it is shutting down"))
            else:
                first.close()
            for _ in range(2):
                (await stage.manager.next()).fail(AWAY)
            again = await stage.manager.next()
            assert (again.tenant, again.resident, again.need.size) == (first.tenant, True, first.need.size)
            assert again.need.options.vae_tiling
            again.grant()
        assert stage.pid == pid
        again.close()
        once_more = await stage.manager.next()
        once_more.grant()
        once_more.reclaim()
        await once_more.over.wait()
        assert len(stage.manager.streams) == 5


@pytest.mark.parametrize("busy", [True, False])
async def test_an_engine_whose_lease_can_not_be_had_again_leaves(tmp_path: Path, busy: bool) -> None:
    async with scene(tmp_path, keep_alive=-1) as stage:
        pid = (await stage.engine.start("tiny")).life.pid
        stage.manager.generous = False
        first = await stage.manager.next()
        first.fail(AWAY)
        if busy:
            with stage.engine.use():
                assert (await stage.engine.ready(SMALL)).pid == pid
                again = await stage.manager.next()
                again.fail(NO_ROOM)
                await again.over.wait()
                assert stage.pid == pid
        else:
            (await stage.manager.next()).fail(NO_ROOM)
        await stage.until(ServerState.STOPPED)
        assert stage.engine.info.value.life.event == "unloaded"
        stage.manager.generous = True
        with stage.engine.use():
            assert (await stage.engine.ready(SMALL)).pid != pid
        assert not stage.manager.streams[-1].resident


async def test_a_resident_engine_draws_while_nobody_grants_anything(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        pid = (await stage.engine.start("tiny")).life.pid
        stage.manager.generous = False
        (await stage.manager.next()).fail(AWAY)
        lost = await stage.manager.next()
        drawn = await finished(generations, (await generations.create(replace(SPEC, width=1024, height=1024))).id)
        assert drawn.state is GenerationState.COMPLETE
        assert stage.pid == pid
        lost.fail(AWAY)
        again = await stage.manager.next()
        assert (again.resident, again.need.size) == (True, LARGE)


async def test_a_resident_engine_draws_when_the_manager_dies_over_the_larger_lease(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        pid = (await stage.engine.start("tiny")).life.pid
        first = await stage.manager.next()
        stage.manager.generous = False
        with stage.engine.use():
            getting = asyncio.create_task(stage.engine.ready(LARGE))
            second = await stage.manager.next()
            first.fail(AWAY)
            await first.over.wait()
            second.fail(AWAY)
            assert (await getting).pid == pid
        again = await stage.manager.next()
        assert again.resident
        again.grant()


async def test_an_engine_that_ends_while_it_is_asked_for_again_asks_no_more(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        await stage.engine.start("tiny")
        stage.manager.generous = False
        (await stage.manager.next()).fail(AWAY)
        again = await stage.manager.next()
        await stage.engine.stop()
        assert again.over.is_set()
        assert len(stage.manager.streams) == 2


# --- what is reported


async def reports(stage: Scene, enough: Callable[[], bool]) -> list[tuple[str, ImageSize, int]]:
    while not enough():
        stage.manager.reported.clear()
        await stage.manager.reported.wait()
    return stage.manager.reports


async def test_an_image_is_reported_with_its_size_and_what_the_engine_took(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        for width in (128, 64, 256):
            created = await generations.create(replace(SPEC, width=width))
            assert (await finished(generations, created.id)).state is GenerationState.COMPLETE
            count = len(stage.manager.reports) + 1
            await reports(stage, lambda count=count: len(stage.manager.reports) >= count)  # type: ignore[misc]
        first, second, third = stage.manager.reports
        assert [report[1] for report in (first, second, third)] == [ImageSize(128, 64), SMALL, ImageSize(256, 64)]
        assert (first[0], third[0]) == ("lease-1", "lease-2")
        assert first[2] > 1_000_000
        assert second[2] == 0  # the peak is that of the larger image before
        assert third[2] >= first[2]


async def test_files_that_are_mapped_count_as_well(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        await stage.engine.start("tiny", options=EngineOptions(memory_map=True))
        stage.model.write_bytes(b"")
        with stage.model.open("r+b") as file:
            file.truncate(2**40)
        assert (await finished(generations, (await generations.create(SPEC)).id)).state is GenerationState.COMPLETE
        ((_, _, peak),) = await reports(stage, lambda: bool(stage.manager.reports))
        assert 2**40 < peak < 2**41


async def test_work_without_an_image_is_reported_without_a_size(tmp_path: Path) -> None:
    async with scene(tmp_path, command=(sys.executable, str(FAKE), "full-disk")) as stage:
        async with stage.generations() as generations:
            assert (await finished(generations, (await generations.create(SPEC)).id)).state is GenerationState.ERROR
        assert await reports(stage, lambda: bool(stage.manager.reports)) == [("lease-1", ImageSize(0, 0), 0)]
        with pytest.raises(asyncio.CancelledError), stage.engine.use():
            raise asyncio.CancelledError
        told = await reports(stage, lambda: len(stage.manager.reports) == 2)
        assert told[1] == ("lease-1", ImageSize(0, 0), 0)


async def test_without_a_lease_there_is_nothing_to_report(tmp_path: Path) -> None:
    async with scene(tmp_path, generous=False) as stage, stage.generations() as generations:
        created = await generations.create(SPEC)
        (await stage.manager.next()).fail(NO_ROOM)
        assert (await finished(generations, created.id)).state is GenerationState.ERROR
        starting = asyncio.create_task(stage.engine.start("tiny"))
        (await stage.manager.next()).wait()
        with stage.engine.use():
            pass
        stage.manager.streams[1].grant()
        await starting
        with stage.engine.use() as use:
            use.made = SMALL
        assert [report[:2] for report in await reports(stage, lambda: bool(stage.manager.reports))] == [
            ("lease-2", SMALL)
        ]


async def test_the_last_report_comes_before_the_end_of_the_lease(tmp_path: Path) -> None:
    async with scene(tmp_path, keep_alive=0) as stage, stage.generations() as generations:
        stage.manager.open_for_reports.clear()
        created = await generations.create(SPEC)
        assert (await finished(generations, created.id)).state is GenerationState.COMPLETE  # which waits for no report
        await reports(stage, lambda: bool(stage.manager.reports))
        (lease,) = stage.manager.streams
        await stage.until(ServerState.STOPPING)
        while children():  # noqa: ASYNC110 - nobody tells of the end of the process
            await asyncio.sleep(0.01)
        assert not lease.over.is_set()
        stage.manager.open_for_reports.set()
        await lease.over.wait()
        ((_, size, peak),) = stage.manager.reports
        assert size == SMALL
        assert peak > 0


async def test_a_report_that_hangs_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_lease, "REPORT_PATIENCE", 0.05)
    async with scene(tmp_path, keep_alive=0) as stage, stage.generations() as generations:
        stage.manager.open_for_reports.clear()
        for number in range(3):
            created = await generations.create(SPEC)
            assert (await finished(generations, created.id)).state is GenerationState.COMPLETE
            await stage.manager.streams[number].over.wait()
        assert len(stage.manager.reports) == 1
        stage.manager.open_for_reports.set()
        told = await reports(stage, lambda: len(stage.manager.reports) == 2)
        assert [lease for lease, _, _ in told] == ["lease-1", "lease-3"]  # of those that wait only the latest


async def test_a_report_that_hangs_does_not_outlive_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_lease, "REPORT_PATIENCE", 0.01)
    async with scene(tmp_path) as stage:
        stage.manager.open_for_reports.clear()
        with stage.engine.use():
            await stage.engine.ready(SMALL)
        await stage.manager.reported.wait()


async def test_a_report_that_fails_is_no_matter(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        stage.manager.report_error = BackendError("no thanks")
        for number in range(1, 3):
            created = await generations.create(SPEC)
            assert (await finished(generations, created.id)).state is GenerationState.COMPLETE
            await reports(stage, lambda number=number: len(stage.manager.reports) == number)  # type: ignore[misc]
