"""What memory there is to share, measured."""

from dataclasses import dataclass
from typing import Protocol

from genaid_server.resource.core.fitting import capacity
from genaid_server.resource.core.fitting.capacity import Budgets
from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.leases.plan import ENDLESS, AvailableMemory, TenantKind
from genaid_server.resource.core.system.survey import Survey


@dataclass(frozen=True, slots=True)
class EngineAmount:
    """What an engine's process holds and would give back."""

    kind: TenantKind
    model_id: str
    amount: Amount


@dataclass(frozen=True, slots=True)
class Measured:
    """Memory at one moment: all that genaid may use, what is free now, and what the engines hold.

    `total.vram` and `free.vram` are those of all GPUs together, `largest_gpu` and `best_gpu` those of the one that has
    the most.
    """

    total: Amount
    free: Amount
    engines: tuple[EngineAmount, ...] = ()
    best_gpu: int = 0
    largest_gpu: int = 0

    def available_for(self, kind: TenantKind, free: Amount) -> AvailableMemory:
        """What one engine of a kind may have, of which so much is free for it."""
        return AvailableMemory(self.total, free, self.largest_gpu if kind is TenantKind.IMAGE else ENDLESS)

    def free_for(self, kind: TenantKind) -> Amount:
        """What one engine of a kind can have: llama.cpp spreads over all GPUs, stable-diffusion.cpp uses one."""
        return Amount(self.free.ram, self.best_gpu) if kind is TenantKind.IMAGE else self.free


class Measure(Protocol):
    """Measures memory."""

    async def __call__(self) -> Measured:
        """Memory now."""


class SurveyedMemory:
    """Measures with the survey. Memory that the GPU shares with the processor is main memory."""

    def __init__(self, survey: Survey, budgets: Budgets) -> None:
        self._survey, self._budgets = survey, budgets

    async def __call__(self) -> Measured:
        """Memory now."""
        hardware = await self._survey.lasting()
        memory = await self._survey.memory()
        whole = capacity.total(hardware, memory.ram, self._budgets)
        free = capacity.available(hardware, memory, Budgets())
        engines = tuple(
            EngineAmount(TenantKind(engine.kind), engine.model_id, Amount(engine.private, engine.vram or 0))
            for engine in memory.engines
        )
        return Measured(
            Amount(whole.ram, 0 if whole.unified else whole.vram_sum),
            Amount(free.ram, 0 if free.unified else free.vram_sum),
            engines,
            0 if free.unified else free.vram_best,
            0 if whole.unified else whole.vram_best,
        )
