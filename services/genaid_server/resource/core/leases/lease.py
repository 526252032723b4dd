"""What a lease is, and what is asked for."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.leases.plan import TenantKind

LLM_TENANT: Final = "llm"
"""What the LLM engine calls itself."""


class LeaseState(Enum):
    """Where a lease is in its life; see the contract."""

    WAITING = auto()
    GRANTED = auto()
    RECLAIM = auto()


@dataclass(frozen=True, slots=True)
class ImagePlacement:
    """How an image engine is to use its memory. `max_vram_bytes` 0 is no limit; `reason` is empty where it is the
    fastest way."""

    offload_to_cpu: bool = False
    vae_tiling: bool = False
    max_vram_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What a tenant asks for.

    `measured` says where `amount` comes from. One that is `resident` occupies the memory already: it is granted at once
    or refused. One in the `background` is granted once nobody has to leave for it, and never stands in another's way.
    """

    tenant_id: str
    kind: TenantKind
    model_id: str
    amount: Amount
    measured: bool = False
    placement: ImagePlacement | None = None
    resident: bool = False
    background: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its holder sees it.

    `created_at` is in seconds since the epoch. `reason` says why it waits or is to be given back. `reclaim_after` is
    for how many seconds an engine may stay without work while the lease is reclaimed; None in other states.
    """

    id: str
    request: LeaseRequest
    created_at: float
    state: LeaseState = LeaseState.WAITING
    reason: str = ""
    reclaim_after: float | None = None
