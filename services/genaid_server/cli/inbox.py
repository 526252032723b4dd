"""Putting a file into the store's inbox: by a hard link where the file system can, else by a copy."""

import contextlib
import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

INBOX: Final = "inbox"
BLOCK: Final = 4 * 1024 * 1024  # bytes copied between two reports

type Advance = Callable[[int], None]
type CopyProgress = Callable[[str, int], contextlib.AbstractContextManager[Advance]]


@contextmanager
def placed(file: Path, data_dir: Path, copy_progress: CopyProgress) -> Iterator[str]:
    """Keep `file` in the inbox of `data_dir` while the block runs; yields its bare name there.

    The name is that of the file, with a suffix before its extension where that is taken. What is left of it
    afterwards is removed. Raises OSError where the file can't be read or the disk refuses.
    """
    source = file.resolve(strict=True)  # of a symbolic link, the weights are wanted, not the link
    inbox = data_dir / INBOX
    inbox.mkdir(parents=True, exist_ok=True)
    target = _link(source, file.name, inbox) or _copy(source, file.name, inbox, copy_progress)
    try:
        yield target.name
    finally:
        target.unlink(missing_ok=True)


def _candidates(name: str, inbox: Path) -> Iterator[Path]:
    yield inbox / name
    for _ in itertools.count():
        yield inbox / f"{Path(name).stem}-{uuid.uuid4().hex[:8]}{Path(name).suffix}"


def _link(source: Path, name: str, inbox: Path) -> Path | None:
    """Return the new link; None where the file system has none to give."""
    for target in _candidates(name, inbox):
        try:
            target.hardlink_to(source)
        except FileExistsError:
            continue
        except (OSError, NotImplementedError):
            return None
        return target
    return None


def _copy(source: Path, name: str, inbox: Path, copy_progress: CopyProgress) -> Path:
    target = _reserve(name, inbox)
    part = target.with_name(f".{target.name}.part")
    try:
        with (
            source.open("rb") as reader,
            part.open("xb") as writer,
            copy_progress(name, source.stat().st_size) as advance,
        ):
            while block := reader.read(BLOCK):
                writer.write(block)
                advance(len(block))
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
        raise
    return target


def _reserve(name: str, inbox: Path) -> Path:
    """Take a name by an empty file, so that two imports at the same time never share one."""
    for target in _candidates(name, inbox):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            return target
    raise AssertionError  # the candidates never end
