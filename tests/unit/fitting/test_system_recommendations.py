"""What is recommended for a machine follows the documented table, within the budgets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.resource.core.fitting.capacity import Budgets
from genaid_server.resource.core.fitting.sizes import pair, words
from genaid_server.resource.core.fitting.system_recommendations import Advice, recommend, threads_reason, usable_cores
from genaid_server.supervision.threads import default_threads
from unit.fitting.fitting_models import GIB, MIB, gpu, machine

BALANCED = ("Q5_K_M", "Q4_K_M")
COMPACT = ("Q4_K_M", "Q4_K_S", "Q3_K_M")
NO_BUDGET = Budgets()


def advise(ram: float, *vram: float, budgets: Budgets = NO_BUDGET) -> Advice:
    gpus = [gpu(int(size * GIB), str(number)) for number, size in enumerate(vram)]
    return recommend(machine(*gpus), int(ram * GIB), budgets)


@pytest.mark.parametrize(
    ("ram", "vram", "size", "quantizations"),
    [
        (4, (), "7B", COMPACT),
        (7.99, (), "7B", COMPACT),
        (8, (), "7B", BALANCED),
        (15.9, (), "7B", BALANCED),
        (16, (), "13B", BALANCED),
        (31.9, (), "13B", BALANCED),
        (32, (), "34B", COMPACT),
        (512, (), "34B", COMPACT),
        (8, (12,), "7B", BALANCED),
        (64, (12,), "34B", COMPACT),
        (8, (16,), "34B", BALANCED),
        (64, (23.9,), "34B", BALANCED),
        (8, (24,), "70B", BALANCED),
        (8, (12, 12), "70B", BALANCED),
    ],
)
def test_the_size_follows_the_table(
    ram: float, vram: tuple[float, ...], size: str, quantizations: tuple[str, ...]
) -> None:
    given = advise(ram, *vram)
    assert (given.max_model_size, given.quantizations) == (size, quantizations)


def test_budgets_count_and_not_what_the_machine_has() -> None:
    assert advise(64, 24, budgets=Budgets(ram=16 * GIB, vram=15 * GIB)).max_model_size == "13B"
    assert advise(64, 24, budgets=Budgets(ram=16 * GIB, vram=16 * GIB)).max_model_size == "34B"


def test_unified_memory_counts_as_that_of_the_gpu_as_far_as_main_memory_may_be_used() -> None:
    apple = machine(gpu(int(0.7 * 32 * GIB), unified=True, integrated=True))
    assert recommend(apple, 32 * GIB, NO_BUDGET).quantizations == BALANCED
    assert recommend(apple, 32 * GIB, NO_BUDGET).max_model_size == "34B"
    assert recommend(apple, 32 * GIB, Budgets(ram=8 * GIB)).max_model_size == "7B"


@pytest.mark.parametrize(
    ("cores", "count"),
    [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (8, 7), (9, 7), (16, 14), (17, 14), (20, 17), (32, 27), (128, 108)],
)
def test_threads_leave_some_cores_to_the_machine(cores: int, count: int) -> None:
    assert default_threads(cores) == count
    assert str(count) in threads_reason(cores) or count == 1


def test_threads_are_for_cores_that_exist_and_may_be_used() -> None:
    assert recommend(machine(cores=8, usable=16), 8 * GIB, NO_BUDGET).threads == 7
    assert recommend(machine(cores=8, usable=2), 8 * GIB, NO_BUDGET).threads == 2
    assert usable_cores(machine(cores=8, usable=1).cpu) == 1


def test_layers_on_the_gpu_depend_on_the_model_where_there_is_one() -> None:
    assert advise(8).gpu_layers == 0
    assert advise(8, 4).gpu_layers is None
    unknown = recommend(machine(gpu(None)), 8 * GIB, NO_BUDGET)
    assert unknown.gpu_layers is None
    assert unknown.gpu_layers_reason != advise(8, 4).gpu_layers_reason


def test_each_recommendation_has_its_reason_with_the_size_that_decided() -> None:
    given = advise(16, 12)
    assert "16.0 GiB of main memory" in given.size_reason
    assert "12.0 GiB of GPU memory" in given.size_reason
    assert "12.0 GiB" in given.gpu_layers_reason
    assert "24.0 GiB of GPU memory" in advise(16, 24).size_reason


CLASSES = ("7B", "13B", "34B", "70B")
sizes = st.floats(0.1, 200)


@given(
    ram=sizes,
    vram=st.lists(sizes, max_size=3),
    more_ram=st.floats(0, 64),
    more_vram=st.lists(st.floats(0, 64), min_size=3, max_size=3),
    budget=st.none() | sizes,
)
def test_more_memory_never_gives_a_smaller_size(
    ram: float, vram: list[float], more_ram: float, more_vram: list[float], budget: float | None
) -> None:
    budgets = Budgets(vram=int((budget or 0) * GIB))
    less = advise(ram, *vram, budgets=budgets)
    more = advise(ram + more_ram, *(a + b for a, b in zip(vram, more_vram, strict=False)), budgets=budgets)
    assert CLASSES.index(more.max_model_size) >= CLASSES.index(less.max_model_size)


@given(ram=sizes, vram=sizes, one=sizes, other=sizes)
def test_a_higher_budget_never_gives_a_smaller_size(ram: float, vram: float, one: float, other: float) -> None:
    low, high = sorted((int(one * GIB), int(other * GIB)))
    less = advise(ram, vram, budgets=Budgets(low, low))
    more = advise(ram, vram, budgets=Budgets(high, high))
    assert CLASSES.index(more.max_model_size) >= CLASSES.index(less.max_model_size)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (MIB - 1, "1 MiB"),
        (512 * MIB, "512 MiB"),
        (GIB - 1, "1.0 GiB"),
        (int(7.4 * GIB), "7.4 GiB"),
        (2**40, "1024.0 GiB"),
    ],
)
def test_sizes_read_well(size: int, text: str) -> None:
    assert words(size) == text


@given(one=st.integers(0, 2**45), other=st.integers(0, 2**45), near=st.integers(-(2**20), 2**20))
def test_sizes_that_differ_read_differently(one: int, other: int, near: int) -> None:
    for second in (other, max(0, one + near)):
        texts = pair(one, second)
        assert (texts[0] == texts[1]) == (one == second)
