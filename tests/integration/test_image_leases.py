"""The image worker as a tenant of a real resource manager: what it holds, and what becomes of it without one."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import DemoModels
from genaid_client import (
    AsyncClient,
    ConnectionFailedError,
    Generation,
    GenerationState,
    ImageNeed,
    InsufficientResourcesError,
    Lease,
    LeaseState,
    ServerError,
    ServerState,
    StopReason,
    TenantKind,
    raise_for_failure,
)
from genaid_server import settings as configuration
from genaid_server.image import main as image
from genaid_server.resource import main as resource
from llm_service import engines, free_port
from worker import TINY, Worker, children, image_worker, install

PATIENCE = 30.0  # seconds; a bound for a machine that is busy, not an expectation
LARGER = replace(TINY, width=128, height=128)
TOO_LARGE = replace(TINY, width=2048, height=2048)


async def finish(client: AsyncClient, identity: str) -> Generation:
    return [state async for state in client.images.watch(identity)][-1]


async def leases(manager: AsyncClient, enough: Callable[[list[Lease]], bool]) -> list[Lease]:
    """The leases as soon as the manager answers and they are as they should be."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(ConnectionFailedError):
                found = list((await manager.orchestration.list_leases()).leases)
                if enough(found):
                    return found
            await asyncio.sleep(0.02)


def one(found: list[Lease]) -> bool:
    return len(found) == 1 and found[0].state is LeaseState.GRANTED


async def test_a_lease_is_held_for_as_long_as_the_engine_is_there(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, keep_alive_seconds=-1) as worker:
        model = await install(worker, demo_models.diffusion)
        assert (await worker.client.orchestration.list_leases()).leases == ()
        created = await worker.client.images.create(TINY)
        assert (await finish(worker.client, created.id)).state is GenerationState.COMPLETE
        (first,) = await leases(worker.client, one)
        assert (first.kind, first.model_id, first.state) == (TenantKind.IMAGE, model.id, LeaseState.GRANTED)
        assert first.ram_bytes > 0
        pid = (await worker.client.engine.get()).pid
        created = await worker.client.images.create(LARGER)
        assert (await finish(worker.client, created.id)).state is GenerationState.COMPLETE
        (second,) = await leases(worker.client, one)
        assert second.tenant_id == first.tenant_id
        assert second.id != first.id
        assert second.ram_bytes > first.ram_bytes
        assert (await worker.client.engine.get()).pid == pid
        await worker.client.engine.stop()
        assert engines() == []
        assert await leases(worker.client, lambda found: not found) == []


async def test_once_an_image_was_made_its_size_is_measured(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, keep_alive_seconds=0) as worker:
        model = await install(worker, demo_models.diffusion)
        need = ImageNeed(model.id, 64, 64)
        estimated = await worker.client.orchestration.plan_image_generation(need)
        assert not estimated.measured
        created = await worker.client.images.create(TINY)
        assert (await finish(worker.client, created.id)).state is GenerationState.COMPLETE
        assert await leases(worker.client, lambda found: not found) == []  # it has told all before it left
        measured = await worker.client.orchestration.plan_image_generation(need)
        assert measured.measured
        assert 0.8 * estimated.ram_bytes < measured.ram_bytes < estimated.ram_bytes + 100 * 2**20
        other = await worker.client.orchestration.plan_image_generation(replace(need, width=128))
        assert not other.measured


async def test_what_can_not_fit_is_refused_and_the_engine_stays(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, memory={"ram_limit_bytes": 400_000_000}) as worker:
        await install(worker, demo_models.diffusion)
        created = await worker.client.images.create(TINY)
        assert (await finish(worker.client, created.id)).state is GenerationState.COMPLETE
        refused = await finish(worker.client, (await worker.client.images.create(TOO_LARGE)).id)
        assert refused.error is not None
        assert refused.error.code == "INSUFFICIENT_RESOURCES"
        assert "RAM" in refused.error.message
        assert (await worker.client.engine.get()).state is ServerState.RUNNING
        created = await worker.client.images.create(TINY)
        assert (await finish(worker.client, created.id)).state is GenerationState.COMPLETE


async def test_a_start_that_can_not_fit_says_what_there_is(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, memory={"ram_limit_bytes": 1_000_000}) as worker:
        model = await install(worker, demo_models.diffusion)
        with pytest.raises(InsufficientResourcesError) as refusal:
            await worker.client.engine.start(model.id)
        assert int(refusal.value.metadata["required"]) > int(refusal.value.metadata["available"])
        assert (await worker.client.engine.get()).stop_reason is StopReason.NEVER_STARTED
        refused = await finish(worker.client, (await worker.client.images.create(TINY)).id)
        assert refused.error is not None
        assert refused.error.facts.keys() >= {"required", "available", "suggestion"}
        with pytest.raises(InsufficientResourcesError) as refusal:
            raise_for_failure(refused)
        assert int(refusal.value.metadata["required"]) > int(refusal.value.metadata["available"])
        engine = await worker.client.engine.get()
        assert (engine.state, engine.stop_reason) == (ServerState.STOPPED, StopReason.REFUSED_FOR_MEMORY)
        assert engines() == []


async def test_a_manager_that_was_started_again_finds_the_engine_as_a_tenant(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    config = configuration.load(
        flags={
            "data_dir": tmp_path,
            "resource": {"listen": f"127.0.0.1:{free_port()}"},
            "image": {"listen": "127.0.0.1:0", "keep_alive_seconds": -1},
        }
    )
    manager = str(config.resource.listen)
    async with AsyncExitStack() as services:
        address = str(await services.enter_async_context(image.serve(config, manager)))
        images = await services.enter_async_context(AsyncClient(image=address))
        async with resource.serve(config), AsyncClient(resource=manager) as models:
            await install(Worker(models, address, manager, tmp_path), demo_models.diffusion)
            created = await images.images.create(TINY)
            assert (await finish(images, created.id)).state is GenerationState.COMPLETE
            (before,) = await leases(models, one)
            pid = (await images.engine.get()).pid
        for spec in (TINY, LARGER):  # as nobody can be asked
            drawn = await finish(images, (await images.images.create(spec)).id)
            assert drawn.state is GenerationState.COMPLETE, drawn.error
        async with resource.serve(config), AsyncClient(resource=manager) as models:
            (after,) = await leases(models, one)
            assert after.tenant_id == before.tenant_id
            assert after.ram_bytes > before.ram_bytes
            assert (await images.engine.get()).pid == pid
        await images.engine.stop()
        with pytest.raises(ServerError):
            await images.engine.start(before.model_id)
    assert children() == []
