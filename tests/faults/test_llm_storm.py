"""Many callers who want different things of one LLM engine at once: nobody waits for ever, and nothing is left over."""

import asyncio
import contextlib
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conftest import DemoModels
from genaid_client import HealthState, Llm, LlmConfig, ServerError, ServerState
from llm_service import LlmService, ask, engines, fake_program, llm_service
from worker import children

CLIENTS = 8
LONGEST_PAUSE = 0.6  # seconds between two calls of a client
LONGEST = 60.0  # seconds in which every call must have ended, one way or another

OPTIONS = (
    LlmConfig(threads=1, context_size=256, parallel_requests=1),
    LlmConfig(threads=1, context_size=512, parallel_requests=2),
)


@dataclass
class Tally:
    """What became of the calls."""

    done: "Counter[str]" = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)


async def storm(service: LlmService, calls: int, seed: int) -> Tally:
    """Eight clients, each with so many calls one after the other; what each does is decided by the seed."""
    tally = Tally()

    async def client(number: int) -> None:
        dice = random.Random(f"{seed}/{number}")
        for _ in range(calls):
            await asyncio.sleep(dice.random() ** 2 * LONGEST_PAUSE)  # the moments are the test
            await one_call(service, dice, tally)

    async with asyncio.timeout(LONGEST):
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return tally


async def one_call(service: LlmService, dice: random.Random, tally: Tally) -> None:
    options = dice.choice(OPTIONS)
    kind = dice.choices(("start", "leave", "stop", "restart", "look"), (6, 2, 3, 2, 1))[0]
    try:
        match kind:
            case "start":
                llm = await service.client.llm.start("llm", config=options, replace=True)
                assert llm.model_id == "llm"
            case "leave":
                call = asyncio.create_task(service.client.llm.start("llm", config=options, replace=True))
                await asyncio.wait([call], timeout=dice.random() * 0.1)
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call
            case "stop":
                await service.client.llm.stop()
            case "restart":
                await service.client.llm.restart()
            case "look":
                await service.client.llm.get()
    except ServerError as error:  # stopped or replaced by somebody else, or never started
        tally.refused.append(error.message)
    else:
        tally.done[kind] += 1


async def assert_true(service: LlmService) -> None:
    """What GetLlm says is what the process table says."""
    llm = await service.client.llm.get()
    if llm.state is ServerState.RUNNING:
        assert engines() == [llm.pid]
        assert llm.health is HealthState.OK
        assert (await ask(llm, "GET", "/health"))[0] == 200
    else:
        assert (llm.state, llm.pid, engines()) == (ServerState.STOPPED, None, [])


async def settled(service: LlmService) -> Llm:
    """The engine once nobody does anything with it any more: a start whose caller has left may still be under way."""
    return await service.until(lambda llm: llm.state in (ServerState.RUNNING, ServerState.STOPPED))


async def weather(service: LlmService, calls: int, seed: int) -> Tally:
    tally = await storm(service, calls, seed)
    allowed = (
        "The LLM engine was stopped.",
        "The LLM engine has never been started.",
        "Another start of the LLM engine has taken the place of this one.",
    )
    assert all(message.startswith(allowed) for message in tally.refused), tally.refused
    assert sum(tally.done.values()) + len(tally.refused) == CLIENTS * calls
    await settled(service)
    await assert_true(service)
    llm = await service.client.llm.start("llm", config=OPTIONS[0], replace=True)
    assert (llm.config, llm.state) == (
        (await service.client.llm.get()).config,
        ServerState.RUNNING,
    )
    assert llm.config is not None
    assert llm.config.context_size == OPTIONS[0].context_size
    await assert_true(service)
    await service.client.llm.stop()
    await assert_true(service)
    return tally


@pytest.mark.skipif(sys.platform == "win32", reason="the fake program is started by a shell script")
@pytest.mark.parametrize("calls", [5, pytest.param(25, marks=pytest.mark.long)])
async def test_many_calls_with_a_fake_engine(tmp_path: Path, demo_models: DemoModels, calls: int) -> None:
    program = fake_program(tmp_path)
    async with llm_service(tmp_path / "data", demo_models.llm, program=program.name) as service:
        tally = await weather(service, calls=calls, seed=1)
    assert tally.done["start"] > 0 or calls < 25  # of a few, each may be overtaken by the next
    assert children() == []


@pytest.mark.parametrize("seed", [2, 3])
async def test_forty_calls_with_the_real_engine(tmp_path: Path, demo_models: DemoModels, seed: int) -> None:
    async with llm_service(tmp_path, demo_models.llm) as service:
        await weather(service, calls=5, seed=seed)
    assert children() == []


async def test_a_storm_that_ends_with_the_service(tmp_path: Path, demo_models: DemoModels) -> None:
    async with llm_service(tmp_path, demo_models.llm) as service:
        raging = asyncio.create_task(storm(service, 1000, seed=4))
        await service.serving(generation=3)
    await asyncio.wait([raging], timeout=LONGEST)
    assert raging.done()
    assert raging.exception() is not None  # what it asked a service that is gone
    assert children() == []
