"""LlmService."""

from collections.abc import AsyncIterator
from types import ModuleType
from typing import ClassVar

from genaid.resource.v1 import llm_pb2, llm_pb2_grpc
from genaid_server.common.logs import LogServicer
from genaid_server.resource.convert import llm as convert
from genaid_server.resource.core.llm.engine import LlmEngine
from genaid_server.resource.servicers.context import Context
from genaid_server.resource.servicers.llm_engines import AboutAnEngine, engine_meant, model_of
from genaid_server.supervision.logbook import Logbook


class LlmServicer(LogServicer, llm_pb2_grpc.LlmServiceServicer):
    """LlmService."""

    messages: ClassVar[ModuleType] = llm_pb2

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
        return llm_pb2.StopLlmResponse(llm=convert.llm_to_pb(await self._meant(request).stop()))

    async def RestartLlm(  # noqa: N802
        self, request: llm_pb2.RestartLlmRequest, context: Context
    ) -> llm_pb2.RestartLlmResponse:
        """Stop and start again."""
        return llm_pb2.RestartLlmResponse(llm=convert.llm_to_pb(await self._meant(request).restart()))

    async def GetLlm(self, request: llm_pb2.GetLlmRequest, context: Context) -> llm_pb2.GetLlmResponse:  # noqa: N802
        """The engine as it is now."""
        return llm_pb2.GetLlmResponse(llm=convert.llm_to_pb(await self._meant(request).checked()))

    async def WatchLlm(  # noqa: N802
        self, request: llm_pb2.WatchLlmRequest, context: Context
    ) -> AsyncIterator[llm_pb2.WatchLlmResponse]:
        """The engine and its changes."""
        llm = self._meant(request)
        async for info in llm.info.watch():
            if request.HasField("model_id") and request.model_id != model_of(info):
                return
            yield llm_pb2.WatchLlmResponse(llm=convert.llm_to_pb(info))

    def logbook_of(self, request: AboutAnEngine) -> Logbook:
        """The log of the engine that a request means: there is one, of all its models."""
        self._meant(request)
        return self._logbook

    def _meant(self, request: AboutAnEngine) -> LlmEngine:
        return engine_meant(self._llm, request)
