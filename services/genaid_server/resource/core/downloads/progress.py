"""How far a download is: the bytes of its files, their totals, and the speed at which they come."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from genaid_server.resource.core.downloads.download import Download, DownloadPhase, FileProgress
from genaid_server.resource.core.downloads.journal import FileRecord, Journal, Record
from genaid_server.resource.core.downloads.spec import source_name
from genaid_server.resource.core.downloads.speed import Speedometer


@dataclass(slots=True)
class ByteCount:
    """How much of one file is there: now, and at most so far; in bytes."""

    length: int = 0
    best: int = 0

    def set(self, length: int) -> None:
        """So many bytes are there now."""
        self.length, self.best = length, max(self.best, length)


class DownloadProgress:
    """The bytes of one download's files; `counts` are in the order of its record's files."""

    def __init__(self, files: Sequence[FileRecord]) -> None:
        self.counts = [ByteCount(best=file.best) for file in files]
        self._speed = Speedometer(time.monotonic())

    def recount(self, journal: Journal, download_id: str) -> None:
        """Look at the disk for what is there."""
        for index, count in enumerate(self.counts):
            count.set(journal.length(download_id, index))

    def arrived(self, index: int, count: int, length: int) -> None:
        """`count` more bytes of a file have arrived, and `length` are there now."""
        self.counts[index].set(length)
        self._speed.add(count)

    def missing(self, file: FileRecord, index: int) -> int:
        """How many bytes of a file are still to come, as far as is known."""
        total = self._total(file, index)
        return 0 if total is None else total - self.counts[index].length

    def with_best(self, files: Sequence[FileRecord]) -> tuple[FileRecord, ...]:
        """The files with the most bytes that were ever there of each."""
        return tuple(file.with_best(count.best) for file, count in zip(files, self.counts, strict=True))

    def snapshot(self, record: Record, problem: str) -> Download:
        """The download as others see it now."""
        totals = [self._total(file, index) for index, file in enumerate(record.files)]
        total = sum(each for each in totals if each is not None) if None not in totals else None
        speed = self._speed.measure(time.monotonic()) if record.phase is DownloadPhase.DOWNLOADING else 0.0
        missing = sum(self.missing(file, index) for index, file in enumerate(record.files))
        return Download(
            id=record.id,
            spec=record.spec,
            phase=record.phase,
            created_at=record.created_at,
            updated_at=record.updated_at,
            bytes_done=sum(count.best for count in self.counts),
            bytes_total=total,
            bytes_per_second=speed,
            remaining=missing / speed if speed and total is not None else None,
            files=tuple(
                FileProgress(
                    name=file.resolved.name if file.resolved else source_name(file.item),
                    component=file.item.component,
                    bytes_done=count.best,
                    bytes_total=size,
                )
                for file, count, size in zip(record.files, self.counts, totals, strict=True)
            ),
            failure=record.failure,
            model_id=record.model_id,
            retries=record.retries,
            problem=problem,
        )

    def _total(self, file: FileRecord, index: int) -> int | None:
        size = file.version.size
        if size is None and file.resolved:
            size = file.resolved.size
        # A file may be a shorter one after it was started over; what was shown of it before is not taken back.
        return None if size is None else max(size, self.counts[index].best)
