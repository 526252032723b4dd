"""Memory, measured again and again for as long as somebody watches."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.system.facts import Memory

SHORTEST_INTERVAL: Final = 0.1  # seconds
LONGEST_INTERVAL: Final = 3600.0
DEFAULT_INTERVAL: Final = 1.0


class MemoryWatches:
    """All watches of memory, so that they can be ended together."""

    def __init__(self, measure: Callable[[], Awaitable[Memory]]) -> None:
        self._measure = measure
        self._ended = asyncio.Event()

    def end(self) -> None:
        """End every watch that there is, and each that is still to come after its first measurement."""
        self._ended.set()

    async def watch(self, interval: float = DEFAULT_INTERVAL) -> AsyncGenerator[Memory]:
        """Memory now, then again every `interval` seconds, until the watches are ended.

        Raises InvalidRequestError for an interval out of range.
        """
        if not SHORTEST_INTERVAL <= interval <= LONGEST_INTERVAL:
            raise InvalidRequestError(
                f"interval must be between {SHORTEST_INTERVAL:g} and {LONGEST_INTERVAL:g} seconds, not {interval:g}",
                field="interval",
            )
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            yield await self._measure()
            due = max(due + interval, loop.time())  # one that came late doesn't hurry the next ones
            try:
                async with asyncio.timeout_at(due):
                    await self._ended.wait()
            except TimeoutError:
                continue
            return
