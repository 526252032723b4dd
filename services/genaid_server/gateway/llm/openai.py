"""The OpenAI dialect for language models: requests go to the LLM engine, and its answers come back, as they are."""

import asyncio
import io
import json
import logging
import time
from typing import Final

import aiohttp
from aiohttp import hdrs, web

from genaid_client import Llm
from genaid_server.gateway.http.bodies import read_object
from genaid_server.gateway.http.connection import JSON_HEADERS
from genaid_server.gateway.http.errors import BACKEND_ERROR, SERVER_ERROR, ApiError
from genaid_server.gateway.llm.mirror import LlmMirror, NothingRunsError

log = logging.getLogger(__name__)

PREFIX: Final = "/openai"
POSTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MODELS: Final = "/v1/models"
CONNECT_SECONDS: Final = 5.0
MAX_LOST: Final = 2
"""Engines that may die on one request: it may be the request that kills them."""

_ASKED_ALONG: Final = (hdrs.CONTENT_TYPE, hdrs.ACCEPT, hdrs.AUTHORIZATION)
_ANSWERED_ALONG: Final = (hdrs.CONTENT_TYPE, hdrs.CONTENT_LENGTH, hdrs.CACHE_CONTROL)
_NO_MODELS: Final = b'{"object":"list","data":[]}'


def open_session() -> aiohttp.ClientSession:
    """What the engine is asked with; close it, or use it in an `async with`.

    Each request has a connection of its own: the engine spends a thread on a connection even while that is silent, and
    one that it closes at the moment of the next request would look as if the engine had died.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=(hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.USER_AGENT),
        trust_env=False,
    )


def is_openai(path: str) -> bool:
    """Whether the callers of a path expect errors as the OpenAI API has them."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


class LlmRelay:
    """Passes requests on to the LLM engine. `hold_seconds` is how long one waits at most for an engine to run."""

    def __init__(self, mirror: LlmMirror, session: aiohttp.ClientSession, hold_seconds: float) -> None:
        self._mirror, self._session, self._hold_seconds = mirror, session, hold_seconds

    async def post(self, request: web.Request, path: str, body: bytes) -> web.StreamResponse:
        """Answer a request with what the engine answers at `path`. Raises ApiError where it never runs."""
        asked = read_object(body)  # what is in it, the engine checks
        return await self._pass_on(request, path, body, asked.get("id_slot"))

    async def models(self, request: web.Request) -> web.StreamResponse:
        """Answer with the engine's models; none where none runs, and the one that comes back where it has made room."""
        llm = await self._mirror.present()
        if llm.offloaded:
            return web.Response(body=_list_of(llm.model_id), headers=JSON_HEADERS)
        try:
            return await self._pass_on(request, MODELS, None)
        except NothingRunsError:
            return web.Response(body=_NO_MODELS, headers=JSON_HEADERS)

    def end_waiting(self) -> None:
        """Refuse every request that waits for an engine."""
        self._mirror.end_waiting()

    async def _pass_on(
        self, request: web.Request, path: str, body: bytes | None, slot: object = None
    ) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        patience, lost = self._hold_seconds, 0
        failed: Llm | None = None
        while True:
            began = loop.time()
            llm = await self._mirror.serving(patience, failed)
            patience -= loop.time() - began
            try:
                answer = await self._ask(llm, request, path, body)
            except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
                log.info("the LLM engine can't be reached: %s", error)
            except aiohttp.ClientConnectionError as error:
                log.warning("the LLM engine was lost before it answered: %s", error)
                began = loop.time()
                lost += not await self._mirror.made_room(llm)
                patience -= loop.time() - began
                if lost == MAX_LOST:
                    raise _deadly() from error
            except aiohttp.ClientError as error:
                log.exception("the LLM engine's answer makes no sense")
                raise _nonsense() from error
            else:
                # The engine numbers its tasks and chooses the slot by itself; only a caller that asks for one knows it.
                chosen = f", slot {slot}" if isinstance(slot, int) else ""
                log.debug("%s: the LLM engine (%s, life %d%s) takes it", path, llm.model_id, llm.generation, chosen)
                async with answer:
                    return await _relay(request, answer)
            failed = llm

    async def _ask(self, llm: Llm, request: web.Request, path: str, body: bytes | None) -> aiohttp.ClientResponse:
        """The head of the engine's answer. Raises aiohttp.ClientError."""
        return await self._session.request(
            hdrs.METH_GET if body is None else hdrs.METH_POST,
            f"{llm.base_url}{path}",
            headers={name: request.headers[name] for name in _ASKED_ALONG if name in request.headers},
            data=None if body is None else io.BytesIO(body),
            allow_redirects=False,
        )


async def _relay(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Hand the answer on as it arrives. Raises ConnectionError, which ends the caller's connection, where it breaks."""
    headers = {hdrs.CACHE_CONTROL: "no-store"}
    headers |= {name: answer.headers[name] for name in _ANSWERED_ALONG if name in answer.headers}
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    await response.prepare(request)
    if request.method == hdrs.METH_HEAD:
        return response
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except aiohttp.ClientError as error:
        raise ConnectionResetError("The answer broke off: only closing the connection can tell the client") from error
    return response


def _list_of(model_id: str) -> bytes:
    """What the OpenAI API says of one model; llama-server as well calls it as old as the answer."""
    model = {"id": model_id, "object": "model", "created": int(time.time()), "owned_by": "llamacpp"}
    return json.dumps({"object": "list", "data": [model]}).encode()


def no_engine() -> ApiError:
    """The gateway was not told who keeps the LLM engine."""
    message = (
        "This gateway was started without the resource manager, which runs the LLM engine. Run all services: genaid up"
    )
    return ApiError(503, SERVER_ERROR, message)


def _deadly() -> ApiError:
    message = "The LLM engine crashed on this request, twice. See genaid llm logs"
    # The header is what keeps OpenAI's SDKs from trying it a third time.
    return ApiError(500, BACKEND_ERROR, message, headers={"X-Should-Retry": "false"})


def _nonsense() -> ApiError:
    return ApiError(500, BACKEND_ERROR, "The LLM engine's answer was not valid HTTP. See genaid llm logs")
