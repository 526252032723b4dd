"""Files of weights on the disk: their checksums, and moving them so that nothing is ever half there."""

import contextlib
import errno
import hashlib
import itertools
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import (
    FileSystemError,
    InvalidRequestError,
)
from genaid_server.resource.core.store.names import variants

_BLOCK: Final = 2**20  # bytes hashed or copied at once, between two looks at whether to stop


@contextmanager
def on_disk(operation: str, name: str) -> Iterator[None]:
    """Turn the disk's refusals into FileSystemErrors that say what was tried, without where on the disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileSystemError(f"Can't {operation} {name}: {reason}.", operation=operation, file=name) from error


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    changed: int


class SharedFileGoneError(FileSystemError):
    """A file that was to be shared with a model was deleted with it meanwhile."""


class StoppedError(Exception):
    """The store is being closed."""


def shared_file_gone(name: str) -> SharedFileGoneError:
    """The error for a file that was to be shared."""
    return SharedFileGoneError(
        f"{name} was to be shared with a model that has been deleted meanwhile. Try again.",
        operation="install",
        file=name,
    )


def missing(file_name: str) -> InvalidRequestError:
    """The error for a file that is not in the inbox."""
    return InvalidRequestError(
        f"{file_name} is not in the inbox. Put the file there, then import it by its name.", field="file_name"
    )


def read_stamp(path: Path) -> Stamp:
    """Look at a file of the inbox. Raises InvalidRequestError where it is missing or no plain file."""
    try:
        found = path.lstat()
        inside = path.resolve().parent == path.parent.resolve()
    except FileNotFoundError as error:
        raise missing(path.name) from error
    if not stat.S_ISREG(found.st_mode) or not inside:
        raise InvalidRequestError(f"{path.name} is a link, a folder or a device, and no plain file", field="file_name")
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def check_stamp(path: Path, stamp: Stamp) -> None:
    """Raises InvalidRequestError where the file changed since the stamp was taken."""
    if read_stamp(path) != stamp:
        raise InvalidRequestError(
            f"{path.name} was changed while it was being imported. Import it again when it is complete.",
            field="file_name",
        )


def pump(path: Path, sink: Callable[[bytes], object], stop: threading.Event) -> None:
    """Pass the content of a file to `sink`, block by block, until its end or until told to stop."""
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            sink(block)
            if stop.is_set():
                raise StoppedError


def checksum_of(path: Path, stop: threading.Event) -> str:
    """The SHA-256 of a file, as `sha256:` and hexadecimal digits. Raises StoppedError when `stop` is set."""
    digest = hashlib.sha256()
    pump(path, digest.update, stop)
    return f"sha256:{digest.hexdigest()}"


def flush(path: Path) -> None:
    """Have a file's content on the disk, and not only on its way there."""
    if os.name == "nt":
        # Windows flushes only what it may write to, and an imported file may be read-only: that one lay there
        # before, and only a loss of power could still harm it.
        with contextlib.suppress(PermissionError), path.open("r+b") as writable:
            os.fsync(writable.fileno())
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Have the names in a folder on the disk, where the system can tell that apart from the files."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # not every file system knows this
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def move(source: Path, target: Path, stop: threading.Event) -> None:
    """Move a file to a name that is free. Between file systems this takes a copy, which appears when it is whole."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_between_disks(source, target, stop)


def share(source: Path, target: Path, stop: threading.Event) -> None:
    """Have a file under another name as well, which is free: without a second copy where the file system can."""
    try:
        target.hardlink_to(source)
    except OSError:
        _copy(source, target, stop)


def _move_between_disks(source: Path, target: Path, stop: threading.Event) -> None:
    _copy(source, target, stop)
    source.unlink()


def _copy(source: Path, target: Path, stop: threading.Event) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:50]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            pump(source, file.write, stop)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def free_path(folder: Path, name: str, model_id: str) -> Path:
    """Where weights can go without overwriting any: under their own name, else under one made of the id."""
    suffix = Path(name).suffix.lower()
    names = itertools.chain([name], (f"{variant}{suffix}" for variant in variants(model_id)))
    return next(path for each in names if not os.path.lexists(path := folder / each))


def free_folder(folder: Path, model_id: str) -> Path:
    """A folder that doesn't exist, for the files of a model that has several."""
    return next(path for each in variants(model_id) if not os.path.lexists(path := folder / each))
