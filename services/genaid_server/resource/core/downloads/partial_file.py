"""A file on its way: its bytes on the disk, and their checksum so far."""

import contextlib
import hashlib
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from genaid_server.resource.core.downloads.disk_space import require_space, writing
from genaid_server.resource.core.store.files import StoppedError

_BLOCK: Final = 2**20  # hashed at once, between two looks at whether to stop
_LOOK_AT_DISK: Final = 2**26  # bytes written between two looks at how much of the disk is free


class PartialFile:
    """Bytes that are appended and hashed as they come. One thread at a time uses it; each method may block.

    Usable as a context manager, which closes it.
    """

    def __init__(self, path: Path, name: str, reserve: int) -> None:
        """`name` is what errors call the file; it fails before less than `reserve` bytes of the disk are free."""
        self._path, self._name, self._reserve = path, name, reserve
        self._digest = hashlib.sha256()
        self._file: FileIO | None = None
        self._until_look = 0
        self.length = 0

    def load(self, stop: threading.Event) -> None:
        """Open the file and hash what is there, which is made where it doesn't exist.

        Raises FileSystemError, and StoppedError when `stop` is set.
        """
        with writing(self._path.parent, self._name, 0):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b", buffering=0)
            self._file.seek(0)
            while block := self._file.read(_BLOCK):
                self._digest.update(block)
                self.length += len(block)
                if stop.is_set():
                    raise StoppedError

    def append(self, pieces: Sequence[bytes], needed: int) -> None:
        """Write bytes to the end and hash them; `needed` is how many will be written from here to the file's end.

        Raises InsufficientResourcesError where the disk is full, FileSystemError; then none of them are there.
        """
        data = b"".join(pieces)
        with writing(self._path.parent, self._name, needed):
            self._look_at_disk(len(data), needed)
            self._write(data)
        self._digest.update(data)
        self.length += len(data)

    def restart(self) -> None:
        """Forget all bytes. Raises FileSystemError."""
        assert self._file is not None  # noqa: S101
        with writing(self._path.parent, self._name, 0):
            self._file.truncate(0)
        self._digest, self.length = hashlib.sha256(), 0

    @property
    def checksum(self) -> str:
        """Of the bytes so far: `sha256:` and hexadecimal digits."""
        return f"sha256:{self._digest.hexdigest()}"

    def close(self) -> None:
        """Close the file; the bytes stay."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _look_at_disk(self, count: int, needed: int) -> None:
        # Others write to the disk as well, and a source that doesn't tell its size could go on for ever.
        if self._until_look <= 0:
            require_space(self._path.parent, needed, self._reserve)
            self._until_look = _LOOK_AT_DISK
        self._until_look -= count

    def _write(self, data: bytes) -> None:
        assert self._file is not None  # noqa: S101
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):  # what is there then is hashed by whoever opens it next
                self._file.truncate(self.length)
            raise
