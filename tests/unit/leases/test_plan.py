"""Who leaves for one more engine: the documented scenarios, their edges, and what holds for any machine."""

from dataclasses import replace
from itertools import combinations
from typing import Final

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from genaid_server.kit.errors import InsufficientResourcesError
from genaid_server.resource.core.fitting.footprint import Amount, MemoryKind
from genaid_server.resource.core.leases.plan import AvailableMemory, Plan, Tenant, TenantKind, plan

GB: Final = 2**30
NOTHING: Final = Amount()
RAM, VRAM = MemoryKind.RAM, MemoryKind.VRAM


def llm(ram: int = 0, vram: int = 0, *, held: Amount | None = None) -> Tenant:
    amount = Amount(ram, vram)
    return Tenant("llm", TenantKind.LLM, "talker", amount, held or amount)


def painter(ram: int = 0, vram: int = 0, name: str = "painter") -> Tenant:
    amount = Amount(ram, vram)
    return Tenant(name, TenantKind.IMAGE, "artist", amount, amount)


def scene(total: Amount, *tenants: Tenant, others: Amount = NOTHING) -> AvailableMemory:
    """What is there, where the tenants have all that they hold and other programs have `others`."""
    ram = total.ram - others.ram - sum(tenant.held.ram for tenant in tenants)
    vram = total.vram - others.vram - sum(tenant.held.vram for tenant in tenants)
    return AvailableMemory(total, Amount(ram, vram))


def leaving(found: Plan) -> list[str]:
    return [departure.tenant.id for departure in found.departures]


# --- as documented


@pytest.mark.parametrize(
    ("total", "tenant", "need", "departs"),
    [
        (Amount(64 * GB, 8 * GB), llm(vram=6 * GB), Amount(vram=5 * GB), True),
        (Amount(64 * GB, 24 * GB), llm(vram=6 * GB), Amount(vram=5 * GB), False),
        (Amount(16 * GB), llm(8 * GB), Amount(6 * GB), True),
    ],
    ids=["a GPU of 8 GB", "a GPU of 24 GB", "no GPU and 16 GB"],
)
def test_the_documented_scenarios(total: Amount, tenant: Tenant, need: Amount, departs: bool) -> None:
    found = plan(need, [tenant], scene(total, tenant))
    assert found.possible
    assert leaving(found) == (["llm"] if departs else [])
    assert found.bottleneck is (VRAM if total.vram else RAM)


# --- the edges of the rules


@pytest.mark.parametrize(("more", "departs"), [(0, []), (1, ["llm"])])
@pytest.mark.parametrize("total", [16 * GB, 16 * GB + 3])
def test_three_quarters_may_be_taken_together_and_no_byte_more(total: int, more: int, departs: list[str]) -> None:
    tenant = llm(8 * GB)
    need = Amount(total * 3 // 4 - 8 * GB + more)
    assert leaving(plan(need, [tenant], scene(Amount(total), tenant))) == departs


def test_the_share_of_vram_decides_for_an_engine_that_uses_it_and_main_memory_need_only_do() -> None:
    tenant = llm(12 * GB, 8 * GB)
    room = scene(Amount(16 * GB, 24 * GB), tenant)
    assert leaving(plan(Amount(4 * GB, 10 * GB), [tenant], room)) == []  # all of main memory together
    assert leaving(plan(Amount(4 * GB, 10 * GB + 1), [tenant], room)) == ["llm"]
    assert leaving(plan(Amount(4 * GB + 1, 10 * GB), [tenant], room)) == ["llm"]


def test_the_share_of_main_memory_decides_for_an_engine_that_uses_no_vram() -> None:
    tenant = llm(8 * GB, 7 * GB)
    found = plan(Amount(5 * GB), [tenant], scene(Amount(16 * GB, 8 * GB), tenant))
    assert (found.bottleneck, leaving(found)) == (RAM, ["llm"])
    assert plan(Amount(4 * GB), [tenant], scene(Amount(16 * GB, 8 * GB), tenant)).departures == ()


def test_vram_that_is_not_there_is_not_the_bottleneck_but_missing() -> None:
    found = plan(Amount(GB, GB), [], scene(Amount(16 * GB)))
    assert not found.possible
    assert (found.required, found.available, found.total) == (GB, 0, 0)
    assert "VRAM" in found.explanation


def test_one_engine_alone_may_take_everything() -> None:
    assert plan(Amount(16 * GB, 8 * GB), [], scene(Amount(16 * GB, 8 * GB))).possible
    tenant = llm(GB, GB)
    found = plan(Amount(16 * GB, 8 * GB), [tenant], scene(Amount(16 * GB, 8 * GB), tenant))
    assert (found.possible, leaving(found)) == (True, ["llm"])


def test_nobody_leaves_who_has_nothing_of_what_is_short() -> None:
    tenant = llm(ram=2 * GB)
    found = plan(Amount(GB, 8 * GB), [tenant], scene(Amount(16 * GB, 8 * GB), tenant))
    assert (found.possible, leaving(found)) == (True, [])  # it is alone on the GPU


def test_memory_that_is_overdrawn_concerns_only_those_who_need_some_of_it() -> None:
    tenant = llm(ram=GB, vram=6 * GB)
    room = AvailableMemory(
        Amount(16 * GB, 8 * GB), Amount(15 * GB, -7 * GB)
    )  # others took what it was granted, and more
    found = plan(Amount(GB), [tenant], room)
    assert (found.possible, leaving(found), found.available) == (True, [], 15 * GB)
    short = plan(Amount(GB, 1), [tenant], room)
    assert (short.possible, short.available) == (False, 0)
    assert "other programs leave 0 bytes" in short.explanation


# --- what others have


def test_an_engine_that_can_not_fit_makes_nobody_leave() -> None:
    tenants = [llm(8 * GB), painter(2 * GB)]
    found = plan(Amount(16 * GB + 1), tenants, scene(Amount(16 * GB), *tenants))
    assert (found.possible, found.departures) == (False, ())
    assert (found.required, found.available, found.total) == (16 * GB + 1, 16 * GB, 16 * GB)
    assert "smaller model" in found.suggestion
    with pytest.raises(InsufficientResourcesError) as caught:
        found.require_possible()
    assert caught.value.facts == {
        "required": str(16 * GB + 1),
        "available": str(16 * GB),
        "suggestion": found.suggestion,
    }
    assert caught.value.message == f"{found.explanation} {found.suggestion}"


def test_what_other_programs_have_is_not_there_for_engines() -> None:
    total, others = Amount(16 * GB), Amount(5 * GB)
    assert plan(Amount(11 * GB), [], scene(total, others=others)).possible
    found = plan(Amount(11 * GB + 1), [llm(GB)], scene(total, llm(GB), others=others))
    assert (found.possible, found.departures, found.available) == (False, (), 11 * GB)
    assert "other programs leave" in found.explanation
    assert "Close other programs" in found.suggestion


def test_other_programs_may_be_why_an_engine_leaves() -> None:
    tenant = llm(4 * GB)
    found = plan(Amount(6 * GB), [tenant], scene(Amount(16 * GB), tenant, others=Amount(7 * GB)))
    assert leaving(found) == ["llm"]
    assert found.explanation == (
        "The LLM (talker, 4.0 GiB of RAM) is offloaded: 6.0 GiB are needed, and only 5.0 GiB are free."
    )


def test_what_an_engine_holds_is_counted_once() -> None:
    tenant = llm(6 * GB, held=Amount(8 * GB))  # more than it was granted
    room = AvailableMemory(Amount(16 * GB), Amount(8 * GB))
    assert leaving(plan(Amount(6 * GB), [tenant], room)) == []
    assert leaving(plan(Amount(7 * GB), [tenant], room)) == ["llm"]
    assert plan(Amount(16 * GB), [tenant], room).possible
    assert not plan(Amount(16 * GB), [replace(tenant, held=tenant.amount)], room).possible


# --- who


def test_the_fewest_leave_and_of_those_the_smallest() -> None:
    tenants = [painter(parts * GB, name=name) for name, parts in {"a": 3, "b": 4, "c": 4, "d": 6}.items()]
    room = scene(Amount(20 * GB), *tenants)
    assert leaving(plan(Amount(GB), tenants, room)) == ["a"]
    assert leaving(plan(Amount(2 * GB), tenants, room)) == ["b"]
    assert leaving(plan(Amount(4 * GB), tenants, room)) == ["d"]  # rather than two smaller ones
    assert leaving(plan(Amount(6 * GB), tenants, room)) == ["b", "c"]  # 8 GB, where a and d have 9


def test_an_image_engine_leaves_before_an_llm_of_its_size() -> None:
    for name in ("a", "z"):
        tenants = [llm(4 * GB), painter(4 * GB, name=name)]
        assert leaving(plan(Amount(6 * GB), tenants, scene(Amount(16 * GB), *tenants))) == [name]


def test_with_many_tenants_the_largest_leave() -> None:
    tenants = [painter(GB, name=str(number)) for number in range(7)] + [llm(5 * GB)]
    room = scene(Amount(16 * GB), *tenants)
    assert leaving(plan(Amount(5 * GB), tenants, room)) == ["llm"]
    assert len(leaving(plan(Amount(16 * GB), tenants, room))) == len(tenants)


# --- in words


def test_an_offload_is_explained_in_bytes() -> None:
    tenant = llm(8 * GB)
    found = plan(Amount(6 * GB), [tenant], scene(Amount(16 * GB), tenant))
    assert (found.need, found.required, found.available, found.total) == (Amount(6 * GB), 6 * GB, 8 * GB, 16 * GB)
    assert found.explanation == found.departures[0].reason
    assert found.explanation == (
        "The LLM (talker, 8.0 GiB of RAM) is offloaded: with the 6.0 GiB that are needed, "
        "14.0 GiB would be more than 75% of 16.0 GiB."
    )


def test_the_end_of_an_image_engine_is_explained_in_bytes() -> None:
    tenant = painter(10 * GB, 2 * GB)
    found = plan(Amount(7 * GB, GB), [tenant], scene(Amount(16 * GB, 8 * GB), tenant))
    assert found.explanation == (
        "The image engine (artist, 10.0 GiB of RAM) is unloaded: with the 7.0 GiB that are needed, "
        "17.0 GiB would be more than the 16.0 GiB that there are."
    )


def test_room_is_explained_in_bytes() -> None:
    tenant = llm(2 * GB)
    beside = plan(Amount(6 * GB), [tenant], scene(Amount(16 * GB), tenant))
    assert beside.explanation == "It needs 6.0 GiB of RAM, and there is room for it beside what runs."
    alone = plan(Amount(vram=6 * GB), [], scene(Amount(16 * GB, 8 * GB)))
    assert alone.explanation == "It needs 6.0 GiB of VRAM, and 8.0 GiB are there for it."
    assert (beside.suggestion, alone.suggestion) == ("", "")


def test_what_is_missing_is_explained_in_bytes() -> None:
    assert plan(Amount(vram=9 * GB), [], scene(Amount(16 * GB, 8 * GB))).explanation == (
        "Insufficient VRAM: 9.0 GiB are needed, and genaid may use 8.0 GiB in all."
    )
    two = replace(scene(Amount(16 * GB, 16 * GB)), largest_gpu=8 * GB)
    assert plan(Amount(vram=9 * GB), [], two).explanation == (
        "Insufficient VRAM: 9.0 GiB are needed, and genaid may use 8.0 GiB of one GPU."
    )
    assert plan(Amount(9 * GB), [], scene(Amount(16 * GB), others=Amount(8 * GB))).explanation == (
        "Insufficient RAM: 9.0 GiB are needed, and other programs leave 8.0 GiB."
    )


def test_sizes_that_differ_by_little_read_differently() -> None:
    found = plan(Amount(16 * GB + 1), [], scene(Amount(16 * GB)))
    assert f"{16 * GB + 1} bytes are needed, and genaid may use {16 * GB} bytes" in found.explanation


# --- whatever comes

sizes = st.integers(0, 40)
amounts = st.builds(Amount, sizes, st.just(0) | sizes)


@st.composite
def machines(draw: st.DrawFn, most: int = 5) -> tuple[Amount, list[Tenant], AvailableMemory]:
    """A need, tenants and a room; also ones that nobody would have granted so."""
    kinds = draw(st.lists(st.sampled_from(TenantKind), max_size=most))
    tenants = []
    for number, kind in enumerate(kinds):
        amount, more = draw(amounts), draw(st.just(Amount()) | amounts)
        tenants.append(Tenant(f"t{number}", kind, "model", amount, amount + more))
    total = Amount(draw(st.integers(1, 100)), draw(st.just(0) | st.integers(0, 100)))
    others = Amount(draw(st.integers(0, 30)), draw(st.integers(0, 30)))
    room = scene(total, *tenants, others=others)
    largest_gpu = draw(st.just(total.vram) | st.integers(0, total.vram))
    return (
        draw(amounts),
        tenants,
        replace(room if draw(st.booleans()) else AvailableMemory(total, total), largest_gpu=largest_gpu),
    )


def fits(need: Amount, tenants: list[Tenant], staying: list[Tenant], room: AvailableMemory) -> bool:
    """The rules, said once more."""
    decides = VRAM if need.vram and room.total.vram else RAM
    for kind in (RAM, VRAM):
        wanted = need.of(kind)
        granted = sum(tenant.amount.of(kind) for tenant in staying)
        freed = sum(tenant.held.of(kind) for tenant in tenants if tenant not in staying)
        limit = room.total.of(kind)
        if wanted and kind is decides and granted and 4 * (wanted + granted) > 3 * limit:
            return False
        if kind is VRAM and wanted > room.largest_gpu:
            return False
        if wanted and (wanted + granted > limit or wanted > room.free.of(kind) + freed):
            return False
    return True


@settings(max_examples=400)
@given(machines())
def test_the_departures_are_the_fewest_that_do_and_the_smallest_of_those(
    case: tuple[Amount, list[Tenant], AvailableMemory],
) -> None:
    need, tenants, room = case
    found = plan(need, tenants, room)
    by_number = (combinations(tenants, number) for number in range(len(tenants) + 1))
    enough = [
        choice
        for choices in by_number
        for choice in choices
        if fits(need, tenants, [tenant for tenant in tenants if tenant not in choice], room)
    ]
    assert found.possible == bool(enough)
    event(f"{len(found.departures)} leave" if found.possible else "impossible")
    if enough:
        gone = [departure.tenant for departure in found.departures]
        fewest = [choice for choice in enough if len(choice) == len(enough[0])]
        assert set(gone) in [set(choice) for choice in fewest]
        assert sum(map(size, gone)) == min(sum(map(size, choice)) for choice in fewest)
        assert sorted(gone, key=size) == gone


@settings(max_examples=200)
@given(machines(most=9))
def test_it_is_possible_exactly_where_an_empty_machine_would_do(
    case: tuple[Amount, list[Tenant], AvailableMemory],
) -> None:
    need, tenants, room = case
    found = plan(need, tenants, room)
    assert found.possible == fits(need, tenants, [], room)
    if found.possible:
        gone = [departure.tenant for departure in found.departures]
        assert fits(need, tenants, [tenant for tenant in tenants if tenant not in gone], room)
        assert found.required == need.of(found.bottleneck)
        assert all(departure.reason in found.explanation for departure in found.departures)
    else:
        assert found.departures == ()
        assert found.suggestion
        assert found.required > found.available
    assert 0 <= found.available <= found.total


@settings(max_examples=200)
@given(machines())
def test_it_depends_on_nothing_else(case: tuple[Amount, list[Tenant], AvailableMemory]) -> None:
    need, tenants, room = case
    before = list(tenants)
    first = plan(need, tenants, room)
    assert plan(need, tenants, room) == first
    assert tenants == before
    assert plan(need, list(reversed(tenants)), room) == first


def size(tenant: Tenant) -> int:
    return tenant.amount.ram + tenant.amount.vram
