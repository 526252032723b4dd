"""The image engine and its log."""

from collections.abc import AsyncGenerator

from genaid.image.v1 import engine_pb2
from genaid.image.v1.engine_pb2_grpc import EngineServiceStub
from genaid_client import convert, convert_common
from genaid_client.aio.connection import AsyncConnection
from genaid_client.messages import request
from genaid_client.types import Engine, EngineOptions, LogEntry


class AsyncEngineCalls:
    """The image engine and its log."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._stub = EngineServiceStub(connection.channel)

    async def start(
        self,
        model_id: str,
        *,
        threads: int | None = None,
        options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
        keep_alive_seconds: float | None = None,
        replace: bool = False,
        timeout: float = 600,
    ) -> Engine:
        """Select a model and load it; returns when it is loaded.

        `threads` is 1 to 512, None to choose from the number of cores. `keep_alive_seconds` is how long it stays
        loaded without work: 0 unloads after each image, negative never unloads, None is the configured time.
        `replace` stops an engine that runs with other settings first.
        Raises ModelNotFoundError, InvalidRequestError, ServerBusyError and BackendError.
        """
        message = convert.start_engine_request(model_id, threads, options, keep_alive_seconds, replace)
        response = await self._connection.call(self._stub.StartEngine, message, timeout)
        return convert.engine_from_pb(response.engine)

    async def stop(self, timeout: float = 60) -> Engine:
        """Cancel what runs and waits, free the memory, and refuse generations until the next start."""
        response = await self._connection.call(self._stub.StopEngine, engine_pb2.StopEngineRequest(), timeout)
        return convert.engine_from_pb(response.engine)

    async def get(self) -> Engine:
        """The engine as it is now."""
        response = await self._connection.call(self._stub.GetEngine, engine_pb2.GetEngineRequest())
        return convert.engine_from_pb(response.engine)

    def watch(self) -> AsyncGenerator[Engine, None]:
        """The engine as it is now, then after each change the newest."""
        return self._connection.stream(self._stub.WatchEngine, engine_pb2.WatchEngineRequest(), convert.watched_engine)

    async def list_logs(self, lines: int | None = None) -> list[LogEntry]:
        """The newest lines of the engine's log, the newest last; 100 at most if not told otherwise.

        Raises InvalidRequestError for a negative number.
        """
        response = await self._connection.call(self._stub.ListLogs, request(engine_pb2.ListLogsRequest, lines=lines))
        return convert_common.log_entries(response)

    def tail_logs(self, from_sequence: int | None = None) -> AsyncGenerator[LogEntry, None]:
        """The engine's log from a sequence number on, then each new line; without one only new lines."""
        message = request(engine_pb2.TailLogsRequest, from_sequence=from_sequence)
        return self._connection.stream(self._stub.TailLogs, message, convert_common.log_entries)

    async def clear_logs(self) -> None:
        """Forget the engine's log. Sequence numbers go on."""
        await self._connection.call(self._stub.ClearLogs, engine_pb2.ClearLogsRequest())
