"""Waiting that must not be cut short."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_the_end[T](work: Coroutine[Any, Any, T]) -> T:
    """Await `work` even if the caller is cancelled meanwhile; the cancellation is raised afterwards.

    For cleanup that has a bound of its own, such as killing a child. Where `work` fails as well, its exception is
    the cause of the cancellation.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])  # which leaves the task alone when it is cancelled itself
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from None if task.cancelled() else task.exception()
    return task.result()
