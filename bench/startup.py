"""How soon `genaid up` and `genaid status` answer, and what the idle services take of the memory."""

import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.rows import Row, paired
from bench.serving import GENAID, Serving, serving

STARTS, CALLS = 15, 15
BARE = [sys.executable, "-m", "bench.bare_service"]


def rows(_folder: Path) -> Iterator[Row]:
    """The table's rows about starting."""
    times, sizes = [], []

    def ours() -> float:
        with serving() as server:
            times.append(server.started)
            sizes.append(server.process.memory_info().rss / 1e6)
        return server.started

    against_bare = paired(ours, _bare_start, STARTS)
    yield Row("genaid up to /health 200", statistics.median(times), "s", 1.2)
    yield Row("genaid up / a bare program that imports gRPC and aiohttp, to /health 200", against_bare, "ratio", 1.8)
    yield Row("resident memory of genaid up, no engine", statistics.median(sizes), "MB", 70)
    with serving() as server:
        against_bare = paired(lambda: _status(server), lambda: _bare_call(server), CALLS)
    yield Row("genaid status / a bare program that makes one gRPC call", against_bare, "ratio", 2)


def _bare_start() -> float:
    began = time.perf_counter()
    with subprocess.Popen(BARE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{address}/health"):  # noqa: S310 - our own http address
            took = time.perf_counter() - began
        process.stdin.close()
    return took


def _status(server: Serving) -> float:
    return _run([*GENAID, "status", "--data-dir", str(server.data_dir)])


def _bare_call(server: Serving) -> float:
    return _run([sys.executable, "-m", "bench.bare_call", server.image])


def _run(argv: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
