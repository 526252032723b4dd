"""The image worker over gRPC, with the real engine on a small model."""

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import grpc.aio
import pytest
from PIL import Image as Picture

from conftest import DemoModels
from genaid.image.v1 import generation_pb2, generation_pb2_grpc
from genaid_client import (
    AlreadyTerminalError,
    EngineEvent,
    EngineOptions,
    Generation,
    GenerationState,
    Image,
    InvalidRequestError,
    ModelNotFoundError,
    ModelType,
    NotFoundError,
    Sampler,
    ServerBusyError,
    ServerError,
    ServerState,
    Stage,
    StopReason,
)
from genaid_server.demo.models import DIFFUSION_NAME
from worker import LONG, TINY, Worker, children, image_worker, install


@pytest.fixture
async def worker(tmp_path: Path, demo_models: DemoModels) -> AsyncIterator[Worker]:
    async with image_worker(tmp_path, queue_depth=1) as running:
        await install(running, demo_models.diffusion)
        yield running
    assert children() == []


async def finish(worker: Worker, identity: str) -> Generation:
    async for generation in worker.client.images.watch(identity):
        if generation.state.terminal:
            return generation
    raise AssertionError("the watch ended before the generation did")


async def reach(worker: Worker, identity: str, stage: Stage, step: int = 0) -> Generation:
    """Wait until the generation is in the stage, at that step or later."""
    async for generation in worker.client.images.watch(identity):
        progress = generation.progress
        if progress is not None and progress.stage is stage and progress.current_step >= step:
            return generation
        assert not generation.state.terminal, generation
    raise AssertionError("the watch ended early")


async def test_an_image_from_prompt_to_png(worker: Worker) -> None:
    spec = replace(TINY, prompt="a ünicode cat 🐱", negative_prompt="dogs", cfg_scale=5.5, sampler=Sampler.EULER)
    created = await worker.client.images.create(spec)
    assert created.state is GenerationState.PENDING
    states = [state async for state in worker.client.images.watch(created.id)]
    done = states[-1]
    assert done.state is GenerationState.COMPLETE, done.error
    assert done.progress is not None
    assert done.progress.percentage == 100
    percentages = [state.progress.percentage for state in states if state.progress]
    assert percentages == sorted(percentages)
    assert all(share < 100 for share in percentages[:-1])
    stages = [state.progress.stage for state in states if state.progress]
    assert [stage for stage in Stage if stage in stages] == [Stage.LOADING, Stage.DIFFUSION, Stage.DECODING]
    data = await worker.client.images.get_image(done.id, 0)
    info = done.images[0]
    assert (info.seed, info.width, info.height, info.size_bytes) == (1, 64, 64, len(data))
    picture = Picture.open(io.BytesIO(data))
    assert picture.format == "PNG"
    assert picture.size == (64, 64)
    assert picture.info["parameters"].splitlines() == [
        "a ünicode cat 🐱",
        "Negative prompt: dogs",
        f"Steps: 2, Sampler: euler, CFG scale: 5.5, Seed: 1, Size: 64x64, Model: {DIFFUSION_NAME}, Version: genaid",
    ]


async def test_a_batch_counts_its_seeds_and_images(worker: Worker) -> None:
    created = await worker.client.images.create(replace(TINY, count=3, seed=40))
    states = [state async for state in worker.client.images.watch(created.id)]
    assert [image.seed for image in states[-1].images] == [40, 41, 42]
    seen = {state.progress.current_image for state in states if state.progress}
    assert seen == {1, 2, 3}
    assert {state.progress.total_images for state in states if state.progress} == {3}
    pngs = {await worker.client.images.get_image(created.id, index) for index in range(3)}
    assert len(pngs) == 3
    alone = await worker.client.images.create(replace(TINY, seed=41))
    await finish(worker, alone.id)
    assert (await worker.client.images.get_image(alone.id)) in pngs


async def test_a_seed_repeats_an_image_and_a_random_one_is_reported(worker: Worker) -> None:
    same = []
    for _ in range(2):
        created = await worker.client.images.create(TINY)
        same.append((await finish(worker, created.id)).images[0].sha256)
    assert same[0] == same[1]
    seeds = set()
    for seed in (None, -1):
        created = await worker.client.images.create(replace(TINY, seed=seed))
        seeds.add((await finish(worker, created.id)).images[0].seed)
    assert all(seed >= 0 for seed in seeds)
    assert len(seeds) == 2


async def test_the_engine_knows_every_sampler(worker: Worker) -> None:
    for sampler in Sampler:
        created = await worker.client.images.create(replace(TINY, sampler=sampler, steps=1, cfg_scale=1))
        done = await finish(worker, created.id)
        assert done.state is GenerationState.COMPLETE, (sampler, done.error)


async def test_the_one_call_form_streams_progress_and_images(worker: Worker) -> None:
    parts = [part async for part in worker.client.images.stream(replace(TINY, count=2))]
    generations = [part for part in parts if isinstance(part, Generation)]
    images = [part for part in parts if isinstance(part, Image)]
    assert generations[-1].state is GenerationState.COMPLETE
    assert [image.index for image in images] == [0, 1]
    assert all(image.data.startswith(b"\x89PNG") for image in images)
    assert await worker.client.images.list() == []


async def test_leaving_the_one_call_form_cancels_it(worker: Worker) -> None:
    stream = worker.client.images.stream(LONG)
    async for part in stream:
        if isinstance(part, Generation) and part.progress and part.progress.stage is Stage.DIFFUSION:
            break
    await stream.aclose()
    async for engine in worker.client.engine.watch():
        if not engine.busy:
            break
    assert await worker.client.images.list() == []


async def test_a_caller_that_leaves_a_watch_leaves_the_generation_alone(worker: Worker) -> None:
    created = await worker.client.images.create(TINY)
    await reach(worker, created.id, Stage.LOADING)
    assert (await finish(worker, created.id)).state is GenerationState.COMPLETE


async def test_a_large_image_travels_in_chunks(worker: Worker) -> None:
    created = await worker.client.images.create(replace(TINY, width=672, height=672, steps=1, cfg_scale=1))
    done = await finish(worker, created.id)
    async with grpc.aio.insecure_channel(worker.image_address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.GetImageRequest(generation_id=created.id)
        parts = [part async for part in stub.GetImage(request)]
    assert len(parts) > 1
    assert all(len(part.chunk) <= 1_048_576 for part in parts)
    assert parts[0].image.sha256 == done.images[0].sha256
    assert sum(len(part.chunk) for part in parts) == done.images[0].size_bytes


async def test_one_runs_one_waits_and_the_third_is_told(worker: Worker) -> None:
    accepted = []
    refused = []
    for outcome in await asyncio.gather(*(worker.client.images.create(LONG) for _ in range(5)), return_exceptions=True):
        if isinstance(outcome, Generation):
            accepted.append(outcome)
        else:
            assert isinstance(outcome, ServerBusyError)
            refused.append(outcome)
    assert (len(accepted), len(refused)) == (2, 3)
    running, waiting = sorted(accepted, key=lambda generation: generation.queue_position)
    assert (waiting.state, waiting.queue_position) == (GenerationState.PENDING, 1)
    cancelled = await worker.client.images.cancel(waiting.id)
    assert cancelled.state is GenerationState.CANCELLED
    assert (await worker.client.images.get(running.id)).state is not GenerationState.CANCELLED
    following = await worker.client.images.create(TINY)
    assert following.queue_position == 1
    await worker.client.images.cancel(running.id)
    async for state in worker.client.images.watch(following.id):
        assert state.queue_position == 0 or state.state is GenerationState.PENDING
        following = state
    assert following.state is GenerationState.COMPLETE


async def test_a_request_id_gives_the_same_generation(worker: Worker) -> None:
    first, second = await asyncio.gather(
        worker.client.images.create(TINY, request_id="mine"),
        worker.client.images.create(TINY, request_id="mine"),
    )
    assert first.id == second.id
    with pytest.raises(InvalidRequestError):
        await worker.client.images.create(TINY, request_id="x" * 129)
    await finish(worker, first.id)


async def test_cancelling_what_is_settled(worker: Worker) -> None:
    created = await worker.client.images.create(LONG)
    await worker.client.images.cancel(created.id)
    assert (await worker.client.images.cancel(created.id)).state is GenerationState.CANCELLED
    done = await worker.client.images.create(TINY)
    await finish(worker, done.id)
    with pytest.raises(AlreadyTerminalError):
        await worker.client.images.cancel(done.id)
    with pytest.raises(NotFoundError):
        await worker.client.images.cancel("gen_0_nothing")
    with pytest.raises(NotFoundError):
        await worker.client.images.get_image(done.id, 1)
    with pytest.raises(NotFoundError):
        await worker.client.images.get_image(created.id, 0)


async def test_deleting(worker: Worker) -> None:
    running = await worker.client.images.create(LONG)
    with pytest.raises(ServerBusyError):
        await worker.client.images.get_image(running.id, 0)
    await worker.client.images.delete(running.id)
    with pytest.raises(NotFoundError):
        await worker.client.images.get(running.id)
    assert not (await worker.client.engine.get()).busy


async def test_lists_are_paged_and_filtered(worker: Worker) -> None:
    made = []
    for _ in range(3):
        created = await worker.client.images.create(TINY)
        await finish(worker, created.id)
        made.append(created.id)
    assert [found.id for found in await worker.client.images.list()] == made[::-1]
    assert await worker.client.images.list(GenerationState.ERROR) == []
    async with grpc.aio.insecure_channel(worker.image_address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        first = await stub.ListGenerations(generation_pb2.ListGenerationsRequest(page_size=2))
        rest = await stub.ListGenerations(
            generation_pb2.ListGenerationsRequest(page_size=2, page_token=first.next_page_token)
        )
    assert [found.id for found in [*first.generations, *rest.generations]] == made[::-1]
    assert rest.next_page_token == ""


async def test_a_page_never_outgrows_a_message(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, queue_depth=40) as worker:
        await install(worker, demo_models.diffusion)
        longest = replace(LONG, prompt="🐈" * 32_768, negative_prompt="🐕" * 32_768)
        for _ in range(40):
            await worker.client.images.create(longest)
        async with grpc.aio.insecure_channel(worker.image_address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            page = await stub.ListGenerations(generation_pb2.ListGenerationsRequest())
        assert page.next_page_token
        assert len(await worker.client.images.list()) == 40
        await worker.client.engine.stop()


async def test_the_engine_is_started_stopped_and_watched(worker: Worker) -> None:
    assert (await worker.client.engine.get()).state is ServerState.STOPPED
    states: list[ServerState] = []

    async def follow() -> None:
        async for engine in worker.client.engine.watch():
            if not states or states[-1] is not engine.state:
                states.append(engine.state)
            if len(states) > 2 and engine.state is ServerState.STOPPED:
                return

    follower = asyncio.create_task(follow())
    started, joined = await asyncio.gather(
        worker.client.engine.start("genaid-demo-diffusion-random-weights", threads=1),
        worker.client.engine.start("genaid-demo-diffusion-random-weights", threads=1),
    )
    assert started.state is ServerState.RUNNING
    assert (started.pid, started.threads) == (joined.pid, 1)
    assert started.pid in {child.pid for child in children()}
    assert started.load_seconds is not None
    with pytest.raises(ServerBusyError):
        await worker.client.engine.start("genaid-demo-diffusion-random-weights", threads=2)
    replaced = await worker.client.engine.start(
        "genaid-demo-diffusion-random-weights",
        threads=2,
        options=EngineOptions(flash_attention=True, vae_tiling=True, memory_map=True, clip_on_cpu=True),
        replace=True,
    )
    assert replaced.pid != started.pid
    assert replaced.options.vae_tiling
    done = await finish(worker, (await worker.client.images.create(TINY)).id)
    assert done.state is GenerationState.COMPLETE
    stopped = await worker.client.engine.stop()
    assert stopped.state is ServerState.STOPPED
    assert not stopped.accepting
    assert children() == []
    with pytest.raises(ServerError, match="stopped"):
        await worker.client.images.create(TINY)
    await asyncio.wait_for(follower, 10)
    assert states[:2] == [ServerState.STOPPED, ServerState.STARTING]
    assert states[-1] is ServerState.STOPPED
    again = await worker.client.engine.start("genaid-demo-diffusion-random-weights")
    assert again.accepting


async def test_another_model_does_not_interrupt_an_image(worker: Worker) -> None:
    created = await worker.client.images.create(LONG)
    with pytest.raises(ServerBusyError, match="middle of an image"):
        await worker.client.engine.start("genaid-demo-diffusion-random-weights", threads=2, replace=True)
    await worker.client.images.cancel(created.id)


async def test_models_that_cannot_draw(worker: Worker, demo_models: DemoModels) -> None:
    llm = await install(worker, demo_models.llm)
    with pytest.raises(ModelNotFoundError, match="no diffusion model"):
        await worker.client.engine.start(llm.id)
    with pytest.raises(ModelNotFoundError):
        await worker.client.engine.start("nothing-like-it")
    await install(worker, demo_models.diffusion, name="Second")
    with pytest.raises(ModelNotFoundError, match="Several diffusion models"):
        await worker.client.images.create(TINY)
    for model in await worker.client.models.list(ModelType.DIFFUSION):
        await worker.client.models.delete(model.id)
    with pytest.raises(ModelNotFoundError, match="No diffusion model"):
        await worker.client.images.create(TINY)


async def test_the_log_is_kept_listed_tailed_and_cleared(worker: Worker) -> None:
    async def first_ready() -> int:
        async for entry in worker.client.engine.tail_logs():
            if entry.message == "engine ready":
                return entry.sequence
        raise AssertionError

    tail = asyncio.create_task(first_ready())
    await worker.client.engine.start("genaid-demo-diffusion-random-weights")
    sequence = await asyncio.wait_for(tail, 10)
    entries = await worker.client.engine.list_logs(1000)
    assert any("loading model from" in entry.message for entry in entries)
    assert all(entry.raw.endswith(f"] {entry.message}") for entry in entries)
    assert [entry.sequence for entry in entries] == sorted(entry.sequence for entry in entries)
    assert len(await worker.client.engine.list_logs(3)) == 3
    assert await worker.client.engine.list_logs(0) == []
    with pytest.raises(InvalidRequestError):
        await worker.client.engine.list_logs(-1)
    async for entry in worker.client.engine.tail_logs(sequence):
        assert entry.sequence == sequence
        break
    await worker.client.engine.clear_logs()
    assert await worker.client.engine.list_logs() == []


async def test_of_steps_that_follow_quickly_not_all_are_told(worker: Worker) -> None:
    created = await worker.client.images.create(replace(TINY, steps=40))
    told = [
        (generation.update_time, generation.progress)
        async for generation in worker.client.images.watch(created.id)
        if generation.progress is not None and generation.progress.stage is Stage.DIFFUSION
    ]
    steps = [progress.current_step for _, progress in told]
    assert steps == sorted(steps)
    assert steps[-1] > 0
    for (before, _), (now, progress) in pairwise(told):
        assert progress.current_step == 40 or now - before >= timedelta(seconds=0.1)


async def test_what_the_library_says_of_every_step_is_in_the_log_once(worker: Worker) -> None:
    created = await worker.client.images.create(replace(TINY, steps=4))
    assert (await finish(worker, created.id)).state is GenerationState.COMPLETE
    said = [entry.message for entry in await worker.client.engine.list_logs(1000)]
    assert "flux executing segment 1/1: graph" in said
    assert [message for before, message in pairwise(said) if message == before] == []


async def test_an_idle_engine_is_unloaded_and_comes_back(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, keep_alive_seconds=0) as worker:
        await install(worker, demo_models.diffusion)
        for _ in range(2):
            assert (await finish(worker, (await worker.client.images.create(TINY)).id)).state.value == "complete"
            async for engine in worker.client.engine.watch():
                if engine.state is ServerState.STOPPED:
                    assert engine.last_event is EngineEvent.UNLOADED
                    assert engine.stop_reason is StopReason.UNLOADED_WHEN_IDLE
                    assert engine.accepting
                    break
            assert children() == []


async def test_results_expire_and_are_bounded(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, result_ttl_ms=0, cleanup_interval_ms=1) as worker:
        await install(worker, demo_models.diffusion)
        created = await worker.client.images.create(TINY)
        last = [state async for state in worker.client.images.watch(created.id)][-1]
        assert last.expire_time is not None
        async with asyncio.timeout(10):
            while await worker.client.images.list():  # noqa: ASYNC110 - the clean-up has no event to wait for
                await asyncio.sleep(0.01)
    async with image_worker(tmp_path, max_results=2) as worker:
        made = []
        for _ in range(3):
            made.append((await worker.client.images.create(TINY)).id)
            await finish(worker, made[-1])
        assert [found.id for found in await worker.client.images.list()] == [made[2], made[1]]
    assert (tmp_path / "calibration.json").exists()
    assert (tmp_path / "logs" / "image-engine.log").stat().st_size > 0


async def test_a_prompt_may_say_anything_but_nul(worker: Worker) -> None:
    for prompt in ("--help -o /etc/passwd", "server is busy", "x" * 32_768):
        done = await finish(worker, (await worker.client.images.create(replace(TINY, prompt=prompt))).id)
        assert done.state is GenerationState.COMPLETE, done.error
    for prompt in ("", "   ", "a\0b", "x" * 32_769, "x" * 1_000_000):
        with pytest.raises(InvalidRequestError):
            await worker.client.images.create(replace(TINY, prompt=prompt))
