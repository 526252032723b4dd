"""Notes about the engines that run, left below the data directory by the services that start them.

Services are processes of their own, and any of them may ask what all engines hold. A note is there while its engine's
block lasts; one that a killed service left behind is told by the start time of the process, and is not believed.
"""

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from genaid_server.kit.files import write_atomic

FOLDER: Final = "engines"


@dataclass(frozen=True, slots=True)
class EngineNote:
    """An engine's process. `kind` is `image` or `llm`; `started` identifies the process together with `pid`."""

    kind: str
    model_id: str
    pid: int
    started: float


@contextmanager
def noted(data_dir: Path | None, kind: str, model_id: str, pid: int) -> Iterator[None]:
    """Keep a note of an engine while the block runs; none without a directory, or where it has ended already."""
    if data_dir is None:
        yield
        return
    path = data_dir / FOLDER / f"{kind}-{pid}.json"
    with contextlib.suppress(psutil.Error):
        note = EngineNote(kind, model_id, pid, psutil.Process(pid).create_time())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(note)).encode(), durable=False)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running(data_dir: Path) -> list[EngineNote]:
    """The engines that run, ordered by kind and pid; notes of processes that are gone are removed."""
    notes = []
    for path in sorted((data_dir / FOLDER).glob("*.json")):
        try:
            note = EngineNote(**json.loads(path.read_bytes()))
            alive = _alive(note)
        except FileNotFoundError:  # its engine has ended just now
            continue
        except (OSError, ValueError, TypeError, RecursionError):  # no note of ours
            alive = False
        if alive:
            notes.append(note)
        else:
            with contextlib.suppress(OSError):  # a folder in its place, or a disk that refuses: it harms nobody
                path.unlink(missing_ok=True)
    return notes


def _alive(note: EngineNote) -> bool:
    try:
        # The clock may have been set since; the start of two processes with one id is further apart than that.
        return abs(psutil.Process(note.pid).create_time() - note.started) < 1
    except psutil.Error:
        return False
