"""Engines that die, hang and lie, and cancels at every moment; with real processes."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from conftest import DemoModels
from genaid_client import (
    Engine,
    EngineEvent,
    FileSystemError,
    Generation,
    GenerationSpec,
    GenerationState,
    ModelNotFoundError,
    ServerBusyError,
    ServerState,
    Stage,
)
from worker import LONG, TINY, Worker, children, image_worker, install

FAKE = Path(__file__).parent.parent / "fakes" / "image_engine.py"
DECODES = GenerationSpec("a slow decode", width=512, height=512, steps=1, cfg_scale=1, seed=1)
BATCH = replace(TINY, width=256, height=256, count=3)


@pytest.fixture
async def worker(tmp_path: Path, demo_models: DemoModels) -> AsyncIterator[Worker]:
    async with image_worker(tmp_path, queue_depth=1, cancel_grace_seconds=0.3) as running:
        await install(running, demo_models.diffusion)
        yield running
    assert children() == []


async def finish(worker: Worker, identity: str) -> Generation:
    return [state async for state in worker.client.images.watch(identity)][-1]


async def engine_in(worker: Worker, state: ServerState) -> Engine:
    async for engine in worker.client.engine.watch():
        if engine.state is state and engine.pid is not None:
            return engine
    raise AssertionError("the watch ended")


async def generation_in(worker: Worker, identity: str, stage: Stage, image: int = 1, step: int = 0) -> Generation:
    async for generation in worker.client.images.watch(identity):
        progress = generation.progress
        if (
            progress is not None
            and progress.stage is stage
            and progress.current_image >= image
            and progress.current_step >= step
        ):
            return generation
        assert not generation.state.terminal, generation
    raise AssertionError("the watch ended")


async def reach(worker: Worker, identity: str, moment: str) -> None:
    match moment:
        case "loading":
            await engine_in(worker, ServerState.STARTING)
        case "diffusion":
            await engine_in(worker, ServerState.RUNNING)
            await generation_in(worker, identity, Stage.DIFFUSION)
        case "decoding":
            await generation_in(worker, identity, Stage.DECODING)
        case "between images":
            await generation_in(worker, identity, Stage.DECODING, image=2)


async def assert_draws(worker: Worker) -> None:
    done = await finish(worker, (await worker.client.images.create(TINY)).id)
    assert done.state is GenerationState.COMPLETE, done.error


async def assert_idle(worker: Worker) -> None:
    """Nothing computes: no generation is under way, and the engine's processes use no time."""
    engine = await worker.client.engine.get()
    assert not engine.busy
    if engine.state is ServerState.STARTING:
        await engine_in(worker, ServerState.RUNNING)

    def used() -> float:
        return sum(sum(child.cpu_times()[:2]) for child in children())

    before = used()
    await asyncio.sleep(0.3)  # the time over which a computing engine would use 0.3 s of a core or more
    assert used() - before < 0.1


@pytest.mark.parametrize("moment", ["loading", "diffusion", "decoding"])
async def test_a_killed_engine_costs_its_generation_and_nothing_else(worker: Worker, moment: str) -> None:
    created = await worker.client.images.create(LONG if moment == "diffusion" else DECODES)
    await reach(worker, created.id, moment)
    if moment == "diffusion":  # the line that the log must show comes before the first step
        await generation_in(worker, created.id, Stage.DIFFUSION, step=1)
    pid = (await worker.client.engine.get()).pid
    assert pid is not None
    psutil.Process(pid).kill()
    failed = await finish(worker, created.id)
    assert failed.state is GenerationState.ERROR
    assert failed.error is not None
    assert failed.error.code == "BACKEND_ERROR"
    assert "SIGKILL" in failed.error.message
    if moment != "loading":
        assert "Last lines of its log:" in failed.error.message
        assert "sampling using Euler A method" in failed.error.message
    await assert_draws(worker)
    engine = await worker.client.engine.get()
    assert (engine.state, engine.restarts, engine.last_error) == (ServerState.RUNNING, 1, "")


async def test_an_idle_engine_that_dies_is_reported_and_started_when_needed(worker: Worker) -> None:
    await assert_draws(worker)
    pid = (await worker.client.engine.get()).pid
    assert pid is not None
    psutil.Process(pid).kill()
    async for engine in worker.client.engine.watch():
        if engine.state is ServerState.CRASHED:
            assert engine.last_event is EngineEvent.CRASHED
            assert "SIGKILL" in engine.last_error
            break
    await assert_draws(worker)


@pytest.mark.parametrize("moment", ["at once", "loading", "diffusion", "decoding", "between images"])
async def test_a_cancelled_generation_computes_no_more(worker: Worker, moment: str) -> None:
    if moment != "loading":
        await assert_draws(worker)
    spec = {"decoding": DECODES, "between images": BATCH}.get(moment, LONG)
    created = await worker.client.images.create(spec)
    await reach(worker, created.id, moment)
    cancelled = await worker.client.images.cancel(created.id)
    assert cancelled.state is GenerationState.CANCELLED
    await assert_idle(worker)
    assert (await worker.client.images.get(created.id)).images == ()
    await assert_draws(worker)


async def test_a_cancelled_generation_that_waits_never_runs(worker: Worker) -> None:
    running = await worker.client.images.create(LONG)
    waiting = await worker.client.images.create(TINY)
    assert (await worker.client.images.cancel(waiting.id)).state is GenerationState.CANCELLED
    await worker.client.images.cancel(running.id)
    assert (await worker.client.images.get(waiting.id)).progress is None
    await assert_idle(worker)


async def test_callers_that_leave_in_the_middle_of_a_stream(worker: Worker) -> None:
    created = await worker.client.images.create(LONG)
    streams = [
        worker.client.images.watch(created.id),
        worker.client.engine.watch(),
        worker.client.engine.tail_logs(1),
        worker.client.images.stream(TINY),
    ]
    for stream in streams:
        await anext(aiter(stream))
        await stream.aclose()
    assert not (await worker.client.images.get(created.id)).state.terminal
    await worker.client.images.cancel(created.id)
    async for engine in worker.client.engine.watch():
        if not engine.busy:
            break
    assert [found.id for found in await worker.client.images.list()] == [created.id]
    await assert_draws(worker)


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.long)])
async def test_random_cancels_leave_a_working_engine(worker: Worker, step: int) -> None:
    await assert_draws(worker)
    for number in range(0, 24, step):
        created = await worker.client.images.create(replace(TINY, count=1 + number % 2, steps=4))
        await asyncio.sleep(0.02 * number)  # the moments are the test: every part of a generation is hit
        outcome = await asyncio.gather(worker.client.images.cancel(created.id), return_exceptions=True)
        state = (await worker.client.images.get(created.id)).state
        assert state in (GenerationState.CANCELLED, GenerationState.COMPLETE), outcome
    await assert_draws(worker)
    assert len(children()) == 1


async def test_a_model_that_vanished_or_rots_on_disk(worker: Worker) -> None:
    (model,) = await worker.client.models.list()
    path = Path(model.path)
    content = path.read_bytes()
    path.unlink()  # it is a link to the file that all tests share
    path.write_bytes(content[: len(content) // 2])
    broken = await finish(worker, (await worker.client.images.create(TINY)).id)
    assert broken.error is not None
    assert broken.error.code == "BACKEND_ERROR"
    assert "could not be loaded" in broken.error.message
    path.unlink()
    gone = await finish(worker, (await worker.client.images.create(TINY)).id)
    assert gone.error is not None
    assert (gone.error.code, path.name in gone.error.message) == ("FILE_SYSTEM_ERROR", True)
    with pytest.raises(FileSystemError):
        await worker.client.engine.start(model.id)
    path.write_bytes(content)
    await assert_draws(worker)
    with pytest.raises(ServerBusyError, match="An engine has loaded"):
        await worker.client.models.delete(model.id)
    await worker.client.engine.stop()
    await worker.client.models.delete(model.id)
    with pytest.raises(ModelNotFoundError):
        await worker.client.engine.start(model.id)


@pytest.mark.parametrize(
    ("misbehaviour", "code", "words"),
    [
        ("garbage", "BACKEND_ERROR", "doesn't speak the engine protocol"),
        ("too-few", "BACKEND_ERROR", "made 0 of 1 images"),
        ("full-disk", "BACKEND_ERROR", "no space left on device"),
        ("exit-0", "BACKEND_ERROR", "exit status 0"),
        ("abort", "BACKEND_ERROR", "GGML_ASSERT(false) failed"),
        ("refuses", "BACKEND_ERROR", "upside down"),
    ],
)
async def test_an_engine_that_misbehaves(
    tmp_path: Path, demo_models: DemoModels, misbehaviour: str, code: str, words: str
) -> None:
    async with image_worker(tmp_path, engine_command=(sys.executable, str(FAKE), misbehaviour)) as worker:
        await install(worker, demo_models.diffusion)
        for _ in range(2):
            failed = await finish(worker, (await worker.client.images.create(TINY)).id)
            assert failed.error is not None
            assert (failed.error.code, failed.state) == (code, GenerationState.ERROR)
            assert words in failed.error.message
    assert children() == []


async def test_an_engine_that_prints_a_lot_still_draws(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, engine_command=(sys.executable, str(FAKE), "noise")) as worker:
        await install(worker, demo_models.diffusion)
        await assert_draws(worker)
        lines = {entry.message for entry in await worker.client.engine.list_logs(5000)}
        assert {"line 0", "line 1999", "more", "�nul"} <= lines
        assert all(len(line.encode()) <= 8192 + 3 for line in lines)


@pytest.mark.parametrize("misbehaviour", ["deaf", "silent-load"])
async def test_an_engine_that_does_not_answer_a_cancel_is_killed(
    tmp_path: Path, demo_models: DemoModels, misbehaviour: str
) -> None:
    command = (sys.executable, str(FAKE), misbehaviour)
    async with image_worker(tmp_path, engine_command=command, cancel_grace_seconds=0.1) as worker:
        await install(worker, demo_models.diffusion)
        created = await worker.client.images.create(TINY)
        await reach(worker, created.id, "diffusion" if misbehaviour == "deaf" else "loading")
        pid = (await worker.client.engine.get()).pid
        assert (await worker.client.images.cancel(created.id)).state is GenerationState.CANCELLED
        assert pid not in {child.pid for child in children()}
    assert children() == []


async def test_a_stop_whose_caller_leaves_is_one(tmp_path: Path, demo_models: DemoModels) -> None:
    command = (sys.executable, str(FAKE), "deaf")
    async with image_worker(tmp_path, engine_command=command, cancel_grace_seconds=0.5) as worker:
        await install(worker, demo_models.diffusion)
        created = await worker.client.images.create(TINY)
        await reach(worker, created.id, "diffusion")
        stop = asyncio.create_task(worker.client.engine.stop())
        async for engine in worker.client.engine.watch():
            if not engine.accepting:
                break
        stop.cancel()
        async for engine in worker.client.engine.watch():
            if engine.state is ServerState.STOPPED:
                break
        assert (await finish(worker, created.id)).state is GenerationState.CANCELLED
        assert children() == []
