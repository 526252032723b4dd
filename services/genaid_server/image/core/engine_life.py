"""One life of the image engine, from the request for its memory to the end of its process. It only tells its owner."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from genaid_server.image.core.engine_lease import EngineLease, Grant, UseReports
from genaid_server.image.core.engine_state import (
    BeginLife,
    Ended,
    Event,
    LeaseChanged,
    LeaseGranted,
    Loading,
    Ready,
    Spawned,
)
from genaid_server.image.core.lease import EngineNeed, ImageSize, Lease, LeaseClient, LeaseState, choice_missing
from genaid_server.image.core.process import EngineProcess, engine_process
from genaid_server.image.core.settings import ImageEngineConfig
from genaid_server.kit.errors import BackendError, DomainError, ModelNotFoundError
from genaid_server.kit.tasks import to_the_end
from genaid_server.supervision.logbook import Level, Logbook
from genaid_server.supervision.model_lock import held, lock_of
from genaid_server.supervision.notes import noted
from genaid_server.supervision.process_memory import peak_private_bytes

log = logging.getLogger(__name__)


class EngineLife:
    """One life. `tell` is its owner's queue, which hears of everything that happens, and at last of its end."""

    def __init__(
        self,
        begin: BeginLife,
        manager: LeaseClient,
        tenant_id: str,
        logbook: Logbook,
        reports: UseReports,
        tell: Callable[[Event], None],
        *,
        command: Sequence[str] = (),
        data_dir: Path | None = None,
    ) -> None:
        self.number = begin.life
        self.lease: EngineLease | None = None
        self.process: EngineProcess | None = None
        self._begin, self._manager, self._tenant_id = begin, manager, tenant_id
        self._logbook, self._reports, self._tell = logbook, reports, tell
        self._command, self._data_dir = command, data_dir
        self._task: asyncio.Task[DomainError] | None = None
        self._said = ""

    def begin(self) -> None:
        """Begin it."""
        self._task = asyncio.create_task(self._live(), name="image engine life")
        self._task.add_done_callback(self._over)

    def end(self) -> None:
        """End it, wherever it is."""
        if self._task is not None:
            self._task.cancel()

    def make_room(self, size: ImageSize) -> Coroutine[Any, Any, bool]:
        """Have the lease of a life that runs cover images of a size; see EngineLease."""
        assert self.lease is not None  # noqa: S101 - it has one while it runs
        return self.lease.make_room(size)

    def peak_ram_bytes(self) -> int:
        """The most that the engine has taken, with the files that it has mapped into memory; 0 where unknown."""
        if self.process is None:
            return 0
        config, peak = self.process.config, peak_private_bytes(self.process.pid)
        try:
            mapped = sum(path.stat().st_size for _, path in config.model.files) if config.options.memory_map else 0
        except OSError:  # a file is gone that the engine still has
            return 0
        return peak + mapped if peak else 0

    async def _live(self) -> DomainError:
        """From beginning to end; returns why it ended by itself."""
        try:
            reason = await self._hold_and_run()
        except DomainError as failure:
            return failure
        except FileNotFoundError as failure:
            return ModelNotFoundError(f"A file of the model is gone: {failure.filename}", file=str(failure.filename))
        except OSError as failure:
            return BackendError(f"The image engine could not be started: {failure.strerror or failure}")
        except Exception as failure:  # the outermost frame of a life: without a word all would wait for ever
            log.exception("the image engine failed unexpectedly")
            return BackendError(f"The image engine failed unexpectedly ({type(failure).__name__}).")
        return BackendError(f"The image engine ended unexpectedly: {reason}")

    def _over(self, task: "asyncio.Task[DomainError]") -> None:
        # A task that is cancelled before its first step never runs at all, so this can't be a `finally` in it.
        self._tell(Ended(self.number, None if task.cancelled() else task.result()))

    async def _hold_and_run(self) -> str:
        """The lease is the outermost block: the memory is given back when the process is gone."""
        settings = self._begin.settings
        need = EngineNeed(settings.model_id, settings.variant, settings.options, self._begin.size)
        self.lease = EngineLease(self._manager, self._tenant_id, need, self._note, self._on_lease)
        try:
            grant = await self._granted(self.lease)
            self._tell(LeaseGranted(self.number, grant.model, grant.options))
            return await self._run(ImageEngineConfig(grant.model, settings.threads, grant.options, settings.variant))
        finally:
            await to_the_end(self._give_back(self.lease))

    async def _granted(self, lease: EngineLease) -> Grant:
        try:
            return await lease.granted()
        except ModelNotFoundError as error:
            raise choice_missing(self._begin.settings, error) from error

    async def _run(self, config: ImageEngineConfig) -> str:
        """The process; returns how it ended."""
        self._logbook.append(Level.INFO, f"starting with {config.model.id}, {config.threads} threads, {config.variant}")
        lock = lock_of(config.model.files[0][1], config.model.id)  # while it is held, the model can't be deleted
        async with held(lock), engine_process(config, self._report, self._logbook, self._command) as process:
            self.process = process
            began = time.monotonic()
            self._tell(Spawned(self.number, process.pid, time.time()))
            with noted(self._data_dir, "image", config.model.id, process.pid):
                await process.ready()
                self._tell(Ready(self.number, time.monotonic() - began))
                return await process.exited()

    async def _give_back(self, lease: EngineLease) -> None:
        await self._reports.sent()  # with the lease, what was learned from it would be lost
        await lease.end()

    def _report(self, done: int, total: int) -> None:
        self._tell(Loading(self.number, done, total))

    def _on_lease(self) -> None:
        if self.lease is not None:
            self._tell(LeaseChanged(self.number, self.lease.leave_after))

    def _note(self, lease: Lease) -> None:
        """Say in the log why the lease is as it is, once."""
        match lease.state:
            case LeaseState.WAITING:
                said = f"waiting for memory: {lease.reason}" if lease.reason else ""
            case LeaseState.GRANTED:
                said = lease.placement.reason
            case LeaseState.RECLAIM:
                said = f"the resource manager asks for the memory back: {lease.reason}"
        if said and said != self._said:
            self._logbook.append(Level.INFO, said)
        self._said = said
