"""The LLM engine, both ways."""

from genaid.resource.v1 import llm_pb2
from genaid_server.common.convert import event_to_pb, health_to_pb, state_to_pb, stop_reason_to_pb
from genaid_server.common.times import duration_to_pb, time_to_pb
from genaid_server.resource.convert.system import FIELDS, config_to_pb, wishes_from_pb
from genaid_server.resource.core.llm.config import LlmRequest, Serving
from genaid_server.resource.core.llm.info import LlmInfo
from genaid_server.supervision.supervisor import ServerState


def request_from_pb(request: llm_pb2.StartLlmRequest, default_port: int) -> LlmRequest:
    """What a caller asks for; `default_port` is the one where it names none.

    Raises InvalidRequestError for an unknown cache type; the core checks the rest.
    """
    return LlmRequest(request.model_id, wishes_from_pb(request.config), _serving_from_pb(request.serving, default_port))


def llm_to_pb(info: LlmInfo) -> llm_pb2.Llm:
    """The engine, for callers."""
    life = info.life
    config = life.config
    return llm_pb2.Llm(
        state=state_to_pb(life.state),
        health=health_to_pb(info.health),
        model_id=config.model_id if config else "",
        port=info.port or None,
        host=config.serving.host if config and life.pid is not None else "",
        pid=life.pid,
        start_time=time_to_pb(life.started_at) if life.started_at is not None else None,
        load_duration=duration_to_pb(life.load_seconds) if life.load_seconds is not None else None,
        restarts=life.restarts,
        last_error=life.last_error,
        load_percentage=_load_percentage(info),
        last_event=event_to_pb(life.event),
        config=config_to_pb(config.llm) if config else None,
        serving=serving_to_pb(config.serving) if config else None,
        separates_reasoning=bool(config and config.separates_reasoning),
        variant=config.variant if config else "",
        generation=info.generation,
        reasons={FIELDS.get(setting, setting): reason for setting, reason in info.reasons.items()},
        offloaded=info.offloaded,
        stop_reason=stop_reason_to_pb(info.stop_reason),
    )


def _serving_from_pb(serving: llm_pb2.LlmServing, default_port: int) -> Serving:
    default = Serving(default_port)
    return Serving(
        port=serving.port if serving.HasField("port") else default.port,
        host=serving.host or default.host,
        api_key=serving.api_key,
        memory_map=serving.memory_map if serving.HasField("memory_map") else default.memory_map,
        memory_lock=serving.memory_lock if serving.HasField("memory_lock") else default.memory_lock,
    )


def serving_to_pb(serving: Serving) -> llm_pb2.LlmServing:
    """How it serves, for callers: without its key."""
    return llm_pb2.LlmServing(
        port=serving.port, host=serving.host, memory_map=serving.memory_map, memory_lock=serving.memory_lock
    )


def _load_percentage(info: LlmInfo) -> float:
    life = info.life
    if life.state is ServerState.RUNNING:
        return 100.0
    return 100.0 * life.loaded / life.to_load if life.state is ServerState.STARTING and life.to_load else 0.0
