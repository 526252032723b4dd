"""What an engine says, line by line: a ring buffer for readers and a rotated file for later.

The owner of an engine appends; servicers list, tail and clear. One line in the file is
`[ISO time] [LEVEL] message`, as documented.
"""

import asyncio
import itertools
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import FileSystemError, InvalidRequestError
from genaid_server.kit.line_writer import LineWriter, RotatingFile, stamp

MAX_LINE: Final = 8192
DEFAULT_LINES: Final = 100
FLUSH_AFTER: Final = 0.1  # seconds; a burst of lines costs one write
PATIENCE: Final = 2.0  # seconds that a disk may take where somebody has to wait for it


class Level(IntEnum):
    """How grave a line is."""

    DEBUG = 1
    INFO = 2
    WARN = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line. `time` is in seconds since the epoch; `sequence` counts lines and is never reused."""

    sequence: int
    time: float
    level: Level
    message: str

    def __str__(self) -> str:
        return f"[{stamp(self.time)}] [{self.level.name:<5}] {self.message}"


def lines_asked(lines: int | None) -> int:
    """How many log lines a caller wants, who may leave it open. Raises InvalidRequestError."""
    if lines is None:
        return DEFAULT_LINES
    if lines < 0:
        raise InvalidRequestError(f"lines must not be negative, and is {lines}", field="lines")
    return lines


def newest_within(records: Sequence[LogRecord], size: int = 2 * 2**20) -> list[LogRecord]:
    """As many of the newest records as have at most `size` bytes together, the newest last: a message has a limit."""
    kept = deque[LogRecord]()
    for record in reversed(records):
        size -= _weight(record)
        if size < 0:
            break
        kept.appendleft(record)
    return list(kept)


def in_portions(records: Iterable[LogRecord], size: int = 2**20) -> Iterator[list[LogRecord]]:
    """The records in order, in lists of about `size` bytes at most, at least one in each."""
    portion: list[LogRecord] = []
    weight = 0
    for record in records:
        weight += _weight(record)
        if portion and weight > size:
            yield portion
            portion, weight = [], _weight(record)
        portion.append(record)
    if portion:
        yield portion


def _weight(record: LogRecord) -> int:
    return 2 * len(record.message.encode()) + 100  # some contracts carry it twice


_ERROR = re.compile(r"\berror\b|\bfailed\b|\bfatal\b|\bassert\b|\babort", re.IGNORECASE)
_WARN = re.compile(r"\bwarn", re.IGNORECASE)


def guess_level(line: str) -> Level:
    """Tell the level of a line that carries none, from its words."""
    if _ERROR.search(line):
        return Level.ERROR
    return Level.WARN if _WARN.search(line) else Level.INFO


class LineSplitter:
    r"""Cuts a stream of bytes into lines at `\n` and `\r`, with a bound on what it holds.

    Invalid UTF-8 and control characters are replaced, terminal escapes and empty lines are dropped, and what is
    longer than MAX_LINE bytes is cut there and marked.
    """

    _escapes = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)")
    _controls = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that `data` completes."""
        *whole, self._rest = re.split(rb"[\r\n]", self._rest + data)
        lines = []
        for line in whole:
            if not self._skipping:
                lines.append(self._clean(line))
            self._skipping = False
        if len(self._rest) > MAX_LINE:
            if not self._skipping:
                lines.append(self._clean(self._rest))
            self._skipping, self._rest = True, b""
        return [line for line in lines if line]

    def flush(self) -> list[str]:
        """Return the line that the stream ended in, if any."""
        return self.feed(b"\n")

    def _clean(self, line: bytes) -> str:
        text = self._escapes.sub("", line[:MAX_LINE].decode("utf-8", "replace"))
        text = self._controls.sub("\ufffd", text).rstrip()
        return text + "…" if len(line) > MAX_LINE else text


class Logbook:
    """The lines of one engine, over all its lives.

    `path` is the file to write to, None for memory only. At `file_bytes` it is rotated to `path.1` …, so that there
    are at most `files` of them (at least 2). A thread writes it; lines that can't be written are counted there.
    """

    def __init__(self, path: Path | None = None, keep: int = 5000, file_bytes: int = 5_000_000, files: int = 3) -> None:
        self._records: deque[LogRecord] = deque(maxlen=keep)
        self._sequence = itertools.count(1)
        self._next = 1
        self._arrived = asyncio.Event()
        self._closed = False
        self._path = path
        self._file = None if path is None else _File(path, file_bytes, files)

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next line will get."""
        return self._next

    def append(self, level: Level, message: str) -> None:
        """Add a line, or each line of a message that has several. Must be called in the event loop.

        What is longer than MAX_LINE characters is cut and ends with an ellipsis; what no UTF-8 can hold is replaced.
        """
        now = time.time()
        for line in message.encode("utf-8", "replace").decode().splitlines() or [""]:
            bounded = line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"
            self._add(LogRecord(next(self._sequence), now, level, bounded))
        self._wake()

    def tail(self, lines: int) -> list[LogRecord]:
        """The newest `lines` lines, the newest last; 0 gives none."""
        start = max(0, len(self._records) - lines)
        return list(itertools.islice(self._records, start, None))

    def since(self, sequence: int) -> list[LogRecord]:
        """The kept lines from this sequence number on."""
        if not self._records:
            return []
        start = max(0, sequence - self._records[0].sequence)
        return list(itertools.islice(self._records, start, None))

    async def watch(self, from_sequence: int | None) -> AsyncIterator[Sequence[LogRecord]]:
        """Yield kept lines from the sequence number on (None: only new ones), then new ones as they come."""
        cursor = self._next if from_sequence is None else from_sequence
        while True:
            if records := self.since(cursor):
                cursor = records[-1].sequence + 1
                yield records
            elif self._closed:
                return
            else:
                await self._arrived.wait()

    def clear(self) -> None:
        """Forget every line, in memory and on disk. Raises FileSystemError where a file can't be removed."""
        self._records.clear()
        if self._file is None or self._path is None:
            return
        try:
            self._file.clear()
        except OSError as error:
            reason = error.strerror or error
            raise FileSystemError(f"The log in {self._path.parent} can't be removed: {reason}.") from error

    def close(self) -> None:
        """Write what is not yet written and end every watch."""
        if self._file is not None:
            self._file.close()
        self.end_watches()

    def end_watches(self) -> None:
        """End every watch, after it has seen the last line; lines may still be added."""
        self._closed = True
        self._wake()

    def _add(self, record: LogRecord) -> None:
        self._next = record.sequence + 1
        self._records.append(record)
        if self._file is not None:
            self._file.lines.put(record)

    def _wake(self) -> None:
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()


class _File:
    """Where the lines are written to."""

    def __init__(self, path: Path, file_bytes: int, files: int) -> None:
        self._rotating = RotatingFile(path, file_bytes, files)
        self.lines = LineWriter(f"log {path.name}", self._rotating.write, _lost, pause=FLUSH_AFTER)

    def clear(self) -> None:
        """Remove it. Raises OSError."""
        with self.lines.silence(PATIENCE):
            self._rotating.remove()

    def close(self) -> None:
        """Write what waits to be written, unless the disk takes too long."""
        if self.lines.close(PATIENCE):
            self._rotating.close()


def _lost(count: int) -> LogRecord:
    return LogRecord(0, time.time(), Level.WARN, f"{count} lines could not be written here")
