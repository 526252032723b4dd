"""Patience with sources: how long to wait before another try, and when to give up."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from genaid_server.kit.backoff import Backoff
from genaid_server.kit.errors import DownloadError
from genaid_server.resource.core.downloads.download import DownloadLimits
from genaid_server.resource.core.downloads.remote import RemoteError

_LONGEST_WAIT: Final = 3600.0  # seconds; a source that says more would have the download look dead


@dataclass(frozen=True, slots=True)
class Pauses:
    """Where waiting and chance come from; `random` gives numbers from 0 to 1."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random


@asynccontextmanager
async def answer_within(seconds: float) -> AsyncIterator[None]:
    """Raises RemoteError where the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise RemoteError(f"The source didn't answer within {seconds:g} seconds.", permanent=False) from error


class Tries:
    """The tries at one thing. `on_retry` is told why before each wait."""

    def __init__(self, limits: DownloadLimits, pauses: Pauses, on_retry: Callable[[str], None]) -> None:
        self._limits, self._pauses, self._on_retry = limits, pauses, on_retry
        self._backoff = Backoff(limits.first_delay, limits.max_delay)
        self._failed = 0

    def renew(self) -> None:
        """There was progress: what failed before it no longer counts."""
        self._failed = 0

    async def wait(self, error: RemoteError) -> None:
        """Wait before the next try. Raises DownloadError where there shall be none."""
        if error.permanent:
            raise DownloadError(error.message) from error
        self._failed += 1
        if self._failed >= self._limits.attempts:
            raise DownloadError(
                f"Gave up after {self._failed} tries: {error.message} Start the download again to go on from where "
                "it stopped.",
                tries=str(self._failed),
            ) from error
        self._on_retry(error.message)
        await self._pauses.sleep(self._delay(error.retry_after))

    async def until_done[T](self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, which raises RemoteError where it fails, until it succeeds. Raises DownloadError."""
        while True:
            try:
                return await work()
            except RemoteError as error:
                await self.wait(error)

    def _delay(self, retry_after: float | None) -> float:
        # At least a half, so that waits grow, and by chance, so that many clients don't come back all at once.
        chosen = self._backoff.delay(self._failed) * (0.5 + self._pauses.random() / 2)
        return max(chosen, min(retry_after or 0.0, _LONGEST_WAIT))
