"""The LLM engine as callers see it, made of what its owner and its supervisor know."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

from genaid_server.kit.errors import InsufficientResourcesError
from genaid_server.resource.core.llm.config import LlmEngineConfig
from genaid_server.resource.core.llm.events import Launch, LlmStage, LlmState
from genaid_server.resource.core.llm.offloaded import OffloadedLlm, OffloadPhase
from genaid_server.supervision.stop_reason import StopReason, stop_reason
from genaid_server.supervision.supervisor import ServerState, Snapshot

_PHASES: Final = {
    LlmStage.LEAVING: OffloadPhase.OFFLOADING,
    LlmStage.GOING: OffloadPhase.OFFLOADING,
    LlmStage.AWAY: OffloadPhase.OFFLOADED,
    LlmStage.STARTING: OffloadPhase.RELOADING,
    LlmStage.RESTORING: OffloadPhase.RELOADING,
    LlmStage.RUNNING: OffloadPhase.RELOADING,
}


class HealthState(Enum):
    """Whether the engine answers; UNKNOWN without a process."""

    UNKNOWN = auto()
    LOADING = auto()
    OK = auto()
    ERROR = auto()


@dataclass(frozen=True, slots=True)
class LlmInfo:
    """The engine as callers see it.

    `generation` counts the lives of the process. `reasons` say why each setting that the caller left open is what it
    is. `port` is None without a process, and 0 as long as a free one is not yet known. `offloaded` says that it makes
    room for another engine, or has, and comes back by itself. `stop_reason` says why there is no process, None where
    there is one, or one that starts or ends.
    """

    life: Snapshot[LlmEngineConfig]
    health: HealthState = HealthState.UNKNOWN
    port: int | None = None
    generation: int = 0
    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    offloaded: bool = False
    stop_reason: StopReason | None = None


def llm_info(
    known: LlmState, snapshot: Snapshot[Launch], *, answers: bool, port: int | None, generation: int
) -> LlmInfo:
    """The engine now. `answers` is what its last health check said, `port` the one that its process listens on."""
    life = _life(known, snapshot)
    return LlmInfo(
        life,
        _health(life.state, answers=answers),
        port if life.pid is not None else None,
        generation,
        known.decision.reasons if known.decision else MappingProxyType({}),
        known.offloaded,
        _stop_reason(known, life),
    )


def offloaded_llm(known: LlmState) -> OffloadedLlm | None:
    """The LLM that makes room for another engine, or has, and comes back; None where there is none."""
    saved, failure = known.saved, known.failure
    if saved is None or saved.offloaded_at is None:
        return None
    phase = _PHASES.get(known.stage, OffloadPhase.OFFLOADED)
    if phase is OffloadPhase.OFFLOADED and failure is not None:
        phase = OffloadPhase.FAILED
    return OffloadedLlm(
        model_id=saved.request.model_id,
        config=saved.llm,
        serving=replace(saved.request.serving, port=saved.port),
        was_running=True,
        saved_at=saved.offloaded_at,
        reason=saved.reason,
        phase=phase,
        failed_attempts=failure.attempts if failure else 0,
        last_error=failure.message if failure else "",
        next_attempt_at=failure.next_at if failure and phase is OffloadPhase.FAILED else None,
        saved_tokens=sum(saved.slots.values()),
    )


def _life(known: LlmState, snapshot: Snapshot[Launch]) -> Snapshot[LlmEngineConfig]:
    config, launch = known.decision.config if known.decision else None, snapshot.config
    if launch is not None and snapshot.pid is not None and launch.number != known.launch:
        config = launch.decision.config  # another one is to follow, and this one is there still
    life: Snapshot[LlmEngineConfig] = snapshot.with_config(config)
    if known.refusal is not None and not life.last_error:
        life = replace(life, last_error=known.refusal.message, last_error_reason=known.refusal.reason)
    background = launch is not None and launch.background and known.stage is not LlmStage.STARTING
    if background and life.pid is None and life.state in (ServerState.STARTING, ServerState.STOPPING):
        life = replace(life, state=ServerState.STOPPED, event="offloaded")  # it waits for memory, or has waited
    if known.stage is not LlmStage.AWAY or life.pid is not None:
        return life
    if known.failure is not None:
        life = replace(life, event="reload_failed", last_error=known.failure.message)
    return life


def _stop_reason(known: LlmState, life: Snapshot[LlmEngineConfig]) -> StopReason | None:
    if known.stage is LlmStage.DOWN and isinstance(known.refusal, InsufficientResourcesError):
        return StopReason.REFUSED_FOR_MEMORY
    return stop_reason(life, offloaded=known.offloaded)


def _health(state: ServerState, *, answers: bool) -> HealthState:
    match state:
        case ServerState.STARTING:
            return HealthState.LOADING
        case ServerState.RUNNING:
            return HealthState.OK if answers else HealthState.ERROR
        case ServerState.CRASHED:
            return HealthState.ERROR
        case _:
            return HealthState.UNKNOWN
