"""What must not be cut short is not, however often its caller is cancelled."""

import asyncio

import pytest

from genaid_server.kit.tasks import to_the_end


class Work:
    """Something that takes until it is released."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.started, self.release, self.ended = asyncio.Event(), asyncio.Event(), False

    async def do(self) -> str:
        self.started.set()
        await self.release.wait()
        self.ended = True
        if self._error is not None:
            raise self._error
        return "done"


async def test_the_result_is_returned() -> None:
    work = Work()
    work.release.set()
    assert await to_the_end(work.do()) == "done"


async def test_an_exception_of_the_work_is_raised() -> None:
    work = Work(OSError("disk"))
    work.release.set()
    with pytest.raises(OSError, match="disk"):
        await to_the_end(work.do())


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_cancelled_caller_waits_for_the_end_and_is_cancelled_then(times: int) -> None:
    work = Work()
    caller = asyncio.create_task(to_the_end(work.do()))
    await work.started.wait()
    for _ in range(times):
        caller.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not caller.done()
    work.release.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended


async def test_a_caller_that_was_cancelled_before_it_began_still_does_the_work() -> None:
    work = Work()
    work.release.set()

    async def call() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await to_the_end(work.do())

    caller = asyncio.create_task(call())
    await asyncio.wait([caller])
    assert caller.cancelled()
    assert work.ended


async def test_a_failure_during_a_cancellation_is_the_cause_of_it() -> None:
    work = Work(OSError("disk"))
    caller = asyncio.create_task(to_the_end(work.do()))
    await work.started.wait()
    caller.cancel()
    await asyncio.sleep(0)
    work.release.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await caller
    assert isinstance(raised.value.__cause__, OSError)


async def test_work_that_cancels_itself_ends_as_cancelled() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    caller = asyncio.create_task(to_the_end(work()))
    await asyncio.wait([caller])
    assert caller.cancelled()


async def test_a_deadline_of_the_caller_is_told_after_the_work() -> None:
    work = Work()
    asyncio.get_running_loop().call_later(0.05, work.release.set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await to_the_end(work.do())
    assert work.ended
