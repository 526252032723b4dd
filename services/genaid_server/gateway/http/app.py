"""The HTTP of the documented API: routes, bodies, who may call, and errors as JSON."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final

from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError

from genaid_client import GenaidError, Generation, GenerationSpec, GenerationState, ImageInfo
from genaid_client.tracing import accepted_request_id, set_request_id
from genaid_server.gateway.config import GatewayConfig
from genaid_server.gateway.http import access
from genaid_server.gateway.http.connection import HEADERS, JSON_HEADERS, Connection, error_response
from genaid_server.gateway.http.errors import (
    NOT_FOUND,
    RETRY_AFTER,
    SERVER_BUSY,
    ApiError,
    from_client,
    generation_not_found,
    image_not_found,
    internal,
    invalid,
)
from genaid_server.gateway.http.guard import is_loopback_host, is_trusted_origin
from genaid_server.gateway.images import rest
from genaid_server.gateway.images.mirror import Mirror
from genaid_server.gateway.llm import openai

log = logging.getLogger(__name__)

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_SECONDS: Final = 30.0  # for a request's body to arrive
REQUEST_ID_HEADER: Final = "X-Request-Id"
HEARTBEAT_SECONDS: Final = 15.0  # between signs of life on a silent event stream

_GENERATION_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,3}")
# The star is for what SDKs say of themselves; it covers everything but Authorization, and old browsers don't know it.
_CORS_HEADERS: Final = "Authorization, Content-Type, Cache-Control, If-None-Match, Last-Event-ID, X-Request-Id, *"
_CORS_EXPOSED: Final = "ETag, Location, Retry-After, X-Request-Id"
_NO_STORE: Final = {"Cache-Control": "no-store"}


def build(
    mirror: Mirror, relay: openai.LlmRelay | None, config: GatewayConfig, heartbeat: float = HEARTBEAT_SECONDS
) -> web.Application:
    """The application; `heartbeat` is in seconds. Without a `relay` requests to language models are refused."""
    api = _Api(mirror, relay, config, heartbeat)
    app = web.Application(middlewares=[api.trace, api.answer_errors], client_max_size=config.max_body_bytes)
    for path, handlers in api.routes().items():
        _add_resource(app, path, handlers)
    app.router.add_route(hdrs.METH_ANY, "/{path:.*}", _no_such_route, expect_handler=_expect_nothing)
    app.on_response_prepare.append(api.add_headers)
    app.on_shutdown.append(api.end_streams)
    return app


def _add_resource(app: web.Application, path: str, handlers: dict[str, Handler]) -> None:
    if hdrs.METH_GET in handlers:
        handlers = {**handlers, hdrs.METH_HEAD: handlers[hdrs.METH_GET]}
    allowed = ", ".join(sorted({*handlers, hdrs.METH_OPTIONS}))

    async def options(request: web.Request) -> web.StreamResponse:
        return _preflight(request, allowed)

    async def not_allowed(request: web.Request) -> web.StreamResponse:
        error = invalid(f"{request.path} takes {allowed}", 405)
        error.headers["Allow"] = allowed
        raise error

    resource = app.router.add_resource(path)
    routes = {**handlers, hdrs.METH_OPTIONS: options, hdrs.METH_ANY: not_allowed}
    for method, handler in routes.items():
        resource.add_route(method, handler, expect_handler=_expect_nothing)


async def _expect_nothing(_: web.Request) -> None:
    """Leave `Expect: 100-continue` to `_read_body`, which knows whether the body is wanted."""


async def _no_such_route(_: web.Request) -> web.StreamResponse:
    raise _not_found()


# Pydantic, on which these two rest, is imported when they are first needed: it would make every start longer.
def _read_spec(body: bytes) -> GenerationSpec:
    from genaid_server.gateway.images import generation_request

    return generation_request.read_spec(body)


def _description() -> bytes:
    from genaid_server.gateway.images import openapi

    return openapi.document()


def _not_found() -> ApiError:
    return ApiError(404, NOT_FOUND, "Not found")


def _preflight(request: web.Request, allowed: str) -> web.Response:
    response = web.Response(status=204, headers={"Allow": allowed})
    if hdrs.ORIGIN in request.headers and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        response.headers["Access-Control-Allow-Methods"] = allowed
        response.headers["Access-Control-Allow-Headers"] = _CORS_HEADERS
        response.headers["Access-Control-Max-Age"] = "600"
        if request.headers.get("Access-Control-Request-Private-Network") == "true":
            response.headers["Access-Control-Allow-Private-Network"] = "true"
    return response


class _Api:
    """The handlers, and what stands around them."""

    def __init__(self, mirror: Mirror, relay: openai.LlmRelay | None, config: GatewayConfig, heartbeat: float) -> None:
        self._mirror = mirror
        self._llm_relay = relay
        self._allowed_origins = frozenset(config.allowed_origins)
        self._max_body_bytes = config.max_body_bytes
        self._heartbeat = heartbeat

    def routes(self) -> dict[str, dict[str, Handler]]:
        """Every path, with a handler for each of its methods."""
        generation = "/v1/images/generations/{id}"
        return {
            "/v1/images/generations": {hdrs.METH_POST: self.create},
            generation: {hdrs.METH_GET: self.poll, hdrs.METH_DELETE: self.cancel},
            generation + "/images/{n}": {hdrs.METH_GET: self.image},
            generation + "/events": {hdrs.METH_GET: self.events},
            "/health": {hdrs.METH_GET: self.health},
            "/openapi.json": {hdrs.METH_GET: self.describe},
            **{openai.PREFIX + path: {hdrs.METH_POST: self._passing_on(path)} for path in openai.POSTS},
            openai.PREFIX + openai.MODELS: {hdrs.METH_GET: self.models},
        }

    async def create(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/images/generations."""
        spec = _read_spec(await self._read_body(request))
        generation = await self._mirror.create(spec)
        location = f"/v1/images/generations/{generation.id}"
        return web.Response(status=201, body=rest.created(generation), headers={**JSON_HEADERS, "Location": location})

    async def poll(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/images/generations/{id}."""
        return web.Response(body=await self._mirror.answer(_generation_id(request)), headers=JSON_HEADERS)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """DELETE /v1/images/generations/{id}."""
        generation = await self._mirror.cancel(_generation_id(request))
        return web.Response(body=rest.cancelled(generation.id), headers=JSON_HEADERS)

    async def image(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/images/generations/{id}/images/{n}."""
        generation = await self._mirror.get(_generation_id(request))
        info = _image_info(generation, request.match_info["n"])
        headers = {
            "ETag": f'"{info.sha256}"',
            # It may be kept, but not used without asking: the generation expires here.
            "Cache-Control": "private, no-cache",
            "Content-Disposition": f'inline; filename="{generation.id}-{info.index}.png"',
        }
        known = request.if_none_match or ()
        if any(tag.value in {info.sha256, "*"} for tag in known):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = "image/png"
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers={**headers, "Content-Length": str(info.size_bytes)})
        return web.Response(body=await self._mirror.image(generation.id, info.index), headers=headers)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/images/generations/{id}/events."""
        generation = await self._mirror.get(_generation_id(request))
        if generation.state.terminal and request.headers.get("Last-Event-ID") == generation.state:
            # An EventSource reconnects after every end; this is how it is told that there is no more.
            return web.Response(status=204, headers=_NO_STORE)
        headers = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", **_NO_STORE}
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers=headers)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        beat = asyncio.create_task(_beat(response, self._heartbeat))
        try:
            await self._stream(response, generation.id)
        except ConnectionError:
            log.debug("the reader of %s's events left", generation.id)
        finally:
            beat.cancel()
            await asyncio.wait((beat,))
        return response

    async def _stream(self, response: web.StreamResponse, generation_id: str) -> None:
        try:
            async with aclosing(self._mirror.watch(generation_id)) as states:
                async for state in states:
                    await response.write(rest.event(state))
        except GenaidError as error:
            await response.write(rest.error_event(from_client(error)))

    async def health(self, _: web.Request) -> web.StreamResponse:
        """GET /health."""
        return web.Response(body=rest.health(await self._mirror.busy()), headers=JSON_HEADERS)

    async def describe(self, _: web.Request) -> web.StreamResponse:
        """GET /openapi.json."""
        return web.Response(body=_description(), headers=JSON_HEADERS)

    def _passing_on(self, path: str) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            return await self._relay.post(request, path, await self._read_body(request))

        return handler

    async def models(self, request: web.Request) -> web.StreamResponse:
        """GET /openai/v1/models."""
        return await self._relay.models(request)

    @property
    def _relay(self) -> openai.LlmRelay:
        if self._llm_relay is None:
            raise openai.no_engine()
        return self._llm_relay

    @web.middleware
    async def trace(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give the request its id; log it where aiohttp won't, because it has no end that can be sent."""
        request[access.REQUEST_ID] = request_id = accepted_request_id(request.headers.get(REQUEST_ID_HEADER))
        set_request_id(request_id)  # for this request alone, whose task has a context of its own
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await handler(request)
        except BaseException:
            access.log_cut_off(request, loop.time() - began)
            raise

    @web.middleware
    async def answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse who may not call; answer what goes wrong in JSON."""
        try:
            self._admit(request)
            return await handler(request)
        except ApiError as error:
            answer = error
        except GenaidError as error:
            answer = from_client(error)
            if answer.status == 500:
                log.error("%s %s failed: %s: %s", request.method, request.path, error.reason, error.message)
        except web.HTTPNotFound:  # from aiohttp itself, for a target that is no path
            answer = _not_found()
        except ConnectionError:
            raise
        except Exception:  # the outermost frame of a request: logged, and told without internals
            log.exception("%s %s failed unexpectedly", request.method, request.path)
            if request.writer.output_size > 0:
                raise
            answer = internal()
        answer.openai = openai.is_openai(request.path)
        return error_response(answer)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what every answer carries."""
        request[access.RESPONSE] = response
        response.headers.update(HEADERS)
        response.headers[REQUEST_ID_HEADER] = request[access.REQUEST_ID]
        response.headers["Vary"] = hdrs.ORIGIN
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and is_trusted_origin(origin, self._allowed_origins):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _CORS_EXPOSED

    async def end_streams(self, _: web.Application) -> None:
        """Let event streams and requests that wait end, which would hold the shutdown up."""
        self._mirror.end_watches()
        if self._llm_relay is not None:
            self._llm_relay.end_waiting()

    def _admit(self, request: web.Request) -> None:
        headers = request.headers
        if not is_loopback_host(headers.get(hdrs.HOST, "")):
            raise _forbidden("The Host header must name this machine: use http://127.0.0.1 or http://localhost")
        origin = headers.get(hdrs.ORIGIN)
        if origin is not None:
            if not is_trusted_origin(origin, self._allowed_origins):
                raise _forbidden("This origin may not call; gateway.allowed_origins in the configuration lists others")
        elif headers.get("Sec-Fetch-Site") == "cross-site":
            raise _forbidden("A page of another site may not load this without asking: use fetch, which sends Origin")
        if isinstance(request.protocol, Connection) and request.protocol.over_limit:
            raise ApiError(
                503, SERVER_BUSY, "Too many connections are open; close some", headers=RETRY_AFTER, close=True
            )

    async def _read_body(self, request: web.Request) -> bytes:
        if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
            raise invalid("The body must be declared as Content-Type: application/json", 415, close=True)
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            raise invalid("The body must not be compressed", 415, close=True)
        too_large = invalid(f"The body must be at most {self._max_body_bytes} bytes", 413, close=True)
        if (request.content_length or 0) > self._max_body_bytes:
            raise too_large
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= (1, 1):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise too_large from None
        except TimeoutError:
            raise invalid(f"The body did not arrive within {BODY_SECONDS:.0f} s", 408, close=True) from None
        except (web.RequestPayloadError, HttpProcessingError):
            raise invalid("The body is malformed HTTP", close=True) from None


async def _beat(response: web.StreamResponse, seconds: float) -> None:
    """Show the reader that the connection is alive, and find out whether the reader is."""
    try:
        while True:
            await asyncio.sleep(seconds)
            await response.write(b": alive\n\n")
    except ConnectionError:
        log.debug("the reader of an event stream left")


def _forbidden(message: str) -> ApiError:
    return invalid(message, 403, close=True)


def _generation_id(request: web.Request) -> str:
    generation_id = request.match_info["id"]
    if not _GENERATION_ID.fullmatch(generation_id):
        raise generation_not_found()
    return generation_id


def _image_info(generation: Generation, index: str) -> ImageInfo:
    if not generation.state.terminal:
        raise ApiError(503, SERVER_BUSY, "The generation is not complete yet", headers=RETRY_AFTER)
    if generation.state is GenerationState.COMPLETE and _INDEX.fullmatch(index):
        for info in generation.images:
            if info.index == int(index):
                return info
    raise image_not_found()
