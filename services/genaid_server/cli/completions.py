"""Answers of the LLM engine, as they are written: its own HTTP API, as far as a conversation needs it."""

import json
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from threading import Thread
from typing import Any, Final

from genaid_client import BackendError, ConnectionFailedError, GenaidError, InvalidRequestError, ServerBusyError

CONNECT_SECONDS: Final = 10.0
TICK: Final = 0.1  # seconds between two looks whether Ctrl-C was pressed, where a wait can't be interrupted
MAX_LINE: Final = 2**20
"""Bytes that a line of an answer may have; a token has a few."""
LOGS: Final = "genaid llm logs tells why."


@dataclass(frozen=True)
class Endpoint:
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


def stream_answer(endpoint: Endpoint, request: Mapping[str, Any]) -> Generator[Part, None, None]:
    """Ask for a chat completion, and yield its parts as they are written. Leaving the iterator stops the engine's work.

    There is no deadline: to read a long prompt takes minutes on a slow machine. Raises ConnectionFailedError where
    nothing answers; InvalidRequestError for what the engine refuses; ServerBusyError while it loads; BackendError where
    it fails, stops in the middle, or writes what is no chat completion.
    """
    body = json.dumps({**request, "stream": True}, ensure_ascii=False).encode()
    connection = HTTPConnection(endpoint.host, endpoint.port, timeout=CONNECT_SECONDS)
    with closing(connection), _ask(connection, endpoint, body) as response:
        if response.status != 200:
            raise _refusal(response.status, _read(lambda: response.read(MAX_LINE)))
        yield from _parts(response)


def _ask(connection: HTTPConnection, endpoint: Endpoint, body: bytes) -> HTTPResponse:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    try:
        connection.connect()
        connection.sock.settimeout(None)
        connection.request("POST", "/v1/chat/completions", body, headers)
        return _interruptibly(connection.getresponse, connection.sock)
    except (OSError, HTTPException) as error:
        raise ConnectionFailedError(
            f"The LLM engine at port {endpoint.port} does not answer: {_words(error)}. "
            "See what it does: genaid llm status"
        ) from error


def _interruptibly[Result](call: Callable[[], Result], connected: socket.socket) -> Result:
    """The result of a call that waits for the other side; Ctrl-C ends it on Windows, too, by ending the connection."""
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised by whoever waits
            result.set_exception(error)

    Thread(target=run, name="answer of the LLM engine", daemon=True).start()
    try:
        while not wait([result], TICK).done:
            pass
    except KeyboardInterrupt:
        with suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)
        raise
    return result.result()


def _parts(response: HTTPResponse) -> Iterator[Part]:
    """The parts that the lines of an event stream hold, until it says that it is done."""
    while line := _read(lambda: response.readline(MAX_LINE + 1)):
        if len(line) > MAX_LINE:
            raise BackendError(f"The LLM engine wrote a line of more than {MAX_LINE} bytes, which is no answer. {LOGS}")
        name, _, data = line.partition(b":")
        if name != b"data" or not (data := data.strip()):
            continue
        if data == b"[DONE]":
            return
        yield _part(data)
    raise BackendError(f"The LLM engine stopped in the middle of its answer. {LOGS}")


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
    raise BackendError(f"The LLM engine wrote something that is no chat completion. {LOGS}")


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


def _read(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (OSError, HTTPException) as error:
        raise BackendError(f"The LLM engine stopped in the middle of its answer ({_words(error)}). {LOGS}") from error


def _object(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
