"""An event loop that the test turns by hand: round by round, with a clock that goes where it is put.

Nothing comes from outside. Between two rounds of callbacks the test does what it likes, so it can put a command at any
await of any other; and time passes only where it is told to, or where nobody has anything left to do before it does.
"""

import asyncio
import contextlib
import random
import selectors
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

LONGEST_JOB: Final = 4
"""Rounds that a job in a thread takes at most before it does its work, and again before that is known."""

ATTEMPTS: Final = 10


class _Clockwork(selectors.DefaultSelector):
    """Instead of waiting for a timer, the clock is put forward to it."""

    def __init__(self, each_round: Callable[[], None]) -> None:
        super().__init__()
        self.now = 0.0
        self._each_round = each_round

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._each_round()
        assert timeout is not None, "everybody waits, and nothing will ever happen"
        self.now += max(0.0, timeout)
        return super().select(0)


class _Job:
    """Work in a thread, which goes on only while the loop waits for it: until it is over, or waits for the loop."""

    def __init__(self) -> None:
        self._stopped = threading.Semaphore(0)
        self.over = threading.Event()
        self.result: object = None
        self.error: BaseException | None = None
        self.on_end: Callable[[], None] = lambda: None

    def run(self, func: Callable[..., object], *args: object) -> None:
        """In the thread."""
        try:
            self.result = func(*args)
        except BaseException as error:  # noqa: BLE001 - a thread hands on whatever its work raises
            self.error = error
        self.over.set()
        self._stopped.release()

    def waits_for(self, reply: "Future[Any]") -> None:
        """In the thread: it waits for what the loop will say."""
        reply.add_done_callback(lambda _: self.let_run())
        self._stopped.release()

    def let_run(self) -> None:
        """In the loop: return when it has stopped again."""
        self._stopped.acquire()
        if self.over.is_set():
            self.on_end()


class SteppedLoop(asyncio.SelectorEventLoop):
    """The loop. `each_round` is called between any two rounds; `seed` decides how long jobs in threads take.

    What is given to a thread is done by the loop itself, a few rounds later: before, between or after what others do.
    """

    def __init__(self, seed: int, each_round: Callable[[], None]) -> None:
        self._clockwork = _Clockwork(each_round)
        self._dice = random.Random(seed)
        self._threads, self._of_thread = ThreadPoolExecutor(4), threading.local()
        self.unexpected: list[dict[str, Any]] = []
        super().__init__(self._clockwork)
        self.set_exception_handler(lambda _, context: self.unexpected.append(context))

    def time(self) -> float:
        return self._clockwork.now

    def run_in_executor[*P, T](self, executor: object, func: Callable[[*P], T], *args: *P) -> "asyncio.Future[T]":
        answer: asyncio.Future[T] = self.create_future()

        job = _Job()
        job.on_end = lambda: self._later(self._dice.randrange(LONGEST_JOB), _settle, answer, job)

        def work() -> None:
            self._threads.submit(self._work, job, func, *args)
            job.let_run()

        self._later(self._dice.randrange(LONGEST_JOB), work)
        return answer

    def _work(self, job: _Job, func: Callable[..., object], *args: object) -> None:
        self._of_thread.job = job
        job.run(func, *args)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, **more: Any) -> asyncio.Handle:  # type: ignore[override]
        """Called by a job: it asks the loop for something, and will wait for the `reply`."""
        handle = super().call_soon_threadsafe(callback, *args, **more)
        if job := getattr(self._of_thread, "job", None):
            job.waits_for(args[0].reply)
        return handle

    def turn(self, rounds: int = 1) -> None:
        """Run so many rounds of callbacks; no time passes."""
        for _ in range(rounds):
            self.call_soon(self.stop)
            self.run_forever()

    def advance(self, seconds: float) -> None:
        """Let time pass, with all that happens in it."""
        self.run_until_complete(asyncio.sleep(seconds))

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Let time pass until the condition holds; False where it does not within so many seconds."""
        end, step = self.time() + seconds, 0.05
        while not condition():
            if self.time() >= end:
                return False
            self.advance(step)
            step = min(1.3 * step, 5.0)
        return True

    def finish(self) -> None:
        """Close the loop, with what is left in it."""
        for _ in range(ATTEMPTS):  # what waits for each other is not ended at once
            left = asyncio.all_tasks(self)
            for task in left:
                task.cancel()
            if left:
                self.run_until_complete(asyncio.wait(left, timeout=20.0))
        with contextlib.suppress(TimeoutError):
            self.run_until_complete(asyncio.wait_for(self.shutdown_asyncgens(), 100.0))
        self._threads.shutdown(wait=False)
        self.close()

    def _later(self, rounds: int, callback: Callable[..., object], *args: object) -> None:
        if rounds:
            self.call_soon(self._later, rounds - 1, callback, *args)
        else:
            self.call_soon(callback, *args)


def _settle(answer: "asyncio.Future[Any]", job: _Job) -> None:
    if answer.cancelled():
        return
    if job.error is not None:
        answer.set_exception(job.error)
    else:
        answer.set_result(job.result)
