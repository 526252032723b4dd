"""Models on their way from elsewhere: accepts downloads, runs a few at a time, and remembers them.

A download belongs to the service and not to who asked for it. Below the data directory, `downloads` has for each one
a journal, ID.json, and a folder ID of partial files; with them a download that wasn't finished goes on when the
service starts again, however it ended.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from genaid_server.kit.errors import (
    AlreadyTerminalError,
    DomainError,
    DownloadError,
    NotFoundError,
    ServerBusyError,
    ServerError,
)
from genaid_server.kit.request_ids import RequestIds, check_request_id
from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core.downloads.download import (
    Download,
    DownloadFailure,
    DownloadLimits,
    DownloadPhase,
    DownloadSpec,
    FileProgress,
)
from genaid_server.resource.core.downloads.installed import expected_checksum, find_installed
from genaid_server.resource.core.downloads.job import DownloadJob, JobContext
from genaid_server.resource.core.downloads.journal import KEEP_ENDED, KEEP_SECONDS, FileRecord, Journal, Record
from genaid_server.resource.core.downloads.log_lines import log_begin, log_end
from genaid_server.resource.core.downloads.remote import HubFile, Remote
from genaid_server.resource.core.downloads.retry import Pauses
from genaid_server.resource.core.downloads.spec import checked, plan_files
from genaid_server.resource.core.store.files import on_disk
from genaid_server.resource.core.store.model import Component
from genaid_server.resource.core.store.names import id_taken
from genaid_server.resource.core.store.store import ModelStore

__all__ = [
    "Download",
    "DownloadFailure",
    "DownloadLimits",
    "DownloadPhase",
    "DownloadSpec",
    "Downloads",
    "FileProgress",
    "Pauses",
]

log = logging.getLogger(__name__)

MAX_ACTIVE: Final = 1000
"""How many downloads may be under way or wait."""


class Downloads:
    """All downloads below one data directory; use it as an async context manager.

    Entering loads what is written down and goes on with what wasn't finished; leaving stops everything, and what was
    fetched stays for the next time. All methods belong to one event loop.
    """

    def __init__(
        self,
        data_dir: Path,
        store: ModelStore,
        remote: Remote,
        limits: DownloadLimits,
        pauses: Pauses = Pauses(),  # noqa: B008 (it is frozen)
    ) -> None:
        folder = data_dir.absolute() / "downloads"
        self._journal, self._store = Journal(folder), store
        self._context = JobContext(self._journal, store, remote, limits, pauses, folder, self._promised)
        self._slots = asyncio.Semaphore(limits.parallel)
        self._jobs: dict[str, DownloadJob] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._requests = RequestIds[str]()
        self._open = False

    async def __aenter__(self) -> Self:
        """Raises FileSystemError where the folder can't be made or read."""
        records = await asyncio.to_thread(self._load)
        self._open = True
        for record in records:
            self._add(DownloadJob(record, self._context, written=True))
        for job in self._jobs.values():
            if not job.record.phase.terminal:
                self._start(job)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await to_the_end(self._close())

    async def create(self, spec: DownloadSpec, request_id: str = "") -> Download:
        """Accept a download, and return it once it is written down.

        One that is under way for the same files is joined; where the model is installed, the download that is
        returned is INSTALLED. What an earlier one of the same files has fetched before it failed is used. A repeat
        of a `request_id` returns the original while it is known.

        Raises InvalidRequestError, FileSystemError, InsufficientResourcesError, ServerBusyError where too much is
        under way, and ServerError when all is stopped.
        """
        check_request_id(request_id)
        if not self._open:
            raise ServerError("The service is shutting down.")
        if known := self._jobs.get(self._requests.known(request_id) or ""):
            return await self._accepted(known)
        spec = checked(spec)
        files = tuple(FileRecord(file.item, file.shard) for file in plan_files(spec.items))
        if joined := self._same(spec, files):
            self._requests.remember(request_id, joined.record.id)
            if request_id:
                await joined.add_request_id(request_id)
            return await self._accepted(joined)
        job = self._new(spec, files, request_id)
        return await self._accepted(job)

    def get(self, download_id: str) -> Download:
        """One download. Raises NotFoundError."""
        return self._job(download_id).snapshot.value

    def newest_first(self, active_only: bool = False) -> tuple[Download, ...]:
        """All downloads, or those that haven't ended."""
        all_of_them = (job.snapshot.value for job in reversed(self._jobs.values()))
        return tuple(download for download in all_of_them if not (active_only and download.phase.terminal))

    async def watch(self, download_id: str) -> AsyncIterator[Download]:
        """Yield a download as it is, then after changes, a few times a second at most; ends after a terminal phase.

        Raises NotFoundError.
        """
        async for download in self._job(download_id).snapshot.watch():
            yield download
            if download.phase.terminal:
                return

    async def cancel(self, download_id: str) -> Download:
        """End a download and remove what it has fetched; returns when that is done. To repeat it is no error.

        Raises NotFoundError; AlreadyTerminalError where it is installed, which it also is when the store has begun
        to take its files, or has failed; ServerError when all is stopped.
        """
        job = self._job(download_id)
        task = self._tasks.get(download_id)
        if task is not None:
            job.cancel_wanted = True
            job.stop(task)
            await asyncio.wait([task])
        if not job.record.phase.terminal:
            raise ServerError("The service is shutting down; the download goes on when it is started again.")
        if job.record.phase is not DownloadPhase.CANCELLED:
            raise AlreadyTerminalError(f"The download has ended: it is {job.record.phase}.", id=download_id)
        return job.snapshot.value

    def end_watches(self) -> None:
        """End every watch; the downloads go on."""
        for job in self._jobs.values():
            job.snapshot.close()

    # --- accepting

    def _job(self, download_id: str) -> DownloadJob:
        if job := self._jobs.get(download_id):
            return job
        raise NotFoundError(f"There is no download {download_id[:32]!r}.", id=download_id[:32])

    async def _accepted(self, job: DownloadJob) -> Download:
        await job.accepted.wait()
        if job.refusal is not None:
            raise job.refusal
        return job.snapshot.value

    def _same(self, spec: DownloadSpec, files: Sequence[FileRecord]) -> DownloadJob | None:
        """A download that does, or did, what is asked for."""
        model = find_installed(self._store.list(), files, spec.model_id)
        for job in reversed(self._jobs.values()):
            record = job.record
            if record.phase.terminal:
                fits = model is not None and record.phase is DownloadPhase.INSTALLED and record.model_id == model.id
            else:
                fits = not job.cancel_wanted and spec.model_id in ("", record.spec.model_id)
            if fits and _sources(record.files) == _sources(files) and _agree(record.files, files):
                return job
        return None

    def _new(self, spec: DownloadSpec, files: tuple[FileRecord, ...], request_id: str) -> DownloadJob:
        """Add a download, which is written down by the task that runs it."""
        model = find_installed(self._store.list(), files, spec.model_id)
        earlier = None
        if model is None:
            self._check_free(spec.model_id)
            earlier = next((job for job in reversed(self._jobs.values()) if _has_failed_at(job, files)), None)
        now = time.time()
        record = Record(
            id=secrets.token_hex(8),
            spec=spec,
            files=_reused(earlier.record.files, files) if earlier else files,
            phase=DownloadPhase.QUEUED,
            created_at=now,
            updated_at=now,
            request_ids=(request_id,) if request_id else (),
        )
        job = self._add(DownloadJob(record, self._context, written=False))
        self._start(job, _Beginning(earlier.record.id if earlier else ""))
        return job

    def _check_free(self, model_id: str) -> None:
        active = [job for job in self._jobs.values() if not job.record.phase.terminal]
        if len(active) >= MAX_ACTIVE:
            raise ServerBusyError(f"{MAX_ACTIVE} downloads are under way or wait already.")
        taken = any(model.id == model_id for model in self._store.list())
        if model_id and (taken or any(job.record.spec.model_id == model_id for job in active)):
            raise id_taken(model_id)

    def _add(self, job: DownloadJob) -> DownloadJob:
        self._jobs[job.record.id] = job
        for request_id in job.record.request_ids:
            self._requests.remember(request_id, job.record.id)
        return job

    # --- running

    def _start(self, job: DownloadJob, beginning: "_Beginning | None" = None) -> None:
        task = asyncio.create_task(self._own(job, beginning), name=f"download {job.record.id}")
        self._tasks[job.record.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.record.id))

    async def _own(self, job: DownloadJob, beginning: "_Beginning | None") -> None:
        """All of a download's work; the one task that does any."""
        job.start()
        log_begin(job.record)
        error: DomainError | None = None
        try:
            await self._run(job, beginning)
        except asyncio.CancelledError:
            log.debug("Download %s is stopped.", job.record.id)
        except DomainError as failure:
            error = failure
        except Exception as failure:  # the outermost frame of a download: without a word all would wait for ever
            log.exception("download %s failed unexpectedly", job.record.id)
            error = DownloadError(f"The download failed unexpectedly ({type(failure).__name__}). Start it again.")
        await to_the_end(self._finish(job, error))

    async def _run(self, job: DownloadJob, beginning: "_Beginning | None") -> None:
        if self._given_up(job):
            return
        if beginning is not None:
            await to_the_end(self._begin(job, beginning))
        job.accepted.set()
        if job.record.phase.terminal:
            return
        async with self._slots:
            if not self._given_up(job):
                await job.run()

    async def _begin(self, job: DownloadJob, beginning: "_Beginning") -> None:
        if await job.end_where_installed():
            return
        try:
            await job.save()
        except DomainError as failure:
            job.refusal = failure
            raise
        if beginning.earlier_id:
            await job.take_over(beginning.earlier_id)

    def _given_up(self, job: DownloadJob) -> bool:
        return job.cancel_wanted or not self._open

    async def _finish(self, job: DownloadJob, error: DomainError | None) -> None:
        if not job.record.phase.terminal:
            if job.cancel_wanted:
                await job.end_cancelled()
            elif error is not None and self._open:  # what fails because all is stopped is tried again another time
                await job.end_failed(error)
        if not (job.record.phase.terminal or job.accepted.is_set() or job.written):
            job.refusal = ServerError("The service is shutting down.")
        if job.refusal is not None:
            await self._forget(job)  # to ask again, also under the same request id, is to try again
        job.accepted.set()
        log_end(job.record)
        await self._forget_old()

    async def _forget_old(self) -> None:
        ended = [job for job in reversed(self._jobs.values()) if job.record.phase.terminal]
        oldest = time.time() - KEEP_SECONDS
        for place, job in enumerate(ended):
            if (place >= KEEP_ENDED or job.record.updated_at < oldest) and job.record.id in self._jobs:
                await self._forget(job)

    async def _forget(self, job: DownloadJob) -> None:
        self._jobs.pop(job.record.id, None)
        self._requests.forget(lambda made: made == job.record.id)
        await job.forget()

    def _promised(self, asking: DownloadJob) -> int:
        return sum(job.missing_bytes for job in self._jobs.values() if job is not asking)

    # --- opening and closing

    def _load(self) -> tuple[Record, ...]:
        with on_disk("open", "the downloads"):
            records = self._journal.load()
        return tuple(
            record if record.phase.terminal else replace(record, phase=DownloadPhase.QUEUED) for record in records
        )

    async def _close(self) -> None:
        self._open = False
        tasks = list(self._tasks.values())
        for download_id, task in self._tasks.items():
            if job := self._jobs.get(download_id):  # one that is being forgotten has ended
                job.stop(task)
        if tasks:
            await asyncio.wait(tasks)
        self.end_watches()


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What a new download starts with: the earlier one whose bytes it can use, or an empty id."""

    earlier_id: str


def _sources(files: Sequence[FileRecord]) -> list[tuple[HubFile | str, Component]]:
    return [(file.item.source, file.item.component) for file in files]


def _agree(have: Sequence[FileRecord], wanted: Sequence[FileRecord]) -> bool:
    """Whether each checksum that is wanted is the one that is expected already."""
    pairs = zip(have, wanted, strict=True)
    return all(new.item.checksum in ("", expected_checksum(old)) for old, new in pairs)


def _has_failed_at(job: DownloadJob, files: Sequence[FileRecord]) -> bool:
    return job.record.phase is DownloadPhase.FAILED and _sources(job.record.files) == _sources(files)


def _reused(have: Sequence[FileRecord], wanted: Sequence[FileRecord]) -> tuple[FileRecord, ...]:
    """The files that are wanted, with what is known of the bytes that are there."""
    return tuple(replace(old, item=new.item, best=0) for old, new in zip(have, wanted, strict=True))
