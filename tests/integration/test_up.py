"""`genaid up` and its services alone, as processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import DemoModels
from genaid_client import Client, GenerationSpec, ModelNotFoundError
from support import GENAID, ONE_THREAD, RunningGenaid, clean_environment, genaid, kill_tree, running_genaid, wait_until

STOP_LIMIT = 5.0  # seconds, promised

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")


def health(url: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/health") as response:
        assert response.status == 200
        answer: dict[str, Any] = json.loads(response.read())
        return answer


@contextmanager
def taken_port() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def busy_genaid(data_dir: Path, model: Path) -> Iterator[tuple[RunningGenaid, list[psutil.Process]]]:
    """A genaid in the middle of an image, and its engine."""
    with running_genaid(data_dir) as running:
        imported = genaid("models", "import", str(model), "--data-dir", str(data_dir))
        assert imported.returncode == 0, imported.stderr
        with Client(image=running.ready["image"]) as client:
            client.images.create(GenerationSpec("a long cat", width=64, height=64, steps=200))
            next(engine for engine in client.engine.watch() if engine.busy and engine.pid is not None)
        engines = running.descendants()
        assert engines
        yield running, engines


def assert_gone(engines: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(engines, timeout=STOP_LIMIT)
    assert alive == []


def test_everything_serves_when_the_ready_file_is_there(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running_genaid(data_dir) as running:
        ready = running.ready
        assert set(ready) == {"http", "resource", "image", "pid"}
        assert ready["pid"] == running.process.pid
        assert health(ready["http"])["status"] == "ok"
        with Client(resource=ready["resource"]) as models, Client(image=ready["image"]) as images:
            assert models.models.list() == []
            places = {"resource": ready["resource"], "image": ready["image"], "gateway": ready["http"]}
            assert models.system.get_version().addresses == places
            assert images.engine.get().pid is None
        assert json.loads((data_dir / "run.json").read_bytes()) == ready
        assert all(place in running.output() for place in (ready["http"], ready["resource"], ready["image"]))
        assert "Ctrl-C stops it" in running.output()
        assert running.stop() == 0
        assert not running.ready_file.exists()
        assert not (data_dir / "run.json").exists()
        assert "Traceback" not in running.output()


@pytest.mark.parametrize("option", ["--http", "--resource", "--image"])
def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path, option: str) -> None:
    free = ["--http", "127.0.0.1:0", "--resource", "127.0.0.1:0", "--image", "127.0.0.1:0"]
    with taken_port() as address:
        refused = genaid("up", *free, option, address, "--data-dir", str(tmp_path / "data"))
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert f"Port {address.rpartition(':')[2]} on 127.0.0.1 is in use" in refused.stderr
    assert "[PORT_IN_USE]" in refused.stderr
    assert not (tmp_path / "data").exists()


def test_one_port_for_two_services_is_taken_by_the_first(tmp_path: Path) -> None:
    with taken_port() as address:
        pass
    refused = genaid("up", "--http", address, "--image", address, "--data-dir", str(tmp_path / "data"))
    assert refused.returncode == 1
    assert "[PORT_IN_USE]" in refused.stderr


@pytest.mark.parametrize("command", ["up", "resource-manager", "image-worker"])
def test_a_data_directory_has_one_genaid(tmp_path: Path, command: str) -> None:
    free = {
        "up": ["--http", "127.0.0.1:0", "--resource", "127.0.0.1:0", "--image", "127.0.0.1:0"],
        "resource-manager": ["--resource", "127.0.0.1:0"],
        "image-worker": ["--image", "127.0.0.1:0"],
    }
    with running_genaid(tmp_path) as running:
        refused = genaid(command, *free[command], "--data-dir", str(tmp_path))
        assert refused.returncode == 1
        assert f"process {running.process.pid}" in refused.stderr
        assert str(tmp_path) in refused.stderr
        assert "--data-dir" in refused.stderr
        assert json.loads((tmp_path / "run.json").read_bytes()) == running.ready
        assert health(running.ready["http"])["status"] == "ok"


@pytest.fixture
def hangups_count() -> Iterator[None]:
    """SIGHUP as a terminal's programs have it, even where the tests run under nohup, which children inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@posix_only
@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGTERM"], ["SIGINT", "SIGINT", "SIGTERM"], ["SIGHUP"]])
@pytest.mark.usefixtures("hangups_count")
def test_a_signal_ends_it_in_time_with_no_child_left(
    tmp_path: Path, demo_models: DemoModels, signals: list[str]
) -> None:
    with busy_genaid(tmp_path, demo_models.diffusion) as (running, engines):
        for name in signals:
            running.process.send_signal(getattr(signal, name))
        assert running.process.wait(STOP_LIMIT) == 0
        assert_gone(engines)
        assert "Stopped." in running.output()
        assert "Traceback" not in running.output()
        assert not (tmp_path / "run.json").exists()


def test_it_leaves_with_its_parent(tmp_path: Path, demo_models: DemoModels) -> None:
    with busy_genaid(tmp_path, demo_models.diffusion) as (running, engines):
        assert running.process.stdin is not None
        running.process.stdin.write(b"what arrives there does not matter\n")
        running.process.stdin.close()
        assert running.process.wait(STOP_LIMIT) == 0
        assert_gone(engines)
        assert not running.ready_file.exists()


def test_without_a_parent_to_watch_stdin_does_not_matter(tmp_path: Path) -> None:
    ready_file, log = tmp_path / "ready.json", tmp_path / "log"
    argv = [*GENAID, "up", "--data-dir", str(tmp_path / "data"), "--ready-file", str(ready_file)]
    for option in ("--http", "--resource", "--image"):
        argv += [option, "127.0.0.1:0"]
    with (
        log.open("wb") as output,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=output, env=clean_environment()) as process,
    ):
        try:
            wait_until(ready_file.exists, process, log)
            assert health(json.loads(ready_file.read_bytes())["http"])["status"] == "ok"
            assert process.poll() is None
        finally:
            kill_tree(process)


def test_what_a_killed_genaid_left_stops_nobody(tmp_path: Path) -> None:
    with running_genaid(tmp_path) as running:
        running.process.kill()
        running.process.wait(STOP_LIMIT)
        assert (tmp_path / "run.json").exists()
        lonely = genaid("status", "--data-dir", str(tmp_path), "--image", running.ready["image"])
        assert lonely.returncode == 1
        assert "genaid up" in lonely.stderr
    with running_genaid(tmp_path) as running:
        assert json.loads((tmp_path / "run.json").read_bytes()) == running.ready


def test_settings_come_from_options_the_environment_and_the_file(tmp_path: Path) -> None:
    config = tmp_path / "genaid.toml"
    config.write_text('[image]\nmodel = "file"\nthreads = 1\n')

    def missing_model(*options: str, **environment: str) -> str:
        with (
            running_genaid(tmp_path / "data", "--config", str(config), *options, env=environment) as running,
            Client(image=running.ready["image"]) as client,
            pytest.raises(ModelNotFoundError) as refused,
        ):
            client.images.create(GenerationSpec("x"))
        return refused.value.message

    assert "'file'" in missing_model()
    assert "'environment'" in missing_model(GENAID_IMAGE__MODEL="environment")
    assert "'option'" in missing_model("--image-model", "option", GENAID_IMAGE__MODEL="environment")


@contextmanager
def service(folder: Path, command: str, *args: str) -> Iterator[dict[str, Any]]:
    """Run one service as a process of its own; yields what its ready file says."""
    ready_file, log = folder / f"{command}.json", folder / f"{command}.log"
    argv = [*GENAID, command, *args, "--ready-file", str(ready_file), "--exit-with-parent"]
    with (
        log.open("wb") as output,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=output, env=clean_environment(ONE_THREAD)) as process,
    ):
        try:
            wait_until(ready_file.exists, process, log)
            ready = json.loads(ready_file.read_bytes())
            assert ready.pop("pid") == process.pid
            yield ready
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(STOP_LIMIT) == 0
            assert not ready_file.exists()
        finally:
            kill_tree(process)


def test_each_service_alone_makes_the_same_house(tmp_path: Path, demo_models: DemoModels) -> None:
    data_dir = ["--data-dir", str(tmp_path / "data")]
    with ExitStack() as house:
        manager = house.enter_context(service(tmp_path, "resource-manager", "--resource", "127.0.0.1:0", *data_dir))
        assert set(manager) == {"resource"}
        worker = house.enter_context(
            service(tmp_path, "image-worker", "--image", "127.0.0.1:0", "--resource", manager["resource"], *data_dir)
        )
        assert set(worker) == {"image"}
        gateway = house.enter_context(
            service(tmp_path, "gateway", "--http", "127.0.0.1:0", "--image", worker["image"], *data_dir)
        )
        assert set(gateway) == {"http"}
        assert health(gateway["http"]) == {"status": "ok", "busy": False}
        imported = genaid("models", "import", str(demo_models.diffusion), "--resource", manager["resource"], *data_dir)
        assert imported.returncode == 0, imported.stderr
        picture = tmp_path / "out.png"
        drawn = genaid(
            "generate", "x", "--size", "64x64", "--steps", "2", "-o", str(picture), "--image", worker["image"]
        )
        assert drawn.returncode == 0, drawn.stderr
        assert picture.read_bytes().startswith(b"\x89PNG")


@posix_only
def test_nohup_is_respected(tmp_path: Path) -> None:
    def ignore_hangup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    before = signal.getsignal(signal.SIGHUP)
    ignore_hangup()  # an ignored signal is inherited by the child
    try:
        with running_genaid(tmp_path) as running:
            os.kill(running.process.pid, signal.SIGHUP)
            assert health(running.ready["http"])["status"] == "ok"
            assert running.stop() == 0
            assert "Stopping" in running.output()
    finally:
        signal.signal(signal.SIGHUP, before)
