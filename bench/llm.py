"""What supervision of the LLM engine costs: at the start, after a crash, for each token, and for each log line."""

import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from bench.rows import Row, ratio
from bench.serving import Serving, serving
from genaid_client import Client, Llm, LlmConfig, LlmServing, ServerState
from genaid_server.demo.models import write_llm

STARTS, CRASHES = 9, 5
PAIRS, ANSWERS, TOKENS = 5, 25, 50
LINES, PACE = 50_000, 10_000
CONFIG = LlmConfig(context_size=2048, parallel_requests=1, threads=2)
ONE_THREAD = replace(CONFIG, threads=1)
FREE_PORT = LlmServing(port=0)

BARE = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[1], 2048, 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
params.fit_params, params.cache_ram_mib = False, 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


def rows(folder: Path) -> Iterator[Row]:
    """The table's rows about the LLM engine."""
    small = write_llm(folder / "llm.gguf")
    large = write_llm(folder / "deep-llm.gguf", layers=48)
    with serving(folder / "llm data") as server, Client(resource=server.resource) as client:
        model, deep = (_installed(client, server, file) for file in (small, large))
        yield Row(
            "StartLlm to RUNNING / bare xllamacpp to /health 200",
            ratio(lambda: _start(client, model), lambda: _bare_start(small), STARTS),
            "ratio",
            1.3,
        )
        yield Row("crash of the LLM engine to RUNNING again", _recovery(client, model), "s", 1.5)
        yield Row(
            "tokens per second of processor time, our LLM engine / bare xllamacpp",
            _speed(client, deep, large),
            "ratio",
            0.98,
            at_least=True,
        )
    lost, cpu = _log_lines(folder, small)
    yield Row(f"log lines lost of {LINES} at {PACE} a second", lost, "lines", 0)
    yield Row(f"processor time that {PACE} log lines a second cost", cpu * 100, "% of a core", 20)


def _installed(client: Client, server: Serving, file: Path) -> str:
    inbox = server.data_dir / "inbox"
    inbox.mkdir(exist_ok=True)
    (inbox / file.name).hardlink_to(file)
    return client.models.import_(file.name, name=file.stem).id


def _start(client: Client, model: str) -> float:
    began = time.perf_counter()
    llm = client.llm.start(model, config=CONFIG, serving=FREE_PORT)
    took = time.perf_counter() - began
    assert llm.state is ServerState.RUNNING
    client.llm.stop()
    return took


@dataclass(frozen=True)
class Engine:
    """An engine that runs: where it answers, and which process it is."""

    address: str
    process: psutil.Process

    @classmethod
    def of(cls, llm: Llm) -> "Engine":
        """The engine behind a service."""
        assert llm.base_url is not None
        assert llm.pid is not None
        return cls(llm.base_url, psutil.Process(llm.pid))

    def answer(self, tokens: int) -> None:
        """Have it make so many tokens."""
        body = {"prompt": "once upon a time", "n_predict": tokens, "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(  # noqa: S310 - our own http address
            f"{self.address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            assert json.load(answer)["tokens_predicted"] == tokens

    def processor_time(self, tokens: int) -> float:
        """Seconds that all its threads compute for an answer of so many tokens."""
        before = self._computed()
        self.answer(tokens)
        return self._computed() - before

    def _computed(self) -> float:
        tasks = list(Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"))
        if tasks:  # Linux counts in nanoseconds there; psutil, which reads something else, in hundredths of a second
            return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
        return sum(self.process.cpu_times()[:2])


@contextlib.contextmanager
def bare(file: Path, threads: int) -> Iterator[Engine]:
    """xllamacpp's server in a process of its own, with its own defaults, once it answers."""
    with subprocess.Popen(
        [sys.executable, "-c", BARE, str(file), str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with urllib.request.urlopen(f"{address}/health"):  # noqa: S310 - our own http address
                yield Engine(address, psutil.Process(process.pid))
        finally:
            process.kill()


def _bare_start(file: Path) -> float:
    began = time.perf_counter()
    with bare(file, 2):
        return time.perf_counter() - began


def _recovery(client: Client, model: str) -> float:
    """Seconds from killing the engine to its answering again; each crash is the first one of its start."""
    times = []
    for _ in range(CRASHES):
        dead = client.llm.start(model, config=CONFIG, serving=FREE_PORT)
        began = time.perf_counter()
        subprocess.run(["kill", "-9", str(dead.pid)], check=True)  # noqa: S607
        for now in client.llm.watch():
            if now.state is ServerState.RUNNING and now.pid != dead.pid:
                break
        times.append(time.perf_counter() - began)
        client.llm.stop()
    return statistics.median(times)


def _speed(client: Client, model: str, file: Path) -> float:
    """The median of several pairs of processes that answer in turn, each by its best of many short answers.

    Measured so that it does not waver: two processes of the very same program differ by 2 % as long as they live, so
    there are several of each; whatever else runs stretches answers by 14 % and more, even in processor time, because it
    takes the caches, so it is the least time that counts, of answers short enough to find a quiet moment; and of two
    threads one spins while it waits for the other, so there is one. What two make of it, bench/together.py tells.
    Five repeats on two cores that others kept busy (a load of 17) gave 0.990, 0.995, 0.992, 0.997 and 0.996.
    """
    return statistics.median(_speed_of_a_pair(client, model, file) for _ in range(PAIRS))


def _speed_of_a_pair(client: Client, model: str, file: Path) -> float:
    ours = Engine.of(client.llm.start(model, config=ONE_THREAD, serving=FREE_PORT))
    times: dict[str, list[float]] = {}
    with bare(file, 1) as theirs:
        for turn in range(ANSWERS):
            for engine in (ours, theirs) if turn % 2 else (theirs, ours):
                times.setdefault(engine.address, []).append(engine.processor_time(TOKENS))
    client.llm.stop()
    return min(times[theirs.address]) / min(times[ours.address])


def _log_lines(folder: Path, file: Path) -> tuple[int, float]:
    """Lines that are not in the log file, and the share of a core that the service spent on them."""
    program = folder / "llama-server"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{Path(__file__).with_name('chatty.py')}' \"$@\"\n")
    program.chmod(0o755)
    config = folder / "chatty.toml"
    config.write_text(f'[llm]\nprogram = "{program}"\n')
    data = folder / "chatty data"
    with serving(data, "--config", str(config)) as server, Client(resource=server.resource) as client:
        llm = client.llm.start(_installed(client, server, file), config=CONFIG, serving=FREE_PORT)
        before, began = sum(server.process.cpu_times()[:2]), time.perf_counter()
        request = urllib.request.Request(f"{llm.base_url}/say/{LINES}/{PACE}", method="POST")  # noqa: S310
        urllib.request.urlopen(request).close()  # noqa: S310
        cpu = (sum(server.process.cpu_times()[:2]) - before) / (time.perf_counter() - began)
        client.llm.stop()
    text = "".join(path.read_text("utf-8") for path in sorted((data / "logs").glob("llm-engine.log*"), reverse=True))
    seen = {int(number) for number in re.findall(r"prompt processing, number (\d+)$", text, re.MULTILINE)}
    return LINES - len(seen & set(range(LINES))), cpu
