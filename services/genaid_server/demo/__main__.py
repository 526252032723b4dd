"""`make demo`: one image through all layers, from the REST gateway to the engine, with nothing left behind.

It talks plain HTTP, as a program in any language would.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from genaid_client import Client, GenaidError
from genaid_server.cli.inbox import placed
from genaid_server.cli.views.generations import STAGE_NAMES
from genaid_server.cli.views.progress import ShowWork, copy_bar, work_bar
from genaid_server.demo.models import write_diffusion

RESULT: Final = Path("demo.png")
REQUEST: Final = {"prompt": "a lighthouse in a storm", "width": 256, "height": 256, "steps": 20, "seed": 42}
START_TIMEOUT: Final = 30.0  # seconds until genaid must be ready
STOP_TIMEOUT: Final = 10.0  # seconds until it must have stopped
POLL_INTERVAL: Final = 0.1  # seconds
GENERATIONS: Final = "/v1/images/generations"

# A proxy of the environment has no business with calls to this machine.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DemoError(Exception):
    """The demo can't go on; the message says why."""


def main() -> int:
    """Run the demo; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory(prefix="genaid-demo-", ignore_cleanup_errors=True) as folder:
            _demo(Path(folder))
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped.", file=sys.stderr)
        return 130
    except (DemoError, GenaidError, OSError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    print(f"\nSaved {RESULT}. The demo model's weights are random, so the picture is coloured noise.")
    print("For a real picture, get a Stable Diffusion or Flux model (.gguf or .safetensors), then:")
    print("  genaid up")
    print("  genaid models import FILE          (in another terminal)")
    print('  genaid generate "a lighthouse in a storm" -o lighthouse.png')
    return 0


def _demo(folder: Path) -> None:
    print("Writing a small image model with random weights ...")
    model = write_diffusion(folder / "demo-diffusion.gguf")
    print("Starting genaid on free ports ...")
    data_dir = folder / "data"
    with _genaid(data_dir, folder / "ready.json") as ready:
        print(f"It is ready: REST at {ready['http']}")
        with Client(resource=ready["resource"]) as client, placed(model, data_dir, copy_bar) as name:
            client.models.import_(name)
        url = f"{ready['http']}{GENERATIONS}"
        print(f"POST {url} {json.dumps(REQUEST)}")
        generation = _call(url, REQUEST)
        with work_bar() as show:
            _wait(f"{url}/{generation['id']}", show)
        RESULT.write_bytes(_get(f"{url}/{generation['id']}/images/0"))
    print("Everything is stopped again.")


@contextmanager
def _genaid(data_dir: Path, ready_file: Path) -> Iterator[dict[str, Any]]:
    """Run `genaid up` while the block runs; yields where it listens."""
    argv = [sys.executable, "-m", "genaid_server.cli", "up", "--data-dir", str(data_dir)]
    argv += ["--ready-file", str(ready_file), "--exit-with-parent", "--log-level", "warning"]
    for service in ("--http", "--resource", "--image"):
        argv += [service, "127.0.0.1:0"]
    log = ready_file.with_suffix(".log")
    with log.open("wb") as output, subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=output) as process:
        try:
            yield _await_ready(process, ready_file, log)
        finally:
            assert process.stdin is not None  # noqa: S101
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT)
            finally:
                process.kill()


def _await_ready(process: "subprocess.Popen[bytes]", ready_file: Path, log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_TIMEOUT
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"genaid did not start.\n{log.read_text('utf-8', 'replace')}")
        time.sleep(POLL_INTERVAL)
    ready: dict[str, Any] = json.loads(ready_file.read_bytes())
    return ready


def _wait(url: str, show: ShowWork) -> None:
    while True:
        state = json.loads(_get(url))
        if state["status"] == "complete":
            show("done", 100, "")
            return
        if state["status"] != "in_progress" and state["status"] != "pending":
            raise DemoError(f"the generation ended as {state['status']}: {state.get('error', {}).get('message', '')}")
        progress = state.get("progress", {})
        stage = progress.get("stage", "")
        step = f"step {progress['currentStep']}/{progress['totalSteps']}" if stage == "diffusion" else ""
        show(STAGE_NAMES.get(stage, "waiting"), progress.get("percentage", 0), step)
        time.sleep(POLL_INTERVAL)


def _call(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - our own address
    answer: dict[str, Any] = json.loads(_read(request))
    return answer


def _get(url: str) -> bytes:
    return _read(urllib.request.Request(url))  # noqa: S310 - our own address


def _read(request: urllib.request.Request) -> bytes:
    try:
        with _http.open(request) as response:
            content: bytes = response.read()
            return content
    except urllib.error.HTTPError as error:
        raise DemoError(f"{request.get_method()} {request.full_url}: {error.read().decode()}") from error


if __name__ == "__main__":
    sys.exit(main())
