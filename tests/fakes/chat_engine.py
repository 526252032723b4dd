"""An LLM engine's HTTP API that answers each request with bytes that a test has written down."""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"
HOLD = b"<hold>"


@dataclass
class ChatEngine:
    """What it answers, some bytes a request, and what it was sent. After HOLD it says nothing until the caller goes."""

    answers: list[bytes] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    port: int = 0


class Handler(socketserver.StreamRequestHandler):
    """One request."""

    def handle(self) -> None:
        """Read it, note it, and answer as written down."""
        assert isinstance(self.server, Server)
        engine = self.server.engine
        lines = iter(lambda: self.rfile.readline().strip(), b"")
        _, *headers = [line.decode() for line in lines]
        told = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
        engine.headers.append(told)
        engine.requests.append(json.loads(self.rfile.read(int(told["content-length"]))))
        answer, held, _ = engine.answers.pop(0).partition(HOLD)
        self.wfile.write(answer)
        if not held:
            return
        engine.held.set()
        while self.rfile.read(1):
            pass
        engine.left.set()


class Server(socketserver.ThreadingTCPServer):
    """Listens for requests."""

    daemon_threads = True

    def __init__(self, engine: ChatEngine) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine = engine


@contextmanager
def chat_engine() -> Iterator[ChatEngine]:
    """Serve until the block ends."""
    engine = ChatEngine()
    with Server(engine) as server:
        engine.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield engine
        finally:
            server.shutdown()
            thread.join()


def chunk(delta: dict[str, Any] | None = None, **others: Any) -> bytes:
    """One event of a chat completion."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": others.pop("finish_reason", None)}
    return b"data: " + json.dumps({"choices": [choice], **others}).encode() + b"\n\n"


def said(*words: str, **last: Any) -> bytes:
    """A whole answer in so many parts."""
    parts = [chunk({"content": word}) for word in words]
    return b"".join(
        [OK, chunk({"role": "assistant", "content": None}), *parts, chunk(finish_reason="stop", **last), DONE]
    )


def refused(status: int, body: bytes) -> bytes:
    """An answer with another status than 200."""
    head = f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
