"""The client: both services, each group of calls under its own name."""

from functools import cached_property
from types import TracebackType
from typing import Self

from genaid_client.aio.connection import AsyncConnection, AsyncTarget
from genaid_client.aio.downloads import AsyncDownloadCalls
from genaid_client.aio.engine import AsyncEngineCalls
from genaid_client.aio.images import AsyncImageCalls
from genaid_client.aio.llm import AsyncLlmCalls
from genaid_client.aio.models import AsyncModelCalls
from genaid_client.aio.orchestration import AsyncOrchestrationCalls
from genaid_client.aio.system import AsyncSystemCalls


class AsyncClient:
    """genaid from asyncio. Make it while the event loop runs; close it, or use it in an `async with`.

    `resource` is where the resource manager is, `image` where the image worker is: `host:port`, or a channel to it,
    which whoever made it closes. Give those that are used: a group of calls to the other raises NoAddressError.
    `timeout` is the deadline in seconds of calls that have none of their own.

    Every call may raise ConnectionFailedError, DeadlineError and InternalError besides what it documents. An iterator
    ends when the server ends its stream; to reconnect is to call again. One that is left early ends its call when it
    is closed or collected.
    """

    def __init__(
        self, *, resource: AsyncTarget | None = None, image: AsyncTarget | None = None, timeout: float = 10.0
    ) -> None:
        self._resource = AsyncConnection("resource", resource, timeout)
        self._image = AsyncConnection("image", image, timeout)

    @cached_property
    def system(self) -> AsyncSystemCalls:
        """The machine and its memory, and what can run on it."""
        return AsyncSystemCalls(self._resource)

    @cached_property
    def models(self) -> AsyncModelCalls:
        """The models that are installed."""
        return AsyncModelCalls(self._resource)

    @cached_property
    def downloads(self) -> AsyncDownloadCalls:
        """The models that are on their way."""
        return AsyncDownloadCalls(self._resource)

    @cached_property
    def llm(self) -> AsyncLlmCalls:
        """The LLM engine and its log."""
        return AsyncLlmCalls(self._resource)

    @cached_property
    def orchestration(self) -> AsyncOrchestrationCalls:
        """The memory that engines share: plans, leases, and the LLM that makes room for images."""
        return AsyncOrchestrationCalls(self._resource)

    @cached_property
    def engine(self) -> AsyncEngineCalls:
        """The image engine and its log."""
        return AsyncEngineCalls(self._image)

    @cached_property
    def images(self) -> AsyncImageCalls:
        """Generations, and the images that they make."""
        return AsyncImageCalls(self._image)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the calls that are under way with ConnectionFailedError, and close the channels."""
        try:
            await self._resource.close()
        finally:
            await self._image.close()
