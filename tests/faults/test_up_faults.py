"""`genaid up` as its users see it over REST: the real engine, real processes, and rude endings."""

import contextlib
import http.client
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from conftest import DemoModels
from genaid_client import Client, ModelType
from support import RunningGenaid, running_genaid, wait_until

TINY = {"prompt": "a tiny cat", "width": 64, "height": 64, "steps": 2, "seed": 1}
LONG = {**TINY, "steps": 200}
GONE_WITHIN = 5.0  # seconds


class Rest:
    """Talks to the gateway, one connection a request."""

    def __init__(self, genaid: RunningGenaid) -> None:
        self._address = urlsplit(genaid.ready["http"])

    def __call__(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(str(self._address.hostname), self._address.port or 80, timeout=30)
        with contextlib.closing(connection):
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
            is_json = "json" in (answer.getheader("Content-Type") or "")
            return answer.status, json.loads(content) if is_json else content

    def create(self, **fields: object) -> str:
        status, answer = self("POST", "/v1/images/generations", fields)
        assert status == 201, answer
        return str(answer["id"])

    def states(self, identity: str) -> Iterator[dict[str, Any]]:
        """Each newer state, to the end of the stream."""
        connection = http.client.HTTPConnection(str(self._address.hostname), self._address.port or 80, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", f"/v1/images/generations/{identity}/events")
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def reach(self, identity: str, stage: str) -> None:
        for state in self.states(identity):
            if state.get("progress", {}).get("stage") == stage:
                return
        raise AssertionError(f"it never reached {stage}")

    def finish(self, identity: str) -> dict[str, Any]:
        for _ in self.states(identity):
            pass
        status, state = self("GET", f"/v1/images/generations/{identity}")
        assert status == 200
        return dict(state)


def install(genaid: RunningGenaid, models: DemoModels) -> None:
    inbox = genaid.data_dir / "inbox"
    inbox.mkdir(exist_ok=True)
    (inbox / "diffusion.gguf").hardlink_to(models.diffusion)
    with Client(resource=genaid.ready["resource"]) as client:
        client.models.import_("diffusion.gguf", type=ModelType.DIFFUSION)


@pytest.fixture
def genaid(tmp_path: Path, demo_models: DemoModels) -> Iterator[RunningGenaid]:
    with running_genaid(tmp_path / "data") as running:
        install(running, demo_models)
        yield running


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=GONE_WITHIN)
    return not alive


def test_an_image_over_rest(genaid: RunningGenaid) -> None:
    rest = Rest(genaid)
    identity = rest.create(**TINY, count=2, sampler="dpm++2m")
    seen = list(rest.states(identity))
    assert seen[-1]["status"] == "complete"
    shares = [state["progress"]["percentage"] for state in seen if "progress" in state]
    assert shares == sorted(shares)
    assert {state["progress"]["currentImage"] for state in seen if "progress" in state} <= {1, 2}
    state = rest.finish(identity)
    assert [image["seed"] for image in state["result"]["images"]] == [1, 2]
    status, png = rest("GET", f"/v1/images/generations/{identity}/images/1")
    assert status == 200
    assert png.startswith(b"\x89PNG")
    assert rest("DELETE", f"/v1/images/generations/{identity}")[0] == 409
    assert rest("GET", "/health") == (200, {"status": "ok", "busy": False})


def test_of_three_requests_at_once_one_wins(genaid: RunningGenaid) -> None:
    rest = Rest(genaid)
    together = threading.Barrier(3)

    def ask(_: int) -> tuple[int, Any]:
        together.wait()
        return rest("POST", "/v1/images/generations", LONG)

    with ThreadPoolExecutor(3) as pool:
        answers = sorted(pool.map(ask, range(3)), key=lambda answer: answer[0])
    assert [status for status, _ in answers] == [201, 503, 503]
    assert all(answer["error"]["code"] == "SERVER_BUSY" for _, answer in answers[1:])
    identity = answers[0][1]["id"]
    for _ in range(2):
        assert rest("DELETE", f"/v1/images/generations/{identity}") == (200, {"id": identity, "status": "cancelled"})
    assert rest.finish(identity)["status"] == "cancelled"
    assert rest.finish(rest.create(**TINY))["status"] == "complete"


def test_a_killed_engine_is_an_error_and_the_next_image_comes(genaid: RunningGenaid) -> None:
    rest = Rest(genaid)
    identity = rest.create(**{**LONG, "prompt": "the server is busy, failed to spawn"})
    rest.reach(identity, "diffusion")
    (engine,) = genaid.descendants()
    engine.kill()
    failed = rest.finish(identity)
    assert (failed["status"], failed["error"]["code"]) == ("error", "BACKEND_ERROR")
    assert rest.finish(rest.create(**TINY))["status"] == "complete"


def test_a_poller_that_leaves_in_the_middle_of_the_events(genaid: RunningGenaid) -> None:
    rest = Rest(genaid)
    identity = rest.create(**LONG)
    for _ in range(5):
        next(rest.states(identity))
    assert rest("DELETE", f"/v1/images/generations/{identity}")[0] == 200
    assert rest("GET", "/health")[1]["busy"] is False


@pytest.mark.parametrize("stage", ["loading", "diffusion", "decoding"])
def test_sigterm_in_the_middle_leaves_nothing(genaid: RunningGenaid, stage: str) -> None:
    rest = Rest(genaid)
    identity = rest.create(**(TINY | {"width": 512, "height": 512, "steps": 1} if stage == "decoding" else LONG))
    rest.reach(identity, stage)
    family = genaid.descendants()
    began = time.monotonic()
    assert genaid.stop() == 0
    assert time.monotonic() - began < GONE_WITHIN  # the promise itself, not an expectation of the machine
    assert gone(family)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL to send to a process alone")
@pytest.mark.parametrize("stage", ["loading", "diffusion", "decoding"])
def test_kill_9_in_the_middle_leaves_nothing(genaid: RunningGenaid, stage: str) -> None:
    rest = Rest(genaid)
    identity = rest.create(**(TINY | {"width": 512, "height": 512, "steps": 1} if stage == "decoding" else LONG))
    rest.reach(identity, stage)
    wait_until(lambda: bool(genaid.descendants()), genaid.process, genaid.log)  # at first it waits for memory
    family = genaid.descendants()
    genaid.process.send_signal(signal.SIGKILL)
    genaid.process.wait()
    assert gone(family)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death by a signal")
def test_after_kill_9_the_same_data_directory_serves_again(tmp_path: Path, demo_models: DemoModels) -> None:
    with running_genaid(tmp_path / "data") as first:
        install(first, demo_models)
        rest = Rest(first)
        rest.reach(rest.create(**LONG), "diffusion")
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    with running_genaid(tmp_path / "data") as second:
        rest = Rest(second)
        assert rest.finish(rest.create(**TINY))["status"] == "complete"


@pytest.mark.parametrize(
    ("prompt", "status"),
    [
        ("--help", 201),
        ("-p '; rm -rf /", 201),
        ("server is busy generating another image", 201),
        ("🐈‍⬛ ünïcödé", 201),
        ("a\0b", 400),
        ("x" * 1_000_000, 400),
        ("x" * 1_100_000, 413),
        ("\ud800", 400),
    ],
    ids=["dashes", "shell", "words", "emoji", "nul", "megabyte", "more", "surrogate"],
)
def test_prompts(genaid: RunningGenaid, prompt: str, status: int) -> None:
    rest = Rest(genaid)
    answered, answer = rest("POST", "/v1/images/generations", {**TINY, "prompt": prompt})
    assert answered == status, answer
    if status == 201:
        assert rest.finish(answer["id"])["status"] == "complete"
    else:
        assert answer["error"]["code"] == "INVALID_REQUEST"
    assert rest("GET", "/health")[0] == 200
