"""What the services add to an image, and what a resident model saves."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from bench.rows import Row, ratio
from bench.serving import GENAID, Serving, serving
from genaid_server.demo.models import write_diffusion
from genaid_server.supervision.process import engine_environment
from genaid_server.supervision.threads import default_threads

THREADS = default_threads(psutil.cpu_count(logical=False) or 1)
JOB = {"prompt": "a lighthouse", "width": 256, "height": 256, "steps": 16, "seed": 1}
# The demo model is a Flux model, and those are drawn without a negative prompt: at a guidance of 1.
TINY = {"prompt": "a lighthouse", "width": 64, "height": 64, "steps": 4, "seed": 1, "cfgScale": 1}


def bare_job(job: Mapping[str, object]) -> dict[str, object]:
    """The same job in the words of the library."""
    names = {"steps": "sample_steps", "cfgScale": "cfg_scale"}
    return {"cfg_scale": 7.5} | {names.get(name, name): value for name, value in job.items()}


@contextlib.contextmanager
def bare_engine(
    model: Path, environment: Mapping[str, str], job: Mapping[str, object] = JOB
) -> Iterator[Callable[[], float]]:
    """A process with this environment that holds the model; the function draws the job once and gives the seconds."""
    argv = [sys.executable, "-m", "bench.bare", str(model), str(THREADS)]
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=dict(environment),
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()

        def draw() -> float:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(bare_job(job)) + "\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield draw
        process.stdin.close()


def fresh_process(model: Path) -> float:
    """Seconds to load the model and draw TINY in a new process."""
    began = time.perf_counter()
    argv = [sys.executable, "-m", "bench.bare", str(model), str(THREADS), "--once", json.dumps(bare_job(TINY))]
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Another program that keeps every core busy, as a game or a build would."""
    argv = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(argv) for _ in range(psutil.cpu_count() or 1)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


@contextlib.contextmanager
def serving_model(model: Path) -> Iterator[Serving]:
    """`genaid up` with the model imported."""
    with serving() as server:
        argv = [*GENAID, "models", "import", str(model), "--data-dir", str(server.data_dir)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield server


def rows(folder: Path) -> Iterator[Row]:
    """The table's rows about images."""
    model = write_diffusion(folder / "diffusion.gguf")
    with serving_model(model) as server:
        server.draw(**TINY)
        with bare_engine(model, engine_environment(os.environ)) as bare:
            bare()
            server.draw(**JOB)
            value = ratio(lambda: server.draw(**JOB), bare, 15)
        yield Row("image over REST / bare SDContext.generate, same job", value, "ratio", 1.03)
        with bare_engine(model, os.environ) as bare, busy_cores():
            value = ratio(lambda: server.draw(**JOB), bare, 3)
        yield Row("image over REST / bare with its own defaults, both on a busy machine", value, "ratio", 1.0)
        value = ratio(lambda: server.draw(**TINY), lambda: fresh_process(model), 7)
        yield Row("second image, model resident / a fresh process each time", value, "ratio", 0.5)
