# Generated from ../aio/client.py by scripts/generate_sync.py; edit that file, then run `make sync`.
"""The client: both services, each group of calls under its own name."""

from functools import cached_property
from types import TracebackType
from typing import Self

from genaid_client.sync.connection import Connection, Target
from genaid_client.sync.downloads import DownloadCalls
from genaid_client.sync.engine import EngineCalls
from genaid_client.sync.images import ImageCalls
from genaid_client.sync.llm import LlmCalls
from genaid_client.sync.models import ModelCalls
from genaid_client.sync.orchestration import OrchestrationCalls
from genaid_client.sync.system import SystemCalls


class Client:
    """genaid. Threads may share it; close it, or use it in a `with`.

    `resource` is where the resource manager is, `image` where the image worker is: `host:port`, or a channel to it,
    which whoever made it closes. Give those that are used: a group of calls to the other raises NoAddressError.
    `timeout` is the deadline in seconds of calls that have none of their own.

    Every call may raise ConnectionFailedError, DeadlineError and InternalError besides what it documents. An iterator
    ends when the server ends its stream; to reconnect is to call again. One that is left early ends its call when it
    is closed or collected.
    """

    def __init__(self, *, resource: Target | None = None, image: Target | None = None, timeout: float = 10.0) -> None:
        self._resource = Connection("resource", resource, timeout)
        self._image = Connection("image", image, timeout)

    @cached_property
    def system(self) -> SystemCalls:
        """The machine and its memory, and what can run on it."""
        return SystemCalls(self._resource)

    @cached_property
    def models(self) -> ModelCalls:
        """The models that are installed."""
        return ModelCalls(self._resource)

    @cached_property
    def downloads(self) -> DownloadCalls:
        """The models that are on their way."""
        return DownloadCalls(self._resource)

    @cached_property
    def llm(self) -> LlmCalls:
        """The LLM engine and its log."""
        return LlmCalls(self._resource)

    @cached_property
    def orchestration(self) -> OrchestrationCalls:
        """The memory that engines share: plans, leases, and the LLM that makes room for images."""
        return OrchestrationCalls(self._resource)

    @cached_property
    def engine(self) -> EngineCalls:
        """The image engine and its log."""
        return EngineCalls(self._image)

    @cached_property
    def images(self) -> ImageCalls:
        """Generations, and the images that they make."""
        return ImageCalls(self._image)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the calls that are under way with ConnectionFailedError, and close the channels."""
        try:
            self._resource.close()
        finally:
            self._image.close()
