"""States, events and logs of engines, to the contract's."""

from enum import Enum
from typing import Final

from genaid.common.v1 import engines_pb2, logs_pb2
from genaid_server.common.times import time_to_pb
from genaid_server.supervision.logbook import Level, LogRecord
from genaid_server.supervision.stop_reason import StopReason
from genaid_server.supervision.supervisor import ServerState

CONTRACT_REVISION: Final = max(engines_pb2.ContractRevision.values())
"""The contracts that these services have."""

_STATES = {each: engines_pb2.ServerState.Value(f"SERVER_STATE_{each.name}") for each in ServerState}
_STOP_REASONS = {each: engines_pb2.StopReason.Value(f"STOP_REASON_{each.name}") for each in StopReason}
_LEVELS = {each: logs_pb2.LogLevel.Value(f"LOG_LEVEL_{each.name}") for each in Level}


def state_to_pb(state: ServerState) -> engines_pb2.ServerState.ValueType:
    """Where an engine is in its life."""
    return _STATES[state]


def stop_reason_to_pb(reason: StopReason | None) -> engines_pb2.StopReason.ValueType:
    """Why an engine has no process; None where it has one."""
    return _STOP_REASONS[reason] if reason else engines_pb2.STOP_REASON_UNSPECIFIED


def health_to_pb(health: Enum) -> engines_pb2.HealthState.ValueType:
    """Whether an engine answers, from an enum of a core whose members have the contract's names."""
    return engines_pb2.HealthState.Value(f"HEALTH_STATE_{health.name}")


def event_to_pb(event: str) -> engines_pb2.EngineEvent.ValueType:
    """What happened to an engine, from a supervisor's word for it; empty before anything has happened."""
    return engines_pb2.EngineEvent.Value(f"ENGINE_EVENT_{event.upper() or 'UNSPECIFIED'}")


def record_to_pb(record: LogRecord) -> logs_pb2.LogEntry:
    """A log line, for callers."""
    return logs_pb2.LogEntry(
        sequence=record.sequence,
        time=time_to_pb(record.time),
        level=_LEVELS[record.level],
        message=record.message,
        raw=str(record),
    )
