"""Work that several callers share."""

import asyncio
import logging

import pytest

from genaid_client import NotFoundError
from genaid_server.gateway.http.single_flight import SingleFlight


async def test_callers_share_one_run() -> None:
    flight, gate, runs = SingleFlight(), asyncio.Event(), []

    async def work() -> int:
        runs.append(1)
        await gate.wait()
        return 7

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(flight.share("key", work)) for _ in range(5)]
        await asyncio.sleep(0)
        gate.set()
    assert [caller.result() for caller in callers] == [7] * 5
    assert len(runs) == 1


async def test_work_runs_anew_after_it_has_ended() -> None:
    flight, runs = SingleFlight(), []

    async def work() -> None:
        runs.append(1)

    await flight.share("key", work)
    await flight.share("key", work)
    assert len(runs) == 2


async def test_a_caller_that_leaves_does_not_stop_the_work() -> None:
    flight, gate, done = SingleFlight(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        done.set()

    caller = asyncio.create_task(flight.share("key", work))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()
    await done.wait()


async def test_every_caller_gets_the_error() -> None:
    flight = SingleFlight()

    async def work() -> None:
        await asyncio.sleep(0)
        raise NotFoundError("gone")

    results = await asyncio.gather(*(flight.share("key", work) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [NotFoundError] * 3


async def test_an_unexpected_error_that_nobody_awaits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    flight = SingleFlight()

    async def work() -> None:
        raise KeyError("bug")

    with caplog.at_level(logging.ERROR):
        task = flight.start("key", work)
        await asyncio.wait((task,))
        await asyncio.sleep(0)
    assert "failed unexpectedly" in caplog.text


async def test_close_ends_what_is_in_flight() -> None:
    flight, ended = SingleFlight(), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    flight.start("a", work)
    flight.start("b", work)
    await asyncio.sleep(0)
    await flight.close()
    assert ended == [1, 1]
