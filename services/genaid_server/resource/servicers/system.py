"""SystemService."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from genaid.resource.v1 import system_pb2, system_pb2_grpc
from genaid_server.common.convert import CONTRACT_REVISION
from genaid_server.resource.convert import system as convert
from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.system.facts import Memory
from genaid_server.resource.core.system.survey import Survey
from genaid_server.resource.core.system.watching import DEFAULT_INTERVAL, MemoryWatches
from genaid_server.resource.servicers.context import Context


@dataclass(frozen=True, slots=True)
class Place:
    """Where this server keeps its data, and how to ask where genaid listens, by name: see GetVersion."""

    data_dir: Path
    inbox_dir: Path
    addresses: Callable[[], Mapping[str, str]]


class SystemServicer(system_pb2_grpc.SystemServiceServicer):
    """SystemService."""

    def __init__(self, advisor: Advisor, survey: Survey, watches: MemoryWatches, place: Place) -> None:
        self._advisor, self._survey, self._watches, self._place = advisor, survey, watches, place

    async def GetVersion(  # noqa: N802
        self, request: system_pb2.GetVersionRequest, context: Context
    ) -> system_pb2.GetVersionResponse:
        """What runs, and where."""
        return system_pb2.GetVersionResponse(
            version=version("genaid"),
            contract_revision=CONTRACT_REVISION,
            data_dir=str(self._place.data_dir),
            inbox_dir=str(self._place.inbox_dir),
            addresses=self._place.addresses(),
        )

    async def GetCapabilities(  # noqa: N802
        self, request: system_pb2.GetCapabilitiesRequest, context: Context
    ) -> system_pb2.GetCapabilitiesResponse:
        """What the machine has."""
        found = await self._advisor.capabilities(refresh=request.refresh)
        return system_pb2.GetCapabilitiesResponse(capabilities=convert.capabilities_to_pb(found, self._advisor.budgets))

    async def GetMemory(  # noqa: N802
        self, request: system_pb2.GetMemoryRequest, context: Context
    ) -> system_pb2.GetMemoryResponse:
        """Memory now."""
        return system_pb2.GetMemoryResponse(memory=await self._snapshot(await self._survey.memory()))

    async def WatchMemory(  # noqa: N802
        self, request: system_pb2.WatchMemoryRequest, context: Context
    ) -> AsyncIterator[system_pb2.WatchMemoryResponse]:
        """Memory, again and again."""
        given = request.interval
        interval = given.seconds + given.nanos / 1e9 if request.HasField("interval") else DEFAULT_INTERVAL
        async with contextlib.aclosing(self._watches.watch(interval)) as measured:
            async for memory in measured:
                yield system_pb2.WatchMemoryResponse(memory=await self._snapshot(memory))

    async def CheckModel(  # noqa: N802
        self, request: system_pb2.CheckModelRequest, context: Context
    ) -> system_pb2.CheckModelResponse:
        """Whether a model can run."""
        fit = await self._advisor.check(
            request.model_id,
            of_total=request.check_total_memory,
            wishes=convert.wishes_from_pb(request.llm_config),
            size=(
                request.width if request.HasField("width") else None,
                request.height if request.HasField("height") else None,
            ),
        )
        return convert.fit_to_pb(fit)

    async def RecommendLlmConfig(  # noqa: N802
        self, request: system_pb2.RecommendLlmConfigRequest, context: Context
    ) -> system_pb2.RecommendLlmConfigResponse:
        """How to run a language model."""
        given = await self._advisor.recommend(request.model_id, convert.wishes_from_pb(request.wishes))
        return convert.recommendation_to_pb(given)

    async def _snapshot(self, memory: Memory) -> system_pb2.MemorySnapshot:
        return convert.memory_to_pb(memory, await self._survey.hardware(), self._advisor.budgets)
