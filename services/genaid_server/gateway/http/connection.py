"""The HTTP connections: how many, how long they may be silent, and what answers a request that is no HTTP."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from genaid_server.gateway.http.access import AccessLogger, log
from genaid_server.gateway.http.errors import ApiError, internal, invalid

SILENCE: Final = 60.0  # seconds for a request's headers to come, and between requests
REFUSED_SILENCE: Final = 5.0  # the same, for a connection over the limit
LINGERING: Final = 2.0  # seconds that the rest of a refused body is read, so that its sender sees the answer
HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Server": "genaid"}
JSON_HEADERS: Final = {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store"}


def error_response(error: ApiError) -> web.Response:
    """The HTTP answer of an error."""
    response = web.Response(status=error.status, body=error.body(), headers={**JSON_HEADERS, **error.headers})
    if error.close:
        response.force_close()
    return response


class Connection(web.RequestHandler):
    """One connection; `over_limit` says that its requests are to be refused."""

    __slots__ = ("_give_up", "_limit", "_server", "over_limit")

    def __init__(self, server: web.Server, limit: int) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=SILENCE,
            lingering_time=LINGERING,
            access_log=log,
            access_log_class=AccessLogger,
            auto_decompress=False,
        )
        self._server = server
        self._limit = limit
        self._give_up: asyncio.TimerHandle | None = None
        self.over_limit = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection in (called by asyncio)."""
        self.over_limit = len(self._server.connections) >= self._limit
        if self.over_limit and isinstance(transport, asyncio.WriteTransport):
            self._give_up = asyncio.get_running_loop().call_later(REFUSED_SILENCE, transport.abort)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count the connection out (called by asyncio)."""
        if self._give_up is not None:
            self._give_up.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what no handler answered: mostly malformed HTTP (called by aiohttp)."""
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionError("The response has begun: only closing the connection can tell the client.")
        if status >= 500:
            self.logger.error("a request failed unexpectedly", exc_info=exc)
        error = internal() if status >= 500 else invalid("Malformed HTTP request")
        response = error_response(error)
        response.headers.update(HEADERS)
        response.force_close()
        return response


def factory(server: web.Server, limit: int) -> Callable[[], Any]:
    """What asyncio makes the protocol of each connection with; `limit` is how many are served at a time."""
    return lambda: Connection(server, limit)
