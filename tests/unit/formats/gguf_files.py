"""GGUF files written byte by byte, so that they can be as wrong as a test wants them."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from genaid_server.resource.core.formats.gguf import TENSOR_SIZES, ValueType

_FORMATS = {
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


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


def scalar(kind: ValueType, value: object) -> bytes:
    """The bytes of one value, without its type."""
    if kind is ValueType.STRING:
        assert isinstance(value, str | bytes)
        return text(value)
    return struct.pack(f"<{_FORMATS[kind]}", value)


def pair(key: str | bytes, kind: ValueType | int, value: object) -> bytes:
    """A key-value pair; a value that is bytes goes in as it is, unless its type is STRING."""
    raw = value if isinstance(value, bytes) and kind != ValueType.STRING else scalar(ValueType(kind), value)
    return text(key) + u32(int(kind)) + raw


def array(kind: ValueType, values: Iterable[object], length: int | None = None) -> bytes:
    """An array's bytes; those of an element of type ARRAY go in as they are. `length` lies about it."""
    elements = [each if isinstance(each, bytes) and kind is ValueType.ARRAY else scalar(kind, each) for each in values]
    return u32(kind) + u64(len(elements) if length is None else length) + b"".join(elements)


def tensor(name: str | bytes, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


def header(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    pair_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """A header without data; the counts may lie."""
    return b"".join(
        [
            magic,
            u32(version),
            u64(len(tensors) if tensor_count is None else tensor_count),
            u64(len(pairs) if pair_count is None else pair_count),
            *pairs,
            *tensors,
        ]
    )


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


def model(
    pairs: Sequence[bytes] = (), tensors: Sequence[tuple[str, Sequence[int]]] = (), *, alignment: int = 32
) -> bytes:
    """A whole, valid file; its tensors are zeros of type F32."""
    infos, data = [], b""
    for name, shape in tensors:
        infos.append(tensor(name, shape, 0, len(data)))
        elements = 1
        for dimension in shape:
            elements *= dimension
        data = padded(data + bytes(elements * TENSOR_SIZES[0][1]), alignment)
    return padded(header(pairs, infos), alignment) + data


def language_model(name: str = "Tiny Llama", *, salt: int = 0) -> bytes:
    """A file that says of itself that it is a language model; `salt` makes its content another."""
    return model(
        [
            pair("general.architecture", ValueType.STRING, "llama"),
            pair("general.name", ValueType.STRING, name),
            pair("llama.block_count", ValueType.UINT32, 2),
            pair("tokenizer.ggml.model", ValueType.STRING, "gpt2"),
            pair("test.salt", ValueType.UINT32, salt),
        ],
        [("token_embd.weight", (8, 4)), ("blk.0.attn_q.weight", (8, 8))],
    )


def diffusion_model(name: str = "Tiny Flux") -> bytes:
    return model(
        [
            pair("general.architecture", ValueType.STRING, "flux"),
            pair("general.name", ValueType.STRING, name),
        ],
        [("double_blocks.0.img_mlp.0.weight", (8, 4))],
    )


@dataclass
class MemorySource:
    """A source in memory that counts what is read; behind `data` come zeros, up to `size`."""

    data: bytes
    size: int = -1
    reads: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 0:
            self.size = len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        self.reads.append(length)
        return self.data[offset : offset + length].ljust(length, b"\0")
