"""The log of a service: what it says of itself, on stderr and on disk, one line an event.

Nothing here waits: lines are written by threads of their own, and what stderr or the disk does not take is dropped and
counted. A line is `[ISO time] [LEVEL] [request id] module: message`; only a traceback stands on lines below.
Requests to the gateway have a file of their own, because there are many: they would rotate the rest away.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from filelock import FileLock, Timeout

from genaid_client.tracing import current_request_id
from genaid_server.kit.line_writer import LineWriter, RotatingFile, stamp

OURS: Final = ("genaid_server", "genaid_client")
ACCESS: Final = "genaid_server.gateway.http.access"
"""The logger of requests to the gateway."""
FILE_BYTES: Final = 5_000_000
FILES: Final = 3
FLUSH_AFTER: Final = 0.1  # seconds; a burst of lines costs one write to the disk
PATIENCE: Final = 2.0  # seconds that a writer gets at the end
MAX_MESSAGE: Final = 8192  # characters

_LEVELS: Final = {
    logging.DEBUG: "DEBUG",
    logging.INFO: "INFO ",
    logging.WARNING: "WARN ",
    logging.ERROR: "ERROR",
    logging.CRITICAL: "ERROR",
}


class LineFormatter(logging.Formatter):
    """Makes one line of a record, whatever characters are in it, and lines below for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line (called by logging)."""
        level = _LEVELS.get(record.levelno, f"{record.levelname:<5}")
        request_id = getattr(record, "request_id", "") or current_request_id() or "-"
        name = record.name.removeprefix("genaid_server.")
        line = f"[{stamp(record.created)}] [{level}] [{request_id}] {name}: {_on_one_line(record.getMessage())}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _on_one_line(text: str) -> str:
    if len(text) > MAX_MESSAGE:
        text = text[: MAX_MESSAGE - 1] + "…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


_FORMATTER: Final = LineFormatter()


class CheapRecord(logging.LogRecord):
    """A record for lines that come by the thousand: made quickly, and formatted by the thread that writes it.

    `like` are the attributes of a record that is the same but for `args`, which must be values that never change.
    """

    def __init__(self, like: Mapping[str, object], args: tuple[str | int | float, ...], request_id: str) -> None:
        self.__dict__.update(like)
        self.created, self.args, self.request_id = time.time(), args, request_id

    def __str__(self) -> str:
        return _FORMATTER.format(self)


class _Outlets(logging.Handler):
    """Hands each record, as a line, to whoever wants it."""

    def __init__(self, outlets: Callable[[logging.LogRecord], list[LineWriter]]) -> None:
        super().__init__()
        self._outlets = outlets
        self.setFormatter(_FORMATTER)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the record on (called by logging)."""
        if outlets := self._outlets(record):
            line = record if isinstance(record, CheapRecord) else self._line(record)
            for outlet in outlets:
                outlet.put(line)

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # noqa: BLE001 - a message that can't be made must not harm what it is about
            return f"a message of {record.name}, line {record.lineno}, can't be formatted: {type(error).__name__}"


class ServiceLog:
    """Takes what this process logs, for as long as the block runs; use it as a context manager.

    `level` is what stderr shows of our own messages, and `libraries` of others', both as logging calls them. On disk
    are ours from INFO on, or from DEBUG where stderr shows that. `file` and `access` are where, None for not at all;
    another process that writes there already keeps them.
    """

    def __init__(self, level: int, libraries: int, file: Path | None, access: Path | None) -> None:
        self._level, self._libraries = level, libraries
        self._stack = ExitStack()
        self._stderr = _stderr_writer()
        self._file, self._access = self._open(file), self._open(access)
        self._handler = _Outlets(self._outlets)

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._set_level(root, self._libraries)
        for name in OURS:
            self._set_level(logging.getLogger(name), min(self._level, logging.INFO))
        root.addHandler(self._handler)
        logging.captureWarnings(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(self._handler)
        if self._stderr is not None:
            self._stderr.close(PATIENCE)
            if self._stderr.missing and self._file is not None:
                self._file.put(_lost(self._stderr.missing, "on stderr"))
        self._stack.close()

    def say(self, text: str) -> None:
        """Print a line for people on stderr."""
        if self._stderr is not None:
            self._stderr.put(text)

    def said(self, seconds: float) -> bool:
        """Wait until all was printed; False where that takes longer than `seconds`."""
        return self._stderr is None or self._stderr.flush(seconds)

    def _outlets(self, record: logging.LogRecord) -> list[LineWriter]:
        if record.name == ACCESS:
            outlets = [self._access, self._stderr if self._level <= logging.DEBUG else None]
        else:
            ours = record.name.partition(".")[0] in OURS
            shown = record.levelno >= (self._level if ours else self._libraries)
            outlets = [self._file, self._stderr if shown else None]
        return [outlet for outlet in outlets if outlet is not None]

    def _set_level(self, logger: logging.Logger, level: int) -> None:
        self._stack.callback(logger.setLevel, logger.level)
        logger.setLevel(level)

    def _open(self, path: Path | None) -> LineWriter | None:
        if path is None:
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(FileLock(path.with_name(f"{path.name}.lock"), timeout=0))
        except (OSError, Timeout):
            self.say(f"{path} can't be written, or another process writes it; the log is on stderr only.")
            return None
        file = RotatingFile(path, FILE_BYTES, FILES)
        writer = LineWriter(f"log {path.name}", file.write, lambda count: _lost(count, "here"), pause=FLUSH_AFTER)

        def close() -> None:
            if writer.close(PATIENCE):
                file.close()

        self._stack.callback(close)
        return writer


def _stderr_writer() -> LineWriter | None:
    """What writes to stderr; None where there is none, as in a Windows program without a console."""
    stream = sys.stderr
    if stream is None:
        return None
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)

    def write(text: str) -> None:
        if not isinstance(raw, RawIOBase):  # somebody has put something else in its place
            stream.write(text)
            stream.flush()
            return
        # Not through the stream: its lock would be waited for at the end, where nobody reads and this never returns.
        rest = memoryview(text.encode(stream.encoding, "backslashreplace"))
        while rest:
            rest = rest[raw.write(rest) or 0 :]

    return LineWriter("log stderr", write, lambda count: _lost(count, "here"))


def _lost(count: int, where: str) -> str:
    message = f"{count} lines could not be written {where}"
    return _FORMATTER.format(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None))
