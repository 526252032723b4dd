"""The image worker's services: each call converts, asks the core, and converts back."""

from collections.abc import AsyncIterator
from types import ModuleType
from typing import ClassVar, Final

import grpc.aio

from genaid.image.v1 import engine_pb2, engine_pb2_grpc, generation_pb2, generation_pb2_grpc
from genaid_server.common.logs import LogServicer
from genaid_server.image import convert
from genaid_server.image.core.engine import ImageEngine
from genaid_server.image.core.generation import Generation, GenerationState
from genaid_server.image.core.generations import Generations
from genaid_server.kit.errors import (
    AlreadyTerminalError,
    BackendError,
    DomainError,
    FileSystemError,
    InsufficientResourcesError,
    IoError,
    ModelNotFoundError,
    ServerError,
)
from genaid_server.kit.paging import page
from genaid_server.supervision.logbook import Logbook

_FAILURES: Final[dict[str, type[DomainError]]] = {
    each.reason: each
    for each in (FileSystemError, IoError, InsufficientResourcesError, ModelNotFoundError, ServerError)
}

type Context = grpc.aio.ServicerContext[object, object]


class EngineServicer(LogServicer, engine_pb2_grpc.EngineServiceServicer):
    """EngineService."""

    messages: ClassVar[ModuleType] = engine_pb2

    def __init__(self, engine: ImageEngine, generations: Generations, logbook: Logbook) -> None:
        self._engine, self._generations, self._logbook = engine, generations, logbook

    async def StartEngine(  # noqa: N802
        self, request: engine_pb2.StartEngineRequest, context: Context
    ) -> engine_pb2.StartEngineResponse:
        """Load a model."""
        info = await self._engine.start(
            request.model_id,
            threads=request.threads if request.HasField("threads") else None,
            options=convert.options_from_pb(request.options),
            keep_alive=convert.seconds_from_pb(request.keep_alive) if request.HasField("keep_alive") else None,
            replace_running=request.replace,
            request_id=request.request_id,
        )
        return engine_pb2.StartEngineResponse(engine=convert.engine_to_pb(info))

    async def StopEngine(  # noqa: N802
        self, request: engine_pb2.StopEngineRequest, context: Context
    ) -> engine_pb2.StopEngineResponse:
        """Cancel everything and free the memory."""
        info = await self._generations.stop_engine()
        return engine_pb2.StopEngineResponse(engine=convert.engine_to_pb(info))

    async def GetEngine(  # noqa: N802
        self, request: engine_pb2.GetEngineRequest, context: Context
    ) -> engine_pb2.GetEngineResponse:
        """The engine as it is now."""
        return engine_pb2.GetEngineResponse(engine=convert.engine_to_pb(self._engine.info.value))

    async def WatchEngine(  # noqa: N802
        self, request: engine_pb2.WatchEngineRequest, context: Context
    ) -> AsyncIterator[engine_pb2.WatchEngineResponse]:
        """The engine and its changes."""
        async for info in self._engine.info.watch():
            yield engine_pb2.WatchEngineResponse(engine=convert.engine_to_pb(info))

    def logbook_of(self, request: object) -> Logbook:
        """The engine's log."""
        return self._logbook


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """GenerationService."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations

    async def CreateGeneration(  # noqa: N802
        self, request: generation_pb2.CreateGenerationRequest, context: Context
    ) -> generation_pb2.CreateGenerationResponse:
        """Accept a generation."""
        generation = await self._generations.create(convert.spec_from_pb(request.spec), request.request_id)
        return generation_pb2.CreateGenerationResponse(generation=convert.generation_to_pb(generation))

    async def GetGeneration(  # noqa: N802
        self, request: generation_pb2.GetGenerationRequest, context: Context
    ) -> generation_pb2.GetGenerationResponse:
        """One generation."""
        generation = self._generations.get(request.generation_id)
        return generation_pb2.GetGenerationResponse(generation=convert.generation_to_pb(generation))

    async def ListGenerations(  # noqa: N802
        self, request: generation_pb2.ListGenerationsRequest, context: Context
    ) -> generation_pb2.ListGenerationsResponse:
        """A page of generations."""
        state = convert.state_from_pb(request.state)
        matching = [found for found in self._generations.newest_first() if state in (None, found.state)]
        some = page(matching, _order, request.page_size, request.page_token, _weight)
        return generation_pb2.ListGenerationsResponse(
            generations=[convert.generation_to_pb(generation) for generation in some.items],
            next_page_token=some.next_token,
        )

    async def WatchGeneration(  # noqa: N802
        self, request: generation_pb2.WatchGenerationRequest, context: Context
    ) -> AsyncIterator[generation_pb2.WatchGenerationResponse]:
        """A generation and its changes."""
        async for generation in self._generations.watch(request.generation_id):
            yield generation_pb2.WatchGenerationResponse(generation=convert.generation_to_pb(generation))

    async def CancelGeneration(  # noqa: N802
        self, request: generation_pb2.CancelGenerationRequest, context: Context
    ) -> generation_pb2.CancelGenerationResponse:
        """Cancel a generation."""
        generation = await self._generations.cancel(request.generation_id)
        return generation_pb2.CancelGenerationResponse(generation=convert.generation_to_pb(generation))

    async def DeleteGeneration(  # noqa: N802
        self, request: generation_pb2.DeleteGenerationRequest, context: Context
    ) -> generation_pb2.DeleteGenerationResponse:
        """Forget a generation."""
        await self._generations.delete(request.generation_id)
        return generation_pb2.DeleteGenerationResponse()

    async def GetImage(  # noqa: N802
        self, request: generation_pb2.GetImageRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GetImageResponse]:
        """The bytes of one image."""
        info, png = self._generations.image(request.generation_id, request.index)
        for number, chunk in enumerate(convert.chunks(png)):
            about = convert.image_to_pb(info) if number == 0 else None
            yield generation_pb2.GetImageResponse(image=about, chunk=chunk)

    async def GenerateImages(  # noqa: N802
        self, request: generation_pb2.GenerateImagesRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateImagesResponse]:
        """Progress and images in one call."""
        async with self._generations.made_for(convert.spec_from_pb(request.spec)) as made:
            async for generation in made.watch():
                yield generation_pb2.GenerateImagesResponse(generation=convert.generation_to_pb(generation))
            _require_complete(made.now)
            for image in made.now.images:
                _, png = made.image(image.index)
                pieces = list(convert.chunks(png))
                for number, piece in enumerate(pieces, 1):
                    chunk = generation_pb2.ImageChunk(index=image.index, data=piece, last=number == len(pieces))
                    yield generation_pb2.GenerateImagesResponse(chunk=chunk)


def _order(generation: Generation) -> str:
    return f"{generation.created_at:020.6f} {generation.id}"


def _weight(generation: Generation) -> int:
    return 4 * (len(generation.spec.prompt) + len(generation.spec.negative_prompt))


def _require_complete(generation: Generation) -> None:
    if (failure := generation.failure) is not None:
        raise _FAILURES.get(failure.code, BackendError)(failure.message, **failure.facts)
    if generation.state is GenerationState.CANCELLED:
        raise AlreadyTerminalError("The generation was cancelled.", state="cancelled")
    if generation.state is not GenerationState.COMPLETE:  # its watch has ended, and so does the service
        raise ServerError("The image worker is shutting down.")
