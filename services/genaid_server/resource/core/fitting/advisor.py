"""Answers about models and this machine: joins what it has with what a model needs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from genaid_server.kit.errors import InsufficientResourcesError, InvalidRequestError
from genaid_server.resource.core.fitting import capacity, check, recommend
from genaid_server.resource.core.fitting import system_recommendations as advice
from genaid_server.resource.core.fitting.capacity import Budgets, Capacity
from genaid_server.resource.core.fitting.footprint import Amount, MemoryNeed
from genaid_server.resource.core.fitting.model_shape import LlmShape, Pooling
from genaid_server.resource.core.fitting.plan import Fit, LlmWishes, Recommendation
from genaid_server.resource.core.fitting.search import LlmModel
from genaid_server.resource.core.fitting.shape_cache import Shapes
from genaid_server.resource.core.fitting.system_recommendations import Advice
from genaid_server.resource.core.fitting.wishes import DEFAULT_EDGE, check_size, check_wishes
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.store.model import Model
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.core.system.facts import Hardware, Memory, Ram
from genaid_server.resource.core.system.survey import Survey

DEFAULT_CONTEXT: Final = 4096  # tokens
DEFAULT_PARALLEL: Final = 4

_NO_WISHES: Final = LlmWishes()
_NO_GPU_SUPPORT: Final = "The installed build of the LLM engine computes on the processor alone."


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the machine has, its memory now, and what is recommended. `detected_at` is in seconds since the epoch."""

    hardware: Hardware
    memory: Memory
    advice: Advice
    detected_at: float


class Advisor:
    """Measures and calculates anew for each question; only the detection of hardware and headers are remembered."""

    def __init__(self, store: ModelStore, survey: Survey, budgets: Budgets) -> None:
        self._store, self._survey, self._shapes = store, survey, Shapes()
        self.budgets = budgets

    async def capabilities(self, *, refresh: bool = False) -> Capabilities:
        """The machine, and what is recommended for it."""
        hardware = await self._survey.hardware(refresh=refresh)
        memory = await self._survey.memory()
        given = advice.recommend(hardware, memory.ram.total, self.budgets)
        return Capabilities(hardware, memory, given, self._survey.detected_at)

    async def check(
        self,
        model_id: str,
        *,
        of_total: bool = False,
        wishes: LlmWishes = _NO_WISHES,
        size: tuple[int | None, int | None] = (None, None),
    ) -> Fit:
        """Whether a model can run; `size` are width and height in pixels of images to make with it.

        Raises ModelNotFoundError, InvalidRequestError for what is not for a model of this type or out of range,
        FileSystemError where its file can't be read.
        """
        model = self._store.get(model_id)
        if model.type is ModelType.DIFFUSION:
            if wishes != _NO_WISHES:
                raise InvalidRequestError(
                    f"{model_id!r} is a diffusion model: it has no llm_config", field="llm_config"
                )
            return await self._check_diffusion(model, of_total, *_image_size(*size))
        if size != (None, None):
            field = "width" if size[0] is not None else "height"
            raise InvalidRequestError(f"{model_id!r} is a language model: it has no {field}", field=field)
        return await self._check_llm(model, of_total, wishes)

    async def recommend(self, model_id: str, wishes: LlmWishes = _NO_WISHES) -> Recommendation:
        """How best to run a language model with the memory that is free now.

        Raises ModelNotFoundError, InvalidRequestError for a diffusion model or a wish out of range, FileSystemError
        where its file can't be read.
        """
        model = self._language_model(model_id)
        shape = await self._shapes.llm(model)
        check_wishes(wishes, shape)
        hardware, room, _ = await self._capacities()
        return recommend.recommend(_llm_model(model, shape), room, _cores(hardware), wishes)

    async def choose(
        self, model_id: str, wishes: LlmWishes, engine_gpus: Callable[[], Awaitable[int]] | None = None
    ) -> Recommendation:
        """How to start a language model: as recommended, with the documented defaults where the caller is silent.

        Those are a context of 4096 tokens, or what the model was trained for, and 4 slots, or fewer where more would
        cost layers on the GPU. The memory of running engines counts as free: they leave where they have to.
        `engine_gpus` tells how many GPUs the engine can use, None for all; it is asked only where there is one. Raises
        what `recommend` raises, and InsufficientResourcesError where it does not fit.
        """
        model = self._language_model(model_id)
        shape = await self._shapes.llm(model)
        check_wishes(wishes, shape)
        hardware, room, whole = await self._capacities(empty=True)
        unusable = bool(room.vram and engine_gpus and not await engine_gpus())
        if unusable:
            room, whole = Capacity(room.ram), Capacity(whole.ram)
        facts = (_llm_model(model, shape), room, _cores(hardware))
        given = _chosen(lambda wanted: recommend.recommend(*facts, wanted), wishes, model.context_length)
        if not given.fits:  # with a margin; without one it may
            fit = check.check_llm(*facts, wishes, of_total=False, has_gpu=bool(hardware.gpus), total=whole)
            if not fit.possible or fit.config is None:
                raise _insufficient(fit)
            given = replace(given, config=fit.config, need=fit.need, fits=True)
        return replace(given, reasons={**given.reasons, "gpu_layers": _NO_GPU_SUPPORT}) if unusable else given

    async def pooling(self, model_id: str) -> Pooling | None:
        """How a language model makes vectors of texts, None where it is no embedding model.

        Raises ModelNotFoundError, InvalidRequestError for a diffusion model, FileSystemError where its file can't be
        read.
        """
        shape = await self._shapes.llm(self._language_model(model_id))
        return shape.pooling if shape else None

    def _language_model(self, model_id: str) -> Model:
        model = self._store.get(model_id)
        if model.type is not ModelType.LLM:
            raise InvalidRequestError(
                f"{model_id!r} is no language model: there is no such configuration for it", field="model_id"
            )
        return model

    async def _check_llm(self, model: Model, of_total: bool, wishes: LlmWishes) -> Fit:
        shape = await self._shapes.llm(model)
        check_wishes(wishes, shape)
        hardware, free, whole = await self._capacities()
        return check.check_llm(
            _llm_model(model, shape),
            whole if of_total else free,
            _cores(hardware),
            wishes,
            of_total=of_total,
            has_gpu=bool(hardware.gpus),
            total=None if of_total else whole,
        )

    async def _check_diffusion(self, model: Model, of_total: bool, width: int, height: int) -> Fit:
        shape = await self._shapes.diffusion(model)
        hardware, free, whole = await self._capacities()
        return check.check_diffusion(
            shape,
            model.size_bytes,
            width,
            height,
            whole if of_total else free,
            of_total=of_total,
            has_gpu=bool(hardware.gpus),
            total=None if of_total else whole,
        )

    async def amount(self, need: MemoryNeed) -> Amount:
        """What a lease for a need is for: where the GPU has no memory of its own, all of it is main memory."""
        hardware = await self._survey.lasting()
        unified = capacity.total(hardware, Ram(0, 0), self.budgets).unified
        return Amount(need.total) if unified else Amount(need.ram.total, need.vram.total)

    async def _capacities(self, *, empty: bool = False) -> tuple[Hardware, Capacity, Capacity]:
        """What is free, and all that there is; `empty` is as if no engine of ours ran."""
        hardware = await (self._survey.lasting() if empty else self._survey.hardware())
        memory = await self._survey.memory()
        if empty:
            memory = _emptied(memory)
        free = capacity.available(hardware, memory, self.budgets)
        return hardware, free, capacity.total(hardware, memory.ram, self.budgets)


def _chosen(at: Callable[[LlmWishes], Recommendation], wishes: LlmWishes, trained: int) -> Recommendation:
    """What is recommended with the documented defaults, as far as they fit."""
    wanted = replace(wishes, context_size=wishes.context_size or min(DEFAULT_CONTEXT, trained))
    given = at(wanted)
    if wishes.context_size is None and given.context_reduced:
        given = at(wishes)  # less than the default was not asked for, and is not reduced
    elif wishes.context_size is None:
        usual = f"{wanted.context_size} tokens are usual; more can be asked for."
        full = given.config.context_size >= trained
        reason = "It is all that the model was trained for." if full else usual
        given = replace(given, reasons={**given.reasons, "context_size": reason})
    elif given.config.context_size < min(wishes.context_size, trained):
        return replace(given, fits=False)  # an answer that is cut short in mid-sentence is worse than none
    if wishes.parallel is None and given.fits:
        given = _with_slots(given, lambda slots: at(replace(wanted, parallel=slots)))
    return given


def _insufficient(fit: Fit) -> InsufficientResourcesError:
    return InsufficientResourcesError(
        f"{fit.reason}. {fit.suggestion}".strip(),
        required=str(fit.required),
        available=str(fit.available),
        suggestion=fit.suggestion,
    )


def _with_slots(given: Recommendation, at: Callable[[int], Recommendation]) -> Recommendation:
    """The same with the most slots, up to the default, that cost no layer on the GPU and no context."""
    for slots in (DEFAULT_PARALLEL, DEFAULT_PARALLEL // 2):
        if slots <= given.config.parallel:
            break
        more = at(slots)
        same = replace(more.config, parallel=given.config.parallel) == given.config
        if more.fits and same and more.placement is given.placement:
            reasons = {**given.reasons, "parallel": f"{slots} is usual, and there is room for the context of each."}
            return replace(more, reasons=reasons)
    return given


def _emptied(memory: Memory) -> Memory:
    """Memory as it would be without our engines. Pages of files that they map are available all the time."""
    freed = sum(engine.private for engine in memory.engines)
    ram = replace(memory.ram, available=min(memory.ram.total, memory.ram.available + freed))
    pids = {engine.pid for engine in memory.engines}
    gpus = tuple(
        gpu if gpu.free is None else replace(gpu, free=gpu.free + sum(gpu.processes.get(pid, 0) for pid in pids))
        for gpu in memory.gpus
    )
    return replace(memory, ram=ram, gpus=gpus, engines=())


def _llm_model(model: Model, shape: LlmShape | None) -> LlmModel:
    return LlmModel(shape, model.size_bytes, model.layer_count, model.context_length)


def _cores(hardware: Hardware) -> int:
    return min(hardware.cpu.physical_cores, hardware.cpu.usable_cores)


def _image_size(width: int | None, height: int | None) -> tuple[int, int]:
    size = DEFAULT_EDGE if width is None else width, DEFAULT_EDGE if height is None else height
    check_size(*size)
    return size
