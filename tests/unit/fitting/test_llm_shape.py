"""Shapes of language models from their headers: the kinds of attention, and headers that lie or say too little."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.resource.core.fitting.llm_memory import need
from genaid_server.resource.core.fitting.llm_shape import MAX_LAYERS, shape_of
from genaid_server.resource.core.fitting.model_shape import Layer, LlmShape, Pooling
from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.formats.gguf import ArrayField, GgufHeader, TensorInfo, ValueType, parse_header
from unit.formats.gguf_files import MemorySource, array, diffusion_model, language_model, model, pair

type Tensors = Sequence[tuple[str, tuple[int, ...]]]

MINIMUM: Mapping[str, Any] = {
    "block_count": 2,
    "context_length": 4096,
    "embedding_length": 64,
    "attention.head_count": 4,
}
BLOCKS: Tensors = [("blk.0.attn_k.weight", (64, 64)), ("blk.1.attn_k.weight", (64, 64))]


def tensor(name: str, shape: tuple[int, ...]) -> TensorInfo:
    """A tensor of 16-bit floats."""
    return TensorInfo(name, shape, 1, 0, 2 * math.prod(shape))


def header(architecture: str, fields: Mapping[str, Any], tensors: Tensors) -> GgufHeader:
    own = {f"{architecture}.{name}": value for name, value in fields.items()}
    infos = tuple(tensor(name, shape) for name, shape in tensors)
    everything = {"general.architecture": architecture, **own}
    size = sum(info.size_bytes for info in infos)
    return GgufHeader(3, len(infos), len(everything), everything, infos, 0, size)


def numbers(values: Sequence[int]) -> ArrayField:
    return ArrayField(ValueType.INT32, len(values), tuple(values))


def marks(values: Sequence[bool]) -> ArrayField:
    return ArrayField(ValueType.BOOL, len(values), tuple(values))


def shape(architecture: str, fields: Mapping[str, Any], tensors: Tensors = BLOCKS) -> LlmShape:
    found = shape_of([header(architecture, {**MINIMUM, **fields}, tensors)])
    assert found is not None
    return found


# --- models


LLAMA_ROWS = {
    "attn_q": 4096,
    "attn_k": 1024,
    "attn_v": 1024,
    "attn_output": 4096,
    "ffn_gate": 14_336,
    "ffn_up": 14_336,
    "ffn_down": 14_336,
}


def llama_3_8b() -> GgufHeader:
    fields = {
        "block_count": 32,
        "context_length": 8192,
        "embedding_length": 4096,
        "feed_forward_length": 14_336,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "vocab_size": 128_256,
    }
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (4096, 128_256)),
        ("output.weight", (4096, 128_256)),
        ("output_norm.weight", (4096,)),
    ]
    for layer in range(32):
        tensors += [(f"blk.{layer}.{name}.weight", (4096, rows)) for name, rows in LLAMA_ROWS.items()]
    return header("llama", fields, tensors)


def test_a_llama() -> None:
    found = shape_of([llama_3_8b()])
    assert found is not None
    attention, feed_forward = 2 * (4096 + 1024) * 4096, 3 * 14_336 * 4096
    layer = Layer(
        weights=2 * (attention + feed_forward),
        key_width=1024,
        value_width=1024,
        head_width=128,
        largest_tensor=2 * 14_336 * 4096,
    )
    assert found == LlmShape(
        architecture="llama",
        layers=(layer,) * 32,
        input_weights=2 * 128_256 * 4096,
        output_weights=2 * 128_256 * 4096 + 2 * 4096,
        embedding_width=4096,
        feed_forward_width=14_336,
        query_width=4096,
        head_count=32,
        vocab_size=128_256,
        context_length=8192,
    )
    assert found.weights == llama_3_8b().tensor_bytes
    assert found.expert_weights == 0


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({}, None),
        ({"pooling_type": 0}, None),
        ({"pooling_type": 1}, Pooling.MEAN),
        ({"pooling_type": 2}, Pooling.CLS),
        ({"pooling_type": 3}, Pooling.LAST),
        ({"pooling_type": 4}, None),
        ({"pooling_type": -1}, None),
        ({"pooling_type": 2**63}, None),
        ({"pooling_type": True}, None),
        ({"pooling_type": "mean"}, None),
        ({"pooling_type": numbers([1])}, None),
    ],
)
def test_which_models_make_vectors_of_texts(said: dict[str, Any], pooling: Pooling | None) -> None:
    assert shape("bert", said).pooling is pooling


QWEN3_MOE = {
    "block_count": 2,
    "context_length": 40_960,
    "embedding_length": 2048,
    "feed_forward_length": 6144,
    "expert_feed_forward_length": 768,
    "expert_count": 128,
    "expert_used_count": 8,
    "attention.head_count": 32,
    "attention.head_count_kv": 4,
    "attention.key_length": 128,
    "attention.value_length": 128,
}


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("ffn_gate_exps.weight", True),
        ("ffn_gate_up_exps.weight", True),
        ("ffn_down_exps.bias", True),
        ("ffn_up_exps_scale", True),
        ("ffn_up_chexps.weight", True),
        ("ffn_up_shexp.weight", False),
        ("ffn_gate_inp.weight", False),
        ("exp_probs_b.bias", False),
    ],
)
def test_the_experts_of_a_mixture(name: str, expert: bool) -> None:
    found = shape("qwen3moe", QWEN3_MOE, [*BLOCKS, (f"blk.1.{name}", (2048, 768, 128))])
    size = 2 * 2048 * 768 * 128
    assert found.layers[1].weights == size + 2 * 64 * 64
    assert found.expert_weights == found.layers[1].expert_weights == (size if expert else 0)
    assert found.layers[0].expert_weights == 0
    assert (found.query_width, found.feed_forward_width, found.experts_used) == (4096, 8 * 768, 8)
    assert (found.layers[0].key_width, found.layers[0].value_width, found.layers[0].head_width) == (512, 512, 128)


def test_experts_that_are_shared_are_visited_as_well() -> None:
    found = shape("qwen2moe", {**QWEN3_MOE, "expert_shared_feed_forward_length": 5632})
    assert found.feed_forward_width == 8 * 768 + 5632


def test_experts_of_no_width_of_their_own_have_that_of_the_layer() -> None:
    fields = {"expert_used_count": 2, "expert_count": 8, "feed_forward_length": 14_336}
    assert shape("llama", fields).feed_forward_width == 2 * 14_336


@pytest.mark.parametrize(
    ("architecture", "full"),
    [
        ("gemma2", [1, 3, 5, 7, 9, 11]),
        ("gemma3", [5, 11]),
        ("gemma3n", [4, 9]),
        ("gpt-oss", [1, 3, 5, 7, 9, 11]),
        ("cohere2", [3, 7, 11]),
        ("llama", list(range(12))),
        ("never-heard-of", list(range(12))),
    ],
)
def test_which_layers_have_a_window(architecture: str, full: list[int]) -> None:
    found = shape(architecture, {"block_count": 12, "attention.sliding_window": 1024})
    windows = [layer.window for layer in found.layers]
    assert [number for number, window in enumerate(windows) if not window] == full
    assert set(windows) <= {0, 1024}


def test_without_a_window_every_layer_sees_everything() -> None:
    assert {layer.window for layer in shape("gemma3", {"block_count": 12}).layers} == {0}


@pytest.mark.parametrize("architecture", ["gemma3", "never-heard-of"])
def test_the_header_marks_the_layers_with_a_window(architecture: str) -> None:
    pattern = {"attention.sliding_window": 512, "attention.sliding_window_pattern": marks([True, False, True])}
    found = shape(architecture, {"block_count": 5, **pattern})
    assert [layer.window for layer in found.layers] == [512, 0, 512, 0, 0]


def test_the_header_tells_the_period() -> None:
    pattern = {"attention.sliding_window": 512, "attention.sliding_window_pattern": 3}
    assert [layer.window for layer in shape("gemma3", {"block_count": 4, **pattern}).layers] == [512, 512, 0, 512]
    assert [layer.window for layer in shape("never-heard-of", {"block_count": 4, **pattern}).layers] == [0, 0, 0, 0]


def test_layers_with_a_window_have_heads_of_their_own() -> None:
    fields = {
        "attention.head_count_kv": 2,
        "attention.key_length": 512,
        "attention.value_length": 512,
        "attention.key_length_swa": 256,
        "attention.value_length_swa": 256,
        "attention.sliding_window": 1024,
        "attention.sliding_window_pattern": marks([True, False]),
    }
    windowed, full = shape("gemma4", fields).layers
    assert (windowed.key_width, windowed.value_width, windowed.head_width) == (512, 512, 256)
    assert (full.key_width, full.value_width, full.head_width) == (1024, 1024, 512)


def test_the_last_layers_use_the_cache_of_others() -> None:
    found = shape("gemma3n", {"block_count": 4, "attention.shared_kv_layers": 3})
    assert [layer.key_width for layer in found.layers] == [64, 0, 0, 0]


LATENT = {
    "attention.head_count": 16,
    "attention.kv_lora_rank": 512,
    "rope.dimension_count": 64,
}


def test_latent_attention_keeps_one_short_key() -> None:
    fields = {
        "attention.head_count_kv": 1,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
    }
    found = shape("deepseek2", {**LATENT, **fields})
    assert (found.layers[0].key_width, found.layers[0].value_width, found.layers[0].head_width) == (576, 0, 576)
    assert found.query_width == 16 * 576


def test_an_old_header_of_latent_attention_has_whole_heads() -> None:
    fields = {"attention.head_count_kv": 16, "attention.key_length": 192, "attention.value_length": 128}
    found = shape("deepseek2", {**LATENT, **fields})
    assert (found.layers[0].key_width, found.layers[0].value_width, found.layers[0].head_width) == (3072, 2048, 64)
    assert found.query_width == 3072


def test_a_hybrid_remembers_in_its_recurrent_layers() -> None:
    fields = {
        "block_count": 4,
        "embedding_length": 4096,
        "attention.head_count": 32,
        "attention.head_count_kv": numbers([0, 8, 0, 0]),
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 8192,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 256,
    }
    recurrent: Tensors = [(f"blk.{number}.ssm_in.weight", (64, 64)) for number in (0, 2, 3)]
    found = shape("jamba", fields, [("blk.1.attn_k.weight", (64, 64)), *recurrent])
    state = 4 * (3 * 8192 + 16 * 8192)
    assert [layer.state for layer in found.layers] == [state, 0, state, state]
    assert [layer.key_width for layer in found.layers] == [0, 1024, 0, 0]
    assert found.feed_forward_width == 2 * 8192


def test_a_layer_may_attend_and_remember() -> None:
    fields = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 32, "ssm.group_count": 2}
    found = shape("falcon-h1", fields, [*BLOCKS, ("blk.0.ssm_in.weight", (64, 64)), ("blk.1.ssm_in.weight", (64, 64))])
    state = 4 * (3 * (128 + 2 * 2 * 32) + 128 * 32)
    assert [(layer.key_width, layer.state) for layer in found.layers] == [(64, state)] * 2


def test_a_delta_network_counts_heads_in_all_layers_but_attends_in_some() -> None:
    tensors: Tensors = [
        ("blk.0.attn_qkv.weight", (64, 64)),
        ("blk.0.ssm_out.weight", (64, 64)),
        ("blk.1.attn_k.weight", (64, 64)),
    ]
    fields = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 32, "ssm.group_count": 2}
    assert [layer.key_width for layer in shape("qwen3next", fields, tensors).layers] == [0, 64]
    assert [layer.key_width for layer in shape("never-heard-of", fields, tensors).layers] == [64, 64]


@pytest.mark.parametrize(
    ("architecture", "fields", "name", "state"),
    [
        ("mamba", {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16}, "ssm_in", 128 * (3 + 16)),
        ("rwkv6", {"wkv.head_size": 32, "token_shift_count": 2}, "time_mix_key", 64 * (2 + 32)),
        ("arwkv7", {"wkv.head_size": 32, "token_shift_count": 1}, "time_mix_key", 64 * (1 + 32)),
        ("rwkv7", {"wkv.head_size": 32}, "time_mix_key", 64 * (2 + 32)),
        ("lfm2", {"shortconv.l_cache": 3}, "shortconv.conv", 64 * 2),
        ("kimi-linear", {"kda.head_dim": 16, "ssm.conv_kernel": 4}, "ssm_q_conv", 4 * 16 * (3 * 3 + 16)),
    ],
)
def test_recurrent_layers(architecture: str, fields: dict[str, int], name: str, state: int) -> None:
    tensors: Tensors = [(f"blk.{number}.{name}.weight", (64, 64)) for number in range(2)]
    found = shape(architecture, {"attention.head_count_kv": 0, **fields}, tensors)
    assert [(layer.key_width, layer.window, layer.state) for layer in found.layers] == [(0, 0, 4 * state)] * 2


def test_a_model_without_any_attention_heads() -> None:
    found = shape("mamba", {"attention.head_count": 0})
    assert (found.head_count, found.query_width, found.layers[0].key_width) == (0, 0, 0)


def test_layers_that_differ() -> None:
    fields = {
        "block_count": 4,
        "attention.head_count": numbers([8, 8, 0, 8]),
        "attention.head_count_kv": numbers([8, 2, 0, 1]),
        "feed_forward_length": numbers([128, 256, 512, 128]),
    }
    found = shape("deci", fields)
    assert [layer.key_width for layer in found.layers] == [64, 16, 0, 8]
    assert (found.head_count, found.feed_forward_width, found.query_width) == (8, 512, 64)


# --- tensors


def test_tensors_belong_where_the_engine_keeps_them() -> None:
    tensors: Tensors = [
        ("token_embd.weight", (64, 1000)),
        ("per_layer_token_embd.weight", (64, 500)),
        ("token_embd_norm.weight", (64,)),
        ("output.weight", (64, 1000)),
        ("rope_freqs.weight", (32,)),
        ("blk.2.nextn.eh_proj.weight", (64, 10)),
        ("blk.01.ffn_up.weight", (64, 128)),
        *BLOCKS,
    ]
    found = shape("llama", {}, tensors)
    assert found.input_weights == 2 * 64 * 1500
    assert found.output_weights == 2 * (64 + 64_000 + 32 + 640)
    assert [layer.weights for layer in found.layers] == [2 * 64 * 64, 2 * 64 * (64 + 128)]
    assert (found.tied_weights, found.vocab_size) == (0, 1000)


def test_without_an_output_the_embeddings_serve_as_one() -> None:
    found = shape("gemma3", {}, [("token_embd.weight", (64, 1000)), ("output_norm.weight", (64,)), *BLOCKS])
    assert (found.input_weights, found.output_weights, found.tied_weights) == (128_000, 128, 128_000)


def test_shards_are_one_model() -> None:
    whole = llama_3_8b()
    first, second, third = (
        replace(whole, fields=fields, tensors=tensors)
        for fields, tensors in (
            (whole.fields, ()),
            ({"split.no": 1}, whole.tensors[:100]),
            ({"split.no": 2}, whole.tensors[100:]),
        )
    )
    assert shape_of([first, second, third]) == shape_of([whole])
    assert shape_of([first]) is None


def test_the_sums_over_the_last_layers() -> None:
    layers = (
        Layer(weights=10, key_width=4, value_width=2, largest_tensor=9),
        Layer(weights=20, expert_weights=5, key_width=3, value_width=3, window=8, largest_tensor=3),
        Layer(weights=40, state=7, largest_tensor=30),
        Layer(weights=80, key_width=1, value_width=1, window=8, largest_tensor=4),
    )
    found = replace(shape("llama", {}), layers=layers)
    assert [sums.weights for sums in found.last_layers] == [0, 80, 120, 140, 150]
    assert [sums.expert_weights for sums in found.last_layers] == [0, 0, 0, 5, 5]
    assert [sums.state for sums in found.last_layers] == [0, 0, 7, 7, 7]
    assert [sums.largest_tensor_before for sums in found.last_layers] == [30, 30, 9, 9, 0]
    caches = {cache.window: cache for cache in found.last_layers[4].caches}
    assert (caches[8].key_width, caches[8].value_width, caches[8].layers) == (4, 4, 2)
    assert (caches[0].key_width, caches[0].value_width, caches[0].layers) == (4, 2, 1)
    assert found.widest_values == 3


# --- headers that say too little, or lie


@pytest.mark.parametrize("missing", list(MINIMUM))
def test_what_is_needed(missing: str) -> None:
    fields = {name: value for name, value in MINIMUM.items() if name != missing}
    assert shape_of([header("llama", fields, BLOCKS)]) is None


@pytest.mark.parametrize(
    "lie",
    [
        {"block_count": 0},
        {"block_count": MAX_LAYERS + 1},
        {"block_count": 2**62},
        {"block_count": True},
        {"context_length": 0},
        {"context_length": 2**40},
        {"embedding_length": 0},
        {"embedding_length": 2**30},
        {"embedding_length": "64"},
        {"attention.head_count": 2**20},
        {"attention.head_count": numbers([])},
        {"attention.head_count": numbers([4, -4])},
        {"attention.head_count": ArrayField(ValueType.INT32, 5000)},
        {"attention.head_count_kv": 64.0},
        {"attention.head_count_kv": 2**20},
        {"attention.head_count_kv": 4096, "attention.key_length": 2**12},
        {"attention.head_count": 4096, "attention.key_length": 2**20},
        {"expert_used_count": 4096, "expert_feed_forward_length": 2**20},
    ],
)
def test_what_no_model_can_have(lie: dict[str, Any]) -> None:
    assert shape_of([header("llama", {**MINIMUM, **lie}, BLOCKS)]) is None


def test_no_recurrent_state_is_that_large() -> None:
    fields = {"ssm.inner_size": 2**18, "ssm.state_size": 2**16}
    assert shape_of([header("mamba", {**MINIMUM, **fields}, [("blk.0.ssm_in.weight", (64, 64))])]) is None


def test_no_weights_are_that_large() -> None:
    assert shape_of([header("llama", MINIMUM, [*BLOCKS, ("output.weight", (2**31, 2**31))])]) is None


def test_what_is_no_language_model() -> None:
    assert shape_of([]) is None
    assert shape_of([parse_header(MemorySource(diffusion_model()))]) is None
    assert shape_of([parse_header(MemorySource(language_model()))]) is None
    vision = {"vision.block_count": 24, "vision.embedding_length": 1024}
    assert shape_of([header("clip", vision, [("v.blk.0.attn_k.weight", (64, 64))])]) is None
    assert shape_of([header("t5", MINIMUM, [("enc.blk.0.attn_k.weight", (64, 64))])]) is None


def test_numbers_beyond_reason_count_as_absent() -> None:
    lies = {
        "attention.sliding_window": 2**40,
        "vocab_size": 2**40,
        "feed_forward_length": 2**40,
        "attention.key_length": 2**40,
        "attention.value_length": 0,
    }
    found = shape("gemma3", lies)
    assert found == shape("gemma3", {})
    assert found.layers[0].head_width == 16


def test_an_array_that_is_too_short_goes_on_with_its_greatest() -> None:
    found = shape("llama", {"block_count": 4, "attention.head_count_kv": numbers([1, 4])})
    assert [layer.key_width for layer in found.layers] == [16, 64, 64, 64]


def test_a_parsed_header() -> None:
    content = model(
        [
            pair("general.architecture", ValueType.STRING, "gemma3"),
            pair("gemma3.block_count", ValueType.UINT32, 3),
            pair("gemma3.context_length", ValueType.UINT64, 32_768),
            pair("gemma3.embedding_length", ValueType.UINT32, 8),
            pair("gemma3.attention.head_count", ValueType.UINT32, 2),
            pair("gemma3.attention.head_count_kv", ValueType.ARRAY, array(ValueType.INT32, [2, 1, 2])),
            pair("gemma3.attention.sliding_window", ValueType.UINT32, 16),
            pair("gemma3.attention.sliding_window_pattern", ValueType.ARRAY, array(ValueType.BOOL, [1, 0, 1])),
        ],
        [("token_embd.weight", (8, 4)), ("blk.0.attn_k.weight", (8, 8))],
    )
    found = shape_of([parse_header(MemorySource(content))])
    assert found is not None
    assert [(layer.key_width, layer.window) for layer in found.layers] == [(8, 16), (4, 0), (8, 16)]
    assert (found.layers[0].weights, found.input_weights, found.context_length) == (256, 128, 32_768)


FIELDS = [
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "expert_feed_forward_length"),
    *("expert_used_count", "expert_shared_feed_forward_length", "vocab_size", "token_shift_count", "wkv.head_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.key_length_mla", "attention.kv_lora_rank", "attention.sliding_window", "rope.dimension_count"),
    *("attention.sliding_window_pattern", "attention.shared_kv_layers", "attention.key_length_swa"),
    *("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "shortconv.l_cache", "kda.head_dim"),
    "attention.indexer.key_length",
]
NUMBERS = st.one_of(st.integers(0, 64), st.sampled_from([2**12, 2**20, 2**24, 2**31, 2**63, 2**64 - 1, -1]))
VALUES = st.one_of(
    NUMBERS,
    st.booleans(),
    st.floats(),
    st.text(max_size=5),
    st.lists(NUMBERS, max_size=5).map(numbers),
    st.lists(st.booleans(), max_size=5).map(marks),
    st.just(ArrayField(ValueType.INT32, 5000)),
)
NAMES = st.one_of(
    st.text(max_size=10),
    st.builds(
        "blk.{}.{}.weight".format,
        st.sampled_from([0, 1, 2, 5, 1023, 99_999, "x", "\u0663"]),
        st.sampled_from(["attn_k", "attn_qkv", "ssm_in", "time_mix_key", "shortconv.conv", "ffn_up_exps", "\n"]),
    ),
    st.sampled_from(["token_embd.weight", "output.weight"]),
)
SHAPES = st.lists(st.one_of(st.integers(0, 100), st.just(2**40)), max_size=4).map(tuple)
WORST = LlmOptions(threads=1, gpu_layers=1, context_size=2**24, parallel=64, flash_attention=False)


@given(
    architecture=st.sampled_from(["llama", "gemma3", "deepseek2", "qwen3next", "mamba", ""]),
    fields=st.dictionaries(st.sampled_from(FIELDS), VALUES),
    sane=st.booleans(),
    tensors=st.lists(st.tuples(NAMES, SHAPES), max_size=6),
)
def test_whatever_a_header_says_the_need_is_a_number_of_bytes(
    architecture: str, fields: dict[str, Any], sane: bool, tensors: list[tuple[str, tuple[int, ...]]]
) -> None:
    said = {**MINIMUM, **fields} if sane else fields
    found = shape_of([header(architecture, said, [*BLOCKS, *tensors] if sane else tensors)])
    if found is not None:
        assert len(found.layers) <= MAX_LAYERS
        assert 0 < need(found, WORST).total < 2**63
