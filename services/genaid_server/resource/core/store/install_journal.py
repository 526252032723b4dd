"""Moving files into the store so that a crash at any moment can be undone.

Before the first file moves, a journal says which ones will, from where to where; it goes when the model's record is
there. A journal without a record therefore tells, whatever happened, which files to move back: to an inbox or a
download, for which nothing is lost. What no journal names is never touched.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from genaid_server.kit.files import write_atomic
from genaid_server.resource.core.store.files import flush_folder, move, share

log = logging.getLogger(__name__)

SUFFIX: Final = ".placing"
"""What the name of a journal ends in; it stays as it is, as data directories may hold some."""
_MAX_JOURNAL_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class FileMove:
    """A file on its way to a name that is free; with `shared` it stays where it is as well."""

    source: Path
    target: Path
    size_bytes: int
    shared: bool = False


def journal_of(folder: Path, model_id: str) -> Path:
    """Where the journal of a model lies, while it is being installed into the folder."""
    return folder / f".{model_id}{SUFFIX}"


def install_files(
    root: Path, journal: Path, moves: Sequence[FileMove], commit: Callable[[], None], stop: threading.Event
) -> None:
    """Move all files, then call `commit`, which makes them a model; whatever fails, all are back where they were.

    All places are below `root`. Raises what the disk or `commit` raise, and StoppedError when `stop` is set.
    """
    write_atomic(journal, _written(root, moves))
    flush_folder(journal.parent)
    try:
        for each in moves:
            _move_in(each, stop)
        for folder in {each.target.parent for each in moves}:
            flush_folder(folder)
        commit()
    except BaseException:
        if undo(moves, journal.parent):
            journal.unlink(missing_ok=True)
        raise
    flush_folder(journal.parent)
    with contextlib.suppress(OSError):  # it is of no effect beside a record
        journal.unlink()


def recover(root: Path, journal: Path, owned: Collection[Path]) -> None:
    """Undo what an interrupted `install_files` did, but for files that are a model's after all. Raises OSError."""
    try:
        moves = _read(root, journal)
    except ValueError as error:
        log.warning("Passing over %s: %s.", journal.name, error)
        return
    if undo([each for each in moves if each.target not in owned], journal.parent):
        log.info("Undid the installation that was interrupted in %s.", journal.name)
        journal.unlink()


def undo(moves: Sequence[FileMove], folder: Path) -> bool:
    """Put files back to where they were, and tell whether that worked for all; `folder` is the one of all models."""
    done = True
    for each in reversed(moves):
        try:
            _move_back(each)
        except OSError as error:
            log.warning("Can't put %s back: %s.", each.target.name, error.strerror or type(error).__name__)
            done = False
    for own in {each.target.parent for each in moves} - {folder}:
        remove_if_empty(own)
    return done


def _move_in(one: FileMove, stop: threading.Event) -> None:
    one.target.parent.mkdir(exist_ok=True)
    if one.shared:
        share(one.source, one.target, stop)
    else:
        move(one.source, one.target, stop)


def _move_back(one: FileMove) -> None:
    source, target = one.source, one.target
    # Another size is another file: the move never happened, and somebody else has used the name since.
    if target.is_file() and target.stat().st_size == one.size_bytes:
        if one.shared or os.path.lexists(source):
            target.unlink()
        else:
            source.parent.mkdir(parents=True, exist_ok=True)
            move(target, source, threading.Event())  # to undo is not to be stopped


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that is one model's, if nothing is in it any more."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _written(root: Path, moves: Sequence[FileMove]) -> bytes:
    entries = [
        {
            "from": each.source.relative_to(root).as_posix(),
            "to": each.target.relative_to(root).as_posix(),
            "size_bytes": each.size_bytes,
            "shared": each.shared,
        }
        for each in moves
    ]
    return json.dumps({"files": entries}, indent=1).encode() + b"\n"


def _read(root: Path, journal: Path) -> list[FileMove]:
    """Raises ValueError where the journal is damaged."""
    if journal.stat().st_size > _MAX_JOURNAL_BYTES:
        raise ValueError("it is too long")
    try:
        entries = json.loads(journal.read_bytes())["files"]
        return [
            FileMove(
                _below(root, entry["from"]), _below(root, entry["to"]), int(entry["size_bytes"]), bool(entry["shared"])
            )
            for entry in entries
        ]
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError("it is damaged") from error


def _below(root: Path, text: str) -> Path:
    path = PurePosixPath(text)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in text or ":" in text:
        raise ValueError("it names a place outside of the store")
    return root / path
