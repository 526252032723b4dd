"""What a GGUF header means: the documented fields of any architecture, and what is assumed where it says nothing."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.resource.core.formats.gguf import GgufHeader, ValueType, parse_header
from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.formats.metadata import (
    GgufMetadata,
    arch_field,
    guess_type,
    metadata,
    metadata_of_shards,
)
from genaid_server.resource.core.store.model import Model, ModelFile, ModelSource, SourceType
from unit.formats.gguf_files import MemorySource, array, model, pair
from unit.store.store_files import shards

GIB = 2**30
MIB = 2**20


def parsed(*pairs: bytes) -> GgufHeader:
    return parse_header(MemorySource(model(pairs, [("a", (4, 2))])))


def architecture(name: str) -> bytes:
    return pair("general.architecture", ValueType.STRING, name)


# --- fields


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3moe", "gpt-neox", "mamba", "not-invented-yet", "über"])
def test_fields_are_found_in_any_architecture(name: str) -> None:
    header = parsed(
        architecture(name),
        pair(f"{name}.block_count", ValueType.UINT32, 48),
        pair(f"{name}.attention.head_count", ValueType.UINT64, 16),
        pair("other.context_length", ValueType.UINT32, 5),
    )
    assert arch_field(header, "block_count") == 48
    assert arch_field(header, "attention.head_count") == 16
    assert arch_field(header, "context_length") is None


def test_without_an_architecture_there_are_no_such_fields() -> None:
    assert arch_field(parsed(pair("llama.block_count", ValueType.UINT32, 48)), "block_count") is None
    assert metadata(parsed(pair("llama.block_count", ValueType.UINT32, 48))).block_count is None


def test_every_documented_field_is_read() -> None:
    header = parsed(
        architecture("llama"),
        pair("general.name", ValueType.STRING, "My Llama"),
        pair("general.file_type", ValueType.UINT32, 15),
        pair("llama.block_count", ValueType.UINT32, 32),
        pair("llama.context_length", ValueType.UINT32, 4096),
        pair("llama.attention.head_count", ValueType.UINT32, 40),
        pair("llama.attention.head_count_kv", ValueType.UINT32, 8),
        pair("llama.embedding_length", ValueType.UINT32, 5120),
        pair("llama.feed_forward_length", ValueType.UINT32, 13824),
        pair("llama.vocab_size", ValueType.UINT32, 32000),
        pair("llama.rope.dimension_count", ValueType.UINT32, 128),
        pair("llama.rope.freq_base", ValueType.FLOAT32, 10000.0),
        pair("llama.attention.layer_norm_rms_epsilon", ValueType.FLOAT32, 0.5),
    )
    assert metadata(header) == GgufMetadata(
        version=3,
        tensor_count=1,
        kv_count=13,
        architecture="llama",
        general_name="My Llama",
        file_type=15,
        block_count=32,
        context_length=4096,
        attention_head_count=40,
        attention_head_count_kv=8,
        embedding_length=5120,
        feed_forward_length=13824,
        vocab_size=32000,
        rope_dimension_count=128,
        rope_freq_base=10000.0,
        attention_layer_norm_rms_epsilon=0.5,
        tensor_bytes=32,
    )


def test_of_layers_that_differ_the_greatest_counts() -> None:
    header = parsed(
        architecture("x"),
        pair("x.attention.head_count_kv", ValueType.ARRAY, array(ValueType.INT32, [8, 0, 16, -1])),
        pair("x.feed_forward_length", ValueType.ARRAY, array(ValueType.UINT32, [])),
        pair("x.attention.head_count", ValueType.ARRAY, array(ValueType.STRING, ["8"])),
        pair("x.rope.freq_base", ValueType.ARRAY, array(ValueType.FLOAT32, [10000.0, float("inf"), 500.0])),
        pair("x.block_count", ValueType.ARRAY, array(ValueType.UINT8, [1] * 5000)),
    )
    found = metadata(header)
    assert (found.attention_head_count_kv, found.rope_freq_base) == (16, 10000.0)
    assert (found.feed_forward_length, found.attention_head_count, found.block_count) == (None, None, None)


@pytest.mark.parametrize(
    "value",
    [
        pair("x.block_count", ValueType.STRING, "32"),
        pair("x.block_count", ValueType.INT32, -1),
        pair("x.block_count", ValueType.BOOL, 1),
        pair("x.block_count", ValueType.FLOAT32, 32.0),
        pair("x.block_count", ValueType.UINT64, 2**63),
        pair("x.block_count", ValueType.ARRAY, array(ValueType.BOOL, [1])),
    ],
)
def test_a_value_of_the_wrong_type_counts_as_absent(value: bytes) -> None:
    assert metadata(parsed(architecture("x"), value)).block_count is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_counts_as_absent(value: float) -> None:
    found = metadata(parsed(architecture("x"), pair("x.rope.freq_base", ValueType.FLOAT64, value)))
    assert found.rope_freq_base is None


def test_the_vocabulary_is_counted_where_its_size_is_not_said() -> None:
    words = pair("tokenizer.ggml.tokens", ValueType.ARRAY, array(ValueType.STRING, ["a"] * 3000))
    assert metadata(parsed(architecture("x"), words)).vocab_size == 3000
    said = pair("x.vocab_size", ValueType.UINT32, 7)
    assert metadata(parsed(architecture("x"), words, said)).vocab_size == 7


def test_shards_are_counted_together() -> None:
    headers = [parse_header(MemorySource(content)) for content in shards(4)]
    found = metadata_of_shards(headers)
    assert (found.tensor_count, found.tensor_bytes, found.block_count) == (3, 3 * 256, 4)
    assert guess_type(headers[0]) is None
    assert guess_type(headers[0], headers[1:]) == "llm"


@given(
    kind=st.sampled_from([ValueType.UINT8, ValueType.INT16, ValueType.UINT64, ValueType.FLOAT32, ValueType.BOOL]),
    raw=st.integers(0, 1),
    name=st.text(max_size=10),
)
def test_no_header_makes_it_fail(kind: ValueType, raw: int, name: str) -> None:
    found = metadata(parsed(architecture(name), pair(f"{name}.block_count", kind, raw)))
    assert found.block_count in (None, 0, 1)


# --- fallbacks


def of_size(size: int, known: GgufMetadata | None = None, kind: ModelType = ModelType.LLM) -> Model:
    file = ModelFile(Path("/m/a.gguf"), size, "", ModelSource(SourceType.FILE))
    return Model("a", "A", kind, datetime.now(UTC), ModelFormat.GGUF, (file,), known)


@pytest.mark.parametrize(
    ("size", "layers"),
    [
        (0, 24),
        (24 * 150 * MIB, 24),
        (32 * 150 * MIB, 32),
        (32 * 150 * MIB + 74 * MIB, 32),
        (32 * 150 * MIB + 75 * MIB, 33),
        (33 * 150 * MIB + 75 * MIB, 34),
        (120 * 150 * MIB, 120),
        (400 * GIB, 120),
    ],
)
def test_layers_are_estimated_from_the_size(size: int, layers: int) -> None:
    assert of_size(size).layer_count == layers
    assert of_size(size, GgufMetadata()).layer_count == layers
    assert of_size(size, GgufMetadata(block_count=0)).layer_count == layers
    assert of_size(size, GgufMetadata(block_count=7)).layer_count == 7


@pytest.mark.parametrize(("size", "context"), [(0, 4096), (30 * GIB - 1, 4096), (30 * GIB, 8192)])
def test_the_context_is_estimated_from_the_size(size: int, context: int) -> None:
    assert of_size(size).context_length == context
    assert of_size(size, GgufMetadata()).context_length == context
    assert of_size(size, GgufMetadata(context_length=131072)).context_length == 131072


def test_the_architecture_is_assumed_by_type() -> None:
    assert of_size(1).architecture == "llama"
    assert of_size(1, GgufMetadata(), ModelType.DIFFUSION).architecture == "stable-diffusion"
    assert of_size(1, GgufMetadata(architecture="qwen3")).architecture == "qwen3"


def test_all_files_count() -> None:
    one = of_size(20 * GIB)
    both = Model("a", "A", one.type, one.create_time, one.format, one.files * 2)
    assert (both.size_bytes, both.context_length) == (40 * GIB, 8192)
