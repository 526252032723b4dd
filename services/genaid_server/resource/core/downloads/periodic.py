"""Something done again and again while something else goes on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def every(seconds: float, action: Callable[[], None]) -> AsyncIterator[None]:
    """Call `action` every so many seconds until the block ends; not once after that."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(seconds)
            action()

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])
