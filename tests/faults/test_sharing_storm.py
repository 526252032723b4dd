"""Everybody at once where memory is scarce: what is granted never exceeds the budget, and all of it comes to rest."""

import asyncio
import contextlib
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from conftest import DemoModels
from genaid_client import (
    AlreadyTerminalError,
    Generation,
    GenerationSpec,
    GenerationState,
    LeaseState,
    Llm,
    LlmConfig,
    ServerBusyError,
    ServerError,
    ServerState,
)
from genaid_server.supervision.notes import running
from llm_service import PATIENCE, chat
from sharing import LLM, House, house, scarce
from worker import children

INTERLEAVINGS: Final = 25
A_FEW: Final = 3
SEEDS: Final = (1, 2)
"""A house each, at the same time: an engine of one thread leaves a core alone."""
LONGEST_PAUSE: Final = 0.3  # seconds between two actions
CLOSELY: Final = 4
"""After so many interleavings each engine is asked for something; images and starts are among the others anyway."""
CONFIGS: Final = (
    LlmConfig(threads=1, context_size=256, parallel_requests=1),
    LlmConfig(threads=1, context_size=512, parallel_requests=2),
)
IMAGE: Final = GenerationSpec("a tiny cat", width=64, height=64, steps=1, seed=1, cfg_scale=1)
ACTIONS: Final = {
    "start": 3,
    "desert": 2,
    "stop": 2,
    "generate": 4,
    "cancel": 2,
    "kill llm": 2,
    "kill image": 2,
    "forget": 2,
}
"""How often each, of so many."""
AT_REST: Final = {ServerState.RUNNING, ServerState.STOPPED, ServerState.CRASHED}
# An engine that is killed again and again comes back each time, and at once.
SETTINGS: Final = {"stable_seconds": 0.0, "first_restart_seconds": 0.05, "drain_timeout_seconds": 5.0}


@dataclass
class Storm:
    """Interleavings in one house, one after the other. `wanted` is whether the LLM is to run, None where calls that
    decide about it were under way at the same time, or one failed."""

    services: House
    dice: random.Random
    tally: "Counter[str]" = field(default_factory=Counter)
    wanted: bool | None = False
    deciding: int = 0
    made: list[Generation] = field(default_factory=list)

    async def interleave(self) -> None:
        """Four to six actions, all of them under way at once; returns when all has come to rest."""
        self.made = []
        killed = self.tally["kill image"]
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as calls:
            for _ in range(self.dice.randint(4, 6)):
                (action,) = self.dice.choices(list(ACTIONS), list(ACTIONS.values()))
                chosen = self.dice.choice(CONFIGS), self.dice.randint(1, 3)  # here, where nothing happens meanwhile
                calls.create_task(self._do(action, *chosen), name=action)
                await asyncio.sleep(self.dice.random() ** 2 * LONGEST_PAUSE)  # the moments are the test
        for generation in self.made:
            ended = await self.services.finished(generation.id)
            self.tally[ended.state] += 1
            assert ended.state is not GenerationState.ERROR or self.tally["kill image"] > killed, ended.error
        await self._at_rest()

    async def _at_rest(self) -> None:
        """The LLM runs or is stopped, as it should be."""
        if self.wanted is None:  # whatever came of it, it is no longer on its way
            await self.services.llm.until(lambda now: now.state in AT_REST and not now.offloaded)
            await self._decide("start", CONFIGS[0])
        assert self.wanted is not None
        await self._settled()

    async def look_closely(self) -> None:
        """Both engines work."""
        last = await self.services.draw(IMAGE)
        assert last.state is GenerationState.COMPLETE, last.error
        llm = await self._settled()
        if self.wanted:
            assert (await chat(llm))[0] == 200

    async def _settled(self) -> Llm:
        expected = ServerState.RUNNING if self.wanted else ServerState.STOPPED
        return await self.services.llm.until(lambda now: now.state is expected and not now.offloaded)

    async def _do(self, action: str, config: LlmConfig, steps: int) -> None:
        self.tally[action] += 1
        match action:
            case "start" | "desert" | "stop" | "forget":
                await self._decide(action, config, patience=steps * 0.1)
            case "generate":
                with contextlib.suppress(ServerBusyError):
                    self.made.append(await self.services.client.images.create(replace(IMAGE, steps=steps)))
            case "cancel" if self.made:
                with contextlib.suppress(AlreadyTerminalError):
                    await self.services.client.images.cancel(self.made[-1].id)
            case "kill llm":
                self._kill((await self.services.client.llm.get()).pid)
            case "kill image":
                self._kill((await self.services.client.engine.get()).pid)

    async def _decide(self, action: str, config: LlmConfig, patience: float = PATIENCE) -> None:
        """A call after which it is known whether the LLM is to run, unless there is another meanwhile, or the caller
        leaves after so many seconds of `patience`."""
        self.deciding += 1
        alone, self.wanted, before = self.deciding == 1, None, self.wanted
        manager = self.services.client
        try:
            match action:
                case "start":
                    await manager.llm.start(LLM, config=config, replace=True)
                    after: bool | None = True
                case "desert":
                    after = None
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(patience):
                            await manager.llm.start(LLM, config=config, replace=True)
                case "stop":
                    await manager.llm.stop()
                    after = False
                case _:
                    after = False if await manager.orchestration.forget_offloaded_llm() else before
        except ServerError:  # stopped by another call, or killed while it was loading
            after = None
            self.tally["start failed"] += 1
        self.wanted = after if alone and self.deciding == 1 else None
        self.deciding -= 1

    def _kill(self, pid: int | None) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid is not None and (engine := psutil.Process(pid)).ppid() == os.getpid():
                engine.kill()
                self.tally["killed"] += 1


@asynccontextmanager
async def within_budget(services: House) -> AsyncIterator[None]:
    """Look all the time at what is granted, and at the engines that there are."""

    async def look() -> None:
        while True:
            leases = await services.client.orchestration.list_leases()
            granted = [lease for lease in leases.leases if lease.state is not LeaseState.WAITING]
            assert sum(lease.ram_bytes for lease in granted) == leases.granted_ram_bytes <= leases.total_ram_bytes
            assert sum(lease.vram_bytes for lease in granted) == leases.granted_vram_bytes <= leases.total_vram_bytes
            assert len({lease.tenant_id for lease in granted}) <= 1  # both together are more than may be planned with
            assert len(running(services.llm.data_dir)) <= 1
            await asyncio.sleep(0.03)

    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(look())
        yield
        looking.cancel()


async def weather(
    folder: Path, models: DemoModels, memory: dict[str, int], seed: int, interleavings: int
) -> "Counter[str]":
    async with (
        house(folder / str(seed), models.llm, models.diffusion, memory=memory, llm=SETTINGS) as services,
        within_budget(services),
    ):
        storm = Storm(services, random.Random(seed))
        for number in range(interleavings):
            try:
                await storm.interleave()
                if number % CLOSELY == 0:
                    await storm.look_closely()
            except Exception as error:
                error.add_note(f"in interleaving {number} of seed {seed}: {storm.tally}")
                raise
        return storm.tally


async def storm(folder: Path, models: DemoModels, interleavings: int) -> "Counter[Any]":
    """So many interleavings in each house."""
    memory = await scarce(folder, models)
    async with asyncio.TaskGroup() as houses:
        storms = [houses.create_task(weather(folder, models, memory, seed, interleavings)) for seed in SEEDS]
    assert children() == []
    return sum((each.result() for each in storms), Counter())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
async def test_a_few_interleavings(tmp_path: Path, demo_models: DemoModels) -> None:
    assert await storm(tmp_path, demo_models, A_FEW)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.timeout(400)
async def test_fifty_interleavings(tmp_path: Path, demo_models: DemoModels) -> None:
    tally = await storm(tmp_path, demo_models, INTERLEAVINGS)
    assert min(tally[what] for what in (*ACTIONS, "killed", GenerationState.COMPLETE)) > 0
