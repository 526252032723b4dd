"""The safetensors header check: what the format allows passes, and everything else is refused at a bounded cost."""

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.formats.safetensors import (
    DTYPE_BITS,
    FORMAT_MAX_HEADER_BYTES,
    MAX_HEADER_BYTES,
    MAX_METADATA,
    MAX_METADATA_VALUE,
    MAX_NAME_BYTES,
    MAX_TENSORS,
    SafetensorInfo,
    SafetensorsHeader,
    guess_type,
    parse_header,
    read_header,
)
from unit.formats.gguf_files import MemorySource, u64

MEBIBYTE = 2**20
MEMORY_LIMIT = 64 * MEBIBYTE


def file_of(header: bytes, data: int = 0) -> MemorySource:
    """A file with this header and so many bytes of data, all zero."""
    return MemorySource(u64(len(header)) + header, 8 + len(header) + data)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def parse(header: object, data: int = 0) -> SafetensorsHeader:
    return parse_header(file_of(header if isinstance(header, bytes) else json.dumps(header).encode(), data))


def refuse(header: object, data: int = 0) -> str:
    with pytest.raises(InvalidRequestError) as refusal:
        parse(header, data)
    assert refusal.value.facts == {"field": "file"}
    return refusal.value.message


def test_a_header_is_read(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt", "modelspec.title": 'A "title"\n日本 🎉'},
            "b": entry([2, 3], 4, 28),
            "a.weight": entry([], 0, 4),
            "empty": entry([0, 5], 28, 28, "F16"),
        },
        indent=1,
    ).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "model.safetensors"
    path.write_bytes(u64(len(header)) + header + bytes(28))
    found = read_header(path)
    assert found == SafetensorsHeader(
        tensors=(
            SafetensorInfo("b", "F32", (2, 3), 4, 24),
            SafetensorInfo("a.weight", "F32", (), 0, 4),
            SafetensorInfo("empty", "F16", (0, 5), 28, 0),
        ),
        metadata=found.metadata,
        data_offset=8 + len(header),
        tensor_bytes=28,
    )
    assert dict(found.metadata) == {"format": "pt", "modelspec.title": 'A "title"\n日本 🎉'}


def test_the_fields_of_a_tensor_may_have_any_order_and_spacing() -> None:
    text = b'{ "t"\t:\n{ "data_offsets" : [ 0 , 8 ] ,"shape":[\r1,2 ] , "dtype" :"F32" } }  '
    assert parse(text, 8).tensors == (SafetensorInfo("t", "F32", (1, 2), 0, 8),)


@pytest.mark.parametrize(("dtype", "bits"), sorted(DTYPE_BITS.items()))
def test_each_dtype_has_its_size(dtype: str, bits: int) -> None:
    assert parse({"t": entry([3, 8], 0, 3 * bits, dtype)}, 3 * bits).tensor_bytes == 3 * bits
    refuse({"t": entry([3, 8], 0, 3 * bits + 1, dtype)}, 3 * bits + 1)


def test_elements_that_do_not_fill_their_bytes_are_refused() -> None:
    assert "not what its shape takes" in refuse({"t": entry([3], 0, 2, "F4")}, 2)


def test_long_values_of_the_metadata_are_left_out() -> None:
    metadata = {"thumbnail": "x" * (MAX_METADATA_VALUE + 1), "title": "y"}
    assert dict(parse({"__metadata__": metadata}).metadata) == {"title": "y"}


def test_escaped_and_plain_names_are_the_same_name() -> None:
    t = json.dumps(entry([1], 0, 4)).encode()
    assert parse(b'{"\\u0061":%s}' % t, 4).tensors[0].name == "a"
    assert "'a' twice" in refuse(b'{"\\u0061":%s,"a":%s}' % (t, t), 4)


T = entry([1], 0, 4)
BAD = [
    ({"t": {**T, "dtype": "F33"}}, "dtype 'F33'"),
    ({"t": {**T, "dtype": 5}}, "'t' is not described"),
    ({"t": {**T, "shape": [-1]}}, "'t' is not described"),
    ({"t": {**T, "shape": [1.0]}}, "'t' is not described"),
    ({"t": {**T, "shape": [1] * 9}}, "'t' is not described"),
    ({"t": {**T, "shape": "F32"}}, "wrong form"),
    ({"t": {**T, "dtype": [1]}}, "wrong form"),
    ({"t": {**T, "data_offsets": [0]}}, "wrong form"),
    ({"t": {**T, "data_offsets": [0, 4, 4]}}, "wrong form"),
    ({"t": {**T, "data_offsets": [4, 0]}}, "has -4 bytes"),
    ({"t": {**T, "more": 1}}, "'t' is not described"),
    ({"t": {"dtype": "F32", "shape": [1]}}, "'t' is not described"),
    ({"t": []}, "'t' is not described"),
    ({"t": None}, "'t' is not described"),
    ({"t": entry([2], 0, 4)}, "not what its shape takes"),
    ({"t": entry([2**62, 4], 0, 4)}, "impossible"),
    ({"t": entry([0, 2**63], 0, 0)}, "impossible"),
    ({"t": entry([1], 4, 8)}, "leaves a gap"),
    ({"t": T, "u": T}, "overlaps"),
    ({"t": T, "u": entry([1], 2, 6)}, "overlaps"),
    ({"t": T, "u": entry([1], 8, 12)}, "leaves a gap"),
    ({"t": entry([1], 2**62, 2**62 + 4)}, "leaves a gap"),
    ({"t": entry([2**40], 0, 2**42)}, "truncated"),
    ({"__metadata__": []}, "JSON object"),
    ({"__metadata__": {"a": 1}}, "'a' in its __metadata__ is no string"),
    ({"__metadata__": {"a": {}}}, "'a' in its __metadata__ is no string"),
    ({"__metadata__": {str(i): "" for i in range(MAX_METADATA + 1)}}, "entries in __metadata__"),
    ({"n" * (MAX_NAME_BYTES + 1): T}, "name of"),
    (b'{"__metadata__":{"a":"","a":""}}', "'a' twice"),
    (b'{"__metadata__":{},"__metadata__":{}}', "__metadata__ twice"),
    (b'{"t":{"dtype":"F32","dtype":"F32","shape":[1]}}', "'t' is not described"),
    (b'{"t":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}', "'t' is not described"),
    (b'{"t":{"dtype":"F32","shape":[1,],"data_offsets":[0,4]}}', "'t' is not described"),
    (b'{"t":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}', "'t' is not described"),
    (b'{"t":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}', "'t' is not described"),
    (b'{"a\nb":{}}', "name is missing"),
    (b'{"a\\qb":{}}', "name is missing"),
    (b'{"\\ud800":{}}', "surrogate"),
    (b'{"\xff":{}}', "not UTF-8"),
    (b'{"a":{"', "'a' is not described"),
    (b"{1:2}", "name is missing"),
    (b"{", "name is missing"),
    (b'{"__metadata__":{}', "comma"),
    (b'{"__metadata__":{}}x', "goes on after its end"),
    (b'{"__metadata__":{}}\0\0', "goes on after its end"),
    (b"{}{}", "goes on after its end"),
    (b'{"a":' + b"[" * 100_000, "'a' is not described"),
    (b'{"a":' * 100_000, "'a' is not described"),
]


@pytest.mark.parametrize(("header", "why"), BAD)
def test_a_header_that_contradicts_the_format_is_refused(header: object, why: str) -> None:
    message = refuse(header, 4)
    assert why in message
    assert message.isprintable()
    assert len(message) < 400


def test_data_that_no_tensor_describes_is_refused() -> None:
    assert "3 bytes after its last tensor" in refuse({"t": T}, 7)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not safetensors"),
        (b"GGUF" + bytes(60), "not safetensors"),
        (b"PK\x03\x04" + bytes(60), "not safetensors"),
        (u64(2) + b"[]", "not safetensors"),
        (u64(0), "not safetensors"),
        (u64(FORMAT_MAX_HEADER_BYTES + 1) + b"{}", "not safetensors"),
        (u64(2**64 - 1) + b"{}", "not safetensors"),
        (u64(100) + b"{}", "truncated"),
    ],
)
def test_what_is_no_safetensors_is_refused(data: bytes, why: str) -> None:
    source = MemorySource(data)
    with pytest.raises(InvalidRequestError, match=why):
        parse_header(source)
    assert sum(source.reads) < 100


def test_a_header_that_is_too_long_is_refused_before_it_is_read() -> None:
    source = MemorySource(u64(MAX_HEADER_BYTES + 1) + b"{", 10**9)
    with pytest.raises(InvalidRequestError, match="MiB"):
        parse_header(source)
    assert sum(source.reads) < 100


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    class Shrinking(MemorySource):
        def read_at(self, offset: int, length: int) -> bytes:
            return super().read_at(offset, length)[: 9 if length < 10 else 3]

    header = json.dumps({"t": T}).encode()
    with pytest.raises(InvalidRequestError, match="while it was being read"):
        parse_header(Shrinking(u64(len(header)) + header + bytes(4)))


def test_a_file_that_ends_anywhere_is_refused() -> None:
    header = json.dumps({"t": T}).encode()
    whole = u64(len(header)) + header + bytes(4)
    parse_header(MemorySource(whole))
    for length in range(len(whole)):
        with pytest.raises(InvalidRequestError):
            parse_header(MemorySource(whole[:length]))


# --- what it costs


def escapes() -> bytes:
    return b'{"__metadata__":{"a":"' + b"\\n" * (MAX_HEADER_BYTES // 2 - 100) + b'"}}'


def unended_string() -> bytes:
    return b'{"__metadata__":{"a":"' + b"a\\n" * (MAX_HEADER_BYTES // 3 - 100)


def spaces() -> bytes:
    return b"{" + b" " * (MAX_HEADER_BYTES - 2) + b"}"


def small_lists() -> bytes:
    return b'{"a":[' + b"[]," * (MAX_HEADER_BYTES // 3 - 100)


def many_tensors() -> bytes:
    shape = "[999,999,0,999,999,999,300,300]"
    entries = (f'"{"🎉" * 5}{i}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}' for i in range(MAX_TENSORS))
    return ("{" + ",".join(entries) + "}").encode()


def too_many_tensors() -> bytes:
    return many_tensors()[:-1] + b',"last":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'


def long_names() -> bytes:
    name = "🎉" + "a" * (MAX_NAME_BYTES - 20)
    entries = (f'"{name}{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(7500))
    return ("{" + ",".join(entries) + "}").encode()


@pytest.mark.parametrize("build", [escapes, unended_string, spaces, small_lists, many_tensors, long_names])
def test_memory_stays_bounded_whatever_a_header_piles_up(build: Callable[[], bytes]) -> None:
    header = build()
    assert len(header) <= MAX_HEADER_BYTES
    source = file_of(header)
    tracemalloc.start()
    try:
        with contextlib.suppress(InvalidRequestError):
            parse_header(source)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    finally:
        tracemalloc.stop()


def test_as_many_tensors_as_the_limit_pass_and_no_more() -> None:
    assert len(parse(many_tensors()).tensors) == MAX_TENSORS
    assert f"more than {MAX_TENSORS} tensors" in refuse(too_many_tensors())


VALID = json.dumps({"__metadata__": {"a": "b\u00e9"}, "t": T, "u": entry([2, 1], 4, 12)}).encode()


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 255) | st.sampled_from(list(b'{}[]",:\\0'))), max_size=6
    ),
    length=st.none() | st.integers(0, 2**64 - 1),
    data=st.integers(0, 20),
)
def test_a_header_with_wrong_bytes_is_read_or_refused(
    edits: list[tuple[int, int]], length: int | None, data: int
) -> None:
    text = bytearray(VALID)
    for position, byte in edits:
        text[position % len(text)] = byte
    source = file_of(bytes(text), data)
    if length is not None:
        source.data = u64(length) + bytes(text)
    with contextlib.suppress(InvalidRequestError):
        parse_header(source)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(header=st.dictionaries(st.text() | st.just("__metadata__"), JSON, max_size=4))
def test_any_json_object_is_read_or_refused(header: dict[str, object]) -> None:
    with contextlib.suppress(InvalidRequestError):
        parse(header)


@settings(max_examples=200, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=6),
    dtype=st.sampled_from(["F32", "F16", "U8", "I64"]),
    metadata=st.dictionaries(st.text(max_size=80), st.text(), max_size=4),
)
def test_what_follows_the_format_is_read_back(shapes: list[list[int]], dtype: str, metadata: dict[str, str]) -> None:
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for index, shape in enumerate(shapes):
        size = DTYPE_BITS[dtype] // 8
        for dimension in shape:
            size *= dimension
        header[f"tensor.{index}"] = entry(shape, end, end + size, dtype)
        end += size
    found = parse(header, end)
    assert [(each.name, list(each.shape), each.dtype) for each in found.tensors] == [
        (f"tensor.{index}", shape, dtype) for index, shape in enumerate(shapes)
    ]
    assert dict(found.metadata) == metadata
    assert found.tensor_bytes == end


# --- what it means


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "diffusion"),
        ("anything", "diffusion"),
        ("model.embed_tokens.weight", "llm"),
        ("lm_head.weight", "llm"),
    ],
)
def test_the_names_of_tensors_tell_what_a_model_is_for(name: str, kind: str) -> None:
    assert guess_type(parse({name: T}, 4)) == kind
