"""Looks for the best way to run a language model within a capacity.

Which configurations come into question depends on the model, the wishes and the cores, never on memory; the one that
is taken is the first, in one order of all of them, that fits. So more memory can only lead to one that is as good or
better. The order is: the context up to the floor, then the placement, layers on the GPUs, experts on the GPUs, the
whole context, a cache in f16, slots.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from genaid_server.resource.core.fitting import llm_memory
from genaid_server.resource.core.fitting.capacity import Capacity
from genaid_server.resource.core.fitting.footprint import MemoryNeed
from genaid_server.resource.core.fitting.model_shape import CacheType, LlmShape
from genaid_server.resource.core.fitting.plan import LayerPlacement, LlmOptions, LlmWishes
from genaid_server.resource.core.fitting.wishes import MIN_CONTEXT, whole_blocks
from genaid_server.supervision.threads import default_threads

FLOOR: Final = 4096
"""Tokens of context below which a model is of little use; nothing that needs a smaller one is preferred."""

MODEST: Final = 8192
"""Tokens of context up to which memory is taken without regard to what else has to run."""

LARGEST: Final = 32768
"""The largest context, in tokens, that is taken without being asked for."""

_SMALLEST: Final = 512
_SLOTS: Final = ((16, 8), (8, 4), (4, 2))  # at least so many cores, at most so many slots
_F16: Final = (CacheType.F16, CacheType.F16)
_Q8_0: Final = (CacheType.Q8_0, CacheType.Q8_0)
_Cache = tuple[CacheType, CacheType]


@dataclass(frozen=True, slots=True)
class LlmModel:
    """What is known of a language model: its shape, where the header says enough; the size of its files in bytes; how
    many layers it has; and the context that it was trained for, in tokens."""

    shape: LlmShape | None
    size: int
    layer_count: int
    native_context: int

    @property
    def layers(self) -> int:
        """How many layers there are to place, at least 1."""
        return max(1, len(self.shape.layers) if self.shape else self.layer_count)

    @property
    def native(self) -> int:
        """The context that it was trained for, at least what an engine accepts."""
        return max(MIN_CONTEXT, self.native_context)

    @property
    def has_experts(self) -> bool:
        """Whether it is known to be a mixture of experts."""
        return self.shape is not None and self.shape.expert_weights > 0

    def need(self, config: LlmOptions, gpus: int) -> MemoryNeed:
        """What it takes, spread over so many GPUs."""
        if self.shape is not None:
            return llm_memory.need(self.shape, config, gpus=max(1, gpus))
        return llm_memory.fallback(self.size, min(1.0, config.gpu_layers / self.layers))


@dataclass(frozen=True, slots=True)
class Found:
    """A configuration, with what it takes on so many GPUs."""

    config: LlmOptions
    placement: LayerPlacement
    need: MemoryNeed
    gpus: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """What is missing, in bytes, for the configuration that comes closest to fitting: memory of the GPUs, or main
    memory."""

    closest: Found
    of_gpus: bool
    required: int
    available: int


@dataclass(frozen=True, slots=True)
class _Spot:
    """A placement with the number of layers on the GPUs that it allows."""

    placement: LayerPlacement
    fewest: int
    most: int
    experts_on_cpu: bool


class Search:
    """Looks within `room`, and for contexts above MODEST that nobody asked for within half of `whole`, so that an image
    model fits beside them. `cores` are those to compute with."""

    def __init__(self, model: LlmModel, wishes: LlmWishes, cores: int, room: Capacity, whole: Capacity) -> None:
        self.model, self.wishes, self.room = model, wishes, room
        self._half = room.within_half_of(whole)
        self._threads = wishes.threads or default_threads(cores)
        self.contexts = _contexts(model, wishes)
        self.floor = _attainable(model, wishes.context_size) or min(model.native, FLOOR)
        self.slots = _slots(model, wishes, cores)
        self._caches = _caches(model, wishes)
        self._spots = _spots(model, wishes)

    def best(self) -> Found | None:
        """The best configuration that fits; below the floor the one with the largest context."""
        found = self.at_floor()
        if found:
            return found
        below = [context for context in self.contexts if context < self.floor]
        first = bisect_left(below, True, key=lambda context: self._best_of([context]) is not None)
        return self._best_of(below[first : first + 1]) if first < len(below) else None

    def at_floor(self) -> Found | None:
        """The best configuration that fits with a context of at least the floor."""
        return self._best_of([context for context in self.contexts if context >= self.floor])

    def smallest(self) -> Found:
        """The configuration that takes the least, whether it fits or not."""
        tried = [
            self._measured(self._config(spot, spot.fewest, self.contexts[-1], cache, self.slots[-1]), spot.placement)
            for spot, cache in product(self._spots, self._caches)
        ]
        return min(tried, key=lambda found: found.need.total)

    def shortage(self, context: int) -> Shortage:
        """What is missing for a context that doesn't fit."""
        pairs = list(product(self._spots, self._caches))
        placed = [found for spot, cache in pairs if (found := self._most(spot, context, cache, self.slots[-1]))]
        if placed:
            closest = min(placed, key=lambda found: self.room.ram_for(found.need))
            return Shortage(closest, False, self.room.ram_for(closest.need), self.room.ram)
        tried = [
            self._measured(self._config(spot, spot.fewest, context, cache, self.slots[-1]), spot.placement)
            for spot, cache in pairs
        ]
        closest = min(tried, key=lambda found: found.need.vram.total)
        return Shortage(closest, True, closest.need.vram.total, self.room.vram_sum)

    def fits(self, config: LlmOptions) -> bool:
        """Whether this configuration fits into the room, were its context asked for."""
        placed = (self.model.need(config, gpus) for gpus in range(len(self.room.vram) + 1))
        return any(self.room.holds(need, gpus) for gpus, need in enumerate(placed))

    def _best_of(self, contexts: Sequence[int]) -> Found | None:
        """The best that fits with one of these contexts, the largest first: the smallest decides where it is placed."""
        for placement in LayerPlacement:
            spots = [spot for spot in self._spots if spot.placement is placement]
            placed = [
                (found.config.gpu_layers, not spot.experts_on_cpu, found)
                for spot, cache in product(spots, self._caches)
                if (found := self._most(spot, contexts[-1], cache, self.slots[-1])) and self._in_ram(found)
            ]
            if placed:
                return self._enlarged(max(placed, key=lambda each: each[:2])[2], contexts)
        return None

    def _enlarged(self, found: Found, contexts: Sequence[int]) -> Found:
        """The same placement with the largest of the contexts, the better cache and then the most slots that fit."""
        layers, experts_on_cpu = found.config.gpu_layers, found.config.experts_on_cpu
        spot = _Spot(found.placement, layers, layers, experts_on_cpu)
        settings = ((context, cache, self.slots[-1]) for context in contexts for cache in self._caches_for(context))
        roomy = next((each for setting in settings if (each := self._fitting(spot, *setting))), found)
        cache = roomy.config.cache_type_k, roomy.config.cache_type_v
        more = ((roomy.config.context_size, cache, slots) for slots in self.slots)
        return next((each for setting in more if (each := self._fitting(spot, *setting))), roomy)

    def _fitting(self, spot: _Spot, context: int, cache: _Cache, slots: int) -> Found | None:
        found = self._most(spot, context, cache, slots)
        return found if found and self._in_ram(found) else None

    def _most(self, spot: _Spot, context: int, cache: _Cache, slots: int) -> Found | None:
        """With the most layers that the GPUs hold, which leaves the least to main memory, whether that holds it or
        not; None where they don't even hold the fewest.

        What layers keep on GPUs grows with each of them, but buffers for computing may shrink: so the last few numbers
        of layers are tried one by one.
        """
        if spot.most and not self.room.vram:
            return None
        config = self._config(spot, spot.fewest, context, cache, slots)
        low, high = spot.fewest, spot.most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._keeps(replace(config, gpu_layers=middle)) else (low, middle - 1)
        tried = (self._on_gpus(replace(config, gpu_layers=n), spot.placement) for n in range(low, spot.fewest - 1, -1))
        return next((found for found in tried if found), None)

    def _keeps(self, config: LlmOptions) -> bool:
        """Whether the GPUs have room for what layers keep there, before any computing."""
        kept = self.model.need(config, 1).vram
        return kept.weights + kept.kv_cache <= self._room_for(config).vram_sum

    def _on_gpus(self, config: LlmOptions, placement: LayerPlacement) -> Found | None:
        """On all GPUs, as engines do it, or on as many of the largest as hold it: each takes memory of its own."""
        if not config.gpu_layers:
            return Found(config, placement, self.model.need(config, 0), 0)
        room = self._room_for(config)
        alone = self.model.need(config, 1)
        if alone.vram.total > room.vram_sum:  # more GPUs only take more
            return None
        for gpus in range(len(room.vram), 0, -1):
            need = self.model.need(config, gpus) if gpus > 1 else alone
            if room.gpus_hold(need, gpus):
                return Found(config, placement, need, gpus)
        return None

    def _in_ram(self, found: Found) -> bool:
        room = self._room_for(found.config)
        return room.ram_for(found.need) <= room.ram

    def _room_for(self, config: LlmOptions) -> Capacity:
        return self._half if self.wishes.context_size is None and config.context_size > MODEST else self.room

    def _measured(self, config: LlmOptions, placement: LayerPlacement) -> Found:
        gpus = max(1, len(self.room.vram)) if config.gpu_layers else 0
        return Found(config, placement, self.model.need(config, gpus), gpus)

    def _caches_for(self, context: int) -> Sequence[_Cache]:
        """A cache that loses precision is no price for more context than needed."""
        return self._caches if context <= self.floor else self._caches[:1]

    def _config(self, spot: _Spot, layers: int, context: int, cache: _Cache, slots: int) -> LlmOptions:
        return LlmOptions(
            threads=self._threads,
            gpu_layers=layers,
            context_size=context,
            parallel=slots,
            flash_attention=self.wishes.flash_attention is not False,
            cache_type_k=cache[0],
            cache_type_v=cache[1],
            experts_on_cpu=spot.experts_on_cpu,
        )


def _attainable(model: LlmModel, asked: int | None) -> int | None:
    """What engines make of a context that is asked for: they go no further than the model was trained for."""
    return min(asked, model.native) if asked and model.shape else asked


def _contexts(model: LlmModel, wishes: LlmWishes) -> tuple[int, ...]:
    """What may be recommended, the largest first: what was asked for and what is left where that doesn't fit."""
    asked = _attainable(model, wishes.context_size)
    if model.shape is None:  # nobody knows what a context takes, so less of it promises nothing
        return (asked or min(model.native, FLOOR),)
    limit = asked or min(model.native, LARGEST)
    ladder = {limit, *(rung for power in range(16) if (rung := _SMALLEST << power) < limit)}
    return tuple(sorted(ladder, reverse=True))


def _slots(model: LlmModel, wishes: LlmWishes, cores: int) -> tuple[int, ...]:
    if wishes.parallel is not None:
        return (wishes.parallel,)
    most = next((slots for least, slots in _SLOTS if cores >= least), 1) if model.shape else 1
    return tuple(slots for slots in (8, 4, 2, 1) if slots <= most)


def _caches(model: LlmModel, wishes: LlmWishes) -> tuple[_Cache, ...]:
    """How keys and values may be stored, the better first. One that was left open follows the other: engines are built
    with fast attention only for those that are alike."""
    asked = wishes.cache_type_k or wishes.cache_type_v
    if asked:
        return ((wishes.cache_type_k or asked, wishes.cache_type_v or asked),)
    quantizable = model.shape is not None and wishes.flash_attention is not False and whole_blocks(model.shape)
    return (_F16, _Q8_0) if quantizable else (_F16,)


def _spots(model: LlmModel, wishes: LlmWishes) -> tuple[_Spot, ...]:
    layers, asked = model.layers, wishes.gpu_layers
    spots = []
    for experts_on_cpu in _expert_choices(model, wishes):
        if asked is None or asked >= layers:
            placement = LayerPlacement.EXPERTS_ON_CPU if experts_on_cpu and model.has_experts else LayerPlacement.FULL
            spots.append(_Spot(placement, asked or layers, asked or layers, experts_on_cpu))
        if asked is None and layers > 1:
            spots.append(_Spot(LayerPlacement.PARTIAL, 1, layers - 1, experts_on_cpu))
        elif asked and asked < layers:
            spots.append(_Spot(LayerPlacement.PARTIAL, asked, asked, experts_on_cpu))
    if not asked:
        spots.append(_Spot(LayerPlacement.CPU, 0, 0, bool(wishes.experts_on_cpu)))
    return tuple(spots)


def _expert_choices(model: LlmModel, wishes: LlmWishes) -> tuple[bool, ...]:
    if wishes.experts_on_cpu is not None:
        return (wishes.experts_on_cpu,)
    return (False, True) if model.has_experts else (False,)
