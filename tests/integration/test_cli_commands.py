"""The commands against a genaid of its own process, with the real engine and a small model."""

import io
import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import DemoModels
from genaid_client import Client, GenerationSpec, GenerationState
from support import GENAID, RunningGenaid, clean_environment, genaid, kill_tree, running_genaid

TINY = ("--size", "64x64", "--steps", "2")
LONG = ("--size", "64x64", "--steps", "200", "--count", "5")
MODEL = "demo"
LLM = f"small-llm-{'x' * 60}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, demo_models: DemoModels) -> Iterator[RunningGenaid]:
    data_dir = tmp_path_factory.mktemp("data")
    with running_genaid(data_dir, "--image-model", MODEL) as started:
        done = genaid("models", "import", str(demo_models.diffusion), "--id", MODEL, "--data-dir", str(data_dir))
        assert done.returncode == 0, done.stderr
        yield started


@pytest.fixture
def here(running: RunningGenaid) -> tuple[str, str]:
    """The option that finds the server."""
    return "--data-dir", str(running.data_dir)


@pytest.fixture
def client(running: RunningGenaid) -> Iterator[Client]:
    with Client(image=running.ready["image"]) as client:
        yield client


def png_size(file: Path) -> tuple[int, int]:
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_the_life_of_a_model(running: RunningGenaid, here: tuple[str, str], demo_models: DemoModels) -> None:
    imported = genaid("models", "import", str(demo_models.llm), "--name", "Größe 7", "--id", LLM, *here)
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.strip() == LLM
    assert demo_models.llm.exists()
    assert list((running.data_dir / "inbox").iterdir()) == []

    listed = genaid("models", "list", *here)
    assert listed.returncode == 0
    row = next(line for line in listed.stdout.splitlines() if line.startswith(LLM))
    assert "Größe 7" in row
    assert "llm" in row
    assert "B " in row  # a size with a unit

    only_llms = json.loads(genaid("models", "list", "--type", "llm", "--json", *here).stdout)
    assert [(model["id"], model["type"]) for model in only_llms] == [(LLM, "llm")]
    assert only_llms[0]["size_bytes"] == demo_models.llm.stat().st_size

    shown = genaid("models", "show", LLM, *here)
    assert "sha256:" in shown.stdout
    assert f"imported from {demo_models.llm.name}" in shown.stdout
    assert json.loads(genaid("models", "show", LLM, "--json", *here).stdout) == only_llms[0]
    raw = json.loads(genaid("models", "show", LLM, "--raw", "--json", *here).stdout)
    assert raw.pop("raw_metadata")["general.architecture"] == raw["architecture"] == "llama"
    assert raw == only_llms[0]
    assert "general.architecture" in genaid("models", "show", LLM, "--raw", *here).stdout

    removed = genaid("models", "rm", LLM, *here)
    assert removed.returncode == 0
    assert LLM in removed.stderr
    again = genaid("models", "rm", LLM, "--json", *here)
    assert again.returncode == 1
    assert json.loads(again.stderr)["error"]["code"] == "MODEL_NOT_FOUND"
    assert demo_models.llm.exists()


def test_a_damaged_model_is_found(here: tuple[str, str], demo_models: DemoModels, tmp_path: Path) -> None:
    file = tmp_path / "copy.gguf"
    file.write_bytes(demo_models.llm.read_bytes())
    imported = genaid("models", "import", str(file), "--id", "fragile", "--json", *here)
    assert imported.returncode == 0, imported.stderr
    sound = genaid("models", "verify", "fragile", *here)
    assert (sound.returncode, sound.stdout.split()[0]) == (0, "valid")

    model = json.loads(imported.stdout)
    with Path(model["path"]).open("r+b") as weights:
        weights.seek(-1, io.SEEK_END)
        last = weights.read(1)
        weights.seek(-1, io.SEEK_END)
        weights.write(bytes([last[0] ^ 1]))
    damaged = genaid("models", "verify", "fragile", "--json", *here)
    assert (damaged.returncode, damaged.stderr) == (1, "")
    found = json.loads(damaged.stdout)
    assert (found["result"], found["files"][0]["expected"]) == ("invalid", model["checksum"])
    assert found["files"][0]["actual"] not in ("", model["checksum"])
    assert genaid("models", "rm", "fragile", *here).returncode == 0
    assert genaid("models", "verify", "fragile", *here).returncode == 1


def test_a_header_is_read_anew(here: tuple[str, str], demo_models: DemoModels) -> None:
    imported = genaid("models", "import", str(demo_models.llm), "--id", "reread", "--json", *here)
    assert imported.returncode == 0, imported.stderr
    for source in ("local-remote", "local-only", "remote-local"):
        refreshed = genaid("models", "refresh", "reread", "--source", source, "--json", *here)
        assert refreshed.returncode == 0, refreshed.stderr
        assert json.loads(refreshed.stdout) == json.loads(imported.stdout)
    elsewhere = genaid("models", "refresh", "reread", "--source", "remote-only", *here)
    assert elsewhere.returncode == 1
    assert "[DOWNLOAD_FAILED]" in elsewhere.stderr
    assert genaid("models", "rm", "reread", *here).returncode == 0


def test_a_file_that_is_no_model_is_refused_and_not_kept(
    running: RunningGenaid, here: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "letter.gguf"
    file.write_text("Dear reader, this is no model.")
    refused = genaid("models", "import", str(file), "--json", *here)
    assert refused.returncode == 1
    assert json.loads(refused.stderr)["error"]["code"] == "INVALID_REQUEST"
    assert list((running.data_dir / "inbox").iterdir()) == []
    assert file.exists()


def test_one_image(here: tuple[str, str], tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    drawn = genaid("generate", "a cat", *TINY, "--seed", "7", "-o", str(picture), *here)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout == f"{picture}\n"
    assert "seed 7" in drawn.stderr
    assert png_size(picture) == (64, 64)

    first = picture.read_bytes()
    again = genaid("generate", "a cat", *TINY, "--seed", "8", "-o", str(picture), *here)
    assert again.returncode == 0, again.stderr
    assert png_size(picture) == (64, 64)
    assert picture.read_bytes() != first


def test_several_images_with_every_option(here: tuple[str, str], tmp_path: Path) -> None:
    drawn = genaid(
        *("generate", "a cat", "--negative", "a dog", "--size", "72x64", "--steps", "2", "--cfg-scale", "3.5"),
        *("--seed", "7", "--sampler", "dpm++2m", "--count", "2", "-o", "out.png", "--model", MODEL, "--json", *here),
        cwd=tmp_path,
    )
    assert drawn.returncode == 0, drawn.stderr
    result = json.loads(drawn.stdout)
    assert result["model_id"] == MODEL
    assert [(image["file"], image["seed"]) for image in result["images"]] == [("out-1.png", 7), ("out-2.png", 8)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out-1.png", "out-2.png"]
    assert png_size(tmp_path / "out-1.png") == png_size(tmp_path / "out-2.png") == (72, 64)


def test_the_file_is_named_after_the_seed(here: tuple[str, str], tmp_path: Path) -> None:
    drawn = genaid("generate", *TINY, "--seed", "9", *here, "--", "--a prompt that begins with dashes", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout == "genaid-9.png\n"
    text = (tmp_path / "genaid-9.png").read_bytes()
    assert b"--a prompt that begins with dashes" in text


def test_the_prompt_comes_from_stdin(here: tuple[str, str], tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    drawn = genaid("generate", "-", *TINY, "-o", str(picture), *here, stdin="a fox 🦊\n".encode())
    assert drawn.returncode == 0, drawn.stderr
    assert png_size(picture) == (64, 64)
    refused = genaid("generate", "-", *TINY, "-o", str(picture), *here, stdin=b"\xff\xfe")
    assert refused.returncode == 2
    assert "not UTF-8" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["", *TINY], "INVALID_REQUEST", "prompt"),
        (["x", "--steps", "99999999999999"], "INVALID_REQUEST", "steps"),
        (["x", "--size", "63x64"], "INVALID_REQUEST", "width"),
        (["x", "--model", "no-such-model"], "MODEL_NOT_FOUND", "no-such-model"),
    ],
)
def test_what_the_server_refuses_is_said_in_a_line(
    here: tuple[str, str], tmp_path: Path, arguments: list[str], code: str, word: str
) -> None:
    refused = genaid("generate", *arguments, *here, cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert code in refused.stderr
    assert word in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_sees_a_bar(here: tuple[str, str], tmp_path: Path) -> None:
    drawn = genaid("generate", "x", *TINY, *here, cwd=tmp_path, env={"FORCE_COLOR": "1", "COLUMNS": "120"})
    assert drawn.returncode == 0, drawn.stderr
    assert "%" in drawn.stderr
    assert "━" in drawn.stderr
    plain = genaid("generate", "x", *TINY, *here, cwd=tmp_path)
    assert "%" not in plain.stderr


@contextmanager
def _drawing(here: tuple[str, str], folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A command in the middle of an image; it is gone when the block ends."""
    with subprocess.Popen(
        [*GENAID, "generate", "a long cat", *LONG, *here],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment({"FORCE_COLOR": "1", "COLUMNS": "120"}),  # for the bar, which shows what it knows
    ) as process:
        try:
            _await_output(process, "step 1")
            yield process
        finally:
            kill_tree(process)


def _await_output(process: "subprocess.Popen[bytes]", text: str) -> None:
    stream = process.stderr
    assert isinstance(stream, io.BufferedReader)
    seen = ""
    while text not in seen:
        piece = stream.read1()
        assert piece, f"it ended: {seen}"
        seen += piece.decode("utf-8", "replace")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")
def test_ctrl_c_cancels_on_the_server(here: tuple[str, str], client: Client, tmp_path: Path) -> None:
    with _drawing(here, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == b""
    assert b"Cancelled" in stderr
    assert b"Traceback" not in stderr
    assert not client.engine.get().busy
    assert client.images.list(GenerationState.IN_PROGRESS) == []
    assert list(tmp_path.iterdir()) == []


def test_a_killed_command_cancels_on_the_server_as_well(here: tuple[str, str], client: Client, tmp_path: Path) -> None:
    with _drawing(here, tmp_path):
        pass
    next(engine for engine in client.engine.watch() if not engine.busy)
    assert client.images.list(GenerationState.IN_PROGRESS) == []


def test_what_somebody_else_cancels_ends_the_command(here: tuple[str, str], client: Client, tmp_path: Path) -> None:
    with _drawing(here, tmp_path) as process:
        (running,) = client.images.list(GenerationState.IN_PROGRESS)
        client.images.cancel(running.id)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"Error: The generation was cancelled. [ALREADY_TERMINAL]" in stderr
    assert list(tmp_path.iterdir()) == []


def test_status_tells_what_runs(running: RunningGenaid, here: tuple[str, str], client: Client) -> None:
    generation = client.images.create(GenerationSpec("a long cat", width=64, height=64, steps=200))
    try:
        plain = genaid("status", *here)
        detailed = json.loads(genaid("status", "--json", *here).stdout)
    finally:
        client.images.delete(generation.id)
    assert plain.returncode == 0
    assert all(str(place) in plain.stdout for place in running.ready.values())
    assert generation.id in plain.stdout
    assert detailed["server"]["http"] == running.ready["http"]
    assert detailed["engine"]["model_id"] == MODEL
    assert [unfinished["id"] for unfinished in detailed["generations"]] == [generation.id]


def test_the_life_of_the_engine(here: tuple[str, str]) -> None:
    stopped = genaid("engine", "stop", *here)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped, refuses images until it is started" in stopped.stdout
    refused = genaid("generate", "x", *TINY, *here)
    assert refused.returncode == 1
    assert "[SERVER_ERROR]" in refused.stderr

    started = genaid("engine", "start", "--threads", "1", "--keep-alive", "-1", "--vae-tiling", "--json", *here)
    assert started.returncode == 0, started.stderr
    engine = json.loads(started.stdout)
    assert (engine["state"], engine["model_id"], engine["threads"]) == ("running", MODEL, 1)
    assert engine["keep_alive_seconds"] < 0
    assert engine["options"]["vae_tiling"]

    other = genaid("engine", "start", "--model", MODEL, "--threads", "2", *here)
    assert other.returncode == 1
    assert "[SERVER_BUSY]" in other.stderr
    replaced = genaid("engine", "start", "--model", MODEL, "--threads", "2", "--replace", *here)
    assert replaced.returncode == 0, replaced.stderr
    assert "running" in genaid("engine", "status", *here).stdout

    logs = genaid("engine", "logs", "-n", "3", *here)
    assert len(logs.stdout.splitlines()) == 3
    entries = [json.loads(line) for line in genaid("engine", "logs", "-n", "3", "--json", *here).stdout.splitlines()]
    assert [entry["message"] for entry in entries] == [line.split(maxsplit=2)[2] for line in logs.stdout.splitlines()]


def test_following_the_log_shows_new_lines(here: tuple[str, str]) -> None:
    started = genaid("engine", "start", "--model", MODEL, "--threads", "1", "--replace", *here)
    assert started.returncode == 0, started.stderr
    argv = [*GENAID, "engine", "logs", "-n", "1", "-f", *here]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip()  # the newest of the present lines
            genaid("engine", "start", "--model", MODEL, "--threads", "2", "--replace", *here)
            assert process.stdout.readline().strip()
        finally:
            kill_tree(process)


@pytest.mark.parametrize("arguments", [("models", "list"), ("models", "list", "--json"), ("engine", "logs")])
def test_a_reader_that_leaves_is_no_accident(here: tuple[str, str], arguments: tuple[str, ...]) -> None:
    argv = [*GENAID, *arguments, *here]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
    assert b"Traceback" not in complaint
    assert b"Exception" not in complaint


def test_demo_models(tmp_path: Path) -> None:
    written = genaid("demo-models", str(tmp_path / "new folder"))
    assert written.returncode == 0, written.stderr
    files = [Path(line) for line in written.stdout.splitlines()]
    assert [file.name for file in files] == ["llm.gguf", "diffusion.gguf"]
    assert all(file.read_bytes()[:4] == b"GGUF" for file in files)
    assert "random" in written.stderr
    assert "genaid models import" in written.stderr
