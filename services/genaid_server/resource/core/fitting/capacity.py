"""How much memory may be planned with: what the machine has or has free now, within the configured budgets."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from genaid_server.resource.core.fitting.footprint import MemoryNeed
from genaid_server.resource.core.system.facts import Gpu, Hardware, Memory, Ram

_GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class Budgets:
    """What genaid may take at most, in bytes, all its engines together; 0 is no limit."""

    ram: int = 0
    vram: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a model may take, in bytes.

    `vram` has one entry for each GPU that a model may be placed on, in the order of Hardware.gpus; it is empty where
    there is none. Where `unified`, the one entry is a part of `ram`, and what is placed there counts in both.
    """

    ram: int
    vram: tuple[int, ...] = ()
    unified: bool = False

    @property
    def vram_sum(self) -> int:
        """All GPUs together: llama.cpp spreads layers over all of them."""
        return sum(self.vram)

    @property
    def vram_best(self) -> int:
        """The largest entry, 0 without a GPU: stable-diffusion.cpp uses one GPU."""
        return max(self.vram, default=0)

    def vram_of(self, gpus: int) -> int:
        """The largest so many entries together."""
        return sum(sorted(self.vram, reverse=True)[:gpus])

    def ram_for(self, need: MemoryNeed) -> int:
        """What of main memory a need takes: all of it, where the GPU has none of its own."""
        return need.total if self.unified else need.ram.total

    def holds(self, need: MemoryNeed, gpus: int = 1) -> bool:
        """Whether a need fits, spread over the largest so many GPUs."""
        return self.gpus_hold(need, gpus) and self.ram_for(need) <= self.ram

    def gpus_hold(self, need: MemoryNeed, gpus: int) -> bool:
        """Whether the largest so many GPUs have room for a need: together for all of it, and each for its own share of
        what every one of them takes besides weights and KV cache."""
        if not need.vram.total:
            return True
        each = -(-(need.vram.compute + need.vram.overhead) // max(1, gpus))
        holding = [size for size in sorted(self.vram, reverse=True)[:gpus] if size >= each]
        return len(holding) == gpus > 0 and need.vram.total <= sum(holding)

    def with_margin(self) -> "Capacity":
        """What to plan with so that it still fits a moment later: a tenth stays free, on a GPU at least 1 GiB, which
        screens and other programs take and give back as they like."""
        vram = tuple(max(0, size - max(_tenth(size), _GIB)) for size in self.vram)
        return Capacity(self.ram - _tenth(self.ram), vram, self.unified)

    def within_half_of(self, whole: "Capacity") -> "Capacity":
        """The same, but of each memory no more than half of what `whole` has."""
        vram = tuple(min(size, each // 2) for size, each in zip(self.vram, whole.vram, strict=True))
        return Capacity(min(self.ram, whole.ram // 2), vram, self.unified)


def total(hardware: Hardware, ram: Ram, budgets: Budgets) -> Capacity:
    """Everything that the machine has, as if nothing ran; with `available` the pair that CheckModel chooses from."""
    usable = _usable(hardware.gpus)
    sizes = _capped([gpu.vram_total or 0 for gpu in usable], budgets.vram)
    return _joined(_limited(ram.total, budgets.ram), sizes, usable)


def available(hardware: Hardware, memory: Memory, budgets: Budgets) -> Capacity:
    """What is free now. What our engines hold counts against the budgets."""
    usable = _usable(hardware.gpus)
    now = {gpu.gpu_id: gpu for gpu in memory.gpus}
    free = []
    for gpu in usable:
        seen = now[gpu.id].free if gpu.id in now else gpu.vram_free
        free.append((gpu.vram_total or 0) if seen is None else min(seen, gpu.vram_total or seen))
    held_ram = sum(engine.resident for engine in memory.engines)
    held_vram = sum(engine.vram or 0 for engine in memory.engines)
    left = max(0, budgets.vram - held_vram) if budgets.vram else None
    ram = memory.ram.available
    if budgets.ram:
        ram = min(ram, max(0, budgets.ram - held_ram))
    return _joined(ram, free if left is None else _spread(free, left), usable)


def _joined(ram: int, sizes: list[int], usable: list[Gpu]) -> Capacity:
    unified = any(gpu.unified for gpu in usable)
    return Capacity(ram, tuple(min(size, ram) for size in sizes) if unified else tuple(sizes), unified)


def _usable(gpus: Iterable[Gpu]) -> list[Gpu]:
    """The GPUs to place models on: those with memory of their own, else the first one that says how much it has."""
    known = [gpu for gpu in gpus if gpu.vram_total]
    own = [gpu for gpu in known if not gpu.integrated and not gpu.unified]
    return own or known[:1]


def _limited(size: int, limit: int) -> int:
    return min(size, limit) if limit else size


def _capped(sizes: list[int], limit: int) -> list[int]:
    return _spread(sizes, limit) if limit else sizes


def _spread(sizes: list[int], limit: int) -> list[int]:
    """The sizes, the later ones cut so that together they are no more than `limit`."""
    result = []
    for size in sizes:
        result.append(min(size, limit))
        limit -= result[-1]
    return result


def _tenth(size: int) -> int:
    return -(-size // 10)
