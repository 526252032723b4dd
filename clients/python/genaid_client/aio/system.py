"""The machine and its memory, and what can run on it."""

from collections.abc import AsyncGenerator

from genaid.resource.v1 import system_pb2
from genaid.resource.v1.system_pb2_grpc import SystemServiceStub
from genaid_client import convert_system
from genaid_client.aio.connection import AsyncConnection
from genaid_client.types_system import (
    LlmConfig,
    LlmRecommendation,
    MemorySnapshot,
    ModelCheck,
    ServerVersion,
    SystemCapabilities,
)


class AsyncSystemCalls:
    """The machine and its memory, and what can run on it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._stub = SystemServiceStub(connection.channel)

    async def get_capabilities(self, refresh: bool = False) -> SystemCapabilities:
        """What the machine has and what is recommended for it; `refresh` detects anew what is otherwise kept a minute.

        Memory is always that of now. What could not be found out is a note in the result.
        """
        message = system_pb2.GetCapabilitiesRequest(refresh=refresh)
        response = await self._connection.call(self._stub.GetCapabilities, message)
        return convert_system.capabilities_from_pb(response.capabilities)

    async def get_memory(self) -> MemorySnapshot:
        """Memory now: of the machine, of each GPU, and what each engine holds."""
        response = await self._connection.call(self._stub.GetMemory, system_pb2.GetMemoryRequest())
        return convert_system.memory_from_pb(response.memory)

    def watch_memory(self, interval_seconds: float | None = None) -> AsyncGenerator[MemorySnapshot, None]:
        """Memory now, then again and again: every second, or every `interval_seconds`, 0.1 to 3600.

        It ends only with the service. Raises InvalidRequestError for an interval out of range when it is iterated.
        """
        message = convert_system.watch_memory_request(interval_seconds)
        return self._connection.stream(self._stub.WatchMemory, message, convert_system.watched_memory)

    async def check_model(
        self,
        model_id: str,
        *,
        check_total_memory: bool = False,
        llm_config: LlmConfig | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> ModelCheck:
        """Whether a model can run with the memory that is free now, or with all that the machine has.

        `llm_config` is for a language model, and completed as in `recommend_llm_config`; `width` and `height` are for
        a diffusion model: the images' size in pixels, 512 if not told otherwise. That it can't run is no error.
        Raises ModelNotFoundError, InvalidRequestError and FileSystemError.
        """
        message = convert_system.check_model_request(model_id, check_total_memory, llm_config, width, height)
        return convert_system.check_from_pb(await self._connection.call(self._stub.CheckModel, message))

    async def recommend_llm_config(self, model_id: str, wishes: LlmConfig | None = None) -> LlmRecommendation:
        """How best to run a language model with the memory that is free now, around what the `wishes` decide.

        Raises ModelNotFoundError, InvalidRequestError and FileSystemError.
        """
        message = convert_system.recommend_request(model_id, wishes)
        return convert_system.recommendation_from_pb(
            await self._connection.call(self._stub.RecommendLlmConfig, message)
        )

    async def get_version(self) -> ServerVersion:
        """What runs there: the versions of genaid and of its contracts, where its data is, and where it listens."""
        response = await self._connection.call(self._stub.GetVersion, system_pb2.GetVersionRequest())
        return convert_system.version_from_pb(response)
