"""Work in flight: each piece runs once however many ask for it, outlives whoever asked, and is awaited at the end."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from genaid_client import GenaidError

log = logging.getLogger(__name__)


class SingleFlight:
    """Owns tasks by key, until `close`."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}

    async def close(self) -> None:
        """Cancel what is in flight and wait for it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Run the work in the background, unless work of that key is under way."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    async def share[T](self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work; callers that come while it runs get the same.

        A caller that is cancelled leaves the work running.
        """
        task: asyncio.Task[T] = self.start(key, work)
        await asyncio.wait((task,))
        return task.result()

    def _landed(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._tasks[key]
        # Looked at here, because everyone who asked may have left.
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, GenaidError):
            log.error("work for %s failed unexpectedly", key, exc_info=error)
