"""Answers of the LLM engine, as they are written: its own HTTP API, as far as a conversation needs it."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

import aiohttp
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine

from genaid_client import BackendError, ConnectionFailedError, GenaidError, InvalidRequestError, ServerBusyError
from genaid_server.kit.address import Address

CONNECT_SECONDS: Final = 10.0
MAX_LINE: Final = 2**20
"""Bytes that a line of an answer may have; a token has a few."""
LOGS: Final = "genaid llm logs tells why."


@dataclass(frozen=True)
class ChatEndpoint:
    """Where an engine serves; `api_key` is empty where it asks for none."""

    host: str
    port: int
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Part:
    """What one piece of an answer brings. The reason why it ends, and its timings, come last."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    timings: Mapping[str, Any] = field(default_factory=dict)


def stream_answer(endpoint: ChatEndpoint, request: Mapping[str, Any]) -> Generator[Part, None, None]:
    """Ask for a chat completion, and yield its parts as they are written. Leaving the iterator stops the engine's work.

    There is no deadline: to read a long prompt takes minutes on a slow machine. Raises ConnectionFailedError where
    nothing answers; InvalidRequestError for what the engine refuses; ServerBusyError while it loads; BackendError where
    it fails, stops in the middle, or writes what is no chat completion; KeyboardInterrupt, also while it waits.
    """
    body = json.dumps({**request, "stream": True}, ensure_ascii=False).encode()
    with asyncio.Runner() as runner:  # one event loop for all parts, which runs only while one is waited for
        parts = _stream(endpoint, body)

        async def following() -> Part | None:
            return await anext(parts, None)

        try:
            while (part := runner.run(following())) is not None:
                yield part
        finally:
            runner.run(parts.aclose())


async def _stream(endpoint: ChatEndpoint, body: bytes) -> AsyncGenerator[Part, None]:
    async with _open_session() as session, await _ask(session, endpoint, body) as response:
        if response.status != 200:
            raise _refusal(response.status, await _beginning(response))
        async with aclosing(_lines(response)) as lines:
            async for line in lines:
                name, _, data = line.partition(b":")
                if name != b"data" or not (data := data.strip()):
                    continue
                if data == b"[DONE]":
                    return
                yield _part(data)
    raise BackendError(f"The LLM engine stopped in the middle of its answer. {LOGS}")


def _open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding", "User-Agent"),
        trust_env=False,
    )


async def _ask(session: aiohttp.ClientSession, endpoint: ChatEndpoint, body: bytes) -> aiohttp.ClientResponse:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    url = f"http://{Address(endpoint.host, endpoint.port)}/v1/chat/completions"
    try:
        return await session.post(url, data=BytesIO(body), headers=headers, allow_redirects=False)
    except aiohttp.ClientError as error:
        if _began(error):
            raise _broken_off(error) from error
        raise ConnectionFailedError(
            f"The LLM engine at port {endpoint.port} does not answer: {_words(error)}. "
            "See what it does: genaid llm status"
        ) from error


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """What an answer begins with, MAX_LINE bytes at most."""
    data = b""
    async with aclosing(_chunks(response)) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) >= MAX_LINE:
                break
    return data[:MAX_LINE]


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """The lines of an answer, without their ends."""
    rest = b""
    async with aclosing(_chunks(response)) as chunks:
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in (*lines, rest):
                if len(line) >= MAX_LINE:
                    raise BackendError(
                        f"The LLM engine wrote a line of more than {MAX_LINE} bytes, which is no answer. {LOGS}"
                    )
            for line in lines:
                yield line
    if rest:
        yield rest


async def _chunks(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except aiohttp.ClientError as error:
        raise _broken_off(error) from error


def _began(error: BaseException | None) -> bool:
    """Whether what failed had begun as an answer: a body that is broken at once fails, for aiohttp, with the head."""
    while error is not None and not isinstance(error, BadHttpMessage):
        error = error.__cause__ or error.__context__
    return isinstance(error, BadHttpMessage) and not isinstance(error, BadStatusLine)


def _broken_off(error: aiohttp.ClientError) -> BackendError:
    return BackendError(f"The LLM engine stopped in the middle of its answer ({_words(error)}). {LOGS}")


def _part(data: bytes) -> Part:
    match _object(data):
        case {"error": error}:
            raise _refused(error, 500)
        case {"choices": list(choices), **rest}:
            choice = choices[0] if choices and isinstance(choices[0], dict) else {}
            delta, timings = choice.get("delta"), rest.get("timings")
            delta = delta if isinstance(delta, dict) else {}
            return Part(
                content=_text(delta.get("content")),
                reasoning=_text(delta.get("reasoning_content")),
                finish_reason=_text(choice.get("finish_reason")),
                timings=timings if isinstance(timings, dict) else {},
            )
    raise BackendError(f"The LLM engine sent something that is not a chat completion. {LOGS}")


def _refusal(status: int, body: bytes) -> GenaidError:
    match _object(body):
        case {"error": error}:
            return _refused(error, status)
    return BackendError(f"The LLM engine answered with HTTP status {status}. {LOGS}")


def _refused(error: object, status: int) -> GenaidError:
    told = error if isinstance(error, dict) else {}
    message = _text(told.get("message")) or _text(error) or f"HTTP status {status}"
    kind, code = told.get("type"), told.get("code", status)
    if kind == "exceed_context_size_error":
        return InvalidRequestError(
            f"The conversation is too long: {message}. Begin a new one, "
            "or start the engine with more: genaid llm start MODEL --context N --replace"
        )
    if kind == "authentication_error" or status in {401, 403}:
        return InvalidRequestError(
            "The LLM engine asks for its key. Give it with --api-key-file FILE, or in GENAID_LLM_API_KEY."
        )
    if code == 503:
        return ServerBusyError(f"The LLM engine can't answer yet: {message}. Try again in a moment.")
    refused = isinstance(code, int) and 400 <= code < 500
    return (InvalidRequestError if refused else BackendError)(f"The LLM engine refused to answer: {message}")


def _object(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _words(error: aiohttp.ClientError) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    words = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return words.partition("\n")[0].rstrip(":") or type(error).__name__
