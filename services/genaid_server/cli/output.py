"""What people and programs see: results on stdout, everything else on stderr, and failures as one line."""

import contextlib
import io
import json
import os
import sys
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Final

import typer

INTERRUPTED: Final = 130  # the exit status that shells give to Ctrl-C


def printable(text: str) -> str:
    """Escape what would move the cursor or colour the terminal: names and headers come from strangers."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def fail(code: str, message: str, *, as_json: bool) -> typer.Exit:
    """Print a failure on stderr and return what to raise."""
    say(
        json.dumps({"error": {"code": code, "message": message}})
        if as_json
        else f"Error: {printable(message)} [{code}]"
    )
    return typer.Exit(1)


def say(text: str) -> None:
    """Print a line for people on stderr. Nobody listening is no error."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Print a result on stdout; dataclasses become objects, times ISO 8601."""
    print(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """Print one of a stream of results on stdout, a line each."""
    print(json.dumps(value, default=_plain, ensure_ascii=False), flush=True)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def prepare_streams() -> None:
    """Let text through that the terminal's encoding can't show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def flush_stdout() -> None:
    """Hand out what is buffered, so that a reader who left is not complained about while Python exits."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
