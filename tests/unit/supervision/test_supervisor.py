"""One engine at most, every waiter woken, nothing left behind; with scripted lives and with real processes."""

import asyncio
import itertools
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaid_server.kit.errors import BackendError, DomainError, ModelNotFoundError, ServerBusyError, ServerError
from genaid_server.supervision.child import Child, child
from genaid_server.supervision.supervisor import Report, RestartPolicy, ServerState, Snapshot, Supervisor

PROGRAM = Path(__file__).parents[2] / "fakes" / "child_program.py"
AT_ONCE = RestartPolicy(automatic=True, limit=2, first_delay=0, stable_after=1e9)
MUCH_LATER = RestartPolicy(automatic=True, first_delay=3600, max_delay=3600)


class Life:
    """A life that does what the test says: it is a Run."""

    def __init__(self, config: str, pid: int, report: Report) -> None:
        loop = asyncio.get_running_loop()
        self.config, self.pid, self.report = config, pid, report
        self.loaded: asyncio.Future[None] = loop.create_future()
        self.died: asyncio.Future[str] = loop.create_future()
        self.over = False

    async def ready(self) -> None:
        await asyncio.shield(self.loaded)

    async def exited(self) -> str:
        return await asyncio.shield(self.died)


class Factory:
    """Launches lives, and knows how many were there at the same time."""

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self.refusal: BaseException | None = None
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.closing = asyncio.Event()
        self.at_once = 0
        self._begun = asyncio.Event()

    @property
    def alive(self) -> list[Life]:
        return [life for life in self.lives if not life.over]

    @asynccontextmanager
    async def launch(self, config: str, report: Report) -> AsyncIterator[Life]:
        if self.refusal is not None:
            raise self.refusal
        life = Life(config, 1000 + len(self.lives), report)
        self.lives.append(life)
        self.at_once = max(self.at_once, len(self.alive))
        self._begun.set()
        try:
            yield life
        finally:
            self.closing.set()
            await self.may_close.wait()
            life.over = True

    async def life(self, number: int) -> Life:
        """The life of that number, from 0, once it has begun."""
        while len(self.lives) <= number:
            self._begun.clear()
            await self._begun.wait()
        return self.lives[number]


type Engine = Supervisor[str, Life]


@pytest.fixture
def factory() -> Factory:
    return Factory()


@pytest.fixture
async def engine(factory: Factory) -> AsyncIterator[Engine]:
    async with Supervisor("engine", factory.launch) as supervisor:
        yield supervisor
    assert factory.at_once <= 1
    assert factory.alive == []


async def until(engine: Supervisor[str, Life], condition: Callable[[Snapshot[str]], bool]) -> Snapshot[str]:
    async for snapshot in engine.snapshot.watch():
        if condition(snapshot):
            return snapshot
    raise AssertionError("the watch ended before")


async def until_state(engine: Engine, state: ServerState) -> Snapshot[str]:
    return await until(engine, lambda snapshot: snapshot.state is state)


async def turns(number: int = 10) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def running(engine: Engine, factory: Factory, config: str = "a") -> Life:
    """Start the engine and let it load."""
    start = asyncio.create_task(engine.ensure_ready(config, replace=True))
    life = await factory.life(len(factory.lives))
    life.loaded.set_result(None)
    assert await start is life
    return life


# Starting


async def test_a_start_goes_through_its_states(engine: Engine, factory: Factory) -> None:
    assert engine.snapshot.value == Snapshot()
    start = asyncio.create_task(engine.ensure_ready("a"))
    life = await factory.life(0)
    snapshot = await until(engine, lambda snapshot: snapshot.pid is not None)
    assert (snapshot.state, snapshot.config, snapshot.pid, snapshot.event) == (
        ServerState.STARTING,
        "a",
        1000,
        "started",
    )
    assert snapshot.started_at is not None
    assert snapshot.load_seconds is None
    life.report(3, 8)
    snapshot = await until(engine, lambda snapshot: snapshot.loaded > 0)
    assert (snapshot.loaded, snapshot.to_load) == (3, 8)
    life.loaded.set_result(None)
    assert await start is life
    snapshot = engine.snapshot.value
    assert (snapshot.state, snapshot.event, snapshot.restarts) == (ServerState.RUNNING, "ready", 0)
    assert (snapshot.loaded, snapshot.to_load) == (8, 8)
    assert snapshot.load_seconds is not None
    assert snapshot.load_seconds >= 0


async def test_starts_of_the_same_configuration_share_a_life(engine: Engine, factory: Factory) -> None:
    starts = [asyncio.create_task(engine.ensure_ready("a")) for _ in range(5)]
    life = await factory.life(0)
    late = asyncio.create_task(engine.ensure_ready("a"))
    await turns()
    life.loaded.set_result(None)
    assert await asyncio.gather(*starts, late) == [life] * 6
    assert await engine.ensure_ready("a") is life
    assert len(factory.lives) == 1


async def test_another_configuration_is_refused_while_one_starts_or_runs(engine: Engine, factory: Factory) -> None:
    start = asyncio.create_task(engine.ensure_ready("a"))
    life = await factory.life(0)
    with pytest.raises(ServerBusyError, match="other settings"):
        await engine.ensure_ready("b")
    life.loaded.set_result(None)
    assert await start is life
    with pytest.raises(ServerBusyError):
        await engine.ensure_ready("b")
    assert await engine.ensure_ready("a") is life


async def test_another_configuration_replaces_a_running_life(engine: Engine, factory: Factory) -> None:
    first = await running(engine, factory, "a")
    second = await running(engine, factory, "b")
    assert first.over
    assert not second.over
    assert engine.snapshot.value.config == "b"


async def test_another_configuration_replaces_a_starting_life_whose_waiters_are_told(
    engine: Engine, factory: Factory
) -> None:
    first = asyncio.create_task(engine.ensure_ready("a"))
    await factory.life(0)
    second = await running(engine, factory, "b")
    with pytest.raises(ServerError, match="was stopped"):
        await first
    assert factory.alive == [second]


async def test_one_waiter_may_leave_without_harm_to_the_others(engine: Engine, factory: Factory) -> None:
    leaving, staying = (asyncio.create_task(engine.ensure_ready("a")) for _ in range(2))
    life = await factory.life(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    life.loaded.set_result(None)
    assert await staying is life
    assert len(factory.lives) == 1


async def test_a_start_goes_on_when_every_waiter_has_left(engine: Engine, factory: Factory) -> None:
    leaving = asyncio.create_task(engine.ensure_ready("a"))
    life = await factory.life(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    life.loaded.set_result(None)
    await until_state(engine, ServerState.RUNNING)


async def test_a_start_that_is_cancelled_before_it_is_looked_at_starts_nothing(
    engine: Engine, factory: Factory
) -> None:
    leaving = asyncio.create_task(engine.ensure_ready("a"))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    await engine.stop()
    assert factory.lives == []


# Failing


@pytest.mark.parametrize(
    ("failure", "raised", "message"),
    [
        (FileNotFoundError(2, "No such file or directory"), BackendError, "could not be started: No such file"),
        (ModelNotFoundError("No such model."), ModelNotFoundError, "No such model"),
        (ZeroDivisionError("secret"), BackendError, r"failed unexpectedly \(ZeroDivisionError\)"),
        (asyncio.CancelledError(), BackendError, "was given up"),
    ],
)
@pytest.mark.parametrize("at_launch", [True, False])
async def test_a_start_that_fails_is_told_to_every_waiter(
    engine: Engine,
    factory: Factory,
    failure: BaseException,
    raised: type[DomainError],
    message: str,
    at_launch: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if at_launch:
        factory.refusal = failure
    starts = [asyncio.create_task(engine.ensure_ready("a")) for _ in range(2)]
    if not at_launch:
        (await factory.life(0)).loaded.set_exception(failure)
    for start in starts:
        with pytest.raises(raised, match=message):
            await start
    snapshot = engine.snapshot.value
    assert (snapshot.state, snapshot.event, snapshot.pid) == (ServerState.CRASHED, "crashed", None)
    assert snapshot.last_error
    logged = [record.levelno for record in caplog.records if record.name.startswith("genaid")]
    unexpected = [logging.ERROR] if isinstance(failure, ZeroDivisionError) else []
    assert logged == [*unexpected, logging.WARNING]
    factory.refusal = None
    await running(engine, factory, "a")
    assert (engine.snapshot.value.restarts, engine.snapshot.value.last_error) == (1, "")


async def test_a_death_is_told_with_its_reason_and_the_next_start_is_a_restart(
    engine: Engine, factory: Factory
) -> None:
    for count in range(3):
        life = await running(engine, factory)
        assert engine.snapshot.value.restarts == count
        life.died.set_result("signal SIGKILL")
        snapshot = await until_state(engine, ServerState.CRASHED)
        assert snapshot.last_error == "The engine ended unexpectedly: signal SIGKILL"
        assert (snapshot.pid, snapshot.started_at) == (None, None)
    await engine.stop()
    assert engine.snapshot.value.state is ServerState.STOPPED
    await running(engine, factory)
    assert engine.snapshot.value.restarts == 2  # what was stopped on purpose is no restart


async def test_another_configuration_may_follow_a_crash(engine: Engine, factory: Factory) -> None:
    (await running(engine, factory, "a")).died.set_result("exit status 1")
    await until_state(engine, ServerState.CRASHED)
    start = asyncio.create_task(engine.ensure_ready("b"))
    life = await factory.life(1)
    life.loaded.set_result(None)
    assert await start is life


# Stopping


async def test_each_step_of_a_life_is_one_line_of_the_log(
    engine: Engine, factory: Factory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "genaid_server")
    life = await running(engine, factory)
    life.died.set_result("killed by signal 9. Last lines:\na private prompt")
    await until_state(engine, ServerState.CRASHED)
    await running(engine, factory)
    await engine.stop("offloaded")
    said = [re.sub(r" after \d+\.\d s", "", record.getMessage()) for record in caplog.records]
    assert said == [
        "the engine starts (started)",
        "the engine serves, process 1000",
        "the engine crashed: The engine ended unexpectedly: killed by signal 9. Last lines:",
        "the engine starts (restarting)",
        "the engine serves, process 1001",
        "the engine is stopped (offloaded)",
    ]


async def test_a_stop_ends_a_running_life_before_it_returns(engine: Engine, factory: Factory) -> None:
    life = await running(engine, factory)
    factory.may_close.clear()
    stops = [asyncio.create_task(engine.stop("unloaded")) for _ in range(2)]
    await factory.closing.wait()
    assert engine.snapshot.value.state is ServerState.STOPPING
    assert not any(stop.done() for stop in stops)
    factory.may_close.set()
    await asyncio.gather(*stops)
    assert life.over
    snapshot = engine.snapshot.value
    assert (snapshot.state, snapshot.event, snapshot.pid) == (ServerState.STOPPED, "unloaded", None)


async def test_a_stop_while_it_starts_wakes_the_waiters(engine: Engine, factory: Factory) -> None:
    starts = [asyncio.create_task(engine.ensure_ready("a")) for _ in range(2)]
    life = await factory.life(0)
    await engine.stop()
    for start in starts:
        with pytest.raises(ServerError, match="was stopped"):
            await start
    assert life.over


async def test_a_stop_that_nobody_waits_for_any_more_is_carried_out(engine: Engine, factory: Factory) -> None:
    await running(engine, factory)
    factory.may_close.clear()
    stop = asyncio.create_task(engine.stop())
    await factory.closing.wait()
    stop.cancel()
    await asyncio.wait([stop])
    factory.may_close.set()
    await until_state(engine, ServerState.STOPPED)


async def test_a_stop_of_what_is_stopped_changes_nothing(engine: Engine, factory: Factory) -> None:
    await engine.stop("again")
    assert engine.snapshot.value == Snapshot()


async def test_a_start_that_comes_while_it_stops_begins_anew(engine: Engine, factory: Factory) -> None:
    await running(engine, factory)
    factory.may_close.clear()
    stop = asyncio.create_task(engine.stop())
    await factory.closing.wait()
    start = asyncio.create_task(engine.ensure_ready("a"))
    await turns()
    assert len(factory.lives) == 1
    factory.may_close.set()
    await stop
    life = await factory.life(1)
    life.loaded.set_result(None)
    assert await start is life


async def test_what_a_former_life_reports_is_ignored(engine: Engine, factory: Factory) -> None:
    former = await running(engine, factory)
    await engine.stop()
    before = engine.snapshot.value
    former.report(1, 100)
    await engine.stop()
    assert engine.snapshot.value == before


# Recycling


async def test_a_recycled_engine_gets_a_new_life_after_the_old_one(engine: Engine, factory: Factory) -> None:
    former = await running(engine, factory, "a")
    await engine.recycle()
    assert former.over
    life = await factory.life(1)
    life.loaded.set_result(None)
    assert await engine.ensure_ready("a") is life
    assert (life.config, engine.snapshot.value.restarts) == ("a", 0)


async def test_waiters_of_a_recycled_start_get_the_new_life(engine: Engine, factory: Factory) -> None:
    start = asyncio.create_task(engine.ensure_ready("a"))
    await factory.life(0)
    await engine.recycle()
    life = await factory.life(1)
    life.loaded.set_result(None)
    assert await start is life


@pytest.mark.parametrize("crashed", [True, False])
async def test_there_is_nothing_to_recycle_without_a_life(engine: Engine, factory: Factory, crashed: bool) -> None:
    life = await running(engine, factory)
    if crashed:
        life.died.set_result("exit status 1")
        await until_state(engine, ServerState.CRASHED)
    else:
        await engine.stop()
    before = engine.snapshot.value
    await engine.recycle()
    await turns()
    assert engine.snapshot.value == before
    assert len(factory.lives) == 1


# Coming back by itself


def test_the_delay_doubles_within_its_bound() -> None:
    policy = RestartPolicy(first_delay=0.2, max_delay=3.0)
    assert [policy.delay(attempt) for attempt in range(1, 7)] == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
    assert policy.delay(10_000) == 3.0


async def test_an_engine_comes_back_by_itself_within_its_budget(factory: Factory) -> None:
    async with Supervisor("engine", factory.launch, AT_ONCE) as engine:
        life = await running(engine, factory)
        for number in (1, 2):
            life.died.set_result("exit status 1")
            life = await factory.life(number)
            life.loaded.set_result(None)
            snapshot = await until_state(engine, ServerState.RUNNING)
            assert snapshot.restarts == number
        life.died.set_result("exit status 1")
        await until_state(engine, ServerState.CRASHED)
        await turns()
        assert (engine.snapshot.value.state, engine.snapshot.value.restarts) == (ServerState.CRASHED, 2)
        assert len(factory.lives) == 3
        (await running(engine, factory)).died.set_result("exit status 1")  # who asks for it renews the budget
        await factory.life(4)


@pytest.mark.parametrize(("stable_after", "lives"), [(0.0, 10), (1e9, 3)])
async def test_the_budget_is_renewed_by_a_life_that_served_long_enough(
    factory: Factory, stable_after: float, lives: int
) -> None:
    policy = RestartPolicy(automatic=True, limit=2, first_delay=0, stable_after=stable_after)
    async with Supervisor("engine", factory.launch, policy) as engine:
        await running(engine, factory)
        for number in range(lives - 1):
            factory.lives[number].died.set_result("exit status 1")
            (await factory.life(number + 1)).loaded.set_result(None)
            await until_state(engine, ServerState.RUNNING)
        factory.lives[-1].died.set_result("exit status 1")
        await until_state(engine, ServerState.CRASHED)
        await turns()
        assert len(factory.alive) == (1 if stable_after == 0 else 0)


async def test_loading_does_not_renew_the_budget_however_long_it_takes(factory: Factory) -> None:
    policy = RestartPolicy(automatic=True, limit=2, first_delay=0, stable_after=0)
    async with Supervisor("engine", factory.launch, policy) as engine:
        (await running(engine, factory)).died.set_result("exit status 1")
        for number in (1, 2):
            (await factory.life(number)).loaded.set_exception(BackendError("no memory"))
        await until(engine, lambda snapshot: "no memory" in snapshot.last_error and snapshot.restarts == 2)
        await until_state(engine, ServerState.CRASHED)
        await turns()
        assert (engine.snapshot.value.state, len(factory.lives)) == (ServerState.CRASHED, 3)


async def test_a_start_whose_caller_was_told_that_it_failed_is_not_tried_again(factory: Factory) -> None:
    async with Supervisor("engine", factory.launch, AT_ONCE) as engine:
        start = asyncio.create_task(engine.ensure_ready("a"))
        (await factory.life(0)).loaded.set_exception(BackendError("no memory"))
        with pytest.raises(BackendError, match="no memory"):
            await start
        await turns()
        assert (engine.snapshot.value.state, len(factory.lives)) == (ServerState.CRASHED, 1)
        await running(engine, factory, "b")  # and stands in nobody's way


async def test_a_start_whose_caller_has_left_is_tried_again(factory: Factory) -> None:
    async with Supervisor("engine", factory.launch, AT_ONCE) as engine:
        start = asyncio.create_task(engine.ensure_ready("a"))
        life = await factory.life(0)
        start.cancel()
        await asyncio.wait([start])
        life.loaded.set_exception(BackendError("no memory"))
        (await factory.life(1)).loaded.set_result(None)
        await until_state(engine, ServerState.RUNNING)


async def test_a_start_does_not_wait_for_the_delay(factory: Factory) -> None:
    async with Supervisor("engine", factory.launch, MUCH_LATER) as engine:
        (await running(engine, factory)).died.set_result("exit status 1")
        await until_state(engine, ServerState.CRASHED)
        await running(engine, factory)
        assert engine.snapshot.value.restarts == 1


@pytest.mark.parametrize("policy", [MUCH_LATER, AT_ONCE])
@pytest.mark.parametrize("close", [True, False])
async def test_nothing_comes_back_after_a_stop(factory: Factory, policy: RestartPolicy, close: bool) -> None:
    async with Supervisor("engine", factory.launch, policy) as engine:
        (await running(engine, factory)).died.set_result("exit status 1")
        await until_state(engine, ServerState.CRASHED)  # with no delay, the restart is on its way now
        await (engine.close() if close else engine.stop())
        await turns()
        assert engine.snapshot.value.state is ServerState.STOPPED
        assert factory.alive == []
        assert len(factory.lives) == 1


# The end


async def test_the_end_wakes_everybody(factory: Factory) -> None:
    async with Supervisor("engine", factory.launch) as engine:
        starts = [asyncio.create_task(engine.ensure_ready("a")) for _ in range(3)]
        life = await factory.life(0)

        async def watch() -> list[ServerState]:
            return [snapshot.state async for snapshot in engine.snapshot.watch()]

        watching = asyncio.create_task(watch())
        await turns()
    for start in starts:
        with pytest.raises(ServerError):
            await start
    assert life.over
    assert (await watching)[-1] is ServerState.STOPPED
    for refused in (engine.ensure_ready("a"), engine.stop(), engine.recycle()):
        with pytest.raises(ServerError, match="shutting down"):
            await refused
    await engine.close()


async def test_the_end_is_the_same_for_all_who_ask_and_complete_even_if_they_are_cancelled(factory: Factory) -> None:
    engine: Engine = Supervisor("engine", factory.launch)
    await engine.__aenter__()
    life = await running(engine, factory)
    factory.may_close.clear()
    closes = [asyncio.create_task(engine.close()) for _ in range(2)]
    await factory.closing.wait()
    for _ in range(2):
        closes[0].cancel()
        await turns()
    assert not any(close.done() for close in closes)
    factory.may_close.set()
    await asyncio.wait(closes)
    assert closes[0].cancelled()
    assert life.over
    assert engine.snapshot.value.state is ServerState.STOPPED
    assert [snapshot async for snapshot in engine.snapshot.watch()] == [engine.snapshot.value]


async def test_requests_before_the_end_are_served_before_it(factory: Factory) -> None:
    async with Supervisor("engine", factory.launch) as engine:
        waiting = [
            asyncio.create_task(request)
            for request in (engine.ensure_ready("a"), engine.recycle(), engine.stop(), engine.ensure_ready("b"))
        ]
        await asyncio.sleep(0)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ServerError, type(None), type(None), ServerError]
    assert factory.alive == []


async def test_there_is_no_engine_before_the_block(factory: Factory) -> None:
    engine: Engine = Supervisor("engine", factory.launch)
    with pytest.raises(ServerError):
        await engine.ensure_ready("a")
    await engine.close()


# Anything in any order


class Fate(Enum):
    """What becomes of a life."""

    SERVES = auto()
    FAILS_TO_LOAD = auto()
    DIES_AT_ONCE = auto()
    DIES_SOON = auto()
    CLOSES_SLOWLY = auto()


@dataclass(frozen=True)
class Step:
    """One thing that a task does to the engine, after some turns of the loop."""

    action: str
    config: str
    wait: int


class Scenario:
    """Lives with drawn fates, and tasks that do drawn things."""

    def __init__(self, fates: Sequence[Fate]) -> None:
        self._fates: Iterator[Fate] = itertools.chain(fates, itertools.repeat(Fate.SERVES))
        self._factory = Factory()
        self.newest: Life | None = None

    @asynccontextmanager
    async def launch(self, config: str, report: Report) -> AsyncIterator[Life]:
        fate = next(self._fates)
        async with self._factory.launch(config, report) as life:
            self.newest = life
            destiny = asyncio.create_task(self._fulfil(life, fate))
            try:
                yield life
            finally:
                destiny.cancel()
                await asyncio.wait([destiny])
                await turns(5 if fate is Fate.CLOSES_SLOWLY else 0)

    async def _fulfil(self, life: Life, fate: Fate) -> None:
        await turns(3)
        if fate is Fate.FAILS_TO_LOAD:
            life.loaded.set_exception(BackendError("it does not load"))
            return
        life.loaded.set_result(None)
        if fate is not Fate.SERVES:
            await turns(0 if fate is Fate.DIES_AT_ONCE else 4)
            if fate is not Fate.CLOSES_SLOWLY:
                self.crash(life)

    def crash(self, life: Life | None) -> None:
        if life is not None and not life.died.done():
            life.died.set_result("exit status 1")

    async def act(self, engine: Engine, step: Step) -> None:
        await turns(step.wait)
        try:
            match step.action:
                case "start" | "replace":
                    life = await engine.ensure_ready(step.config, replace=step.action == "replace")
                    assert life.config == step.config
                    assert life.loaded.done()
                case "leave":
                    start = asyncio.create_task(engine.ensure_ready(step.config))
                    await turns(step.wait)
                    start.cancel()
                    await asyncio.wait([start])
                    if not start.cancelled():
                        start.exception()
                case "stop":
                    await engine.stop()
                case "recycle":
                    await engine.recycle()
                case _:
                    self.crash(self.newest)
        except (ServerBusyError, ServerError, BackendError):
            pass  # refused, stopped by another task, or died: each is a true answer

    async def play(self, tasks: Sequence[Sequence[Step]], policy: RestartPolicy) -> None:
        async def perform(engine: Engine, steps: Sequence[Step]) -> None:
            for step in steps:
                await self.act(engine, step)

        async with asyncio.timeout(30), Supervisor("engine", self.launch, policy) as engine:
            async with asyncio.TaskGroup() as group:
                for steps in tasks:
                    group.create_task(perform(engine, steps))
            await engine.stop()
            assert engine.snapshot.value.state is ServerState.STOPPED
            assert self._factory.alive == []
            await turns(20)
            assert self._factory.alive == []
            self._fates = itertools.repeat(Fate.SERVES)
            life = await engine.ensure_ready("end")
            assert self._factory.alive == [life]
            assert (engine.snapshot.value.state, engine.snapshot.value.pid) == (ServerState.RUNNING, life.pid)
        assert self._factory.alive == []
        assert self._factory.at_once <= 1


actions = st.sampled_from(["start", "replace", "leave", "stop", "recycle", "crash"])
step_lists = st.lists(st.builds(Step, actions, st.sampled_from("ab"), st.integers(0, 6)), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    tasks=st.lists(step_lists, min_size=1, max_size=4),
    fates=st.lists(st.sampled_from(Fate), max_size=12),
    automatic=st.booleans(),
)
def test_no_order_of_requests_and_deaths_deadlocks_or_makes_two_lives(
    tasks: list[list[Step]], fates: list[Fate], automatic: bool
) -> None:
    policy = RestartPolicy(automatic=automatic, limit=3, first_delay=0, stable_after=1e9)

    async def play() -> None:
        await Scenario(fates).play(tasks, policy)

    asyncio.run(play())


# Real processes


class Process:
    """A life that is a process; it serves once it has printed `ready`."""

    def __init__(self) -> None:
        self.ready_line = asyncio.Event()
        self.output = b""
        self.process: Child

    @property
    def pid(self) -> int:
        return self.process.pid

    def on_output(self, data: bytes) -> None:
        self.output += data
        if b"ready\n" in self.output:
            self.ready_line.set()

    async def ready(self) -> None:
        ready, end = asyncio.ensure_future(self.ready_line.wait()), asyncio.ensure_future(self.process.exited())
        try:
            await asyncio.wait([ready, end], return_when=asyncio.FIRST_COMPLETED)
            if not self.ready_line.is_set():
                raise BackendError(f"died while loading: {end.result()}")
        finally:
            ready.cancel()
            end.cancel()

    async def exited(self) -> str:
        return str(await self.process.exited())


@asynccontextmanager
async def launch_program(flags: tuple[str, ...], _report: Report) -> AsyncIterator[Process]:
    run = Process()
    async with child([sys.executable, *flags], run.on_output, run.on_output, grace=0.05) as run.process:
        yield run


STUBBORN = (str(PROGRAM), "--ignore-term", "--ignore-eof", "--spawn-grandchild")


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def test_a_stubborn_process_is_stopped_replaced_and_recycled() -> None:
    async with Supervisor("engine", launch_program) as engine:
        first = await engine.ensure_ready(STUBBORN)
        second = await engine.ensure_ready((*STUBBORN, "--to-stderr", "hello"), replace=True)
        assert not psutil.pid_exists(first.pid)
        await engine.recycle()
        assert not psutil.pid_exists(second.pid)
        third = await engine.ensure_ready((*STUBBORN, "--to-stderr", "hello"))
        assert engine.snapshot.value.pid == third.pid
        await engine.stop()
        assert not psutil.pid_exists(third.pid)
        last = await engine.ensure_ready(STUBBORN)
    assert not psutil.pid_exists(last.pid)


async def test_a_killed_process_is_a_crash_and_comes_back_when_asked_for() -> None:
    async with Supervisor("engine", launch_program) as engine:
        first = await engine.ensure_ready((str(PROGRAM),))
        psutil.Process(first.pid).kill()
        async for snapshot in engine.snapshot.watch():
            if snapshot.state is ServerState.CRASHED:
                break
        assert snapshot.last_error.startswith("The engine ended unexpectedly: ")
        second = await engine.ensure_ready((str(PROGRAM),))
        assert second.pid != first.pid
        assert engine.snapshot.value.restarts == 1
    assert descendants() == []


async def test_a_process_that_dies_or_hangs_while_it_starts_wakes_its_waiters() -> None:
    async with Supervisor("engine", launch_program) as engine:
        with pytest.raises(BackendError, match="died while loading: exit status 3"):
            await engine.ensure_ready(("-c", "import sys; sys.exit(3)"))
        hanging = asyncio.create_task(engine.ensure_ready(("-c", "print('hello'); input()")))
        async for snapshot in engine.snapshot.watch():
            if snapshot.state is ServerState.STARTING and snapshot.pid is not None:
                break
        await engine.stop()
        with pytest.raises(ServerError, match="was stopped"):
            await hanging
        assert descendants() == []


async def test_a_missing_program_is_a_failed_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    async with Supervisor("engine", launch_program) as engine:
        with pytest.raises(BackendError, match="could not be started: "):
            await engine.ensure_ready(())
