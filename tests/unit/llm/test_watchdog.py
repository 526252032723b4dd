"""The watchdog tells a hung engine from a busy one, and from one that only stumbles."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from genaid_server.resource.core.llm import watchdog
from genaid_server.resource.core.llm.watchdog import Watchdog
from genaid_server.supervision.logbook import Level, Logbook

INTERVAL = 0.001
BUSY = 1000.0
"""Seconds of processor time between two checks that no share of them is little of."""


@dataclass
class Script:
    """An engine that answers its health checks as written, and then ends the test."""

    answers: str
    computes: float = 0.0
    loaded: bool = True
    checks: int = 0
    condemned: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _used: float = 5.0

    async def healthy(self) -> bool:
        """Healthy at a `+`; at the end of the script the watch has gone far enough."""
        if self.checks == len(self.answers):
            self.over.set()
            await asyncio.Event().wait()
        self.checks += 1
        return self.answers[self.checks - 1] == "+"

    def cpu_seconds(self) -> float:
        self._used += self.computes
        return self._used

    def condemn(self, reason: str) -> None:
        self.condemned = reason
        self.over.set()


@dataclass
class Observer:
    """Counts the changes of what the watchdog knows."""

    changes: int = 0

    def __call__(self) -> None:
        self.changes += 1


@pytest.fixture
def logbook() -> Iterator[Logbook]:
    logbook = Logbook()
    yield logbook
    logbook.close()


async def watch(engine: Script, logbook: Logbook, failures: int = 3) -> tuple[Watchdog, Observer]:
    observer = Observer()
    dog = Watchdog(INTERVAL, failures, logbook, observer)
    async with dog.over(engine):
        await engine.over.wait()
    return dog, observer


async def test_a_healthy_engine_is_left_alone(logbook: Logbook) -> None:
    engine = Script("+" * 20)
    dog, observer = await watch(engine, logbook)
    assert (engine.condemned, dog.answers, observer.changes) == ("", True, 0)
    assert logbook.tail(10) == []


async def test_an_idle_engine_that_does_not_answer_so_often_in_a_row_is_condemned(logbook: Logbook) -> None:
    engine = Script("++---+")
    dog, observer = await watch(engine, logbook)
    assert engine.checks == 5
    assert engine.condemned.startswith("it hung: no answer to its health check for ")
    assert (dog.answers, observer.changes) == (False, 1)
    assert [(record.level, record.message) for record in logbook.tail(10)] == [
        (Level.WARN, f"no answer to the health check, {n} times in a row") for n in (1, 2, 3)
    ]


async def test_an_answer_begins_the_count_anew(logbook: Logbook) -> None:
    engine = Script("--+--+--+--+")
    dog, observer = await watch(engine, logbook)
    assert engine.condemned == ""
    assert (dog.answers, observer.changes) == (True, 8)


async def test_an_engine_that_computes_is_busy_and_not_hung(logbook: Logbook) -> None:
    engine = Script("+" + "-" * 30 + "+", computes=BUSY)
    dog, _ = await watch(engine, logbook)
    assert (engine.condemned, dog.answers) == ("", True)
    assert len(logbook.tail(100)) == 30


async def test_even_a_busy_engine_has_to_answer_some_day(logbook: Logbook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE", 0.02)
    engine = Script("+" + "-" * 100_000, computes=BUSY)
    await watch(engine, logbook)
    assert engine.condemned.startswith("it hung")


async def test_an_engine_that_still_loads_is_not_asked(logbook: Logbook) -> None:
    engine = Script("+", loaded=False)
    dog = Watchdog(INTERVAL, 1, logbook, Observer())
    async with dog.over(engine):
        for _ in range(20):
            await asyncio.sleep(INTERVAL)
        assert engine.checks == 0
        engine.loaded = True
        await engine.over.wait()
    assert engine.checks == 1


async def test_the_patience_with_a_busy_engine_begins_when_it_has_loaded(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE", 0.5)
    engine = Script("-+", computes=BUSY, loaded=False)
    dog = Watchdog(INTERVAL, 1, logbook, Observer())
    async with dog.over(engine):
        await asyncio.sleep(2 * watchdog.PATIENCE)  # a load that takes longer than that
        engine.loaded = True
        await engine.over.wait()
    assert engine.condemned == ""


async def test_others_may_tell_it_what_they_found(logbook: Logbook) -> None:
    observer = Observer()
    dog = Watchdog(3600, 3, logbook, observer)
    for answers in (True, False, False, True):
        dog.tell(answers)
    assert (dog.answers, observer.changes) == (True, 2)
    dog.tell(False)
    async with dog.over(Script("")):
        assert dog.answers  # a new life begins with the benefit of the doubt
