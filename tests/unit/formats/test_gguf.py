"""The GGUF header reader: it agrees with the format's own reader, and nothing that a file says can hurt it."""

import contextlib
import math
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaid_server.demo.models import write_llm
from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.formats.gguf import (
    MAX_ARRAYS,
    MAX_HEADER_BYTES,
    MAX_KEPT_BYTES,
    MAX_KEY_BYTES,
    MAX_PAIRS,
    MAX_SHORT_ARRAY,
    MAX_STRING_BYTES,
    MAX_STRINGS,
    MAX_TENSORS,
    TENSOR_SIZES,
    ArrayField,
    GgufHeader,
    LongString,
    ValueType,
    parse_header,
    read_header,
)
from genaid_server.resource.core.formats.metadata import arch_field, guess_type, metadata
from unit.formats.gguf_files import (
    MemorySource,
    array,
    header,
    language_model,
    model,
    padded,
    pair,
    tensor,
    text,
    u32,
    u64,
)

MEBIBYTE = 2**20
MEMORY_LIMIT = 64 * MEBIBYTE

SCALARS: list[tuple[ValueType, list[Any]]] = [
    (ValueType.UINT8, [0, 255]),
    (ValueType.INT8, [-128, 127]),
    (ValueType.UINT16, [0, 65_535]),
    (ValueType.INT16, [-32_768, 32_767]),
    (ValueType.UINT32, [0, 2**32 - 1]),
    (ValueType.INT32, [-(2**31), 2**31 - 1]),
    (ValueType.FLOAT32, [0.5, -1e-5]),
    (ValueType.BOOL, [True, False]),
    (ValueType.UINT64, [0, 2**64 - 1]),
    (ValueType.INT64, [-(2**63), 2**63 - 1]),
    (ValueType.FLOAT64, [math.pi, -1e300]),
    (ValueType.STRING, ["", "héllo 日本 🎉"]),
]


def parse(data: bytes, size: int = -1, *, arrays: bool = False) -> GgufHeader:
    return parse_header(MemorySource(data, size), arrays=arrays)


def refuse(data: bytes, size: int = -1, *, arrays: bool = False) -> str:
    with pytest.raises(InvalidRequestError) as refusal:
        parse(data, size, arrays=arrays)
    assert refusal.value.facts == {"field": "file"}
    return refusal.value.message


def peak_memory(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- agreement with the gguf package


def written(path: Path, describe: Callable[[gguf.GGUFWriter], None]) -> Path:
    file = gguf.GGUFWriter(path, "llama")
    describe(file)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def same(ours: object, theirs: object) -> bool:
    values = ours.values if isinstance(ours, ArrayField) else ours
    return (list(values) if isinstance(values, tuple) else values) == theirs


def assert_agreement(path: Path) -> GgufHeader:
    reader, ours = gguf.GGUFReader(path), read_header(path, arrays=True)
    fields = {key: value for key, value in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.fields) == list(fields)
    for key, theirs in fields.items():
        assert same(ours.fields[key], theirs.contents()), key
    assert (ours.version, ours.tensor_count, ours.kv_count) == (3, len(reader.tensors), len(fields))
    assert ours.data_offset == reader.data_offset or not ours.tensors
    assert [
        (each.name, list(each.shape), each.ggml_type, each.offset + ours.data_offset, each.size_bytes)
        for each in ours.tensors
    ] == [
        (each.name, each.shape.tolist(), int(each.tensor_type), each.data_offset, each.n_bytes)
        for each in reader.tensors
    ]
    return ours


def test_every_type_of_value_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    def describe(file: gguf.GGUFWriter) -> None:
        for kind, values in SCALARS:
            for index, value in enumerate(values):
                file.add_key_value(f"scalar.{kind.name}.{index}", value, gguf.GGUFValueType(kind))
            file.add_key_value(f"array.{kind.name}", values, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(kind))

    assert_agreement(written(tmp_path / "types.gguf", describe))


def test_every_type_of_tensor_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    def describe(file: gguf.GGUFWriter) -> None:
        for kind, (_, size) in gguf.GGML_QUANT_SIZES.items():
            rows = np.zeros((3, 2 * size), np.uint8)
            file.add_tensor(f"tensor.{kind.name}", rows, raw_dtype=kind)
        file.add_tensor("vector", np.zeros(5, np.float32))
        file.add_tensor("cube", np.zeros((2, 3, 4, 5), np.float16))

    ours = assert_agreement(written(tmp_path / "tensors.gguf", describe))
    assert ours.tensor_bytes == sum(each.size_bytes for each in ours.tensors)
    assert ours.tensors[-1].shape == (5, 4, 3, 2)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_a_file_may_choose_its_alignment(tmp_path: Path, alignment: int) -> None:
    def describe(file: gguf.GGUFWriter) -> None:
        file.add_custom_alignment(alignment)
        file.add_tensor("first", np.zeros(3, np.float32))
        file.add_tensor("second", np.zeros(3, np.float32))

    ours = assert_agreement(written(tmp_path / "aligned.gguf", describe))
    assert ours.tensors[1].offset == math.ceil(12 / alignment) * alignment
    assert ours.tensor_bytes == 24


def test_the_demo_model_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    ours = assert_agreement(write_llm(tmp_path / "llm.gguf"))
    assert guess_type(ours) == "llm"
    assert metadata(ours).context_length == 2048


def test_the_sizes_of_tensors_are_those_of_the_gguf_package() -> None:
    assert {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == dict(TENSOR_SIZES)


# --- what is kept


def test_an_empty_model_is_read() -> None:
    empty = parse(header())
    assert (empty.fields, empty.tensors, empty.tensor_bytes, empty.data_offset) == ({}, (), 0, 24)


def test_version_2_is_read() -> None:
    assert parse(header(version=2)).version == 2


def test_arrays_are_skipped_unless_asked_for() -> None:
    numbers = list(range(MAX_SHORT_ARRAY + 1))
    data = header(
        [
            pair("long", ValueType.ARRAY, array(ValueType.UINT16, numbers)),
            pair("short", ValueType.ARRAY, array(ValueType.INT32, [-1, 2])),
            pair("strings", ValueType.ARRAY, array(ValueType.STRING, ["a", "", "bc"])),
            pair("empty", ValueType.ARRAY, array(ValueType.STRING, [])),
            pair("last", ValueType.UINT8, 7),
        ]
    )
    assert parse(data).fields == {
        "long": ArrayField(ValueType.UINT16, len(numbers)),
        "short": ArrayField(ValueType.INT32, 2, (-1, 2)),
        "strings": ArrayField(ValueType.STRING, 3),
        "empty": ArrayField(ValueType.STRING, 0),
        "last": 7,
    }
    kept = parse(data, arrays=True).fields
    assert kept["long"] == ArrayField(ValueType.UINT16, len(numbers), tuple(numbers))
    assert kept["strings"] == ArrayField(ValueType.STRING, 3, ("a", "", "bc"))


def test_nested_arrays_are_skipped_or_kept_whole() -> None:
    inner = [array(ValueType.UINT8, [1, 2]), array(ValueType.STRING, ["x"]), array(ValueType.BOOL, [True])]
    data = header([pair("nested", ValueType.ARRAY, array(ValueType.ARRAY, inner)), pair("last", ValueType.UINT8, 7)])
    assert parse(data).fields == {"nested": ArrayField(ValueType.ARRAY, 3), "last": 7}
    assert parse(data, arrays=True).fields["nested"] == ArrayField(
        ValueType.ARRAY,
        3,
        (
            ArrayField(ValueType.UINT8, 2, (1, 2)),
            ArrayField(ValueType.STRING, 1, ("x",)),
            ArrayField(ValueType.BOOL, 1, (True,)),
        ),
    )


def test_a_very_long_string_is_skipped() -> None:
    data = header(
        [
            pair("kept", ValueType.STRING, "a" * MAX_STRING_BYTES),
            pair("skipped", ValueType.STRING, "a" * (MAX_STRING_BYTES + 1)),
            pair("last", ValueType.UINT8, 7),
        ]
    )
    fields = parse(data).fields
    assert fields["kept"] == "a" * MAX_STRING_BYTES
    assert fields["skipped"] == LongString(MAX_STRING_BYTES + 1)
    assert fields["last"] == 7


def test_text_that_is_not_utf_8_does_not_make_a_model_unusable() -> None:
    assert parse(header([pair("licence", ValueType.STRING, b"caf\xe9")])).fields == {"licence": "caf\ufffd"}


def test_a_scalar_tensor_has_one_element() -> None:
    (only,) = parse(model([], [("scalar", ())])).tensors
    assert (only.shape, only.size_bytes) == ((), 4)


def test_an_empty_tensor_takes_no_bytes() -> None:
    assert parse(model([], [("empty", (0, 4)), ("next", (2,))])).tensor_bytes == 8


def test_the_fields_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        parse(header()).fields["a"] = 1  # type: ignore[index]


# --- what is refused


BEGINNINGS = [
    (b"", "letters GGUF"),
    (b"GGU", "letters GGUF"),
    (b"GGUF", "truncated"),
    (b"PK\x03\x04" + bytes(40), "pickled"),
    (b"\x80\x02}q\x00" + bytes(40), "pickled"),
    (b"lmgg" + bytes(40), "GGML"),
    (b"tjgg" + bytes(40), "GGJT"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
    (b"<!DOCTYPE html><html>" + bytes(40), "web page"),
    (b'{"error":"not found"}', "JSON"),
    (u64(40) + b'{"a":{"dtype":"F32"}}', "safetensors"),
    (header(magic=b"FUGG"), "letters GGUF"),
    (header(version=0), "big endian"),
    (header(version=1), "version 1"),
    (header(version=4), "version 4"),
    (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big endian"),
]

BAD_PAIRS = [
    ([pair("", ValueType.UINT8, 1)], "empty key"),
    ([pair("a", ValueType.UINT8, 1)] * 2, "key 'a' twice"),
    ([pair(b"\xff", ValueType.UINT8, 1)], "not UTF-8"),
    ([pair("a", 13, b"\0")], "type 13"),
    ([pair("a", ValueType.BOOL, 2)], "truth value 2"),
    ([pair("a", ValueType.ARRAY, array(ValueType.BOOL, [0, 7]))], "truth value 7"),
    ([pair("a", ValueType.ARRAY, u32(99) + u64(0))], "type 99"),
    ([pair("a", ValueType.ARRAY, array(ValueType.UINT8, [], 1000))], "array of 1000"),
    ([pair("a", ValueType.ARRAY, array(ValueType.STRING, [], 2**61))], "array of"),
    ([pair("a", ValueType.ARRAY, array(ValueType.FLOAT64, [], 2**64 - 1))], "array of"),
    ([pair("a", ValueType.ARRAY, array(ValueType.ARRAY, [], 2**62))], "array of"),
    ([pair("a", ValueType.STRING, b"") + b""], "truncated"),
    ([u64(2**64 - 1) + bytes(40)], "key of 18446744073709551615 bytes"),
    ([u64(MAX_KEY_BYTES + 1) + bytes(MAX_KEY_BYTES + 80)], f"key of {MAX_KEY_BYTES + 1} bytes"),
    ([text("a") + u32(ValueType.STRING) + u64(2**63)], "truncated"),
    ([text("a") + u32(ValueType.STRING) + u64(200)], "truncated"),
    ([pair("general.alignment", ValueType.UINT32, 0)], "power of two"),
    ([pair("general.alignment", ValueType.UINT32, 48)], "power of two"),
    ([pair("general.alignment", ValueType.UINT64, 32)], "power of two"),
    ([pair("general.alignment", ValueType.STRING, "32")], "power of two"),
]

BAD_TENSORS = [
    ([tensor("t", [1] * 5)], "5 dimensions"),
    ([text("t") + u32(2**32 - 1) + bytes(64)], "dimensions"),
    ([tensor("t", [1], kind=4)], "type 4"),
    ([tensor("t", [1], kind=2**32 - 1)], "type 4294967295"),
    ([tensor("t", [1]), tensor("t", [1], offset=32)], "tensor 't' twice"),
    ([tensor(b"\xff", [1])], "not UTF-8"),
    ([tensor("t", [33], kind=2)], "multiples of 32"),
    ([tensor("t", [], kind=2)], "multiples of 32"),
    ([tensor("t", [2**63])], "impossible"),
    ([tensor("t", [0, 2**63])], "impossible"),
    ([tensor("t", [2**32, 2**32])], "impossible"),
    ([tensor("t", [2**62])], "truncated"),
    ([tensor("t", [1], offset=2**64 - 32)], "truncated"),
    ([tensor("t", [1], offset=1)], "multiple of 32"),
    ([tensor("t", [1000])], "truncated"),
    ([tensor("a", [64]), tensor("b", [64])], "overlap"),
]


@pytest.mark.parametrize(("data", "why"), BEGINNINGS)
def test_what_is_no_readable_gguf_is_refused(data: bytes, why: str) -> None:
    assert why in refuse(data)


@pytest.mark.parametrize(("pairs", "why"), BAD_PAIRS)
def test_damaged_pairs_are_refused(pairs: list[bytes], why: str) -> None:
    data = header(pairs)
    if pairs == [pair("a", ValueType.STRING, b"")]:
        data = data[:-4]
    assert why in refuse(data)


@pytest.mark.parametrize(("tensors", "why"), BAD_TENSORS)
def test_damaged_tensors_are_refused(tensors: list[bytes], why: str) -> None:
    assert why in refuse(padded(header([], tensors)) + bytes(256))


@pytest.mark.parametrize("counts", [{"pair_count": 2**64 - 1}, {"tensor_count": 2**64 - 1}, {"pair_count": 8}])
def test_counts_that_the_file_has_no_room_for_are_refused(counts: dict[str, int]) -> None:
    source = MemorySource(header(**counts) + bytes(64))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="room for"):
        parse_header(source)
    assert sum(source.reads) < 1000


@pytest.mark.parametrize("counts", [{"pair_count": MAX_PAIRS + 1}, {"tensor_count": MAX_TENSORS + 1}])
def test_counts_beyond_any_model_are_refused_even_where_there_is_room(counts: dict[str, int]) -> None:
    assert "more than any model needs" in refuse(header(**counts), 2**40)  # type: ignore[arg-type]


def test_arrays_nest_only_so_deep() -> None:
    nested = array(ValueType.UINT8, [1])
    for _ in range(3):
        nested = array(ValueType.ARRAY, [nested])
    assert parse(header([pair("deep", ValueType.ARRAY, nested)])).kv_count == 1
    for _ in range(10_000):
        nested = u32(ValueType.ARRAY) + u64(1) + nested
    assert "nested" in refuse(header([pair("deep", ValueType.ARRAY, nested)]))


def test_a_name_in_a_message_is_short_and_printable() -> None:
    message = refuse(padded(header([], [tensor("\x1b[2J\n" + "x" * 5000, [1] * 5)])))
    assert message.isprintable()
    assert len(message) < 400


def test_a_file_that_ends_anywhere_in_its_header_or_data_is_refused() -> None:
    whole = language_model()
    parse(whole)
    # The last tensor is followed by nothing: 8 rows of 8 floats end on the alignment.
    for length in range(len(whole)):
        refuse(whole[:length])


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    class Shrinking(MemorySource):
        def read_at(self, offset: int, length: int) -> bytes:
            return super().read_at(offset, length)[: 24 if offset == 0 and length > 32 else length]

    with pytest.raises(InvalidRequestError, match="while it was being read"):
        parse_header(Shrinking(language_model()))


def test_a_missing_file_is_the_callers_matter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "missing.gguf")


# --- what it costs


def test_long_arrays_are_jumped_over_without_being_read() -> None:
    length = 30 * MEBIBYTE
    source = MemorySource(header([pair("a", ValueType.ARRAY, array(ValueType.FLOAT32, [], length))]), 10**9)
    fields = parse_header(source).fields
    assert fields["a"] == ArrayField(ValueType.FLOAT32, length)
    assert sum(source.reads) <= 2 * MEBIBYTE


def test_a_vocabulary_is_read_in_large_pieces_and_once() -> None:
    words = array(ValueType.STRING, [f"token number {index}" for index in range(200_000)])
    source = MemorySource(header([pair("tokenizer.ggml.tokens", ValueType.ARRAY, words)]))
    assert parse_header(source).fields["tokenizer.ggml.tokens"] == ArrayField(ValueType.STRING, 200_000)
    assert len(source.reads) <= source.size // MEBIBYTE + 3
    assert sum(source.reads) < source.size * 1.01


@pytest.mark.parametrize("arrays", [False, True])
def test_strings_across_the_pieces_that_are_read_are_whole(arrays: bool) -> None:
    words = [chr(97 + index % 26) * (index * 37 % 2000) for index in range(3000)]
    kept = parse(
        header(
            [pair("words", ValueType.ARRAY, array(ValueType.STRING, words)), pair("last", ValueType.STRING, "x" * 999)]
        ),
        arrays=arrays,
    ).fields
    assert kept["words"] == ArrayField(ValueType.STRING, 3000, tuple(words) if arrays else None)
    assert kept["last"] == "x" * 999


def test_a_string_that_leads_out_of_the_file_ends_the_walk() -> None:
    for lengths in ([2**64 - 1], [0, 2**63, 0], [0, 0, 10**6]):
        strings = u32(ValueType.STRING) + u64(len(lengths)) + b"".join(map(u64, lengths))
        assert "truncated" in refuse(header([pair("a", ValueType.ARRAY, strings)]) + bytes(100))


def test_the_header_may_reach_only_so_far_into_a_large_file() -> None:
    long = pair("a", ValueType.STRING, b"") + b""
    data = header([long[:-8] + u64(MAX_HEADER_BYTES)])
    assert "MiB" in refuse(data, 2**40)


@pytest.mark.parametrize(
    ("kind", "length", "why"),
    [(ValueType.STRING, MAX_STRINGS + 1, "strings"), (ValueType.ARRAY, MAX_ARRAYS, "arrays")],
)
def test_elements_that_cost_a_step_each_are_counted_before_they_are_walked(
    kind: ValueType, length: int, why: str
) -> None:
    source = MemorySource(header([pair("a", ValueType.ARRAY, array(kind, [], length))]), 2**40)
    with pytest.raises(InvalidRequestError, match=why):
        parse_header(source)
    assert len(source.reads) <= 2


def test_many_small_arrays_are_counted_together() -> None:
    many = u32(ValueType.ARRAY) + u64(MAX_ARRAYS - 10)
    data = header([pair(str(i), ValueType.ARRAY, array(ValueType.UINT8, [])) for i in range(10)], pair_count=11)
    assert "arrays" in refuse(data + pair("a", ValueType.ARRAY, many), 2**40)


def many_tensors() -> bytes:
    return header(
        [], [tensor(f"{index:05}\U0001f389", [2**50, 0, 2**50, 2**50], offset=2**40) for index in range(MAX_TENSORS)]
    )


def many_pairs() -> bytes:
    return header([pair(f"\U0001f389{index}", ValueType.UINT64, 2**63 + index) for index in range(MAX_PAIRS)])


def many_arrays() -> bytes:
    values = array(ValueType.FLOAT64, [0.5] * MAX_SHORT_ARRAY)
    return header([pair(str(index), ValueType.ARRAY, values) for index in range(3000)])


def wide_strings() -> bytes:
    wide = pair("", ValueType.STRING, "\U0001f389" + "a" * (MAX_STRING_BYTES - 4))[8:]
    return header([text(str(index)) + wide for index in range(100)])


def long_keys() -> bytes:
    return header([pair(f"\U0001f389{index:0{MAX_KEY_BYTES - 4}}", ValueType.UINT8, 1) for index in range(400)])


HOSTILE = [many_tensors, many_pairs, many_arrays, wide_strings, long_keys]


@pytest.mark.parametrize("build", HOSTILE)
def test_memory_stays_bounded_whatever_a_header_piles_up(build: Callable[[], bytes]) -> None:
    source = MemorySource(build())

    def work() -> None:
        with contextlib.suppress(InvalidRequestError):
            parse_header(source)

    assert peak_memory(work) < MEMORY_LIMIT
    assert sum(source.reads) < 2 * len(source.data) + 2 * MEBIBYTE


def test_what_is_kept_has_a_limit_below_the_memory_limit() -> None:
    assert MAX_KEPT_BYTES < MEMORY_LIMIT
    assert "too much" in refuse(wide_strings())
    assert "too much" in refuse(many_arrays())


@pytest.mark.parametrize("kind", [ValueType.UINT8, ValueType.FLOAT64, ValueType.STRING])
def test_even_with_arrays_memory_is_asked_for_before_it_is_taken(kind: ValueType) -> None:
    data = header([pair("a", ValueType.ARRAY, array(kind, [], 2**27))])
    source = MemorySource(data, 2**40)

    def work() -> None:
        with pytest.raises(InvalidRequestError, match="more than any model needs"):
            parse_header(source, arrays=True)

    assert peak_memory(work) < 4 * MEBIBYTE


# --- properties


SMALL = language_model()
RICH = model(
    [
        pair("general.architecture", ValueType.STRING, "x"),
        pair("s", ValueType.ARRAY, array(ValueType.STRING, ["ab", "", "c"])),
        pair("n", ValueType.ARRAY, array(ValueType.ARRAY, [array(ValueType.BOOL, [True, False])])),
        pair("f", ValueType.ARRAY, array(ValueType.FLOAT32, [1.0, 2.0])),
        pair("b", ValueType.BOOL, True),
        pair("u", ValueType.UINT64, 5),
    ],
    [("t", (2, 3)), ("u", (4,))],
)
NASTY = st.sampled_from([0, 1, 2, 7, 8, 9, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1])


def parse_or_refuse(data: bytes, size: int = -1) -> None:
    """Only this one error may escape, and the reader may not read on and on."""
    for arrays in (False, True):
        source = MemorySource(data, size)
        with contextlib.suppress(InvalidRequestError):
            parsed = parse_header(source, arrays=arrays)
            metadata(parsed)
            guess_type(parsed)
        assert len(source.reads) < 1000


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from([SMALL, RICH]),
    edits=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.none() | st.integers(0, 600),
)
def test_a_header_with_wrong_bytes_is_read_or_refused(
    base: bytes, edits: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(base)
    for position, byte in edits:
        data[position % len(data)] = byte
    parse_or_refuse(bytes(data[:cut]))


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from([SMALL, RICH]),
    position=st.integers(0, 600),
    value=NASTY,
    size=st.sampled_from([-1, 10_000, 10**9]),
)
def test_a_header_with_an_absurd_number_is_read_or_refused(base: bytes, position: int, value: int, size: int) -> None:
    position %= len(base) - 8
    parse_or_refuse(base[:position] + u64(value) + base[position + 8 :], size)


@settings(max_examples=200, deadline=None)
@given(rest=st.binary(max_size=200), counts=st.tuples(st.integers(0, 8), st.integers(0, 8)))
def test_random_bytes_after_the_magic_are_read_or_refused(rest: bytes, counts: tuple[int, int]) -> None:
    parse_or_refuse(b"GGUF" + u32(3) + u64(counts[0]) + u64(counts[1]) + rest)


# --- what the header means


def described(pairs: list[bytes]) -> GgufHeader:
    return parse(header([pair("general.architecture", ValueType.STRING, "qwen3"), *pairs]))


def test_metadata_takes_the_fields_of_the_models_own_architecture() -> None:
    found = metadata(
        described(
            [
                pair("general.name", ValueType.STRING, "Qwen3 0.6B"),
                pair("general.file_type", ValueType.UINT32, 15),
                pair("qwen3.block_count", ValueType.UINT32, 28),
                pair("qwen3.context_length", ValueType.UINT64, 40_960),
                pair("qwen3.attention.head_count", ValueType.UINT32, 16),
                pair("qwen3.attention.head_count_kv", ValueType.ARRAY, array(ValueType.INT32, [8, 2, 8, 4])),
                pair("qwen3.embedding_length", ValueType.UINT32, 1024),
                pair("qwen3.feed_forward_length", ValueType.ARRAY, array(ValueType.UINT32, [3072, 4096])),
                pair("qwen3.vocab_size", ValueType.UINT32, 151_936),
                pair("qwen3.rope.dimension_count", ValueType.UINT32, 128),
                pair("qwen3.rope.freq_base", ValueType.FLOAT64, 1e6),
                pair("qwen3.attention.layer_norm_rms_epsilon", ValueType.FLOAT64, 1e-6),
                pair("llama.block_count", ValueType.UINT32, 99),
            ]
        )
    )
    assert (found.version, found.tensor_count, found.kv_count, found.tensor_bytes) == (3, 0, 14, 0)
    assert (found.architecture, found.general_name, found.file_type) == ("qwen3", "Qwen3 0.6B", 15)
    assert (found.block_count, found.context_length, found.embedding_length) == (28, 40_960, 1024)
    assert (found.attention_head_count, found.attention_head_count_kv, found.feed_forward_length) == (16, 8, 4096)
    assert (found.vocab_size, found.rope_dimension_count, found.rope_freq_base) == (151_936, 128, 1e6)
    assert found.attention_layer_norm_rms_epsilon == 1e-6


def test_the_vocabulary_is_counted_where_its_size_is_not_said() -> None:
    tokens = pair("tokenizer.ggml.tokens", ValueType.ARRAY, array(ValueType.STRING, ["a"] * 12))
    assert metadata(described([tokens])).vocab_size == 12


@pytest.mark.parametrize(
    "value",
    [
        pair("qwen3.block_count", ValueType.INT32, -1),
        pair("qwen3.block_count", ValueType.UINT64, 2**63),
        pair("qwen3.block_count", ValueType.BOOL, 1),
        pair("qwen3.block_count", ValueType.STRING, "28"),
        pair("qwen3.block_count", ValueType.FLOAT32, 28.0),
        pair("qwen3.block_count", ValueType.ARRAY, array(ValueType.UINT32, [])),
        pair("qwen3.block_count", ValueType.ARRAY, array(ValueType.STRING, ["28"])),
    ],
)
def test_a_value_of_the_wrong_kind_counts_as_absent(value: bytes) -> None:
    assert metadata(described([value])).block_count is None


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_number_that_is_none_counts_as_absent(value: float) -> None:
    assert metadata(described([pair("qwen3.rope.freq_base", ValueType.FLOAT32, value)])).rope_freq_base is None


def test_names_in_the_metadata_are_short_and_have_no_control_characters() -> None:
    name = metadata(described([pair("general.name", ValueType.STRING, "a\nb\0" + "c" * 5000)])).general_name
    assert name.startswith("a b c")
    assert len(name) == 200


def test_a_field_of_the_architecture_is_looked_up_by_its_short_name() -> None:
    found = described([pair("qwen3.expert_count", ValueType.UINT32, 8)])
    assert arch_field(found, "expert_count") == 8
    assert arch_field(found, "expert_used_count") is None


def typed(architecture: str | None, names: list[str], *, tokenizer: bool = False) -> str | None:
    pairs = []
    if architecture is not None:
        pairs.append(pair("general.architecture", ValueType.STRING, architecture))
    if tokenizer:
        pairs.append(pair("tokenizer.ggml.model", ValueType.STRING, "gpt2"))
    return guess_type(parse(model(pairs, [(name, (4,)) for name in names])))


@pytest.mark.parametrize("architecture", ["flux", "sd1", "sdxl", "sd3", "aura", "ltxv", "hyvid", "wan", "qwen_image"])
def test_diffusion_architectures_are_known(architecture: str) -> None:
    assert typed(architecture, ["anything"]) == "diffusion"


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.decoder.conv_in.weight",
        "double_blocks.0.img_attn.qkv.weight",
        "joint_blocks.0.x_block.attn.qkv.weight",
        "output_blocks.0.0.weight",
    ],
)
def test_a_diffusion_model_without_architecture_is_told_by_its_tensors(name: str) -> None:
    assert typed(None, ["other", name]) == "diffusion"


def test_a_language_model_has_a_tokenizer_and_embeddings_or_blocks() -> None:
    assert typed("llama", ["token_embd.weight"], tokenizer=True) == "llm"
    assert typed("new-architecture", ["blk.0.attn_q.weight"], tokenizer=True) == "llm"
    assert typed("llama", ["token_embd.weight"]) is None
    assert typed("llama", ["output.weight"], tokenizer=True) is None


@pytest.mark.parametrize("architecture", ["clip", "t5", "t5encoder"])
def test_an_encoder_may_serve_both(architecture: str) -> None:
    assert typed(architecture, ["token_embd.weight"], tokenizer=True) is None
