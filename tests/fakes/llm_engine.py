"""A resource manager that says of its LLM engine what a test says, and an engine that answers what a test scripts."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc.aio
from aiohttp import web

from genaid.common.v1 import engines_pb2
from genaid.resource.v1 import llm_pb2, llm_pb2_grpc
from genaid_server.kit import rpc
from genaid_server.kit.address import Address
from genaid_server.kit.errors import DomainError
from genaid_server.kit.watchable import Watchable

type Context = grpc.aio.ServicerContext[Any, Any]
type Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

ANYWHERE: Final = Address("127.0.0.1", 0)

# The generated base answers UNIMPLEMENTED to what is not here; the stubs call that abstract.
_Base: Any = llm_pb2_grpc.LlmServiceServicer


class LlmManager(_Base):  # type: ignore[misc]
    """Knows an engine; `calls` counts the RPCs, and `refusal` is what GetLlm and WatchLlm raise."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.refusal: DomainError | None = None
        self._llm = Watchable(llm_pb2.Llm(state=engines_pb2.SERVER_STATE_STOPPED))

    def set(
        self, state: str, *, at: Address | None = None, generation: int = 1, error: str = "", offloaded: bool = False
    ) -> None:
        """The engine is now in a state, such as RUNNING; where it has a process, it listens `at` an address."""
        llm = llm_pb2.Llm(
            state=engines_pb2.ServerState.Value(f"SERVER_STATE_{state}"),
            model_id="tiny",
            generation=generation,
            last_error=error,
            offloaded=offloaded,
        )
        if at is not None:
            llm.host, llm.port = at.host, at.port
        self._llm.set(llm)

    @asynccontextmanager
    async def serve(self, address: Address = ANYWHERE) -> AsyncIterator[Address]:
        """Answer until the block ends; it may be served again afterwards and knows what it knew."""
        self._llm = Watchable(self._llm.value)
        service = rpc.Service(
            "genaid.resource.v1.LlmService",
            lambda server: llm_pb2_grpc.add_LlmServiceServicer_to_server(self, server),
        )
        async with rpc.serve(address, [service], lambda: self._llm.close()) as real:
            yield real

    async def GetLlm(  # noqa: N802
        self, request: llm_pb2.GetLlmRequest, context: Context
    ) -> llm_pb2.GetLlmResponse:
        """The engine now."""
        self.calls["GetLlm"] += 1
        if self.refusal is not None:
            raise self.refusal
        return llm_pb2.GetLlmResponse(llm=self._llm.value)

    async def WatchLlm(  # noqa: N802
        self, request: llm_pb2.WatchLlmRequest, context: Context
    ) -> AsyncIterator[llm_pb2.WatchLlmResponse]:
        """The engine and its changes."""
        self.calls["WatchLlm"] += 1
        if self.refusal is not None:
            raise self.refusal
        async for llm in self._llm.watch():
            yield llm_pb2.WatchLlmResponse(llm=llm)


@asynccontextmanager
async def engine(answer: Answer, address: Address = ANYWHERE) -> AsyncIterator[Address]:
    """An HTTP server that answers every request with `answer`, until the block ends."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(request)

    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address.host, address.port)
        await site.start()
        yield address.with_port(int(runner.addresses[0][1]))
    finally:
        await runner.cleanup()
