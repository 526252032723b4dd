"""Where a header is read from: a file here, or ranges of a file elsewhere."""

import os
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self


class Source(Protocol):
    """A file that can be read in pieces, wherever it lies."""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer only where the file ends before that."""
        ...


class FileSource:
    """A file on the disk. Raises OSError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size

    @property
    def size(self) -> int:
        """Its length in bytes, when it was opened."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer only where the file ends before that."""
        self._file.seek(offset)
        pieces = []
        while length > 0 and (piece := self._file.read(length)):
            pieces.append(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
