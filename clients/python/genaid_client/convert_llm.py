"""Where messages about the LLM engine become results and arguments become messages; no calls here."""

import uuid
from collections.abc import Iterable
from typing import Final

from genaid.resource.v1 import llm_pb2
from genaid_client.convert_system import llm_config_from_pb, llm_config_to_pb
from genaid_client.messages import Names, mirror, request, to_seconds
from genaid_client.types import Health, LogEntry, LogLevel, ServerState
from genaid_client.types_llm import Llm, LlmEvent, LlmServing
from genaid_client.types_system import LlmConfig

SERVER_STATES: Final = Names(ServerState, llm_pb2.ServerState)
HEALTHS: Final = Names(Health, llm_pb2.Health)
EVENTS: Final = Names(LlmEvent, llm_pb2.LlmEvent)
LOG_LEVELS: Final = Names(LogLevel, llm_pb2.LogLevel)


def start_llm_request(
    model_id: str, config: LlmConfig | None, serving: LlmServing | None, replace: bool, request_id: str | None
) -> llm_pb2.StartLlmRequest:
    """The request of StartLlm, with an id of its own where none is given."""
    return request(
        llm_pb2.StartLlmRequest,
        model_id=model_id,
        config=None if config is None else llm_config_to_pb(config),
        serving=None if serving is None else serving_to_pb(serving),
        replace=replace,
        request_id=request_id or str(uuid.uuid4()),
    )


def serving_to_pb(serving: LlmServing) -> llm_pb2.LlmServing:
    """Raises InvalidRequestError for a value that no message can hold."""
    return request(
        llm_pb2.LlmServing,
        port=serving.port,
        host=serving.host,
        api_key=serving.api_key,
        memory_map=serving.memory_map,
        memory_lock=serving.memory_lock,
    )


def serving_from_pb(message: llm_pb2.LlmServing) -> LlmServing:
    """How the LLM engine serves."""
    return mirror(LlmServing, message)


def llm_from_pb(message: llm_pb2.Llm) -> Llm:
    """The LLM engine."""
    return mirror(
        Llm,
        message,
        state=SERVER_STATES.from_pb(message.state) or ServerState.STARTING,
        health=HEALTHS.from_pb(message.health) or Health.UNKNOWN,
        load_seconds=to_seconds(message.load_duration) if message.HasField("load_duration") else None,
        last_event=EVENTS.from_pb(message.last_event),
        config=llm_config_from_pb(message.config) if message.HasField("config") else None,
        serving=serving_from_pb(message.serving) if message.HasField("serving") else None,
        reasons=dict(message.reasons),
    )


def log_entry_from_pb(message: llm_pb2.LogEntry) -> LogEntry:
    """One line of the log."""
    return mirror(LogEntry, message, level=LOG_LEVELS.from_pb(message.level) or LogLevel.INFO)


def watched_llm(response: llm_pb2.WatchLlmResponse) -> Iterable[Llm]:
    """What one message of WatchLlm carries."""
    return (llm_from_pb(response.llm),)


def tailed_entries(response: llm_pb2.TailLogsResponse) -> Iterable[LogEntry]:
    """What one message of TailLogs carries."""
    return map(log_entry_from_pb, response.entries)
