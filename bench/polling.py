"""How many polls the gateway answers, and how quickly while an image is being computed."""

import asyncio
import http.client
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bench.images import TINY, serving_model
from bench.rows import Row
from bench.serving import Serving, Stopwatch, pinned
from genaid_server.demo.models import write_diffusion

CONNECTIONS = 8
SECONDS = 2.0
REPEATS = 5


class Poller(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it has the answer."""

    def __init__(self, request: bytes) -> None:
        self._request, self._missing = request, 0
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count whole answers."""
        if self._missing == 0:
            head, _, _ = data.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self._missing = len(head) + 4 + int(lines[b"content-length"])
        self._missing -= len(data)
        if self._missing == 0:
            self.answers += 1
            self._transport.write(self._request)


async def poll(server: Serving, identity: str) -> float:
    """Polls a second of a finished generation over some keep-alive connections."""
    address = urlsplit(server.http)
    path = f"/v1/images/generations/{identity}"
    request = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    host, port = str(address.hostname), address.port or 80
    pollers = [(await loop.create_connection(lambda: Poller(request), host, port))[1] for _ in range(CONNECTIONS)]
    before, began = sum(poller.answers for poller in pollers), time.perf_counter()
    await asyncio.sleep(SECONDS)
    return (sum(poller.answers for poller in pollers) - before) / (time.perf_counter() - began)


def slowest_hundredth(server: Serving) -> float:
    """The 99th percentile, in ms, of polls while an image is computed."""
    address = urlsplit(server.http)
    assert address.hostname
    connection = http.client.HTTPConnection(address.hostname, address.port or 80)
    identity = server.post(prompt="a lighthouse", width=256, height=256, steps=60, seed=1)

    def ask() -> None:
        connection.request("GET", f"/v1/images/generations/{identity}")
        connection.getresponse().read()

    watch = Stopwatch(ask, pause=0.005)
    watch.start()
    server.wait(identity)
    times = watch.finish()
    connection.close()
    return 1000 * statistics.quantiles(times, n=100)[98]


def rows(folder: Path) -> Iterator[Row]:
    """The table's rows about polling."""
    with serving_model(write_diffusion(folder / "diffusion.gguf")) as server:
        identity = server.post(**TINY)
        server.wait(identity)
        with pinned(server.process, 0), pinned(None, 1):
            rates = [asyncio.run(poll(server, identity)) for _ in range(REPEATS)]
        name = f"polls of a finished generation, one core, {CONNECTIONS} connections"
        yield Row(name, statistics.median(rates), "1/s", 5000, at_least=True)
        slow = statistics.median(slowest_hundredth(server) for _ in range(3))
        yield Row("99th percentile of a poll while an image computes", slow, "ms", 50)
