"""Who gets memory, when, and what becomes of those who are in the way. Time takes none here: see lease_machine."""

import asyncio
import logging
from contextlib import AsyncExitStack

import pytest

from genaid_server.kit.errors import NotFoundError, ServerBusyError, ServerError
from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.leases.lease import LeaseState
from genaid_server.resource.core.leases.leases import MAX_WAITING, POLL, Leases
from genaid_server.resource.core.leases.plan import AvailableMemory
from unit.leases.lease_machine import TIMEOUT, Machine, Scene, image, instantly, llm, now, refusal, settle

WAITING, GRANTED, RECLAIM = LeaseState


# --- who gets it


@instantly
async def test_what_fits_is_granted_at_once() -> None:
    async with Scene() as scene:
        holder = await scene.holder(image(16))
        assert await holder.held.granted() == holder.now
        assert (holder.now.request, holder.state, holder.now.reason) == (image(16), GRANTED, "")
        assert [state for state, _ in holder.told] == [WAITING, GRANTED]
        holder.held.raise_if_refused()
        assert scene.leases.present() == [holder.now]
        await holder.leave()
        assert (scene.open(), holder.over) == ([], True)
        assert (await scene.holder(image(16))).now.id != holder.now.id


@instantly
async def test_a_block_that_fails_gives_its_lease_back() -> None:
    async def fail(leases: Leases) -> None:
        async with leases.hold(image(16)) as held:
            await held.granted()
            raise ZeroDivisionError

    async with Scene() as scene:
        with pytest.raises(ZeroDivisionError):
            await fail(scene.leases)
        assert (await scene.holder(image(16))).state is GRANTED


@instantly
async def test_who_comes_first_is_served_first() -> None:
    async with Scene() as scene:
        first = await scene.tenant(image(10, name="a"))
        large = await scene.holder(image(10, name="b"))
        small = await scene.holder(image(1, name="c"))
        assert (large.state, small.state) == (WAITING, WAITING)
        assert [lease.request.tenant_id for lease in scene.leases.present()] == ["a", "b", "c"]
        scene.machine.unload(first.request)
        await first.leave()
        assert (await large.held.granted()).state is GRANTED
        await settle()
        assert small.state is GRANTED


@instantly
async def test_an_engine_that_can_never_fit_is_refused_before_anybody_is_asked() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(6))
        painter = await scene.tenant(image(4))
        error = await refusal(await scene.holder(image(17, name="huge")))
        assert error.facts["required"] == "17"
        assert error.facts["available"] == "16"
        assert "smaller" in error.facts["suggestion"]
        assert talker.told[-1] == painter.told[-1] == (GRANTED, None)


@instantly
async def test_what_was_granted_and_is_not_taken_yet_is_not_free_for_others() -> None:
    async with Scene() as scene:
        starting = await scene.holder(image(8, name="a"))  # 8 are granted, and all 16 are free still
        scene.machine.load(image(0, name="other programs"), Amount(3))
        assert await scene.leases.available() == AvailableMemory(Amount(16), Amount(5))
        second = await scene.holder(image(4, name="b"))
        assert (second.state, starting.told[-1]) == (GRANTED, (GRANTED, None))
        assert (await scene.leases.available()).free == Amount(1)
        third = await scene.holder(image(2, name="c"))
        assert (third.state, second.told[-1]) == (WAITING, (RECLAIM, 0.0))


@instantly
async def test_what_an_engine_holds_is_not_counted_twice() -> None:
    async with Scene() as scene:
        half = await scene.holder(image(8, name="a"))
        scene.machine.load(half.request, Amount(3))
        assert (await scene.leases.available()).free == Amount(8)
        scene.machine.load(half.request, Amount(8))
        assert (await scene.leases.available()).free == Amount(8)
        scene.machine.load(half.request, Amount(9))  # more than it said
        assert (await scene.leases.available()).free == Amount(7)


@instantly
async def test_the_llm_engine_is_known_while_its_model_is_replaced() -> None:
    async with Scene() as scene:
        holder = await scene.holder(llm(8, model_id="new"))
        scene.machine.load(llm(8, model_id="old"))
        assert (await scene.leases.available()).free == Amount(8)
        assert holder.state is GRANTED


@instantly
async def test_an_image_engine_uses_one_gpu_and_an_llm_all_of_them() -> None:
    machine = Machine(64, 48)
    machine.best_gpu = machine.largest_gpu = 24
    async with Scene(machine) as scene:
        assert not (await scene.leases.plan(image(1, 25))).possible
        assert (await scene.leases.plan(image(1, 24))).possible
        assert (await scene.leases.plan(llm(1, 48))).possible


@instantly
async def test_nobody_leaves_for_an_image_engine_that_no_gpu_holds() -> None:
    machine = Machine(64, 48)
    machine.largest_gpu = 24
    async with Scene(machine) as scene:
        talker = await scene.tenant(llm(1, 40))
        machine.best_gpu = 4
        error = await refusal(await scene.holder(image(1, 25)))
        assert "of one GPU" in error.message
        assert (error.facts["required"], error.facts["available"]) == ("25", "24")
        assert (talker.state, now() < TIMEOUT) == (GRANTED, True)


@instantly
async def test_what_there_is_to_share_is_known_from_the_last_measurement() -> None:
    async with Scene(Machine(16, 8)) as scene:
        assert scene.leases.total == Amount()
        await scene.leases.plan(image(1))
        assert scene.leases.total == Amount(16, 8)
        scene.machine.total = Amount(12, 8)
        await scene.holder(image(1))
        assert scene.leases.total == Amount(12, 8)


@instantly
async def test_to_plan_changes_nothing() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(10))
        found = await scene.leases.plan(image(6))
        assert [departure.tenant.id for departure in found.departures] == ["llm"]
        assert found.departures[0].tenant.held == Amount(10)
        await settle()
        assert (talker.told[1:], len(scene.open())) == ([(GRANTED, None)], 1)


@instantly
async def test_only_so_many_may_wait() -> None:
    async with Scene() as scene:
        await scene.tenant(image(16))
        async with AsyncExitStack() as waiting:
            for number in range(MAX_WAITING):
                await waiting.enter_async_context(scene.leases.hold(image(1, name=str(number))))
            with pytest.raises(ServerError):
                await waiting.enter_async_context(scene.leases.hold(image(1, name="one more")))
        assert (await scene.holder(image(1, name="later"))).state is WAITING


# --- who leaves


@instantly
async def test_the_llm_is_asked_to_leave_and_the_lease_is_granted_when_its_block_has_ended() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(8))
        painter = await scene.holder(image(6))
        assert talker.told[-1] == (RECLAIM, 0.0)
        assert "offloaded" in talker.now.reason
        assert (painter.state, painter.now.reason) == (WAITING, talker.now.reason)
        scene.machine.unload(talker.request)  # its process is gone, and who held its lease has not noticed
        await asyncio.sleep(1)
        assert painter.state is WAITING
        await talker.leave()
        assert (await painter.held.granted()).reason == ""
        assert (talker.over, scene.open()) == (True, [painter.now.id])


@instantly
async def test_the_llm_stays_when_the_lease_is_not_wanted_any_more() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(8))
        painter = await scene.holder(image(6))
        next_one = await scene.holder(image(4, name="small"))
        await painter.leave()
        await settle()
        assert talker.told[-2:] == [(RECLAIM, 0.0), (GRANTED, None)]
        assert (talker.state, next_one.state) == (GRANTED, GRANTED)
        assert [lease.request for lease in scene.leases.present()] == [llm(8), image(4, name="small")]
        assert (await scene.leases.available()).free == Amount(4)
        with pytest.raises(asyncio.CancelledError):
            await painter.held.granted()


@instantly
async def test_who_is_asked_may_begin_again_meanwhile_and_comes_after_who_asked() -> None:
    """A restart in the middle of an image's wait: whoever waits for the old engine sees it gone."""
    async with Scene() as scene:
        old = await scene.tenant(llm(8))
        painter = await scene.holder(image(10))
        assert old.told[-1] == (RECLAIM, 0.0)
        scene.machine.unload(old.request)
        await old.leave()
        new = await scene.holder(llm(8, model_id="new"))
        assert painter.told[-2:] == [(GRANTED, None), (RECLAIM, 0.0)]
        assert new.state is WAITING
        scene.machine.load(painter.request)
        scene.machine.unload(painter.request)
        await painter.leave()
        assert (await new.held.granted()).state is GRANTED


@instantly
async def test_an_image_engine_is_asked_to_leave_by_its_lease() -> None:
    async with Scene() as scene:
        old = await scene.tenant(image(10, name="a"))
        talker = await scene.holder(llm(6))
        assert old.told[-1] == (RECLAIM, 0.0)
        assert old.now.reason == talker.now.reason != ""
        assert talker.state is WAITING
        scene.machine.unload(old.request)
        await old.leave()
        assert (await talker.held.granted()).state is GRANTED


@instantly
async def test_an_image_engine_stays_when_the_lease_is_not_wanted_any_more() -> None:
    async with Scene() as scene:
        old = await scene.tenant(image(10, name="a"))
        talker = await scene.holder(llm(6))
        await talker.leave()
        await settle()
        assert old.told[-2:] == [(RECLAIM, 0.0), (GRANTED, None)]
        assert (old.now.reason, scene.open()) == ("", [old.now.id])


@instantly
async def test_all_who_have_to_leave_are_told_so_and_waited_for() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(6))
        painter = await scene.tenant(image(4, name="a"))
        large = await scene.holder(image(16, name="b"))
        assert (painter.state, talker.state) == (RECLAIM, RECLAIM)
        for holder in (painter, talker):
            assert large.state is WAITING
            scene.machine.unload(holder.request)
            await holder.leave()
        assert (await large.held.granted()).state is GRANTED


# --- another size


@instantly
async def test_a_larger_lease_takes_the_place_of_the_first() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(8))
        old = await scene.tenant(image(4))
        new = await scene.holder(image(8))
        assert (old.state, new.state, old.over) == (GRANTED, WAITING, False)
        assert talker.state is RECLAIM
        scene.machine.unload(talker.request)
        await talker.leave()
        assert (await new.held.granted()).state is GRANTED
        await settle()
        assert (old.over, scene.open()) == (True, [new.now.id])
        await old.leave()  # its end is not that of the engine
        assert scene.open() == [new.now.id]
        assert (await scene.leases.available()).free == Amount(8)
        with pytest.raises(NotFoundError):
            scene.leases.used(old.now.id)


@instantly
async def test_the_first_lease_stays_where_the_larger_one_is_refused() -> None:
    async with Scene() as scene:
        old = await scene.tenant(image(4))
        await refusal(await scene.holder(image(17)))
        assert (old.state, old.over, scene.open()) == (GRANTED, False, [old.now.id])


@pytest.mark.parametrize("model", ["painter's", "another"])
def test_what_an_engine_holds_itself_is_there_for_its_next_lease(model: str) -> None:
    @instantly
    async def scenario() -> None:
        async with Scene() as scene:
            await scene.tenant(image(10))
            new = await scene.holder(image(16, model_id=model))
            assert new.state is GRANTED

    scenario()


@instantly
async def test_a_lease_that_is_to_be_given_back_may_still_be_replaced() -> None:
    async with Scene() as scene:
        old = await scene.tenant(image(10))
        await scene.holder(llm(6, background=True))
        assert old.state is RECLAIM
        new = await scene.holder(image(12))
        assert (old.over, new.state) == (True, RECLAIM)  # granted, and in the way like the first


# --- until it is seen to be free


@instantly
async def test_memory_is_granted_when_it_is_seen_to_be_free() -> None:
    async with Scene() as scene:
        old = await scene.tenant(image(10, name="a"))
        large = await scene.holder(image(10, name="b"))
        late = scene.machine.vanish(old.request)
        await old.leave()
        await asyncio.sleep(TIMEOUT - 1)
        assert large.state is WAITING
        scene.machine.free += late
        before = now()
        assert (await large.held.granted()).state is GRANTED
        assert now() - before <= 2 * POLL


@instantly
async def test_nobody_else_leaves_while_memory_is_coming_free() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(5))
        old = await scene.tenant(image(7, name="a"))
        large = await scene.holder(image(6, name="b"))
        assert old.state is RECLAIM
        late = scene.machine.vanish(old.request)
        await old.leave()
        await asyncio.sleep(TIMEOUT / 2)
        scene.machine.free += late
        assert (await large.held.granted()).state is GRANTED
        assert talker.told[1:] == [(GRANTED, None)]


@pytest.mark.parametrize("asked_to", [True, False])
def test_memory_that_does_not_come_free_is_refused_after_a_while(asked_to: bool) -> None:
    @instantly
    async def scenario() -> None:
        async with Scene() as scene:
            old = await scene.tenant(image(10, name="a"))
            large = await scene.holder(image(10, name="b")) if asked_to else None
            scene.machine.vanish(old.request)
            await old.leave()
            before = now()
            error = await refusal(large or await scene.holder(image(10, name="b")))
            assert TIMEOUT <= now() - before <= TIMEOUT + 3 * POLL
            assert (error.facts["required"], error.facts["available"]) == ("10", "6")

    scenario()


@instantly
async def test_memory_of_an_engine_that_has_just_crashed_is_waited_for() -> None:
    async with Scene() as scene:
        old = await scene.tenant(image(10, name="a"))
        await old.leave()
        again = await scene.holder(image(10, name="b"))
        assert again.state is WAITING
        scene.machine.unload(old.request)
        assert (await again.held.granted()).state is GRANTED


@instantly
async def test_the_llm_is_asked_at_once_though_another_has_just_left() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(10))
        old = await scene.tenant(image(1, name="a"))
        await old.leave()
        await scene.holder(image(6, name="b"))
        assert talker.state is RECLAIM


@instantly
async def test_what_can_never_fit_is_refused_at_once_though_another_has_just_left() -> None:
    async with Scene() as scene:
        old = await scene.tenant(image(10))
        await old.leave()
        assert (await scene.holder(image(17))).over


# --- in memory already


@instantly
async def test_an_engine_in_memory_is_granted_what_it_has() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(8))
        scene.machine.load(image(4))
        scene.machine.free = Amount()  # other programs have taken the rest
        painter = await scene.holder(image(4, resident=True))
        assert (painter.state, talker.told[1:]) == (GRANTED, [(GRANTED, None)])


@instantly
async def test_an_engine_in_memory_is_refused_above_three_quarters() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(8))
        scene.machine.load(image(5))
        error = await refusal(await scene.holder(image(5, resident=True)))
        assert (error.facts["required"], talker.told[1:]) == ("5", [(GRANTED, None)])


@instantly
async def test_an_engine_in_memory_is_refused_where_the_others_have_been_granted_it() -> None:
    async with Scene(Machine(16, 8)) as scene:
        talker = await scene.tenant(llm(8, 6))
        scene.machine.load(image(4, 2))
        error = await refusal(await scene.holder(image(4, 3, resident=True)))
        assert (error.facts["required"], error.facts["available"]) == ("3", "2")
        error = await refusal(await scene.holder(image(9, 1, resident=True)))
        assert (error.facts["required"], error.facts["available"]) == ("1", "2")  # of VRAM, which decides
        assert talker.told[1:] == [(GRANTED, None)]


@instantly
async def test_an_engine_in_memory_does_not_wait_for_those_who_come_to_be() -> None:
    async with Scene() as scene:
        scene.machine.may_look.clear()
        talker = await scene.holder(llm(2))  # its turn has begun
        scene.machine.load(image(10, name="b"))
        first = await scene.holder(image(10, name="a"))
        second = await scene.holder(image(10, name="b", resident=True))
        scene.machine.may_look.set()
        await settle()
        assert (talker.state, first.state, second.state) == (GRANTED, WAITING, RECLAIM)


@instantly
async def test_an_engine_in_memory_takes_the_place_of_its_own_lease() -> None:
    async with Scene() as scene:
        old = await scene.tenant(image(10))
        new = await scene.holder(image(16, resident=True))
        assert (new.state, old.over, scene.open()) == (GRANTED, True, [new.now.id])


# --- what was used


@instantly
async def test_only_a_lease_that_is_held_was_used() -> None:
    async with Scene() as scene:
        held = await scene.tenant(image(16, name="a"))
        waiting = await scene.holder(image(16, name="b"))
        assert scene.leases.used(held.now.id) == held.now
        for unknown in (waiting.now.id, "lease-0", "x" * 10_000):
            with pytest.raises(NotFoundError) as caught:
                scene.leases.used(unknown)
            assert len(caught.value.facts["leaseId"]) <= 100
        await held.leave()
        with pytest.raises(NotFoundError):
            scene.leases.used(held.now.id)


@instantly
async def test_an_llm_does_no_work_that_others_wait_for() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(8))
        with pytest.raises(NotFoundError):
            scene.leases.used(talker.now.id)


# --- the end, and what goes wrong


@instantly
async def test_a_service_that_stops_refuses_who_waits_and_ends_every_watch() -> None:
    async with Scene() as scene:
        talker = await scene.tenant(llm(8))
        painter = await scene.holder(image(6, name="a"))
        second = await scene.holder(image(6, name="b"))
        background = await scene.holder(image(1, name="c", background=True))
        scene.leases.close()
        for holder in (painter, second, background):
            with pytest.raises(ServerError):
                await holder.held.granted()
            assert holder.state is WAITING
        await settle()
        assert all(holder.over for holder in (talker, painter, second, background))
        with pytest.raises(ServerError):
            await scene.holder(image(1, name="late"))
        assert scene.open() == [talker.now.id]
        scene.leases.close()


@instantly
async def test_a_service_that_stops_while_it_measures_grants_nothing() -> None:
    async with Scene() as scene:
        scene.machine.may_look.clear()
        painter = await scene.holder(image(1))
        await scene.machine.looking.wait()
        scene.machine.may_look.set()
        scene.leases.close()
        with pytest.raises(ServerError):
            await painter.held.granted()
        await settle()
        assert (painter.state, scene.open()) == (WAITING, [])


@instantly
async def test_a_service_that_stops_keeps_nobody_waiting_who_was_to_leave() -> None:
    async with Scene() as scene:
        old = await scene.tenant(image(10, name="a"))
        await scene.holder(image(10, name="b"))
        assert old.state is RECLAIM
        scene.leases.close()
        await settle()
        assert (old.over, old.state) == (True, GRANTED)


def test_memory_that_can_not_be_measured_is_refused_and_the_next_is_served(caplog: pytest.LogCaptureFixture) -> None:
    @instantly
    async def scenario() -> None:
        async with Scene() as scene:
            for request in (image(1), llm(1, background=True), image(1, resident=True)):
                scene.machine.broken = OSError("no such device: secret")
                holder = await scene.holder(request)
                with pytest.raises(ServerError) as caught:
                    await holder.held.granted()
                assert "secret" not in caught.value.message
                assert (holder.over, scene.open()) == (True, [])
                scene.machine.broken = None
                await (await scene.holder(request)).leave()
                await settle()

    scenario()
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3
    assert all(record.exc_info is not None for record in caplog.records)


@instantly
async def test_a_reason_of_the_domain_is_passed_on_as_it_is() -> None:
    async with Scene() as scene:
        scene.machine.broken = ServerBusyError("The driver has hung up.")
        holder = await scene.holder(image(1))
        with pytest.raises(ServerBusyError, match="hung up"):
            await holder.held.granted()


@instantly
async def test_who_looks_at_nothing_leaves_nothing_behind() -> None:
    async with Scene() as scene:
        async with scene.leases.hold(image(17)):
            await settle()
        async with scene.leases.hold(image(1)):
            pass
        assert scene.open() == []
        assert (await scene.holder(image(16))).state is GRANTED
