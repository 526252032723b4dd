"""Where messages about the LLM engine become results and arguments become messages; no calls here."""

import uuid
from collections.abc import Iterable

from genaid.resource.v1 import llm_pb2
from genaid_client.convert_common import engine_fields
from genaid_client.convert_system import llm_config_from_pb, llm_config_to_pb
from genaid_client.messages import mirror, request, to_seconds
from genaid_client.types_llm import Llm, LlmServing
from genaid_client.types_system import LlmConfig


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
        **engine_fields(message),
        load_seconds=to_seconds(message.load_duration) if message.HasField("load_duration") else None,
        config=llm_config_from_pb(message.config) if message.HasField("config") else None,
        serving=serving_from_pb(message.serving) if message.HasField("serving") else None,
        reasons=dict(message.reasons),
    )


def watched_llm(response: llm_pb2.WatchLlmResponse) -> Iterable[Llm]:
    """What one message of WatchLlm carries."""
    return (llm_from_pb(response.llm),)
