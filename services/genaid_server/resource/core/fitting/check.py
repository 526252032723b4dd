"""Whether a model can run, and what to do where it can't."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from genaid_server.resource.core.fitting import diffusion_memory
from genaid_server.resource.core.fitting.capacity import Capacity
from genaid_server.resource.core.fitting.footprint import MemoryNeed
from genaid_server.resource.core.fitting.model_shape import DiffusionShape
from genaid_server.resource.core.fitting.plan import Fit, LlmOptions, LlmWishes
from genaid_server.resource.core.fitting.recommend import trained_for
from genaid_server.resource.core.fitting.search import LlmModel, Search
from genaid_server.resource.core.fitting.sizes import pair, words

LARGE: Final = 8 * 2**30
"""Bytes of a model from which on it is slow without a GPU."""

_STEP: Final = 64  # pixels: the smallest edge of an image, and what edges are multiples of
_MOST_CHANGES: Final = 2  # suggested at once
_FREED: Final = 8 * 2**30  # bytes that closing programs may well free, where nobody tells how much there is in all


def check_llm(
    model: LlmModel,
    capacity: Capacity,
    cores: int,
    wishes: LlmWishes,
    *,
    of_total: bool,
    has_gpu: bool,
    total: Capacity | None = None,
) -> Fit:
    """Whether a language model fits with these wishes, and with the context that was asked for, else with one of at
    least min(4096, what it was trained for).

    `of_total` says that `capacity` is all that the machine has; where it is what is free now, `total` may be all of it.
    The wishes have been checked with `check_wishes`. The rest is as in `recommend`.
    """
    search = Search(model, wishes, cores, capacity, capacity)
    # What is recommended fits with a margin; where there is such a configuration, both tell the same one.
    found = Search(model, wishes, cores, capacity.with_margin(), capacity).at_floor() or search.at_floor()
    if found:
        warning = _slow(model.size, has_gpu)
        return _capped(_possible(found.need, capacity, capacity.vram_sum, warning, found.config), wishes)
    missing = search.shortage(search.floor)
    later = Search(model, wishes, cores, total, total).at_floor() is not None if total else None
    short = _Short(missing.of_gpus, missing.required, missing.available, of_total, later)
    return Fit(
        possible=False,
        reason=_reason(short),
        suggestion=_suggestion(short, model.size, list(_changes(model, wishes, cores, capacity))),
        required=missing.required,
        available=missing.available,
        need=missing.closest.need,
        config=missing.closest.config,
    )


def check_diffusion(
    shape: DiffusionShape | None,
    size_bytes: int,
    width: int,
    height: int,
    capacity: Capacity,
    *,
    of_total: bool,
    has_gpu: bool,
    total: Capacity | None = None,
) -> Fit:
    """Whether a diffusion model fits when it makes images of this size in pixels: on the largest GPU, else computed
    there with its weights kept in main memory, else in main memory alone. Without a shape its size alone is compared
    with main memory. `of_total` and `total` are as in `check_llm`."""
    ways = _ways(shape, size_bytes, width, height, capacity)
    for need, warning in ways:
        if capacity.holds(need):
            slow = warning or _slow(size_bytes, has_gpu)
            tiled = _tiled_way(shape, width, height, capacity) if warning else ""
            return _possible(need, capacity, capacity.vram_best, slow, faster=tiled)
    closest = min((need for need, _ in ways if need.vram.total <= capacity.vram_best), key=capacity.ram_for)
    later = any(total.holds(need) for need, _ in _ways(shape, size_bytes, width, height, total)) if total else None
    short = _Short(False, capacity.ram_for(closest), capacity.ram, of_total, later)
    changes = [] if shape is None else list(_image_changes(shape, width, height, capacity))
    return Fit(
        possible=False,
        reason=_reason(short),
        suggestion=_suggestion(short, size_bytes, changes),
        required=short.required,
        available=short.available,
        need=closest,
    )


@dataclass(frozen=True, slots=True)
class _Short:
    """What is missing, in bytes, of which memory; `later` says whether it would do with all memory free, None where
    that is not known."""

    of_gpus: bool
    required: int
    available: int
    of_total: bool
    later: bool | None


def _possible(
    need: MemoryNeed, capacity: Capacity, vram: int, warning: str, config: LlmOptions | None = None, faster: str = ""
) -> Fit:
    """The memory that decides is the one that is left with the smaller part."""
    ram = capacity.ram_for(need), capacity.ram
    gpus = need.vram.total, vram
    required, available = gpus if gpus[0] * ram[1] > ram[0] * gpus[1] else ram
    advice = (faster or "A smaller quantization or a smaller model is faster.") if warning else ""
    return Fit(True, warning, advice, required, available, need, config)


def _capped(fit: Fit, wishes: LlmWishes) -> Fit:
    """With a warning where the context is not the one that was asked for, which engines don't give beyond training."""
    given = fit.config.context_size if fit.config else 0
    if given >= (wishes.context_size or 0):
        return fit
    return replace(fit, reason=f"{trained_for(given)} {fit.reason}".rstrip())


def _slow(size: int, has_gpu: bool) -> str:
    if size <= LARGE or has_gpu:
        return ""
    return f"Without a GPU a model of {words(size)} runs slowly."


def _reason(short: _Short) -> str:
    required, available = pair(short.required, short.available)
    if short.of_gpus and not short.available:
        return f"Insufficient VRAM: the model needs {required} but there is no GPU memory to place layers in"
    kind = "VRAM" if short.of_gpus else "RAM"
    rest = f"the machine has only {available}" if short.of_total else f"only {available} are available"
    return f"Insufficient {kind}: the model needs {required} but {rest}"


def _suggestion(short: _Short, size: int, changes: list[str]) -> str:
    """What helps: other settings, more memory, and where neither is certain, another model."""
    parts = changes[:_MOST_CHANGES]
    gap = short.required - short.available
    if not short.of_total and short.later:
        parts.append("With all memory free it would fit: close other programs and stop other engines.")
    elif not short.of_total and short.later is None and not short.of_gpus and gap <= max(short.available, _FREED):
        parts.append(f"Closing programs helps where that frees {words(gap)}.")
    if not changes and not short.later:
        parts.append(_other_model(gap, size))
    return " ".join(parts)


def _other_model(gap: int, size: int) -> str:
    """Files are what shrinks with a quantization; no quantization leaves less than a third of a usual one."""
    if gap > size * 2 // 3:
        return "Choose a smaller model."
    return f"Choose a quantization, or a model, whose files are at least {words(gap)} smaller than {words(size)}."


def _changes(model: LlmModel, wishes: LlmWishes, cores: int, capacity: Capacity) -> Iterator[str]:
    """Single changes of the wishes with which it fits, else the change of all of them."""
    smaller = Search(model, wishes, cores, capacity, capacity).best()
    if smaller:
        yield f"It fits with a context_size of {smaller.config.context_size}."
    helped = smaller is not None
    for field, opened in _opened(wishes):
        found = Search(model, opened, cores, capacity, capacity).at_floor()
        if found:
            helped = True
            yield f"It fits with {_setting(field, found.config)}."
    freed = LlmWishes(threads=wishes.threads, context_size=wishes.context_size)
    if not helped and freed != wishes and Search(model, freed, cores, capacity, capacity).best():
        yield "It fits with the settings that are recommended: leave them out, and have the context chosen too."


def _opened(wishes: LlmWishes) -> Iterator[tuple[str, LlmWishes]]:
    """The wishes with one of them left to the search, in the order in which people would rather give them up."""
    if wishes.gpu_layers is not None:
        yield "gpu_layers", replace(wishes, gpu_layers=None)
    if wishes.parallel is not None:
        yield "parallel_requests", replace(wishes, parallel=None)
    if wishes.cache_type_k or wishes.cache_type_v:
        yield "cache_type", replace(wishes, cache_type_k=None, cache_type_v=None)
    if wishes.flash_attention is not None:
        yield "flash_attention", replace(wishes, flash_attention=None)
    if wishes.experts_on_cpu is not None:
        yield "experts_on_cpu", replace(wishes, experts_on_cpu=None)


def _setting(field: str, config: LlmOptions) -> str:
    if field == "gpu_layers":
        return f"gpu_layers {config.gpu_layers}"
    if field == "parallel_requests":
        return f"parallel_requests {config.parallel}"
    if field == "cache_type":
        return f"cache_type_k {config.cache_type_k} and cache_type_v {config.cache_type_v}"
    if field == "flash_attention":
        return "flash_attention on"
    return f"experts_on_cpu {'on' if config.experts_on_cpu else 'off'}"


def _ways(
    shape: DiffusionShape | None, size: int, width: int, height: int, capacity: Capacity, *, tiling: bool = False
) -> list[tuple[MemoryNeed, str]]:
    """How images can be made, the fastest first, each with what it takes and a warning where it is slow."""
    if shape is None:
        return [(diffusion_memory.fallback(size, False), "")]
    need = partial(diffusion_memory.need, shape, width=width, height=height, vae_tiling=tiling)
    in_ram = need(gpu=False)
    if not capacity.vram:
        return [(in_ram, "")]
    on_gpu, offloaded = need(gpu=True), need(gpu=True, offload_to_cpu=True)
    needed, free = pair(on_gpu.vram.total, capacity.vram_best)
    why = f"it needs {needed} of GPU memory all at once, and there are {free}"
    return [
        (on_gpu, ""),
        (offloaded, f"Weights have to stay in main memory and move to the GPU as needed, which costs time: {why}."),
        (in_ram, f"The processor has to compute it, which is slow: {why}."),
    ]


def _tiled_way(shape: DiffusionShape | None, width: int, height: int, capacity: Capacity) -> str:
    """That it fits on the GPU as a whole, where it does when images are decoded in tiles."""
    if shape is not None and capacity.holds(_ways(shape, 0, width, height, capacity, tiling=True)[0][0]):
        return "With the engine's vae_tiling all of it fits on the GPU."
    return ""


def _image_changes(shape: DiffusionShape, width: int, height: int, capacity: Capacity) -> Iterator[str]:
    """Tiles for the decoder, and the largest size of the same proportions, with which it fits."""
    if any(capacity.holds(need) for need, _ in _ways(shape, 0, width, height, capacity, tiling=True)):
        yield "It fits with the engine's vae_tiling."
    longer = max(width, height)
    low, high = 0, (longer - 1) // _STEP  # in steps of the longer edge
    while low < high:
        middle = (low + high + 1) // 2
        if _image_fits(shape, *_scaled(width, height, middle * _STEP), capacity):
            low = middle
        else:
            high = middle - 1
    if low:
        smaller = _scaled(width, height, low * _STEP)
        yield f"It fits with images of {smaller[0]}x{smaller[1]} pixels."


def _scaled(width: int, height: int, longer: int) -> tuple[int, int]:
    scaled = [edge * longer // max(width, height) // _STEP * _STEP for edge in (width, height)]
    return max(_STEP, scaled[0]), max(_STEP, scaled[1])


def _image_fits(shape: DiffusionShape, width: int, height: int, capacity: Capacity) -> bool:
    return any(capacity.holds(need) for need, _ in _ways(shape, 0, width, height, capacity))
