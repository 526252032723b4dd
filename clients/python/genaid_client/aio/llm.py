"""The LLM engine and its log."""

from collections.abc import AsyncGenerator

from genaid.resource.v1 import llm_pb2
from genaid.resource.v1.llm_pb2_grpc import LlmServiceStub
from genaid_client import convert_common, convert_llm
from genaid_client.aio.connection import AsyncConnection
from genaid_client.messages import request
from genaid_client.types import LogEntry
from genaid_client.types_llm import Llm, LlmServing
from genaid_client.types_system import LlmConfig


class AsyncLlmCalls:
    """The LLM engine and its log.

    Calls take the id of the engine's model: where there is no engine of that model they raise ModelNotFoundError, with
    `modelId` and, if there is one, `engineModelId` in its metadata. None means the engine that there is.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._stub = LlmServiceStub(connection.channel)

    async def start(
        self,
        model_id: str,
        *,
        config: LlmConfig | None = None,
        serving: LlmServing | None = None,
        replace: bool = False,
        request_id: str | None = None,
        timeout: float = 3600,
    ) -> Llm:
        """Load a language model; returns when it answers at the result's `base_url`.

        What `config` and `serving` leave open is chosen. A start that is under way with the same arguments is joined.
        `replace` stops an engine that runs with another model or other options first. A start goes on when its caller
        leaves. Raises ModelNotFoundError, InvalidRequestError, PortInUseError, ServerBusyError,
        InsufficientResourcesError, BinaryError; ServerError where it does not load, or is stopped meanwhile.
        """
        message = convert_llm.start_llm_request(model_id, config, serving, replace, request_id)
        response = await self._connection.call(self._stub.StartLlm, message, timeout)
        return convert_llm.llm_from_pb(response.llm)

    async def stop(self, model_id: str | None = None, *, timeout: float = 60) -> Llm:
        """Stop the LLM engine and free its memory; it is no error where it does not run."""
        response = await self._connection.call(
            self._stub.StopLlm, request(llm_pb2.StopLlmRequest, model_id=model_id), timeout
        )
        return convert_llm.llm_from_pb(response.llm)

    async def restart(self, model_id: str | None = None, *, timeout: float = 3600) -> Llm:
        """Stop the LLM engine, and start it again with the same model and options.

        Raises ServerError where it has never been started; else what `start` raises.
        """
        response = await self._connection.call(
            self._stub.RestartLlm, request(llm_pb2.RestartLlmRequest, model_id=model_id), timeout
        )
        return convert_llm.llm_from_pb(response.llm)

    async def get(self, model_id: str | None = None) -> Llm:
        """The LLM engine as it is now, its health asked for anew."""
        response = await self._connection.call(self._stub.GetLlm, request(llm_pb2.GetLlmRequest, model_id=model_id))
        return convert_llm.llm_from_pb(response.llm)

    def watch(self, model_id: str | None = None) -> AsyncGenerator[Llm, None]:
        """The LLM engine as it is now, then after each change the newest, with the event that led to it."""
        return self._connection.stream(
            self._stub.WatchLlm, request(llm_pb2.WatchLlmRequest, model_id=model_id), convert_llm.watched_llm
        )

    async def list_logs(self, lines: int | None = None, *, model_id: str | None = None) -> list[LogEntry]:
        """The newest lines of the LLM engine's log, the newest last; 100 at most if not told otherwise.

        Raises InvalidRequestError for a negative number.
        """
        response = await self._connection.call(
            self._stub.ListLogs, request(llm_pb2.ListLogsRequest, lines=lines, model_id=model_id)
        )
        return convert_common.log_entries(response)

    def tail_logs(
        self, from_sequence: int | None = None, *, model_id: str | None = None
    ) -> AsyncGenerator[LogEntry, None]:
        """The LLM engine's log from a sequence number on, then each new line; without one only new lines."""
        message = request(llm_pb2.TailLogsRequest, from_sequence=from_sequence, model_id=model_id)
        return self._connection.stream(self._stub.TailLogs, message, convert_common.log_entries)

    async def clear_logs(self, *, model_id: str | None = None) -> None:
        """Forget the LLM engine's log, in memory and on disk. Sequence numbers go on. Raises FileSystemError."""
        await self._connection.call(self._stub.ClearLogs, request(llm_pb2.ClearLogsRequest, model_id=model_id))
