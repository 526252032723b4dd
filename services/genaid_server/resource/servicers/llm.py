"""LlmService."""

from collections.abc import AsyncIterator

from genaid.resource.v1 import llm_pb2, llm_pb2_grpc
from genaid_server.resource.convert import llm as convert
from genaid_server.resource.core.llm.engine import LlmEngine
from genaid_server.resource.servicers.context import Context
from genaid_server.supervision.logbook import Logbook, in_portions, lines_asked, newest_within


class LlmServicer(llm_pb2_grpc.LlmServiceServicer):
    """LlmService."""

    def __init__(self, llm: LlmEngine, logbook: Logbook, default_port: int) -> None:
        self._llm, self._logbook, self._default_port = llm, logbook, default_port

    async def StartLlm(  # noqa: N802
        self, request: llm_pb2.StartLlmRequest, context: Context
    ) -> llm_pb2.StartLlmResponse:
        """Load a model."""
        info = await self._llm.start(
            convert.request_from_pb(request, self._default_port),
            replace_running=request.replace,
            request_id=request.request_id,
        )
        return llm_pb2.StartLlmResponse(llm=convert.llm_to_pb(info))

    async def StopLlm(  # noqa: N802
        self, request: llm_pb2.StopLlmRequest, context: Context
    ) -> llm_pb2.StopLlmResponse:
        """Free the memory."""
        return llm_pb2.StopLlmResponse(llm=convert.llm_to_pb(await self._llm.stop()))

    async def RestartLlm(  # noqa: N802
        self, request: llm_pb2.RestartLlmRequest, context: Context
    ) -> llm_pb2.RestartLlmResponse:
        """Stop and start again."""
        return llm_pb2.RestartLlmResponse(llm=convert.llm_to_pb(await self._llm.restart()))

    async def GetLlm(self, request: llm_pb2.GetLlmRequest, context: Context) -> llm_pb2.GetLlmResponse:  # noqa: N802
        """The engine as it is now."""
        return llm_pb2.GetLlmResponse(llm=convert.llm_to_pb(await self._llm.checked()))

    async def WatchLlm(  # noqa: N802
        self, request: llm_pb2.WatchLlmRequest, context: Context
    ) -> AsyncIterator[llm_pb2.WatchLlmResponse]:
        """The engine and its changes."""
        async for info in self._llm.info.watch():
            yield llm_pb2.WatchLlmResponse(llm=convert.llm_to_pb(info))

    async def ListLogs(  # noqa: N802
        self, request: llm_pb2.ListLogsRequest, context: Context
    ) -> llm_pb2.ListLogsResponse:
        """The newest log lines."""
        lines = lines_asked(request.lines if request.HasField("lines") else None)
        return llm_pb2.ListLogsResponse(
            entries=[convert.record_to_pb(record) for record in newest_within(self._logbook.tail(lines))]
        )

    async def TailLogs(  # noqa: N802
        self, request: llm_pb2.TailLogsRequest, context: Context
    ) -> AsyncIterator[llm_pb2.TailLogsResponse]:
        """Log lines as they come."""
        start = request.from_sequence if request.HasField("from_sequence") else None
        async for records in self._logbook.watch(start):
            for portion in in_portions(records):
                yield llm_pb2.TailLogsResponse(entries=[convert.record_to_pb(record) for record in portion])

    async def ClearLogs(  # noqa: N802
        self, request: llm_pb2.ClearLogsRequest, context: Context
    ) -> llm_pb2.ClearLogsResponse:
        """Forget the log."""
        self._logbook.clear()
        return llm_pb2.ClearLogsResponse()
