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
from pathlib import Path

from bench.rows import Row, ratio
from bench.serving import Serving, serving
from genaid_client import Client, Llm, LlmConfig, LlmServing, ServerState
from genaid_server.demo.models import write_llm

STARTS, CRASHES, ANSWERS, PAIRS = 9, 5, 9, 3
TOKENS = 200
LINES, PACE = 50_000, 10_000
CONFIG = LlmConfig(context_size=2048, parallel_requests=1, threads=2)
FREE_PORT = LlmServing(port=0)

BARE = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[1], 2048, 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
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
            "tokens per second, our LLM engine / bare xllamacpp",
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


@contextlib.contextmanager
def _bare(file: Path) -> Iterator[str]:
    """The address of xllamacpp's server in a process of its own, once it answers."""
    with subprocess.Popen(
        [sys.executable, "-c", BARE, str(file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with urllib.request.urlopen(f"{address}/health"):  # noqa: S310 - our own http address
                yield address
        finally:
            process.kill()


def _bare_start(file: Path) -> float:
    began = time.perf_counter()
    with _bare(file):
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
    """Two processes of the very same program differ by some hundredths, as long as they live: hence several pairs."""
    return statistics.median(_speed_of_a_pair(client, model, file) for _ in range(PAIRS))


def _speed_of_a_pair(client: Client, model: str, file: Path) -> float:
    ours = client.llm.start(model, config=CONFIG, serving=FREE_PORT)
    with _bare(file) as bare:
        seconds = ratio(lambda: _answer(bare), lambda: _answer(_base(ours)), ANSWERS)
    client.llm.stop()
    return seconds


def _base(llm: Llm) -> str:
    assert llm.base_url is not None
    return llm.base_url


def _answer(address: str) -> float:
    """Seconds for a number of tokens."""
    body = {"prompt": "once upon a time", "n_predict": TOKENS, "ignore_eos": True, "cache_prompt": False}
    request = urllib.request.Request(  # noqa: S310 - our own http address
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        assert json.load(answer)["tokens_predicted"] == TOKENS
    return time.perf_counter() - began


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
        request = urllib.request.Request(f"{_base(llm)}/say/{LINES}/{PACE}", method="POST")  # noqa: S310
        urllib.request.urlopen(request).close()  # noqa: S310
        cpu = (sum(server.process.cpu_times()[:2]) - before) / (time.perf_counter() - began)
        client.llm.stop()
    text = "".join(path.read_text("utf-8") for path in sorted((data / "logs").glob("llm-engine.log*"), reverse=True))
    seen = {int(number) for number in re.findall(r"prompt processing, number (\d+)$", text, re.MULTILINE)}
    return LINES - len(seen & set(range(LINES))), cpu
