"""Tells a hung engine from a busy one, and ends it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

from genaid_server.supervision.logbook import Level, Logbook

PATIENCE: Final = 600.0
"""Seconds without an answer after which even an engine that computes counts as hung."""
IDLE_SHARE: Final = 0.02
"""An engine that has used less than this share of one core between two checks does not compute."""


class Watched(Protocol):
    """An engine, as far as the watchdog needs it."""

    @property
    def loaded(self) -> bool:
        """Whether it has been ready: before that the start has a timeout of its own."""

    async def healthy(self) -> bool:
        """Whether it answers its health check now."""

    def cpu_seconds(self) -> float:
        """Processor time so far."""

    def condemn(self, reason: str) -> None:
        """Kill it for this reason."""


class Watchdog:
    """Asks an engine for its health every `interval` seconds for as long as a block lasts.

    One that does not answer `failures` times in a row and does not compute meanwhile is killed; one that computes may
    be busy with more requests than it has threads to listen with, and gets PATIENCE.
    """

    def __init__(self, interval: float, failures: int, logbook: Logbook, on_change: Callable[[], None]) -> None:
        self._interval, self._failures, self._logbook, self._on_change = interval, failures, logbook, on_change
        self.answers = True

    @asynccontextmanager
    async def over(self, engine: Watched) -> AsyncIterator[None]:
        """Watch `engine` while the block runs."""
        self.answers = True
        watch = asyncio.create_task(self._watch(engine), name="LLM engine watchdog")
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.wait([watch])

    def tell(self, answers: bool) -> None:
        """Take the result of a health check."""
        if answers != self.answers:
            self.answers = answers
            self._on_change()

    async def _watch(self, engine: Watched) -> None:
        loop = asyncio.get_running_loop()
        missed, answered_at, computed = 0, loop.time(), 0.0
        while True:
            await asyncio.sleep(self._interval)
            if not engine.loaded:
                answered_at = loop.time()
                continue
            before, asked_at = computed, loop.time()
            answers = await engine.healthy()
            computed = engine.cpu_seconds()
            self.tell(answers)
            if answers:
                missed, answered_at = 0, loop.time()
                continue
            missed += 1
            silent = loop.time() - answered_at
            idle = computed - before < IDLE_SHARE * (loop.time() - asked_at + self._interval)
            self._logbook.append(Level.WARN, f"no answer to the health check, {missed} times in a row")
            if (missed >= self._failures and idle) or silent >= PATIENCE:
                engine.condemn(f"it hung: no answer to its health check for {silent:.0f} s")
                return
