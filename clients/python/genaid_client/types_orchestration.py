"""What calls about shared memory take and return. Times are aware and in UTC, sizes are bytes, edges pixels."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from genaid_client.types import ModelFile
from genaid_client.types_llm import LlmServing
from genaid_client.types_system import LlmConfig


class MemoryKind(StrEnum):
    """A kind of memory."""

    RAM = "ram"
    VRAM = "vram"


class TenantKind(StrEnum):
    """What occupies memory."""

    IMAGE = "image"
    LLM = "llm"


class LeaseState(StrEnum):
    """Where a lease is in its life: nothing may be loaded while it is waiting; in reclaim it is to be given back.

    A state that this client doesn't know is read as WAITING.
    """

    WAITING = "waiting"
    GRANTED = "granted"
    RECLAIM = "reclaim"


class OffloadPhase(StrEnum):
    """Where an offloaded LLM is on its way. What this client doesn't know is read as OFFLOADED."""

    OFFLOADING = "offloading"
    OFFLOADED = "offloaded"
    RELOADING = "reloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ImageNeed:
    """What an image engine is to do. An empty `model_id` is the configured or the only installed diffusion model.

    `variant` is that of the runtime that computes; only `cpu` takes no VRAM. `max_vram_bytes` None is no limit.
    """

    model_id: str = ""
    width: int = 512
    height: int = 512
    variant: str = "cpu"
    flash_attention: bool = False
    vae_tiling: bool = False
    offload_to_cpu: bool = False
    clip_on_cpu: bool = False
    vae_on_cpu: bool = False
    max_vram_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ImagePlacement:
    """How an image engine is to use the memory that it was granted; `reason` is empty where it is the fastest way."""

    offload_to_cpu: bool
    vae_tiling: bool
    max_vram_bytes: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A diffusion model, as an image engine opens it: `files` are its files, the one that an engine opens first."""

    id: str
    name: str
    files: tuple[ModelFile, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of an engine to occupy memory.

    `kind` is None where it is not known to this client. `measured` says where its size comes from; otherwise it is
    estimated. `reason` says why it waits or is to be given back. `reclaim_after_seconds` is for how long an idle engine
    may stay in RECLAIM, None in other states. `placement` is for image engines, once it is granted, and `image_model`
    the model that they are to load.
    """

    id: str
    tenant_id: str
    kind: TenantKind | None
    model_id: str
    state: LeaseState
    ram_bytes: int
    vram_bytes: int
    measured: bool
    reason: str
    create_time: datetime
    reclaim_after_seconds: float | None
    placement: ImagePlacement | None
    image_model: ImageModel | None = None


@dataclass(frozen=True, slots=True)
class LeaseList:
    """All leases, the oldest first, and how much there is to share and is granted."""

    leases: tuple[Lease, ...]
    total_ram_bytes: int
    total_vram_bytes: int
    granted_ram_bytes: int
    granted_vram_bytes: int


@dataclass(frozen=True, slots=True)
class Departure:
    """A tenant that would leave, what its lease is for, and why. `kind` is None where this client doesn't know it."""

    tenant_id: str
    kind: TenantKind | None
    model_id: str
    ram_bytes: int
    vram_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """What making an image would take.

    `required_bytes`, `available_bytes` (free now) and `total_bytes` are of the `bottleneck`, which is None where it is
    not known to this client. `explanation` says all of it in words, `suggestion` what to do where it isn't `possible`;
    then `placement` is None and nobody leaves.
    """

    model_id: str
    would_need_offload: bool
    possible: bool
    bottleneck: MemoryKind | None
    required_bytes: int
    available_bytes: int
    total_bytes: int
    departures: tuple[Departure, ...]
    explanation: str
    suggestion: str
    placement: ImagePlacement | None
    ram_bytes: int
    vram_bytes: int
    measured: bool
    image_model: ImageModel | None = None


@dataclass(frozen=True, slots=True)
class OffloadedLlm:
    """The LLM that was offloaded and comes back by itself.

    `config` is how it computes, `serving` how it serves (without its key, with the port that it had). `save_time` is
    when it was offloaded, `reason` what for. `next_attempt_time` is None unless loading it failed; `saved_tokens` are
    those of conversations whose prompt cache is saved.
    """

    model_id: str
    config: LlmConfig
    serving: LlmServing
    was_running: bool
    save_time: datetime
    reason: str
    phase: OffloadPhase
    failed_attempts: int
    last_error: str
    next_attempt_time: datetime | None
    saved_tokens: int
