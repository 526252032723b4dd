"""A bounded check of safetensors headers.

The format is described in the README of huggingface/safetensors: the header's length as eight bytes, little
endian; the header, a JSON object that gives each tensor's dtype, shape and place; the tensors' data, which they
cover without a gap. It has nothing that could run, but a header from a stranger can still be as deep, as long and
as contradictory as JSON allows. Hence no general JSON parser reads it: the few forms that a header can have are
matched one after the other, and what has another form is refused. Whatever the file says, that takes less than
64 MB of memory and less than a second.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.formats.byte_source import FileSource, Source

FORMAT_MAX_HEADER_BYTES: Final = 100_000_000
"""The longest header that the format allows."""
MAX_HEADER_BYTES: Final = 8 * 2**20
"""The longest header that is read, because it is held in memory as a whole. The header of an SDXL checkpoint has
300 kB."""
MAX_TENSORS: Final = 32_768
"""Tensors in a file. Diffusion models have at most a few thousand."""
MAX_METADATA: Final = 1024
"""Entries of `__metadata__`. Trainers write some dozens."""
MAX_METADATA_VALUE: Final = 4096
"""The longest value of `__metadata__` that is kept, in bytes; titles are short, thumbnails and logs are not."""
MAX_NAME_BYTES: Final = 1024
"""The longest name of a tensor or key of `__metadata__`, as it is written in the header."""

_MAX_DIMENSIONS: Final = 8
_MAX_ELEMENTS: Final = 2**63 - 1
_LENGTH_BYTES: Final = 8

DTYPE_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
"""Bits of one element, by the name of the dtype."""

# All repetitions are possessive (`*+`): a match never backtracks, so that its time is in proportion to its length.
_SPACE: Final = rb"[ \t\r\n]*+"
_STRING: Final = rb'"((?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+)"'
_INTEGER: Final = rb"(?:0|[1-9][0-9]{0,18}+)"
_LIST: Final = rb"\[%(space)s(?:%(integer)s%(space)s(?:,%(space)s%(integer)s%(space)s){0,%(more)d}+)?+\]" % {
    b"space": _SPACE,
    b"integer": _INTEGER,
    b"more": _MAX_DIMENSIONS - 1,
}
_FIELD: Final = rb'"(dtype|shape|data_offsets)"%(space)s:%(space)s("[A-Za-z0-9_]{1,32}+"|%(list)s)%(space)s' % {
    b"space": _SPACE,
    b"list": _LIST,
}

_KEY: Final = re.compile(_SPACE + _STRING + _SPACE + rb":" + _SPACE)
_TENSOR: Final = re.compile(rb"\{" + _SPACE + (rb"," + _SPACE).join([_FIELD] * 3) + rb"\}" + _SPACE)
_TEXT: Final = re.compile(_STRING + _SPACE)
_COMMA: Final = re.compile(rb"," + _SPACE)
_OPEN: Final = re.compile(rb"\{" + _SPACE)
_CLOSE: Final = re.compile(rb"\}" + _SPACE)


@dataclass(frozen=True, slots=True)
class SafetensorInfo:
    """One tensor: its shape, the slowest dimension first, and where it lies.

    `offset` counts from the header's `data_offset`; it and `size_bytes` are in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a safetensors file says about itself.

    `metadata` lacks the values that are longer than MAX_METADATA_VALUE. `data_offset` is where the tensors' data
    begins in the file, `tensor_bytes` its length.
    """

    tensors: tuple[SafetensorInfo, ...]
    metadata: Mapping[str, str]
    data_offset: int
    tensor_bytes: int


def read_header(path: Path) -> SafetensorsHeader:
    """Read the header of the file at `path`; see `parse_header`. Raises OSError where the disk refuses."""
    with FileSource(path) as source:
        return parse_header(source)


def parse_header(source: Source) -> SafetensorsHeader:
    """Read and check a safetensors header.

    Raises InvalidRequestError where the file isn't safetensors, is damaged, or doesn't hold exactly the data that
    its header describes.
    """
    text = _read_text(source)
    data_offset = _LENGTH_BYTES + len(text)
    tensors, metadata = _SafetensorsParser(text).parse()
    return SafetensorsHeader(
        tensors=tensors,
        metadata=MappingProxyType(metadata),
        data_offset=data_offset,
        tensor_bytes=_check_data(tensors, source.size - data_offset),
    )


def guess_type(header: SafetensorsHeader) -> Literal["llm", "diffusion"]:
    """Tell what the model is for: diffusion, unless its tensors are named as in a language model."""
    names = {tensor.name for tensor in header.tensors}
    language = "model.embed_tokens.weight" in names or "lm_head.weight" in names
    return "llm" if language else "diffusion"


# --- errors


def _refusal(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, field="file")


def _damaged(what: str) -> InvalidRequestError:
    return _refusal(
        f"The file's safetensors header is damaged: {what}. Fetch the file again, or another build of the model."
    )


def _too_large(what: str) -> InvalidRequestError:
    return _refusal(f"The file's safetensors header {what}, more than any diffusion model needs. Use another build.")


def _shown(name: str) -> str:
    """A name out of the file, made safe and short enough for a message."""
    return ascii(name if len(name) <= 80 else f"{name[:77]}...")


# --- reading


def _read_text(source: Source) -> bytes:
    beginning = source.read_at(0, min(source.size, _LENGTH_BYTES + 1))
    length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
    if len(beginning) <= _LENGTH_BYTES or length > FORMAT_MAX_HEADER_BYTES or beginning[_LENGTH_BYTES:] != b"{":
        raise _refusal(
            "The file is not safetensors: it doesn't begin with a header's length and a header. "
            "Fetch the model as a .safetensors file; pickled checkpoints could run code."
        )
    if length > source.size - _LENGTH_BYTES:
        raise _refusal(
            f"The safetensors file is truncated: its header has {length} bytes, and the file {source.size}. "
            "Fetch it again; its download or copy wasn't finished."
        )
    if length > MAX_HEADER_BYTES:
        raise _too_large(f"is longer than {MAX_HEADER_BYTES // 2**20} MiB")
    text = source.read_at(_LENGTH_BYTES, length)
    if len(text) != length:
        raise _refusal("The safetensors file ended while it was being read. Fetch it again.")
    _check_encoding(text)
    return text


def _check_encoding(text: bytes) -> None:
    # In pieces: one astral character would make the decoded whole four times as large.
    decoder = codecs.getincrementaldecoder("utf-8")()
    piece = 65_536
    try:
        for start in range(0, len(text), piece):
            decoder.decode(text[start : start + piece])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _damaged("it is not UTF-8") from error


class _SafetensorsParser:
    """Reads the text of one header from its first byte to its last."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._position = 0

    def parse(self) -> tuple[tuple[SafetensorInfo, ...], dict[str, str]]:
        tensors: dict[str, SafetensorInfo] = {}
        metadata: dict[str, str] | None = None
        for name in self._members():
            if name == "__metadata__":
                if metadata is not None:
                    raise _damaged("it has __metadata__ twice")
                metadata = self._metadata()
                continue
            if name in tensors:
                raise _damaged(f"it has the tensor {_shown(name)} twice")
            if len(tensors) == MAX_TENSORS:
                raise _too_large(f"has more than {MAX_TENSORS} tensors")
            tensors[name] = self._tensor(name)
        if self._position != len(self._text):
            raise _damaged("it goes on after its end")
        return tuple(tensors.values()), metadata or {}

    def _members(self) -> Iterator[str]:
        """The keys of a JSON object. Whoever iterates steps over each value before it asks for the next key."""
        if not self._match(_OPEN):
            raise _damaged("it has something else where a JSON object has to be")
        if self._match(_CLOSE):
            return
        while True:
            yield self._key()
            if self._match(_CLOSE):
                return
            if not self._match(_COMMA):
                raise _damaged("a comma or a closing brace is missing")

    def _key(self) -> str:
        key = self._match(_KEY)
        if not key:
            raise _damaged("a name is missing or is no JSON string")
        if len(key[1]) > MAX_NAME_BYTES:
            raise _damaged(f"it has a name of {len(key[1])} bytes, where {MAX_NAME_BYTES} are the most")
        return _decoded(key[1])

    def _metadata(self) -> dict[str, str]:
        metadata: dict[str, str] = {}
        seen: set[str] = set()
        for key in self._members():
            if key in seen:
                raise _damaged(f"its __metadata__ has {_shown(key)} twice")
            seen.add(key)
            if len(seen) > MAX_METADATA:
                raise _too_large(f"has more than {MAX_METADATA} entries in __metadata__")
            value = self._match(_TEXT)
            if not value:
                raise _damaged(f"{_shown(key)} in its __metadata__ is no string")
            if len(value[1]) <= MAX_METADATA_VALUE:
                metadata[key] = _decoded(value[1])
        return metadata

    def _tensor(self, name: str) -> SafetensorInfo:
        found = self._match(_TENSOR)
        values = dict(zip(found.groups()[::2], found.groups()[1::2], strict=True)) if found else {}
        if len(values) != 3:
            raise _damaged(f"its tensor {_shown(name)} is not described by one dtype, shape and data_offsets each")
        dtype, shape, offsets = values[b"dtype"], _integers(values[b"shape"]), _integers(values[b"data_offsets"])
        if not dtype.startswith(b'"') or shape is None or offsets is None or len(offsets) != 2:
            raise _damaged(f"its tensor {_shown(name)} has a dtype, shape or data_offsets of the wrong form")
        return _sized(name, dtype.strip(b'"').decode(), shape, *offsets)

    def _match(self, form: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Step over what has this form; None where the next bytes don't have it."""
        found = form.match(self._text, self._position)
        if found:
            self._position = found.end()
        return found


def _decoded(literal: bytes) -> str:
    """The text of a JSON string, without its quotes."""
    text = literal.decode()
    if "\\" not in text:
        return text
    text = str(json.loads(f'"{text}"'))
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise _damaged("it has half a surrogate pair")
    return text


def _integers(literal: bytes) -> tuple[int, ...] | None:
    """The numbers of a list; None for a string."""
    if not literal.startswith(b"["):
        return None
    inside = literal[1:-1].strip()
    return tuple(int(number) for number in inside.split(b",")) if inside else ()


def _sized(name: str, dtype: str, shape: tuple[int, ...], begin: int, end: int) -> SafetensorInfo:
    """The tensor, if its shape takes as many bytes as its place has."""
    if dtype not in DTYPE_BITS:
        raise _refusal(
            f"The tensor {_shown(name)} has the dtype {_shown(dtype)}, which this version doesn't know. "
            "Update genaid, or use another build of the model."
        )
    elements = math.prod(shape)
    if elements > _MAX_ELEMENTS or max(shape, default=0) > _MAX_ELEMENTS:
        raise _damaged(f"its tensor {_shown(name)} has an impossible number of elements")
    if elements * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise _damaged(f"its tensor {_shown(name)} has {end - begin} bytes, which is not what its shape takes")
    return SafetensorInfo(name, dtype, shape, begin, end - begin)


def _check_data(tensors: tuple[SafetensorInfo, ...], available: int) -> int:
    """Check that the tensors cover the data exactly, and return its length."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != end:
            raise _damaged(f"its tensor {_shown(tensor.name)} overlaps another one or leaves a gap")
        end += tensor.size_bytes
    if end > available:
        raise _refusal(
            f"The safetensors file is truncated: its tensors take {end} bytes, and {available} are there. "
            "Fetch it again; its download or copy wasn't finished."
        )
    if end < available:
        raise _damaged(f"the file goes on for {available - end} bytes after its last tensor")
    return end
