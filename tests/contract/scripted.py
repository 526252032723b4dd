"""A real server in this process whose services do what a test scripts: answer, fail, hang, or fall silent."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_status import rpc_status

from genaid.image.v1 import engine_pb2, generation_pb2
from genaid.resource.v1 import downloads_pb2, llm_pb2, models_pb2, orchestration_pb2, system_pb2
from genaid_server.kit.errors import DomainError
from genaid_server.kit.rpc import ErrorInterceptor

SERVICES = [
    models_pb2.DESCRIPTOR.services_by_name["ModelService"],
    downloads_pb2.DESCRIPTOR.services_by_name["DownloadService"],
    system_pb2.DESCRIPTOR.services_by_name["SystemService"],
    llm_pb2.DESCRIPTOR.services_by_name["LlmService"],
    orchestration_pb2.DESCRIPTOR.services_by_name["OrchestrationService"],
    engine_pb2.DESCRIPTOR.services_by_name["EngineService"],
    generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
]


class Flag(Enum):
    """Misbehaviour that needs no facts."""

    HANG = auto()  # never answers


type Step = Message | DomainError | status_pb2.Status | Flag | Callable[[Any], Message]
"""An answer, or how to make it from the request; an error that the core raises; a raw status; or a flag."""


@dataclass
class Script:
    """What the services do, by method name, and what they saw. A method without steps answers with nothing set."""

    steps: dict[str, Sequence[Step]] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    deadlines: dict[str, float | None] = field(default_factory=dict)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(
        self, method: MethodDescriptor, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Message]:
        """One call: its answers, in order."""
        received = type(request)()
        received.CopyFrom(request)
        self.requests.append((method.name, received))
        self.deadlines[method.name] = context.time_remaining()
        for step in self.steps.get(method.name, ()):
            match step:
                case Flag.HANG:
                    await self._hang()
                case DomainError():
                    raise step
                case status_pb2.Status():
                    await context.abort_with_status(rpc_status.to_status(step))
                case Message():
                    yield step
                case _:
                    assert callable(step)
                    yield step(request)

    async def _hang(self) -> None:
        self.hanging.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@asynccontextmanager
async def serve(script: Script, at: str = "127.0.0.1:0") -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """Serve a script with the services' own error mapping; yields the address and the server."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
    for service in SERVICES:
        handlers = {method.name: _handler(script, method) for method in service.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    port = server.add_insecure_port(at)
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(None)


def _handler(script: Script, method: MethodDescriptor) -> Any:
    answer = GetMessageClass(method.output_type)

    async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
        async for message in script.play(method, request, context):
            yield message

    async def unary(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        async for message in script.play(method, request, context):
            return message
        return answer()

    make: Any = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(
        stream if method.server_streaming else unary,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=answer.SerializeToString,
    )
