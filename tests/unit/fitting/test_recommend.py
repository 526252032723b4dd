"""How a language model is recommended to be run, case by case; the properties of all cases are tested elsewhere."""

from dataclasses import replace

import pytest

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.fitting import llm_memory
from genaid_server.resource.core.fitting.capacity import Capacity
from genaid_server.resource.core.fitting.model_shape import CacheType, Layer, LlmShape
from genaid_server.resource.core.fitting.plan import LayerPlacement, LlmWishes, Recommendation
from genaid_server.resource.core.fitting.recommend import recommend
from genaid_server.resource.core.fitting.search import LlmModel
from genaid_server.resource.core.fitting.wishes import check_wishes
from unit.fitting.fitting_models import GIB, MIB, dense, llama_8b, mixture

NOTHING = LlmWishes()
F16, Q8_0, Q4_0 = CacheType.F16, CacheType.Q8_0, CacheType.Q4_0


def advise(
    shape: LlmShape | None,
    ram: float,
    *vram: float,
    wishes: LlmWishes = NOTHING,
    cores: int = 8,
    unified: bool = False,
    native: int | None = None,
) -> Recommendation:
    """With so many GiB of memory."""
    room = Capacity(int(ram * GIB), tuple(int(size * GIB) for size in vram), unified)
    trained = native or (shape.context_length if shape else 4096)
    return recommend(LlmModel(shape, 8 * GIB, 32, trained), room, cores, wishes)


# --- placement


def test_all_layers_are_on_the_gpu_where_they_fit() -> None:
    found = advise(llama_8b(), 32, 23)
    assert (found.placement, found.config.gpu_layers, found.gpus) == (LayerPlacement.FULL, 32, 1)
    assert found.fits
    assert found.need.ram.total < GIB < 8 * GIB < found.need.vram.total
    assert found.reasons["gpu_layers"].startswith("All 32 layers fit on the GPU: ")
    assert found.reasons["gpu_layers"].endswith(" of 23.0 GiB free.")


def test_experts_stay_in_main_memory_where_only_the_rest_fits_on_the_gpu() -> None:
    found = advise(mixture(), 32, 8)
    assert found.placement is LayerPlacement.EXPERTS_ON_CPU
    assert (found.config.gpu_layers, found.config.experts_on_cpu) == (48, True)
    assert "experts" in found.reasons["gpu_layers"]
    assert advise(mixture(), 32, 23).placement is LayerPlacement.FULL
    assert not advise(mixture(), 32, 23).config.experts_on_cpu


def test_as_many_layers_as_fit_are_on_a_gpu_that_is_too_small_for_all() -> None:
    found = advise(llama_8b(), 32, 6)
    room = Capacity(32 * GIB, (6 * GIB,)).with_margin()
    assert found.placement is LayerPlacement.PARTIAL
    assert room.holds(found.need)
    one_more = replace(found.config, gpu_layers=found.config.gpu_layers + 1)
    assert not room.holds(llm_memory.need(llama_8b(), one_more))
    assert found.reasons["gpu_layers"].startswith(f"{found.config.gpu_layers} of 32 layers fit on the GPU: ")
    assert found.config.context_size == 4096


def test_layers_without_their_experts_are_more_layers() -> None:
    found = advise(mixture(), 32, 2.6)
    assert found.placement is LayerPlacement.PARTIAL
    assert found.config.experts_on_cpu
    assert "without their experts" in found.reasons["gpu_layers"]


@pytest.mark.parametrize("vram", [(), (1,), (0.25, 0.25)])
def test_without_a_gpu_of_use_all_is_in_main_memory(vram: tuple[float, ...]) -> None:
    found = advise(llama_8b(), 32, *vram)
    assert (found.placement, found.config.gpu_layers, found.gpus) == (LayerPlacement.CPU, 0, 0)
    assert found.need.vram.total == 0
    assert found.reasons["gpu_layers"].startswith("No layer fits" if vram else "There is no GPU")


def test_each_gpu_has_to_hold_buffers_of_its_own() -> None:
    assert advise(llama_8b(), 32, *[1.7] * 8).placement is LayerPlacement.CPU
    assert advise(llama_8b(), 32, *[2.7] * 8).placement is LayerPlacement.FULL


def test_two_gpus_carry_together_what_one_can_not() -> None:
    assert advise(llama_8b(), 32, 7).placement is LayerPlacement.PARTIAL
    found = advise(llama_8b(), 32, 7, 7)
    assert (found.placement, found.gpus) == (LayerPlacement.FULL, 2)
    assert "on the 2 GPUs" in found.reasons["gpu_layers"]


def test_a_gpu_that_would_cost_more_than_it_gives_is_left_out() -> None:
    found = advise(llama_8b(), 32, 12, 1.25)
    assert (found.placement, found.gpus) == (LayerPlacement.FULL, 1)
    assert found.reasons["gpu_layers"].endswith(" of 12.0 GiB free.")


def test_unified_memory_is_counted_once() -> None:
    found = advise(llama_8b(), 32, 22, unified=True)
    assert found.placement is LayerPlacement.FULL
    assert found.need.total <= 0.9 * 32 * GIB
    tight = advise(llama_8b(), 9, 9, unified=True)
    assert not tight.fits


# --- context, cache and slots


def test_a_large_context_leaves_half_of_the_memory_to_an_image_model() -> None:
    found = advise(llama_8b(), 23)
    assert found.config.context_size == 16384
    assert found.need.total <= 23 * GIB / 2
    assert "image model" in found.reasons["context_size"]
    assert advise(llama_8b(), 18).config.context_size == 8192
    assert advise(llama_8b(), 64).config.context_size == 32768
    assert "131072" in advise(llama_8b(), 64).reasons["context_size"]


def test_a_context_that_was_asked_for_need_not_leave_anything() -> None:
    asked = advise(llama_8b(), 18, wishes=LlmWishes(context_size=32768))
    assert asked.fits
    assert asked.config.context_size == 32768
    assert not asked.context_reduced


@pytest.mark.parametrize(("native", "context"), [(100, 100), (3000, 3000), (6000, 6000), (8192, 8192), (20000, 20000)])
def test_no_context_beyond_what_the_model_was_trained_for_is_offered(native: int, context: int) -> None:
    found = advise(llama_8b(native), 64)
    assert found.config.context_size == context
    assert "trained" in found.reasons["context_size"]


def test_a_context_beyond_the_trained_one_is_reduced_to_it_as_engines_do() -> None:
    found = advise(llama_8b(8192), 64, wishes=LlmWishes(context_size=10000))
    assert found.fits
    assert found.context_reduced
    assert found.config.context_size == 8192
    reason = found.reasons["context_size"]
    assert reason == "10000 tokens were asked for. The model was trained for 8192 tokens, and engines go no further."


def test_a_context_that_does_not_fit_is_reduced_and_the_reason_says_so() -> None:
    found = advise(llama_8b(), 16, wishes=LlmWishes(context_size=100_000))
    assert found.fits
    assert found.context_reduced
    assert found.config.context_size == 65536
    reason = found.reasons["context_size"]
    assert reason.startswith("100000 tokens were asked for, but 65536 are the most that fit.")
    assert "16.0 GiB are free, of which 14.4 GiB" in reason


def test_the_trained_context_is_tried_where_more_was_asked_for() -> None:
    wishes = LlmWishes(context_size=100_000, cache_type_k=Q8_0)
    given = [advise(llama_8b(50_000), ram, wishes=wishes).config.context_size for ram in (12, 13, 15, 17)]
    assert given == [32768, 50_000, 50_000, 50_000]


def test_below_the_floor_the_largest_context_that_fits_is_taken() -> None:
    found = advise(llama_8b(), 9.25)
    assert found.fits
    assert found.config.context_size == 2048
    assert not found.context_reduced
    assert found.reasons["context_size"].startswith("It is the most that fits. With 4096 tokens the model needs ")


def test_a_smaller_cache_is_taken_only_where_it_helps() -> None:
    roomy, tight = advise(llama_8b(), 32, 12), advise(llama_8b(), 9.4)
    assert (roomy.config.cache_type_k, roomy.config.cache_type_v) == (F16, F16)
    assert (tight.config.cache_type_k, tight.config.cache_type_v) == (Q8_0, Q8_0)
    assert tight.config.context_size == 4096


def test_a_smaller_cache_is_never_taken_for_more_context_than_needed() -> None:
    for ram in range(40, 160):
        found = advise(llama_8b(), ram / 4)
        assert found.config.cache_type_k is F16 or found.config.context_size <= 4096


@pytest.mark.parametrize(
    ("shape", "wishes"),
    [
        (dense(head_width=80), NOTHING),
        (llama_8b(), LlmWishes(flash_attention=False)),
        (llama_8b(), LlmWishes(cache_type_v=F16)),
    ],
)
def test_a_cache_that_can_not_be_quantized_is_not(shape: LlmShape, wishes: LlmWishes) -> None:
    found = advise(shape, 9.4, wishes=wishes)
    assert (found.config.cache_type_k, found.config.cache_type_v) == (F16, F16)


def test_the_cache_that_was_left_open_follows_the_other() -> None:
    found = advise(llama_8b(), 32, wishes=LlmWishes(cache_type_v=Q4_0))
    assert (found.config.cache_type_k, found.config.cache_type_v) == (Q4_0, Q4_0)
    assert found.reasons["cache_type_v"] == "As asked for."
    assert "values" in found.reasons["cache_type_k"]
    both = advise(llama_8b(), 32, wishes=LlmWishes(cache_type_k=F16, cache_type_v=Q8_0))
    assert (both.config.cache_type_k, both.config.cache_type_v) == (F16, Q8_0)


@pytest.mark.parametrize(("cores", "slots"), [(1, 1), (3, 1), (4, 2), (8, 4), (15, 4), (16, 8), (128, 8)])
def test_slots_follow_the_cores(cores: int, slots: int) -> None:
    found = advise(llama_8b(4096), 64, cores=cores)
    assert found.config.parallel == slots
    assert found.config.context_size == 4096
    assert found.need.ram.kv_cache == slots * 4096 * 128 * 1024


def test_slots_are_fewer_where_their_contexts_would_not_fit() -> None:
    found = advise(llama_8b(4096), 11.5, cores=16)
    assert found.config.parallel in (2, 4)
    assert f"With {2 * found.config.parallel} it would not fit" in found.reasons["parallel"]


# --- wishes


def test_wishes_that_fit_are_met() -> None:
    wishes = LlmWishes(3, 7, 5000, 3, True, Q8_0, Q8_0, False)
    found = advise(llama_8b(), 32, 12, wishes=wishes)
    assert found.fits
    config = found.config
    assert (config.threads, config.gpu_layers, config.context_size, config.parallel) == (3, 7, 5000, 3)
    assert found.placement is LayerPlacement.PARTIAL
    assert set(found.reasons) == {
        "threads",
        "gpu_layers",
        "context_size",
        "parallel",
        "flash_attention",
        "cache_type_k",
        "cache_type_v",
        "experts_on_cpu",
    }


def test_as_many_layers_as_there_are_or_more_are_all_of_them() -> None:
    found = advise(llama_8b(), 32, 23, wishes=LlmWishes(gpu_layers=99))
    assert (found.placement, found.config.gpu_layers, found.fits) == (LayerPlacement.FULL, 99, True)
    assert "23.0 GiB free" in found.reasons["gpu_layers"]


@pytest.mark.parametrize(
    ("wishes", "vram"),
    [
        (LlmWishes(gpu_layers=99), (6,)),
        (LlmWishes(gpu_layers=1), ()),
        (LlmWishes(parallel=64, cache_type_k=F16, context_size=4096), ()),
        (LlmWishes(experts_on_cpu=False, gpu_layers=32), (6,)),
    ],
)
def test_a_wish_that_can_not_be_met_is_not_altered(wishes: LlmWishes, vram: tuple[float, ...]) -> None:
    found = advise(llama_8b(), 11, *vram, wishes=wishes)
    assert not found.fits
    assert wishes.gpu_layers in (None, found.config.gpu_layers)
    assert wishes.parallel in (None, found.config.parallel)


def test_a_smaller_context_is_given_up_for_other_wishes() -> None:
    found = advise(llama_8b(), 32, wishes=LlmWishes(context_size=16384, parallel=32))
    assert found.fits
    assert found.context_reduced
    assert found.config.parallel == 32
    assert found.config.context_size < 16384


def test_experts_stay_where_they_were_wished() -> None:
    forced = advise(mixture(), 32, 23, wishes=LlmWishes(experts_on_cpu=True))
    assert (forced.placement, forced.config.experts_on_cpu) == (LayerPlacement.EXPERTS_ON_CPU, True)
    refused = advise(mixture(), 32, 8, wishes=LlmWishes(experts_on_cpu=False))
    assert (refused.placement, refused.config.experts_on_cpu) == (LayerPlacement.PARTIAL, False)


def test_where_nothing_fits_the_config_is_the_smallest() -> None:
    found = advise(llama_8b(), 4, 2)
    assert not found.fits
    assert found.placement is LayerPlacement.CPU
    config = found.config
    assert (config.gpu_layers, config.context_size, config.parallel, config.cache_type_k) == (0, 512, 1, Q8_0)
    assert found.reasons["context_size"].startswith("Not even 512 tokens fit. ")
    asked = advise(llama_8b(), 4, wishes=LlmWishes(context_size=4096))
    assert asked.context_reduced
    assert "4096 were asked for" in asked.reasons["context_size"]


# --- models whose header doesn't tell


def test_without_a_shape_the_size_counts_and_the_reasons_say_so() -> None:
    found = advise(None, 16)
    assert found.fits
    assert not found.need.exact
    assert (found.config.context_size, found.config.parallel, found.config.cache_type_k) == (4096, 1, F16)
    assert "header" in found.reasons["context_size"]
    assert not advise(None, 10).fits
    full = advise(None, 16, 12)
    assert (full.placement, full.config.gpu_layers) == (LayerPlacement.FULL, 32)
    assert advise(None, 16, 6).placement is LayerPlacement.PARTIAL


def test_without_a_shape_a_context_that_was_asked_for_is_taken() -> None:
    found = advise(None, 16, wishes=LlmWishes(context_size=20000))
    assert found.config.context_size == 20000
    assert "not known" in found.reasons["context_size"]


def test_a_model_without_layers_or_attention_has_an_answer() -> None:
    recurrent = replace(llama_8b(), layers=(Layer(200 * MIB, state=4 * MIB),) * 24)
    assert advise(recurrent, 32, 12).placement is LayerPlacement.FULL
    assert advise(replace(llama_8b(), layers=()), 32, 12).fits


# --- which wishes there may be


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        (LlmWishes(threads=0), "threads"),
        (LlmWishes(threads=513), "threads"),
        (LlmWishes(gpu_layers=-1), "gpu_layers"),
        (LlmWishes(gpu_layers=1001), "gpu_layers"),
        (LlmWishes(context_size=31), "context_size"),
        (LlmWishes(context_size=2**24 + 1), "context_size"),
        (LlmWishes(parallel=0), "parallel_requests"),
        (LlmWishes(parallel=65), "parallel_requests"),
        (LlmWishes(flash_attention=False, cache_type_k=Q8_0), "cache_type_k"),
        (LlmWishes(flash_attention=False, cache_type_v=Q4_0), "cache_type_v"),
    ],
)
def test_wishes_out_of_range_are_refused(wishes: LlmWishes, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_wishes(wishes)
    assert caught.value.facts == {"field": field}
    assert field in caught.value.message


@pytest.mark.parametrize(
    "wishes",
    [
        NOTHING,
        LlmWishes(1, 0, 32, 1, False, F16, F16, True),
        LlmWishes(512, 1000, 2**24, 64, True, Q8_0, Q4_0, False),
        LlmWishes(cache_type_k=Q8_0),
    ],
)
def test_wishes_in_range_are_accepted(wishes: LlmWishes) -> None:
    check_wishes(wishes)
    check_wishes(wishes, llama_8b())


def test_heads_that_are_no_whole_blocks_can_not_be_quantized() -> None:
    odd = dense(head_width=80)
    check_wishes(LlmWishes(cache_type_k=F16), odd)
    with pytest.raises(InvalidRequestError, match="32") as caught:
        check_wishes(LlmWishes(cache_type_v=Q8_0), odd)
    assert caught.value.facts == {"field": "cache_type_v"}
    without_attention = replace(odd, layers=(Layer(MIB, head_width=7),))
    check_wishes(LlmWishes(cache_type_v=Q8_0), without_attention)
