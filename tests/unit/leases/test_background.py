"""An LLM comes back when nobody needs its place any more, and in no hurry. Time takes none here: see lease_machine."""

import asyncio

import pytest

from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.leases.lease import LeaseState
from genaid_server.resource.core.leases.leases import BACKGROUND_POLL, POLL
from unit.leases.lease_machine import DELAY, TIMEOUT, Machine, Scene, image, instantly, llm, now, refusal, settle

WAITING, GRANTED, RECLAIM = LeaseState


@instantly
async def test_the_background_waits_until_no_more_images_come() -> None:
    async with Scene() as scene:
        painter = await scene.tenant(image(4))
        scene.leases.used(painter.now.id)
        await asyncio.sleep(DELAY / 2)
        talker = await scene.holder(llm(6, background=True))
        scene.leases.used(painter.now.id)
        await asyncio.sleep(DELAY * 0.9)
        assert talker.state is WAITING
        await talker.held.granted()
        assert now() == pytest.approx(DELAY * 1.5, abs=0.01)
        assert (painter.state, scene.open()) == (GRANTED, [painter.now.id, talker.now.id])


@instantly
async def test_the_background_does_not_wait_where_no_image_was_made() -> None:
    async with Scene() as scene:
        assert (await scene.holder(llm(16, background=True))).state is GRANTED


@instantly
async def test_the_background_has_time() -> None:
    async with Scene() as scene:
        painter = await scene.tenant(image(10))
        talker = await scene.holder(llm(6, background=True))
        assert painter.told[-1] == (RECLAIM, DELAY)
        assert painter.now.reason == talker.now.reason != ""
        await asyncio.sleep(10 * BACKGROUND_POLL)
        assert talker.state is WAITING
        scene.leases.used(painter.now.id)
        await asyncio.sleep(DELAY + BACKGROUND_POLL / 2)
        scene.machine.unload(painter.request)
        await painter.leave()
        before = now()
        assert (await talker.held.granted()).state is GRANTED
        assert now() - before < POLL


@instantly
async def test_an_image_engine_that_dies_at_work_has_worked() -> None:
    async with Scene() as scene:
        painter = await scene.tenant(image(10))
        talker = await scene.holder(llm(6, background=True))
        scene.machine.unload(painter.request)
        await painter.leave()
        before = now()
        await talker.held.granted()
        assert now() - before == pytest.approx(DELAY, abs=0.01)


@instantly
async def test_the_background_never_asks_the_llm() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(10))
        painter = await scene.holder(image(6, background=True))
        await asyncio.sleep(10 * BACKGROUND_POLL)
        assert (talker.state, painter.state) == (GRANTED, WAITING)
        scene.machine.unload(talker.request)
        await talker.leave()
        assert (await painter.held.granted()).state is GRANTED


@instantly
async def test_the_background_makes_way_for_whoever_comes_later() -> None:
    async with Scene() as scene:
        first = await scene.tenant(image(10, name="a"))
        talker = await scene.holder(llm(6, background=True))
        second = await scene.holder(image(10, name="b"))
        assert first.told[-1] == (RECLAIM, 0.0)  # there is a hurry now
        scene.machine.unload(first.request)
        await first.leave()
        assert (await second.held.granted()).state is GRANTED
        await settle()
        assert (second.told[-1], talker.state) == ((RECLAIM, DELAY), WAITING)


@instantly
async def test_the_background_makes_way_for_whoever_comes_while_memory_is_measured() -> None:
    async with Scene() as scene:
        scene.machine.may_look.clear()
        talker = await scene.holder(llm(10, background=True))
        await scene.machine.looking.wait()
        painter = await scene.holder(image(10))
        scene.machine.may_look.set()
        await settle()
        assert (painter.state, talker.state) == (RECLAIM, WAITING)


@instantly
async def test_nobody_is_in_the_way_of_a_background_that_has_gone() -> None:
    async with Scene() as scene:
        painter = await scene.tenant(image(10))
        talker = await scene.holder(llm(6, background=True))
        await talker.leave()
        await settle()
        assert painter.told[-2:] == [(RECLAIM, DELAY), (GRANTED, None)]


@instantly
async def test_who_is_in_the_way_is_told_so_once() -> None:
    async with Scene() as scene:
        painter = await scene.tenant(image(4))
        scene.machine.load(image(0, name="other programs"), Amount(8))
        talker = await scene.holder(llm(6, background=True))
        before = talker.now.reason
        scene.machine.load(image(0, name="other programs"), Amount(9))
        await asyncio.sleep(2 * BACKGROUND_POLL)
        assert painter.told.count((RECLAIM, DELAY)) == 1
        assert before != talker.now.reason  # it says how much is free


@instantly
async def test_who_is_in_the_way_is_so_too_while_memory_is_coming_free() -> None:
    async with Scene() as scene:
        a, b = await scene.tenant(image(5, name="a")), await scene.tenant(image(6, name="b"))
        talker = await scene.holder(llm(14, background=True))
        assert (a.state, b.state) == (RECLAIM, RECLAIM)
        late = scene.machine.vanish(a.request)
        await a.leave()
        await asyncio.sleep(BACKGROUND_POLL)
        assert (b.told[-1], b.told.count((RECLAIM, DELAY)), talker.over) == ((RECLAIM, DELAY), 1, False)
        scene.machine.free += late
        scene.machine.unload(b.request)
        await b.leave()
        assert (await talker.held.granted()).state is GRANTED


@instantly
async def test_who_is_in_the_way_no_more_may_stay() -> None:
    async with Scene() as scene:
        scene.machine.load(image(0, name="other programs"), Amount(8))
        painter = await scene.tenant(image(4))
        talker = await scene.holder(llm(6, background=True))
        assert painter.state is RECLAIM
        scene.machine.unload(image(0, name="other programs"))
        assert (await talker.held.granted()).state is GRANTED
        await settle()
        assert painter.told[-1] == (GRANTED, None)


@instantly
async def test_who_is_in_the_way_no_more_may_stay_though_another_is() -> None:
    async with Scene(Machine(20)) as scene:
        scene.machine.load(image(0, name="other programs"), Amount(2))
        a = await scene.tenant(image(5, name="a"))
        b = await scene.tenant(image(6, name="b"))
        talker = await scene.holder(llm(9, background=True))
        assert (a.state, b.state) == (RECLAIM, GRANTED)
        scene.machine.load(image(0, name="other programs"), Amount(6))
        assert scene.machine.free == Amount(3)
        await asyncio.sleep(BACKGROUND_POLL)
        await settle()
        assert (a.state, b.state, talker.state) == (GRANTED, RECLAIM, WAITING)


@instantly
async def test_the_background_is_refused_where_other_programs_have_the_memory() -> None:
    async with Scene() as scene:
        scene.machine.load(image(0, name="other programs"), Amount(11))
        assert "other programs leave" in (await refusal(await scene.holder(llm(6, background=True)))).message


@pytest.mark.parametrize("comes_free", [True, False])
def test_the_background_waits_as_well_for_memory_that_was_given_back(comes_free: bool) -> None:
    @instantly
    async def scenario() -> None:
        async with Scene(reload_delay=0.0) as scene:
            painter = await scene.tenant(image(10))
            talker = await scene.holder(llm(8, background=True))
            late = scene.machine.vanish(painter.request)
            await painter.leave()
            await asyncio.sleep(TIMEOUT / 2)
            assert talker.state is WAITING
            assert not talker.over
            before = now()
            if comes_free:
                scene.machine.free += late
                assert (await talker.held.granted()).state is GRANTED
                assert now() - before <= 2 * POLL
            else:
                await refusal(talker)
                assert now() - before <= TIMEOUT / 2 + 3 * POLL

    scenario()
