"""How best to run a language model with the memory that is free now, with a reason for each setting."""

from dataclasses import dataclass, replace

from genaid_server.resource.core.fitting import system_recommendations as advice
from genaid_server.resource.core.fitting.capacity import Capacity
from genaid_server.resource.core.fitting.model_shape import CacheType
from genaid_server.resource.core.fitting.plan import LayerPlacement, LlmWishes, Recommendation
from genaid_server.resource.core.fitting.search import LARGEST, MODEST, Found, LlmModel, Search
from genaid_server.resource.core.fitting.sizes import pair, words
from genaid_server.resource.core.fitting.wishes import BLOCK, whole_blocks

_AS_ASKED = "As asked for."


def recommend(model: LlmModel, capacity: Capacity, cores: int, wishes: LlmWishes) -> Recommendation:
    """The best configuration that fits with a margin, so that it still does a moment later; see `search` for what is
    better. Wishes are kept as they are; only the context is reduced where it has to be, and that is said.

    `cores` are those to compute with. The wishes have been checked with `check_wishes`.
    """
    search = Search(model, wishes, cores, capacity.with_margin(), capacity)
    found = search.best()
    case = _Case(model, wishes, capacity, cores, search, found or search.smallest(), found is not None)
    config = case.found.config
    return Recommendation(
        config=config,
        placement=case.found.placement,
        need=case.found.need,
        fits=case.fits,
        context_reduced=case.reduced,
        reasons={
            "threads": _threads(case),
            "gpu_layers": _gpu_layers(case),
            "context_size": _context_size(case),
            "parallel": _parallel(case),
            "flash_attention": _flash_attention(case),
            "cache_type_k": _cache(case, wishes.cache_type_k, wishes.cache_type_v, "values"),
            "cache_type_v": _cache(case, wishes.cache_type_v, wishes.cache_type_k, "keys"),
            "experts_on_cpu": _experts_on_cpu(case),
        },
        gpus=case.found.gpus,
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """What was asked for, and what was found."""

    model: LlmModel
    wishes: LlmWishes
    capacity: Capacity
    cores: int
    search: Search
    found: Found
    fits: bool

    @property
    def reduced(self) -> bool:
        return self.found.config.context_size < (self.wishes.context_size or 0)

    @property
    def sharing(self) -> bool:
        return self.wishes.context_size is None and self.found.config.context_size > MODEST

    @property
    def gpus(self) -> str:
        return "GPU" if self.found.gpus <= 1 else f"{self.found.gpus} GPUs"

    @property
    def gpu_use(self) -> str:
        free = self.capacity.vram_of(max(1, self.found.gpus))
        return f"{words(self.found.need.vram.total)} of {words(free)} free"


def _threads(case: _Case) -> str:
    return _AS_ASKED if case.wishes.threads else advice.threads_reason(case.cores)


def _gpu_layers(case: _Case) -> str:
    if case.wishes.gpu_layers is not None:
        return _asked_layers(case)
    if not case.fits:
        return "None, which takes the least memory; it doesn't fit all the same."
    layers, count = case.model.layers, case.found.config.gpu_layers
    all_layers = f"All {layers} layers fit" if layers > 1 else "The one layer fits"
    if case.found.placement is LayerPlacement.FULL:
        return f"{all_layers} on the {case.gpus}: {case.gpu_use}."
    if case.found.placement is LayerPlacement.EXPERTS_ON_CPU:
        return f"{all_layers} on the {case.gpus}, but for the experts, which stay in main memory: {case.gpu_use}."
    if case.found.placement is LayerPlacement.PARTIAL:
        experts = ", without their experts" if case.found.config.experts_on_cpu else ""
        return (
            f"{count} of {layers} layers fit on the {case.gpus}{experts}: {case.gpu_use}; "
            "the others are in main memory."
        )
    if not case.capacity.vram:
        return "There is no GPU whose memory is known, so all layers are in main memory."
    return (
        f"No layer fits on the GPU: of {words(case.capacity.vram_sum)} free, "
        f"{words(case.search.room.vram_sum)} may be planned with."
    )


def _asked_layers(case: _Case) -> str:
    if case.fits:
        return f"As asked for: {case.gpu_use} on the {case.gpus}." if case.found.config.gpu_layers else _AS_ASKED
    if not case.capacity.vram and case.found.config.gpu_layers:
        return "As asked for, but there is no GPU whose memory is known: take 0."
    return "As asked for, but the model doesn't fit this way."


def _context_size(case: _Case) -> str:
    given = case.found.config.context_size
    if not case.fits:
        asked = f"{case.wishes.context_size} were asked for, and not" if case.reduced else "Not"
        return f"{asked} even {given} tokens fit. {_shortage(case, given)}"
    if case.reduced and given == case.model.native:
        return f"{case.wishes.context_size} tokens were asked for. {trained_for(given)}"
    if case.reduced:
        return (
            f"{case.wishes.context_size} tokens were asked for, but {given} are the most that fit. "
            f"{_shortage(case, case.wishes.context_size or given)} With {given} it takes "
            f"{words(case.found.need.total)} of all memory."
        )
    if case.wishes.context_size is not None:
        return _asked_context(case)
    if case.model.shape is None:
        return "The model's header doesn't say what a context takes, so it is a modest one."
    if given >= case.model.native:
        return "It is all that the model was trained for."
    if given < case.search.floor:
        return f"It is the most that fits. {_shortage(case, case.search.floor)}"
    return _why_not_larger(case, given)


def trained_for(native: int) -> str:
    """Why a context is not larger than this, in tokens."""
    return f"The model was trained for {native} tokens, and engines go no further."


def _asked_context(case: _Case) -> str:
    reason = _AS_ASKED
    if case.model.shape is None:
        reason += " What it takes is not known, because the model's header doesn't say enough."
    return reason


def _why_not_larger(case: _Case, given: int) -> str:
    if given >= LARGEST:
        return f"It is enough for most; the model was trained for {case.model.native} tokens, which may be asked for."
    larger = min(context for context in case.search.contexts if context > given)
    config = replace(case.found.config, context_size=larger, parallel=case.search.slots[-1])
    if larger > MODEST and case.search.fits(config):
        return f"With {larger} tokens it would take more than half of the memory, and leave no room for an image model."
    return f"With {larger} tokens it wouldn't fit with its layers where they are."


def _parallel(case: _Case) -> str:
    if case.wishes.parallel is not None:
        return _AS_ASKED
    given = case.found.config.parallel
    if not case.fits:
        return "One takes the least memory."
    if case.model.shape is None:
        return "The model's header doesn't say what another one takes."
    context = case.found.config.context_size
    if given < case.search.slots[0]:
        more = "take more than half of the memory" if case.sharing else "not fit"
        return f"With {given * 2} it would {more}: each has a context of {context} tokens."
    cores = f"{case.cores} cores" if case.cores > 1 else "one core"
    return f"It suits {cores}; each has a context of {context} tokens."


def _flash_attention(case: _Case) -> str:
    if case.wishes.flash_attention is not None:
        return _AS_ASKED
    return "It spares the large intermediate results of attention."


def _cache(case: _Case, wish: CacheType | None, other: CacheType | None, others: str) -> str:
    if wish is not None:
        return _AS_ASKED
    if other is not None:
        return f"Like that of the {others}: engines are fast only where both are alike."
    if case.found.config.cache_type_k is CacheType.F16:
        return _why_f16(case)
    if not case.fits:
        return "It takes half of what f16 would."
    return "It takes half of what f16 would, which leaves room for the context and for layers on a GPU."


def _why_f16(case: _Case) -> str:
    if case.fits:
        return "f16 is exact, and it fits."
    if case.model.shape is not None and not whole_blocks(case.model.shape):
        return f"The others need heads whose width {BLOCK} divides, and this model has others."
    return "The others need flash attention."


def _experts_on_cpu(case: _Case) -> str:
    if case.wishes.experts_on_cpu is not None:
        return _AS_ASKED
    if not case.model.has_experts:
        return "The model has no experts." if case.model.shape else "The model's header doesn't say if it has experts."
    if not case.found.config.gpu_layers:
        return "All layers are in main memory anyway."
    if case.found.config.experts_on_cpu:
        return "With them in main memory, more layers fit on the GPU."
    return "They fit on the GPU with their layers."


def _shortage(case: _Case, context: int) -> str:
    """What is missing for a context, in a sentence."""
    missing = case.search.shortage(context)
    required, planned = pair(missing.required, missing.available)
    free = case.capacity.vram_sum if missing.of_gpus else case.capacity.ram
    kind = "GPU memory" if missing.of_gpus else "main memory"
    return (
        f"With {context} tokens the model needs {required} of {kind}; {words(free)} are free, of which "
        f"{planned} may be planned with."
    )
