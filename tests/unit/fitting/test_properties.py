"""Whatever the model, the machine and the wishes: what is recommended fits, and more memory never makes it worse."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Final

import pytest
from hypothesis import Phase, assume, find, given, settings
from hypothesis import strategies as st

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.fitting import capacity as capacities
from genaid_server.resource.core.fitting import llm_memory
from genaid_server.resource.core.fitting.capacity import Budgets, Capacity
from genaid_server.resource.core.fitting.check import check_llm
from genaid_server.resource.core.fitting.footprint import MemoryNeed
from genaid_server.resource.core.fitting.model_shape import CacheType, Layer, LlmShape
from genaid_server.resource.core.fitting.plan import Fit, LayerPlacement, LlmOptions, LlmWishes, Recommendation
from genaid_server.resource.core.fitting.recommend import recommend
from genaid_server.resource.core.fitting.search import LlmModel
from genaid_server.resource.core.fitting.wishes import check_wishes
from genaid_server.resource.core.system.facts import Ram
from unit.fitting.fitting_models import GIB, MIB, gpu, machine

F16, Q8_0 = CacheType.F16, CacheType.Q8_0
SIZE: Final = 6 * GIB
LADDER: Final = (512, 1024, 2048, 4096, 8192, 16384, 32768)


# --- anything that can come


def amounts(most: int) -> st.SearchStrategy[int]:
    """Memory, spread evenly up to so many GiB, because bytes drawn at will are mostly few or very many."""
    return st.builds(lambda parts, odd: parts * (most * MIB) + odd, st.integers(0, 1024), st.integers(0, 4096))


def maybe[T](wish: st.SearchStrategy[T]) -> st.SearchStrategy[T | None]:
    """Mostly nothing: many wishes at once seldom fit."""
    return st.one_of(st.none(), st.none(), st.none(), st.none(), wish)


@st.composite
def layers(draw: st.DrawFn, *, experts: bool) -> Layer:
    weights = draw(st.integers(1, 64)) * 16 * MIB + draw(st.integers(1, 1000))
    attention = draw(st.integers(0, 8))  # KV heads
    head = draw(st.sampled_from((32, 64, 80, 100, 128)))
    return Layer(
        weights,
        expert_weights=weights * draw(st.sampled_from((95, 90, 100, 0))) // 100 if experts else 0,
        key_width=attention * head,
        value_width=attention * head,
        head_width=head if attention else 0,
        window=draw(st.sampled_from((0, 0, 512, 4096))),
        state=draw(st.integers(0, 16 * MIB)),
        largest_tensor=max(1, weights // draw(st.sampled_from((8, 4, 1)))),
    )


@st.composite
def shapes(draw: st.DrawFn) -> LlmShape:
    experts = draw(st.booleans())
    kinds = draw(st.lists(layers(experts=experts), min_size=1, max_size=3))
    heads = draw(st.integers(1, 32))
    return LlmShape(
        architecture="any",
        layers=tuple(kind for kind in kinds for _ in range(draw(st.integers(1, 4)))),
        input_weights=draw(amounts(1)),
        output_weights=draw(amounts(1)),
        embedding_width=heads * 128,
        feed_forward_width=draw(st.integers(0, 20000)),
        query_width=heads * 128,
        head_count=heads,
        vocab_size=draw(st.integers(1, 200_000)),
        context_length=0,
    )


@st.composite
def rooms(draw: st.DrawFn) -> Capacity:
    ram = draw(amounts(24))
    if gpus := draw(st.sampled_from((1, 2, 3, 0, None))):
        return Capacity(ram, tuple(draw(amounts(8)) for _ in range(gpus)))
    if gpus == 0:
        return Capacity(ram)
    return Capacity(ram, (ram * draw(st.integers(0, 100)) // 100,), unified=True)


@st.composite
def larger_rooms(draw: st.DrawFn) -> tuple[Capacity, Capacity]:
    less = draw(rooms())
    more = amounts(4) | st.just(0)
    vram = tuple(size + draw(more) for size in less.vram)
    if not less.unified and draw(st.booleans()):
        vram += (draw(more),)
    return less, Capacity(less.ram + draw(more), vram, less.unified)


wishes = st.builds(
    LlmWishes,
    threads=maybe(st.integers(1, 512)),
    gpu_layers=maybe(st.integers(0, 12) | st.just(1000)),
    context_size=maybe(st.integers(32, 2**17) | st.just(2**24)),
    parallel=maybe(st.integers(1, 64)),
    flash_attention=maybe(st.booleans()),
    cache_type_k=maybe(st.sampled_from(CacheType)),
    cache_type_v=maybe(st.sampled_from(CacheType)),
    experts_on_cpu=maybe(st.booleans()),
)


@dataclass(frozen=True)
class Question:
    """Everything but the memory."""

    shape: LlmShape | None
    native: int
    cores: int
    wishes: LlmWishes

    def recommend(self, room: Capacity) -> Recommendation:
        return recommend(LlmModel(self.shape, SIZE, 5, self.native), room, self.cores, self.wishes)

    def check(self, room: Capacity, wishes: LlmWishes | None = None) -> Fit:
        asked = self.wishes if wishes is None else wishes
        return check_llm(
            LlmModel(self.shape, SIZE, 5, self.native), room, self.cores, asked, of_total=False, has_gpu=True
        )

    @property
    def asked_context(self) -> int | None:
        """What an engine makes of it: no more than the model was trained for, where that is known."""
        asked = self.wishes.context_size
        return min(asked, self.native) if asked and self.shape else asked

    @property
    def floor(self) -> int:
        return self.asked_context or min(self.native, 4096)

    @property
    def layers(self) -> int:
        return len(self.shape.layers) if self.shape else 5

    @property
    def experts(self) -> bool:
        return self.shape is not None and self.shape.expert_weights > 0

    def need(self, config: LlmOptions, gpus: int) -> MemoryNeed:
        if self.shape:
            return llm_memory.need(self.shape, config, gpus=gpus)
        return llm_memory.fallback(SIZE, min(1, config.gpu_layers / 5))

    def fits(self, config: LlmOptions, room: Capacity) -> bool:
        """On any number of the GPUs, the largest first."""
        for gpus in range(len(room.vram) + 1) if config.gpu_layers else (0,):
            need = self.need(config, max(1, gpus))
            ram = need.total if room.unified else need.ram.total
            used = sorted(room.vram, reverse=True)[:gpus]
            own = need.vram.compute + need.vram.overhead  # the same on each
            if ram <= room.ram and need.vram.total <= sum(used) and own <= min(used, default=0) * gpus:
                return True
        return False


@st.composite
def questions(draw: st.DrawFn) -> Question:
    shape = draw(st.one_of(shapes(), shapes(), shapes(), shapes(), st.none()))
    asked = draw(wishes | st.just(LlmWishes()))
    try:
        check_wishes(asked, shape)
    except InvalidRequestError:
        assume(False)
    return Question(
        shape, draw(st.sampled_from((100, 512, 3000, 4096, 10000, 131072))), draw(st.integers(1, 32)), asked
    )


def with_margin(room: Capacity) -> Capacity:
    vram = tuple(max(0, size - max(-(-size // 10), GIB)) for size in room.vram)
    return Capacity(room.ram - -(-room.ram // 10), vram, room.unified)


# --- the order, and all that may be recommended, without any cleverness


PLACEMENTS: Final = (LayerPlacement.CPU, LayerPlacement.PARTIAL, LayerPlacement.EXPERTS_ON_CPU, LayerPlacement.FULL)
Rank = tuple[int, int, int, bool, int, bool, int]


def rank(question: Question, config: LlmOptions, placement: LayerPlacement) -> Rank:
    return (
        min(config.context_size, question.floor),
        PLACEMENTS.index(placement),
        config.gpu_layers,
        not config.experts_on_cpu,
        config.context_size,
        config.cache_type_k is F16,
        config.parallel,
    )


def placement_of(question: Question, config: LlmOptions) -> LayerPlacement:
    if not config.gpu_layers:
        return LayerPlacement.CPU
    if config.gpu_layers < question.layers:
        return LayerPlacement.PARTIAL
    return LayerPlacement.EXPERTS_ON_CPU if config.experts_on_cpu and question.experts else LayerPlacement.FULL


def contexts(question: Question) -> list[int]:
    asked, native = question.asked_context, question.native
    if question.shape is None:
        return [asked or min(native, 4096)]
    if asked is None:
        return [rung for rung in LADDER if rung <= native] + ([native] if native < 32768 else [])
    return [asked, *(rung for power in range(20) if (rung := 512 * 2**power) < asked)]


def caches(question: Question) -> list[tuple[CacheType, CacheType]]:
    k, v = question.wishes.cache_type_k, question.wishes.cache_type_v
    if k or v:
        return [(k or v or F16, v or k or F16)]
    if question.shape is None or question.wishes.flash_attention is False:
        return [(F16, F16)]
    odd = any(layer.key_width and layer.head_width % 32 for layer in question.shape.layers)
    return [(F16, F16)] if odd else [(F16, F16), (Q8_0, Q8_0)]


def slots(question: Question) -> list[int]:
    if question.wishes.parallel:
        return [question.wishes.parallel]
    if question.shape is None:
        return [1]
    return [slots for slots, least in ((1, 1), (2, 4), (4, 8), (8, 16)) if question.cores >= least]


def splits(question: Question) -> Iterator[tuple[int, bool]]:
    """Layers on GPUs, and whether experts stay behind."""
    asked, experts = question.wishes.gpu_layers, question.wishes.experts_on_cpu
    kept = [experts] if experts is not None else [False, True] if question.experts else [False]
    for layers in [asked] if asked is not None else range(question.layers + 1):
        for on_cpu in kept if layers else [bool(experts)]:
            yield layers, on_cpu


type Case = tuple[Question, Capacity]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any question in any room, or in one where the weights fit and not every context does."""
    question = draw(questions())
    if question.shape is None or draw(st.booleans()):
        return question, draw(rooms())
    k, v = draw(st.sampled_from(caches(question)))
    config = LlmOptions(
        threads=1,
        gpu_layers=0,
        context_size=draw(st.sampled_from(contexts(question))),
        parallel=draw(st.sampled_from(slots(question))),
        flash_attention=question.wishes.flash_attention is not False,
        cache_type_k=k,
        cache_type_v=v,
    )
    ram = question.need(config, 1).total * draw(st.integers(100, 150)) // 100
    return question, Capacity(ram, (draw(amounts(8)),) if draw(st.booleans()) else ())


def best(question: Question, room: Capacity) -> Rank | None:
    half = Capacity(
        min(with_margin(room).ram, room.ram // 2),
        tuple(min(a, b // 2) for a, b in zip(with_margin(room).vram, room.vram, strict=True)),
        room.unified,
    )
    ranks = []
    every = product(contexts(question), caches(question), slots(question), splits(question))
    for context, (k, v), parallel, (layers, on_cpu) in every:
        flash = question.wishes.flash_attention is not False
        config = LlmOptions(1, layers, context, parallel, flash, k, v, on_cpu)
        open_context = question.wishes.context_size is None
        if len(caches(question)) > 1 and k is Q8_0 and context > question.floor:
            continue
        if question.fits(config, half if open_context and context > 8192 else with_margin(room)):
            ranks.append(rank(question, config, placement_of(question, config)))
    return max(ranks, default=None)


# --- what holds for all of it


@settings(max_examples=150, deadline=None)
@given(cases())
def test_it_is_the_best_of_all_that_fit(case: Case) -> None:
    question, room = case
    found = question.recommend(room)
    expected = best(question, room)
    assert found.fits == (expected is not None)
    if expected:
        assert rank(question, found.config, found.placement) == expected


@settings(max_examples=150, deadline=None)
@given(cases())
def test_what_is_recommended_fits_with_a_margin_and_passes_the_check(case: Case) -> None:
    question, room = case
    found = question.recommend(room)
    assert found.placement is placement_of(question, found.config)
    assert found.need == question.need(found.config, max(1, found.gpus))
    if not found.fits:
        return
    assert question.fits(found.config, with_margin(room))
    config = found.config
    again = question.check(
        room,
        LlmWishes(
            config.threads,
            config.gpu_layers,
            config.context_size,
            config.parallel,
            config.flash_attention,
            config.cache_type_k,
            config.cache_type_v,
            config.experts_on_cpu,
        ),
    )
    assert again.possible
    assert again.config == config
    if config.context_size >= question.floor:
        assert question.check(room).config == config


@settings(max_examples=150, deadline=None)
@given(question=questions(), pair=larger_rooms())
def test_more_memory_never_gives_a_smaller_recommendation(question: Question, pair: tuple[Capacity, Capacity]) -> None:
    less, more = (question.recommend(room) for room in pair)
    assert more.fits or not less.fits
    if less.fits:
        assert rank(question, more.config, more.placement) >= rank(question, less.config, less.placement)
    assert question.check(pair[1]).possible or not question.check(pair[0]).possible


@settings(max_examples=150, deadline=None)
@given(
    question=questions(),
    ram=amounts(16),
    vram=st.lists(amounts(12), max_size=2),
    unified=st.booleans(),
    budgets=st.lists(st.tuples(amounts(16), amounts(12)), min_size=2, max_size=2),
)
def test_a_higher_budget_never_gives_a_smaller_recommendation(
    question: Question, ram: int, vram: list[int], unified: bool, budgets: list[tuple[int, int]]
) -> None:
    gpus = [gpu(size, str(number), unified=unified) for number, size in enumerate(vram)]
    hardware = machine(*gpus[:1] if unified else gpus)
    budgets = [(max(1, ram), max(1, vram)) for ram, vram in budgets]  # 0 is no limit
    low, high = Budgets(*map(min, *budgets)), Budgets(*map(max, *budgets))
    less, more, most = (
        question.recommend(capacities.total(hardware, Ram(ram, ram), budget)) for budget in (low, high, Budgets())
    )
    assert less.fits <= more.fits <= most.fits
    if less.fits:
        ranks = [rank(question, each.config, each.placement) for each in (less, more, most)]
        assert ranks == sorted(ranks)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_wishes_are_kept_and_only_a_context_is_reduced_which_is_said(case: Case) -> None:
    question, room = case
    found = question.recommend(room)
    for wish in fields(LlmWishes):
        asked, given_ = getattr(question.wishes, wish.name), getattr(found.config, wish.name)
        if wish.name == "context_size" and found.context_reduced:
            assert given_ < asked
            assert str(asked) in found.reasons["context_size"]
            assert str(given_) in found.reasons["context_size"]
        elif asked is not None:
            assert given_ == asked
    assert set(found.reasons) == {setting.name for setting in fields(LlmOptions)}
    assert all(reason.endswith(".") for reason in found.reasons.values())


@settings(max_examples=200, deadline=None)
@given(cases())
def test_where_it_does_not_fit_something_is_missing_and_something_is_suggested(case: Case) -> None:
    question, room = case
    fit = question.check(room)
    if fit.possible:
        assert fit.required <= fit.available
        return
    assert fit.required > fit.available
    assert fit.reason.startswith(("Insufficient RAM: ", "Insufficient VRAM: "))
    assert fit.suggestion
    assert fit.config is not None
    assert not question.fits(fit.config, room)


def test_the_question_strategy_is_not_vacuous() -> None:
    """Most properties say little where nothing fits, or where everything does."""
    seen: Counter[bool] = Counter()

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(cases())
    def count(case: Case) -> None:
        question, room = case
        seen[question.recommend(room).fits] += 1

    count()
    assert min(seen[True], seen[False]) > 15


@pytest.mark.parametrize("placement", LayerPlacement)
def test_the_question_strategy_comes_to_every_placement(placement: LayerPlacement) -> None:
    def found(question: Question, room: Capacity) -> bool:
        given = question.recommend(room)
        return given.fits and given.placement is placement

    assert_found(found)


@pytest.mark.parametrize("plain", [True, False])
def test_the_question_strategy_comes_to_every_kind_of_cache(plain: bool) -> None:
    def found(question: Question, room: Capacity) -> bool:
        given = question.recommend(room)
        return given.fits and (given.config.cache_type_k is F16) is plain

    assert_found(found)


@pytest.mark.parametrize("reached", [True, False])
def test_the_question_strategy_comes_to_contexts_on_both_sides_of_the_floor(reached: bool) -> None:
    def found(question: Question, room: Capacity) -> bool:
        given = question.recommend(room)
        return given.fits and (given.config.context_size >= question.floor) is reached

    assert_found(found)


def assert_found(condition: Callable[[Question, Capacity], bool]) -> None:
    """That such a question is asked sooner or later: some are rare."""
    once = settings(max_examples=5_000, deadline=None, database=None, phases=[Phase.generate])
    find(cases(), lambda case: condition(*case), settings=once)


@pytest.mark.parametrize("room", [Capacity(0), Capacity(0, (0,)), Capacity(0, (0,), unified=True)])
def test_nothing_fits_into_nothing(room: Capacity) -> None:
    question = Question(None, 4096, 1, LlmWishes())
    assert not question.recommend(room).fits
    assert not question.check(room).possible
