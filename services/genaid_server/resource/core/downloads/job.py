"""One download, from its acceptance to its end."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from genaid_server.kit.errors import ChecksumError, DomainError
from genaid_server.kit.tasks import to_the_end
from genaid_server.kit.watchable import Watchable
from genaid_server.resource.core.downloads.disk_space import require_space, writing
from genaid_server.resource.core.downloads.download import Download, DownloadLimits, Failure, FileProgress, Phase
from genaid_server.resource.core.downloads.installed import expected_checksum, find_installed
from genaid_server.resource.core.downloads.journal import FileRecord, Journal, Record
from genaid_server.resource.core.downloads.remote import Item, Remote, Resolved
from genaid_server.resource.core.downloads.remote_header import Header, read_remote_header, tell_type
from genaid_server.resource.core.downloads.retry import Pauses, Tries, answer_within
from genaid_server.resource.core.downloads.spec import normal_checksum, source_name
from genaid_server.resource.core.downloads.speed import Speedometer
from genaid_server.resource.core.downloads.transfer import Transfer, Version
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.store.model import Component, Model, ModelFile, StagedFile
from genaid_server.resource.core.store.names import check_file_name
from genaid_server.resource.core.store.store import ModelStore

log = logging.getLogger(__name__)

TICK: Final = 0.2
"""Seconds between two looks at how far a download is."""

# What can be put right, so that the next try goes on from what was fetched.
_CURABLE: Final = frozenset({"DOWNLOAD_FAILED", "INSUFFICIENT_RESOURCES", "FILE_SYSTEM_ERROR", "CHECKSUM_ERROR"})
_CURABLE_FIELDS: Final = frozenset({"model_id", "name", "type"})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all downloads work with. `promised` is how many bytes the others are still going to write."""

    journal: Journal
    store: ModelStore
    remote: Remote
    limits: DownloadLimits
    pauses: Pauses
    folder: Path
    promised: Callable[["Job"], int]


@dataclass(slots=True)
class _Count:
    """How much of one file is there: now, and at most so far; in bytes."""

    length: int = 0
    best: int = 0

    def set(self, length: int) -> None:
        self.length, self.best = length, max(self.best, length)


class Job:
    """A download and whoever works on it. One task runs it; all others read `snapshot`."""

    def __init__(self, record: Record, around: Surroundings) -> None:
        self._record, self._around = record, around
        self._counts = [_Count(best=file.best) for file in record.files]
        self._problem, self._speed = "", Speedometer(time.monotonic())
        self._saving = asyncio.Lock()
        self.cancel_wanted = False
        """Somebody wants it to end and its bytes removed."""
        self.installing = False
        """It can't be stopped any more: the store is taking its files."""
        self.started = self.stopping = False
        """Whether its task runs, and whether that was told to stop."""
        self.accepted = asyncio.Event()
        """It is written down, or `refusal` says why not."""
        self.refusal: DomainError | None = None
        if record.phase.terminal:
            self.accepted.set()
        else:
            self._recount()
        self.snapshot: Watchable[Download] = Watchable(self._look())

    @property
    def record(self) -> Record:
        """What is written down of it."""
        return self._record

    @property
    def missing_bytes(self) -> int:
        """What it is still going to write, as far as is known; 0 before it has begun."""
        if self._record.phase is not Phase.DOWNLOADING:
            return 0
        return sum(self._missing(index) for index in range(len(self._counts)))

    async def save(self) -> None:
        """Write it down. Raises FileSystemError, InsufficientResourcesError."""
        async with self._saving:
            await to_the_end(asyncio.to_thread(self._write))

    async def add_request_id(self, request_id: str) -> None:
        """Remember that this request is about it as well. Raises as `save`."""
        self._set(request_ids=(*self._record.request_ids, request_id))
        await self.save()

    async def take_over(self, earlier_id: str) -> None:
        """Go on from what an earlier download of the same files has fetched, if that is still there."""
        with suppress(OSError):
            await to_the_end(asyncio.to_thread(self._around.journal.take_over, earlier_id, self._record.id))
        self._recount()
        self._publish()

    async def run(self) -> None:
        """Do all of it. Raises DomainErrors; what was fetched stays."""
        async with _every(TICK, self._publish):
            await self._enter(Phase.CHECKING)
            model = self._installed() or await self._check()
            if model is None:
                await self._enter(Phase.DOWNLOADING)
                await self._fetch_all()
                await self._enter(Phase.VERIFYING)
                model = await self._install()
        await self.end_installed(model.id)

    # --- ends

    async def end_installed(self, model_id: str) -> None:
        """Its model is there, whoever installed it."""
        models = [model for model in self._around.store.list() if model.id == model_id]
        sizes = {(file.component, file.shard): file.size_bytes for model in models for file in model.files}
        for count, file in zip(self._counts, self._record.files, strict=True):
            count.set(sizes.get((file.item.component, file.shard), count.best))
        await self._end(Phase.INSTALLED, model_id=model_id)

    async def end_cancelled(self) -> None:
        """Nobody wants it any more."""
        await self._end(Phase.CANCELLED)

    async def end_failed(self, error: DomainError) -> None:
        """It can't be done. What another try can use stays."""
        failure = Failure(error.reason, error.message, dict(error.facts))
        curable = error.reason in _CURABLE or error.facts.get("field") in _CURABLE_FIELDS
        await self._end(Phase.FAILED, failure=failure, keep_bytes=curable)

    async def _end(
        self, phase: Phase, *, failure: Failure | None = None, model_id: str = "", keep_bytes: bool = False
    ) -> None:
        self._problem = ""
        best = tuple(
            replace(file, best=count.best) for file, count in zip(self._record.files, self._counts, strict=True)
        )
        self._set(phase=phase, failure=failure, model_id=model_id, files=best)
        # First: a service that dies in between finds out from it that the bytes are to go.
        try:
            await self.save()
        except DomainError as error:
            log.warning("Can't write down that %s is %s: %s", self._record.id, phase, error.message)
        if not keep_bytes:
            await to_the_end(asyncio.to_thread(self._discard))
        self._publish()

    def _discard(self) -> None:
        try:
            self._around.journal.discard_bytes(self._record.id)
        except OSError as error:
            log.warning("Can't remove what %s has fetched: %s.", self._record.id, error.strerror or error)

    # --- checking

    def _installed(self) -> Model | None:
        return find_installed(self._around.store.list(), self._record.files, self._record.spec.model_id)

    async def _check(self) -> Model | None:
        """Ask the sources, once in a download's life; returns the model where it turns out to be installed."""
        if not self._record.checked:
            for index, file in enumerate(self._record.files):
                await self._set_resolved(index, await self._tries().until_done(partial(self._resolve, file.item)))
            if model := self._installed():
                return model
            model_type = await self._check_header()
            self._set(checked=True, model_type=model_type)
            await self.save()
        needed = sum(self._missing(index) for index, file in enumerate(self._record.files) if not self._shareable(file))
        with writing(self._around.folder, "the download", needed):
            promised = self._around.promised(self)
            await asyncio.to_thread(
                require_space, self._around.folder, needed + promised, self._around.limits.reserve_bytes
            )
        return None

    async def _resolve(self, item: Item) -> Resolved:
        async with answer_within(self._around.limits.stall_seconds):
            return await self._around.remote.resolve(item)

    async def _set_resolved(self, index: int, resolved: Resolved) -> None:
        file = self._record.files[index]
        check_file_name(resolved.name, f"items[{index}].source")
        resolved = replace(resolved, checksum=normal_checksum(resolved.checksum, "items"))
        if file.item.checksum and resolved.checksum and file.item.checksum != resolved.checksum:
            raise _wrong_checksum(resolved.name, file.item.checksum, resolved.checksum, "its source says that it has")
        if file.resolved is not None and _version(file.resolved) != _version(resolved):
            await self._drop(index)  # what an earlier try has fetched is another file by now
        self._set_file(index, resolved=resolved)
        self._problem = ""

    async def _drop(self, index: int) -> None:
        """Remove a file's bytes."""
        path = self._around.journal.partial(self._record.id, index)
        with writing(path.parent, path.name, 0):
            await to_the_end(asyncio.to_thread(path.unlink, missing_ok=True))
        self._counts[index].set(0)
        self._set_file(index, version=Version(), checksum="")

    async def _check_header(self) -> ModelType | None:
        """Look at the primary file's header and tell what the model is for. Raises InvalidRequestError."""
        first, *others = self._record.files
        header = await self._read_header(first)
        if first.item.component is not Component.MODEL:
            return ModelType.DIFFUSION
        if header is None:
            return self._record.spec.model_type
        if not first.shard:
            return tell_type([header], self._record.spec.model_type)
        # The first shard may hold no tensors at all; then the second one tells.
        second = await self._read_header(others[0])
        return tell_type([header, second] if second else [header], self._record.spec.model_type)

    async def _read_header(self, file: FileRecord) -> Header | None:
        resolved = _resolved(file)
        form, stall = check_file_name(resolved.name, "items"), self._around.limits.stall_seconds
        header = await self._tries().until_done(partial(read_remote_header, self._around.remote, resolved, form, stall))
        self._problem = ""
        return header

    # --- fetching

    async def _fetch_all(self) -> None:
        """Have all files here, or in the store."""
        # Again, because what the store has can be deleted while another file arrives.
        while not all(self._is_there(index) for index in range(len(self._counts))):
            for index in range(len(self._counts)):
                if not self._is_there(index):
                    await self._fetch(index)

    def _is_there(self, index: int) -> bool:
        file = self._record.files[index]
        if owned := self._shareable(file):
            self._counts[index].set(owned.size_bytes)
            return True
        self._counts[index].set(self._around.journal.length(self._record.id, index))
        return bool(file.checksum) and self._counts[index].length == file.version.size

    def _shareable(self, file: FileRecord) -> ModelFile | None:
        """The store's own file with the content of a component; whole models are not shared."""
        checksum = expected_checksum(file)
        if file.item.component is Component.MODEL or not checksum:
            return None
        return self._around.store.file_with(checksum)

    async def _fetch(self, index: int) -> None:
        file = self._record.files[index]
        resolved, expected = _resolved(file), expected_checksum(file)
        transfer = Transfer(
            self._around.remote,
            replace(resolved, checksum=expected),
            self._around.journal.partial(self._record.id, index),
            file.version,
            _FileListener(self, index),
            self._around.limits,
            self._around.pauses,
        )
        checksum = await transfer.run()
        if len(self._record.files) == 1:
            await self._enter(Phase.VERIFYING)
        if expected and checksum != expected:
            await self._drop(index)
            raise _wrong_checksum(resolved.name, expected, checksum, "it has")
        self._set_file(index, checksum=checksum)
        await self.save()

    async def _install(self) -> Model:
        staged = tuple(self._stage(index, file) for index, file in enumerate(self._record.files))
        spec, model_type = self._record.spec, self._record.model_type
        self.installing = True  # what the store has begun it ends, and to stop then would be to lie about it
        try:
            return await self._around.store.install(
                staged, name=spec.name, model_type=model_type, model_id=spec.model_id
            )
        except BaseException:
            self.installing = False
            raise

    def _stage(self, index: int, file: FileRecord) -> StagedFile:
        resolved, owned = _resolved(file), self._shareable(file)
        return StagedFile(
            path=owned.path if owned else self._around.journal.partial(self._record.id, index),
            name=resolved.name,
            checksum=owned.checksum if owned else file.checksum,
            source=resolved.source,
            component=file.item.component,
            shard=file.shard,
        )

    # --- how far it is

    def count(self, index: int, count: int, length: int) -> None:
        """So many bytes of a file have arrived, and so many are there now."""
        self._counts[index].set(length)
        self._speed.add(count)
        if count:
            self._problem = ""

    def retry(self, problem: str) -> None:
        """Something will be tried again."""
        self._problem = problem
        self._set(retries=self._record.retries + 1)

    async def remember_version(self, index: int, version: Version) -> None:
        """From now on a file's bytes are those of this version."""
        self._set_file(index, version=version, best=self._counts[index].best)
        await self.save()

    def _recount(self) -> None:
        for index, count in enumerate(self._counts):
            count.set(self._around.journal.length(self._record.id, index))

    def _tries(self) -> Tries:
        return Tries(self._around.limits, self._around.pauses, self.retry)

    def _total(self, index: int) -> int | None:
        file = self._record.files[index]
        size = file.version.size
        if size is None and file.resolved:
            size = file.resolved.size
        # A file may be a shorter one after it was started over; what was shown of it before is not taken back.
        return None if size is None else max(size, self._counts[index].best)

    def _missing(self, index: int) -> int:
        total = self._total(index)
        return 0 if total is None else total - self._counts[index].length

    def _look(self) -> Download:
        record, totals = self._record, [self._total(index) for index in range(len(self._counts))]
        total = sum(each for each in totals if each is not None) if None not in totals else None
        speed = self._speed.measure(time.monotonic()) if record.phase is Phase.DOWNLOADING else 0.0
        missing = sum(self._missing(index) for index in range(len(self._counts)))
        return Download(
            id=record.id,
            spec=record.spec,
            phase=record.phase,
            created_at=record.created_at,
            updated_at=record.updated_at,
            bytes_done=sum(count.best for count in self._counts),
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
                for file, count, size in zip(record.files, self._counts, totals, strict=True)
            ),
            failure=record.failure,
            model_id=record.model_id,
            retries=record.retries,
            problem=self._problem,
        )

    def _publish(self) -> None:
        look, shown = self._look(), self.snapshot.value
        if look != shown:
            if look.updated_at == shown.updated_at:
                self._set()
            self.snapshot.set(replace(look, updated_at=self._record.updated_at))

    # --- the record

    async def _enter(self, phase: Phase) -> None:
        if phase is not self._record.phase:
            self._set(phase=phase)
            await self.save()
        self._publish()

    def _set(self, **changes: Any) -> None:
        self._record = replace(self._record, updated_at=time.time(), **changes)

    def _set_file(self, index: int, **changes: Any) -> None:
        files = list(self._record.files)
        files[index] = replace(files[index], **changes)
        self._set(files=tuple(files))

    def _write(self) -> None:
        with writing(self._around.folder, "the download's journal", 0):
            self._around.journal.write(self._record)


class _FileListener:
    """Tells a job of one of its files."""

    def __init__(self, job: Job, index: int) -> None:
        self._job, self._index = job, index

    def on_bytes(self, count: int, length: int) -> None:
        """See Listener."""
        self._job.count(self._index, count, length)

    def on_retry(self, problem: str) -> None:
        """See Listener."""
        self._job.retry(problem)

    async def on_version(self, version: Version) -> None:
        """See Listener."""
        await self._job.remember_version(self._index, version)


def _resolved(file: FileRecord) -> Resolved:
    assert file.resolved is not None  # noqa: S101
    return file.resolved


def _version(resolved: Resolved) -> Resolved:
    """What tells one version of a file from another; a checksum is told by who asks as well."""
    return replace(resolved, checksum="")


def _wrong_checksum(name: str, expected: str, actual: str, verb: str) -> ChecksumError:
    return ChecksumError(
        f"{name} should have the checksum {expected}, and {verb} {actual}. Check the one that you gave; if it is "
        "right, the file was changed at its source or on its way: fetch it again.",
        expected=expected,
        actual=actual,
        file=name,
    )


@asynccontextmanager
async def _every(seconds: float, action: Callable[[], None]) -> AsyncIterator[None]:
    """Do something again and again until the block ends."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(seconds)
            action()

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])
