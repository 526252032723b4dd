"""One download, from its acceptance to its end."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from genaid_server.kit.errors import DomainError
from genaid_server.kit.tasks import to_the_end
from genaid_server.kit.watchable import Watchable
from genaid_server.resource.core.downloads.disk_space import require_space, writing
from genaid_server.resource.core.downloads.download import Download, DownloadFailure, DownloadLimits, DownloadPhase
from genaid_server.resource.core.downloads.installed import expected_checksum, find_installed
from genaid_server.resource.core.downloads.journal import FileRecord, Journal, Record
from genaid_server.resource.core.downloads.periodic import every
from genaid_server.resource.core.downloads.progress import DownloadProgress
from genaid_server.resource.core.downloads.remote import Remote, Resolved
from genaid_server.resource.core.downloads.retry import Pauses
from genaid_server.resource.core.downloads.sources import Sources, wrong_checksum
from genaid_server.resource.core.downloads.transfer import Transfer, Version
from genaid_server.resource.core.store.files import SharedFileGoneError
from genaid_server.resource.core.store.model import Component, ModelFile, StagedFile
from genaid_server.resource.core.store.store import ModelStore

log = logging.getLogger(__name__)

TICK: Final = 0.2
"""Seconds between two looks at how far a download is."""
KEPT_REQUEST_IDS: Final = 100
"""How many requests that joined a download are written down with it."""

# What can be put right, so that the next try goes on from what was fetched.
_CURABLE: Final = frozenset({"DOWNLOAD_FAILED", "INSUFFICIENT_RESOURCES", "FILE_SYSTEM_ERROR", "CHECKSUM_ERROR"})
_CURABLE_FIELDS: Final = frozenset({"model_id", "name", "type"})


@dataclass(frozen=True, slots=True)
class JobContext:
    """What all downloads work with. `promised` is how many bytes the others are still going to write."""

    journal: Journal
    store: ModelStore
    remote: Remote
    limits: DownloadLimits
    pauses: Pauses
    folder: Path
    promised: Callable[["DownloadJob"], int]


class DownloadJob:
    """A download and its work. One task runs it, and alone decides how it ends; all others read `snapshot`.

    Its end is decided by setting the phase of the record, in one step with the look at what it is decided by. Then
    nothing stops its task any more until the end is written down, tidied up and shown, in this order.
    """

    def __init__(self, record: Record, context: JobContext, *, written: bool) -> None:
        """`written` tells whether the record is on the disk."""
        self._record, self._context = record, context
        self._progress, self._problem = DownloadProgress(record.files), ""
        self._sources = Sources(context.remote, context.limits, context.pauses, self.retry)
        self._saving = asyncio.Lock()
        self._forgotten = self._installing = self._reserved = False
        self._started = self._stopping = False
        self.cancel_wanted = False
        """Somebody wants it to end and its bytes removed."""
        self.accepted = asyncio.Event()
        """It is written down, or `refusal` says why not."""
        self.written = written
        """It is on the disk, in this or an earlier state."""
        self.refusal: DomainError | None = None
        if record.phase.terminal:
            self.accepted.set()
        else:
            self._progress.recount(context.journal, record.id)
        self.snapshot: Watchable[Download] = Watchable(self._look())

    @property
    def record(self) -> Record:
        """What is written down of it, or is about to be."""
        return self._record

    def start(self) -> None:
        """Its task runs."""
        self._started = True

    def stop(self, task: "asyncio.Task[None]") -> None:
        """Have its task end soon, which is cancelled where that can do no harm.

        That is not before it runs, as it looks for itself first; not while the store takes the files, as what the
        store has begun it ends; and not once the download's own end is decided.
        """
        can_be_cancelled = self._started and not (self._installing or self._record.phase.terminal)
        if can_be_cancelled and not self._stopping:
            task.cancel()
        self._stopping = True

    @property
    def missing_bytes(self) -> int:
        """What it is still going to write, as far as is known; 0 before it has looked for space, and once it ended."""
        return self._needed() if self._reserved and not self._record.phase.terminal else 0

    async def save(self) -> None:
        """Write it down. Raises FileSystemError, InsufficientResourcesError."""
        async with self._saving:
            if not self._forgotten:
                await to_the_end(asyncio.to_thread(self._write))
                self.written = True

    async def forget(self) -> None:
        """Remove all that the disk has of it; what can't be removed is when the service starts again."""
        async with self._saving:
            self._forgotten = True  # a request that joins it now must not write it down once more
            try:
                await to_the_end(asyncio.to_thread(self._context.journal.forget, self._record.id))
            except OSError as error:
                log.warning("Can't remove the download %s yet: %s.", self._record.id, error.strerror or error)

    async def add_request_id(self, request_id: str) -> None:
        """Remember that this request is about it as well. Raises as `save`."""
        self._set(request_ids=(*self._record.request_ids, request_id)[-KEPT_REQUEST_IDS:])
        await self.save()

    async def take_over(self, earlier_id: str) -> None:
        """Go on from what an earlier download of the same files has fetched, if that is still there."""
        with suppress(OSError):
            await to_the_end(asyncio.to_thread(self._context.journal.take_over, earlier_id, self._record.id))
        self._progress.recount(self._context.journal, self._record.id)
        self._publish()

    async def run(self) -> None:
        """Do all of it. Raises DomainErrors; what was fetched stays."""
        model_id = ""
        while not (model_id := model_id or self._installed_id()):
            async with every(TICK, self._publish):
                model_id = await self._work()
        await self._end_installed(model_id)

    # --- ends

    async def end_where_installed(self) -> bool:
        """End it if the store has its model; tells whether it has."""
        if model_id := self._installed_id():
            await self._end_installed(model_id)
        return bool(model_id)

    async def end_cancelled(self) -> None:
        """Nobody wants it any more."""
        await self._end(DownloadPhase.CANCELLED)

    async def end_failed(self, error: DomainError) -> None:
        """It can't be done. What another try can use stays."""
        failure = DownloadFailure(error.reason, error.message, dict(error.facts))
        curable = error.reason in _CURABLE or error.facts.get("field") in _CURABLE_FIELDS
        await self._end(DownloadPhase.FAILED, failure=failure, keep_bytes=curable)

    async def _end_installed(self, model_id: str) -> None:
        models = [model for model in self._context.store.list() if model.id == model_id]
        sizes = {(file.component, file.shard): file.size_bytes for model in models for file in model.files}
        for count, file in zip(self._progress.counts, self._record.files, strict=True):
            count.set(sizes.get((file.item.component, file.shard), count.best))
        await self._end(DownloadPhase.INSTALLED, model_id=model_id)

    async def _end(
        self, phase: DownloadPhase, failure: DownloadFailure | None = None, model_id: str = "", keep_bytes: bool = False
    ) -> None:
        self._problem = ""
        files = self._progress.with_best(self._record.files)
        self._set(phase=phase, failure=failure, model_id=model_id, files=files)
        await to_the_end(self._carry_out_end(keep_bytes))

    async def _carry_out_end(self, keep_bytes: bool) -> None:
        # First: a service that dies in between finds out from it that the bytes are to go.
        try:
            await self.save()
        except DomainError as error:
            log.warning("Can't write down that %s is %s: %s", self._record.id, self._record.phase, error.message)
            if self._record.phase is DownloadPhase.CANCELLED:
                await self.forget()  # it would go on when the service starts again; to remove a file needs no space
        if not keep_bytes:
            await asyncio.to_thread(self._discard)
        self._publish()

    def _discard(self) -> None:
        try:
            self._context.journal.discard_bytes(self._record.id)
        except OSError as error:
            log.warning("Can't remove what %s has fetched yet: %s.", self._record.id, error.strerror or error)

    # --- the work

    def _installed_id(self) -> str:
        """The id of its model where the store has it, else empty."""
        model = find_installed(self._context.store.list(), self._record.files, self._record.spec.model_id)
        return model.id if model else ""

    async def _work(self) -> str:
        """Check, fetch and install; the model's id, or nothing where the store was found to have it already."""
        await self._enter(DownloadPhase.CHECKING)
        if not self._record.checked:
            for index in range(len(self._record.files)):
                await self._ask_source(index)
            if self._installed_id():
                return ""
            model_type = await self._sources.model_type(self._record.files, self._record.spec.model_type)
            self._problem = ""
            self._set(checked=True, model_type=model_type)
            await self.save()
        await self._reserve_space()
        while True:
            await self._enter(DownloadPhase.DOWNLOADING)
            await self._fetch_all()
            await self._enter(DownloadPhase.VERIFYING)
            if self._all_there():  # still: what the store has can be deleted at any moment
                try:
                    return await self._install()
                except SharedFileGoneError:
                    if self._stopping:
                        raise

    async def _ask_source(self, index: int) -> None:
        file = self._record.files[index]
        resolved = await self._sources.resolve(file.item, f"items[{index}].source")
        if file.resolved is not None and _version(file.resolved) != _version(resolved):
            await self._drop(index)  # what an earlier try has fetched is another file by now
        self._set_file(index, resolved=resolved)
        self._problem = ""

    async def _drop(self, index: int) -> None:
        """Remove a file's bytes."""
        path = self._context.journal.partial(self._record.id, index)
        with writing(path.parent, path.name, 0):
            await to_the_end(asyncio.to_thread(path.unlink, missing_ok=True))
        self._progress.counts[index].set(0)
        self._set_file(index, version=Version(), checksum="")

    async def _reserve_space(self) -> None:
        """Raises InsufficientResourcesError where the disk has no room for this and all that was reserved before."""
        needed = self._needed()
        with writing(self._context.folder, "the download", needed):
            promised = self._context.promised(self)
            # In one step with the look at the others: of two that fit only alone, the second one is refused.
            self._reserved = True
            await asyncio.to_thread(
                require_space, self._context.folder, needed + promised, self._context.limits.reserve_bytes
            )

    def _needed(self) -> int:
        files = enumerate(self._record.files)
        return sum(self._progress.missing(file, index) for index, file in files if not self._shareable(file))

    async def _fetch_all(self) -> None:
        """Have all files here, or in the store."""
        # Again, because what the store has can be deleted while another file arrives.
        while not self._all_there():
            for index in range(len(self._record.files)):
                if not self._is_there(index):
                    await self._fetch(index)

    def _all_there(self) -> bool:
        return all(self._is_there(index) for index in range(len(self._record.files)))

    def _is_there(self, index: int) -> bool:
        file, count = self._record.files[index], self._progress.counts[index]
        if owned := self._shareable(file):
            count.set(owned.size_bytes)
            return True
        count.set(self._context.journal.length(self._record.id, index))
        return bool(file.checksum) and count.length == file.version.size

    def _shareable(self, file: FileRecord) -> ModelFile | None:
        """The store's own file with the content of a component; whole models are not shared."""
        checksum = expected_checksum(file)
        if file.item.component is Component.MODEL or not checksum:
            return None
        return self._context.store.file_with(checksum)

    async def _fetch(self, index: int) -> None:
        file = self._record.files[index]
        resolved, expected = file.known, expected_checksum(file)
        transfer = Transfer(
            self._context.remote,
            replace(resolved, checksum=expected),
            self._context.journal.partial(self._record.id, index),
            file.version,
            _FileListener(self, index),
            self._context.limits,
            self._context.pauses,
        )
        checksum = await transfer.run()
        if len(self._record.files) == 1:
            await self._enter(DownloadPhase.VERIFYING)
        if expected and checksum != expected:
            await self._drop(index)
            raise wrong_checksum(resolved.name, expected, checksum, "it has")
        self._set_file(index, checksum=checksum)
        await self.save()

    async def _install(self) -> str:
        staged = tuple(self._stage(index, file) for index, file in enumerate(self._record.files))
        spec, model_type = self._record.spec, self._record.model_type
        self._installing = True
        try:
            model = await self._context.store.install(
                staged, name=spec.name, model_type=model_type, model_id=spec.model_id
            )
        except BaseException:
            self._installing = False
            raise
        return model.id

    def _stage(self, index: int, file: FileRecord) -> StagedFile:
        owned = self._shareable(file)
        return StagedFile(
            path=owned.path if owned else self._context.journal.partial(self._record.id, index),
            name=file.known.name,
            checksum=owned.checksum if owned else file.checksum,
            source=file.known.source,
            component=file.item.component,
            shard=file.shard,
        )

    # --- how far it is

    def count(self, index: int, count: int, length: int) -> None:
        """So many bytes of a file have arrived, and so many are there now."""
        self._progress.arrived(index, count, length)
        if count:
            self._problem = ""

    def retry(self, problem: str) -> None:
        """Something will be tried again."""
        self._problem = problem
        self._set(retries=self._record.retries + 1)

    async def remember_version(self, index: int, version: Version) -> None:
        """From now on a file's bytes are those of this version."""
        self._set_file(index, version=version, best=self._progress.counts[index].best)
        await self.save()

    def _look(self) -> Download:
        return self._progress.snapshot(self._record, self._problem)

    def _publish(self) -> None:
        look, shown = self._look(), self.snapshot.value
        if look != shown:
            if look.updated_at == shown.updated_at:
                self._set()
            self.snapshot.set(replace(look, updated_at=self._record.updated_at))

    # --- the record

    async def _enter(self, phase: DownloadPhase) -> None:
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
        with writing(self._context.folder, "the download's journal", 0):
            self._context.journal.write(self._record)


class _FileListener:
    """Tells a job of one of its files."""

    def __init__(self, job: DownloadJob, index: int) -> None:
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


def _version(resolved: Resolved) -> Resolved:
    """What tells one version of a file from another; a checksum is told by who asks as well."""
    return replace(resolved, checksum="")
