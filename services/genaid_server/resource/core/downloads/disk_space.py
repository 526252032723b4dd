"""Room on the disk: asked for before it is needed, and what is said where there is none."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import InsufficientResourcesError
from genaid_server.resource.core.store.files import on_disk

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def free_bytes(folder: Path) -> int:
    """What a program may still write to the disk of `folder`, in bytes. Raises OSError."""
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, reserve: int) -> None:
    """Check that `needed` bytes fit onto the disk of `folder` and `reserve` bytes stay free.

    Raises InsufficientResourcesError, and OSError where the disk doesn't tell.
    """
    available = free_bytes(folder)
    if needed + reserve > available:
        raise _too_little(needed + reserve, available, f"{_readable(reserve)} of it to be left free")


@contextmanager
def writing(folder: Path, name: str, needed: int) -> Iterator[None]:
    """Turn the refusals of the disk of `folder` into errors that say what to do, without where on the disk.

    `needed` is what is still to be written to `name`, in bytes. Raises InsufficientResourcesError where the disk is
    full, FileSystemError for all else.
    """
    with on_disk("write", name):
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _too_little(needed, free_bytes(folder), "the disk or its quota is full") from error


def _too_little(required: int, available: int, why: str) -> InsufficientResourcesError:
    suggestion = "Free some space, or choose a smaller quantization, then start the download again."
    return InsufficientResourcesError(
        f"The download needs {_readable(required)} of the disk ({why}), and {_readable(available)} are free. "
        f"{suggestion}",
        required=str(required),
        available=str(available),
        suggestion=suggestion,
    )


def _readable(size: int) -> str:
    if size < 2**30:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**30:.1f} GiB"
