"""What the way through the gateway costs a chat: tokens per second, and the time to the first token."""

import http.client
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.rows import Row, ratio
from bench.serving import Serving, serving
from genaid_client import Client, LlmConfig, LlmServing
from genaid_server.demo.models import write_llm

TURNS = 15
FIRST_TURNS = 41
TOKENS = 300
LAYERS = 48
CONFIG = LlmConfig(
    context_size=2048, parallel_requests=1, threads=1
)  # a second one would wait for whoever else is busy


@dataclass(frozen=True)
class Answer:
    """How long a streamed answer took, in seconds: to its first token, and to its end."""

    first: float
    whole: float


@dataclass(frozen=True)
class Way:
    """A way to the engine: an address, and where the OpenAI API is below it."""

    address: str
    prefix: str

    def ask(self, tokens: int) -> Answer:
        """Stream a chat of so many tokens over a connection of its own."""
        body = {
            "messages": [{"role": "user", "content": "once upon a time"}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
        }
        parts = urlsplit(self.address)
        assert parts.hostname
        connection = http.client.HTTPConnection(parts.hostname, parts.port)
        connection.connect()
        began = time.perf_counter()
        path, headers = f"{self.prefix}/chat/completions", {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        text, first = b"", 0.0
        while data := answer.read1(65536):
            text += data
            if not first and b'"content":"' in text:
                first = time.perf_counter() - began
        connection.close()
        assert text.rstrip().endswith(b"data: [DONE]")
        assert text.count(b'"content":"') >= tokens / 2  # the engine holds half a character back until it is whole
        return Answer(first, time.perf_counter() - began)


def rows(folder: Path) -> Iterator[Row]:
    """The table's rows about the gateway to the LLM engine."""
    file = write_llm(folder / "gateway-llm.gguf", layers=LAYERS)
    with serving(folder / "gateway llm data") as server, Client(resource=server.resource) as client:
        llm = client.llm.start(_installed(client, server, file), config=CONFIG, serving=LlmServing(port=0))
        assert llm.base_url is not None
        direct, through = Way(llm.base_url, "/v1"), Way(server.http, "/openai/v1")
        speed = ratio(lambda: direct.ask(TOKENS).whole, lambda: through.ask(TOKENS).whole, TURNS)
        yield Row(
            "tokens per second, through the gateway / straight to the engine", speed, "ratio", 0.95, at_least=True
        )
        yield Row("time to the first token, through the gateway minus straight", _delay(through, direct), "ms", 10)


def _installed(client: Client, server: Serving, file: Path) -> str:
    inbox = server.data_dir / "inbox"
    inbox.mkdir(exist_ok=True)
    (inbox / file.name).hardlink_to(file)
    return client.models.import_(file.name, name=file.stem).id


def _delay(through: Way, direct: Way) -> float:
    """The difference of the medians, in ms, measured in turn so that both see the same machine."""
    times: dict[Way, list[float]] = {through: [], direct: []}
    for turn in range(FIRST_TURNS):
        for way in (through, direct) if turn % 2 else (direct, through):
            times[way].append(way.ask(2).first)
    return 1000 * (statistics.median(times[through]) - statistics.median(times[direct]))
