"""The command line without a server: what it understands, and how it refuses."""

import errno
import json
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from genaid_client import GenerationSpec, NotFoundError, ServerBusyError
from genaid_client import types as client
from genaid_server.cli.command import reported
from genaid_server.cli.commands.generate import SizeOption, file_names
from genaid_server.cli.main import COMMANDS, app, load_command
from genaid_server.cli.output import print_json
from genaid_server.cli.views.generations import describe, detail, percentage
from genaid_server.kit.errors import PortInUseError


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address where nothing listens, and that nobody else gets meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def test_no_arguments_show_the_commands(runner: CliRunner) -> None:
    result = runner.invoke(app, [])
    assert result.exit_code == 2
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", result.output, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_listed_summary_is_the_one_of_the_command(name: str) -> None:
    summary = COMMANDS[name][1]
    assert load_command(name).help.splitlines()[0] == summary
    assert "..." not in summary


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_for_every_option(runner: CliRunner, name: str) -> None:
    commands = [load_command(name)]
    commands += list(getattr(commands[0], "commands", {}).values())
    for command in commands:
        assert command.help
        for parameter in command.params:
            assert parameter.help, f"{command.name} {parameter.name}"
    assert runner.invoke(app, [name, "--help"]).exit_code == 0


def test_version(runner: CliRunner) -> None:
    result = runner.invoke(app, ["--version"])
    assert re.fullmatch(r"genaid \d+\.\d+\.\d+\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["upp"], "No such command 'upp'. Did you mean 'up'?"),
        (["up", "--htp", "x"], "No such option"),
        (["up", "--http", "8081"], "'8081' is not host:port, such as 127.0.0.1:8081"),
        (["up", "--http", "127.0.0.1:99999"], "is not host:port"),
        (["up", "--image", "0.0.0.0:8083"], "can be reached from other machines"),
        (["up", "--log-level", "loud"], "Invalid value for '--log-level'"),
        (["up", "surplus"], "unexpected extra argument"),
        (["image-worker", "--resource", "127.0.0.1:0"], "give the port"),
        (["gateway", "--image", "127.0.0.1:0"], "give the port"),
        (["generate"], "Missing argument 'PROMPT'"),
        (["generate", "--surreal"], "No such option"),
        (["generate", "x", "--size", "512"], "'512' is not WIDTHxHEIGHT in pixels, such as 512x512"),
        (["generate", "x", "--steps", "many"], "Invalid value for '--steps'"),
        (["generate", "x", "--sampler", "magic"], "'magic' is not one of euler_a, euler, heun,"),
        (["generate", "x", "-o", "no/such/folder/x.png"], "There is no folder"),
        (["models"], "Usage: "),
        (["models", "import"], "Missing argument 'FILE'"),
        (["models", "import", "no-such-file.gguf"], "does not exist"),
        (["models", "import", "."], "is a directory"),
        (["models", "list", "--type", "music"], "Invalid value for '--type'"),
        (["models", "list", "--resource", "127.0.0.1:0"], "give the port"),
        (["models", "refresh", "x", "--source", "hearsay"], "Invalid value for '--source'"),
        (["pull"], "Missing argument 'SOURCE'"),
        (["pull", "llama"], "Invalid value for SOURCE: 'llama' names nothing to download"),
        (["pull", "hf:o/n"], "it names no file in the repository. For example: hf:TheBloke/"),
        (["pull", "hf:o/n/f", "--checksum", "12"], "'12' is not sha256: and 64 hexadecimal digits"),
        (["pull", "hf:o/n/f", "--type", "music"], "Invalid value for '--type'"),
        (["pull", "hf:o/n/f", "--component", "vae"], "Invalid value for '--component': 'vae' is not ROLE=SOURCE"),
        (
            ["pull", "hf:o/n/f", "--component", "vae=hf:o/n/g", "--component", "vae=hf:o/n/h"],
            "Invalid value for --component: vae is given twice",
        ),
        (["downloads", "sow"], "No such command 'sow'"),
        (["downloads", "--al"], "No such option"),
        (["downloads", "show"], "Missing argument 'ID'"),
        (["engine", "logs", "-n", "-1"], "Invalid value for '-n'"),
        (["demo-models"], "Missing argument 'DIR'"),
    ],
)
def test_wrong_usage_is_explained(runner: CliRunner, arguments: list[str], complaint: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["generate", "a prompt"],
        ["generate", "a prompt", "--model", "some-model"],
        ["engine", "start", "--model", "some-model"],
        ["engine", "stop"],
        ["engine", "status"],
        ["engine", "logs", "-f"],
    ],
)
def test_without_a_server_it_says_how_to_start_one(
    runner: CliRunner, arguments: list[str], closed_port: str, tmp_path: Path
) -> None:
    place = ["--image", closed_port, "--data-dir", str(tmp_path)]
    result = runner.invoke(app, [*arguments, *place])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert closed_port in result.stderr
    assert "genaid up" in result.stderr
    failure = json.loads(runner.invoke(app, [*arguments, *place, "--json"]).stderr)
    assert failure["error"]["code"] == "UNREACHABLE"
    assert closed_port in failure["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["pull", "hf:o/n/f.gguf"],
        ["pull", "hf:o/n/f.gguf", "--detach"],
        ["downloads"],
        ["downloads", "list", "--all"],
        ["downloads", "show", "x"],
        ["downloads", "watch", "x"],
        ["downloads", "cancel", "x"],
        ["models", "list"],
        ["models", "show", "x", "--raw"],
        ["models", "verify", "x"],
        ["models", "refresh", "x"],
    ],
)
def test_without_a_resource_manager_it_says_how_to_start_one(
    runner: CliRunner, arguments: list[str], closed_port: str, tmp_path: Path
) -> None:
    place = ["--resource", closed_port, "--data-dir", str(tmp_path)]
    result = runner.invoke(app, [*arguments, *place])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "genaid up" in result.stderr
    failure = json.loads(runner.invoke(app, [*arguments, *place, "--json"]).stderr)
    assert failure["error"]["code"] == "UNREACHABLE"


def test_an_import_without_a_server_copies_nothing(runner: CliRunner, closed_port: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    data_dir = tmp_path / "data"
    result = runner.invoke(app, ["models", "import", str(file), "--resource", closed_port, "--data-dir", str(data_dir)])
    assert result.exit_code == 1
    assert "genaid up" in result.stderr
    assert not (data_dir / "inbox").exists()


def test_a_wrong_configuration_is_named(runner: CliRunner, tmp_path: Path) -> None:
    config = tmp_path / "genaid.toml"
    config.write_text("[image]\nqueue_dept = 3\n")
    result = runner.invoke(app, ["up", "--config", str(config), "--data-dir", str(tmp_path / "data")])
    assert result.exit_code == 1
    assert "image.queue_dept" in result.stderr
    missing = runner.invoke(app, ["up", "--config", str(tmp_path / "none.toml"), "--data-dir", str(tmp_path / "data")])
    assert "none.toml" in missing.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("text", "size"), [("512x512", SizeOption(512, 512)), (" 64X4096 ", SizeOption(64, 4096))])
def test_sizes(text: str, size: SizeOption) -> None:
    assert SizeOption.parse(text) == size


@pytest.mark.parametrize("text", ["", "512", "x", "512x", "-1x5", "5.5x5", "512x512x512", "٣x٣", "9999999x1"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="WIDTHxHEIGHT"):
        SizeOption.parse(text)


def test_file_names(tmp_path: Path) -> None:
    assert file_names(None, [7]) == [Path("genaid-7.png")]
    assert file_names(None, [7, 8]) == [Path("genaid-7.png"), Path("genaid-8.png")]
    assert file_names(Path("out.png"), [7]) == [Path("out.png")]
    assert file_names(Path("a/out.v2.png"), [7, 8]) == [Path("a/out.v2-1.png"), Path("a/out.v2-2.png")]
    assert file_names(Path("out"), [7, 8]) == [Path("out-1"), Path("out-2")]
    assert file_names(tmp_path, [7]) == [tmp_path / "genaid-7.png"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PortInUseError("taken", suggestion="Take another."), "PORT_IN_USE", "taken. Take another."),
        (ServerBusyError("busy"), "SERVER_BUSY", "busy"),
        (ServerBusyError("busy", {"suggestion": "Wait."}), "SERVER_BUSY", "busy. Wait."),
        (ServerBusyError("It is busy. Wait.", {"suggestion": "Wait."}), "SERVER_BUSY", "It is busy. Wait."),
        (NotFoundError("No.", {"suggestion": "Ask anew."}), "NOT_FOUND", "No. Ask anew."),
        (OSError(errno.ENOSPC, "No space left on device", "out.png"), "IO_ERROR", "No space left on device: out.png"),
        (UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates"), "INVALID_REQUEST", "An argument is not valid"),
    ],
)
def test_expected_errors_become_a_line(
    error: Exception, code: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as plain, reported(as_json=False):
        raise error
    assert plain.value.exit_code == 1
    assert capsys.readouterr().err.startswith(f"Error: {message}")
    with pytest.raises(typer.Exit), reported(as_json=True):
        raise error
    failure = json.loads(capsys.readouterr().err)["error"]
    assert failure["code"] == code
    assert failure["message"].startswith(message)


@pytest.mark.parametrize("error", [ValueError("a mistake of ours"), BrokenPipeError(), OSError("without a number")])
def test_other_errors_are_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, reported(as_json=False):
        raise error
    assert raised.value is error


def test_json_of_results(capsys: pytest.CaptureFixture[str]) -> None:
    entry = client.LogEntry(3, datetime(2025, 1, 2, tzinfo=UTC), client.LogLevel.WARN, "día")
    print_json([entry])
    printed = capsys.readouterr().out
    assert json.loads(printed) == [
        {"sequence": 3, "time": "2025-01-02T00:00:00+00:00", "level": "warn", "message": "día", "raw": ""}
    ]
    assert "día" in printed


def _generation(state: client.GenerationState, progress: client.Progress | None, before: int = 0) -> client.Generation:
    now = datetime(2025, 1, 2, tzinfo=UTC)
    return client.Generation(
        id="g",
        state=state,
        spec=GenerationSpec("x"),
        create_time=now,
        update_time=now,
        expire_time=None,
        progress=progress,
        images=(),
        error=None,
        duration_seconds=None,
        model_id="m",
        queue_position=before,
    )


def test_progress_is_described() -> None:
    states, stages = client.GenerationState, client.Stage
    waiting = _generation(states.PENDING, None, before=2)
    assert (describe(waiting), percentage(waiting), detail(waiting)) == ("waiting, 2 before it", 0, "")
    assert describe(_generation(states.PENDING, None)) == "waiting"

    loading = _generation(states.IN_PROGRESS, client.Progress(stages.LOADING, 100, 488, 5.5, 0, 1))
    assert (describe(loading), percentage(loading), detail(loading)) == ("loading the model", 5.5, "")

    drawing = _generation(states.IN_PROGRESS, client.Progress(stages.DIFFUSION, 7, 20, 40, 2, 3))
    assert (describe(drawing), percentage(drawing), detail(drawing)) == ("drawing", 40, "step 7/20, image 2/3")

    decoding = _generation(states.IN_PROGRESS, client.Progress(stages.DECODING, 0, 0, 90, 1, 1))
    assert (describe(decoding), percentage(decoding), detail(decoding)) == ("decoding", 90, "")

    unknown = _generation(states.IN_PROGRESS, client.Progress(None, 0, 0, 9, 0, 1))
    assert describe(unknown) == "working"
    assert percentage(_generation(states.COMPLETE, None)) == 100
