"""Engines that share memory, over gRPC: the documented scenarios, scaled to the demo models, and what follows."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import DemoModels
from fakes.gateway import until
from genaid_client import (
    Departure,
    EngineEvent,
    EngineOptions,
    Generation,
    GenerationState,
    Image,
    ImagePlan,
    InsufficientResourcesError,
    Lease,
    LeaseState,
    Llm,
    LlmConfig,
    MemoryKind,
    OffloadPhase,
    ServerState,
    Stage,
    TenantKind,
)
from genaid_server.demo.models import write_llm
from genaid_server.resource import main as resource
from genaid_server.resource.core.fitting.sizes import words
from llm_service import chat
from sharing import (
    DIFFUSION,
    GIB,
    GPU_ENGINE,
    IMAGE,
    LASTING,
    LLM,
    RELOAD_DELAY,
    SMALL,
    TINY,
    Card,
    House,
    house,
    needed,
    on_gpu,
    scarce,
)
from support import genaid
from worker import children

MIB = 2**20
NEVER = replace(TINY, width=4096, height=1024)
NEVER_NEED = replace(IMAGE, width=4096, height=1024)
"""An image that takes more memory than any limit here."""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert children() == []


async def diffusing(services: House, generation_id: str) -> Generation:
    """A generation once it draws."""
    return await services.reached(
        generation_id, lambda now: now.progress is not None and now.progress.stage is Stage.DIFFUSION
    )


# --- the documented scenarios


def check_plan(plan: ImagePlan, llm: Departure, kind: MemoryKind, total: int, *, offload: bool) -> None:
    """What a plan says in figures and in words."""
    name, taken = kind.name, llm.vram_bytes if kind is MemoryKind.VRAM else llm.ram_bytes
    needed = plan.vram_bytes if kind is MemoryKind.VRAM else plan.ram_bytes
    assert (plan.model_id, plan.bottleneck, plan.possible, plan.suggestion) == (DIFFUSION, kind, True, "")
    assert (plan.required_bytes, plan.total_bytes) == (needed, total)
    assert plan.available_bytes <= total - taken
    assert plan.would_need_offload is offload
    assert words(needed) in plan.explanation
    if offload:
        assert [replace(departure, reason="") for departure in plan.departures] == [llm]
        assert plan.explanation == plan.departures[0].reason
        together, allowed = words(needed + taken), f"75% of {words(total)}"
        assert plan.explanation == (
            f"The LLM ({LLM}, {words(taken)} of {name}) is offloaded: with the {words(needed)} that are needed, "
            f"{together} would be more than {allowed}."
        )
    else:
        assert plan.departures == ()
        assert "there is room for it beside what runs" in plan.explanation


async def check_saved(services: House, plan: ImagePlan, before: Llm) -> None:
    """The LLM is away, for what the plan said."""
    saved = await services.client.orchestration.get_offloaded_llm()
    assert saved is not None
    assert (saved.model_id, saved.config, saved.was_running) == (LLM, before.config, True)
    assert (saved.reason, saved.serving.port) == (plan.explanation, before.port)
    assert saved.phase is OffloadPhase.OFFLOADED


@pytest.mark.parametrize(
    ("together", "whole", "offload"),
    [pytest.param(6 + 5, 8, True, id="8 GB"), pytest.param(6 + 5, 24, False, id="24 GB")],
)
async def test_the_scenarios_with_a_gpu(
    tmp_path: Path,
    demo_models: DemoModels,
    monkeypatch: pytest.MonkeyPatch,
    together: int,
    whole: int,
    offload: bool,
) -> None:
    config, need = replace(SMALL, gpu_layers=2), on_gpu()
    machine = Card(tmp_path / "large", 24 * GIB).machine
    monkeypatch.setattr(resource, "this_machine", lambda: machine)
    async with house(tmp_path / "needs", demo_models.llm, demo_models.diffusion) as services:
        llm_need = (await services.client.system.check_model(LLM, llm_config=config)).need
        image_vram = (await services.client.orchestration.plan_image_generation(need)).vram_bytes
    llm_vram = llm_need.vram.total_bytes
    total = (llm_vram + image_vram) * whole // together

    card = Card(tmp_path / "card", total)
    monkeypatch.setattr(resource, "this_machine", lambda: card.machine)
    async with house(
        tmp_path / "data", demo_models.llm, demo_models.diffusion, llm={"engine_command": list(GPU_ENGINE)}
    ) as services:
        driver = asyncio.create_task(card.follow(services.client, llm_vram))
        llm = await services.start_llm(config=config)
        (lease,) = (await services.client.orchestration.list_leases()).leases
        assert (lease.tenant_id, lease.vram_bytes) == (LLM, llm_vram)

        plan = await services.client.orchestration.plan_image_generation(need)
        leaving = Departure(LLM, TenantKind.LLM, LLM, lease.ram_bytes, llm_vram, "")
        check_plan(plan, leaving, MemoryKind.VRAM, total, offload=offload)
        assert await services.client.llm.get() == llm
        assert (await services.client.orchestration.list_leases()).leases == (lease,)

        async with services.tenant(need) as tenant:
            assert (tenant.granted.vram_bytes, tenant.granted.ram_bytes) == (plan.vram_bytes, plan.ram_bytes)
            assert tenant.granted.placement == plan.placement
            if offload:
                assert tenant.seen[-2].state is LeaseState.WAITING
                assert tenant.seen[-2].reason == plan.explanation
                await check_saved(services, plan, llm)
                back = await tenant.wanted_back()
                assert back.reclaim_after_seconds == RELOAD_DELAY
                assert "is unloaded" in back.reason
            else:
                await services.untouched(llm)
                sizes = await services.client.orchestration.list_leases()
                assert sizes.granted_vram_bytes == llm_vram + plan.vram_bytes <= 0.75 * sizes.total_vram_bytes
        if offload:
            assert (await chat(await services.back(llm)))[0] == 200
        driver.cancel()
        await asyncio.wait([driver])


async def test_the_scenario_without_a_gpu(tmp_path: Path, demo_models: DemoModels) -> None:
    async with house(tmp_path / "needs", demo_models.llm, demo_models.diffusion) as services:
        llm_ram = (await services.client.system.check_model(LLM, llm_config=SMALL)).required_bytes
        image_ram = (await services.client.orchestration.plan_image_generation(IMAGE)).ram_bytes
    total = (llm_ram + image_ram) * 16 // (8 + 6)
    async with house(
        tmp_path / "data", demo_models.llm, demo_models.diffusion, memory={"ram_limit_bytes": total}
    ) as services:
        llm = await services.start_llm()
        (lease,) = (await services.client.orchestration.list_leases()).leases
        plan = await services.client.orchestration.plan_image_generation(IMAGE)
        check_plan(
            plan,
            Departure(LLM, TenantKind.LLM, LLM, lease.ram_bytes, 0, ""),
            MemoryKind.RAM,
            total,
            offload=True,
        )
        await services.untouched(llm)
        assert (await services.client.orchestration.list_leases()).leases == (lease,)

        created = await services.client.images.create(TINY)
        await diffusing(services, created.id)
        await check_saved(services, plan, llm)
        away = await services.client.llm.get()
        assert (away.state, away.offloaded, away.pid) == (ServerState.STOPPED, True, None)
        (held, waiting) = (await services.client.orchestration.list_leases()).leases
        assert (held.kind, held.model_id, held.ram_bytes) == (TenantKind.IMAGE, DIFFUSION, plan.ram_bytes)
        assert (waiting.tenant_id, waiting.state) == (LLM, LeaseState.WAITING)

        done = await services.finished(created.id)
        assert done.state is GenerationState.COMPLETE, done.error
        back = await services.back(llm)
        assert (await chat(back))[0] == 200
        assert (await services.client.engine.get()).state is ServerState.STOPPED


# --- everything is orchestrated


async def by_a_batch(services: House) -> None:
    done = await services.draw(replace(TINY, count=3))
    assert done.state is GenerationState.COMPLETE, done.error
    assert len(done.images) == 3


async def by_one_call(services: House) -> None:
    parts = [part async for part in services.client.images.stream(TINY)]
    (picture,) = [part for part in parts if isinstance(part, Image)]
    assert picture.data.startswith(b"\x89PNG")


async def by_the_command_line(services: House) -> None:
    file = services.llm.data_dir / "cat.png"
    words = ("generate", "a cat", "--size", "64x64", "--steps", "2", "-o", str(file), "--image", services.image_address)
    done = await asyncio.to_thread(genaid, *words)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("way", [by_a_batch, by_one_call, by_the_command_line])
async def test_every_way_to_an_image_offloads_once_and_reloads(
    tmp_path: Path, demo_models: DemoModels, way: Callable[[House], Awaitable[None]]
) -> None:
    memory = await scarce(tmp_path, demo_models)
    async with house(tmp_path / "data", demo_models.llm, demo_models.diffusion, memory=memory) as services:
        llm = await services.start_llm()
        assert (await services.client.orchestration.plan_image_generation(IMAGE)).would_need_offload
        await way(services)
        assert (await chat(await services.back(llm)))[0] == 200


async def test_starting_the_image_engine_does_not_cost_the_llm_its_place(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    memory = await scarce(tmp_path, demo_models)
    async with house(tmp_path / "data", demo_models.llm, demo_models.diffusion, memory=memory) as services:
        llm = await services.start_llm()
        engine = await services.client.engine.start(DIFFUSION, threads=1)
        assert (engine.state, engine.model_id, engine.accepting) == (ServerState.STOPPED, DIFFUSION, True)
        await services.untouched(llm)
        assert (await services.draw()).state is GenerationState.COMPLETE
        assert (await services.client.engine.get()).threads == 1
        await services.back(llm)


async def test_where_memory_is_short_an_image_is_decoded_in_tiles(tmp_path: Path, demo_models: DemoModels) -> None:
    large = replace(IMAGE, width=512, height=512, vae_tiling=True)
    memory = await scarce(tmp_path, demo_models, large)
    async with house(tmp_path / "data", demo_models.diffusion, memory=memory) as services:
        created = await services.client.images.create(replace(TINY, width=512, height=512))
        await diffusing(services, created.id)
        assert (await services.client.engine.get()).options.vae_tiling
        await services.client.images.cancel(created.id)


async def test_images_that_follow_each_other_share_one_absence_of_the_llm(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    memory, llm_settings = await scarce(tmp_path, demo_models), {"reload_delay_seconds": LASTING}
    async with house(
        tmp_path / "data", demo_models.llm, demo_models.diffusion, memory=memory, llm=llm_settings
    ) as services:
        await services.start_llm()
        pids, absences = set(), set()
        for _ in range(3):
            done = await services.draw()
            assert done.state is GenerationState.COMPLETE, done.error
            pids.add((await services.client.engine.get()).pid)
            saved = await services.client.orchestration.get_offloaded_llm()
            assert saved is not None
            absences.add(saved.save_time)
        assert len(pids - {None}) == len(pids) == len(absences) == 1
        away = await services.client.llm.get()
        assert (away.state, away.offloaded, away.generation) == (ServerState.STOPPED, True, 1)


# --- ample memory


async def test_ample_memory_is_shared_by_both(tmp_path: Path, demo_models: DemoModels) -> None:
    async with house(tmp_path, demo_models.llm, demo_models.diffusion) as services:
        llm = await services.start_llm()
        assert not (await services.client.orchestration.plan_image_generation(IMAGE)).would_need_offload
        engines, sizes = [], []
        for edge in (64, 128):
            done = await services.draw(replace(TINY, width=edge, height=edge))
            assert done.state is GenerationState.COMPLETE, done.error
            engines.append(await services.client.engine.get())
            sizes += [lease.ram_bytes for lease in await image_leases(services)]
        assert {engine.state for engine in engines} == {ServerState.RUNNING}
        assert len({engine.pid for engine in engines}) == 1
        assert sizes[0] < sizes[1]
        await services.untouched(llm)


async def image_leases(services: House) -> list[Lease]:
    """The leases of the image engine."""
    leases = (await services.client.orchestration.list_leases()).leases
    return [lease for lease in leases if lease.kind is TenantKind.IMAGE]


# --- what can never fit


def check_refusal(metadata: Mapping[str, str], limit: int) -> None:
    """The facts of a refusal."""
    assert int(metadata["required"]) > limit >= int(metadata["available"])
    assert metadata["suggestion"]


async def test_an_image_that_can_never_fit_costs_the_llm_nothing(tmp_path: Path, demo_models: DemoModels) -> None:
    memory = await scarce(tmp_path, demo_models)
    limit = memory["ram_limit_bytes"]
    async with house(tmp_path / "data", demo_models.llm, demo_models.diffusion, memory=memory) as services:
        llm = await services.start_llm()
        plan = await services.client.orchestration.plan_image_generation(NEVER_NEED)
        assert (plan.possible, plan.would_need_offload, plan.departures, plan.placement) == (False, False, (), None)
        assert plan.required_bytes > plan.total_bytes == limit
        assert plan.suggestion

        with pytest.raises(InsufficientResourcesError) as refused:
            async with services.tenant(NEVER_NEED):
                pass
        check_refusal(refused.value.metadata, limit)
        done = await services.draw(NEVER)
        assert done.state is GenerationState.ERROR
        assert done.error is not None
        assert done.error.code == "INSUFFICIENT_RESOURCES"
        assert words(limit) in done.error.message
        await services.untouched(llm)

        assert (await services.draw()).state is GenerationState.COMPLETE
        await services.back(llm)


async def test_a_model_that_can_never_fit_is_not_started(tmp_path: Path, demo_models: DemoModels) -> None:
    limit = await needed(tmp_path / "needs", demo_models.diffusion) // 2
    memory = {"ram_limit_bytes": limit}
    async with house(tmp_path / "data", demo_models.llm, demo_models.diffusion, memory=memory) as services:
        llm = await services.start_llm()
        with pytest.raises(InsufficientResourcesError) as refused:
            await services.client.engine.start(DIFFUSION)
        check_refusal(refused.value.metadata, limit)
        await services.untouched(llm)


async def test_the_one_call_form_says_why_it_does_not_fit(tmp_path: Path, demo_models: DemoModels) -> None:
    memory = await scarce(tmp_path, demo_models)
    async with house(tmp_path / "data", demo_models.diffusion, memory=memory) as services:
        with pytest.raises(InsufficientResourcesError, match="Insufficient RAM"):
            async for _ in services.client.images.stream(NEVER):
                pass


async def test_an_llm_that_can_never_fit_costs_the_image_engine_nothing(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    memory = await scarce(tmp_path, demo_models)
    long = write_llm(tmp_path / "long.gguf", context_length=131_072)
    huge = LlmConfig(context_size=131_072, parallel_requests=8, threads=1)
    async with house(tmp_path / "data", long, demo_models.llm, demo_models.diffusion, memory=memory) as services:
        assert (await services.draw()).state is GenerationState.COMPLETE
        engine = await services.client.engine.get()
        with pytest.raises(InsufficientResourcesError) as refused:
            await services.start_llm("long", huge)
        check_refusal(refused.value.metadata, memory["ram_limit_bytes"])
        assert await services.client.engine.get() == engine
        assert (await services.client.llm.get()).generation == 0

        assert (await services.draw()).state is GenerationState.COMPLETE
        assert (await services.client.engine.get()).pid == engine.pid


# --- an image engine in the LLM's way


async def test_an_idle_image_engine_is_unloaded_for_an_llm(tmp_path: Path, demo_models: DemoModels) -> None:
    memory, for_ever = await scarce(tmp_path, demo_models), {"keep_alive_seconds": -1}
    async with house(
        tmp_path / "data", demo_models.llm, demo_models.diffusion, memory=memory, image_settings=for_ever
    ) as services:
        assert (await services.draw()).state is GenerationState.COMPLETE
        assert (await services.client.engine.get()).state is ServerState.RUNNING
        llm = await services.start_llm()
        assert llm.state is ServerState.RUNNING
        engine = await services.client.engine.get()
        assert (engine.state, engine.last_event, engine.pid) == (ServerState.STOPPED, EngineEvent.UNLOADED, None)
        assert (await chat(llm))[0] == 200


async def test_an_llm_waits_for_the_image_that_is_being_made(tmp_path: Path, demo_models: DemoModels) -> None:
    memory = await scarce(tmp_path, demo_models)
    async with house(tmp_path / "data", demo_models.llm, demo_models.diffusion, memory=memory) as services:
        created = await services.client.images.create(replace(TINY, steps=30))
        await diffusing(services, created.id)
        starting = asyncio.create_task(services.start_llm())

        async def wanted_back() -> bool:
            return [lease.state for lease in await image_leases(services)] == [LeaseState.RECLAIM]

        await until(wanted_back)
        assert not (await services.client.images.get(created.id)).state.terminal
        assert not starting.done()
        done = await services.finished(created.id)
        assert done.state is GenerationState.COMPLETE, done.error
        llm = await starting
        assert llm.start_time is not None
        assert llm.start_time > done.update_time
        assert (llm.state, llm.generation) == (ServerState.RUNNING, 1)


# --- a budget of VRAM


async def test_a_budget_of_vram_is_no_matter_to_an_engine_without_a_gpu(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    async with house(tmp_path, demo_models.diffusion) as services:
        engine = await services.client.engine.start(DIFFUSION, options=EngineOptions(max_vram_bytes=64 * MIB))
        assert (engine.state, engine.variant) == (ServerState.RUNNING, "cpu")
        assert (await services.draw()).state is GenerationState.COMPLETE
        assert (await services.client.engine.get()).pid == engine.pid


@pytest.mark.parametrize("configured", [False, True])
async def test_the_placement_follows_from_the_budget_of_vram(
    tmp_path: Path, demo_models: DemoModels, monkeypatch: pytest.MonkeyPatch, configured: bool
) -> None:
    card = Card(tmp_path / "card", 24 * GIB)
    monkeypatch.setattr(resource, "this_machine", lambda: card.machine)

    async def planned(budget: int) -> ImagePlan:
        limit = {"vram_limit_bytes": budget} if configured else {}
        need = on_gpu() if configured else on_gpu(max_vram_bytes=budget)
        async with house(tmp_path / str(budget), demo_models.diffusion, memory=limit) as services:
            plan = await services.client.orchestration.plan_image_generation(need)
            async with services.tenant(need) as tenant:
                assert tenant.granted.placement == plan.placement
        return plan

    ample = await planned(12 * GIB)
    assert ample.placement is not None
    assert not ample.placement.offload_to_cpu
    assert ample.placement.max_vram_bytes == 12 * GIB
    assert ample.placement.reason == ""

    short = await planned(ample.vram_bytes - MIB)
    assert short.placement is not None
    assert short.placement.offload_to_cpu
    assert short.placement.max_vram_bytes == ample.vram_bytes - MIB
    assert short.vram_bytes < ample.vram_bytes
    assert short.ram_bytes > ample.ram_bytes
    assert words(ample.vram_bytes) in short.placement.reason
