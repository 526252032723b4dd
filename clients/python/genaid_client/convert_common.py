"""Where what all services say the same way becomes results; no calls here."""

from collections.abc import Iterable
from typing import Final, Protocol, TypedDict

from genaid.common.v1 import engines_pb2, logs_pb2
from genaid_client.messages import Names, mirror
from genaid_client.types_common import EngineEvent, HealthState, LogEntry, LogLevel, ServerState, StopReason

SERVER_STATES: Final = Names(ServerState, engines_pb2.ServerState)
STOP_REASONS: Final = Names(StopReason, engines_pb2.StopReason)
HEALTH_STATES: Final = Names(HealthState, engines_pb2.HealthState)
ENGINE_EVENTS: Final = Names(EngineEvent, engines_pb2.EngineEvent)
LOG_LEVELS: Final = Names(LogLevel, logs_pb2.LogLevel)


class EngineMessage(Protocol):
    """What the messages of all engines say of them."""

    @property
    def state(self) -> engines_pb2.ServerState.ValueType:
        """Where it is in its life."""

    @property
    def health(self) -> engines_pb2.HealthState.ValueType:
        """Whether it answers."""

    @property
    def last_event(self) -> engines_pb2.EngineEvent.ValueType:
        """What happened last."""

    @property
    def stop_reason(self) -> engines_pb2.StopReason.ValueType:
        """Why it has no process."""


class LogMessage(Protocol):
    """A message with lines of a log, whichever service sent it."""

    @property
    def entries(self) -> Iterable[logs_pb2.LogEntry]:
        """The lines, in order."""


class EngineFields(TypedDict):
    """What all engines have."""

    state: ServerState
    health: HealthState
    last_event: EngineEvent | None
    stop_reason: StopReason | None


def engine_fields(message: EngineMessage) -> EngineFields:
    """What is said of any engine, by the names of the results' fields."""
    return EngineFields(
        state=SERVER_STATES.from_pb(message.state) or ServerState.STARTING,
        health=HEALTH_STATES.from_pb(message.health) or HealthState.UNKNOWN,
        last_event=ENGINE_EVENTS.from_pb(message.last_event),
        stop_reason=STOP_REASONS.from_pb(message.stop_reason),
    )


def log_entry_from_pb(message: logs_pb2.LogEntry) -> LogEntry:
    """One line of a log."""
    return mirror(LogEntry, message, level=LOG_LEVELS.from_pb(message.level) or LogLevel.INFO)


def log_entries(response: LogMessage) -> list[LogEntry]:
    """What one message of ListLogs or TailLogs carries."""
    return [log_entry_from_pb(entry) for entry in response.entries]
