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
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from genaid_server.resource.core.formats.byte_source import FileSource, Source
from genaid_server.resource.core.formats.gguf_cursor import CHUNK, MAX_HEADER_BYTES, Cursor
from genaid_server.resource.core.formats.gguf_errors import damaged, not_gguf, refusal, shown, too_large, truncated
from genaid_server.resource.core.formats.gguf_types import (
    TENSOR_SIZES,
    ArrayField,
    GgufHeader,
    LongString,
    TensorInfo,
    Value,
    ValueType,
)

__all__ = [
    "MAX_ARRAYS",
    "MAX_ARRAY_DEPTH",
    "MAX_HEADER_BYTES",
    "MAX_KEPT_BYTES",
    "MAX_KEPT_BYTES_WITH_ARRAYS",
    "MAX_KEY_BYTES",
    "MAX_PAIRS",
    "MAX_SHORT_ARRAY",
    "MAX_STRINGS",
    "MAX_STRING_BYTES",
    "MAX_TENSORS",
    "TENSOR_SIZES",
    "ArrayField",
    "GgufHeader",
    "LongString",
    "TensorInfo",
    "Value",
    "ValueType",
    "parse_header",
    "read_header",
]

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
    return _GgufParser(source, arrays, short_arrays).parse()


class _GgufParser:
    """Reads one header, and counts what it costs."""

    def __init__(self, source: Source, arrays: bool, short_arrays: bool) -> None:
        self._source = source
        self._cursor = Cursor(source)
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
            raise not_gguf(beginning)
        _, version, tensor_count, kv_count = self._cursor.unpack(_PREAMBLE)
        if version & 0xFFFF == 0:
            raise refusal("The GGUF file is big endian; only little endian ones can be read. Use another build.")
        if version == 1:
            raise refusal("The file is of GGUF version 1, which engines no longer read. Use a newer build.")
        if version > 3:
            raise refusal(f"The file is of GGUF version {version}; 2 and 3 can be read. Update genaid.")
        self._check_count("key-value pairs", kv_count, MAX_PAIRS, _PAIR_BYTES)
        self._check_count("tensors", tensor_count, MAX_TENSORS, _TENSOR_BYTES)
        return version, tensor_count, kv_count

    def _check_count(self, what: str, count: int, limit: int, smallest: int) -> None:
        if count * smallest > self._cursor.room:
            raise damaged(f"it counts {count} {what}, more than the file has room for")
        if count > limit:
            raise too_large(f"has {count} {what}")

    def _spend(self, size: int) -> None:
        """Ask for memory before it is taken."""
        self._memory_left -= size
        if self._memory_left < 0:
            raise too_large("has too much text and too many values")

    # --- key-value pairs

    def _fields(self, count: int) -> tuple[dict[str, Value], int]:
        fields: dict[str, Value] = {}
        alignment = _DEFAULT_ALIGNMENT
        for _ in range(count):
            key = self._name("key")
            if not key:
                raise damaged("it has an empty key")
            if key in fields:
                raise damaged(f"it has the key {shown(key)} twice")
            kind = self._kind(*self._cursor.unpack(_U32))
            self._spend(_PAIR_COST)
            value = fields[key] = self._value(kind)
            if key == "general.alignment":
                alignment = _alignment(kind, value)
        return fields, alignment

    def _name(self, what: str) -> str:
        (length,) = self._cursor.unpack(_U64)
        if length > MAX_KEY_BYTES:
            raise damaged(f"it has a {what} of {length} bytes, where {MAX_KEY_BYTES} are the most")
        self._spend(length)
        try:
            name = self._cursor.take(length).decode()
        except UnicodeDecodeError as error:
            raise damaged(f"it has a {what} that is not UTF-8") from error
        self._spend(sys.getsizeof(name) - length)
        return name

    def _kind(self, number: int) -> ValueType:
        try:
            return ValueType(number)
        except ValueError as error:
            raise damaged(f"it has a value of type {number}, which the format doesn't know") from error

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
            raise too_large(f"has more than {MAX_ARRAYS} arrays")
        number, length = self._cursor.unpack(_ARRAY)
        kind = self._kind(number)
        if length * _SMALLEST_ELEMENT[kind] > self._cursor.room:
            raise damaged(f"it has an array of {length} elements, more than the file has room for")
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
            raise damaged(f"its arrays are nested more than {MAX_ARRAY_DEPTH} deep")
        if length > self._arrays_left:
            raise too_large(f"has more than {MAX_ARRAYS} arrays")
        if self._keeps(length):
            self._spend(length * _PAIR_COST)
            return ArrayField(ValueType.ARRAY, length, tuple(self._array(depth + 1) for _ in range(length)))
        for _ in range(length):
            self._array(depth + 1)
        return ArrayField(ValueType.ARRAY, length)

    def _strings(self, length: int) -> ArrayField:
        self._strings_left -= length
        if self._strings_left < 0:
            raise too_large(f"has more than {MAX_STRINGS} strings in arrays")
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
            count = min(length, CHUNK // 8)
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
                raise damaged(f"it has the tensor {shown(tensor.name)} twice")
            tensors[tensor.name] = tensor
        return tuple(tensors.values())

    def _tensor(self) -> TensorInfo:
        name = self._name("tensor's name")
        self._spend(_TENSOR_COST)
        (dimensions,) = self._cursor.unpack(_U32)
        if dimensions > _MAX_DIMENSIONS:
            raise damaged(f"its tensor {shown(name)} has {dimensions} dimensions, where 4 are the most")
        *shape, kind, offset = self._cursor.unpack(_SHAPED[dimensions])
        if kind not in TENSOR_SIZES:
            raise refusal(
                f"The tensor {shown(name)} is of type {kind}, which this version doesn't know. "
                "Update genaid, or use another quantization of the model."
            )
        return TensorInfo(name, tuple(shape), kind, offset, _tensor_size(name, shape, kind))

    def _check_data(self, tensors: tuple[TensorInfo, ...], data_offset: int, alignment: int) -> int:
        """Check that all tensors lie in the file, and return their size together."""
        end = total = 0
        for tensor in tensors:
            if tensor.offset % alignment:
                raise damaged(f"its tensor {shown(tensor.name)} doesn't lie on a multiple of {alignment} bytes")
            end = max(end, tensor.offset + tensor.size_bytes)
            total += tensor.size_bytes
        if tensors and data_offset + end > self._source.size:
            raise truncated(f"it should have {data_offset + end} bytes, and has {self._source.size}")
        if total > self._source.size - data_offset:
            raise damaged("its tensors overlap")
        return total


def _truth(number: int) -> bool:
    if number not in (0, 1):
        raise damaged(f"it has the truth value {number}, where only 0 and 1 exist")
    return number == 1


def _alignment(kind: ValueType, value: Value) -> int:
    if kind is not ValueType.UINT32 or not isinstance(value, int) or value.bit_count() != 1:
        raise damaged("its alignment is not a power of two")
    return value


def _tensor_size(name: str, shape: list[int], kind: int) -> int:
    elements = math.prod(shape)
    block, size = TENSOR_SIZES[kind]
    # A row is stored in whole blocks, and a row of no dimensions is a single element.
    if (shape[0] if shape else 1) % block:
        raise damaged(f"the rows of its tensor {shown(name)} are not multiples of {block} elements")
    if elements > _MAX_ELEMENTS or max(shape, default=0) > _MAX_ELEMENTS:
        raise damaged(f"its tensor {shown(name)} has an impossible number of elements")
    return elements // block * size
