"""The LLM engine, both ways."""

from genaid.resource.v1 import llm_pb2
from genaid_server.resource.convert.system import FIELDS, config_to_pb, wishes_from_pb
from genaid_server.resource.convert.times import duration_to_pb, time_to_pb
from genaid_server.resource.core.llm.config import LlmRequest, Serving
from genaid_server.resource.core.llm.info import HealthState, LlmInfo
from genaid_server.supervision.logbook import Level, LogRecord
from genaid_server.supervision.supervisor import State

_STATES = {each: llm_pb2.ServerState.Value(f"SERVER_STATE_{each.name}") for each in State}
_HEALTHS = {each: llm_pb2.Health.Value(f"HEALTH_{each.name}") for each in HealthState}
_LEVELS = {each: llm_pb2.LogLevel.Value(f"LOG_LEVEL_{each.name}") for each in Level}


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
        state=_STATES[life.state],
        health=_HEALTHS[info.health],
        model_id=config.model_id if config else "",
        port=info.port or None,
        host=config.serving.host if config and life.pid is not None else "",
        pid=life.pid,
        start_time=time_to_pb(life.started_at) if life.started_at is not None else None,
        load_duration=duration_to_pb(life.load_seconds) if life.load_seconds is not None else None,
        restarts=life.restarts,
        last_error=life.last_error,
        load_percentage=_load_percentage(info),
        last_event=llm_pb2.LlmEvent.Value(f"LLM_EVENT_{(life.event or 'unspecified').upper()}"),
        config=config_to_pb(config.llm) if config else None,
        serving=serving_to_pb(config.serving) if config else None,
        separates_reasoning=bool(config and config.separates_reasoning),
        variant=config.variant if config else "",
        generation=info.generation,
        reasons={FIELDS.get(setting, setting): reason for setting, reason in info.reasons.items()},
        offloaded=info.offloaded,
    )


def record_to_pb(record: LogRecord) -> llm_pb2.LogEntry:
    """A log line, for callers."""
    return llm_pb2.LogEntry(
        sequence=record.sequence,
        time=time_to_pb(record.time),
        level=_LEVELS[record.level],
        message=record.message,
        raw=str(record),
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
    if life.state is State.RUNNING:
        return 100.0
    return 100.0 * life.loaded / life.to_load if life.state is State.STARTING and life.to_load else 0.0
