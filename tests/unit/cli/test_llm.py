"""`genaid llm`: what the commands ask a scripted server, what they show, and how a model comes to run for a chat."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from typer.testing import CliRunner, Result

from contract.scripted import Flag, Script, serve
from genaid.common.v1 import engines_pb2, logs_pb2
from genaid.image.v1 import engine_pb2
from genaid.resource.v1 import llm_pb2, models_pb2, system_pb2
from genaid_client import (
    AsyncClient,
    GenaidError,
    InvalidRequestError,
    Llm,
    LlmServing,
    ModelNotFoundError,
    ServerBusyError,
    ServerError,
    ServerState,
    convert_llm,
)
from genaid_server.cli.commands.up import llm_announcement
from genaid_server.cli.connect import find_server, settings
from genaid_server.cli.llm_loading import read_api_key, ready_llm
from genaid_server.cli.main import app
from genaid_server.cli.views.llm import as_object, how_to_use, last_error, llm_rows, state_in_words, status_rows
from genaid_server.kit import errors
from genaid_server.resource.config import LlmConfig as LlmSettings
from genaid_server.settings import load

GONE = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="Socket closed")
RUNNING = llm_pb2.Llm(
    state=engines_pb2.SERVER_STATE_RUNNING,
    health=engines_pb2.HEALTH_STATE_OK,
    model_id="tiny",
    port=4567,
    host="127.0.0.1",
    pid=77,
    load_duration=Duration(seconds=2),
    restarts=1,
    load_percentage=100,
    config=system_pb2.LlmConfig(threads=7, context_size=512, flash_attention=False),
    serving=llm_pb2.LlmServing(port=0, host="127.0.0.1", memory_map=True, memory_lock=False),
    variant="cpu",
    generation=3,
    reasons={"threads": "one is left for others"},
)
STOPPED = llm_pb2.Llm(state=engines_pb2.SERVER_STATE_STOPPED, health=engines_pb2.HEALTH_STATE_UNKNOWN)
LOADING = llm_pb2.Llm(
    state=engines_pb2.SERVER_STATE_STARTING,
    health=engines_pb2.HEALTH_STATE_LOADING,
    model_id="tiny",
    load_percentage=37.4,
    pid=77,
)
WITH_LOG = "It could not be loaded: exit status 1. Last lines of its log:\n0.00 E \x1b[31mbad\n0.01 I more"


def now(message: llm_pb2.Llm) -> Llm:
    return convert_llm.llm_from_pb(message)


def entry(number: int) -> logs_pb2.LogEntry:
    return logs_pb2.LogEntry(
        sequence=number,
        time=Timestamp(seconds=1_700_000_000),
        level=logs_pb2.LOG_LEVEL_ERROR,
        message=f"line {number}",
        raw=f"[then] [ERROR] line {number}",
    )


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("GENAID_") or name in {"FORCE_COLOR", "TTY_COMPATIBLE"}:
            monkeypatch.delenv(name)


@pytest.fixture
def script() -> Script:
    script = Script()
    script.steps["StartLlm"] = [llm_pb2.StartLlmResponse(llm=RUNNING)]
    script.steps["RestartLlm"] = [llm_pb2.RestartLlmResponse(llm=RUNNING)]
    script.steps["StopLlm"] = [llm_pb2.StopLlmResponse(llm=STOPPED)]
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=RUNNING)]
    script.steps["ListLogs"] = [llm_pb2.ListLogsResponse(entries=[entry(7), entry(8)])]
    script.steps["TailLogs"] = [llm_pb2.TailLogsResponse(entries=[entry(9)])]
    return script


@pytest.fixture
async def address(script: Script) -> AsyncIterator[str]:
    async with serve(script) as (address, _):
        yield address


type Genaid = Callable[..., Any]


@pytest.fixture
def genaid(address: str) -> Genaid:
    """Runs a command against the scripted server."""

    async def run(*arguments: str, **env: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--resource", address], env=env)

    return run


def calls(script: Script) -> list[tuple[str, Any]]:
    """What was asked for, but for the watch that shows progress on a terminal."""
    return [call for call in script.requests if call[0] != "WatchLlm"]


def started(script: Script) -> llm_pb2.StartLlmRequest:
    ((name, request),) = calls(script)
    assert name == "StartLlm"
    assert isinstance(request, llm_pb2.StartLlmRequest)
    return request


# start


async def test_what_is_not_given_is_left_to_the_server(genaid: Genaid, script: Script) -> None:
    result = await genaid("llm", "start", "tiny")
    assert result.exit_code == 0, result.output
    request = started(script)
    assert (request.model_id, request.replace) == ("tiny", False)
    assert request.config == system_pb2.LlmConfig()
    assert request.serving == llm_pb2.LlmServing()


@pytest.mark.parametrize(
    ("arguments", "config", "serving"),
    [
        (["--port", "0"], {}, {"port": 0}),
        (["--host", "::1"], {}, {"host": "::1"}),
        (["--context", "512"], {"context_size": 512}, {}),
        (["--gpu-layers", "0"], {"gpu_layers": 0}, {}),
        (["--threads", "3"], {"threads": 3}, {}),
        (["--parallel", "2"], {"parallel_requests": 2}, {}),
        (["--flash-attention"], {"flash_attention": True}, {}),
        (["--no-flash-attention"], {"flash_attention": False}, {}),
        (
            ["--cache-type", "q8_0"],
            {"cache_type_k": system_pb2.CACHE_TYPE_Q8_0, "cache_type_v": system_pb2.CACHE_TYPE_Q8_0},
            {},
        ),
        (["--experts-on-cpu"], {"experts_on_cpu": True}, {}),
        (["--no-experts-on-cpu"], {"experts_on_cpu": False}, {}),
        (["--no-mmap"], {}, {"memory_map": False}),
        (["--mlock"], {}, {"memory_lock": True}),
    ],
)
async def test_each_option_arrives(
    genaid: Genaid, script: Script, arguments: list[str], config: dict[str, Any], serving: dict[str, Any]
) -> None:
    result = await genaid("llm", "start", "tiny", *arguments)
    assert result.exit_code == 0, result.output
    request = started(script)
    assert request.config == system_pb2.LlmConfig(**config)
    assert request.serving == llm_pb2.LlmServing(**serving)


async def test_another_model_is_replaced_only_if_told(genaid: Genaid, script: Script) -> None:
    await genaid("llm", "start", "tiny", "--replace")
    assert started(script).replace


async def test_a_start_tells_how_to_go_on(genaid: Genaid) -> None:
    result = await genaid("llm", "start", "tiny")
    assert ["address", "http://127.0.0.1:4567"] in [line.split() for line in result.stdout.splitlines()]
    assert "one is left for others" in result.stdout
    assert "genaid chat" in result.stderr
    assert "http://127.0.0.1:4567/v1/chat/completions" in result.stderr
    assert "Authorization" not in result.stderr


async def test_a_start_as_json(genaid: Genaid) -> None:
    result = await genaid("llm", "start", "tiny", "--json", GENAID_LLM_API_KEY="s3cret")
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert (told["state"], told["base_url"], told["healthy"]) == ("running", "http://127.0.0.1:4567", True)
    assert "s3cret" not in result.output


@pytest.mark.parametrize("place", ["environment", "file", "both"])
async def test_a_key_is_no_argument(genaid: Genaid, script: Script, tmp_path: Path, place: str) -> None:
    file = tmp_path / "key"
    file.write_text("\ufeff  from-file\r\n", "utf-8")
    option = [] if place == "environment" else ["--api-key-file", str(file)]
    env = {} if place == "file" else {"GENAID_LLM_API_KEY": "from-environment"}
    result = await genaid("llm", "start", "tiny", *option, **env)
    assert result.exit_code == 0, result.output
    key = "from-environment" if place == "environment" else "from-file"
    assert started(script).serving.api_key == key
    assert key not in result.output
    assert "Authorization: Bearer KEY" in result.stderr


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\x00", b"two\nlines", b"two words", "clé".encode()])
async def test_a_file_without_a_key_starts_nothing(
    genaid: Genaid, script: Script, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    result = await genaid("llm", "start", "tiny", "--api-key-file", str(file))
    assert result.exit_code == 1
    assert "holds no valid key" in result.stderr
    assert script.requests == []


async def test_a_variable_without_a_key_starts_nothing(genaid: Genaid, script: Script) -> None:
    for command in (["llm", "start", "tiny"], ["chat", "hi"]):
        result = await genaid(*command, GENAID_LLM_API_KEY="two\nlines")
        assert result.exit_code == 1
        assert "GENAID_LLM_API_KEY holds no valid key" in result.stderr
    assert script.requests == []


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"x" * 10_000_000)
    assert len(read_api_key(file)) == 4096


@pytest.mark.parametrize("command", [["start", "tiny"], ["restart"]])
async def test_a_model_that_does_not_load_shows_its_log(genaid: Genaid, script: Script, command: list[str]) -> None:
    script.steps["StartLlm"] = script.steps["RestartLlm"] = [errors.ServerError(WITH_LOG)]
    result = await genaid("llm", *command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "Error: It could not be loaded: exit status 1. Last lines of its log: [SERVER_ERROR]",
        "  0.00 E \\x1b[31mbad",
        "  0.01 I more",
    ]
    failure = json.loads((await genaid("llm", *command, "--json")).stderr)["error"]
    assert failure == {"code": "SERVER_ERROR", "message": WITH_LOG}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["llm"], "Usage: "),
        (["llm", "start"], "Missing argument 'MODEL'"),
        (["llm", "start", "x", "--port", "http"], "Invalid value for '--port'"),
        (["llm", "start", "x", "--cache-type", "q1"], "Invalid value for '--cache-type'"),
        (["llm", "start", "x", "--api-key-file", "."], "is a directory"),
        (["llm", "start", "x", "--api-key", "x"], "No such option"),
        (["llm", "logs", "-n", "-1"], "Invalid value for '-n'"),
        (["llm", "logs", "--clear", "-f"], "leave -n and -f out"),
        (["llm", "logs", "--clear", "-n", "0"], "leave -n and -f out"),
        (["up", "--llm-port", "65536"], "Invalid value for '--llm-port'"),
        (["resource-manager", "--llm-port", "-1"], "Invalid value for '--llm-port'"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())


# stop, restart, status


@pytest.mark.parametrize(
    ("command", "rpc", "state"),
    [("stop", "StopLlm", "stopped"), ("restart", "RestartLlm", "running"), ("status", "GetLlm", "running")],
)
async def test_the_other_commands(genaid: Genaid, script: Script, command: str, rpc: str, state: str) -> None:
    plain = await genaid("llm", command)
    assert (plain.exit_code, plain.stderr) == (0, "")
    assert ["LLM", "engine", state] in [line.split() for line in plain.stdout.splitlines()]
    detailed = await genaid("llm", command, "--json")
    assert json.loads(detailed.stdout)["state"] == state
    assert [name for name, _ in calls(script)] == [rpc, rpc]


async def test_status_tells_of_both_engines(genaid: Genaid, script: Script, address: str) -> None:
    script.steps["GetEngine"] = [engine_pb2.GetEngineResponse(engine=engine_pb2.Engine(model_id="flux"))]
    plain = await genaid("status", "--image", address)
    assert plain.exit_code == 0, plain.output
    rows = [line.split(maxsplit=2) for line in plain.stdout.splitlines()]
    assert ["LLM", "model", "tiny"] in rows
    assert ["LLM", "address", "http://127.0.0.1:4567"] in rows
    assert ["LLM", "health", "ok"] in rows
    told = json.loads((await genaid("status", "--image", address, "--json")).stdout)
    assert (told["engine"]["model_id"], told["llm"]["base_url"]) == ("flux", "http://127.0.0.1:4567")


def test_what_is_said_of_an_engine() -> None:
    told = dict(llm_rows(now(RUNNING)))
    assert (told["address"], told["loaded in"], told["restarts"]) == ("http://127.0.0.1:4567", "2.0 s", 1)
    told = dict(llm_rows(now(STOPPED)))
    assert told["model"] == "none started yet"
    assert (told["address"], told["health"], told["loaded in"], told["restarts"]) == (None,) * 4
    assert [label for label, value in status_rows(now(STOPPED)) if value] == ["LLM engine", "LLM model"]
    assert state_in_words(now(LOADING)) == "starting (37% loaded)"


def test_a_last_error_leaves_the_log_to_the_log() -> None:
    assert last_error(replace(now(STOPPED), last_error=WITH_LOG)) == (
        "It could not be loaded: exit status 1. Last lines of its log: genaid llm logs"
    )
    assert last_error(replace(now(STOPPED), last_error="It was killed.")) == "It was killed."


def test_json_has_no_place_for_the_key() -> None:
    told = as_object(replace(now(RUNNING), serving=LlmServing(api_key="s3cret")))
    assert "api_key" not in told["serving"]
    assert as_object(now(STOPPED))["serving"] is None


@pytest.mark.parametrize("with_key", [False, True])
def test_the_curl_line_is_one_that_a_shell_understands(with_key: bool) -> None:
    told = how_to_use("http://127.0.0.1:1", with_key=with_key)
    assert "curl http://127.0.0.1:1/v1/chat/completions" in told
    assert ("Bearer KEY" in told) == with_key


# logs


@pytest.mark.parametrize(("option", "lines"), [([], None), (["-n", "2"], 2), (["--lines", "0"], 0)])
async def test_the_newest_lines(genaid: Genaid, script: Script, option: list[str], lines: int | None) -> None:
    result = await genaid("llm", "logs", *option)
    assert [line.split(maxsplit=1)[1] for line in result.stdout.splitlines()] == ["error line 7", "error line 8"]
    assert script.requests == [("ListLogs", llm_pb2.ListLogsRequest(lines=lines))]


async def test_the_newest_lines_as_json(genaid: Genaid) -> None:
    lines = [json.loads(line) for line in (await genaid("llm", "logs", "--json")).stdout.splitlines()]
    assert [line["raw"] for line in lines] == ["[then] [ERROR] line 7", "[then] [ERROR] line 8"]


@pytest.mark.parametrize(("known", "start"), [([entry(7)], 8), ([], None)])
async def test_following_misses_nothing_and_ends_with_the_service(
    genaid: Genaid, script: Script, known: list[logs_pb2.LogEntry], start: int | None
) -> None:
    script.steps["ListLogs"] = [llm_pb2.ListLogsResponse(entries=known)]
    result = await genaid("llm", "logs", "-f")
    assert result.stdout.splitlines()[-1].endswith("line 9")
    assert script.requests[-1] == ("TailLogs", llm_pb2.TailLogsRequest(from_sequence=start))
    assert result.exit_code == 1
    assert "went away" in result.stderr


async def test_the_log_is_forgotten(genaid: Genaid, script: Script) -> None:
    assert (await genaid("llm", "logs", "--clear")).exit_code == 0
    silent = await genaid("llm", "logs", "--clear", "--json")
    assert (silent.exit_code, silent.output) == (0, "")
    assert [name for name, _ in script.requests] == ["ClearLogs", "ClearLogs"]


# What a chat runs with


async def ready(address: str, model: str | None = None, key: str = "") -> Llm:
    async with AsyncClient(resource=address) as client:
        return await ready_llm(client, model, key)


def installed(*ids: str) -> models_pb2.ListModelsResponse:
    return models_pb2.ListModelsResponse(models=[models_pb2.Model(id=each) for each in ids])


@pytest.mark.parametrize("model", [None, "tiny"])
async def test_what_runs_is_taken(script: Script, address: str, model: str | None) -> None:
    assert await ready(address, model) == now(RUNNING)
    assert [name for name, _ in script.requests] == ["GetLlm"]


@pytest.mark.parametrize("state", [RUNNING, LOADING])
async def test_another_model_is_not_replaced_unasked(script: Script, address: str, state: llm_pb2.Llm) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=state)]
    with pytest.raises(ServerBusyError, match=r"runs with tiny.*genaid llm start other --replace"):
        await ready(address, "other")
    assert [name for name, _ in script.requests] == ["GetLlm"]


async def test_what_loads_is_waited_for(script: Script, address: str) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=LOADING)]
    script.steps["WatchLlm"] = [*(llm_pb2.WatchLlmResponse(llm=each) for each in (LOADING, RUNNING)), Flag.HANG]
    assert (await ready(address)).state is ServerState.RUNNING
    assert [name for name, _ in script.requests] == ["GetLlm", "WatchLlm"]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ([llm_pb2.Llm(state=engines_pb2.SERVER_STATE_CRASHED, last_error="It was killed.")], "It was killed."),
        ([STOPPED], "stopped meanwhile"),
        ([], "service ended"),
    ],
)
async def test_what_does_not_load_is_an_error(
    script: Script, address: str, last: list[llm_pb2.Llm], words: str
) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=LOADING)]
    script.steps["WatchLlm"] = [llm_pb2.WatchLlmResponse(llm=each) for each in (LOADING, *last)]
    with pytest.raises(ServerError, match=words):
        await ready(address)


@pytest.mark.parametrize("model", [None, "tiny"])
async def test_what_has_crashed_comes_back_as_it_was(script: Script, address: str, model: str | None) -> None:
    crashed = llm_pb2.Llm(state=engines_pb2.SERVER_STATE_CRASHED, model_id="tiny")
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=crashed)]
    assert await ready(address, model) == now(RUNNING)
    assert [name for name, _ in script.requests] == ["GetLlm", "RestartLlm"]


@pytest.mark.parametrize(("model", "chosen"), [(None, "only"), ("mine", "mine")])
async def test_a_model_is_started_where_none_runs(script: Script, address: str, model: str | None, chosen: str) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=STOPPED)]
    script.steps["ListModels"] = [installed("only")]
    assert await ready(address, model, "s3cret") == now(RUNNING)
    assert script.requests[-1][0] == "StartLlm"
    assert script.requests[-1][1].model_id == chosen
    assert script.requests[-1][1].serving.api_key == "s3cret"
    listed = [request for name, request in script.requests if name == "ListModels"]
    assert all(request.type == models_pb2.MODEL_TYPE_LLM for request in listed)


@pytest.mark.parametrize(
    ("ids", "kind", "words"),
    [
        ([], ModelNotFoundError, "genaid pull"),
        (["a", "b"], InvalidRequestError, "--model ID: a, b$"),
        ([f"m{number}" for number in range(11)], InvalidRequestError, r"m9, \.\.\.$"),
    ],
)
async def test_where_it_is_not_clear_which_it_says_what_to_do(
    script: Script, address: str, ids: list[str], kind: type[GenaidError], words: str
) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=STOPPED)]
    script.steps["ListModels"] = [installed(*ids)]
    with pytest.raises(kind, match=words):
        await ready(address)


@pytest.mark.parametrize(
    "arguments",
    [
        ["llm", "start", "x"],
        ["llm", "stop"],
        ["llm", "restart"],
        ["llm", "status"],
        ["llm", "logs"],
        ["llm", "logs", "--clear"],
        ["chat", "hi"],
    ],
)
async def test_without_a_server_it_says_how_to_start_one(genaid: Genaid, script: Script, arguments: list[str]) -> None:
    for name in ("StartLlm", "StopLlm", "RestartLlm", "GetLlm", "ListLogs", "ClearLogs", "WatchLlm"):
        script.steps[name] = [GONE]
    result = await genaid(*arguments)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "genaid up" in result.stderr
    failure = json.loads((await genaid(*arguments, "--json")).stderr)
    assert failure["error"]["code"] == "UNREACHABLE"


# Settings


def test_options_become_settings() -> None:
    assert settings(llm_model="tiny", llm_port=0) == {"llm": {"model": "tiny", "port": 0}}
    config = load(flags=settings(llm_model="tiny", llm_port=0))
    assert (config.llm.model, config.llm.port) == ("tiny", 0)


def test_the_key_is_no_setting_and_stays_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENAID_LLM_API_KEY", "s3cret")
    assert find_server(tmp_path).resource == "127.0.0.1:8082"
    assert read_api_key(None) == "s3cret"
    monkeypatch.setenv("GENAID_LLM__PORT", "70000")
    with pytest.raises(errors.InvalidRequestError, match=r"llm\.port"):
        load()
    assert read_api_key(None) == "s3cret"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LlmSettings(), "http://127.0.0.1:8080 once it is started: genaid llm start MODEL"),
        (LlmSettings(port=99, model="tiny"), "http://127.0.0.1:99 once tiny is loaded"),
        (LlmSettings(port=0, model="tiny"), "a free port, which `genaid llm status` tells, once tiny is loaded"),
    ],
)
def test_up_announces_where_it_will_serve(config: LlmSettings, words: str) -> None:
    assert words in llm_announcement(config)
