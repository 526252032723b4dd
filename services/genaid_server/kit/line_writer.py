"""Lines on their way to a slow place, such as a file or a terminal.

A thread writes them, so that whoever has a line never waits for a disk or for a reader of stderr. What can't be
written is dropped and counted, and the count is told as soon as something can be written again.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, NoReturn

LIMIT: Final = 10_000
"""Lines that may wait to be written."""
CHUNK: Final = 1000
"""Lines of one write."""


def stamp(seconds: float) -> str:
    """A time since the epoch as lines have it: ISO 8601 in UTC, with milliseconds."""
    milliseconds = round(seconds * 1000)
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:  # many lines share it
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


class LineWriter:
    """Writes lines in the order in which they were put, in a thread that is started with the first of them.

    `write` gets whole lines as one text and may raise OSError; `lost` makes the line that tells how many are missing.
    The thread waits `pause` seconds for more lines before it writes, so that a burst costs one write.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[str], object],
        lost: Callable[[int], object],
        *,
        limit: int = LIMIT,
        pause: float = 0.0,
    ) -> None:
        self._write, self._lost, self._limit, self._pause = write, lost, limit, pause
        # Reentrant by nature, because what the garbage collector calls may have a line as well.
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = False
        self._lines: list[object] = []
        self._taken = self._settled = 0
        self._dropped = self._untold = 0
        self._hurried = self._closed = False

    @property
    def dropped(self) -> int:
        """How many lines could not be written."""
        return self._dropped

    @property
    def missing(self) -> int:
        """How many lines were not written, be it that they wait."""
        with self._changed:
            return self._dropped + self._taken - self._settled

    def put(self, line: object) -> None:
        """Have `str(line)` written as a line. Never waits, from whichever thread."""
        with self._changed:
            if self._closed or len(self._lines) >= self._limit:
                self._drop(1)
                return
            self._lines.append(line)
            self._taken += 1
            if len(self._lines) > 1:
                return
            if not self._started:
                self._started = True
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until what was put so far is written or dropped; False where that takes longer than `seconds`."""
        with self._changed:
            wanted = self._taken
            self._hurried = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._settled >= wanted, seconds)

    def close(self, seconds: float) -> bool:
        """Write what waits, and take nothing more; False where that takes longer than `seconds`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._started:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @contextmanager
    def silence(self, seconds: float) -> Iterator[None]:
        """Forget what waits, and write nothing during the block. Raises TimeoutError where a write takes longer."""
        with self._changed:
            self._settled += len(self._lines)
            self._lines.clear()
        if not self._writing.acquire(timeout=seconds):
            raise TimeoutError("a write to it does not end")
        try:
            yield
        finally:
            self._writing.release()

    def _run(self) -> None:
        while self._awaited():
            with self._writing:
                lines, lost = self._next()
                if lines:
                    self._settle(lines, lost, written=self._written(lines, lost))

    def _awaited(self) -> bool:
        """Wait for lines; False where none will come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            if self._pause and self._lines:
                self._changed.wait_for(lambda: self._closed or self._hurried, self._pause)
            return bool(self._lines)

    def _next(self) -> tuple[list[object], int]:
        with self._changed:
            lines, self._lines = self._lines[:CHUNK], self._lines[CHUNK:]
            self._hurried = self._hurried and bool(self._lines)
            return lines, self._untold

    def _written(self, lines: list[object], lost: int) -> bool:
        try:
            self._write("".join(f"{line}\n" for line in ([self._lost(lost)] if lost else []) + lines))
        except (OSError, ValueError):  # the latter is Python's word for a stream that was closed
            return False
        return True

    def _settle(self, lines: list[object], told: int, *, written: bool) -> None:
        with self._changed:
            if written:
                self._untold -= told
            else:
                self._drop(len(lines))
            self._settled += len(lines)  # those that were dropped as well: nobody waits for them any more
            self._changed.notify_all()

    def _drop(self, count: int) -> None:
        self._dropped += count
        self._untold += count


class RotatingFile(RotatingFileHandler):
    """A file for whole texts, which is renamed to `path.1`, `path.2` … before it grows beyond `max_bytes`.

    There are at most `files` of them (at least 2). The file and its folder are made with the first text.
    """

    terminator = ""
    stream: TextIOWrapper | None  # type: ignore[assignment]  # None while it is not open

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        super().__init__(
            path, maxBytes=max_bytes, backupCount=files - 1, encoding="utf-8", errors="backslashreplace", delay=True
        )
        self._path = path

    def write(self, text: str) -> None:
        """Append a text. Raises OSError."""
        self.emit(logging.makeLogRecord({"msg": text}))

    def remove(self) -> None:
        """Remove the file and its older ones. Raises OSError."""
        self._let_go()
        for path in [self._path, *(Path(f"{self._path}.{n}") for n in range(1, self.backupCount + 1))]:
            path.unlink(missing_ok=True)

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - logging's name
        """Whether the file would grow too long (called by logging); an empty one never is, on any Python."""
        return bool(super().shouldRollover(record)) and self.stream is not None and self.stream.tell() > 0

    def doRollover(self) -> None:  # noqa: N802 - logging's name
        """Begin a new file (called by logging). Where that can't be, as on Windows while it is read, the old one grows.

        What is to be written is written in either case.
        """
        with suppress(OSError):
            super().doRollover()

    def handleError(self, record: logging.LogRecord) -> NoReturn:  # noqa: N802 - logging's name
        """Let the writer know (called by logging, in an exception's handler)."""
        self._let_go()
        raise

    def _open(self) -> TextIOWrapper:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def _let_go(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError):  # closing writes again what a full disk has refused
                stream.close()
