"""What may be planned with: what the machine has or has free, the budgets, and what is kept in reserve."""

import pytest

from genaid_server.resource.core.fitting.capacity import Budgets, Capacity, available, total
from genaid_server.resource.core.fitting.footprint import Footprint, MemoryNeed
from genaid_server.resource.core.system.facts import EngineMemory, GpuMemory, Hardware, Memory, Ram
from unit.fitting.fitting_models import GIB, MIB, gpu, machine

NO_BUDGET = Budgets()
RAM = Ram(32 * GIB, 20 * GIB)
TWO = machine(gpu(12 * GIB, "a"), gpu(8 * GIB, "b"))
APPLE = machine(gpu(22 * GIB, unified=True, integrated=True))


def now(hardware: Hardware, free: list[int | None], *engines: EngineMemory) -> Memory:
    gpus = [GpuMemory(each.id, each.vram_total, size, {}) for each, size in zip(hardware.gpus, free, strict=True)]
    return Memory(0.0, RAM, tuple(gpus), engines)


def test_all_gpus_with_memory_of_their_own_count_and_no_integrated_one_beside_them() -> None:
    hybrid = machine(gpu(12 * GIB, "a"), gpu(2 * GIB, "b", integrated=True), gpu(None, "c"))
    assert total(hybrid, RAM, NO_BUDGET) == Capacity(32 * GIB, (12 * GIB,))
    assert total(TWO, RAM, NO_BUDGET) == Capacity(32 * GIB, (12 * GIB, 8 * GIB))
    shared = machine(gpu(12 * GIB, "a"), gpu(16 * GIB, "b", unified=True))
    assert total(shared, RAM, NO_BUDGET) == Capacity(32 * GIB, (12 * GIB,))


def test_an_integrated_gpu_counts_where_it_is_the_only_one() -> None:
    assert total(machine(gpu(2 * GIB, integrated=True)), RAM, NO_BUDGET) == Capacity(32 * GIB, (2 * GIB,))
    assert total(APPLE, RAM, NO_BUDGET) == Capacity(32 * GIB, (22 * GIB,), unified=True)
    assert total(machine(gpu(None)), RAM, NO_BUDGET) == Capacity(32 * GIB)


def test_budgets_are_upper_limits_of_all_gpus_together() -> None:
    assert total(TWO, RAM, Budgets(8 * GIB, 14 * GIB)) == Capacity(8 * GIB, (12 * GIB, 2 * GIB))
    assert total(TWO, RAM, Budgets(99 * GIB, 99 * GIB)) == total(TWO, RAM, NO_BUDGET)
    assert total(TWO, RAM, Budgets(vram=5 * GIB)).vram == (5 * GIB, 0)


def test_unified_memory_is_no_more_than_the_main_memory_that_may_be_used() -> None:
    assert total(APPLE, RAM, Budgets(ram=8 * GIB)) == Capacity(8 * GIB, (8 * GIB,), unified=True)
    assert available(APPLE, now(APPLE, [None]), NO_BUDGET) == Capacity(20 * GIB, (20 * GIB,), unified=True)


def test_free_memory_is_that_of_now_and_all_where_the_driver_does_not_tell() -> None:
    assert available(TWO, now(TWO, [3 * GIB, None]), NO_BUDGET) == Capacity(20 * GIB, (3 * GIB, 8 * GIB))
    assert available(TWO, now(machine(), []), NO_BUDGET).vram == (12 * GIB, 8 * GIB)


def test_what_engines_hold_counts_against_the_budgets() -> None:
    llm = EngineMemory("llm", "a-model", 7, 3 * GIB, 4 * GIB)
    memory = now(TWO, [8 * GIB, 8 * GIB], llm)
    assert available(TWO, memory, Budgets(8 * GIB, 10 * GIB)) == Capacity(5 * GIB, (6 * GIB, 0))
    assert available(TWO, memory, Budgets(2 * GIB, 2 * GIB)) == Capacity(0, (0, 0))
    assert available(TWO, memory, Budgets(99 * GIB, 99 * GIB)) == Capacity(20 * GIB, (8 * GIB, 8 * GIB))


def test_a_tenth_stays_free_and_of_a_gpu_a_gibibyte_at_least() -> None:
    room = Capacity(10 * GIB, (20 * GIB, 6 * GIB, 512 * MIB)).with_margin()
    assert room == Capacity(9 * GIB, (18 * GIB, 5 * GIB, 0))


def test_half_of_the_whole_is_an_upper_limit_for_each_memory() -> None:
    whole = Capacity(10 * GIB, (20 * GIB, 2 * GIB))
    assert whole.with_margin().within_half_of(whole) == Capacity(5 * GIB, (10 * GIB, 1 * GIB))
    assert Capacity(4 * GIB, (0, 0)).within_half_of(whole) == Capacity(4 * GIB, (0, 0))


@pytest.mark.parametrize(
    ("ram", "vram", "gpus", "fits"),
    [(10, 0, 0, True), (11, 0, 0, False), (10, 6, 1, True), (1, 7, 1, False), (1, 10, 2, True), (1, 11, 2, False)],
)
def test_a_need_fits_where_each_kind_of_memory_does(ram: int, vram: int, gpus: int, fits: bool) -> None:
    need = MemoryNeed(Footprint(weights=ram * GIB), Footprint(weights=vram * GIB))
    assert Capacity(10 * GIB, (4 * GIB, 6 * GIB)).holds(need, gpus) is fits


def test_each_gpu_needs_room_for_its_own_share_of_what_all_of_them_take() -> None:
    need = MemoryNeed(Footprint(), Footprint(weights=4 * GIB, compute=1 * GIB, overhead=1 * GIB))
    assert Capacity(0, (5 * GIB, 1 * GIB)).holds(need, 2)
    assert not Capacity(0, (6 * GIB, 1 * GIB - 1)).holds(need, 2)
    assert not Capacity(0, (6 * GIB,)).holds(need, 2)
    assert not Capacity(64 * GIB).holds(need, 0)


def test_what_is_placed_in_unified_memory_counts_in_main_memory_too() -> None:
    need = MemoryNeed(Footprint(weights=4 * GIB), Footprint(weights=6 * GIB))
    assert Capacity(10 * GIB, (6 * GIB,), unified=True).holds(need)
    assert not Capacity(9 * GIB, (6 * GIB,), unified=True).holds(need)
    assert not Capacity(10 * GIB, (5 * GIB,), unified=True).holds(need)
