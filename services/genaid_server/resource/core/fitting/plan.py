"""How to run a language model, and the answers about it."""

from dataclasses import dataclass, field
from enum import StrEnum

from genaid_server.resource.core.fitting.footprint import MemoryNeed
from genaid_server.resource.core.fitting.model_shape import CacheType


@dataclass(frozen=True, slots=True)
class LlmOptions:
    """How llama.cpp runs a model.

    `context_size` is in tokens for each of the `parallel` slots; `gpu_layers` is how many of the model's layers, the
    last ones first, are on the GPUs, all of them including the output; `experts_on_cpu` leaves the experts' weights
    of those in main memory.
    """

    threads: int
    gpu_layers: int
    context_size: int
    parallel: int = 1
    flash_attention: bool = True
    cache_type_k: CacheType = CacheType.F16
    cache_type_v: CacheType = CacheType.F16
    experts_on_cpu: bool = False


@dataclass(frozen=True, slots=True)
class LlmWishes:
    """What the caller has decided already; None leaves it to the recommendation. `check_wishes` checks the ranges."""

    threads: int | None = None
    gpu_layers: int | None = None
    context_size: int | None = None
    parallel: int | None = None
    flash_attention: bool | None = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    experts_on_cpu: bool | None = None


class LayerPlacement(StrEnum):
    """Where a language model's layers are; the earlier, the faster."""

    FULL = "full"
    EXPERTS_ON_CPU = "experts_on_cpu"
    PARTIAL = "partial"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model can run, with the reason in words.

    `reason` is also a warning where it can run, but slowly; else empty. `suggestion` says what to do about it, and is
    empty where there is nothing to do. `required` and `available` are bytes of the memory that decides: main memory or
    that of the GPUs; `need` is all of it.
    """

    possible: bool
    reason: str
    suggestion: str
    required: int
    available: int
    need: MemoryNeed
    config: LlmOptions | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """How to run a model on this machine now.

    `reasons` say for each setting, by its name in LlmConfig, why. `fits` is false where nothing fits, not even at the
    smallest: `config` is then the smallest. `context_reduced` says that the context is smaller than asked for; then
    `reasons["context_size"]` says why. `gpus` is how many of the GPUs, those with the most memory first, the layers are
    spread over.
    """

    config: LlmOptions
    placement: LayerPlacement
    need: MemoryNeed
    fits: bool
    context_reduced: bool = False
    reasons: dict[str, str] = field(default_factory=dict)
    gpus: int = 0
