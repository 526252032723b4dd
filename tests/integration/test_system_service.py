"""SystemService over the wire, on this machine, with the real engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest

from conftest import DemoModels
from genaid.common.v1 import engines_pb2
from genaid.resource.v1 import system_pb2, system_pb2_grpc
from genaid_client import (
    AsyncClient,
    GenerationSpec,
    InvalidRequestError,
    LlmConfig,
    LlmServing,
    ModelNotFoundError,
    ModelType,
    ServerVersion,
)
from worker import Worker, image_worker, install

MIB = 2**20


@pytest.fixture
async def worker(tmp_path: Path, demo_models: DemoModels) -> AsyncIterator[Worker]:
    async with image_worker(tmp_path, threads=1) as running:
        await install(running, demo_models.llm, name="demo llm")
        await install(running, demo_models.diffusion, name="demo diffusion")
        yield running


async def test_it_tells_what_this_machine_has(worker: Worker) -> None:
    found = await worker.client.system.get_capabilities()
    assert found.cpu.logical_cores == psutil.cpu_count()
    assert 1 <= found.cpu.usable_cores <= found.cpu.logical_cores
    assert 0 < found.memory.available_bytes <= found.memory.total_bytes <= psutil.virtual_memory().total
    assert found.memory.used_bytes == found.memory.total_bytes - found.memory.available_bytes
    assert found.gpu_available == bool(found.gpus)
    assert found.platform_key == f"{found.platform}-{found.cpu.architecture}"
    assert found.recommendations.max_model_size in ("7B", "13B", "34B", "70B")
    assert 1 <= found.recommendations.threads <= found.cpu.logical_cores
    for reason in (
        found.recommendations.size_reason,
        found.recommendations.threads_reason,
        found.recommendations.gpu_layers_reason,
    ):
        assert reason


async def test_it_tells_what_runs_and_where(worker: Worker, tmp_path: Path) -> None:
    found = await worker.client.system.get_version()
    assert found == ServerVersion(
        version("genaid"),
        max(engines_pb2.ContractRevision.values()),
        str(tmp_path.absolute()),
        str(tmp_path.absolute() / "inbox"),
        {"resource": worker.resource_address},
    )
    llm = await worker.client.llm.start("demo-llm", serving=LlmServing(port=0))
    assert (await worker.client.system.get_version()).addresses == {**found.addresses, "llm": llm.base_url}
    await worker.client.llm.stop()
    assert (await worker.client.system.get_version()).addresses == found.addresses


async def test_what_was_detected_is_kept_until_it_is_asked_for_anew_or_an_engine_starts(worker: Worker) -> None:
    first = await worker.client.system.get_capabilities()
    assert (await worker.client.system.get_capabilities()).detect_time == first.detect_time
    second = await worker.client.system.get_capabilities(refresh=True)
    assert second.detect_time > first.detect_time
    await worker.client.engine.start("demo-diffusion")
    assert (await worker.client.system.get_capabilities()).detect_time > second.detect_time


async def test_it_measures_what_an_engine_holds(worker: Worker) -> None:
    assert (await worker.client.system.get_memory()).engines == ()
    engine = await worker.client.engine.start("demo-diffusion")
    (held,) = (await worker.client.system.get_memory()).engines
    assert (held.kind, held.model_id, held.pid) == ("image", "demo-diffusion", engine.pid)
    assert 141 * MIB < held.resident_bytes < 1000 * MIB
    await worker.client.engine.stop()
    assert (await worker.client.system.get_memory()).engines == ()


async def test_memory_can_be_watched_while_an_engine_comes_and_goes(worker: Worker) -> None:
    watch = worker.client.system.watch_memory(0.1)
    async for now in watch:
        assert now.engines == ()
        break_after = now.time
        break
    await worker.client.engine.start("demo-diffusion")
    seen = []
    async for now in worker.client.system.watch_memory(0.1):
        seen.append(now)
        if len(seen) == 3:
            break
    assert [len(now.engines) for now in seen] == [1, 1, 1]
    assert break_after < seen[0].time < seen[1].time < seen[2].time


async def test_watches_end_with_the_service(tmp_path: Path) -> None:
    async with AsyncExitStack() as services:
        running = await services.enter_async_context(image_worker(tmp_path))
        async with AsyncClient(resource=running.resource_address) as client:
            watch = client.system.watch_memory(3600)
            await anext(watch)
            waiting = asyncio.create_task(anext(watch, None))
            await services.aclose()
            assert await waiting is None


@pytest.mark.parametrize("interval", [0.05, 0.0, -1.0, 3600.5])
async def test_an_interval_out_of_range_is_refused(worker: Worker, interval: float) -> None:
    with pytest.raises(InvalidRequestError, match="interval"):
        await anext(worker.client.system.watch_memory(interval))


async def test_a_demo_model_can_run(worker: Worker) -> None:
    check = await worker.client.system.check_model("demo-llm")
    assert check.possible
    assert check.need.exact
    assert 0 < check.required_bytes <= check.available_bytes
    assert check.llm_config is not None
    assert check.llm_config.context_size == 2048
    assert (await worker.client.system.check_model("demo-diffusion", width=256, height=256)).possible
    total = await worker.client.system.check_model("demo-llm", check_total_memory=True)
    assert total.available_bytes >= check.available_bytes


async def test_what_is_recommended_passes_the_check(worker: Worker) -> None:
    given = await worker.client.system.recommend_llm_config("demo-llm")
    assert given.fits
    assert not given.context_reduced
    assert given.reasons["context_size"]
    assert given.reasons["parallel_requests"]
    assert (await worker.client.system.check_model("demo-llm", llm_config=given.config)).possible


async def test_larger_images_need_more(worker: Worker) -> None:
    needs = [
        (await worker.client.system.check_model("demo-diffusion", width=size, height=size)) for size in (64, 256, 512)
    ]
    assert needs[0].required_bytes < needs[1].required_bytes < needs[2].required_bytes


async def test_a_model_that_is_not_there(worker: Worker) -> None:
    with pytest.raises(ModelNotFoundError):
        await worker.client.system.check_model("nothing")
    with pytest.raises(ModelNotFoundError):
        await worker.client.system.recommend_llm_config("nothing")


@pytest.mark.parametrize(
    ("model", "fields", "field"),
    [
        ("demo-llm", {"width": 512}, "width"),
        ("demo-llm", {"height": 512}, "height"),
        ("demo-diffusion", {"width": 63}, "width"),
        ("demo-diffusion", {"height": 8193}, "height"),
        ("demo-diffusion", {"llm_config": LlmConfig(context_size=4096)}, "llm_config"),
        ("demo-llm", {"llm_config": LlmConfig(context_size=31)}, "context_size"),
        ("demo-llm", {"llm_config": LlmConfig(threads=0)}, "threads"),
        ("demo-llm", {"llm_config": LlmConfig(gpu_layers=-1)}, "gpu_layers"),
        ("demo-llm", {"llm_config": LlmConfig(parallel_requests=65)}, "parallel"),
    ],
)
async def test_nonsense_is_refused_by_the_name_of_the_field(
    worker: Worker, model: str, fields: dict[str, int], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        await worker.client.system.check_model(model, **fields)  # type: ignore[arg-type]
    assert field in error.value.metadata["field"]


async def test_a_diffusion_model_has_no_llm_config(worker: Worker) -> None:
    with pytest.raises(InvalidRequestError, match="no language model"):
        await worker.client.system.recommend_llm_config("demo-diffusion")


async def test_an_unknown_cache_type_is_refused(worker: Worker) -> None:
    async with grpc.aio.insecure_channel(worker.resource_address) as channel:
        stub: system_pb2_grpc.SystemServiceAsyncStub = system_pb2_grpc.SystemServiceStub(channel)
        wishes = system_pb2.LlmConfig(cache_type_k=99)  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.RecommendLlmConfig(system_pb2.RecommendLlmConfigRequest(model_id="demo-llm", wishes=wishes))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_budgets_cap_everything(tmp_path: Path, demo_models: DemoModels) -> None:
    limit = 600 * MIB
    async with image_worker(tmp_path, threads=1, memory={"ram_limit_bytes": limit}) as running:
        await install(running, demo_models.diffusion, name="demo diffusion", type=ModelType.DIFFUSION)
        found = await running.client.system.get_capabilities()
        assert found.memory.budget_bytes == limit
        assert found.recommendations.max_model_size == "7B"
        small = await running.client.system.check_model("demo-diffusion", width=64, height=64)
        assert small.possible
        assert small.available_bytes <= limit
        large = await running.client.system.check_model(
            "demo-diffusion", width=512, height=512, check_total_memory=True
        )
        assert not large.possible
        assert large.required_bytes > large.available_bytes == limit
        assert "RAM" in large.reason
        assert large.suggestion

        await running.client.images.create(GenerationSpec("a cat", width=64, height=64, steps=1))
        await running.client.engine.start("demo-diffusion")
        loaded = await running.client.system.check_model("demo-diffusion", width=64, height=64)
        assert loaded.available_bytes < limit - 141 * MIB  # what the engine holds counts against the budget
