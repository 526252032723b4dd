"""What all services say the same way: states and logs of engines. Times are aware and in UTC."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ServerState(StrEnum):
    """Where an engine is in its life. A state that this client doesn't know is read as STARTING: not settled."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    CRASHED = "crashed"


class HealthState(StrEnum):
    """Whether an engine answers. What this client doesn't know is read as UNKNOWN."""

    UNKNOWN = "unknown"
    LOADING = "loading"
    OK = "ok"
    ERROR = "error"


class StopReason(StrEnum):
    """Why an engine has no process."""

    NEVER_STARTED = "never_started"
    STOPPED = "stopped"
    UNLOADED_WHEN_IDLE = "unloaded_when_idle"
    OFFLOADED = "offloaded"
    REFUSED_FOR_MEMORY = "refused_for_memory"
    CRASHED = "crashed"


class EngineEvent(StrEnum):
    """What happened to an engine."""

    STARTED = "started"
    READY = "ready"
    STOPPED = "stopped"
    CRASHED = "crashed"
    RESTARTING = "restarting"
    OFFLOADED = "offloaded"
    RELOAD_FAILED = "reload_failed"
    UNLOADED = "unloaded"


class LogLevel(StrEnum):
    """How grave a log line is. A level that this client doesn't know is read as INFO."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of a log; `sequence` counts up by one a line.

    `raw` is the line as the log file has it, `[ISO time] [LEVEL] message`.
    """

    sequence: int
    time: datetime
    level: LogLevel
    message: str
    raw: str = ""
