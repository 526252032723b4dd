"""The facts about a machine, as they were detected or measured. Sizes are bytes."""

from dataclasses import dataclass, field
from enum import StrEnum


class Vendor(StrEnum):
    """Who made a GPU."""

    NVIDIA = "nvidia"
    AMD = "amd"
    APPLE = "apple"
    INTEL = "intel"


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor.

    `physical_cores` and `logical_cores` are the machine's; `usable_cores` are those that this process may use, after
    affinity and a container's quota, at least 1 and at most `logical_cores`. `architecture` is as in Node.js: `x64`,
    `arm64`, or what the system calls it. `features` are the instruction sets that matter to ggml, ordered:
    of `avx`, `avx2`, `avx_vnni`, `avx512`, `avx512_vnni`, `avx512_bf16`, `amx_int8`, `amx_bf16`, `f16c`, `fma`,
    `neon`, `dotprod`, `i8mm`, `sve`.
    """

    model: str
    architecture: str
    physical_cores: int
    logical_cores: int
    usable_cores: int
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ram:
    """Main memory now. `total` is the machine's or a container's limit, whichever is less; `available` what programs
    can have without swapping; `container_limit` is None outside of a container with a limit."""

    total: int
    available: int
    container_limit: int | None = None

    @property
    def used(self) -> int:
        """What is not available."""
        return max(0, self.total - self.available)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTraits:
    """What is known of a GPU, by whoever looks at it.

    `vram_total` is None where nobody tells; for `unified` memory it is the part of main memory that the GPU may take,
    and of an integrated one that is not unified the part that the firmware set aside. `vram_free` is from the time
    of detection, None where the driver doesn't tell. `cuda`, `metal`, `rocm`, `vulkan` say whether a runtime of that
    kind could use it: the driver is there. `compute_capability` is NVIDIA's, such as `8.9`.
    """

    vram_total: int | None = None
    vram_free: int | None = None
    unified: bool = False
    integrated: bool = False
    driver: str = ""
    compute_capability: str = ""
    cuda: bool = False
    metal: bool = False
    rocm: bool = False
    vulkan: bool = False


@dataclass(frozen=True, slots=True)
class Gpu(GpuTraits):
    """One GPU.

    `id` stays the same as long as the hardware does: a PCI address (`0000:01:00.0`), a UUID, or `apple-0`.
    """

    id: str
    vendor: Vendor
    name: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """What was detected, apart from memory, which is never cached.

    `platform` is as in Node.js: `linux`, `darwin`, `win32`. `gpus` are ordered by how useful they are: those with
    memory of their own first, the most memory first. `notes` say in words what could not be found out, and why.
    """

    platform: str
    cpu: Cpu
    gpus: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = ()
    container: bool = False
    wsl: bool = False


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The memory of one GPU now; None is what the driver doesn't tell. `processes` are bytes by process id, where the
    driver tells them apart."""

    gpu_id: str
    total: int | None
    free: int | None
    processes: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """What one of our engines holds: `kind` is `image` or `llm`. `resident` counts its descendants as well, and so does
    `private`, which leaves out the pages that files on disk back: the system takes those away by itself. `vram` is None
    where the driver doesn't tell."""

    kind: str
    model_id: str
    pid: int
    resident: int
    vram: int | None = None
    private: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """All memory now. `time` is seconds since the epoch; `notes` as in Hardware."""

    time: float
    ram: Ram
    gpus: tuple[GpuMemory, ...] = ()
    engines: tuple[EngineMemory, ...] = ()
    notes: tuple[str, ...] = ()
