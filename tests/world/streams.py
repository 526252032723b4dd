"""Readers of images in one call, as slow as a test wants them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from world.commands import TOLD


class Stream:
    """One call. `seen` is what came, `error` what it ended with; a slow one takes a response for each `take`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, responses: AsyncGenerator[str, None], *, slow: bool) -> None:
        self.seen: list[str] = []
        self.error: Exception | None = None
        self._may_take, self._slow, self._waits = asyncio.Semaphore(0), slow, False
        self.task = loop.create_task(self._read(responses), name="generate")

    def take(self) -> None:
        """Take the next response, where it has the one before."""
        if self._waits:
            self._may_take.release()

    def take_all(self) -> None:
        self._slow = False
        self.take()

    def leave(self) -> None:
        self.task.cancel()

    @property
    def over(self) -> bool:
        return self.task.done()

    @property
    def lost(self) -> bool:
        """Whether it was told that its image is complete, and did not get it."""
        return self.over and not self.task.cancelled() and "complete" in self.seen and "image" not in self.seen

    async def _read(self, responses: AsyncGenerator[str, None]) -> None:
        try:
            async with aclosing(responses):
                async for response in responses:
                    self.seen.append(response)
                    if self._slow:
                        self._waits = True
                        await self._may_take.acquire()
                        self._waits = False
        except TOLD as error:
            self.error = error
