"""Whether models fit, what is said where they don't, and that what is suggested helps."""

import re
from dataclasses import replace

import pytest

from genaid_server.resource.core.fitting import diffusion_memory, llm_memory
from genaid_server.resource.core.fitting.capacity import Capacity
from genaid_server.resource.core.fitting.check import check_diffusion, check_llm
from genaid_server.resource.core.fitting.footprint import Footprint, MemoryNeed
from genaid_server.resource.core.fitting.model_shape import CacheType, DiffusionShape, LlmShape
from genaid_server.resource.core.fitting.plan import Fit, LlmOptions, LlmWishes
from genaid_server.resource.core.fitting.recommend import recommend
from genaid_server.resource.core.fitting.search import LlmModel
from unit.fitting.fitting_models import GIB, flux, llama_8b, mixture

NOTHING = LlmWishes()
SIZE = 8 * GIB


def room(ram: float, *vram: float, unified: bool = False) -> Capacity:
    return Capacity(int(ram * GIB), tuple(int(size * GIB) for size in vram), unified)


def fit_of(
    shape: LlmShape | None,
    capacity: Capacity,
    wishes: LlmWishes = NOTHING,
    *,
    size: int = SIZE,
    of_total: bool = False,
    total: Capacity | None = None,
) -> Fit:
    native = shape.context_length if shape else 4096
    gpu = bool(capacity.vram)
    return check_llm(
        LlmModel(shape, size, 32, native), capacity, 8, wishes, of_total=of_total, has_gpu=gpu, total=total
    )


# --- language models


def test_a_model_that_fits_is_possible_with_a_complete_config() -> None:
    fit = fit_of(llama_8b(), room(32))
    assert (fit.possible, fit.reason, fit.suggestion) == (True, "", "")
    assert fit.config is not None
    assert fit.need == llm_memory.need(llama_8b(), fit.config)
    assert (fit.required, fit.available) == (fit.need.ram.total, 32 * GIB)


def test_a_context_beyond_the_trained_one_is_no_obstacle_but_a_warning() -> None:
    fit = fit_of(llama_8b(8192), room(64), LlmWishes(context_size=10000))
    assert fit.possible
    assert fit.config is not None
    assert fit.config.context_size == 8192
    assert fit.reason.startswith("The model was trained for 8192 tokens, and engines go no further.")


def test_the_config_is_the_recommended_one_where_that_fits_too() -> None:
    for capacity in (room(32), room(14), room(32, 12), room(32, 6), room(24, 16, unified=True)):
        recommended = recommend(LlmModel(llama_8b(), SIZE, 32, 131072), capacity, 8, NOTHING)
        assert fit_of(llama_8b(), capacity).config == recommended.config


def test_no_margin_is_needed_to_be_possible() -> None:
    need = llm_memory.need(llama_8b(), LlmOptions(7, 0, 4096, cache_type_k=CacheType.Q8_0, cache_type_v=CacheType.Q8_0))
    exact = Capacity(need.ram.total)
    assert fit_of(llama_8b(), exact).possible
    assert (
        recommend(LlmModel(llama_8b(), SIZE, 32, 4096), exact, 8, LlmWishes(context_size=4096)).config.context_size
        < 4096
    )
    assert not fit_of(llama_8b(), Capacity(need.ram.total - 1)).possible


def test_the_memory_that_decides_is_the_one_that_is_nearly_used_up() -> None:
    fit = fit_of(llama_8b(), room(32, 11))
    assert (fit.required, fit.available) == (fit.need.vram.total, 11 * GIB)
    experts = fit_of(mixture(), room(19, 8))
    assert (experts.required, experts.available) == (experts.need.ram.total, 19 * GIB)
    unified = fit_of(llama_8b(), room(11, 10.5, unified=True))
    assert unified.possible
    assert (unified.required, unified.available) == (unified.need.total, 11 * GIB)


def test_too_little_main_memory_is_said_as_documented() -> None:
    fit = fit_of(llama_8b(), room(4.1))
    assert not fit.possible
    assert fit.reason == "Insufficient RAM: the model needs 8.4 GiB but only 4.1 GiB are available"
    assert (round(fit.required / GIB, 1), fit.available) == (8.4, int(4.1 * GIB))
    total = fit_of(llama_8b(), room(4), of_total=True)
    assert total.reason == "Insufficient RAM: the model needs 8.4 GiB but the machine has only 4.0 GiB"


def test_too_little_memory_of_gpus_is_said_likewise() -> None:
    wishes = LlmWishes(gpu_layers=32)
    fit = fit_of(llama_8b(), room(32, 4), wishes)
    assert fit.reason == "Insufficient VRAM: the model needs 8.3 GiB but only 4.0 GiB are available"
    assert fit.config is not None
    assert fit.config.gpu_layers == 32
    total = fit_of(llama_8b(), room(32, 4), wishes, of_total=True)
    assert total.reason == "Insufficient VRAM: the model needs 8.3 GiB but the machine has only 4.0 GiB"
    none = fit_of(llama_8b(), room(32), wishes)
    assert none.reason == "Insufficient VRAM: the model needs 8.3 GiB but there is no GPU memory to place layers in"
    assert none.available == 0


def test_what_the_gpu_takes_is_not_missing_in_main_memory() -> None:
    alone, beside = fit_of(llama_8b(), room(2)), fit_of(llama_8b(), room(2, 6))
    assert not beside.possible
    assert beside.required < alone.required - 4 * GIB
    assert fit_of(llama_8b(), room(beside.required / GIB + 0.01, 6)).possible


def test_a_large_model_without_a_gpu_is_possible_with_a_warning() -> None:
    slow = fit_of(llama_8b(), room(64), size=8 * GIB + 1)
    assert slow.possible
    assert slow.reason == "Without a GPU a model of 8.0 GiB runs slowly."
    assert slow.suggestion == "A smaller quantization or a smaller model is faster."
    assert fit_of(llama_8b(), room(64), size=8 * GIB).reason == ""
    assert fit_of(llama_8b(), room(64, 12), size=9 * GIB).reason == ""


def test_without_a_shape_the_documented_factor_decides() -> None:
    assert fit_of(None, Capacity(12 * GIB), size=10 * GIB).possible
    fit = fit_of(None, Capacity(12 * GIB - 1), size=10 * GIB)
    assert not fit.possible
    assert (fit.required, fit.available, fit.need.exact) == (12 * GIB, 12 * GIB - 1, False)


def test_a_context_below_what_is_needed_is_not_possible_unless_asked_for() -> None:
    tight = room(8.3)
    assert not fit_of(llama_8b(), tight).possible
    fit = fit_of(llama_8b(), tight)
    found = re.search(r"fits with a context_size of (\d+)\.", fit.suggestion)
    assert found
    assert int(found[1]) < 4096
    assert fit_of(llama_8b(), tight, LlmWishes(context_size=int(found[1]))).possible
    short = fit_of(replace(llama_8b(), context_length=512), tight)
    assert short.possible


def test_a_smaller_context_is_suggested_where_the_asked_one_does_not_fit() -> None:
    fit = fit_of(llama_8b(), room(12), LlmWishes(context_size=131072))
    assert fit.suggestion.startswith("It fits with a context_size of 32768.")
    assert fit_of(llama_8b(), room(12), LlmWishes(context_size=32768)).possible


def test_fewer_layers_are_suggested_and_they_fit() -> None:
    fit = fit_of(llama_8b(), room(32, 4), LlmWishes(gpu_layers=32))
    found = re.search(r"It fits with gpu_layers (\d+)\.", fit.suggestion)
    assert found
    assert 0 < int(found[1]) < 32
    assert fit_of(llama_8b(), room(32, 4), LlmWishes(gpu_layers=int(found[1]))).possible


def test_more_layers_are_suggested_where_main_memory_is_short() -> None:
    fit = fit_of(llama_8b(), room(4, 23), LlmWishes(gpu_layers=0))
    assert fit.reason.startswith("Insufficient RAM")
    assert fit.suggestion.startswith("It fits with gpu_layers 32.")


@pytest.mark.parametrize(
    ("wishes", "ram", "suggestion"),
    [
        (LlmWishes(parallel=16, context_size=4096), 11, "It fits with parallel_requests 4."),
        (LlmWishes(cache_type_k=CacheType.F16), 8.5, "It fits with cache_type_k q8_0 and cache_type_v q8_0."),
        (LlmWishes(flash_attention=False), 8.5, "It fits with flash_attention on."),
    ],
)
def test_each_wish_that_stands_in_the_way_is_named(wishes: LlmWishes, ram: float, suggestion: str) -> None:
    assert suggestion in fit_of(llama_8b(), room(ram), wishes).suggestion


def test_experts_in_main_memory_are_suggested() -> None:
    wishes = LlmWishes(gpu_layers=48, experts_on_cpu=False)
    assert "It fits with experts_on_cpu on." in fit_of(mixture(), room(32, 8), wishes).suggestion


def test_all_wishes_are_questioned_where_no_single_one_is_the_reason() -> None:
    wishes = LlmWishes(gpu_layers=32, parallel=64, cache_type_k=CacheType.F16, context_size=4096)
    fit = fit_of(llama_8b(), room(10), wishes)
    assert fit.suggestion.startswith("It fits with the settings that are recommended")


def test_closing_programs_is_suggested_by_how_much_or_where_all_memory_would_do() -> None:
    assert "frees 4.4 GiB." in fit_of(llama_8b(), room(4)).suggestion
    assert "With all memory free it would fit" in fit_of(llama_8b(), room(4), total=room(16)).suggestion
    assert "frees" not in fit_of(llama_8b(), room(4), LlmWishes(context_size=2**24)).suggestion
    hopeless = fit_of(llama_8b(), room(4), total=room(6))
    assert "free" not in hopeless.suggestion
    assert "free" not in fit_of(llama_8b(), room(6), of_total=True).suggestion


def test_a_smaller_quantization_is_suggested_by_how_much() -> None:
    fit = fit_of(llama_8b(), room(6), of_total=True)
    assert fit.suggestion == (
        "Choose a quantization, or a model, whose files are at least 2.4 GiB smaller than 8.0 GiB."
    )
    assert fit_of(llama_8b(), room(1), of_total=True).suggestion == "Choose a smaller model."


# --- diffusion models


def images(
    shape: DiffusionShape | None,
    capacity: Capacity,
    width: int = 1024,
    height: int = 1024,
    *,
    of_total: bool = True,
    total: Capacity | None = None,
) -> Fit:
    gpu = bool(capacity.vram)
    return check_diffusion(shape, 17 * GIB, width, height, capacity, of_total=of_total, has_gpu=gpu, total=total)


def need_of(*, gpu: bool, offload: bool = False, size: int = 1024) -> MemoryNeed:
    return diffusion_memory.need(flux(), width=size, height=size, gpu=gpu, offload_to_cpu=offload)


def test_a_diffusion_model_that_fits_on_the_gpu_is_computed_there() -> None:
    need = need_of(gpu=True)
    fit = images(flux(), Capacity(need.ram.total, (GIB, need.vram.total)))
    assert (fit.possible, fit.reason, fit.suggestion, fit.need, fit.config) == (True, "", "", need, None)


def test_a_diffusion_model_uses_one_gpu_only() -> None:
    half = need_of(gpu=True).vram.total // 2 + 1
    assert images(flux(), Capacity(64 * GIB, (half, half))).need != need_of(gpu=True)


def test_weights_wait_in_main_memory_where_the_gpu_is_too_small_for_all() -> None:
    need, whole = need_of(gpu=True, offload=True), need_of(gpu=True)
    assert need.vram.total < whole.vram.total
    fit = images(flux(), Capacity(64 * GIB, (whole.vram.total - 1,)))
    assert (fit.possible, fit.need) == (True, need)
    assert "stay in main memory" in fit.reason


def test_the_processor_is_the_last_resort() -> None:
    fit = images(flux(), room(64, 1))
    assert (fit.possible, fit.need) == (True, need_of(gpu=False))
    assert "processor" in fit.reason
    assert fit.suggestion
    alone = images(flux(), room(64))
    assert alone.possible
    assert alone.reason == "Without a GPU a model of 17.0 GiB runs slowly."


def test_a_diffusion_model_in_unified_memory_counts_once() -> None:
    need = need_of(gpu=True)
    assert images(flux(), Capacity(need.total, (need.vram.total,), unified=True)).need == need
    less = images(flux(), Capacity(need.total - 1, (need.vram.total,), unified=True))
    assert less.need != need


def test_a_diffusion_model_that_fits_nowhere_is_said_as_documented() -> None:
    fit = images(flux(), room(4, 4))
    assert not fit.possible
    assert fit.reason.startswith("Insufficient RAM: the model needs ")
    assert fit.reason.endswith(" but the machine has only 4.0 GiB")
    assert fit.required == fit.need.ram.total > fit.available == 4 * GIB
    assert images(flux(), room(4), of_total=False).reason.endswith(" but only 4.0 GiB are available")
    later = images(flux(), room(4), of_total=False, total=room(64))
    assert "With all memory free it would fit" in later.suggestion


def test_smaller_images_are_suggested_and_they_fit() -> None:
    capacity = Capacity(need_of(gpu=False, size=1024).ram.total)
    fit = images(flux(), capacity, 2048, 1024)
    found = re.search(r"It fits with images of (\d+)x(\d+) pixels\.", fit.suggestion)
    assert found
    width, height = int(found[1]), int(found[2])
    assert 1024 <= width < 2048
    assert abs(width / height - 2) < 0.3
    assert images(flux(), capacity, width, height).possible
    assert not images(flux(), capacity, width + 64, height + 64).possible


def test_tiles_are_suggested_where_the_decoder_takes_too_much() -> None:
    tiled = diffusion_memory.need(flux(), width=1024, height=1024, gpu=False, vae_tiling=True)
    assert "It fits with the engine's vae_tiling." in images(flux(), Capacity(tiled.ram.total)).suggestion
    assert "vae_tiling" not in images(flux(), Capacity(tiled.ram.total - 1)).suggestion
    on_gpu = diffusion_memory.need(flux(), width=1024, height=1024, gpu=True, vae_tiling=True)
    slow = images(flux(), Capacity(64 * GIB, (on_gpu.vram.total,)))
    assert slow.possible
    assert slow.suggestion == "With the engine's vae_tiling all of it fits on the GPU."


def test_a_diffusion_model_without_a_shape_is_compared_by_its_size() -> None:
    exact = 17 * GIB * 6 // 5
    assert images(None, Capacity(exact, (GIB,))).possible
    fit = images(None, Capacity(exact - 1, (64 * GIB,)))
    assert (fit.possible, fit.required, fit.need) == (False, exact, MemoryNeed(Footprint(weights=exact), exact=False))
    assert "quantization" in fit.suggestion
