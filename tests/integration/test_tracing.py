"""What happened can be seen afterwards: request ids in all services, a line for each request, and no line waits."""

import json
import logging
import re
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import Rig, rig, running, until
from fakes.image_worker import png
from genaid_client import AsyncClient, Client, NotFoundError
from genaid_client.tracing import set_request_id
from genaid_server.kit.log import ServiceLog
from support import GENAID, ONE_THREAD, STOP_TIMEOUT, clean_environment, kill_tree, running_genaid, wait_until

CREATE = "/genaid.image.v1.GenerationService/CreateGeneration"
GET = "/genaid.image.v1.GenerationService/GetGeneration"
PIPE_BYTES = 2**18  # more than any system's pipe holds unless it is told to


class Logged:
    """A gateway and a worker, and what both have logged."""

    def __init__(self, api: Rig, folder: Path, log: ExitStack) -> None:
        self.api, self._folder, self._log = api, folder, log

    def lines(self, name: str = "genaid") -> list[str]:
        """All lines of a file; none are written any more after that."""
        self._log.close()
        path = self._folder / f"{name}.log"
        return path.read_text("utf-8").splitlines() if path.exists() else []


@pytest.fixture
async def logged(tmp_path: Path) -> AsyncIterator[Logged]:
    with ExitStack() as log:
        log.enter_context(ServiceLog(logging.DEBUG, logging.WARNING, tmp_path / "genaid.log", tmp_path / "access.log"))
        async with rig() as api:
            yield Logged(api, tmp_path, log)


async def test_an_id_goes_from_the_header_into_the_lines_of_both_services(logged: Logged) -> None:
    async with logged.api.http.post(
        "/v1/images/generations", json={"prompt": "a tree"}, headers={"X-Request-Id": "job-7"}
    ) as answer:
        assert (answer.status, answer.headers["X-Request-Id"]) == (201, "job-7")
    async with logged.api.http.get("/v1/images/generations/gen_none") as answer:
        other = answer.headers["X-Request-Id"]
    (access,) = [line for line in logged.lines("access") if "POST" in line]
    assert re.search(r"\[INFO \] \[job-7\] \S+: POST /v1/images/generations 201 \d+\.\d ms \d+ B$", access)
    (called,) = [line for line in logged.lines() if CREATE in line]
    assert re.search(rf"\[DEBUG\] \[job-7\] kit\.rpc: {CREATE}: ok, \d+\.\d ms$", called)
    (asked,) = [line for line in logged.lines() if GET in line and "NOT_FOUND," in line]
    assert f"[{other}]" in asked
    assert other != "job-7"


@pytest.mark.parametrize("wrong", ["", " ", "a b", "x" * 129, "[x]", "ü"])
async def test_an_id_that_could_forge_a_line_is_replaced(logged: Logged, wrong: str) -> None:
    async with logged.api.http.get("/health", headers={"X-Request-Id": wrong}) as answer:
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["X-Request-Id"])


async def test_every_request_has_one_line_whatever_became_of_it(logged: Logged) -> None:
    api = logged.api
    generation_id = await api.post()
    for path in ("/nowhere/%0Aforged?token=secret", "/health?key=secret"):
        async with api.http.get(path) as answer:
            await answer.read()
    async with api.http.get(f"/v1/images/generations/{generation_id}/events") as events:
        await events.content.readany()
        events.close()
    await until(lambda: not running("_beat"))
    async with api.connection() as (reader, writer):
        writer.write(b"no http\r\n\r\n")
        assert b"400" in await reader.readline()
    api.worker.finish(generation_id, png())
    lines = [line.partition("http.access: ")[2] for line in logged.lines("access")]
    requests = [re.sub(r" \d+\.\d ms \d+ B", "", line) for line in lines]
    assert sorted(requests) == [
        "GET /health 200",
        r"GET /nowhere/\nforged 404",
        f"GET /v1/images/generations/{generation_id}/events 200 cut off",
        "POST /v1/images/generations 201",
        "UNKNOWN / 400",
    ]
    assert "secret" not in "".join(logged.lines("access") + logged.lines())


async def test_the_clients_send_the_id_of_their_context(logged: Logged) -> None:
    address = str(logged.api.worker_address)

    def ask() -> None:
        set_request_id("thread-1")
        with Client(image=address) as client, pytest.raises(NotFoundError):
            client.images.get("gen_none")

    thread = threading.Thread(target=ask)
    thread.start()
    async with AsyncClient(image=address) as client:
        set_request_id("task-1")
        with pytest.raises(NotFoundError):
            await client.images.get("gen_none")
        set_request_id("")
    await until(lambda: not thread.is_alive())
    assert any("[thread-1]" in line and GET in line for line in logged.lines())
    assert any("[task-1]" in line and GET in line for line in logged.lines())
    with pytest.raises(ValueError, match="request id"):
        set_request_id("two words")


async def test_a_prompt_is_in_no_line(logged: Logged) -> None:
    for body in ({"prompt": "a private thing"}, {"prompt": "a private thing", "steps": "x"}):
        async with logged.api.http.post("/v1/images/generations", json=body):
            pass
    assert "private" not in "".join(logged.lines("access") + logged.lines())


# As processes


def ask(url: str, headers: dict[str, str] | None = None, body: object = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=STOP_TIMEOUT) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_request_is_followed_through_all_three_services(tmp_path: Path) -> None:
    with running_genaid(tmp_path / "data", "--log-level", "debug") as running:
        images = f"{running.ready['http']}/v1/images/generations"
        assert ask(images, {"X-Request-Id": "one-of-mine"}, {"prompt": "nobody's business"}) in (201, 503)
        assert running.stop() == 0
        lines = (tmp_path / "data" / "logs" / "genaid.log").read_text("utf-8").splitlines()
        mine = [line for line in lines if "[one-of-mine]" in line]
        assert any("genaid.image.v1" in line for line in mine), lines
        assert any("genaid.resource.v1" in line for line in mine), lines
        assert "[one-of-mine]" in (tmp_path / "data" / "logs" / "access.log").read_text("utf-8")
        shown = running.output()
        assert "[one-of-mine]" in shown
        assert "business" not in shown + "\n".join(lines)
        assert "genaid has stopped" in lines[-1]
        assert not [line for line in lines if "asyncio" in line or "filelock" in line]


@contextmanager
def unread(data_dir: Path, ready_file: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A `genaid up` whose stderr is a pipe that nobody reads."""
    argv = [*GENAID, "up", "--data-dir", str(data_dir), "--ready-file", str(ready_file), "--exit-with-parent"]
    argv += ["--http", "127.0.0.1:0", "--resource", "127.0.0.1:0", "--image", "127.0.0.1:0", "--log-level", "debug"]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(argv, env=clean_environment(ONE_THREAD), **streams) as process:
        try:
            yield process
        finally:
            kill_tree(process)


def test_a_service_whose_stderr_nobody_reads_serves_and_stops(tmp_path: Path) -> None:
    ready_file, log = tmp_path / "ready.json", tmp_path / "data" / "logs" / "genaid.log"
    with unread(tmp_path / "data", ready_file) as process:
        wait_until(ready_file.exists, process, log)
        http = json.loads(ready_file.read_bytes())["http"]
        path = "x" * 7000
        for _ in range(PIPE_BYTES // len(path)):
            assert ask(f"{http}/{path}") == 404
        assert ask(f"{http}/health") == 200
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(STOP_TIMEOUT) == 0
        assert process.stderr is not None
        seen = len(process.stderr.read().splitlines())
    assert seen < PIPE_BYTES // len(path)
    last = log.read_text("utf-8").splitlines()[-1]
    assert re.search(r"\d+ lines could not be written on stderr$", last), last


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_takes_the_log_and_nothing_else(tmp_path: Path) -> None:
    logs = tmp_path / "data" / "logs"
    logs.mkdir(parents=True)
    for name in ("genaid.log", "access.log"):
        (logs / name).symlink_to("/dev/full")
    with running_genaid(tmp_path / "data", env={"GENAID_LOG__LEVEL": "error"}) as running:
        assert ask(f"{running.ready['http']}/health") == 200
        assert running.stop() == 0
        shown = running.output()
    assert "genaid is ready" in shown
    assert "Stopped." in shown
    assert "starts" not in shown
