"""The LLM's commands against a genaid of its own process, with the real engine and a small model."""

import io
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import DemoModels
from genaid_client import Client, ServerState
from support import GENAID, RunningGenaid, clean_environment, genaid, kill_tree, running_genaid, wait_until

MODEL = "speaks"
IMAGE_MODEL = "draws"
KEY = "s3cret-key"
NEVER_READY = json.dumps([sys.executable, "-c", "import sys; sys.stdin.buffer.read()"])
DIES = json.dumps([sys.executable, "-c", "import sys; sys.exit('0.00.000.001 E no such luck')"])


def install(data_dir: Path, file: Path, model_id: str) -> None:
    done = genaid("models", "import", str(file), "--id", model_id, "--data-dir", str(data_dir))
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, demo_models: DemoModels) -> Iterator[RunningGenaid]:
    data_dir = tmp_path_factory.mktemp("data")
    with running_genaid(data_dir, "--llm-port", "0") as started:
        install(data_dir, demo_models.llm, MODEL)
        install(data_dir, demo_models.diffusion, IMAGE_MODEL)
        yield started


@pytest.fixture
def here(running: RunningGenaid) -> Iterator[tuple[str, str]]:
    """The option that finds the server, which runs no LLM then."""
    yield "--data-dir", str(running.data_dir)
    with Client(resource=running.ready["resource"]) as client:
        client.llm.stop()


@pytest.fixture
def manager(running: RunningGenaid) -> Iterator[Client]:
    with Client(resource=running.ready["resource"]) as client:
        yield client


def test_up_says_where_the_llm_will_be(running: RunningGenaid) -> None:
    assert "The LLM engine serves on a free port" in running.output()


def test_the_life_of_the_llm(here: tuple[str, str], running: RunningGenaid) -> None:
    before = genaid("llm", "status", *here)
    assert (before.returncode, before.stderr) == (0, "")
    assert "LLM engine stopped" in before.stdout

    started = genaid("llm", "start", MODEL, "--context", "512", "--threads", "1", "--parallel", "1", *here)
    assert started.returncode == 0, started.stderr
    assert "genaid chat" in started.stderr
    told = json.loads(genaid("llm", "status", "--json", *here).stdout)
    assert (told["state"], told["health"], told["model_id"]) == ("running", "ok", MODEL)
    assert (told["config"]["context_size"], told["config"]["threads"]) == (512, 1)
    assert told["base_url"] in started.stdout
    with urllib.request.urlopen(f"{told['base_url']}/health") as answer:  # noqa: S310 - it is http
        assert answer.status == 200

    same = genaid("llm", "start", MODEL, "--context", "512", "--threads", "1", "--parallel", "1", "--json", *here)
    assert json.loads(same.stdout)["pid"] == told["pid"]
    other = genaid("llm", "start", MODEL, "--context", "256", *here)
    assert other.returncode == 1
    assert "[SERVER_BUSY]" in other.stderr
    replaced = genaid("llm", "start", MODEL, "--context", "256", "--replace", "--json", *here)
    assert json.loads(replaced.stdout)["config"]["context_size"] == 256

    again = json.loads(genaid("llm", "restart", "--json", *here).stdout)
    assert again["pid"] != json.loads(replaced.stdout)["pid"]
    assert again["config"] == json.loads(replaced.stdout)["config"]

    both = genaid("status", *here)
    assert both.returncode == 0, both.stderr
    assert again["base_url"] in both.stdout
    assert all(str(place) in both.stdout for place in running.ready.values())

    stopped = genaid("llm", "stop", *here)
    assert "LLM engine stopped" in stopped.stdout
    assert genaid("llm", "stop", *here).returncode == 0


def test_a_key_is_asked_for_and_never_shown(here: tuple[str, str], running: RunningGenaid, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    started = genaid("llm", "start", MODEL, "--api-key-file", str(file), "--json", *here)
    assert started.returncode == 0, started.stderr
    refused = genaid("chat", "hi", "--max-tokens", "3", *here)
    assert refused.returncode == 1
    assert "--api-key-file" in refused.stderr
    by_file = genaid("chat", "hi", "--max-tokens", "3", "--api-key-file", str(file), *here)
    assert by_file.returncode == 0, by_file.stderr
    by_environment = genaid("chat", "hi", "--max-tokens", "3", *here, env={"GENAID_LLM_API_KEY": KEY})
    assert by_environment.returncode == 0, by_environment.stderr
    logs = genaid("llm", "logs", "-n", "5000", "--json", *here)
    for shown in (started.stdout, logs.stdout, running.output(), *(p.stdout for p in (refused, by_file))):
        assert KEY not in shown
    assert not any(KEY in " ".join(process.cmdline()) for process in running.descendants())


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["llm", "start", "nobody"], "MODEL_NOT_FOUND", "nobody"),
        (["llm", "start", IMAGE_MODEL], "MODEL_NOT_FOUND", "language model"),
        (["llm", "start", MODEL, "--port", "70000"], "INVALID_REQUEST", "port"),
        (["llm", "start", MODEL, "--host", "0.0.0.0"], "INVALID_REQUEST", "loopback"),  # noqa: S104 - it is refused
        (["llm", "start", MODEL, "--threads", "0"], "INVALID_REQUEST", "threads"),
        (["chat", "x", "--model", "nobody"], "MODEL_NOT_FOUND", "nobody"),
    ],
)
def test_what_the_server_refuses_is_said_in_a_line(
    here: tuple[str, str], arguments: list[str], code: str, word: str
) -> None:
    refused = genaid(*arguments, *here)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.count("\n") == 1
    assert f"[{code}]" in refused.stderr
    assert word in refused.stderr


def test_a_taken_port_is_told_before_anything_loads(here: tuple[str, str], running: RunningGenaid) -> None:
    taken = running.ready["image"].rpartition(":")[2]
    refused = genaid("llm", "start", MODEL, "--port", taken, *here)
    assert refused.returncode == 1
    assert "[PORT_IN_USE]" in refused.stderr


def test_a_chat_starts_the_only_model(here: tuple[str, str], manager: Client) -> None:
    assert manager.llm.get().state is ServerState.STOPPED
    asked = genaid("chat", "hi", "--max-tokens", "7", "--temperature", "0", "--system", "Be brief.", *here)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert "tokens/s" in asked.stderr
    assert (manager.llm.get().state, manager.llm.get().model_id) == (ServerState.RUNNING, MODEL)

    piped = genaid("chat", "-", "--max-tokens", "7", "--temperature", "0", "--json", *here, stdin=b"hi\n")
    answer = json.loads(piped.stdout)
    assert (answer["model_id"], answer["tokens"]) == (MODEL, answer["timings"]["predicted_n"])
    assert answer["finish_reason"] in {"length", "stop"}
    assert answer["tokens_per_second"] > 0

    other = genaid("chat", "hi", "--model", IMAGE_MODEL, *here)
    assert "[SERVER_BUSY]" in other.stderr


def test_a_conversation(here: tuple[str, str]) -> None:
    talk = genaid("chat", "--max-tokens", "4", *here, stdin=b"one\n\ntwo\n/exit\nthree\n")
    assert talk.returncode == 0, talk.stderr
    assert talk.stderr.count("tokens/s") == 2


def test_a_conversation_that_is_too_long(here: tuple[str, str]) -> None:
    started = genaid("llm", "start", MODEL, "--context", "256", "--parallel", "1", *here)
    assert started.returncode == 0, started.stderr
    refused = genaid("chat", "-", *here, stdin=b"x" * 5000)
    assert refused.returncode == 1
    assert "--context" in refused.stderr
    assert "[INVALID_REQUEST]" in refused.stderr


def test_the_log(here: tuple[str, str], running: RunningGenaid) -> None:
    assert genaid("llm", "start", MODEL, *here).returncode == 0
    plain = genaid("llm", "logs", "-n", "3", *here)
    entries = [json.loads(line) for line in genaid("llm", "logs", "-n", "3", "--json", *here).stdout.splitlines()]
    assert [entry["message"] for entry in entries] == [line.split(maxsplit=2)[2] for line in plain.stdout.splitlines()]
    file = running.data_dir / "logs" / "llm-engine.log"
    assert entries[-1]["raw"] in file.read_text("utf-8")

    assert genaid("llm", "logs", "--clear", *here).returncode == 0
    assert genaid("llm", "logs", *here).stdout == ""
    assert not file.exists()


def test_following_the_log_shows_new_lines(here: tuple[str, str], manager: Client) -> None:
    assert genaid("llm", "start", MODEL, *here).returncode == 0
    argv = [*GENAID, "llm", "logs", "-n", "1", "-f", *here]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip()  # the newest of the present lines
            manager.llm.restart()
            assert process.stdout.readline().strip()
        finally:
            kill_tree(process)


def await_output(process: "subprocess.Popen[bytes]", text: str) -> None:
    stream = process.stderr
    assert isinstance(stream, io.BufferedReader)
    seen = ""
    while text not in seen:
        piece = stream.read1()
        assert piece, f"it ended: {seen}"
        seen += piece.decode("utf-8", "replace")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")
@pytest.mark.parametrize("arguments", [["llm", "start", MODEL], ["chat", "hi"]])
def test_ctrl_c_leaves_it_loading_and_says_so(tmp_path: Path, demo_models: DemoModels, arguments: list[str]) -> None:
    with running_genaid(tmp_path, "--llm-port", "0", env={"GENAID_LLM__ENGINE_COMMAND": NEVER_READY}) as started:
        install(tmp_path, demo_models.llm, MODEL)
        with (
            Client(resource=started.ready["resource"]) as manager,
            subprocess.Popen(
                [*GENAID, *arguments, "--data-dir", str(tmp_path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=clean_environment({"FORCE_COLOR": "1", "COLUMNS": "120"}),  # for the bar
            ) as process,
        ):
            try:
                await_output(process, "loading the model")
                process.send_signal(signal.SIGINT)
                stdout, stderr = process.communicate(timeout=30)
            finally:
                kill_tree(process)
            assert (process.returncode, stdout) == (130, b"")
            assert b"goes on loading" in stderr
            assert b"genaid llm stop" in stderr
            assert b"Traceback" not in stderr
            assert manager.llm.get().state is ServerState.STARTING
            assert manager.llm.stop().state is ServerState.STOPPED


def test_a_reader_that_leaves_is_no_accident(here: tuple[str, str]) -> None:
    assert genaid("llm", "start", MODEL, *here).returncode == 0
    argv = [*GENAID, "chat", "hi", *here]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
    assert b"Traceback" not in complaint
    assert b"Exception" not in complaint


def test_an_engine_that_dies_while_loading_shows_its_log(tmp_path: Path, demo_models: DemoModels) -> None:
    with running_genaid(tmp_path, "--llm-port", "0", env={"GENAID_LLM__ENGINE_COMMAND": DIES}):
        install(tmp_path, demo_models.llm, MODEL)
        failed = genaid("llm", "start", MODEL, "--data-dir", str(tmp_path))
        assert failed.returncode == 1
        first, *log = failed.stderr.splitlines()
        assert first.startswith("Error: ")
        assert first.endswith("[SERVER_ERROR]")
        assert "  0.00.000.001 E no such luck" in log
        failure = json.loads(genaid("llm", "start", MODEL, "--json", "--data-dir", str(tmp_path)).stderr)["error"]
        assert "no such luck" in failure["message"]
        told = genaid("llm", "status", "--data-dir", str(tmp_path))
        assert "genaid llm logs" in told.stdout
        assert "no such luck" in genaid("llm", "logs", "--data-dir", str(tmp_path)).stdout


def test_up_with_a_model_loads_it(tmp_path: Path, demo_models: DemoModels) -> None:
    with running_genaid(tmp_path):
        install(tmp_path, demo_models.llm, MODEL)
    options = ("--llm-model", MODEL, "--llm-port", "0")
    with (
        running_genaid(tmp_path, *options, env={"GENAID_LLM_API_KEY": KEY}) as started,
        Client(resource=started.ready["resource"]) as manager,
    ):
        assert f"once {MODEL} is loaded" in started.output()
        wait_until(lambda: manager.llm.get().state is ServerState.RUNNING, started.process, started.log)
        asked = genaid("chat", "hi", "--max-tokens", "3", "--data-dir", str(tmp_path))
        assert asked.returncode == 0, asked.stderr
