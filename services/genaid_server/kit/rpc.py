"""A gRPC server as every service runs it: errors, health, reflection, and an end in order.

The end: health says NOT_SERVING, watches are ended, calls in flight finish or are cut off after a grace, and only
then may the owner stop its children (they are outside of the server's block).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from genaid_client.tracing import METADATA_KEY, accepted_request_id, set_request_id
from genaid_server.kit.address import Address, port_in_use
from genaid_server.kit.errors import DomainError, ErrorKind
from genaid_server.kit.tasks import to_the_end

log = logging.getLogger(__name__)

DOMAIN: Final = "genaid"
STOP_GRACE: Final = 1.0  # seconds for calls in flight once the watches have ended
# Bytes. A client takes 8 KiB of trailers by default, and a message is in them twice, once percent-encoded.
MAX_TEXT: Final = 1500
MAX_FACT: Final = 200
MAX_MESSAGE: Final = 4 * 1024 * 1024

CODE_BY_KIND: Final = {
    ErrorKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorKind.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorKind.BUSY: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
}
LEVEL_BY_KIND: Final = {
    ErrorKind.INVALID: logging.DEBUG,
    ErrorKind.NOT_FOUND: logging.DEBUG,
    ErrorKind.DATA_LOSS: logging.WARNING,
    ErrorKind.INTERNAL: logging.WARNING,
}
"""How grave it is in the log that a call is refused: INFO unless the caller is wrong, or something is broken."""


def rich_status(error: DomainError) -> status_pb2.Status:
    """The google.rpc.Status of an error, with one ErrorInfo; long texts lose their middle."""
    facts = {name: _shortened(fact, MAX_FACT) for name, fact in error.facts.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
    detail = any_pb2.Any()
    detail.Pack(info)
    number: int = CODE_BY_KIND[error.kind].value[0]
    return status_pb2.Status(code=number, message=_shortened(error.message, MAX_TEXT), details=[detail])


def _shortened(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) > limit:
        data = data[: limit // 3] + " … ".encode() + data[-limit // 2 :]
    return data.decode("utf-8", "ignore")


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what a servicer raises into a status; what is not understood becomes INTERNAL without internals."""

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Wrap the handler of one call (called by grpc)."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/genaid."):
            return handler
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(_guarded(handler.unary_unary, method), **codec)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(_guarded_stream(handler.unary_stream, method), **codec)
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(_guarded(handler.stream_unary, method), **codec)
        return grpc.stream_stream_rpc_method_handler(_guarded_stream(handler.stream_stream, method), **codec)


def _guarded(behaviour: Any, method: str) -> Any:
    async def call(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        async with _outermost(method, context):
            return await behaviour(request, context)

    return call


def _guarded_stream(behaviour: Any, method: str) -> Any:
    async def call(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[Any]:
        async with _outermost(method, context), contextlib.aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                yield response

    return call


@asynccontextmanager
async def _outermost(method: str, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[None]:
    """The outermost frame of a call, which has a task of its own: its request id, its errors, its line in the log."""
    offered = (value for key, value in context.invocation_metadata() or () if key == METADATA_KEY)
    set_request_id(accepted_request_id(str(next(offered, ""))))
    began, how = time.perf_counter(), "cut off"
    try:
        yield
        how = "ok"
    except DomainError as error:
        how = error.reason
        cause = error.message.partition("\n")[0]  # below are lines of an engine's log, which has them already
        log.log(LEVEL_BY_KIND.get(error.kind, logging.INFO), "%s refused: %s: %s", method, how, cause)
        await context.abort_with_status(rpc_status.to_status(rich_status(error)))
    except grpc.aio.AbortError:
        raise
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        await _abort_internal(context, method)
    except Exception:  # noqa: BLE001 - logged, and told as INTERNAL
        await _abort_internal(context, method)
    finally:
        log.debug("%s: %s, %.1f ms", method, how, (time.perf_counter() - began) * 1000)


def _is_cancelled() -> bool:
    """Whether it is the call that was cancelled, not what it waited for: then its client would wait for ever."""
    call = asyncio.current_task()
    return call is None or call.cancelling() > 0


async def _abort_internal(context: "grpc.aio.ServicerContext[Any, Any]", method: str) -> None:
    log.exception("%s failed unexpectedly", method)
    await context.abort(grpc.StatusCode.INTERNAL, "Internal error; the service's log has the details.")


@dataclass(frozen=True)
class Service:
    """One service of a server: its full name, and the generated function that adds the servicer."""

    name: str
    add: Callable[[grpc.aio.Server], None]


@asynccontextmanager
async def serve(
    address: Address, services: Sequence[Service], end_watches: Callable[[], None]
) -> AsyncIterator[Address]:
    """Serve until the block ends; yields the address with the real port.

    `end_watches` is called between NOT_SERVING and stopping, so that open streams don't hold the server up. The end
    is complete even if the caller is cancelled meanwhile. Raises PortInUseError.
    """
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor()],
        options=[
            ("grpc.so_reuseport", 0),  # two servers would share a port silently
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_metadata_size", 64 * 1024),
        ],
    )
    for service in services:
        service.add(server)
    names = [service.name for service in services]
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    try:
        port = server.add_insecure_port(str(address))
    except RuntimeError as error:
        raise port_in_use(address) from error
    if port == 0:
        raise port_in_use(address)
    await server.start()
    for name in ["", *names]:
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield address.with_port(port)
    finally:
        await to_the_end(_end(server, checks, end_watches))


async def _end(server: grpc.aio.Server, checks: health.aio.HealthServicer, end_watches: Callable[[], None]) -> None:
    await checks.enter_graceful_shutdown()
    try:
        end_watches()
    finally:
        await server.stop(STOP_GRACE)
