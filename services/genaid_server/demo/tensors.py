"""Tensors of random weights, and the layers of a network that are made of them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Encoding
from numpy.typing import NDArray

type _Array = NDArray[Any]

_BIAS_SPREAD = 0.01
_Q4_BLOCK = 32  # weights that share one float16 scale
_Q4_BLOCK_BYTES = 2 + _Q4_BLOCK // 2
_Q4_SCALE = 0.005


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to come: normally distributed around `centre` with the standard deviation `spread`.

    `shape` is in numpy's order, the slowest dimension first. Where `live_rows` is set, all rows outside that
    half-open range are zero. Neither spread nor rows mean anything to Q4_0, whose blocks have one fixed scale.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding = Encoding.F32
    spread: float = 0.0
    centre: float = 0.0
    live_rows: tuple[int, int] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type in the file; bytes where the file holds blocks."""
        if self.encoding == Encoding.Q4_0:
            return np.dtype(np.uint8)
        return np.dtype(np.float16 if self.encoding == Encoding.F16 else np.float32)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in elements of `dtype`."""
        if self.encoding == Encoding.Q4_0:
            return (*self.shape[:-1], self.shape[-1] // _Q4_BLOCK * _Q4_BLOCK_BYTES)
        return self.shape

    @property
    def stored_bytes(self) -> int:
        """How many bytes the file spends on it, alignment apart."""
        return math.prod(self.stored_shape) * self.dtype.itemsize


class WeightSource:
    """An endless, reproducible supply of random weights.

    The raw output of a bit generator is the one thing that numpy promises to keep from version to version. A
    byte of it picks one of 256 evenly likely values of the normal distribution: several times faster than to
    draw normally distributed floats and to round them, and as random as these models have to be.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)
        normal = NormalDist()
        self._normal = np.array([normal.inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)

    def draw(self, tensor: Tensor) -> _Array:
        """Draw the contents of `tensor`, as they stand in the file."""
        if tensor.encoding == Encoding.Q4_0:
            blocks = self._bytes(tensor.stored_bytes).reshape(-1, _Q4_BLOCK_BYTES)
            blocks[:, :2] = np.array([_Q4_SCALE], "<f2").view(np.uint8)
            return blocks.reshape(tensor.stored_shape)
        if not tensor.spread:
            return np.full(tensor.shape, tensor.centre, tensor.dtype)
        # Narrowed before the look-up, so that no tensor is ever converted. A numpy float64 would widen the
        # table to a type that llama.cpp refuses.
        table = (self._normal * np.float32(tensor.spread) + np.float32(tensor.centre)).astype(tensor.dtype)
        # An index of one byte cannot leave the table; "wrap" only spares the check, which costs more than half.
        values = np.take(table, self._bytes(math.prod(tensor.shape)), mode="wrap").reshape(tensor.shape)
        if tensor.live_rows:
            first, end = tensor.live_rows
            values[:first] = values[end:] = 0
        return values

    def _bytes(self, count: int) -> NDArray[np.uint8]:
        words = self._bits.random_raw(-(-count // 8))
        return words.astype("<u8", copy=False).view(np.uint8)[:count]


def under(prefix: str, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors with a prefix before their names."""
    for tensor in tensors:
        yield replace(tensor, name=f"{prefix}.{tensor.name}")


def weight(*shape: int, gain: float = 0.5) -> Tensor:
    """A matrix or a kernel that multiplies the magnitude of what passes through it by about `gain`."""
    return Tensor("weight", shape, Encoding.F16, spread=gain / math.sqrt(math.prod(shape[1:])))


def bias(size: int, centre: float = 0.0) -> Tensor:
    """A bias, or whatever is added."""
    return Tensor("bias", (size,), spread=_BIAS_SPREAD, centre=centre)


def scale(name: str, size: int) -> Tensor:
    """A factor, which is 1."""
    return Tensor(name, (size,), centre=1.0)


def linear(name: str, out: int, into: int, gain: float = 0.5) -> Iterator[Tensor]:
    """A fully connected layer."""
    return under(name, (weight(out, into, gain=gain), bias(out)))


def convolution(name: str, out: int, into: int, kernel: int = 3, *, biased: bool = True) -> Iterator[Tensor]:
    """A convolution with a square kernel."""
    kernels = weight(out, into, kernel, kernel)
    return under(name, (kernels, bias(out)) if biased else (kernels,))


def norm(name: str, size: int) -> Iterator[Tensor]:
    """A normalization."""
    return under(name, (scale("weight", size), bias(size)))
