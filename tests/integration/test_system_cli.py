"""What `genaid system` tells of this machine, from a genaid of its own process."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conftest import DemoModels
from support import GENAID, RunningGenaid, clean_environment, genaid, kill_tree, running_genaid

IMAGE_MODEL = "draws"
LLM = "speaks"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, demo_models: DemoModels) -> Iterator[RunningGenaid]:
    data_dir = tmp_path_factory.mktemp("data")
    with running_genaid(data_dir, "--image-model", IMAGE_MODEL) as started:
        for file, model_id in ((demo_models.diffusion, IMAGE_MODEL), (demo_models.llm, LLM)):
            done = genaid("models", "import", str(file), "--id", model_id, "--data-dir", str(data_dir))
            assert done.returncode == 0, done.stderr
        yield started


@pytest.fixture
def here(running: RunningGenaid) -> tuple[str, str]:
    """The option that finds the server."""
    return "--data-dir", str(running.data_dir)


def test_the_machine_is_told(here: tuple[str, str]) -> None:
    shown = genaid("system", *here)
    assert (shown.returncode, shown.stderr) == (0, "")
    for word in ("CPU", "main memory", "platform", "RECOMMENDED", "threads", "TOTAL"):
        assert word in shown.stdout
    told = genaid("system", "--json", "--refresh", *here)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    machine, memory = found["capabilities"], found["memory"]
    assert machine["platform"] == sys.platform
    assert machine["cpu"]["logical_cores"] == psutil.cpu_count()
    assert 1 <= machine["cpu"]["usable_cores"] <= machine["cpu"]["logical_cores"]
    assert 1 <= machine["recommendations"]["threads"] <= machine["cpu"]["usable_cores"]
    assert machine["cpu"]["model"] in shown.stdout
    assert 0 < memory["ram"]["total_bytes"] <= psutil.virtual_memory().total
    assert memory["ram"]["used_bytes"] + memory["ram"]["available_bytes"] == memory["ram"]["total_bytes"]
    assert [gpu["gpu_id"] for gpu in memory["gpus"]] == [gpu["id"] for gpu in machine["gpus"]]


def test_memory_tells_what_the_engine_holds(here: tuple[str, str]) -> None:
    started = genaid("engine", "start", "--model", IMAGE_MODEL, "--replace", "--json", *here)
    assert started.returncode == 0, started.stderr
    try:
        told = genaid("system", "--json", *here)
        shown = genaid("system", *here)
    finally:
        assert genaid("engine", "stop", *here).returncode == 0
    assert told.returncode == 0, told.stderr
    (engine,) = json.loads(told.stdout)["memory"]["engines"]
    assert (engine["kind"], engine["model_id"], engine["pid"]) == (
        "image",
        IMAGE_MODEL,
        json.loads(started.stdout)["pid"],
    )
    assert engine["resident_bytes"] > 2**20
    assert [line.split()[:3] for line in shown.stdout.splitlines() if line.startswith("image")] == [
        ["image", IMAGE_MODEL, str(engine["pid"])]
    ]
    assert json.loads(genaid("system", "--json", *here).stdout)["memory"]["engines"] == []


def watching(here: tuple[str, str], *arguments: str) -> "subprocess.Popen[bytes]":
    argv = [*GENAID, "system", "--watch", "--interval", "0.1", *arguments, *here]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment())


def first_lines(process: "subprocess.Popen[bytes]", count: int) -> list[str]:
    assert isinstance(process.stdout, io.BufferedReader)
    return [process.stdout.readline().decode() for _ in range(count)]


def test_watching_goes_on_for_programs(here: tuple[str, str]) -> None:
    with watching(here, "--json") as process:
        try:
            states = [json.loads(line) for line in first_lines(process, 3)]
        finally:
            kill_tree(process)
    assert len({state["time"] for state in states}) == 3
    assert states[0]["ram"]["total_bytes"] == states[2]["ram"]["total_bytes"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_ctrl_c_ends_watching(here: tuple[str, str], arguments: tuple[str, ...]) -> None:
    with watching(here, *arguments) as process:
        try:
            lines = first_lines(process, 2)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
        finally:
            kill_tree(process)
    assert process.returncode == 130
    assert all(lines)
    assert b"Traceback" not in stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
def test_a_terminal_sees_memory_live(here: tuple[str, str]) -> None:
    import pty

    master, terminal = pty.openpty()
    argv = [*GENAID, "system", "--watch", "--interval", "0.1", *here]
    environment = clean_environment({"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"})
    with subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, env=environment) as process:
        os.close(terminal)
        try:
            seen = b""
            while seen.count(b"main memory") < 3:
                seen += os.read(master, 65536)
            process.send_signal(signal.SIGINT)
            rest = drain(master)
            assert process.wait(30) == 130
        finally:
            kill_tree(process)
            os.close(master)
    assert "━".encode() in seen
    assert b"\x1b[?25h" in rest  # the cursor is back


def drain(descriptor: int) -> bytes:
    """What a terminal shows until its program ends."""
    seen = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # Linux tells so that the other end is closed
            return seen
        if not piece:
            return seen
        seen += piece


def test_a_service_that_goes_ends_watching(tmp_path: Path) -> None:
    with running_genaid(tmp_path) as other, watching(("--data-dir", str(tmp_path))) as process:
        try:
            assert all(first_lines(process, 1))
            other.stop()
            _, stderr = process.communicate(timeout=30)
        finally:
            kill_tree(process)
    assert process.returncode == 1
    assert stderr.count(b"\n") == 1
    assert stderr.strip().endswith(b"[UNREACHABLE]")


def test_small_models_can_run(here: tuple[str, str]) -> None:
    for model_id, options in ((LLM, ("--context", "256")), (IMAGE_MODEL, ("--width", "64", "--height", "64"))):
        checked = genaid("system", "check", model_id, "--total", *options, *here)
        assert checked.returncode == 0, checked.stderr + checked.stdout
        assert checked.stdout.split()[:2] == ["possible", "yes"]
        found = json.loads(genaid("system", "check", model_id, "--total", *options, "--json", *here).stdout)
        assert found["need"]["exact"] is True
        assert 0 < found["required_bytes"] <= found["available_bytes"]
        for kind in ("ram", "vram"):
            parts = found["need"][kind]
            assert parts["total_bytes"] == sum(parts.values()) - parts["total_bytes"]
    assert found["llm_config"] is None


def test_what_is_recommended_can_run(here: tuple[str, str]) -> None:
    asked = genaid("system", "recommend", LLM, "--context", "256", "--parallel", "2", "--json", *here)
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    config = found["config"]
    assert (config["context_size"], config["parallel_requests"], found["fits"]) == (256, 2, True)
    assert None not in config.values()
    checked = genaid(
        *("system", "check", LLM, "--context", str(config["context_size"]), "--gpu-layers", str(config["gpu_layers"])),
        *("--parallel", str(config["parallel_requests"]), "--cache-type", config["cache_type_k"], *here),
    )
    assert checked.returncode == 0, checked.stdout
    shown = genaid("system", "recommend", LLM, *here)
    assert shown.returncode == 0, shown.stderr
    for word in ("SETTING", "threads", "GPU layers", "context", "total"):
        assert word in shown.stdout


def test_a_model_that_can_not_run_is_an_answer_with_status_1(tmp_path: Path, demo_models: DemoModels) -> None:
    scarce = {"GENAID_MEMORY__RAM_LIMIT_BYTES": "1000000", "GENAID_MEMORY__VRAM_LIMIT_BYTES": "1000000"}
    here = ("--data-dir", str(tmp_path))
    with running_genaid(tmp_path, env=scarce):
        imported = genaid("models", "import", str(demo_models.diffusion), "--id", IMAGE_MODEL, *here)
        assert imported.returncode == 0, imported.stderr
        checked = genaid("system", "check", IMAGE_MODEL, "--total", *here)
        told = json.loads(genaid("system", "--json", *here).stdout)
    assert (checked.returncode, checked.stderr) == (1, "")
    assert checked.stdout.split()[:2] == ["possible", "no"]
    assert "reason" in checked.stdout
    assert told["memory"]["ram"]["budget_bytes"] == told["memory"]["vram_budget_bytes"] == 1_000_000


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("check", "no-such-model"), "MODEL_NOT_FOUND"),
        (("check", IMAGE_MODEL, "--width", "99999999999999"), "INVALID_REQUEST"),
        (("recommend", IMAGE_MODEL), "INVALID_REQUEST"),
        (("show", "--watch", "--interval", "nan"), "INVALID_REQUEST"),
    ],
)
def test_what_is_refused_is_said_in_a_line(here: tuple[str, str], arguments: tuple[str, ...], code: str) -> None:
    refused = genaid("system", *arguments, *here)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.strip().endswith(f"[{code}]")
    assert json.loads(genaid("system", *arguments, "--json", *here).stderr)["error"]["code"] == code
