"""The memory of language models: whole models computed by hand, and what must hold for all of them."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.resource.core.fitting.footprint import Footprint, MemoryNeed
from genaid_server.resource.core.fitting.llm_memory import GPU_OVERHEAD, fallback, need
from genaid_server.resource.core.fitting.model_shape import CacheType, Layer, LlmShape
from genaid_server.resource.core.fitting.plan import LlmOptions

KIB, MIB, GIB = 2**10, 2**20, 2**30

LLAMA_3_8B = LlmShape(
    architecture="llama",
    layers=(
        Layer(weights=416 * MIB, key_width=1024, value_width=1024, head_width=128, largest_tensor=2 * 14_336 * 4096),
    )
    * 32,
    input_weights=1002 * MIB,
    output_weights=1003 * MIB,
    embedding_width=4096,
    feed_forward_width=14_336,
    query_width=4096,
    head_count=32,
    vocab_size=128_256,
    context_length=8192,
)
QWEN3_30B_A3B = LlmShape(
    architecture="qwen3moe",
    layers=(
        Layer(
            weights=1190 * MIB,
            expert_weights=1152 * MIB,
            key_width=512,
            value_width=512,
            head_width=128,
            largest_tensor=384 * MIB,
        ),
    )
    * 48,
    input_weights=593 * MIB,
    output_weights=594 * MIB,
    embedding_width=2048,
    feed_forward_width=8 * 768,
    query_width=4096,
    head_count=32,
    vocab_size=151_936,
    context_length=40_960,
    experts_used=8,
)
GEMMA_3_4B = LlmShape(
    architecture="gemma3",
    layers=tuple(
        Layer(weights=180 * MIB, key_width=1024, value_width=1024, head_width=256, window=1024 if n % 6 < 5 else 0)
        for n in range(34)
    ),
    input_weights=1280 * MIB,
    output_weights=5 * KIB,
    embedding_width=2560,
    feed_forward_width=10_240,
    query_width=2048,
    head_count=8,
    vocab_size=262_144,
    context_length=131_072,
    tied_weights=1280 * MIB,
)
DEEPSEEK_V2_LITE = LlmShape(
    architecture="deepseek2",
    layers=(Layer(weights=1000 * MIB, expert_weights=900 * MIB, key_width=576, head_width=576),) * 27,
    input_weights=400 * MIB,
    output_weights=400 * MIB,
    embedding_width=2048,
    feed_forward_width=10_944,
    query_width=16 * 576,
    head_count=16,
    vocab_size=102_400,
    context_length=163_840,
    experts_used=6,
)
JAMBA = LlmShape(
    architecture="jamba",
    layers=tuple(
        Layer(weights=200 * MIB, key_width=1024, value_width=1024, head_width=128)
        if n % 8 == 4
        else Layer(weights=200 * MIB, state=4 * (3 + 16) * 8192)
        for n in range(32)
    ),
    input_weights=512 * MIB,
    output_weights=512 * MIB,
    embedding_width=4096,
    feed_forward_width=28_672,
    query_width=4096,
    head_count=32,
    vocab_size=65_536,
    context_length=262_144,
)
ALL = [LLAMA_3_8B, QWEN3_30B_A3B, GEMMA_3_4B, DEEPSEEK_V2_LITE, JAMBA]

CPU = LlmOptions(threads=8, gpu_layers=0, context_size=8192)
GPU = replace(CPU, gpu_layers=1000)


# --- by hand


def test_a_llama_in_main_memory() -> None:
    found = need(LLAMA_3_8B, CPU)
    assert found.vram == Footprint()
    assert found.exact
    assert found.ram.weights == LLAMA_3_8B.weights
    assert found.ram.kv_cache == GIB
    # The mask, activations of 4 · 14336 + 4096 floats for each of 512 tokens, the widest of them again in 16 bits,
    # the logits of one token, and a little for alignment.
    assert found.ram.compute == (8 + 120 + 14) * MIB + 4 * 128_256 + 64 * KIB


def test_a_llama_on_a_gpu() -> None:
    found = need(LLAMA_3_8B, GPU)
    assert found.vram.weights == (32 * 416 + 1003) * MIB
    assert found.vram.kv_cache == GIB
    assert found.vram.compute == (8 + 120) * MIB + 4 * 128_256 + 64 * KIB
    assert found.vram.overhead == GPU_OVERHEAD
    assert found.ram.weights == 1002 * MIB
    assert found.ram.kv_cache == 0
    assert found.ram.compute == (8 + 8) * MIB  # the mask and embeddings of a batch
    assert found.ram.overhead == need(LLAMA_3_8B, CPU).ram.overhead


def test_as_many_layers_as_there_are_is_all_of_it() -> None:
    assert need(LLAMA_3_8B, replace(CPU, gpu_layers=32)) == need(LLAMA_3_8B, GPU)


def test_a_llama_in_both() -> None:
    found = need(LLAMA_3_8B, replace(CPU, gpu_layers=8))
    whole = need(LLAMA_3_8B, CPU)
    assert found.vram.weights == 8 * 416 * MIB
    assert found.ram.weights == (24 * 416 + 1002 + 1003) * MIB
    assert (found.vram.kv_cache, found.ram.kv_cache) == (GIB // 4, 3 * GIB // 4)
    assert found.ram.compute == whole.ram.compute
    # The largest tensor of a layer in main memory is copied to the GPU for a prompt.
    assert found.vram.compute == need(LLAMA_3_8B, GPU).vram.compute + 112 * MIB


@pytest.mark.parametrize(("kind", "size"), [(CacheType.F16, 32), (CacheType.Q8_0, 17), (CacheType.Q4_0, 9)])
def test_a_quantized_cache(kind: CacheType, size: int) -> None:
    keys = need(LLAMA_3_8B, replace(CPU, cache_type_k=kind)).ram.kv_cache
    values = need(LLAMA_3_8B, replace(CPU, cache_type_v=kind)).ram.kv_cache
    assert keys == values == GIB // 2 + GIB // 2 * size // 32
    both = need(LLAMA_3_8B, replace(CPU, cache_type_k=kind, cache_type_v=kind)).ram.kv_cache
    assert both == GIB * size // 32


def test_without_flash_attention_every_head_scores_every_cell() -> None:
    config = replace(CPU, flash_attention=False)
    scores = 512 * 8192 * 32 * 4
    expected = scores + 16 * MIB + 512 * 4 * 4 * (4096 + 4096) + 4 * 128_256 + 64 * KIB
    assert need(LLAMA_3_8B, config).ram.compute == expected + scores // 2
    assert need(LLAMA_3_8B, replace(config, gpu_layers=32)).vram.compute == expected


def test_the_cells_of_a_slot_are_padded() -> None:
    config = replace(CPU, context_size=300, parallel=3)
    assert need(LLAMA_3_8B, config).ram.kv_cache == 3 * 512 * (GIB // 8192)


def test_slots_have_a_context_each_and_share_the_buffers() -> None:
    one, four = need(LLAMA_3_8B, CPU).ram, need(LLAMA_3_8B, replace(CPU, parallel=4)).ram
    assert four.kv_cache == 4 * one.kv_cache
    assert four.compute == one.compute + 3 * 4 * 128_256
    assert four.overhead > one.overhead


def test_the_experts_stay_in_main_memory() -> None:
    config = LlmOptions(threads=8, gpu_layers=48, context_size=32_768, experts_on_cpu=True)
    found = need(QWEN3_30B_A3B, config)
    assert found.vram.weights == (48 * 38 + 594) * MIB
    assert found.ram.weights == (48 * 1152 + 593) * MIB
    assert (found.vram.kv_cache, found.ram.kv_cache) == (3 * GIB, 0)
    # 3 · 6144 for the experts and what the 8 of them give, in floats for 512 tokens, and a tensor of experts.
    activations = 512 * 4 * (3 * 6144 + 8 * 2048 + 2 * 2048)
    expected = 32 * MIB + activations + 4 * 151_936 + 64 * KIB
    assert found.vram.compute == expected + 384 * MIB
    assert found.ram.compute == expected + 512 * 6144 * 2


def test_a_mixture_all_on_the_gpu() -> None:
    found = need(QWEN3_30B_A3B, LlmOptions(threads=8, gpu_layers=48, context_size=32_768))
    assert found.vram.weights == (48 * 1190 + 594) * MIB
    assert found.ram.weights == 593 * MIB
    assert found.ram.compute == (32 + 4) * MIB


def test_there_are_no_experts_to_keep_in_a_dense_model() -> None:
    for gpu_layers in (0, 8, 32):
        config = replace(CPU, gpu_layers=gpu_layers)
        assert need(LLAMA_3_8B, replace(config, experts_on_cpu=True)) == need(LLAMA_3_8B, config)


def test_layers_with_a_window_keep_less() -> None:
    found = need(GEMMA_3_4B, CPU)
    full, windowed = 5 * 8192, 29 * 1536
    assert found.ram.kv_cache == (full + windowed) * 4 * KIB
    mask = 512 * 2 * (8192 + 1536)
    activations = 512 * 4 * (4 * 10_240 + 2560)
    assert found.ram.compute == mask + activations + 4 * 262_144 + 64 * KIB + 512 * 10_240 * 2


def test_a_window_is_never_larger_than_the_context() -> None:
    found = need(GEMMA_3_4B, replace(CPU, context_size=512))
    assert found.ram.kv_cache == 34 * 512 * 4 * KIB


def test_embeddings_that_serve_as_output_are_copied_to_the_gpu() -> None:
    found = need(GEMMA_3_4B, GPU)
    assert found.vram.weights == (34 * 180 + 1280) * MIB + 5 * KIB
    assert found.ram.weights == 1280 * MIB
    assert need(GEMMA_3_4B, replace(CPU, gpu_layers=33)).vram.weights == 33 * 180 * MIB


def test_latent_attention_keeps_keys_only() -> None:
    config = replace(CPU, context_size=4096)
    assert need(DEEPSEEK_V2_LITE, config).ram.kv_cache == 27 * 576 * 2 * 4096
    without = replace(config, flash_attention=False)
    assert need(DEEPSEEK_V2_LITE, without).ram.kv_cache == 27 * 576 * 2 * 4096


def test_recurrent_state_is_as_large_for_any_context() -> None:
    state = 28 * 4 * 19 * 8192
    assert need(JAMBA, CPU).ram.kv_cache == 4 * 4 * KIB * 8192 + state
    assert need(JAMBA, replace(CPU, context_size=256)).ram.kv_cache == 4 * 4 * KIB * 256 + state
    assert need(JAMBA, replace(CPU, parallel=2)).ram.kv_cache == 2 * need(JAMBA, CPU).ram.kv_cache


def test_a_model_without_attention_has_no_mask() -> None:
    shape = replace(JAMBA, layers=(Layer(weights=MIB, state=KIB),), query_width=0, head_count=0)
    short, long = need(shape, CPU).ram, need(shape, replace(CPU, context_size=262_144)).ram
    assert (short.kv_cache, short.compute) == (long.kv_cache, long.compute)


def test_without_flash_attention_all_layers_have_the_widest_values() -> None:
    widths = (64, 32, 16, 16)
    shape = replace(LLAMA_3_8B, layers=tuple(Layer(weights=MIB, key_width=w, value_width=w) for w in widths))
    config = replace(CPU, context_size=4096)
    assert need(shape, config).ram.kv_cache == MIB * 2
    assert need(shape, replace(config, flash_attention=False)).ram.kv_cache == MIB * 3


def test_each_gpu_has_buffers_of_its_own() -> None:
    one, three = need(LLAMA_3_8B, GPU), need(LLAMA_3_8B, GPU, gpus=3)
    assert three.ram == one.ram
    assert (three.vram.weights, three.vram.kv_cache) == (one.vram.weights, one.vram.kv_cache)
    # GPUs that have everything work on several batches at once, and keep the mask and embeddings of four.
    assert three.vram.compute == 3 * (one.vram.compute + 3 * 16 * MIB)
    assert three.vram.overhead == 3 * GPU_OVERHEAD
    some = replace(CPU, gpu_layers=8)
    assert need(LLAMA_3_8B, some, gpus=3).vram.compute == 3 * need(LLAMA_3_8B, some).vram.compute
    assert need(LLAMA_3_8B, CPU, gpus=3).vram == Footprint()


# --- without a header


@pytest.mark.parametrize(
    ("share", "ram", "vram"), [(0.0, 1200, 0), (0.25, 900, 300), (1.0, 0, 1200), (1.5, 0, 1200), (-1.0, 1200, 0)]
)
def test_the_size_alone(share: float, ram: int, vram: int) -> None:
    assert fallback(1000, share) == MemoryNeed(Footprint(weights=ram), Footprint(weights=vram), exact=False)


# --- for all


@st.composite
def shapes(draw: st.DrawFn) -> LlmShape:
    def size(most: int = 2**30) -> int:
        return draw(st.integers(0, most))

    def layer() -> Layer:
        experts, width = size(), 32 * draw(st.integers(0, 64))
        return Layer(
            weights=experts + size(),
            expert_weights=experts,
            key_width=width,
            value_width=draw(st.sampled_from([width, 0, 32])) if width else 0,
            window=draw(st.sampled_from([0, 0, 128, 4096])) if width else 0,
            state=draw(st.sampled_from([0, 4096])),
            largest_tensor=size(),
        )

    embeddings = size()
    return LlmShape(
        architecture="any",
        layers=tuple(layer() for _ in range(draw(st.integers(1, 6)))),
        input_weights=embeddings,
        output_weights=size(),
        embedding_width=draw(st.integers(1, 8192)),
        feed_forward_width=size(2**15),
        query_width=size(2**14),
        head_count=size(128),
        vocab_size=size(2**18),
        context_length=4096,
        experts_used=draw(st.sampled_from([0, 8])),
        tied_weights=draw(st.sampled_from([0, embeddings])),
    )


@st.composite
def configs(draw: st.DrawFn) -> LlmOptions:
    flash_attention = draw(st.booleans())
    kinds = st.sampled_from(list(CacheType) if flash_attention else [CacheType.F16])
    return LlmOptions(
        threads=1,
        gpu_layers=draw(st.integers(0, 8)),
        context_size=draw(st.integers(32, 2**17)),
        parallel=draw(st.integers(1, 64)),
        flash_attention=flash_attention,
        cache_type_k=draw(kinds),
        cache_type_v=draw(kinds),
        experts_on_cpu=draw(st.booleans()),
    )


def parts(footprint: Footprint) -> tuple[int, int, int, int]:
    return footprint.weights, footprint.kv_cache, footprint.compute, footprint.overhead


def at_most(less: Footprint, more: Footprint) -> bool:
    return all(a <= b for a, b in zip(parts(less), parts(more), strict=True))


@given(shapes(), configs(), st.integers(0, 2**17), st.integers(1, 4))
def test_a_longer_context_never_takes_less(shape: LlmShape, config: LlmOptions, longer: int, gpus: int) -> None:
    less = need(shape, config, gpus=gpus)
    more = need(shape, replace(config, context_size=config.context_size + longer), gpus=gpus)
    assert at_most(less.ram, more.ram)
    assert at_most(less.vram, more.vram)


@given(shapes(), configs(), st.integers(1, 8))
def test_more_slots_take_more(shape: LlmShape, config: LlmOptions, slots: int) -> None:
    less, more = need(shape, config), need(shape, replace(config, parallel=config.parallel + slots))
    assert at_most(less.ram, more.ram)
    assert at_most(less.vram, more.vram)
    assert less.total < more.total


@given(shapes(), configs())
def test_more_layers_take_more(shape: LlmShape, config: LlmOptions) -> None:
    config = replace(config, gpu_layers=0)
    deeper = replace(shape, layers=(*shape.layers, shape.layers[0]))
    assert at_most(need(shape, config).ram, need(deeper, config).ram)
    assert need(shape, config).total < need(deeper, config).total


@given(shapes(), configs())
def test_layers_that_move_to_the_gpu_never_raise_main_memory(shape: LlmShape, config: LlmOptions) -> None:
    needs = [need(shape, replace(config, gpu_layers=n)) for n in range(len(shape.layers) + 1)]
    for before, after in itertools.pairwise(needs):
        assert at_most(after.ram, before.ram)
        assert before.vram.weights <= after.vram.weights
        assert before.vram.kv_cache <= after.vram.kv_cache
    assert needs[0].vram == Footprint()


@given(shapes(), configs(), st.integers(1, 4))
def test_nothing_is_lost_on_the_way_to_the_gpu(shape: LlmShape, config: LlmOptions, gpus: int) -> None:
    found, whole = need(shape, config, gpus=gpus), need(shape, replace(config, gpu_layers=0))
    copied = shape.tied_weights if config.gpu_layers >= len(shape.layers) else 0
    assert found.ram.weights + found.vram.weights == shape.weights + copied
    assert found.ram.kv_cache + found.vram.kv_cache == whole.ram.kv_cache
    assert min(parts(found.ram) + parts(found.vram)) >= 0


@given(shapes(), configs())
def test_experts_in_main_memory_leave_the_rest_where_it_is(shape: LlmShape, config: LlmOptions) -> None:
    apart, together = (need(shape, replace(config, experts_on_cpu=each)) for each in (True, False))
    moved = sum(layer.expert_weights for layer in shape.layers[max(0, len(shape.layers) - config.gpu_layers) :])
    assert apart.ram.weights == together.ram.weights + moved
    assert apart.vram.weights == together.vram.weights - moved
    assert apart.vram.kv_cache == together.vram.kv_cache


@pytest.mark.parametrize("shape", ALL, ids=lambda shape: shape.architecture)
def test_a_quantized_cache_takes_less(shape: LlmShape) -> None:
    sizes = [need(shape, replace(CPU, cache_type_k=kind, cache_type_v=kind)).total for kind in CacheType]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
