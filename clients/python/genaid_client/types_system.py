"""What calls about the machine take and return. Sizes are bytes, times are aware and in UTC."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class GpuVendor(StrEnum):
    """Who made a GPU."""

    NVIDIA = "nvidia"
    AMD = "amd"
    APPLE = "apple"
    INTEL = "intel"


class CacheType(StrEnum):
    """How the KV cache is stored; q8_0 and q4_0 need flash attention, and head dimensions that 32 divides."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class Placement(StrEnum):
    """Where the layers of a language model are; the earlier, the faster."""

    FULL = "full"
    EXPERTS_ON_CPU = "experts_on_cpu"
    PARTIAL = "partial"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor.

    `physical_cores` and `logical_cores` are the machine's, `usable_cores` the logical ones that genaid may use.
    `architecture` is `x64`, `arm64`, or what the system calls it; `features` are instruction sets, such as `avx2`.
    """

    model: str
    architecture: str
    physical_cores: int
    logical_cores: int
    usable_cores: int
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ram:
    """Main memory.

    `total_bytes` is the machine's or a container's limit, whichever is less; `available_bytes` is what programs can
    have without swapping. `container_limit_bytes` and the configured `budget_bytes` are None where there is none.
    """

    total_bytes: int
    available_bytes: int
    used_bytes: int
    container_limit_bytes: int | None = None
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; `id` stays the same as long as the hardware does. `vendor` is None where it is not known to this client.

    `vram_bytes` and `vram_free_bytes` are None where nobody tells; of unified memory, which the GPU shares with the
    processor, they are of the part that it may take. `cuda`, `metal`, `rocm` and `vulkan` say whether an engine of that
    kind could use it. `compute_capability` is NVIDIA's, such as `8.9`.
    """

    id: str
    vendor: GpuVendor | None
    name: str
    vram_bytes: int | None = None
    vram_free_bytes: int | None = None
    unified_memory: bool = False
    integrated: bool = False
    driver: str = ""
    compute_capability: str = ""
    cuda: bool = False
    metal: bool = False
    rocm: bool = False
    vulkan: bool = False


@dataclass(frozen=True, slots=True)
class Recommendations:
    """What suits a machine, with the reasons in words.

    `max_model_size` is the largest class of language models that runs well, by its parameters: `7B`. `quantizations`
    come the best first. `gpu_layers` is 0 without a GPU, and None with one: it depends on the model.
    """

    max_model_size: str
    quantizations: tuple[str, ...]
    threads: int
    gpu_layers: int | None
    size_reason: str
    threads_reason: str
    gpu_layers_reason: str


@dataclass(frozen=True, slots=True)
class SystemCapabilities:
    """What the machine has, and what is recommended for it.

    `memory` is of now, the rest of `detect_time`. `gpus` come the most useful first; `gpu_available` says whether an
    engine could use one. `platform` is `linux`, `darwin` or `win32`, `platform_key` has the architecture, too.
    `notes` say in words what could not be found out, and why. `vram_budget_bytes` is configured, for all GPUs together.
    """

    cpu: Cpu
    memory: Ram
    gpu_available: bool
    gpus: tuple[Gpu, ...]
    platform: str
    platform_key: str
    recommendations: Recommendations
    notes: tuple[str, ...]
    container: bool
    wsl: bool
    detect_time: datetime
    vram_budget_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The memory of one GPU; None is what the driver doesn't tell."""

    gpu_id: str
    name: str
    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """What one engine holds: `kind` is `image` or `llm`.

    `resident_bytes` is main memory, `vram_bytes` that of all GPUs together, None where the driver doesn't tell.
    """

    kind: str
    model_id: str
    pid: int
    resident_bytes: int
    vram_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """All memory at one moment; `notes` say in words what could not be measured, and why."""

    time: datetime
    ram: Ram
    gpus: tuple[GpuMemory, ...] = ()
    engines: tuple[EngineMemory, ...] = ()
    notes: tuple[str, ...] = ()
    vram_budget_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes in one kind of memory.

    That is its weights, the KV cache of all slots, buffers to compute with, and what the engine takes besides.
    """

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    overhead_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a model takes of main memory, and of all GPUs together.

    `exact` says that it was computed from the model's header; otherwise it is the size of its files times 1.2.
    """

    ram: Footprint
    vram: Footprint
    exact: bool


@dataclass(frozen=True, slots=True)
class LlmConfig:
    """How llama.cpp runs a language model. In a wish, None leaves a setting to the recommendation.

    `context_size` is in tokens for each of the `parallel_requests` slots; `gpu_layers` are the model's last ones, and
    as many as it has, or more, are all of it. `experts_on_cpu` keeps the experts of a mixture in main memory.
    The ranges are in the contract; the server checks them.
    """

    threads: int | None = None
    gpu_layers: int | None = None
    context_size: int | None = None
    parallel_requests: int | None = None
    flash_attention: bool | None = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    experts_on_cpu: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """Whether a model can run.

    `reason` says why not, or warns where it can, but slowly; `suggestion` says what to do about it. Both may be empty.
    `required_bytes` and `available_bytes` are of the memory that decides, `need` is all of it. `llm_config` is how it
    would be run, and None for a diffusion model.
    """

    possible: bool
    reason: str
    suggestion: str
    required_bytes: int
    available_bytes: int
    need: MemoryNeed
    llm_config: LlmConfig | None = None


@dataclass(frozen=True, slots=True)
class LlmRecommendation:
    """How best to run a language model with the memory that is free now.

    `placement` is None where it is not known to this client. `fits` is false where nothing fits; `config` is then the
    smallest there is. `context_reduced` says that the context is smaller than asked for. `reasons` say why each setting
    is what it is, by its name in LlmConfig.
    """

    config: LlmConfig
    placement: Placement | None
    need: MemoryNeed
    fits: bool
    context_reduced: bool
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServerVersion:
    """What runs, where it keeps its data, and where it listens.

    `version` is that of genaid, `contract_revision` a number of the contract's ContractRevision. `data_dir` and
    `inbox_dir` are absolute paths on the server's machine. `addresses` are those of the contract: `resource` always,
    `image`, `gateway` and `llm` where they are known.
    """

    version: str
    contract_revision: int
    data_dir: str
    inbox_dir: str
    addresses: Mapping[str, str]
