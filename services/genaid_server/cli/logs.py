"""The log of an engine: its newest lines, and each new one."""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Protocol

import typer

from genaid_client import ConnectionFailedError, LogEntry
from genaid_server.cli.output import INTERRUPTED, print_json_line


class EngineLog(Protocol):
    """A client of a service that keeps the log of an engine."""

    def list_logs(self, limit: int | None = None) -> Sequence[LogEntry]:
        """The newest lines, the oldest of them first; None for 100 at most."""

    def tail_logs(self, from_sequence: int | None = None) -> Generator[LogEntry, None, None]:
        """Each new line, from a sequence number on; it ends with the service."""


def show_log(log: EngineLog, lines: int | None, *, follow: bool, as_json: bool) -> None:
    """Print the newest lines of a log; with `follow` each new one as well, until Ctrl-C.

    Raises ConnectionFailedError where the service ends while its log is followed.
    """
    entries = log.list_logs(lines)
    for entry in entries:
        _print_entry(entry, as_json=as_json)
    if not follow:
        return
    try:
        with closing(log.tail_logs(entries[-1].sequence + 1 if entries else None)) as news:
            for entry in news:
                _print_entry(entry, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    raise ConnectionFailedError("The genaid service went away. Start it again with `genaid up`, then follow again.")


def _print_entry(entry: LogEntry, *, as_json: bool) -> None:
    if as_json:
        print_json_line(entry)
    else:
        print(f"{entry.time.astimezone():%H:%M:%S} {entry.level:<5} {entry.message}", flush=True)
