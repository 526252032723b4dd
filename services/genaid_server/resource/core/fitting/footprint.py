"""What a model takes in memory when it runs, part by part. Sizes are bytes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self


class MemoryKind(StrEnum):
    """A kind of memory."""

    RAM = "ram"
    VRAM = "vram"


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes of main memory and of all GPUs' memory."""

    ram: int = 0
    vram: int = 0

    def __add__(self, other: Self) -> "Amount":
        return Amount(self.ram + other.ram, self.vram + other.vram)

    def of(self, kind: MemoryKind) -> int:
        """Bytes of one kind."""
        return self.vram if kind is MemoryKind.VRAM else self.ram


NO_MEMORY: Final = Amount()


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model needs in one kind of memory: its weights, the KV cache (and recurrent state), the buffers that
    computing needs, and what the engine and its libraries take besides."""

    weights: int = 0
    kv_cache: int = 0
    compute: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.kv_cache + self.compute + self.overhead


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a model needs: in main memory, and on all GPUs together.

    `exact` says that the header was read; otherwise everything is the size of the files times 1.2, in `weights`.
    """

    ram: Footprint
    vram: Footprint = Footprint()
    exact: bool = True

    @property
    def total(self) -> int:
        """Both kinds of memory together."""
        return self.ram.total + self.vram.total
