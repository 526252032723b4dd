"""A watcher sees the newest value, never a backlog, and the last one for certain."""

import asyncio
from collections.abc import AsyncIterator

from genaid_server.kit.watchable import Watchable


async def collect(watch: AsyncIterator[int]) -> list[int]:
    return [value async for value in watch]


async def test_a_watch_begins_with_the_present_value() -> None:
    value = Watchable(1)
    value.set(2)
    watch = value.watch()
    assert await anext(watch) == 2
    assert value.value == 2


async def test_a_slow_watcher_skips_what_came_between_and_ends_with_the_last_value() -> None:
    value = Watchable(0)
    watch = value.watch()
    assert await anext(watch) == 0
    for number in range(1, 100):
        value.set(number)
    assert await anext(watch) == 99
    value.set(100)
    value.close()
    assert await collect(watch) == [100]


async def test_close_ends_a_watch_that_waits() -> None:
    value = Watchable(1)
    watch = value.watch()
    assert await anext(watch) == 1
    rest = asyncio.create_task(collect(watch))
    await asyncio.sleep(0)
    value.close()
    assert await rest == []


async def test_a_watch_of_a_closed_value_shows_the_last_one_and_ends() -> None:
    value = Watchable(1)
    value.close()
    assert await collect(value.watch()) == [1]


async def test_every_watcher_is_woken_by_every_change() -> None:
    value = Watchable(0)
    watches = [value.watch() for _ in range(50)]
    for number in range(3):
        seen = asyncio.gather(*(anext(watch) for watch in watches))
        await asyncio.sleep(0)  # the watchers wait now, except for the first round
        value.set(number)
        assert await seen == [number] * 50
    value.close()


async def test_an_equal_value_wakes_nobody() -> None:
    value = Watchable([1])
    watch = value.watch()
    await anext(watch)
    following = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    value.set([1])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not following.done()
    value.set([2])
    assert await following == [2]


async def test_a_watch_that_is_cancelled_or_left_leaves_no_task_behind_and_harms_no_other() -> None:
    value = Watchable(0)
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(collect(value.watch()))
    async for _ in value.watch():
        break
    other = value.watch()
    await anext(other)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    value.set(1)
    assert await anext(other) == 1
    assert asyncio.all_tasks() == before


async def test_values_that_are_set_by_the_watcher_itself_are_seen() -> None:
    value = Watchable(3)
    seen = []
    async for number in value.watch():
        seen.append(number)
        if number == 0:
            value.close()
        else:
            value.set(number - 1)
    assert seen == [3, 2, 1, 0]
