"""What is written down of a download, so that it survives the service: one small JSON file each.

It is written when something that matters changes, and not while bytes arrive: how many there are, the partial file
itself tells. It holds no credentials.
"""

import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from genaid_server.kit.files import write_atomic
from genaid_server.kit.shapes import Shape
from genaid_server.resource.core.downloads.download import DownloadFailure, DownloadPhase, DownloadSpec
from genaid_server.resource.core.downloads.remote import Item, Resolved
from genaid_server.resource.core.downloads.transfer import Version
from genaid_server.resource.core.formats.kinds import ModelType

log = logging.getLogger(__name__)

KEEP_SECONDS: Final = 7 * 24 * 3600.0
"""How long a download that ended is remembered."""
KEEP_ENDED: Final = 200
"""How many of them are."""
MAX_JOURNAL_BYTES: Final = 4 * 2**20
"""The longest journal that is read; one of a thousand shards has a quarter of that."""

_ID: Final = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a download.

    `resolved` is None before its source was asked; `version` is the one that the partial file is from; `checksum` is
    that of the whole file, once it is there; `best` is the most bytes that were ever there.
    """

    item: Item
    shard: int = 0
    resolved: Resolved | None = None
    version: Version = Version()  # noqa: RUF009 (it is frozen)
    checksum: str = ""
    best: int = 0

    @property
    def known(self) -> Resolved:
        """What its source has said, which must have been asked."""
        assert self.resolved is not None  # noqa: S101
        return self.resolved

    def with_best(self, best: int) -> "FileRecord":
        """The same file with so many bytes that were ever there."""
        return replace(self, best=best)


@dataclass(frozen=True, slots=True)
class Record:
    """One download, as it is written down; see Download for the fields that have the same names there.

    `spec` is what was asked for; `checked` tells that the sources were asked, and `model_type` what the header says
    that the model is for.
    """

    id: str
    spec: DownloadSpec
    files: tuple[FileRecord, ...]
    phase: DownloadPhase
    created_at: float
    updated_at: float
    checked: bool = False
    request_ids: tuple[str, ...] = ()
    model_type: ModelType | None = None
    failure: DownloadFailure | None = None
    model_id: str = ""
    retries: int = 0


_SHAPE: Final = Shape(Record)


class Journal:
    """The journals and partial files below one folder. Its methods block; one thread at a time uses a download's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # What is being removed must not become another download's in the middle.
        self._removing = threading.Lock()

    def partial(self, download_id: str, index: int) -> Path:
        """Where the bytes of a download's file number `index` go."""
        return self._folder / download_id / f"{index}.partial"

    def length(self, download_id: str, index: int) -> int:
        """How many bytes of that file are there."""
        try:
            return self.partial(download_id, index).stat().st_size
        except OSError:
            return 0

    def write(self, record: Record) -> None:
        """Write a download down. Raises OSError; what was written before then stays."""
        write_atomic(self._path(record.id), _SHAPE.write(record, indent=2) + b"\n")

    def discard_bytes(self, download_id: str) -> None:
        """Remove what a download has fetched. Raises OSError."""
        with self._removing, suppress(FileNotFoundError):
            shutil.rmtree(self._folder / download_id)

    def take_over(self, old_id: str, new_id: str) -> None:
        """Make what one download has fetched another one's. Raises OSError."""
        with self._removing:
            (self._folder / old_id).rename(self._folder / new_id)

    def forget(self, download_id: str) -> None:
        """Remove all of a download. Raises OSError; bytes that stay then are nobody's, which `load` removes."""
        self._path(download_id).unlink(missing_ok=True)
        self.discard_bytes(download_id)

    def load(self) -> tuple[Record, ...]:
        """All downloads, the oldest first, without those that ended too long ago, which are forgotten.

        What can't be read is left alone, logged and passed over. Bytes that are nobody's, or of a download that
        needs them no more, are removed; those that can't be are logged, and removed another time. Raises OSError
        where the folder can't be made or read.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        records = sorted(self._readable(), key=lambda record: (record.created_at, record.id))
        ended = [record for record in reversed(records) if record.phase.terminal]
        oldest = time.time() - KEEP_SECONDS
        expired = {record.id for place, record in enumerate(ended) if place >= KEEP_ENDED or record.updated_at < oldest}
        for download_id in expired:
            with _logged(f"the download {download_id}"):
                self.forget(download_id)
        kept = tuple(record for record in records if record.id not in expired)
        for record in kept:
            if record.phase in (
                DownloadPhase.INSTALLED,
                DownloadPhase.CANCELLED,
            ):  # and was killed before it had tidied up
                with _logged(f"what {record.id} has fetched"):
                    self.discard_bytes(record.id)
        return kept

    def _path(self, download_id: str) -> Path:
        return self._folder / f"{download_id}.json"

    def _remove_leftovers(self) -> None:
        """Remove what an interrupted write or removal left behind."""
        for path in self._folder.iterdir():
            with _logged(path.name):
                if path.suffix == ".tmp" and path.name.startswith("."):
                    path.unlink()
                elif _ID.fullmatch(path.name) and path.is_dir() and not self._path(path.name).exists():
                    log.info("Removing the partial files of %s, which has no journal.", path.name)
                    self.discard_bytes(path.name)

    def _readable(self) -> Iterator[Record]:
        for path in self._folder.glob("*.json"):
            try:
                yield _read(path)
            except (OSError, ValueError) as error:
                log.warning("Passing over the download's journal %s: %s.", path.name, error)


@contextmanager
def _logged(name: str) -> Iterator[None]:
    """Go on where the disk refuses to remove something that nobody needs."""
    try:
        yield
    except OSError as error:
        log.warning("Can't remove %s yet: %s.", name, error.strerror or error)


def _read(path: Path) -> Record:
    if path.stat().st_size > MAX_JOURNAL_BYTES:
        raise ValueError("it is too long")
    record = _SHAPE.read(path.read_bytes())
    if record.id != path.stem or not _ID.fullmatch(record.id) or not record.files:
        raise ValueError("it is another one's")
    return record
