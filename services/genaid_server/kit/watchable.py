"""A value that can be watched: the newest one first, never a backlog."""

import asyncio
from collections.abc import AsyncIterator


class Watchable[T]:
    """Holds one value; its owner sets it, anyone may read or watch it.

    A watcher that is slower than the changes misses those in between and always ends with the last one.
    """

    def __init__(self, value: T) -> None:
        self._value = value
        self._version = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def value(self) -> T:
        """The present value."""
        return self._value

    def set(self, value: T) -> None:
        """Replace the value and wake every watcher. Has no effect on a value equal to the present one."""
        if value != self._value:
            self._value = value
            self._version += 1
            self._wake()

    def close(self) -> None:
        """End every watch, after its watcher has seen the last value."""
        self._closed = True
        self._wake()

    async def watch(self) -> AsyncIterator[T]:
        """Yield the present value, then each newer one, until closed."""
        seen = -1
        while True:
            if seen != self._version:
                seen = self._version
                yield self._value
            elif self._closed:
                return
            else:
                await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
