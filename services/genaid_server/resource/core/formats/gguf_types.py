"""What a GGUF file consists of: the types of its values and tensors, and its header as it is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final


class ValueType(IntEnum):
    """The type of a value in the header, with the format's numbers."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


TENSOR_SIZES: Final[Mapping[int, tuple[int, int]]] = MappingProxyType(
    {
        0: (1, 4),  # F32
        1: (1, 2),  # F16
        2: (32, 18),  # Q4_0
        3: (32, 20),  # Q4_1
        6: (32, 22),  # Q5_0
        7: (32, 24),  # Q5_1
        8: (32, 34),  # Q8_0
        9: (32, 40),  # Q8_1
        10: (256, 84),  # Q2_K
        11: (256, 110),  # Q3_K
        12: (256, 144),  # Q4_K
        13: (256, 176),  # Q5_K
        14: (256, 210),  # Q6_K
        15: (256, 292),  # Q8_K
        16: (256, 66),  # IQ2_XXS
        17: (256, 74),  # IQ2_XS
        18: (256, 98),  # IQ3_XXS
        19: (256, 50),  # IQ1_S
        20: (32, 18),  # IQ4_NL
        21: (256, 110),  # IQ3_S
        22: (256, 82),  # IQ2_S
        23: (256, 136),  # IQ4_XS
        24: (1, 1),  # I8
        25: (1, 2),  # I16
        26: (1, 4),  # I32
        27: (1, 8),  # I64
        28: (1, 8),  # F64
        29: (256, 56),  # IQ1_M
        30: (1, 2),  # BF16
        34: (256, 54),  # TQ1_0
        35: (256, 66),  # TQ2_0
        39: (32, 17),  # MXFP4
        40: (64, 36),  # NVFP4
        41: (128, 18),  # Q1_0
    }
)
"""Elements and bytes of one block, by the number of the tensor's type.

The same as `gguf.GGML_QUANT_SIZES`; but to import that takes numpy and 20 MB of memory for as long as the process
lives.
"""


@dataclass(frozen=True, slots=True)
class ArrayField:
    """An array in the header.

    `values` are None where the array was skipped; an array of arrays holds ArrayFields.
    """

    element_type: ValueType
    length: int
    values: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class LongString:
    """A string that is longer than MAX_STRING_BYTES and was skipped; `length` is in bytes."""

    length: int


type Value = bool | int | float | str | ArrayField | LongString


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its shape in ggml's order, the fastest dimension first, and where it lies.

    `ggml_type` is the number of its type; `offset` counts from the header's `data_offset`, and both it and
    `size_bytes` are in bytes.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself.

    `data_offset` is where the tensors' data begins in the file, `tensor_bytes` the size of all tensors together
    without the padding between them. Text that isn't UTF-8 has U+FFFD in the wrong places.
    """

    version: int
    tensor_count: int
    kv_count: int
    fields: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    tensor_bytes: int
