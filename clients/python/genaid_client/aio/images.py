"""The generations of images, and the images themselves."""

import builtins
from collections.abc import AsyncGenerator

from genaid.image.v1 import generation_pb2
from genaid.image.v1.generation_pb2_grpc import GenerationServiceStub
from genaid_client import convert
from genaid_client.aio.connection import AsyncConnection
from genaid_client.messages import request
from genaid_client.types import Generation, GenerationSpec, GenerationState, Image


class AsyncImageCalls:
    """The generations of images, and the images themselves."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._stub = GenerationServiceStub(connection.channel)

    async def create(self, spec: GenerationSpec, *, request_id: str | None = None) -> Generation:
        """Ask for images; returns as soon as the generation is accepted. It outlives this client.

        A repeat with the same `request_id` returns the original generation; each call makes one if none is given.
        Raises InvalidRequestError, ServerBusyError, ServerError and ModelNotFoundError.
        """
        message = convert.create_generation_request(spec, request_id)
        response = await self._connection.call(self._stub.CreateGeneration, message)
        return convert.generation_from_pb(response.generation)

    async def get(self, generation_id: str) -> Generation:
        """One generation. Raises NotFoundError."""
        message = request(generation_pb2.GetGenerationRequest, generation_id=generation_id)
        response = await self._connection.call(self._stub.GetGeneration, message)
        return convert.generation_from_pb(response.generation)

    async def list(self, state: GenerationState | None = None) -> builtins.list[Generation]:
        """The generations in a state, or all that the worker knows, the newest first."""
        pages = await self._connection.pages(self._stub.ListGenerations, convert.list_generations_request(state))
        return [convert.generation_from_pb(generation) for page in pages for generation in page.generations]

    def watch(self, generation_id: str) -> AsyncGenerator[Generation, None]:
        """A generation as it is now, then after each change the newest; ends after a terminal state.

        Raises NotFoundError when it is iterated.
        """
        message = request(generation_pb2.WatchGenerationRequest, generation_id=generation_id)
        return self._connection.stream(self._stub.WatchGeneration, message, convert.watched_generation)

    async def cancel(self, generation_id: str, timeout: float = 60) -> Generation:
        """Cancel a generation; returns when nothing computes for it any more. Repeating it is no error.

        Raises NotFoundError and AlreadyTerminalError.
        """
        message = request(generation_pb2.CancelGenerationRequest, generation_id=generation_id)
        response = await self._connection.call(self._stub.CancelGeneration, message, timeout)
        return convert.generation_from_pb(response.generation)

    async def delete(self, generation_id: str, timeout: float = 60) -> None:
        """Forget a generation and its images; cancels it first where it is not finished. Raises NotFoundError."""
        message = request(generation_pb2.DeleteGenerationRequest, generation_id=generation_id)
        await self._connection.call(self._stub.DeleteGeneration, message, timeout)

    async def get_image(self, generation_id: str, index: int = 0) -> bytes:
        """The PNG of one image of a complete generation. Raises NotFoundError and ServerBusyError."""
        message = request(generation_pb2.GetImageRequest, generation_id=generation_id, index=index)
        chunks = self._connection.stream(self._stub.GetImage, message, convert.image_chunk, self._connection.timeout)
        png = bytearray()
        async for chunk in chunks:
            png += chunk
        return bytes(png)

    def stream(self, spec: GenerationSpec) -> AsyncGenerator[Generation | Image, None]:
        """Make images in one call: the generation as it changes, and at the end its images, in order.

        The generation is cancelled when the iterator is left early, and forgotten when it ends.
        Raises, when it is iterated, what `create` raises, BackendError and IoError.
        """
        message = request(generation_pb2.GenerateImagesRequest, spec=convert.spec_to_pb(spec))
        return self._connection.stream(self._stub.GenerateImages, message, convert.ImageAssembly().add)
