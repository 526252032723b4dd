"""What fetching a model costs, above the network and the disk."""

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import grpc
import numpy as np

from bench.rows import Row, ratio
from bench.serving import serving
from genaid.resource.v1 import models_pb2, models_pb2_grpc
from genaid_client import Client, Download, DownloadItem, DownloadPhase, DownloadSpec
from genaid_server.demo.models import write_llm
from genaid_server.resource.core.formats.gguf import read_header

GIGABYTE = 1_000_000_000
MODELS = 1000
FAKE_HUB = Path(__file__).parent.parent / "tests" / "fakes" / "hub_server.py"


@contextmanager
def file_server(root: Path) -> Iterator[str]:
    """A process that serves the files of a folder; yields its address."""
    with subprocess.Popen(
        [sys.executable, str(FAKE_HUB), "--root", str(root)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().split()[-1].rstrip("/")
        finally:
            process.terminate()


def control(server: str, name: str, faults: dict[str, Any] | None = None) -> Any:
    """Set the faults of a served file, or, without any, ask what was sent of it."""
    data = json.dumps(faults).encode() if faults is not None else None
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/control/files/{name}", data=data, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return json.load(answer)


def write_large(path: Path) -> None:
    """A valid GGUF file of a gigabyte: a small header and one tensor."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("large")
    writer.add_tokenizer_model("llama")
    writer.add_tensor("token_embd.weight", np.zeros((GIGABYTE // 4096, 2048), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def finish(client: Client, identity: str) -> Download:
    """Wait for the end of a download and require that it is good."""
    *_, last = client.downloads.watch(identity)
    if last.phase is not DownloadPhase.INSTALLED:
        raise RuntimeError(f"the download failed: {last.error}")
    return last


def spec(url: str) -> DownloadSpec:
    """A download of one file."""
    return DownloadSpec((DownloadItem(url),))


def with_curl(url: str, target: Path) -> float:
    """Seconds that curl and then sha256sum take for the same file."""
    began = time.perf_counter()
    subprocess.run(["curl", "--silent", "--fail", "--output", str(target), url], check=True)  # noqa: S607
    subprocess.run(["sha256sum", str(target)], check=True, stdout=subprocess.DEVNULL)  # noqa: S607
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def large_file(folder: Path) -> Iterator[Row]:
    """A gigabyte: its speed, and what a kill in the middle costs."""
    root = folder / "served"
    root.mkdir()
    file = root / "large.gguf"
    write_large(file)
    size = file.stat().st_size
    with file_server(root) as server:
        url = f"{server}/files/large.gguf"
        with serving(folder / "speed") as running, Client(resource=running.resource) as client:

            def ours() -> float:
                began = time.perf_counter()
                done = finish(client, client.downloads.create(spec(url)).id)
                seconds = time.perf_counter() - began
                assert done.model
                client.models.delete(done.model.id)
                return seconds

            yield Row(
                "1 GB from loopback, verified / curl and sha256sum",
                ratio(ours, lambda: with_curl(url, folder / "c"), 5),
                "ratio",
                1.0,
            )
        control(server, "large.gguf", {"stall_at": size // 2, "stalls": 1})
        before = control(server, "large.gguf")["bytes_sent"]
        with serving(folder / "kill") as running, Client(resource=running.resource) as client:
            identity = client.downloads.create(spec(url)).id
            for download in client.downloads.watch(identity):
                if download.bytes_done >= size // 2 - 64_000_000:
                    break
            while control(server, "large.gguf")["bytes_sent"] - before < size // 2:
                time.sleep(0.01)
            running.process.kill()
            running.process.wait()
        control(server, "large.gguf", {"release": True})
        with serving(folder / "kill") as running, Client(resource=running.resource) as client:
            finish(client, identity)
        again = control(server, "large.gguf")["bytes_sent"] - before - size
        yield Row("fetched again after kill -9 at 50 % / size of the file", again / size, "ratio", 0.02)


def remote_header(folder: Path) -> Iterator[Row]:
    """How much of a file is fetched to read its header."""
    root = folder / "headers"
    root.mkdir()
    file = write_llm(root / "vocabulary.gguf", vocab=152_000)
    header = read_header(file).data_offset
    with file_server(root) as server, serving(folder / "head") as running:
        with Client(resource=running.resource) as client:
            wrong = DownloadItem(f"{server}/files/vocabulary.gguf", checksum="sha256:" + "0" * 64)
            *_, last = client.downloads.watch(client.downloads.create(DownloadSpec((wrong,))).id)
            assert last.error
        sent = control(server, "vocabulary.gguf")["bytes_sent"] - file.stat().st_size
    yield Row("remote header of 152k tokens: bytes fetched / its size", sent / header, "ratio", 1.3)


def many_models(folder: Path) -> Iterator[Row]:
    """Listing a large store."""
    data_dir = folder / "many"
    weights = data_dir / "models" / "llm"
    weights.mkdir(parents=True)
    source = write_llm(folder / "small.gguf")
    with serving(data_dir) as running, Client(resource=running.resource) as client:
        (data_dir / "inbox" / "small.gguf").hardlink_to(source)
        model = client.models.import_("small.gguf", model_id="m0000")
    record = json.loads((weights / "m0000.json").read_text())
    text = json.dumps(record)
    for number in range(1, MODELS):
        identity = f"m{number:04}"
        name = f"{identity}.gguf"
        os.link(model.path, weights / name)
        (weights / f"{identity}.json").write_text(text.replace("m0000", identity).replace("small.gguf", name))
    with serving(data_dir) as running, grpc.insecure_channel(running.resource) as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        times = []
        for _ in range(21):
            began = time.perf_counter()
            answer = stub.ListModels(models_pb2.ListModelsRequest(page_size=MODELS))
            times.append(1000 * (time.perf_counter() - began))
            assert len(answer.models) == MODELS
    yield Row(f"ListModels with {MODELS} models", statistics.median(times), "ms", 20)


def rows(folder: Path) -> Iterator[Row]:
    """The table's rows about downloads and the store."""
    yield from large_file(folder)
    yield from remote_header(folder)
    yield from many_models(folder)
