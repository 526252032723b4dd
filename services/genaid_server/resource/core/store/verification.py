"""Whether the files of a model still have the content that they were installed with."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core.store.files import on_disk, pump
from genaid_server.resource.core.store.model import ModelFile

INTERVAL: Final = 0.25  # seconds between two looks at how far it is


class Verdict(StrEnum):
    """What verifying found; UNVERIFIABLE is what has no checksum to compare with."""

    VALID = "valid"
    INVALID = "invalid"
    UNVERIFIABLE = "unverifiable"


@dataclass(frozen=True, slots=True)
class FileVerification:
    """What was found of one file. `actual` is empty where it is missing, `expected` where it has no checksum."""

    name: str
    verdict: Verdict
    expected: str
    actual: str


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How far verifying is, in bytes; the verdict, of all files together, and the files are only in the last one."""

    bytes_done: int
    bytes_total: int
    verdict: Verdict | None = None
    files: tuple[FileVerification, ...] = ()


class _Meter:
    """Counts bytes in the hashing thread, to be read in others."""

    def __init__(self) -> None:
        self.bytes_done = 0

    def add(self, block: bytes) -> None:
        self.bytes_done += len(block)


async def verify_files(files: Sequence[ModelFile], stop: threading.Event) -> AsyncGenerator[VerifyProgress]:
    """Hash files and compare; yields how far it is a few times a second, and the result at the end.

    To leave it ends the work. Raises FileSystemError where a file can't be read, StoppedError when `stop` is set.
    """
    total = await asyncio.to_thread(_total, files)
    meter = _Meter()
    work = asyncio.ensure_future(asyncio.to_thread(_verify_all, files, meter, stop))
    try:
        yield VerifyProgress(0, total)
        while not (await asyncio.wait([work], timeout=INTERVAL))[0]:
            yield VerifyProgress(min(meter.bytes_done, total), total)
        found = work.result()
        yield VerifyProgress(total, total, overall([each.verdict for each in found]), found)
    finally:
        stop.set()
        # Also says that a failure was seen, of which whoever left can't be told.
        await to_the_end(asyncio.wait([work]))
        work.exception()


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of all files together: one bad file spoils a model, and one without a checksum leaves a doubt."""
    for verdict in (Verdict.INVALID, Verdict.UNVERIFIABLE):
        if verdict in verdicts:
            return verdict
    return Verdict.VALID


def _total(files: Sequence[ModelFile]) -> int:
    total = 0
    for file in files:
        with on_disk("read", file.name):
            try:
                total += file.path.stat().st_size
            except FileNotFoundError:
                continue  # and found missing later
    return total


def _verify_all(files: Sequence[ModelFile], meter: _Meter, stop: threading.Event) -> tuple[FileVerification, ...]:
    return tuple(_verify(file, meter, stop) for file in files)


def _verify(file: ModelFile, meter: _Meter, stop: threading.Event) -> FileVerification:
    actual = _checksum(file, meter, stop)
    if not actual or (file.checksum and actual != file.checksum):
        verdict = Verdict.INVALID
    else:
        verdict = Verdict.VALID if file.checksum else Verdict.UNVERIFIABLE
    return FileVerification(file.name, verdict, file.checksum, actual)


def _checksum(file: ModelFile, meter: _Meter, stop: threading.Event) -> str:
    """The checksum that the file has, empty where it is missing."""
    digest = hashlib.sha256()

    def take(block: bytes) -> None:
        digest.update(block)
        meter.add(block)

    with on_disk("read", file.name):
        try:
            pump(file.path, take, stop)
        except FileNotFoundError:
            return ""
    return f"sha256:{digest.hexdigest()}"
