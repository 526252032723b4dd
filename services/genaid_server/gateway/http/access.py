"""The access log: one line for each request, whatever became of it."""

import logging
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from genaid_server.kit.log import CheapRecord

log = logging.getLogger(__name__)

_LIKE: Final = vars(log.makeRecord(log.name, logging.INFO, __file__, 0, "%s %s %s %.1f ms %d B", (), None))

REQUEST_ID: Final = web.RequestKey("request_id", str)
RESPONSE: Final = web.RequestKey("response", web.StreamResponse)
"""What a request was answered with, as soon as the head of that is on its way."""


class AccessLogger(AbstractAccessLogger):
    """Logs method, path, status, time in ms, bytes of the answer, head included; no query: it may hold secrets."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log a request that was answered after `time` seconds (called by aiohttp)."""
        _log(request, str(response.status), time)

    @property
    def enabled(self) -> bool:
        """Whether it is worth while (asked by aiohttp, once a connection)."""
        return log.isEnabledFor(logging.INFO)


def log_cut_off(request: web.BaseRequest, time: float) -> None:
    """Log a request whose answer did not come to its end, because its reader left or an engine was lost."""
    response = request.get(RESPONSE)
    _log(request, f"{response.status if response is not None else '-'} cut off", time)


def _log(request: web.BaseRequest, status: str, time: float) -> None:
    if log.isEnabledFor(logging.INFO):
        size = request.writer.output_size
        args = (request.method, request.path, status, time * 1000, size)
        log.handle(CheapRecord(_LIKE, args, request.get(REQUEST_ID, "")))
