"""What a language model is run with: a caller's request, completed, and the memory that a lease of it is for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from genaid_server.kit.errors import ModelNotFoundError
from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.leases.lease import LLM_TENANT, LeaseRequest
from genaid_server.resource.core.leases.plan import TenantKind
from genaid_server.resource.core.leases.usage import Usage, llm_key
from genaid_server.resource.core.llm.config import LlmEngineConfig, LlmRequest
from genaid_server.resource.core.llm.devices import engine_gpus
from genaid_server.resource.core.llm.process import BUILT_IN
from genaid_server.resource.core.llm.saved import SavedLlm
from genaid_server.resource.core.store.model import Model
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.supervision.process_memory import peak_private_bytes

SLOTS: Final = "slots"  # the folder of saved prompt caches


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to run. `reasons` say why each setting that the caller left open is what it is; `model_stamp` tells the
    files that this was decided for from others under the same id."""

    request: LlmRequest
    config: LlmEngineConfig
    reasons: Mapping[str, str]
    model_stamp: str = ""


class Decider:
    """Completes requests.

    `program` is the user's own llama-server, empty for the built-in engine; `command` the argv of another program that
    speaks that one's protocol.
    """

    def __init__(
        self,
        store: ModelStore,
        advisor: Advisor,
        usage: Usage,
        data_dir: Path,
        *,
        program: str = "",
        command: Sequence[str] = (),
    ) -> None:
        self._store, self._advisor, self._usage = store, advisor, usage
        self._slots, self._program, self._command = data_dir / SLOTS, program, command
        self._gpus: int | None = None

    def language_model(self, model_id: str) -> Model:
        """Raises ModelNotFoundError, also for a model that is no language model."""
        model = self._store.get(model_id)
        if model.type is not ModelType.LLM:
            raise ModelNotFoundError(
                f"Model {model_id!r} is no language model, so it can't chat. genaid models list shows what there is.",
                modelId=model_id,
            )
        return model

    async def decide(self, model: Model, request: LlmRequest) -> Decision:
        """Complete what the caller left open. Raises InvalidRequestError, InsufficientResourcesError."""
        given = await self._advisor.choose(model.id, request.wishes, None if self._program else self._engine_gpus)
        amount = await self._advisor.amount(given.need)
        config = self._engine_config(model, request, given.config, amount)
        return Decision(request, config, MappingProxyType(dict(given.reasons)), stamp_of(model))

    async def renew(self, decision: Decision) -> Decision:
        """The same with the model's files as they are now: where others have taken their place, it is decided anew.

        Raises ModelNotFoundError where the model is gone, and what `decide` raises.
        """
        model = self.language_model(decision.request.model_id)
        if stamp_of(model) != decision.model_stamp:
            return await self.decide(model, decision.request)
        config = replace(decision.config, model_path=model.path, size_bytes=model.size_bytes)
        return replace(decision, config=config)

    def decided(self, saved: SavedLlm) -> Decision:
        """What an earlier process has decided. Raises ModelNotFoundError where the model is gone."""
        model = self.language_model(saved.request.model_id)
        config = self._engine_config(model, saved.request, saved.llm, saved.amount)
        stamp = saved.model_stamp or stamp_of(model)
        return Decision(saved.request, config, MappingProxyType(saved.reasons), stamp)

    def lease_request(self, config: LlmEngineConfig, total: Amount) -> LeaseRequest:
        """What a lease is for: what the engine was seen to take, else the estimate.

        What fits into `total` by its estimate is not refused for having been measured. Where that is not known yet,
        `total` is nothing.
        """
        known = self._usage.known(_usage_key(config))
        amount = config.amount
        if known is not None:
            amount = replace(amount, ram=min(known, max(amount.ram, total.ram or known)))
        return LeaseRequest(LLM_TENANT, TenantKind.LLM, config.model_id, amount, measured=known is not None)

    def learn(self, config: LlmEngineConfig, pid: int) -> None:
        """Take note of what an engine takes that has worked."""
        private = peak_private_bytes(pid)
        self._usage.learn(_usage_key(config), private + config.mapped_bytes if private else 0)

    def _engine_config(self, model: Model, request: LlmRequest, llm: LlmOptions, amount: Amount) -> LlmEngineConfig:
        return LlmEngineConfig(
            model_id=model.id,
            model_path=model.path,
            size_bytes=model.size_bytes,
            llm=llm,
            serving=request.serving,
            separates_reasoning=model.supports_reasoning,
            slot_save_path=self._slots / model.id,
            program=self._program,
            amount=amount,
        )

    async def _engine_gpus(self) -> int:
        if self._gpus is None:
            self._gpus = await engine_gpus(self._command or BUILT_IN)
        return self._gpus


def stamp_of(model: Model) -> str:
    """Tells the files of a model from others that may be imported under its id one day."""
    return " ".join(f"{file.checksum or file.path}:{file.size_bytes}" for file in model.files)


def _usage_key(config: LlmEngineConfig) -> str:
    return llm_key(config.model_id, config.size_bytes, config.llm, config.serving.memory_map)
