"""Running things at chosen turns of the event loop, the same ones each time: what comes between two awaits is found."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, repeat
from typing import Any

THREAD_TURNS = 2
"""Turns of the loop that pass before a thread begins, so that something may come before it."""
MOST_TURNS = 20_000


class LockstepExecutor(ThreadPoolExecutor):
    """Threads for which the loop stands still: what is awaited takes as many turns of it each time.

    A thread that asks the loop for something gets its turn again after each turn of the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, waits: Iterator[int]) -> None:
        """Each thread begins so many turns later as the next one of `waits`."""
        super().__init__(max_workers=16)
        self._loop, self._waits, self._news = loop, waits, threading.Event()
        ask = loop.call_soon_threadsafe

        def heard(*args: Any, **options: Any) -> asyncio.Handle:
            handle = ask(*args, **options)
            self._news.set()
            return handle

        setattr(loop, "call_soon_threadsafe", heard)  # noqa: B010 - which a type checker would refuse

    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def begin(left: int) -> None:
            if left:
                self._loop.call_soon(begin, left - 1)
            elif future.set_running_or_notify_cancel():
                self._news.clear()
                work = super(LockstepExecutor, self).submit(fn, *args, **kwargs)
                work.add_done_callback(lambda _: self._news.set())
                self._news.wait()
                follow(work)

        def follow(work: Future[T]) -> None:
            if not work.done():
                self._news.wait(0.0002)
                self._news.clear()
                self._loop.call_soon(follow, work)
            elif (error := work.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(work.result())

        self._loop.call_soon(begin, next(self._waits))
        return future


def in_lockstep(*first_waits: int) -> None:
    """Have the running loop stand still while its threads work; the first ones begin after so many turns."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(LockstepExecutor(loop, chain(first_waits, repeat(THREAD_TURNS))))


async def turns(count: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def within_turns[T](work: Coroutine[Any, Any, T], most: int = MOST_TURNS) -> T:
    """What `work` returns or raises; fails where it takes more turns, which is where it waits for ever."""
    task = asyncio.ensure_future(work)
    for _ in range(most):
        if task.done():
            return task.result()
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    raise AssertionError(f"{work} did not end within {most} turns of the loop")


async def outcome[T](work: Coroutine[Any, Any, T], *errors: type[Exception]) -> T | Exception:
    """What `work` returns, or the error that it raises, if it is one of these."""
    try:
        return await work
    except errors as error:
        return error
