"""An image worker that computes nothing and does what it is told; in a test's own process, or as a program.

    python tests/fakes/image_worker.py --images 1 --image-bytes 12000

prints `host:port generation-id` of a worker with one complete generation, and runs until its stdin ends.
"""

import argparse
import asyncio
import hashlib
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from genaid.common.v1 import engines_pb2
from genaid.image.v1 import engine_pb2, engine_pb2_grpc, generation_pb2, generation_pb2_grpc
from genaid_server.kit import rpc
from genaid_server.kit.address import Address
from genaid_server.kit.errors import AlreadyTerminalError, DomainError, NotFoundError, ServerBusyError
from genaid_server.kit.watchable import Watchable

type Context = grpc.aio.ServicerContext[Any, Any]

SERVICES: Final = ("genaid.image.v1.EngineService", "genaid.image.v1.GenerationService")
ANYWHERE: Final = Address("127.0.0.1", 0)
SECOND: Final = 1_000_000_000  # nanoseconds
TERMINAL: Final = frozenset(
    {
        generation_pb2.GENERATION_STATE_COMPLETE,
        generation_pb2.GENERATION_STATE_ERROR,
        generation_pb2.GENERATION_STATE_CANCELLED,
    }
)


def png(size: int = 64, fill: bytes = b"x") -> bytes:
    """Bytes that begin like a PNG."""
    return (b"\x89PNG\r\n\x1a\n" + fill * size)[:size]


@dataclass
class Misbehaviour:
    """What goes wrong, by the name of the RPC."""

    refuse: dict[str, DomainError] = field(default_factory=dict)
    crash: set[str] = field(default_factory=set)
    hang: set[str] = field(default_factory=set)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def happen(self, name: str) -> None:
        """Fail, break or stop here, if that is what the RPC is to do."""
        if name in self.refuse:
            raise self.refuse[name]
        if name in self.crash:
            raise KeyError("an engine's secret path")
        if name in self.hang:
            await self.released.wait()

    def let_go(self) -> None:
        """Let what hangs go on."""
        self.hang.clear()
        self.released.set()


# The generated bases answer UNIMPLEMENTED to what is not here; the stubs call that abstract.
_Generations: Any = generation_pb2_grpc.GenerationServiceServicer
_Engines: Any = engine_pb2_grpc.EngineServiceServicer


class ImageWorker(_Generations, _Engines):  # type: ignore[misc]
    """Generations that go on when a test says so; `calls` counts the RPCs, `watching` the open watches."""

    def __init__(self, capacity: int = 1, chunk: int = 1024 * 1024) -> None:
        self.capacity = capacity
        self.chunk = chunk
        self.misbehaviour = Misbehaviour()
        self.calls: Counter[str] = Counter()
        self.watching: Counter[str] = Counter()
        self.specs: list[generation_pb2.GenerationSpec] = []
        self._states: dict[str, Watchable[generation_pb2.Generation]] = {}
        self._images: dict[str, list[bytes]] = {}
        self._engine = Watchable(engine_pb2.Engine(state=engines_pb2.SERVER_STATE_RUNNING, accepting=True))
        self._ticks = 0

    @asynccontextmanager
    async def serve(self, address: Address = ANYWHERE) -> AsyncIterator[Address]:
        """Answer until the block ends; it may be served again afterwards and knows what it knew."""
        self._engine = Watchable(self._engine.value)
        self._states = {key: Watchable(state.value) for key, state in self._states.items()}
        services = [
            rpc.Service(SERVICES[0], lambda server: engine_pb2_grpc.add_EngineServiceServicer_to_server(self, server)),
            rpc.Service(
                SERVICES[1], lambda server: generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, server)
            ),
        ]
        async with rpc.serve(address, services, self._end_watches) as real:
            yield real

    def add(self, spec: generation_pb2.GenerationSpec | None = None) -> str:
        """Accept a generation; returns its id."""
        generation_id = f"gen_{len(self._states) + 1}"
        now = self._tick()
        generation = generation_pb2.Generation(
            id=generation_id,
            state=generation_pb2.GENERATION_STATE_PENDING,
            spec=spec or generation_pb2.GenerationSpec(prompt="a tree"),
            create_time=now,
            update_time=now,
        )
        self._states[generation_id] = Watchable(generation)
        return generation_id

    def progress(self, generation_id: str, step: int, total: int = 4, image: int = 1, images: int = 1) -> None:
        """Go on to a step of the diffusion."""
        generation = self._next(generation_id, generation_pb2.GENERATION_STATE_IN_PROGRESS)
        generation.progress.CopyFrom(
            generation_pb2.Progress(
                stage=generation_pb2.STAGE_DIFFUSION,
                current_step=step,
                total_steps=total,
                percentage=100 * step / (total + 1),
                current_image=image,
                total_images=images,
            )
        )
        self._states[generation_id].set(generation)

    def finish(self, generation_id: str, *images: bytes) -> None:
        """Complete it."""
        generation = self._next(generation_id, generation_pb2.GENERATION_STATE_COMPLETE)
        generation.duration.FromMilliseconds(1500)
        generation.expire_time.FromNanoseconds(generation.update_time.ToNanoseconds() + 300 * SECOND)
        for index, data in enumerate(images):
            sha256 = hashlib.sha256(data).hexdigest()
            generation.images.add(
                index=index, seed=42 + index, width=64, height=64, size_bytes=len(data), sha256=sha256
            )
        self._images[generation_id] = list(images)
        self._states[generation_id].set(generation)

    def fail(self, generation_id: str, code: str, message: str) -> None:
        """Let it fail."""
        generation = self._next(generation_id, generation_pb2.GENERATION_STATE_ERROR)
        generation.error.code = code
        generation.error.message = message
        self._states[generation_id].set(generation)

    def forget(self, generation_id: str) -> None:
        """Let it expire."""
        self._states.pop(generation_id).close()

    def forget_all(self) -> None:
        """What a restart does."""
        for generation_id in list(self._states):
            self.forget(generation_id)

    def end_watches_of(self, generation_id: str) -> None:
        """End the streams of a generation that is not finished."""
        self._states[generation_id].close()
        self._states[generation_id] = Watchable(self._states[generation_id].value)

    def set_busy(self, busy: bool) -> None:
        """Say that the engine is in the middle of an image, or not."""
        engine = engine_pb2.Engine()
        engine.CopyFrom(self._engine.value)
        engine.busy = busy
        self._engine.set(engine)

    async def CreateGeneration(  # noqa: N802
        self, request: generation_pb2.CreateGenerationRequest, context: Context
    ) -> generation_pb2.CreateGenerationResponse:
        await self._called("CreateGeneration")
        running = [state for state in self._states.values() if state.value.state not in TERMINAL]
        if len(running) >= self.capacity:
            raise ServerBusyError("Server is busy generating another image", suggestion="Wait for it, or cancel it.")
        self.specs.append(request.spec)
        generation_id = self.add(request.spec)
        return generation_pb2.CreateGenerationResponse(generation=self._states[generation_id].value)

    async def GetGeneration(  # noqa: N802
        self, request: generation_pb2.GetGenerationRequest, context: Context
    ) -> generation_pb2.GetGenerationResponse:
        await self._called("GetGeneration")
        return generation_pb2.GetGenerationResponse(generation=self._get(request.generation_id).value)

    async def WatchGeneration(  # noqa: N802
        self, request: generation_pb2.WatchGenerationRequest, context: Context
    ) -> AsyncIterator[generation_pb2.WatchGenerationResponse]:
        await self._called("WatchGeneration")
        self.watching["WatchGeneration"] += 1
        try:
            async for generation in self._get(request.generation_id).watch():
                yield generation_pb2.WatchGenerationResponse(generation=generation)
                if generation.state in TERMINAL:
                    return
        finally:
            self.watching["WatchGeneration"] -= 1

    async def CancelGeneration(  # noqa: N802
        self, request: generation_pb2.CancelGenerationRequest, context: Context
    ) -> generation_pb2.CancelGenerationResponse:
        await self._called("CancelGeneration")
        state = self._get(request.generation_id)
        if state.value.state in {generation_pb2.GENERATION_STATE_COMPLETE, generation_pb2.GENERATION_STATE_ERROR}:
            raise AlreadyTerminalError("The generation is finished.")
        if state.value.state != generation_pb2.GENERATION_STATE_CANCELLED:
            state.set(self._next(request.generation_id, generation_pb2.GENERATION_STATE_CANCELLED))
        return generation_pb2.CancelGenerationResponse(generation=state.value)

    async def GetImage(  # noqa: N802
        self, request: generation_pb2.GetImageRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GetImageResponse]:
        await self._called("GetImage")
        generation = self._get(request.generation_id).value
        data = self._images[request.generation_id][request.index]
        yield generation_pb2.GetImageResponse(image=generation.images[request.index])
        for at in range(0, len(data), self.chunk):
            yield generation_pb2.GetImageResponse(chunk=data[at : at + self.chunk])

    async def GetEngine(  # noqa: N802
        self, request: engine_pb2.GetEngineRequest, context: Context
    ) -> engine_pb2.GetEngineResponse:
        await self._called("GetEngine")
        return engine_pb2.GetEngineResponse(engine=self._engine.value)

    async def WatchEngine(  # noqa: N802
        self, request: engine_pb2.WatchEngineRequest, context: Context
    ) -> AsyncIterator[engine_pb2.WatchEngineResponse]:
        await self._called("WatchEngine")
        self.watching["WatchEngine"] += 1
        try:
            async for engine in self._engine.watch():
                yield engine_pb2.WatchEngineResponse(engine=engine)
        finally:
            self.watching["WatchEngine"] -= 1

    async def _called(self, name: str) -> None:
        self.calls[name] += 1
        await self.misbehaviour.happen(name)

    def _get(self, generation_id: str) -> Watchable[generation_pb2.Generation]:
        if generation_id not in self._states:
            raise NotFoundError(f"There is no generation {generation_id!r}.")
        return self._states[generation_id]

    def _next(self, generation_id: str, state: generation_pb2.GenerationState.ValueType) -> generation_pb2.Generation:
        generation = generation_pb2.Generation()
        generation.CopyFrom(self._states[generation_id].value)
        generation.state = state
        generation.update_time.CopyFrom(self._tick())
        return generation

    def _tick(self) -> Timestamp:
        self._ticks += 1
        stamp = Timestamp()
        stamp.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC))
        stamp.FromNanoseconds(stamp.ToNanoseconds() + self._ticks * SECOND)
        return stamp

    def _end_watches(self) -> None:
        self._engine.close()
        for state in self._states.values():
            state.close()


async def _main(images: int, image_bytes: int) -> None:
    worker = ImageWorker()
    generation_id = worker.add()
    worker.finish(generation_id, *[png(image_bytes)] * images)
    async with worker.serve() as address:
        print(address, generation_id, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--image-bytes", type=int, default=12_000)
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.images, arguments.image_bytes))
