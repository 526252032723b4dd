"""The lock by which an engine keeps the model that it has loaded from being deleted.

It is the operating system's, so that it holds between processes and ends with the one that took it, however that
died.
"""

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from genaid_server.kit.errors import ServerBusyError


def lock_of(primary: Path, model_id: str) -> Path:
    """Where the lock of a model lies, whose engine opens the file `primary`."""
    return primary.with_name(f".{model_id}.lock")


@asynccontextmanager
async def held(lock: Path) -> AsyncIterator[None]:
    """Hold the lock for the length of the block, without ever waiting for it.

    The file of the lock stays behind. Raises ServerBusyError where somebody else holds it, OSError where the file
    can't be made, as when the folder is gone with the model.
    """
    with taken(lock):
        yield


@contextmanager
def taken(lock: Path) -> Iterator[None]:
    """The same for a block that awaits nothing."""
    if not lock.parent.is_dir():  # which the lock would make anew
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(lock.parent))
    # Whichever thread ends the block, it is the same hold.
    file_lock = FileLock(lock, blocking=False, thread_local=False)
    try:
        file_lock.acquire()
    except Timeout as error:
        raise ServerBusyError("The model is loaded by an engine, or is just being deleted.") from error
    try:
        yield
    finally:
        file_lock.release()
