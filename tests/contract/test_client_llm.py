"""The calls about the LLM engine, on both faces against a scripted server, and what their messages become."""

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from contract.faces import Connect
from contract.scripted import Flag, Script
from genaid.common.v1 import engines_pb2, logs_pb2
from genaid.resource.v1 import llm_pb2, orchestration_pb2, system_pb2
from genaid_client import (
    CacheType,
    EngineEvent,
    HealthState,
    InvalidRequestError,
    Llm,
    LlmConfig,
    LlmServing,
    LogEntry,
    LogLevel,
    PortInUseError,
    ServerBusyError,
    ServerError,
    ServerState,
    StopReason,
    convert_llm,
)
from genaid_server.kit import errors
from genaid_server.kit.errors import DomainError

PATIENCE = 30.0  # seconds until a test that waits for something gives up
THEN = datetime.fromtimestamp(1_700_000_000, UTC)
RUNNING = llm_pb2.Llm(
    state=engines_pb2.SERVER_STATE_RUNNING,
    health=engines_pb2.HEALTH_STATE_OK,
    model_id="tiny",
    port=8080,
    host="127.0.0.1",
    pid=2**40,
    start_time=Timestamp(seconds=1_700_000_000),
    load_duration=Duration(seconds=2, nanos=500_000_000),
    restarts=3,
    last_error="it was killed",
    load_percentage=99.5,
    last_event=engines_pb2.ENGINE_EVENT_READY,
    config=system_pb2.LlmConfig(context_size=4096, cache_type_k=system_pb2.CACHE_TYPE_Q8_0),
    serving=llm_pb2.LlmServing(port=0, host="127.0.0.1", memory_map=True, memory_lock=False),
    separates_reasoning=True,
    variant="cpu",
    generation=2**33,
    reasons={"threads": "one is left for others"},
    offloaded=True,
    stop_reason=engines_pb2.STOP_REASON_OFFLOADED,
)
SAME = Llm(
    state=ServerState.RUNNING,
    health=HealthState.OK,
    model_id="tiny",
    port=8080,
    host="127.0.0.1",
    pid=2**40,
    start_time=THEN,
    load_seconds=2.5,
    restarts=3,
    last_error="it was killed",
    load_percentage=99.5,
    last_event=EngineEvent.READY,
    config=LlmConfig(context_size=4096, cache_type_k=CacheType.Q8_0),
    serving=LlmServing(0, "127.0.0.1", "", True, False),
    separates_reasoning=True,
    variant="cpu",
    generation=2**33,
    reasons={"threads": "one is left for others"},
    offloaded=True,
    stop_reason=StopReason.OFFLOADED,
)


def entry(number: int) -> logs_pb2.LogEntry:
    return logs_pb2.LogEntry(
        sequence=number,
        time=Timestamp(seconds=1_700_000_000),
        level=logs_pb2.LOG_LEVEL_WARN,
        message=f"line {number}",
        raw=f"[then] [WARN ] line {number}",
    )


def same_entry(number: int) -> LogEntry:
    return LogEntry(number, THEN, LogLevel.WARN, f"line {number}", f"[then] [WARN ] line {number}")


# Calls


async def test_a_model_is_started_with_all_that_can_be_said(resource: Connect, script: Script, address: str) -> None:
    script.steps["StartLlm"] = [llm_pb2.StartLlmResponse(llm=RUNNING)]
    async with resource(address) as client:
        started = await client.call(
            "llm.start",
            "tiny",
            config=LlmConfig(threads=2, flash_attention=False, cache_type_v=CacheType.F16),
            serving=LlmServing(0, "::1", "secret", False, True),
            replace=True,
            request_id="mine",
        )
    assert started == SAME
    assert script.requests == [
        (
            "StartLlm",
            llm_pb2.StartLlmRequest(
                model_id="tiny",
                config=system_pb2.LlmConfig(threads=2, flash_attention=False, cache_type_v=system_pb2.CACHE_TYPE_F16),
                serving=llm_pb2.LlmServing(port=0, host="::1", api_key="secret", memory_map=False, memory_lock=True),
                replace=True,
                request_id="mine",
            ),
        )
    ]


async def test_what_is_not_said_is_left_to_the_server(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        await client.call("llm.start", "tiny")
        await client.call("llm.start", "tiny")
    first, second = (request for _, request in script.requests)
    assert (first.model_id, first.replace) == ("tiny", False)
    assert not first.HasField("config")
    assert not first.HasField("serving")
    assert first.request_id
    assert first.request_id != second.request_id


async def test_a_large_model_has_time_to_load(resource: Connect, script: Script, address: str) -> None:
    async with resource(address, timeout=0.5) as client:
        await client.call("llm.start", "tiny")
        await client.call("llm.restart")
        await client.call("llm.stop")
        await client.call("llm.start", "tiny", timeout=7)
    assert (script.deadlines["RestartLlm"] or 0) > 3000
    assert 30 < (script.deadlines["StopLlm"] or 0) < 100
    assert (script.deadlines["StartLlm"] or 0) < 30


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        (errors.PortInUseError("8080 is taken."), PortInUseError),
        (errors.ServerBusyError("It runs with another one."), ServerBusyError),
        (errors.ServerError("It does not load.\nline"), ServerError),
    ],
)
async def test_a_start_that_fails(
    resource: Connect, script: Script, address: str, raised: DomainError, caught: type[Exception]
) -> None:
    script.steps["StartLlm"] = [raised]
    async with resource(address) as client:
        with pytest.raises(caught) as found:
            await client.call("llm.start", "tiny")
    assert str(found.value) == raised.message


async def test_a_port_that_no_message_can_hold(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        with pytest.raises(InvalidRequestError, match="port"):
            await client.call("llm.start", "tiny", serving=LlmServing(port=2**31))
    assert script.requests == []


@pytest.mark.parametrize(
    ("method", "rpc", "request_kind", "response_kind"),
    [
        ("llm.stop", "StopLlm", llm_pb2.StopLlmRequest, llm_pb2.StopLlmResponse),
        ("llm.restart", "RestartLlm", llm_pb2.RestartLlmRequest, llm_pb2.RestartLlmResponse),
        ("llm.get", "GetLlm", llm_pb2.GetLlmRequest, llm_pb2.GetLlmResponse),
    ],
)
async def test_stop_restart_and_get(
    resource: Connect, script: Script, address: str, method: str, rpc: str, request_kind: Any, response_kind: Any
) -> None:
    script.steps[rpc] = [response_kind(llm=RUNNING)]
    async with resource(address) as client:
        assert await client.call(method) == SAME
    assert script.requests == [(rpc, request_kind())]


@pytest.mark.parametrize(
    ("method", "request_kind"),
    [
        ("llm.stop", llm_pb2.StopLlmRequest),
        ("llm.restart", llm_pb2.RestartLlmRequest),
        ("llm.get", llm_pb2.GetLlmRequest),
        ("llm.watch", llm_pb2.WatchLlmRequest),
        ("llm.list_logs", llm_pb2.ListLogsRequest),
        ("llm.tail_logs", llm_pb2.TailLogsRequest),
        ("llm.clear_logs", llm_pb2.ClearLogsRequest),
        ("orchestration.get_offloaded_llm", orchestration_pb2.GetOffloadedLlmRequest),
        ("orchestration.forget_offloaded_llm", orchestration_pb2.ForgetOffloadedLlmRequest),
    ],
)
@pytest.mark.parametrize("named", [None, "", "tiny"])
async def test_each_call_says_which_engine_it_means(
    resource: Connect, script: Script, address: str, method: str, request_kind: Any, named: str | None
) -> None:
    async with resource(address) as client:
        if method in ("llm.watch", "llm.tail_logs"):
            assert [item async for item in client.iterate(method, model_id=named)] == []
        else:
            await client.call(method, model_id=named)
    assert [request for _, request in script.requests] == [request_kind(model_id=named)]
    assert script.requests[0][1].HasField("model_id") == (named is not None)


async def test_the_engine_is_watched_with_its_events(resource: Connect, script: Script, address: str) -> None:
    events = [
        engines_pb2.ENGINE_EVENT_STARTED,
        engines_pb2.ENGINE_EVENT_CRASHED,
        engines_pb2.ENGINE_EVENT_OFFLOADED,
        engines_pb2.ENGINE_EVENT_RELOAD_FAILED,
        engines_pb2.ENGINE_EVENT_UNSPECIFIED,
    ]
    script.steps["WatchLlm"] = [llm_pb2.WatchLlmResponse(llm=llm_pb2.Llm(last_event=event)) for event in events]
    async with resource(address) as client:
        seen = [now.last_event async for now in client.iterate("llm.watch")]
    assert seen == [EngineEvent.STARTED, EngineEvent.CRASHED, EngineEvent.OFFLOADED, EngineEvent.RELOAD_FAILED, None]
    assert script.requests == [("WatchLlm", llm_pb2.WatchLlmRequest())]


@pytest.mark.parametrize(
    ("method", "rpc", "first"),
    [
        ("llm.watch", "WatchLlm", llm_pb2.WatchLlmResponse(llm=RUNNING)),
        ("llm.tail_logs", "TailLogs", llm_pb2.TailLogsResponse(entries=[entry(1)])),
    ],
)
async def test_a_stream_that_is_left_cancels_its_call(
    resource: Connect, script: Script, address: str, method: str, rpc: str, first: Any
) -> None:
    script.steps[rpc] = [first, Flag.HANG]
    async with resource(address) as client:
        iterator = client.iterate(method)
        await anext(iterator)
        await asyncio.wait_for(script.hanging.wait(), PATIENCE)
        await iterator.aclose()
        await asyncio.wait_for(script.cancelled.wait(), PATIENCE)


@pytest.mark.parametrize("lines", [None, 0, 7])
async def test_the_newest_lines(resource: Connect, script: Script, address: str, lines: int | None) -> None:
    script.steps["ListLogs"] = [llm_pb2.ListLogsResponse(entries=[entry(1), entry(2)])]
    async with resource(address) as client:
        assert await client.call("llm.list_logs", lines) == [same_entry(1), same_entry(2)]
    assert script.requests == [("ListLogs", llm_pb2.ListLogsRequest(lines=lines))]


@pytest.mark.parametrize("start", [None, 0, 2**40])
async def test_new_lines(resource: Connect, script: Script, address: str, start: int | None) -> None:
    script.steps["TailLogs"] = [
        llm_pb2.TailLogsResponse(entries=[entry(1), entry(2)]),
        llm_pb2.TailLogsResponse(entries=[entry(3)]),
    ]
    async with resource(address) as client:
        seen = [line async for line in client.iterate("llm.tail_logs", start)]
    assert seen == [same_entry(number) for number in (1, 2, 3)]
    assert script.requests == [("TailLogs", llm_pb2.TailLogsRequest(from_sequence=start))]


async def test_the_log_is_forgotten(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        assert await client.call("llm.clear_logs") is None
    assert script.requests == [("ClearLogs", llm_pb2.ClearLogsRequest())]


# What messages become


def test_an_engine_that_was_never_started() -> None:
    message = llm_pb2.Llm(state=engines_pb2.SERVER_STATE_STOPPED, health=engines_pb2.HEALTH_STATE_UNKNOWN)
    found = convert_llm.llm_from_pb(message)
    assert (found.state, found.health, found.last_event) == (ServerState.STOPPED, HealthState.UNKNOWN, None)
    assert (found.port, found.pid, found.start_time, found.load_seconds) == (None,) * 4
    assert (found.config, found.serving, found.base_url, found.healthy) == (None, None, None, False)


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("127.0.0.1", 8080, "http://127.0.0.1:8080"),
        ("::1", 1, "http://[::1]:1"),
        ("127.0.0.1", None, None),
        ("", 8080, None),
    ],
)
def test_where_its_api_is(host: str, port: int | None, url: str | None) -> None:
    assert dataclasses.replace(SAME, host=host, port=port).base_url == url


@pytest.mark.parametrize("health", HealthState)
def test_only_an_answer_is_healthy(health: HealthState) -> None:
    assert dataclasses.replace(SAME, health=health).healthy == (health is HealthState.OK)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(LlmServing(api_key="secret"))


@given(
    st.builds(
        LlmServing,
        port=st.none() | st.integers(-(2**31), 2**31 - 1),
        host=st.text(st.characters(exclude_categories=["Cs"])),
        api_key=st.text(st.characters(exclude_categories=["Cs"])),
        memory_map=st.none() | st.booleans(),
        memory_lock=st.none() | st.booleans(),
    )
)
def test_how_to_serve_comes_back_as_it_went(serving: LlmServing) -> None:
    wire = convert_llm.start_llm_request("m", None, serving, False, None).SerializeToString()
    received = llm_pb2.StartLlmRequest.FromString(wire).serving
    assert convert_llm.llm_from_pb(llm_pb2.Llm(serving=received)).serving == serving


@pytest.mark.parametrize("number", [0, 999])
def test_a_number_that_is_not_known_has_its_documented_meaning(number: Any) -> None:
    found = convert_llm.llm_from_pb(llm_pb2.Llm(state=number, health=number, last_event=number, stop_reason=number))
    assert (found.state, found.health) == (ServerState.STARTING, HealthState.UNKNOWN)
    assert (found.last_event, found.stop_reason) == (None, None)
