"""The commands about the machine: what they show, and what they ask a scripted server."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from rich.console import Console
from typer.testing import CliRunner, Result

from contract.scripted import Script, serve
from genaid.resource.v1 import system_pb2
from genaid_client import (
    CacheType,
    EngineMemory,
    Footprint,
    GpuMemory,
    LlmConfig,
    LlmRecommendation,
    MemoryNeed,
    MemorySnapshot,
    Placement,
    Ram,
    convert_system,
)
from genaid_server.cli.main import app
from genaid_server.cli.views import fit as fit_view
from genaid_server.cli.views.system import (
    NO_ENGINE,
    amount,
    budget_lines,
    engine_rows,
    machine_rows,
    memory_line,
    memory_rows,
    memory_view,
    plain_view,
    recommendation_rows,
    render,
)
from genaid_server.kit.errors import InvalidRequestError, ModelNotFoundError

GIB = 1024**3
GONE = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="Socket closed")
MACHINE = system_pb2.SystemCapabilities(
    cpu=system_pb2.Cpu(
        model="Fast 9",
        architecture="x64",
        physical_cores=8,
        logical_cores=16,
        usable_cores=12,
        features=["avx", "avx2"],
    ),
    memory=system_pb2.Ram(
        total_bytes=32 * GIB, available_bytes=20 * GIB, used_bytes=12 * GIB, container_limit_bytes=32 * GIB
    ),
    gpu_available=True,
    gpus=[
        system_pb2.Gpu(
            id="0000:01:00.0",
            vendor=system_pb2.GPU_VENDOR_NVIDIA,
            name="Bright \x1b[31m4090",
            vram_bytes=24 * GIB,
            vram_free_bytes=6 * GIB,
            driver="560.1",
            compute_capability="8.9",
            cuda=True,
            vulkan=True,
        ),
        system_pb2.Gpu(id="igpu", unified_memory=True, integrated=True),
    ],
    platform="linux",
    platform_key="linux-x64",
    recommendations=system_pb2.Recommendations(
        max_model_size="70B",
        quantizations=["Q5_K_M", "Q4_K_M"],
        threads=11,
        size_reason="24 GiB on the GPU",
        threads_reason="one core is left",
        gpu_layers_reason="it depends on the model",
    ),
    notes=["the driver of igpu says nothing"],
    container=True,
    wsl=True,
    detect_time=Timestamp(seconds=1_700_000_000),
    vram_budget_bytes=8 * GIB,
)
NOW = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
CLOCK = f"{NOW.astimezone():%H:%M:%S}"
MEMORY = MemorySnapshot(
    time=NOW,
    ram=Ram(32 * GIB, 20 * GIB, 12 * GIB),
    gpus=(
        GpuMemory("0000:01:00.0", "Bright 4090", 24 * GIB, 6 * GIB),
        GpuMemory("igpu", "", None, None),
        GpuMemory("other", "Silent", 8 * GIB, None),
    ),
    engines=(
        EngineMemory("image", "flux", 41, 2 * GIB, 9 * GIB),
        EngineMemory("llm", "tiny", 42, GIB, None),
    ),
)
NEED = system_pb2.MemoryNeed(
    ram=system_pb2.Footprint(overhead_bytes=GIB, total_bytes=GIB),
    vram=system_pb2.Footprint(
        weights_bytes=4 * GIB, kv_cache_bytes=2 * GIB, compute_bytes=GIB, overhead_bytes=GIB, total_bytes=8 * GIB
    ),
    exact=True,
)
CONFIG = system_pb2.LlmConfig(
    threads=11,
    gpu_layers=33,
    context_size=4096,
    parallel_requests=1,
    flash_attention=True,
    cache_type_k=system_pb2.CACHE_TYPE_F16,
    cache_type_v=system_pb2.CACHE_TYPE_Q8_0,
    experts_on_cpu=False,
)
POSSIBLE = system_pb2.CheckModelResponse(
    possible=True, required_bytes=8 * GIB, available_bytes=20 * GIB, need=NEED, llm_config=CONFIG
)
RECOMMENDED = system_pb2.RecommendLlmConfigResponse(
    config=CONFIG,
    placement=system_pb2.PLACEMENT_FULL,
    need=NEED,
    fits=True,
    reasons={"gpu_layers": "all of it fits", "threads": "one core is left"},
)


def table(text: str) -> list[list[str]]:
    """The cells of each line; a cell has no two spaces in it."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


@pytest.fixture
def script() -> Script:
    script = Script()
    memory = system_pb2.MemorySnapshot(
        time=Timestamp(seconds=1_700_000_000),
        ram=system_pb2.Ram(total_bytes=32 * GIB, available_bytes=20 * GIB, used_bytes=12 * GIB),
        gpus=[system_pb2.GpuMemory(gpu_id="g", name="Bright \x1b[31m4090", total_bytes=24 * GIB, free_bytes=6 * GIB)],
        engines=[system_pb2.EngineMemory(kind="image", model_id="flux", pid=41, resident_bytes=2 * GIB)],
        notes=["the driver of igpu says nothing", "Silent \x1b[1m does not tell what is free"],
    )
    script.steps["GetCapabilities"] = [system_pb2.GetCapabilitiesResponse(capabilities=MACHINE)]
    script.steps["GetMemory"] = [system_pb2.GetMemoryResponse(memory=memory)]
    script.steps["WatchMemory"] = [system_pb2.WatchMemoryResponse(memory=memory)] * 2
    script.steps["CheckModel"] = [POSSIBLE]
    script.steps["RecommendLlmConfig"] = [RECOMMENDED]
    return script


@pytest.fixture
async def genaid(script: Script, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    """Runs a command against the scripted server."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    async with serve(script) as (address, _):

        async def run(*arguments: str) -> Result:
            argv = [*arguments, "--resource", address]
            return await asyncio.to_thread(CliRunner().invoke, app, argv)

        yield run


type Genaid = Callable[..., Any]


# The machine


def test_what_is_said_of_a_machine() -> None:
    told = [(label.strip(), value) for label, value in machine_rows(convert_system.capabilities_from_pb(MACHINE))]
    assert ("CPU", "Fast 9") in told
    assert ("cores", "8 physical, 16 logical, 12 for genaid") in told
    assert ("features", "avx avx2") in told
    assert ("main memory", "32.00 GiB, 20.00 GiB free") in told
    assert ("limit", "32.00 GiB for this container") in told
    assert ("budget", None) in told
    assert [value for label, value in told if label == "GPU"] == ["Bright \x1b[31m4090", "igpu"]
    assert [value for label, value in told if label == "memory"] == ["24.00 GiB, 6.00 GiB free", "not known"]
    assert [value for label, value in told if label == "vendor"] == ["nvidia", "not known"]
    assert [value for label, value in told if label == "runs"] == ["cuda vulkan", "none of the engines' runtimes"]
    assert [value for label, value in told if label == "kind"] == ["", "part of the processor, shares main memory"]
    assert ("GPUs", None) in told
    assert ("GPU budget", "8.00 GiB for genaid at most") in told
    assert ("platform", "linux-x64, in a container, in WSL") in told
    assert told[-1] == ("note", "the driver of igpu says nothing")


def test_a_machine_without_gpus() -> None:
    machine = convert_system.capabilities_from_pb(MACHINE)
    assert ("GPU", "none found") in machine_rows(replace(machine, gpus=()))
    assert ("GPUs", "no engine could use them") in machine_rows(replace(machine, gpu_available=False))


def test_a_budget_of_main_memory() -> None:
    machine = convert_system.capabilities_from_pb(MACHINE)
    limited = replace(machine, memory=replace(machine.memory, budget_bytes=4 * GIB))
    assert ("  budget", "4.00 GiB for genaid at most") in machine_rows(limited)


@pytest.mark.parametrize(("layers", "told"), [(None, "by model"), (0, "0")])
def test_recommendations_come_with_their_reasons(layers: int | None, told: str) -> None:
    recommended = convert_system.capabilities_from_pb(MACHINE).recommendations
    assert recommendation_rows(replace(recommended, gpu_layers=layers)) == [
        ("largest models", "70B", "24 GiB on the GPU"),
        ("quantizations", "Q5_K_M, Q4_K_M", ""),
        ("threads", "11", "one core is left"),
        ("GPU layers", told, "it depends on the model"),
    ]


# Memory


def test_what_is_said_of_memory() -> None:
    assert memory_rows(MEMORY) == [
        ("main memory", "32.00 GiB", "12.00 GiB", "20.00 GiB"),
        ("Bright 4090", "24.00 GiB", "18.00 GiB", "6.00 GiB"),
        ("igpu", "not known", "not known", "not known"),
        ("Silent", "8.00 GiB", "not known", "not known"),
    ]
    assert engine_rows(MEMORY) == [
        ("image", "flux", "41", "2.00 GiB", "9.00 GiB"),
        ("llm", "tiny", "42", "1.00 GiB", "not known"),
    ]


@pytest.mark.parametrize(
    ("count", "total", "words"),
    [
        (0, GIB, "0 B of 1.00 GiB"),
        (None, GIB, "1.00 GiB, use not known"),
        (None, None, "not known"),
    ],
)
def test_how_much_of_how_much(count: int | None, total: int | None, words: str) -> None:
    assert amount(count, total) == words


def test_a_line_says_all() -> None:
    assert memory_line(MEMORY) == (
        f"{CLOCK}  main memory 12.00 GiB of 32.00 GiB; Bright 4090 18.00 GiB of 24.00 GiB; igpu not known; "
        "Silent 8.00 GiB, use not known; image engine (flux) 2.00 GiB and 9.00 GiB on GPUs; llm engine (tiny) 1.00 GiB"
    )


def test_plain_lines_come_for_each_state_and_notes_when_they_change() -> None:
    told: list[str] = []
    warned: list[str] = []
    show = plain_view(told.append, warned.append)
    troubled = replace(MEMORY, notes=("the \x1b[31mdriver hangs",))
    for memory in (MEMORY, troubled, troubled, MEMORY, troubled):
        show(memory)
    assert told == [memory_line(MEMORY)] * 5
    assert warned == ["note: the \\x1b[31mdriver hangs"] * 2


def drawn(memory: MemorySnapshot) -> str:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(render(memory))
    return capture.get()


def test_a_terminal_shows_a_bar_for_each_kind_of_memory() -> None:
    budgeted = replace(MEMORY, ram=replace(MEMORY.ram, budget_bytes=GIB), vram_budget_bytes=2 * GIB)
    picture = drawn(replace(budgeted, notes=("the \x1b[31mdriver hangs",)))
    lines = picture.splitlines()
    assert lines[0].strip() == CLOCK
    assert [row[0].split("━")[0].strip() for row in table(picture)[1:5]] == [
        "main memory",
        "Bright 4090",
        "igpu",
        "Silent",
    ]
    assert lines[1].strip().endswith("12.00 GiB of 32.00 GiB")
    assert [line.strip() for line in lines[5:7]] == budget_lines(budgeted)
    assert ["image", "flux", "41", "2.00 GiB", "9.00 GiB"] in table(picture)
    assert lines[-1].strip() == "note: the \\x1b[31mdriver hangs"


def test_fuller_memory_has_a_longer_bar() -> None:
    def bar(used: int) -> str:
        ram = Ram(32 * GIB, 32 * GIB - used, used)
        console = Console(width=120, force_terminal=True, color_system="standard", no_color=False)
        with console.capture() as capture:
            console.print(render(replace(MEMORY, ram=ram, gpus=())))
        return capture.get().splitlines()[1].split("of")[0]

    assert bar(2 * GIB) != bar(30 * GIB)


def test_without_engines_a_terminal_says_so() -> None:
    assert NO_ENGINE in drawn(replace(MEMORY, engines=()))
    assert NO_ENGINE not in drawn(MEMORY)


@pytest.mark.parametrize(
    ("ram", "vram", "lines"),
    [
        (None, None, []),
        (GIB, None, ["genaid takes at most 1.00 GiB of main memory"]),
        (None, 2 * GIB, ["genaid takes at most 2.00 GiB of GPU memory"]),
    ],
)
def test_budgets_are_told(ram: int | None, vram: int | None, lines: list[str]) -> None:
    limited = replace(MEMORY, ram=replace(MEMORY.ram, budget_bytes=ram), vram_budget_bytes=vram)
    assert budget_lines(limited) == lines


@pytest.mark.skipif(sys.platform == "win32", reason="old consoles of Windows move the cursor by other means")
def test_a_terminal_gets_a_picture_that_stays(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with memory_view(as_json=False) as show:
        show(MEMORY)
        show(MEMORY)
    printed, told = capsys.readouterr()
    assert "━" in printed
    assert "\x1b[1A" in printed  # back up, to draw over the first
    assert told == ""


# What fits


def recommendation(**changes: Any) -> LlmRecommendation:
    found = LlmRecommendation(
        config=LlmConfig(context_size=4096, flash_attention=False, cache_type_k=CacheType.Q8_0),
        placement=Placement.PARTIAL,
        need=MemoryNeed(Footprint(1, 1, 1, 1, 4), Footprint(1, 1, 1, 1, 4), exact=True),
        fits=True,
        context_reduced=False,
        reasons={},
    )
    return replace(found, **changes)


def test_settings_come_with_their_reasons_and_none_is_lost() -> None:
    reasons = {"context_size": "as asked for", "swa_full": "a newer server says so"}
    rows = fit_view.setting_rows(recommendation().config, reasons)
    assert ("context", "4096", "as asked for") in rows
    assert ("flash attention", "off", "") in rows
    assert ("K cache", "q8_0", "") in rows
    assert ("V cache", "", "") in rows
    assert rows[-1] == ("swa_full", "", "a newer server says so")


@pytest.mark.parametrize("placement", [*Placement, None])
def test_each_place_has_words(placement: Placement | None) -> None:
    told = dict(fit_view.recommendation_rows(recommendation(placement=placement)))
    assert told["layers"]
    assert (told["layers"] == "not known") == (placement is None)


def test_what_does_not_fit_is_told() -> None:
    told = dict(fit_view.recommendation_rows(recommendation()))
    assert (told["fits"], told["context"], told["estimate"]) == ("yes", None, None)
    need = replace(recommendation().need, exact=False)
    told = dict(fit_view.recommendation_rows(recommendation(fits=False, context_reduced=True, need=need)))
    assert str(told["fits"]).startswith("no")
    assert told["context"] == "smaller than asked for"
    assert told["estimate"] == fit_view.ESTIMATED


# The commands


@pytest.mark.parametrize(
    ("arguments", "refresh"),
    [(["system"], False), (["system", "show"], False), (["system", "--refresh"], True)],
)
async def test_show_is_what_it_does_without_a_command(
    genaid: Genaid, script: Script, arguments: list[str], refresh: bool
) -> None:
    result = await genaid(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [(name, getattr(request, "refresh", None)) for name, request in script.requests] == [
        ("GetCapabilities", refresh),
        ("GetMemory", None),
    ]
    cells = table(result.stdout)
    assert ["threads", "11", "one core is left"] in cells
    assert ["main memory", "32.00 GiB", "12.00 GiB", "20.00 GiB"] in cells
    assert ["image", "flux", "41", "2.00 GiB", "not known"] in cells
    assert "Fast 9" in result.stdout
    assert result.stdout.count("the driver of igpu says nothing") == 1
    assert "\\x1b[1m does not tell" in result.stdout
    assert "\x1b" not in result.stdout


async def test_show_without_engines(genaid: Genaid, script: Script) -> None:
    script.steps["GetMemory"] = [
        system_pb2.GetMemoryResponse(memory=system_pb2.MemorySnapshot(time=Timestamp(seconds=1)))
    ]
    script.steps["GetCapabilities"] = [
        system_pb2.GetCapabilitiesResponse(capabilities=system_pb2.SystemCapabilities(detect_time=Timestamp(seconds=1)))
    ]
    result = await genaid("system")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == NO_ENGINE


async def test_show_for_programs(genaid: Genaid) -> None:
    result = await genaid("system", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    assert printed["capabilities"]["gpus"][0]["vendor"] == "nvidia"
    assert printed["capabilities"]["cpu"]["features"] == ["avx", "avx2"]
    assert printed["capabilities"]["detect_time"] == "2023-11-14T22:13:20+00:00"
    assert printed["memory"]["engines"][0]["vram_bytes"] is None


async def test_watch_tells_a_line_a_state_until_the_server_goes(genaid: Genaid, script: Script) -> None:
    result = await genaid("system", "--watch", "--interval", "0.5")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert "main memory 12.00 GiB of 32.00 GiB; Bright \\x1b[31m4090 18.00 GiB of 24.00 GiB" in result.stdout
    *notes, complaint = result.stderr.splitlines()
    assert notes == [
        "note: the driver of igpu says nothing",
        "note: Silent \\x1b[1m does not tell what is free",
    ]
    assert "genaid up" in complaint
    assert complaint.endswith("[UNREACHABLE]")
    interval = Duration(nanos=500_000_000)
    assert script.requests == [("WatchMemory", system_pb2.WatchMemoryRequest(interval=interval))]


async def test_watch_for_programs_is_an_object_a_line(genaid: Genaid, script: Script) -> None:
    script.steps["WatchMemory"] = [*script.steps["WatchMemory"], GONE]
    result = await genaid("system", "--watch", "--json")
    assert result.exit_code == 1
    assert [json.loads(line)["ram"]["used_bytes"] for line in result.stdout.splitlines()] == [12 * GIB] * 2
    assert json.loads(result.stderr)["error"]["code"] == "UNREACHABLE"
    assert script.requests == [("WatchMemory", system_pb2.WatchMemoryRequest())]


async def test_an_interval_that_the_server_refuses(genaid: Genaid, script: Script) -> None:
    script.steps["WatchMemory"] = [InvalidRequestError("`interval` must be 0.1 to 3600 seconds.", field="interval")]
    result = await genaid("system", "--watch", "--interval", "0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "0.1 to 3600 seconds. [INVALID_REQUEST]" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["system", "--interval", "2"], "Invalid value for --interval: It needs --watch."),
        (["system", "--watch", "--refresh"], "Invalid value for --refresh: --watch measures anew"),
        (["system", "--interval", "often"], "Invalid value for '--interval'"),
        (["system", "sow"], "No such command 'sow'"),
        (["system", "check"], "Missing argument 'MODEL'"),
        (["system", "check", "x", "--cache-type", "f32"], "Invalid value for '--cache-type'"),
        (["system", "recommend"], "Missing argument 'MODEL'"),
    ],
)
async def test_wrong_usage_is_explained(genaid: Genaid, script: Script, arguments: list[str], complaint: str) -> None:
    result = await genaid(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in " ".join(result.stderr.split())
    assert script.requests == []


def test_help_is_that_of_the_group() -> None:
    result = CliRunner().invoke(app, ["system", "--help"])
    assert result.exit_code == 0
    for command in ("show", "check", "recommend"):
        assert command in result.stdout


async def test_a_model_that_can_run(genaid: Genaid, script: Script) -> None:
    result = await genaid("system", "check", "tiny")
    assert (result.exit_code, result.stderr) == (0, "")
    cells = table(result.stdout)
    assert "possible yes" in [" ".join(row) for row in cells]
    assert ["KV cache", "0 B", "2.00 GiB"] in cells
    assert ["total", "1.00 GiB", "8.00 GiB"] in cells
    assert "8.00 GiB, available: 20.00 GiB" in result.stdout
    assert "context 4096, parallel requests 1, flash attention on, K cache f16, V cache q8_0" in result.stdout
    assert script.requests == [("CheckModel", system_pb2.CheckModelRequest(model_id="tiny"))]


async def test_a_model_that_can_not_run(genaid: Genaid, script: Script) -> None:
    need = system_pb2.MemoryNeed(exact=False)
    script.steps["CheckModel"] = [
        system_pb2.CheckModelResponse(reason="It needs \x1b[1m8 GiB.", suggestion="Take a smaller one.", need=need)
    ]
    result = await genaid("system", "check", "flux", "--total", "--width", "1024", "--height", "768")
    assert (result.exit_code, result.stderr) == (1, "")
    told = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line and not line.startswith("NEEDS"))
    assert told["possible"] == "no"
    assert told["reason"] == "It needs \\x1b[1m8 GiB."
    assert told["suggestion"] == "Take a smaller one."
    assert told["estimate"] == fit_view.ESTIMATED
    assert "run with" not in result.stdout
    request = system_pb2.CheckModelRequest(model_id="flux", check_total_memory=True, width=1024, height=768)
    assert script.requests == [("CheckModel", request)]


async def test_a_warning_is_no_reason_against(genaid: Genaid, script: Script) -> None:
    slow = system_pb2.CheckModelResponse(possible=True, reason="It will be slow.", need=NEED)
    script.steps["CheckModel"] = [slow]
    result = await genaid("system", "check", "tiny")
    assert result.exit_code == 0
    assert "warning" in result.stdout
    assert "reason" not in result.stdout


async def test_how_it_is_to_be_run_is_sent(genaid: Genaid, script: Script) -> None:
    result = await genaid(
        *("system", "check", "tiny", "--context", "8192", "--gpu-layers", "0", "--parallel", "2"),
        *("--cache-type", "q8_0", "--json"),
    )
    assert result.exit_code == 0
    assert json.loads(result.stdout)["llm_config"]["cache_type_v"] == "q8_0"
    config = system_pb2.LlmConfig(
        context_size=8192,
        gpu_layers=0,
        parallel_requests=2,
        cache_type_k=system_pb2.CACHE_TYPE_Q8_0,
        cache_type_v=system_pb2.CACHE_TYPE_Q8_0,
    )
    assert script.requests == [("CheckModel", system_pb2.CheckModelRequest(model_id="tiny", llm_config=config))]


async def test_programs_see_that_it_can_not_run_by_status_and_result(genaid: Genaid, script: Script) -> None:
    script.steps["CheckModel"] = [system_pb2.CheckModelResponse(reason="too large")]
    result = await genaid("system", "check", "tiny", "--json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout)["possible"] is False


async def test_a_recommendation(genaid: Genaid, script: Script) -> None:
    result = await genaid("system", "recommend", "tiny")
    assert (result.exit_code, result.stderr) == (0, "")
    cells = table(result.stdout)
    assert ["GPU layers", "33", "all of it fits"] in cells
    assert ["experts on the CPU", "off"] in cells
    assert ["total", "1.00 GiB", "8.00 GiB"] in cells
    rows = [" ".join(row) for row in cells]
    assert "fits yes" in rows
    assert "layers all on the GPU" in rows
    assert "needs 9.00 GiB" in rows
    assert script.requests == [("RecommendLlmConfig", system_pb2.RecommendLlmConfigRequest(model_id="tiny"))]


async def test_wishes_are_sent(genaid: Genaid, script: Script) -> None:
    result = await genaid(
        "system", "recommend", "tiny", "--context", "512", "--parallel", "3", "--gpu-layers", "0", "--json"
    )
    assert result.exit_code == 0
    assert json.loads(result.stdout)["reasons"]["gpu_layers"] == "all of it fits"
    wishes = system_pb2.LlmConfig(context_size=512, parallel_requests=3, gpu_layers=0)
    request = system_pb2.RecommendLlmConfigRequest(model_id="tiny", wishes=wishes)
    assert script.requests == [("RecommendLlmConfig", request)]


@pytest.mark.parametrize(("command", "rpc"), [("check", "CheckModel"), ("recommend", "RecommendLlmConfig")])
async def test_a_model_that_is_not_there(genaid: Genaid, script: Script, command: str, rpc: str) -> None:
    script.steps[rpc] = [ModelNotFoundError("It is not installed.", modelId="x")]
    result = await genaid("system", command, "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: It is not installed. [MODEL_NOT_FOUND]\n"


@pytest.mark.parametrize(
    "arguments",
    [["system"], ["system", "--watch"], ["system", "check", "x"], ["system", "recommend", "x"]],
)
def test_without_a_resource_manager_it_says_how_to_start_one(arguments: list[str], tmp_path: Path) -> None:
    with socket.socket() as holder:  # where nothing listens, and that nobody else gets meanwhile
        holder.bind(("127.0.0.1", 0))
        place = ["--resource", f"127.0.0.1:{holder.getsockname()[1]}", "--data-dir", str(tmp_path)]
        plain = CliRunner().invoke(app, [*arguments, *place])
        for_programs = CliRunner().invoke(app, [*arguments, *place, "--json"])
    assert (plain.exit_code, plain.stdout, plain.stderr.count("\n")) == (1, "", 1)
    assert "genaid up" in plain.stderr
    assert json.loads(for_programs.stderr)["error"]["code"] == "UNREACHABLE"
