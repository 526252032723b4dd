"""Who leaves, in which order and why, so that one more engine fits into memory. Pure: it changes and asks nothing.

The documented rules: VRAM decides for an engine that uses a GPU, main memory for the others; engines that together take
more than three quarters of it can't stay together. What other programs take counts as well: an engine is granted no
more than is free, or comes free when others leave. Nobody leaves for an engine that can't fit even then.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from genaid_server.kit.errors import InsufficientResourcesError
from genaid_server.resource.core.fitting.footprint import NO_MEMORY, Amount, MemoryKind
from genaid_server.resource.core.fitting.sizes import pair, words

THRESHOLD: Final = 0.75
"""Share of the memory that decides which engines may take together, as documented."""
ENDLESS: Final = 2**62
"""Bytes that no machine has."""
_FEW: Final = 6
"""Tenants up to which every choice of who leaves is compared; that many engines never run."""


class TenantKind(StrEnum):
    """What occupies memory."""

    IMAGE = "image"
    LLM = "llm"


@dataclass(frozen=True, slots=True)
class Tenant:
    """An engine that has a lease: `amount` is what it is for, `held` what comes free once its process is gone."""

    id: str
    kind: TenantKind
    model_id: str
    amount: Amount
    held: Amount = NO_MEMORY


@dataclass(frozen=True, slots=True)
class AvailableMemory:
    """What there is to share, within the budgets, and what is free of the machine's memory now.

    `largest_gpu` is the VRAM that an engine can have at most that uses one GPU.
    """

    total: Amount
    free: Amount
    largest_gpu: int = ENDLESS

    def most(self, kind: MemoryKind) -> int:
        """Bytes of one kind that the engine may have where it is alone."""
        return min(self.total.vram, self.largest_gpu) if kind is MemoryKind.VRAM else self.total.ram


@dataclass(frozen=True, slots=True)
class Departure:
    """A tenant that has to leave, and why in words."""

    tenant: Tenant
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes to make room for an engine.

    `required`, `available` and `total` are bytes of the `bottleneck`; `available` is what is free before anybody
    leaves, or where it isn't `possible` what would be if everybody left. `departures` are in order; none where it isn't
    possible. `explanation` says all of it in words, `suggestion` what to do where it isn't possible.
    """

    need: Amount
    bottleneck: MemoryKind
    possible: bool
    departures: tuple[Departure, ...]
    required: int
    available: int
    total: int
    explanation: str
    suggestion: str = ""

    def require_possible(self) -> None:
        """Raises InsufficientResourcesError where it isn't."""
        if not self.possible:
            raise InsufficientResourcesError(
                f"{self.explanation} {self.suggestion}".strip(),
                required=str(self.required),
                available=str(self.available),
                suggestion=self.suggestion,
            )


def plan(need: Amount, tenants: Sequence[Tenant], memory: AvailableMemory) -> Plan:
    """Make room for `need` beside the tenants.

    The fewest leave, of those the ones with the least memory, image engines before the LLM.
    """
    bottleneck = MemoryKind.VRAM if need.vram and memory.total.vram else MemoryKind.RAM
    for leaving in _choices(tenants):
        staying = [tenant for tenant in tenants if tenant not in leaving]
        if _short_of(need, staying, leaving, memory, bottleneck) is None:
            departures = tuple(Departure(tenant, _why(need, tenants, tenant, memory, bottleneck)) for tenant in leaving)
            return _possible(need, bottleneck, departures, tenants, memory)
    short_of = _short_of(need, [], tenants, memory, bottleneck) or bottleneck
    return _impossible(need, short_of, tenants, memory)


def _choices(tenants: Sequence[Tenant]) -> Iterable[tuple[Tenant, ...]]:
    """Who may leave: nobody first, all last."""
    cheapest = sorted(tenants, key=lambda tenant: (_size(tenant), tenant.kind, tenant.id))
    if len(cheapest) > _FEW:
        return [(), *(tuple(cheapest[-number:]) for number in range(1, len(cheapest) + 1))]
    by_number = (
        sorted(itertools.combinations(cheapest, number), key=lambda leaving: sum(map(_size, leaving)))
        for number in range(len(cheapest) + 1)
    )
    return itertools.chain.from_iterable(by_number)


def _size(tenant: Tenant) -> int:
    return tenant.amount.ram + tenant.amount.vram


def _short_of(
    need: Amount, staying: Sequence[Tenant], leaving: Sequence[Tenant], memory: AvailableMemory, bottleneck: MemoryKind
) -> MemoryKind | None:
    """The memory that does not do, None where both kinds do."""
    for kind in MemoryKind:
        beside = sum(tenant.amount.of(kind) for tenant in staying)
        allowed = _allowed(memory, kind) if beside and kind is bottleneck else memory.total.of(kind)
        freed = memory.free.of(kind) + sum(tenant.held.of(kind) for tenant in leaving)
        # Who needs nothing of a kind is short of none, though it may be overdrawn.
        if need.of(kind) and need.of(kind) > min(allowed - beside, freed, memory.most(kind)):
            return kind
    return None


def _allowed(memory: AvailableMemory, kind: MemoryKind) -> int:
    """What several engines may take together."""
    return int(memory.total.of(kind) * THRESHOLD)


def _possible(
    need: Amount,
    bottleneck: MemoryKind,
    departures: tuple[Departure, ...],
    tenants: Sequence[Tenant],
    memory: AvailableMemory,
) -> Plan:
    required, name = words(need.of(bottleneck)), bottleneck.upper()
    if departures:
        explanation = " ".join(departure.reason for departure in departures)
    elif tenants:
        explanation = f"It needs {required} of {name}, and there is room for it beside what runs."
    else:
        explanation = f"It needs {required} of {name}, and {words(memory.total.of(bottleneck))} are there for it."
    return Plan(
        need,
        bottleneck,
        True,
        departures,
        need.of(bottleneck),
        _available(tenants, memory, bottleneck),
        memory.total.of(bottleneck),
        explanation,
    )


def _impossible(need: Amount, short_of: MemoryKind, tenants: Sequence[Tenant], memory: AvailableMemory) -> Plan:
    name, total = short_of.upper(), memory.most(short_of)
    could_be = max(0, memory.free.of(short_of) + sum(tenant.held.of(short_of) for tenant in tenants))
    if need.of(short_of) > total:
        required, there = pair(need.of(short_of), total)
        where = "in all" if total == memory.total.of(short_of) else "of one GPU"
        explanation = f"Insufficient {name}: {required} are needed, and genaid may use {there} {where}."
        suggestion = "Choose a smaller model, a smaller image, or a larger memory limit where one is configured."
    else:
        required, there = pair(need.of(short_of), could_be)
        explanation = f"Insufficient {name}: {required} are needed, and other programs leave {there}."
        suggestion = "Close other programs, or choose a smaller model or image."
    return Plan(need, short_of, False, (), need.of(short_of), min(total, could_be), total, explanation, suggestion)


def _available(tenants: Sequence[Tenant], memory: AvailableMemory, kind: MemoryKind) -> int:
    """What is free without anybody leaving, of the budget and of the machine."""
    taken = sum(tenant.amount.of(kind) for tenant in tenants)
    return max(0, min(memory.total.of(kind) - taken, memory.free.of(kind)))


def _why(
    need: Amount, tenants: Sequence[Tenant], leaving: Tenant, memory: AvailableMemory, bottleneck: MemoryKind
) -> str:
    short_of = _short_of(need, tenants, [], memory, bottleneck) or bottleneck
    who = "The LLM" if leaving.kind is TenantKind.LLM else "The image engine"
    verb = "is offloaded" if leaving.kind is TenantKind.LLM else "is unloaded"
    taken, required = words(leaving.amount.of(short_of)), words(need.of(short_of))
    name, total = short_of.upper(), words(memory.total.of(short_of))
    together = need.of(short_of) + sum(tenant.amount.of(short_of) for tenant in tenants)
    allowed = _allowed(memory, short_of) if short_of is bottleneck else memory.total.of(short_of)
    if together > allowed:
        share = f"{THRESHOLD:.0%} of {total}" if short_of is bottleneck else f"the {total} that there are"
        return (
            f"{who} ({leaving.model_id}, {taken} of {name}) {verb}: with the {required} that are needed, "
            f"{words(together)} would be more than {share}."
        )
    return (
        f"{who} ({leaving.model_id}, {taken} of {name}) {verb}: {required} are needed, and only "
        f"{words(max(0, memory.free.of(short_of)))} are free."
    )
