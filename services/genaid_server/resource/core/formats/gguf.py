"""A bounded reader of GGUF headers.

The format is described in ggml/docs/gguf.md: a magic, a version, the number of tensors and of key-value pairs,
the pairs, the tensors' names, types, shapes and offsets, and then, aligned, the tensors' data, which is not read
here. Versions 2 and 3 are read, little endian.

A header comes from a stranger. No length or count in it is believed before it fits into what is left of the
file, and nothing is kept that a model doesn't need: whatever the file says, reading it takes less than 64 MB of
memory and less than a second. Arrays are skipped without looking at their elements, which is also what makes
this fast: a vocabulary of 150,000 tokens costs hundredths of a second.
"""

import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.formats.byte_source import FileSource, Source

MAX_HEADER_BYTES: Final = 256 * 2**20
"""How far into a file a header may reach. The largest vocabularies make headers of some 20 MB."""
MAX_PAIRS: Final = 65_536
"""Key-value pairs in a header. Models have a few dozen, a thousand at most."""
MAX_TENSORS: Final = 65_536
"""Tensors in a header. Models have at most a few thousand; so many of them still fit into the memory limit."""
MAX_ARRAYS: Final = 65_536
"""Arrays in a header, nested ones included: each is a step of its own even where it is empty."""
MAX_ARRAY_DEPTH: Final = 4
"""How deep arrays nest. The format allows it; no engine reads it."""
MAX_STRINGS: Final = 2**21
"""Strings in all arrays together, because each costs a step. The largest vocabularies with their merges have less
than a million."""
MAX_STRING_BYTES: Final = 256 * 2**10
"""The longest string value that is kept. Chat templates are a tenth of that; what is longer is a file of its own
that someone put in, such as a whole tokenizer.json."""
MAX_KEY_BYTES: Final = 65_535
"""The longest key, which the format fixes, and the longest name of a tensor, which it doesn't."""
MAX_SHORT_ARRAY: Final = 1024
"""Elements of an array that counts as short. One of numbers is always kept: one value for each layer, for example."""
MAX_KEPT_BYTES: Final = 40 * 2**20
"""Memory for everything that a header leaves behind."""
MAX_KEPT_BYTES_WITH_ARRAYS: Final = 512 * 2**20
"""The same where all arrays were asked for."""

_MAX_DIMENSIONS: Final = 4  # of a tensor, as in ggml
_MAX_ELEMENTS: Final = 2**63 - 1
_DEFAULT_ALIGNMENT: Final = 32
_FIRST_CHUNK: Final = 2**16  # read at once at first, each time four times as much, and at last
_CHUNK: Final = 2**20
_PAIR_BYTES: Final = 13  # the smallest pair: an empty key, its type, one byte
_TENSOR_BYTES: Final = 24  # the smallest entry: an empty name, no dimensions, its type, its offset
_TENSOR_COST: Final = 400  # memory that an entry takes besides its name, at its largest
_PAIR_COST: Final = 200  # memory that a pair takes besides its strings and elements
_NUMBER_COST: Final = 40  # memory that one element of a kept array takes

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_PREAMBLE: Final = struct.Struct("<4sIQQ")
_ARRAY: Final = struct.Struct("<IQ")
# What follows a tensor's name and its number of dimensions: the dimensions, the type, the offset.
_SHAPED: Final = tuple(struct.Struct(f"<{dimensions}QIQ") for dimensions in range(_MAX_DIMENSIONS + 1))


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


_LETTERS: Final = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
_NUMBERS: Final = {kind: struct.Struct(f"<{letter}") for kind, letter in _LETTERS.items()}
_SMALLEST_ELEMENT: Final = {kind: layout.size for kind, layout in _NUMBERS.items()} | {
    ValueType.STRING: _U64.size,
    ValueType.ARRAY: _ARRAY.size,
}

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


def read_header(path: Path, *, arrays: bool = False, short_arrays: bool = False) -> GgufHeader:
    """Read the header of the file at `path`; see `parse_header`. Raises OSError where the disk refuses."""
    with FileSource(path) as source:
        return parse_header(source, arrays=arrays, short_arrays=short_arrays)


def parse_header(source: Source, *, arrays: bool = False, short_arrays: bool = False) -> GgufHeader:
    """Read a GGUF header.

    `arrays` keeps the elements of all arrays, and not only those of short arrays of numbers; that may take up to
    MAX_KEPT_BYTES_WITH_ARRAYS of memory. `short_arrays` keeps those of short arrays of any type. Raises
    InvalidRequestError where the file isn't GGUF, is of a version that can't be read, is damaged, or ends before its
    tensors do.
    """
    return _Parser(source, arrays, short_arrays).parse()


# --- errors


def _refusal(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, field="file")


def _damaged(what: str) -> InvalidRequestError:
    return _refusal(f"The file's GGUF header is damaged: {what}. Fetch the file again, or another build of the model.")


def _too_large(what: str) -> InvalidRequestError:
    return _refusal(f"The file's GGUF header {what}, more than any model needs. Use another build of the model.")


def _truncated(what: str) -> InvalidRequestError:
    return _refusal(f"The GGUF file is truncated: {what}. Fetch it again; its download or copy wasn't finished.")


def _shown(name: str) -> str:
    """A name out of the file, made safe and short enough for a message."""
    return ascii(name if len(name) <= 80 else f"{name[:77]}...")


# What people have in their hands instead of GGUF, by how it begins.
_OTHER_FORMATS: Final = (
    (b"PK\x03\x04", "a zip archive or PyTorch checkpoint, whose pickled contents could run code"),
    (b"\x80\x02", "a pickled PyTorch checkpoint, which could run code"),
    (b"lmgg", "a model in llama.cpp's first format, GGML"),
    (b"tjgg", "a model in llama.cpp's old format, GGJT"),
    (b"version https://git-lfs", "a Git LFS pointer, which stands for the model without containing it"),
    (b"<", "a web page"),
    (b"{", "a JSON text, such as an error that a server sent"),
)


def _not_gguf(beginning: bytes) -> InvalidRequestError:
    if beginning[8:9] == b"{":
        return _refusal("The file is not GGUF, but looks like safetensors. Give it the suffix .safetensors.")
    for start, what in _OTHER_FORMATS:
        if beginning.startswith(start):
            return _refusal(f"The file is not GGUF, but looks like {what}. Fetch the model as a .gguf file.")
    return _refusal("The file is not GGUF: it doesn't begin with the letters GGUF. Fetch the model as a .gguf file.")


# --- reading


class _Cursor:
    """Walks forward through a source and holds one chunk of it at a time."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._end = min(source.size, MAX_HEADER_BYTES)
        self._chunk = _FIRST_CHUNK
        self._buffer = b""
        self._base = 0  # where in the file the buffer begins
        self._index = 0  # of the next byte in the buffer; beyond its end after a jump

    @property
    def position(self) -> int:
        """Of the next byte in the file."""
        return self._base + self._index

    @property
    def room(self) -> int:
        """Bytes between here and the end of the file."""
        return self._source.size - self.position

    def skip(self, length: int) -> None:
        """Jump over so many bytes."""
        self._require(length)
        self._index += length

    def take(self, length: int) -> bytes:
        """Read so many bytes, at most MAX_STRING_BYTES."""
        self._fill(length)
        start, self._index = self._index, self._index + length
        return self._buffer[start : self._index]

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Read numbers."""
        self._fill(layout.size)
        start, self._index = self._index, self._index + layout.size
        return layout.unpack_from(self._buffer, start)

    def skip_strings(self, count: int) -> None:
        """Jump over so many strings.

        The one loop that runs for each token of a vocabulary: it does nothing else, and only now and then looks
        whether it has left the buffer.
        """
        length_at = _U64.unpack_from
        while count:
            self._fill(_U64.size)
            buffer, index = self._buffer, self._index
            last = len(buffer) - _U64.size
            for rest in range(count, 0, -1):
                if index > last:
                    count = rest
                    break
                index += 8 + length_at(buffer, index)[0]
            else:
                count = 0
            self._index = index
            self._require(0)

    def _fill(self, length: int) -> None:
        """Have the next `length` bytes in the buffer."""
        if self._index + length <= len(self._buffer):
            return
        self._require(length)
        position = self.position
        wanted = min(max(length, self._chunk), self._end - position)
        self._chunk = min(4 * self._chunk, _CHUNK)
        buffer = self._source.read_at(position, wanted)
        if len(buffer) != wanted:
            raise _truncated("it ended while it was being read")
        self._buffer, self._base, self._index = buffer, position, 0

    def _require(self, length: int) -> None:
        if self.position + length <= self._end:
            return
        if length <= self.room:
            raise _too_large(f"is longer than {MAX_HEADER_BYTES // 2**20} MiB")
        raise _truncated(f"its header goes on beyond the file's end at {self._source.size} bytes")


class _Parser:
    """Reads one header, and counts what it costs."""

    def __init__(self, source: Source, arrays: bool, short_arrays: bool) -> None:
        self._source = source
        self._cursor = _Cursor(source)
        self._keep_arrays = arrays
        self._keep_short_arrays = short_arrays
        self._memory_left = MAX_KEPT_BYTES_WITH_ARRAYS if arrays else MAX_KEPT_BYTES
        self._arrays_left = MAX_ARRAYS
        self._strings_left = MAX_STRINGS

    def parse(self) -> GgufHeader:
        version, tensor_count, kv_count = self._preamble()
        fields, alignment = self._fields(kv_count)
        tensors = self._tensors(tensor_count)
        data_offset = self._cursor.position
        if tensors:  # without any there is nothing to align
            data_offset = -(-data_offset // alignment) * alignment
        return GgufHeader(
            version=version,
            tensor_count=tensor_count,
            kv_count=kv_count,
            fields=MappingProxyType(fields),
            tensors=tensors,
            data_offset=data_offset,
            tensor_bytes=self._check_data(tensors, data_offset, alignment),
        )

    def _preamble(self) -> tuple[int, int, int]:
        beginning = self._source.read_at(0, min(self._source.size, 32))
        if not beginning.startswith(b"GGUF"):
            raise _not_gguf(beginning)
        _, version, tensor_count, kv_count = self._cursor.unpack(_PREAMBLE)
        if version & 0xFFFF == 0:
            raise _refusal("The GGUF file is big endian; only little endian ones can be read. Use another build.")
        if version == 1:
            raise _refusal("The file is of GGUF version 1, which engines no longer read. Use a newer build.")
        if version > 3:
            raise _refusal(f"The file is of GGUF version {version}; 2 and 3 can be read. Update genaid.")
        self._check_count("key-value pairs", kv_count, MAX_PAIRS, _PAIR_BYTES)
        self._check_count("tensors", tensor_count, MAX_TENSORS, _TENSOR_BYTES)
        return version, tensor_count, kv_count

    def _check_count(self, what: str, count: int, limit: int, smallest: int) -> None:
        if count * smallest > self._cursor.room:
            raise _damaged(f"it counts {count} {what}, more than the file has room for")
        if count > limit:
            raise _too_large(f"has {count} {what}")

    def _spend(self, size: int) -> None:
        """Ask for memory before it is taken."""
        self._memory_left -= size
        if self._memory_left < 0:
            raise _too_large("has too much text and too many values")

    # --- key-value pairs

    def _fields(self, count: int) -> tuple[dict[str, Value], int]:
        fields: dict[str, Value] = {}
        alignment = _DEFAULT_ALIGNMENT
        for _ in range(count):
            key = self._name("key")
            if not key:
                raise _damaged("it has an empty key")
            if key in fields:
                raise _damaged(f"it has the key {_shown(key)} twice")
            kind = self._kind(*self._cursor.unpack(_U32))
            self._spend(_PAIR_COST)
            value = fields[key] = self._value(kind)
            if key == "general.alignment":
                alignment = _alignment(kind, value)
        return fields, alignment

    def _name(self, what: str) -> str:
        (length,) = self._cursor.unpack(_U64)
        if length > MAX_KEY_BYTES:
            raise _damaged(f"it has a {what} of {length} bytes, where {MAX_KEY_BYTES} are the most")
        self._spend(length)
        try:
            name = self._cursor.take(length).decode()
        except UnicodeDecodeError as error:
            raise _damaged(f"it has a {what} that is not UTF-8") from error
        self._spend(sys.getsizeof(name) - length)
        return name

    def _kind(self, number: int) -> ValueType:
        try:
            return ValueType(number)
        except ValueError as error:
            raise _damaged(f"it has a value of type {number}, which the format doesn't know") from error

    def _value(self, kind: ValueType) -> Value:
        if kind is ValueType.ARRAY:
            return self._array(1)
        if kind is ValueType.STRING:
            return self._string()
        (number,) = self._cursor.unpack(_NUMBERS[kind])
        return _truth(number) if kind is ValueType.BOOL else number

    def _string(self) -> str | LongString:
        (length,) = self._cursor.unpack(_U64)
        if length > MAX_STRING_BYTES:
            self._cursor.skip(length)
            return LongString(length)
        self._spend(length)
        # What a string says is for people: one wrong byte in a licence's text doesn't make a model unusable.
        text = self._cursor.take(length).decode(errors="replace")
        self._spend(sys.getsizeof(text) - length)
        return text

    def _array(self, depth: int) -> ArrayField:
        self._arrays_left -= 1
        if self._arrays_left < 0:
            raise _too_large(f"has more than {MAX_ARRAYS} arrays")
        number, length = self._cursor.unpack(_ARRAY)
        kind = self._kind(number)
        if length * _SMALLEST_ELEMENT[kind] > self._cursor.room:
            raise _damaged(f"it has an array of {length} elements, more than the file has room for")
        if kind is ValueType.ARRAY:
            return self._nested(length, depth)
        if kind is ValueType.STRING:
            return self._strings(length)
        return self._numbers(kind, length)

    def _keeps(self, length: int) -> bool:
        """Whether to keep the elements of an array of strings or of arrays."""
        return self._keep_arrays or (self._keep_short_arrays and length <= MAX_SHORT_ARRAY)

    def _nested(self, length: int, depth: int) -> ArrayField:
        if depth == MAX_ARRAY_DEPTH:
            raise _damaged(f"its arrays are nested more than {MAX_ARRAY_DEPTH} deep")
        if length > self._arrays_left:
            raise _too_large(f"has more than {MAX_ARRAYS} arrays")
        if self._keeps(length):
            self._spend(length * _PAIR_COST)
            return ArrayField(ValueType.ARRAY, length, tuple(self._array(depth + 1) for _ in range(length)))
        for _ in range(length):
            self._array(depth + 1)
        return ArrayField(ValueType.ARRAY, length)

    def _strings(self, length: int) -> ArrayField:
        self._strings_left -= length
        if self._strings_left < 0:
            raise _too_large(f"has more than {MAX_STRINGS} strings in arrays")
        if self._keeps(length):
            self._spend(length * _U64.size)
            return ArrayField(ValueType.STRING, length, tuple(self._string() for _ in range(length)))
        self._cursor.skip_strings(length)
        return ArrayField(ValueType.STRING, length)

    def _numbers(self, kind: ValueType, length: int) -> ArrayField:
        size = length * _NUMBERS[kind].size
        if length > MAX_SHORT_ARRAY and not self._keep_arrays:
            self._cursor.skip(size)
            return ArrayField(kind, length)
        self._spend(length * _NUMBER_COST)
        values: list[Any] = []
        while length:
            count = min(length, _CHUNK // 8)
            values += self._cursor.unpack(struct.Struct(f"<{count}{_LETTERS[kind]}"))
            length -= count
        if kind is ValueType.BOOL:
            values = [_truth(value) for value in values]
        return ArrayField(kind, len(values), tuple(values))

    # --- tensors

    def _tensors(self, count: int) -> tuple[TensorInfo, ...]:
        tensors: dict[str, TensorInfo] = {}
        for _ in range(count):
            tensor = self._tensor()
            if tensor.name in tensors:
                raise _damaged(f"it has the tensor {_shown(tensor.name)} twice")
            tensors[tensor.name] = tensor
        return tuple(tensors.values())

    def _tensor(self) -> TensorInfo:
        name = self._name("tensor's name")
        self._spend(_TENSOR_COST)
        (dimensions,) = self._cursor.unpack(_U32)
        if dimensions > _MAX_DIMENSIONS:
            raise _damaged(f"its tensor {_shown(name)} has {dimensions} dimensions, where 4 are the most")
        *shape, kind, offset = self._cursor.unpack(_SHAPED[dimensions])
        if kind not in TENSOR_SIZES:
            raise _refusal(
                f"The tensor {_shown(name)} is of type {kind}, which this version doesn't know. "
                "Update genaid, or use another quantization of the model."
            )
        return TensorInfo(name, tuple(shape), kind, offset, _tensor_size(name, shape, kind))

    def _check_data(self, tensors: tuple[TensorInfo, ...], data_offset: int, alignment: int) -> int:
        """Check that all tensors lie in the file, and return their size together."""
        end = total = 0
        for tensor in tensors:
            if tensor.offset % alignment:
                raise _damaged(f"its tensor {_shown(tensor.name)} doesn't lie on a multiple of {alignment} bytes")
            end = max(end, tensor.offset + tensor.size_bytes)
            total += tensor.size_bytes
        if tensors and data_offset + end > self._source.size:
            raise _truncated(f"it should have {data_offset + end} bytes, and has {self._source.size}")
        if total > self._source.size - data_offset:
            raise _damaged("its tensors overlap")
        return total


def _truth(number: int) -> bool:
    if number not in (0, 1):
        raise _damaged(f"it has the truth value {number}, where only 0 and 1 exist")
    return number == 1


def _alignment(kind: ValueType, value: Value) -> int:
    if kind is not ValueType.UINT32 or not isinstance(value, int) or value.bit_count() != 1:
        raise _damaged("its alignment is not a power of two")
    return value


def _tensor_size(name: str, shape: list[int], kind: int) -> int:
    elements = math.prod(shape)
    block, size = TENSOR_SIZES[kind]
    # A row is stored in whole blocks, and a row of no dimensions is a single element.
    if (shape[0] if shape else 1) % block:
        raise _damaged(f"the rows of its tensor {_shown(name)} are not multiples of {block} elements")
    if elements > _MAX_ELEMENTS or max(shape, default=0) > _MAX_ELEMENTS:
        raise _damaged(f"its tensor {_shown(name)} has an impossible number of elements")
    return elements // block * size
