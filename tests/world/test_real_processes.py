"""Commands against commands over gRPC, on real engines: whatever is asked for, all of it comes to rest as it should."""

import asyncio
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from conftest import DemoModels
from sharing import scarce
from worker import children
from world.real_stage import real_stage
from world.real_world import ACTIONS, RealWorld

SEEDS: Final = (1, 2)
"""A scene each, at the same time: an engine of one thread leaves a core alone."""
RUNS: Final = 25


async def runs(folder: Path, models: DemoModels, memory: dict[str, int], seed: int) -> "Counter[str]":
    async with real_stage(folder / str(seed), models, memory) as stage:
        world = RealWorld(stage, random.Random(seed))
        for number in range(RUNS):
            try:
                await world.run()
            except Exception as error:
                error.add_note(f"in run {number} of seed {seed}")
                raise
        return world.tally


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.timeout(900)
async def test_fifty_runs(tmp_path: Path, demo_models: DemoModels) -> None:
    memory = await scarce(tmp_path, demo_models)
    async with asyncio.TaskGroup() as houses:
        done = [houses.create_task(runs(tmp_path, demo_models, memory, seed)) for seed in SEEDS]
    tally: Counter[str] = sum((scene.result() for scene in done), Counter())
    assert min(tally[action] for action in ACTIONS) > 0
    assert children() == []
