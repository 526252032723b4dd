"""A running `genaid up`, as the benchmarks use it: over REST, from outside."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

GENAID = [sys.executable, "-m", "genaid_server.cli"]


@dataclass(frozen=True)
class Serving:
    """Where it listens, and what it is. `started` is the time from the start of the process to /health 200."""

    http: str
    resource: str
    image: str
    data_dir: Path
    process: psutil.Process
    started: float

    def post(self, **body: object) -> str:
        """Ask for images; the id."""
        request = urllib.request.Request(  # noqa: S310 - always our own http address
            f"{self.http}/v1/images/generations",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return str(json.load(answer)["id"])

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        with urllib.request.urlopen(self.http + path) as answer:  # noqa: S310
            return json.load(answer)

    def wait(self, identity: str) -> Any:
        """Follow the events of a generation to the end and get its result."""
        with urllib.request.urlopen(f"{self.http}/v1/images/generations/{identity}/events") as events:  # noqa: S310
            for _ in events:
                pass
        state = self.get(f"/v1/images/generations/{identity}")
        if state["status"] != "complete":
            raise RuntimeError(f"the generation failed: {state}")
        return state

    def draw(self, **body: object) -> float:
        """Seconds from asking for images to holding them."""
        began = time.perf_counter()
        self.wait(self.post(**body))
        return time.perf_counter() - began


@contextlib.contextmanager
def serving(data_dir: Path | None = None, *options: str) -> Iterator[Serving]:
    """Run `genaid up` on free ports until the block ends."""
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data_dir.mkdir(exist_ok=True)
        ready = data_dir / "ready.json"
        ready.unlink(missing_ok=True)  # of one that was killed
        free = ["--http", "127.0.0.1:0", "--resource", "127.0.0.1:0", "--image", "127.0.0.1:0"]
        began = time.perf_counter()
        process = subprocess.Popen(
            [
                *GENAID,
                "up",
                "--data-dir",
                str(data_dir),
                "--ready-file",
                str(ready),
                "--exit-with-parent",
                *free,
                *options,
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise RuntimeError(f"genaid up ended with {process.returncode}")
                time.sleep(0.005)
            addresses = json.loads(ready.read_text())
            http = addresses["http"]
            with urllib.request.urlopen(f"{http}/health"):  # noqa: S310
                started = time.perf_counter() - began
            yield Serving(
                http, addresses["resource"], addresses["image"], data_dir, psutil.Process(process.pid), started
            )
        finally:
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def pinned(process: psutil.Process | None, core: int) -> Iterator[None]:
    """Keep a process (None: this one) on one core for the block, where the system can."""
    process = process or psutil.Process(os.getpid())
    if not hasattr(process, "cpu_affinity"):
        yield
        return
    before = process.cpu_affinity()
    _pin(process, [core])
    try:
        yield
    finally:
        _pin(process, before)


def _pin(process: psutil.Process, cores: list[int]) -> None:
    if sys.platform == "linux":  # psutil pins the main thread only; the others count as well
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)
    else:
        process.cpu_affinity(cores)


class Stopwatch(threading.Thread):
    """Runs a function again and again in a thread and keeps how long each call took, in seconds."""

    def __init__(self, call: Any, pause: float) -> None:
        super().__init__(daemon=True)
        self._call, self._pause, self._stop = call, pause, threading.Event()
        self.times: list[float] = []

    def run(self) -> None:
        """Call until stopped."""
        while not self._stop.wait(self._pause):
            began = time.perf_counter()
            self._call()
            self.times.append(time.perf_counter() - began)

    def finish(self) -> list[float]:
        """Stop and return the times."""
        self._stop.set()
        self.join()
        return self.times
