"""What a service says of an engine has a place in the contract, whatever it is."""

import re
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

import genaid_server
from genaid.common.v1 import engines_pb2, logs_pb2
from genaid_server.common import convert
from genaid_server.common.times import duration_to_pb, time_to_pb
from genaid_server.resource.core.llm.info import HealthState
from genaid_server.supervision.logbook import Level, LogRecord
from genaid_server.supervision.stop_reason import StopReason
from genaid_server.supervision.supervisor import ServerState


def test_states_and_reasons_have_the_names_of_the_contract() -> None:
    assert [engines_pb2.ServerState.Name(convert.state_to_pb(each)) for each in ServerState] == [
        f"SERVER_STATE_{each.name}" for each in ServerState
    ]
    assert [engines_pb2.StopReason.Name(convert.stop_reason_to_pb(each)) for each in (None, *StopReason)] == [
        f"STOP_REASON_{name}" for name in ("UNSPECIFIED", *(each.name for each in StopReason))
    ]
    assert [engines_pb2.HealthState.Name(convert.health_to_pb(each)) for each in HealthState] == [
        f"HEALTH_STATE_{each.name}" for each in HealthState
    ]


def test_every_word_that_a_supervisor_is_given_for_an_event_is_in_the_contract() -> None:
    sources = [path.read_text("utf-8") for path in Path(genaid_server.__file__).parent.rglob("*.py")]
    given = re.compile(r'(?:event="|(?:Ending|_happened|_begin_life)\("|on\.Halt\(\w+, ")(\w+)"')
    words = {word for text in sources for word in given.findall(text)}
    assert {"ready", "crashed", "unloaded", "started", "stopped", "offloaded", "reload_failed"} <= words
    for word in words:
        assert engines_pb2.EngineEvent.Name(convert.event_to_pb(word)) == f"ENGINE_EVENT_{word.upper()}"
    assert convert.event_to_pb("") == engines_pb2.ENGINE_EVENT_UNSPECIFIED


def test_a_line_of_a_log() -> None:
    record = LogRecord(7, 1_700_000_000.25, Level.WARN, "slow")
    assert convert.record_to_pb(record) == logs_pb2.LogEntry(
        sequence=7,
        time=Timestamp(seconds=1_700_000_000, nanos=250_000_000),
        level=logs_pb2.LOG_LEVEL_WARN,
        message="slow",
        raw="[2023-11-14T22:13:20.250Z] [WARN ] slow",
    )


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (0, Duration()),
        (1.5, Duration(seconds=1, nanos=500_000_000)),
        (-1.5, Duration(seconds=-1, nanos=-500_000_000)),
        (float("inf"), Duration(seconds=315_576_000_000)),
        (float("-inf"), Duration(seconds=-315_576_000_000)),
    ],
)
def test_a_duration(seconds: float, message: Duration) -> None:
    assert duration_to_pb(seconds) == message


def test_a_time() -> None:
    assert time_to_pb(1_700_000_000.123456) == Timestamp(seconds=1_700_000_000, nanos=123_456_000)
