"""`genaid memory`, and what `genaid status` and `genaid chat` make of an LLM that was offloaded: a scripted server."""

import asyncio
import json
import os
import shlex
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from typer.testing import CliRunner, Result

from contract.scripted import Flag, Script, serve
from fakes.chat_engine import ChatEngine, chat_engine, refused, said
from genaid.common.v1 import engines_pb2
from genaid.image.v1 import engine_pb2
from genaid.resource.v1 import llm_pb2, orchestration_pb2, system_pb2
from genaid_client import (
    AsyncClient,
    ImagePlacement,
    LeaseState,
    Llm,
    OffloadPhase,
    ServerBusyError,
    ServerError,
    ServerState,
    TenantKind,
    convert_llm,
    convert_orchestration,
)
from genaid_server.cli.llm_loading import OFFLOADED as WAITS
from genaid_server.cli.llm_loading import ready_llm, wait_until_back
from genaid_server.cli.main import app
from genaid_server.cli.views import leases as lease_view
from genaid_server.cli.views.llm import state_in_words
from genaid_server.kit import errors

GIB = 2**30
GONE = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="Socket closed")
SAVED_AT = 1_700_000_000
SAVED_AS = f"{datetime.fromtimestamp(SAVED_AT, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
RETRY_AS = f"{datetime.fromtimestamp(SAVED_AT + 60, UTC).astimezone():%H:%M:%S}"

GRANTED = orchestration_pb2.Lease(
    id="lease-1",
    tenant_id="worker",
    kind=orchestration_pb2.TENANT_KIND_IMAGE,
    model_id="sd",
    state=orchestration_pb2.LEASE_STATE_GRANTED,
    ram_bytes=GIB,
    vram_bytes=2 * GIB,
    measured=True,
    create_time=Timestamp(seconds=SAVED_AT),
)
WAITING = orchestration_pb2.Lease(
    id="lease-2",
    tenant_id="llm",
    kind=orchestration_pb2.TENANT_KIND_LLM,
    model_id="tiny",
    state=orchestration_pb2.LEASE_STATE_WAITING,
    ram_bytes=GIB // 2,
    reason="The image engine is in its way.",
    create_time=Timestamp(seconds=SAVED_AT),
)
LEASES = orchestration_pb2.ListLeasesResponse(
    leases=[GRANTED, WAITING],
    total_ram_bytes=4 * GIB,
    total_vram_bytes=8 * GIB,
    granted_ram_bytes=GIB,
    granted_vram_bytes=2 * GIB,
)
OFFLOADED = orchestration_pb2.OffloadedLlm(
    model_id="tiny",
    config=system_pb2.LlmConfig(context_size=512),
    serving=llm_pb2.LlmServing(port=8080, host="127.0.0.1"),
    was_running=True,
    save_time=Timestamp(seconds=SAVED_AT),
    reason="An image needs 1.00 GiB.",
    phase=orchestration_pb2.OffloadedLlm.PHASE_FAILED,
    failed_attempts=3,
    last_error="It does not load. Last lines:\nline 1",
    next_attempt_time=Timestamp(seconds=SAVED_AT + 60),
    saved_tokens=506,
)
POSSIBLE = orchestration_pb2.PlanImageGenerationResponse(
    model_id="sd",
    would_need_offload=True,
    possible=True,
    bottleneck=orchestration_pb2.MEMORY_KIND_RAM,
    required_bytes=GIB,
    available_bytes=GIB // 2,
    total_bytes=4 * GIB,
    departures=[
        orchestration_pb2.Departure(
            tenant_id="llm",
            kind=orchestration_pb2.TENANT_KIND_LLM,
            model_id="tiny",
            ram_bytes=2 * GIB,
            reason="The LLM is offloaded: too little is free.",
        )
    ],
    explanation="The LLM is offloaded: too little is free.",
    placement=orchestration_pb2.ImagePlacement(vae_tiling=True, reason="Memory is short."),
    ram_bytes=GIB,
    measured=True,
)
IMPOSSIBLE = orchestration_pb2.PlanImageGenerationResponse(
    model_id="sd",
    bottleneck=orchestration_pb2.MEMORY_KIND_VRAM,
    required_bytes=9 * GIB,
    total_bytes=8 * GIB,
    explanation="Insufficient VRAM.",
    suggestion="Choose a smaller model.",
)
AWAY = llm_pb2.Llm(
    state=engines_pb2.SERVER_STATE_STOPPED,
    model_id="tiny",
    last_event=engines_pb2.ENGINE_EVENT_OFFLOADED,
    offloaded=True,
)
FAILED = llm_pb2.Llm(
    state=engines_pb2.SERVER_STATE_STOPPED,
    model_id="tiny",
    last_event=engines_pb2.ENGINE_EVENT_RELOAD_FAILED,
    last_error="It was killed.",
    offloaded=True,
)
RELOADING = llm_pb2.Llm(state=engines_pb2.SERVER_STATE_STARTING, model_id="tiny", load_percentage=37, offloaded=True)
RESTORING = llm_pb2.Llm(state=engines_pb2.SERVER_STATE_RUNNING, model_id="tiny", offloaded=True)
BACK = llm_pb2.Llm(state=engines_pb2.SERVER_STATE_RUNNING, model_id="tiny", host="127.0.0.1", port=4567, pid=7)
STOPPED = llm_pb2.Llm(state=engines_pb2.SERVER_STATE_STOPPED, model_id="tiny")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("GENAID_") or name in {"FORCE_COLOR", "TTY_COMPATIBLE"}:
            monkeypatch.delenv(name)


@pytest.fixture
def script() -> Script:
    return Script(
        steps={
            "ListLeases": [LEASES],
            "GetOffloadedLlm": [orchestration_pb2.GetOffloadedLlmResponse(offloaded=OFFLOADED)],
            "PlanImageGeneration": [POSSIBLE],
        }
    )


@pytest.fixture
async def address(script: Script) -> AsyncIterator[str]:
    async with serve(script) as (address, _):
        yield address


type Genaid = Callable[..., Any]


@pytest.fixture
def genaid(address: str) -> Genaid:
    """Runs a command against the scripted server."""

    async def run(line: str, typed: str = "") -> Result:
        argv = [*shlex.split(line), "--resource", address]
        return await asyncio.to_thread(CliRunner().invoke, app, argv, input=typed)

    return run


def rows(result: Result) -> list[str]:
    """What was printed, without the space that aligns it."""
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


# The plan


async def test_what_is_planned_is_what_was_asked_for(genaid: Genaid, script: Script) -> None:
    await genaid("memory plan")
    await genaid("memory plan --model sd --width 1024 --height 768 --variant cuda12")
    assert [request.need for _, request in script.requests] == [
        orchestration_pb2.ImageNeed(width=512, height=512, variant="cpu"),
        orchestration_pb2.ImageNeed(model_id="sd", width=1024, height=768, variant="cuda12"),
    ]


async def test_a_plan_in_words(genaid: Genaid) -> None:
    result = await genaid("memory plan")
    assert (result.exit_code, result.stderr) == (0, "")
    assert rows(result) == [
        "possible yes",
        "model sd",
        "needs 1.00 GiB of main memory; 512.00 MiB of 4.00 GiB are free",
        "explanation The LLM is offloaded: too little is free.",
        "would leave llm: LLM engine (tiny), 2.00 GiB",
        "placement decoded in tiles: Memory is short.",
        "lease 1.00 GiB, measured",
    ]


async def test_a_plan_for_what_can_not_be(genaid: Genaid, script: Script) -> None:
    script.steps["PlanImageGeneration"] = [IMPOSSIBLE]
    result = await genaid("memory plan")
    assert (result.exit_code, result.stderr) == (1, "")
    assert rows(result) == [
        "possible no",
        "model sd",
        "needs 9.00 GiB of GPU memory; 0 B of 8.00 GiB are free",
        "explanation Insufficient VRAM.",
        "suggestion Choose a smaller model.",
    ]


@pytest.mark.parametrize(("answer", "status"), [(POSSIBLE, 0), (IMPOSSIBLE, 1)])
async def test_a_plan_for_programs(genaid: Genaid, script: Script, answer: Any, status: int) -> None:
    script.steps["PlanImageGeneration"] = [answer]
    result = await genaid("memory plan --json")
    assert (result.exit_code, result.stderr) == (status, "")
    told = json.loads(result.stdout)
    assert (told["possible"], told["suggestion"]) == (answer.possible, answer.suggestion)
    assert len(told["departures"]) == len(answer.departures)


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        (ImagePlacement(False, False, None, ""), ""),
        (ImagePlacement(False, False, None, "No GPU is used."), "No GPU is used."),
        (
            ImagePlacement(True, True, GIB, "VRAM is short."),
            "weights in main memory, decoded in tiles, at most 1.00 GiB on GPUs: VRAM is short.",
        ),
    ],
)
def test_how_memory_is_used(placement: ImagePlacement, words: str) -> None:
    plan = replace(convert_orchestration.plan_from_pb(POSSIBLE), placement=placement)
    assert dict(lease_view.plan_rows(plan))["placement"] == words


# Leases, and what is offloaded


async def test_leases_in_a_table(genaid: Genaid) -> None:
    result = await genaid("memory leases")
    assert (result.exit_code, result.stderr) == (0, "")
    assert rows(result) == [
        "memory granted 1.00 GiB of 4.00 GiB",
        "on GPUs 2.00 GiB of 8.00 GiB",
        "",
        "TENANT ENGINE MODEL STATE MAIN MEMORY GPU MEMORY SIZE WHY",
        "worker image sd granted 1.00 GiB 2.00 GiB measured",
        "llm LLM tiny waiting 512.00 MiB 0 B estimated The image engine is in its way.",
    ]


async def test_no_lease_and_no_gpu(genaid: Genaid, script: Script) -> None:
    script.steps["ListLeases"] = [orchestration_pb2.ListLeasesResponse(total_ram_bytes=GIB)]
    result = await genaid("memory leases")
    assert result.stdout == "memory granted 0 B of 1.00 GiB\n\nNo engine holds memory.\n"


async def test_a_lease_that_is_to_be_given_back_says_why(genaid: Genaid, script: Script) -> None:
    lease = orchestration_pb2.Lease()
    lease.CopyFrom(GRANTED)
    lease.state, lease.reason = orchestration_pb2.LEASE_STATE_RECLAIM, "The LLM comes back."
    lease.reclaim_after.CopyFrom(Duration(seconds=2))
    script.steps["ListLeases"] = [orchestration_pb2.ListLeasesResponse(leases=[lease])]
    told = rows(await genaid("memory leases"))[-1]
    assert told == (
        "worker image sd to be given back after 2s without work 1.00 GiB 2.00 GiB measured The LLM comes back."
    )


async def test_leases_for_programs(genaid: Genaid) -> None:
    told = json.loads((await genaid("memory leases --json")).stdout)
    assert (told["total_ram_bytes"], told["granted_vram_bytes"]) == (4 * GIB, 2 * GIB)
    assert [lease["state"] for lease in told["leases"]] == ["granted", "waiting"]


async def test_the_llm_that_was_offloaded(genaid: Genaid) -> None:
    result = await genaid("memory offloaded")
    assert (result.exit_code, result.stderr) == (0, "")
    assert rows(result) == [
        f"offloaded LLM tiny, since {SAVED_AS}",
        "it is could not be loaded, and is tried again",
        "for An image needs 1.00 GiB.",
        "tokens saved 506",
        "failed attempts 3",
        "last error It does not load. Last lines:",
        f"next attempt {RETRY_AS}",
    ]
    told = json.loads((await genaid("memory offloaded --json")).stdout)
    assert (told["phase"], told["serving"]["port"], "api_key" in told["serving"]) == ("failed", 8080, False)


async def test_no_llm_that_was_offloaded(genaid: Genaid, script: Script) -> None:
    script.steps["GetOffloadedLlm"] = []
    assert (await genaid("memory offloaded")).stdout == "No LLM is offloaded.\n"
    assert json.loads((await genaid("memory offloaded --json")).stdout) is None


@pytest.mark.parametrize(("forgotten", "words"), [(True, "stays stopped"), (False, "No LLM is offloaded.")])
async def test_it_is_given_up(genaid: Genaid, script: Script, forgotten: bool, words: str) -> None:
    script.steps["ForgetOffloadedLlm"] = [orchestration_pb2.ForgetOffloadedLlmResponse(forgotten=forgotten)]
    result = await genaid("memory forget")
    assert (result.exit_code, result.stdout) == (0, "")
    assert words in result.stderr
    assert json.loads((await genaid("memory forget --json")).stdout) == {"forgotten": forgotten}


@pytest.mark.parametrize("phase", OffloadPhase)
def test_each_phase_has_words(phase: OffloadPhase) -> None:
    response = orchestration_pb2.GetOffloadedLlmResponse(offloaded=OFFLOADED)
    now = convert_orchestration.offloaded_from_pb(response)
    assert now is not None
    told = dict(lease_view.offloaded_rows(replace(now, phase=phase, next_attempt_time=None, failed_attempts=0)))
    assert told["  it is"]
    assert (told["  next attempt"], told["  failed attempts"]) == (None, None)


@pytest.mark.parametrize(
    ("state", "after", "words"),
    [
        (LeaseState.WAITING, None, "waiting"),
        (LeaseState.GRANTED, None, "granted"),
        (LeaseState.RECLAIM, None, "to be given back"),
        (LeaseState.RECLAIM, 0.0, "to be given back"),
        (LeaseState.RECLAIM, 2.0, "to be given back after 2s without work"),
    ],
)
def test_where_a_lease_is(state: LeaseState, after: float | None, words: str) -> None:
    lease = replace(convert_orchestration.lease_from_pb(GRANTED), state=state, reclaim_after_seconds=after)
    assert lease_view.state_in_words(lease) == words


@pytest.mark.parametrize("kind", [*TenantKind, None])
def test_each_kind_of_engine_has_a_name(kind: TenantKind | None) -> None:
    lease = replace(convert_orchestration.lease_from_pb(GRANTED), kind=kind)
    assert "worker: " in lease_view.lease_line(lease)


# status


async def test_status_shows_who_holds_memory_and_what_is_offloaded(
    genaid: Genaid, script: Script, address: str
) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=AWAY)]
    script.steps["GetEngine"] = [engine_pb2.GetEngineResponse(engine=engine_pb2.Engine(model_id="sd"))]
    plain = await genaid(f"status --image {address}")
    assert plain.exit_code == 0, plain.output
    lines = plain.stdout.splitlines()
    assert lines[lines.index("LLM engine        stopped, offloaded: it comes back by itself") :] == [
        "LLM engine        stopped, offloaded: it comes back by itself",
        "LLM model         tiny",
        "memory granted    1.00 GiB of 4.00 GiB",
        "  on GPUs         2.00 GiB of 8.00 GiB",
        "lease             worker: image engine (sd), granted, 1.00 GiB and 2.00 GiB on GPUs, measured",
        "lease             llm: LLM engine (tiny), waiting, 512.00 MiB, estimated: The image engine is in its way.",
        f"offloaded LLM     tiny, since {SAVED_AS}",
        "  it is           could not be loaded, and is tried again",
        "  for             An image needs 1.00 GiB.",
        "  tokens saved    506",
        "  failed attempts 3",
        "  last error      It does not load. Last lines:",
        f"  next attempt    {RETRY_AS}",
    ]
    told = json.loads((await genaid(f"status --json --image {address}")).stdout)
    assert told["llm"]["offloaded"]
    assert (told["leases"]["granted_ram_bytes"], len(told["leases"]["leases"])) == (GIB, 2)
    assert (told["offloaded"]["model_id"], "api_key" in told["offloaded"]["serving"]) == ("tiny", False)


async def test_status_where_nothing_is_offloaded(genaid: Genaid, script: Script, address: str) -> None:
    script.steps["GetOffloadedLlm"] = []
    script.steps["ListLeases"] = [orchestration_pb2.ListLeasesResponse(total_ram_bytes=GIB)]
    plain = await genaid(f"status --image {address}")
    assert plain.stdout.splitlines()[-1] == "memory granted    0 B of 1.00 GiB"
    assert json.loads((await genaid(f"status --json --image {address}")).stdout)["offloaded"] is None


@pytest.mark.parametrize(
    ("llm", "words"),
    [
        (AWAY, "stopped, offloaded: it comes back by itself"),
        (RELOADING, "starting (37% loaded), offloaded: it comes back by itself"),
        (BACK, "running"),
        (STOPPED, "stopped"),
    ],
)
async def test_an_llm_that_was_offloaded_is_shown_as_such(
    genaid: Genaid, script: Script, llm: llm_pb2.Llm, words: str
) -> None:
    assert state_in_words(convert_llm.llm_from_pb(llm)) == words
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=llm)]
    assert f"LLM engine {words}" in rows(await genaid("llm status"))


# What a chat makes of it


def watched(*states: llm_pb2.Llm) -> list[llm_pb2.WatchLlmResponse]:
    return [llm_pb2.WatchLlmResponse(llm=state) for state in states]


async def ready(address: str, tell: Callable[[str], None], model: str | None = None) -> Llm:
    async with AsyncClient(resource=address) as client:
        return await ready_llm(client, model, "", tell)


@pytest.mark.parametrize("first", [AWAY, RELOADING, RESTORING])
async def test_what_comes_back_is_waited_for(script: Script, address: str, first: llm_pb2.Llm) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=first)]
    script.steps["WatchLlm"] = [*watched(first, AWAY, FAILED, FAILED, RELOADING, RESTORING, BACK), Flag.HANG]
    told = list[str]()
    assert await ready(address, told.append) == convert_llm.llm_from_pb(BACK)
    assert told == [WAITS, "It can't be loaded yet: It was killed."]
    assert [name for name, _ in script.requests] == ["GetLlm", "WatchLlm"]


async def test_what_was_given_up_meanwhile_is_an_error(script: Script, address: str) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=AWAY)]
    script.steps["WatchLlm"] = [*watched(AWAY, STOPPED), Flag.HANG]
    with pytest.raises(ServerError, match="stopped meanwhile"):
        await ready(address, lambda _: None)


async def test_what_is_to_come_back_is_not_replaced_unasked(script: Script, address: str) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=AWAY)]
    with pytest.raises(ServerBusyError, match=r"comes back with tiny.*genaid llm start other --replace"):
        await ready(address, lambda _: None, "other")
    assert [name for name, _ in script.requests] == ["GetLlm"]


async def test_only_what_was_offloaded_is_waited_for(script: Script, address: str) -> None:
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=BACK)]
    assert await asyncio.to_thread(wait_until_back, address, lambda _: None) is None
    script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=AWAY)]
    script.steps["WatchLlm"] = watched(AWAY, BACK)
    found = await asyncio.to_thread(wait_until_back, address, lambda _: None)
    assert found is not None
    assert found.state is ServerState.RUNNING


def at(engine: ChatEngine) -> llm_pb2.Llm:
    state = engines_pb2.SERVER_STATE_RUNNING
    return llm_pb2.Llm(state=state, model_id="tiny", host="127.0.0.1", port=engine.port, pid=7)


@pytest.mark.parametrize("silence", [b"", refused(503, b'{"error": {"code": 503, "message": "Loading model"}}')])
async def test_a_question_is_asked_again_once_it_is_back(genaid: Genaid, script: Script, silence: bytes) -> None:
    with chat_engine() as before, chat_engine() as after:
        before.answers += [said("one"), silence]
        after.answers += [said("two"), said("three")]
        states = iter([at(before), AWAY])
        script.steps["GetLlm"] = [lambda _: llm_pb2.GetLlmResponse(llm=next(states))]
        script.steps["WatchLlm"] = watched(AWAY, RELOADING, at(after))
        result = await genaid("chat", "1?\n2?\n3?\n")
        asked = [[message["content"] for message in request["messages"]] for request in after.requests]
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\nthree\n")
    assert result.stderr.count(WAITS) == 1
    assert asked == [["1?", "one", "2?"], ["1?", "one", "2?", "two", "3?"]]


async def test_programs_are_not_told_of_waiting(genaid: Genaid, script: Script) -> None:
    with chat_engine() as engine:
        engine.answers.append(said("one"))
        script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=AWAY)]
        script.steps["WatchLlm"] = watched(AWAY, at(engine))
        result = await genaid("chat --json 1?")
    assert (result.exit_code, result.stderr, json.loads(result.stdout)["content"]) == (0, "", "one")


async def test_an_engine_that_is_silent_for_another_reason_is_an_error(genaid: Genaid, script: Script) -> None:
    with chat_engine() as engine:
        engine.answers.append(b"")
        script.steps["GetLlm"] = [llm_pb2.GetLlmResponse(llm=at(engine))]
        result = await genaid("chat 1?")
    assert result.exit_code == 1
    assert "does not answer" in result.stderr


# Errors


async def test_what_to_do_is_said_once(genaid: Genaid, script: Script) -> None:
    advice = "Choose a smaller model."
    script.steps["StartLlm"] = script.steps["PlanImageGeneration"] = [
        errors.InsufficientResourcesError(f"Insufficient RAM. {advice}", required="2", available="1", suggestion=advice)
    ]
    for line in ("llm start tiny", "memory plan"):
        result = await genaid(line)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"Error: Insufficient RAM. {advice} [INSUFFICIENT_RESOURCES]\n"


@pytest.mark.parametrize("command", ["plan", "leases", "offloaded", "forget"])
async def test_without_a_server_it_says_how_to_start_one(genaid: Genaid, script: Script, command: str) -> None:
    for name in ("PlanImageGeneration", "ListLeases", "GetOffloadedLlm", "ForgetOffloadedLlm"):
        script.steps[name] = [GONE]
    result = await genaid(f"memory {command}")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "genaid up" in result.stderr
    failure = json.loads((await genaid(f"memory {command} --json")).stderr)
    assert failure["error"]["code"] == "UNREACHABLE"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("memory", "Usage: "),
        ("memory plan --width wide", "Invalid value for '--width'"),
        ("memory plan sd", "unexpected extra argument"),
        ("memory sow", "No such command"),
    ],
)
def test_wrong_usage_is_explained(line: str, complaint: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())
