"""kill -9 of every process at every step of offload, image and reload: the LLM comes back as it was, images go on."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from conftest import DemoModels
from fakes.gateway import until
from genaid_client import Generation, GenerationSpec, GenerationState, Llm, NotFoundError, ServerState, Stage
from llm_service import ask
from sharing import LLM, House, house, scarce
from support import RunningGenaid, running_genaid
from three_services import LONG, RELOAD_DELAY, SHORT, Part, ThreeServices, clients, gone, install, three_services

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death by a signal"
)


class Victim(StrEnum):
    """Who is killed."""

    MANAGER = "manager"
    WORKER = "worker"
    GATEWAY = "gateway"
    LLM = "LLM engine"
    IMAGE = "image engine"


class Step(StrEnum):
    """What is going on at that moment."""

    DRAINING = "draining"
    LOADING = "loading"
    DIFFUSING = "diffusing"
    COMPLETE = "complete"
    RELOADING = "reloading"
    BACK = "back"


SERVICES: Final = {Victim.MANAGER: Part.MANAGER, Victim.WORKER: Part.WORKER, Victim.GATEWAY: Part.GATEWAY}
# In turn on the way out and on the way back, which begins with a whole image: it shows what was overcome before.
ALL: Final = (Step.DRAINING, Step.COMPLETE, Step.LOADING, Step.RELOADING, Step.DIFFUSING, Step.BACK)
BACK_WITHIN: Final = 15.0  # seconds; the promise itself, not an expectation of the machine
CUT_OFF: Final = {Victim.GATEWAY: {0}, Victim.MANAGER: {200, 503}}
"""What callers of the gateway get whose chat is cut off; to the others it is answered."""


@dataclass
class Scene:
    """A generation at a step, the chat of somebody who does not know of it, and the engines that are there."""

    generation: Generation
    chat: "asyncio.Task[tuple[int, Any]] | None" = None
    pids: dict[Victim, int | None] = field(default_factory=dict)


async def reach(services: ThreeServices, step: Step, spec: GenerationSpec | None = None) -> Scene:
    """Ask for an image, a short one where that does, and return in the midst of a step."""
    chat = await chatting(services) if step is Step.DRAINING else None
    created = await services.client.images.create(spec or (LONG if step is Step.DIFFUSING else SHORT))
    scene = Scene(created, chat)
    if step is Step.DRAINING:
        llm = await services.llm(lambda now: now.offloaded and now.state is ServerState.RUNNING)
        scene.pids[Victim.LLM] = llm.pid
        return scene
    engine = await services.engine(lambda now: now.state is not ServerState.STOPPED and now.pid is not None)
    scene.pids[Victim.IMAGE] = engine.pid
    if step is Step.LOADING:
        assert engine.state is ServerState.STARTING
    elif step is Step.DIFFUSING:
        await services.generation(created.id, diffuses)
    else:
        assert complete(await services.finished(created.id))
        if step is Step.RELOADING:
            llm = await services.llm(lambda now: now.state is ServerState.STARTING and now.pid is not None)
            assert llm.offloaded
            scene.pids[Victim.LLM] = llm.pid
        elif step is Step.BACK:
            scene.pids[Victim.LLM] = (await services.back()).pid
    return scene


async def chatting(services: ThreeServices) -> "asyncio.Task[tuple[int, Any]]":
    """A chat that the LLM is at work on."""
    llm = await services.client.llm.get()
    chat = asyncio.create_task(services.chat())

    async def at_work() -> bool:
        return any(slot["is_processing"] for slot in (await ask(llm, "GET", "/slots"))[1])

    await until(at_work)
    return chat


def diffuses(generation: Generation) -> bool:
    progress = generation.progress
    return progress is not None and progress.stage is Stage.DIFFUSION and progress.current_step >= 1


def complete(generation: Generation) -> bool:
    assert generation.error is None
    return generation.state is GenerationState.COMPLETE


async def strike(services: ThreeServices, victim: Victim, pid: int | None) -> None:
    """Kill; a service is started again at once."""
    if victim in SERVICES:
        await services.kill(SERVICES[victim])
    else:
        engine = psutil.Process(pid)
        engine.kill()
        await gone([engine])


async def assert_overcome(services: ThreeServices, scene: Scene, victim: Victim, before: Llm) -> None:
    """The LLM is back as it was, and the generation and the chat have an end."""
    async with asyncio.timeout(BACK_WITHIN):
        llm = await services.back(scene.pids.get(Victim.LLM) if victim is Victim.LLM else None)
    assert (llm.model_id, llm.config, llm.serving, llm.port) == (
        before.model_id,
        before.config,
        before.serving,
        before.port,
    )
    assert await services.client.orchestration.get_offloaded_llm() is None
    await gone(services.seen)
    if victim in SERVICES:
        await services.ready(SERVICES[victim])
    assert (await ask(llm, "GET", "/health"))[0] == 200
    await assert_ended(services, scene.generation, victim)
    if scene.chat is not None:
        status, _ = await scene.chat
        assert status in CUT_OFF.get(victim, {200})


async def assert_ended(services: ThreeServices, generation: Generation, victim: Victim) -> None:
    try:
        end = await services.finished(generation.id)
    except NotFoundError:
        assert victim is Victim.WORKER  # which keeps them in memory
    else:
        assert end.state in {GenerationState.COMPLETE, GenerationState.ERROR}
        assert end.state is GenerationState.COMPLETE or victim not in {Victim.GATEWAY, Victim.LLM}


CASES: Final = {
    Victim.MANAGER: ALL,
    Victim.WORKER: ALL,
    Victim.LLM: (Step.DRAINING, Step.RELOADING, Step.BACK),
    Victim.IMAGE: (Step.LOADING, Step.COMPLETE, Step.DIFFUSING),
}
"""An engine can be killed only when it has a process."""


@pytest.mark.long
@pytest.mark.parametrize("victim", CASES)
async def test_kill_9_at_every_step(tmp_path: Path, demo_models: DemoModels, victim: Victim) -> None:
    async with three_services(tmp_path, demo_models) as services:
        before = await services.start_llm()
        for step in CASES[victim]:
            scene = await reach(services, step)
            await strike(services, victim, scene.pids.get(victim))
            await assert_overcome(services, scene, victim, before)
        assert complete(await services.draw())
        assert (await services.chat(max_tokens=4))[0] == 200


@pytest.mark.long
async def test_kill_9_of_the_gateway_at_every_step(tmp_path: Path, demo_models: DemoModels) -> None:
    """Neither engine depends on it, so it is killed again and again while one image is made."""
    async with three_services(tmp_path, demo_models) as services:
        before = await services.start_llm()
        scene = await reach(services, Step.DRAINING, LONG)
        await strike(services, Victim.GATEWAY, None)
        await services.engine(lambda now: now.state is ServerState.STARTING and now.pid is not None)
        await strike(services, Victim.GATEWAY, None)
        await services.generation(scene.generation.id, diffuses)
        await strike(services, Victim.GATEWAY, None)
        assert complete(await services.finished(scene.generation.id))
        await strike(services, Victim.GATEWAY, None)
        await services.llm(lambda now: now.state is ServerState.STARTING and now.pid is not None)
        await strike(services, Victim.GATEWAY, None)
        await services.back()
        await strike(services, Victim.GATEWAY, None)
        await assert_overcome(services, scene, Victim.GATEWAY, before)
        assert complete(await services.draw())
        assert (await services.chat(max_tokens=4))[0] == 200


# --- what the user wants, in the middle of an image; test_llm_offload.py has the same without an image engine


async def drawing(services: House) -> tuple[Llm, Generation]:
    """An image that is being drawn, for which the LLM was offloaded."""
    llm = await services.start_llm()
    created = await services.client.images.create(LONG)
    await services.reached(created.id, diffuses)
    assert (await services.client.llm.get()).offloaded
    return llm, created


async def assert_stays_stopped(services: House, before: Llm, generation: Generation) -> None:
    """The image is made, and nobody asks for memory for the LLM any more."""
    assert complete(await services.finished(generation.id))
    llm = await services.client.llm.get()
    assert (llm.state, llm.offloaded, llm.generation) == (ServerState.STOPPED, False, before.generation)
    assert await services.client.orchestration.get_offloaded_llm() is None
    assert LLM not in [lease.tenant_id for lease in (await services.client.orchestration.list_leases()).leases]
    assert complete(await services.draw())
    again = await services.start_llm()
    assert (again.state, again.generation) == (ServerState.RUNNING, before.generation + 1)


@pytest.mark.long
async def test_an_llm_that_is_stopped_during_an_image_stays_stopped(tmp_path: Path, demo_models: DemoModels) -> None:
    memory = await scarce(tmp_path, demo_models)
    async with house(tmp_path / "data", demo_models.llm, demo_models.diffusion, memory=memory) as services:
        before, generation = await drawing(services)
        stopped = await services.client.llm.stop()
        assert (stopped.state, stopped.offloaded) == (ServerState.STOPPED, False)
        assert not await services.client.orchestration.forget_offloaded_llm()
        await assert_stays_stopped(services, before, generation)


@pytest.mark.long
async def test_an_llm_that_is_forgotten_during_an_image_stays_stopped(tmp_path: Path, demo_models: DemoModels) -> None:
    memory = await scarce(tmp_path, demo_models)
    async with house(tmp_path / "data", demo_models.llm, demo_models.diffusion, memory=memory) as services:
        before, generation = await drawing(services)
        assert await services.client.orchestration.forget_offloaded_llm()
        assert not await services.client.orchestration.forget_offloaded_llm()
        await assert_stays_stopped(services, before, generation)


# --- everything in one process


@asynccontextmanager
async def up(tmp_path: Path, models: DemoModels, **llm: object) -> AsyncIterator[tuple[RunningGenaid, ThreeServices]]:
    """A `genaid up` where memory is scarce; `llm` are settings of that section."""
    settings = {"llm__port": 0, "llm__reload_delay_seconds": RELOAD_DELAY, **{f"llm__{key}": llm[key] for key in llm}}
    settings |= {f"memory__{name}": value for name, value in (await scarce(tmp_path, models)).items()}
    environment = {f"GENAID_{name.upper()}": str(value) for name, value in settings.items()}
    with running_genaid(tmp_path / "data", env=environment) as running:
        addresses = {name: running.ready[name] for name in ("image", "resource", "http")}
        async with clients(**addresses) as services:
            yield running, services


async def test_after_kill_9_in_mid_offload_the_llm_comes_back(tmp_path: Path, demo_models: DemoModels) -> None:
    async with up(tmp_path, demo_models) as (running, services):
        await install(services.client, running.data_dir, demo_models)
        before = await services.start_llm()
        await reach(services, Step.DIFFUSING)
        engines = running.descendants()
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        await gone(engines)
    async with up(tmp_path, demo_models) as (_, services):
        after = await services.back()
        assert (after.model_id, after.config, after.port) == (before.model_id, before.config, before.port)
        assert complete(await services.draw())


# Without a delay the LLM would come back as soon as the image engine is gone.
@pytest.mark.parametrize(("step", "delay"), [(Step.DIFFUSING, 0), (Step.COMPLETE, RELOAD_DELAY)])
async def test_a_shutdown_in_mid_offload_does_not_start_the_llm_again(
    tmp_path: Path, demo_models: DemoModels, step: Step, delay: float
) -> None:
    async with up(tmp_path, demo_models, reload_delay_seconds=delay) as (running, services):
        await install(services.client, running.data_dir, demo_models)
        await services.start_llm()
        await reach(services, step)
        assert (running.data_dir / "llm.json").exists()
        engines = running.descendants()
        assert await asyncio.to_thread(running.stop) == 0
        await gone(engines)
    log = (running.data_dir / "logs" / "llm-engine.log").read_text("utf-8")
    assert log.count(f"starting with {LLM}") == 1
    assert not (running.data_dir / "llm.json").exists()
