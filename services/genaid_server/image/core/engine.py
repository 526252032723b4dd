"""The image engine, as the rest of the worker uses it: commands to its owner, and snapshots of what that knows."""

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from genaid_server.image.core.engine_owner import EngineOwner, Told
from genaid_server.image.core.engine_state import (
    ChoiceGone,
    EngineState,
    JobStuck,
    LoadAsked,
    LoadLeft,
    StartAsked,
    StopAsked,
    UseBegun,
    UseOver,
)
from genaid_server.image.core.engine_step import stopped_error
from genaid_server.image.core.lease import NO_IMAGE, ImageSize, LeaseClient, ManagerAwayError
from genaid_server.image.core.process import EngineProcess
from genaid_server.image.core.settings import EngineOptions, ImageModel, Settings
from genaid_server.kit.errors import InvalidRequestError, ModelNotFoundError
from genaid_server.kit.request_ids import RequestIds, check_request_id
from genaid_server.kit.tasks import to_the_end
from genaid_server.kit.watchable import Watchable
from genaid_server.supervision.logbook import Level, Logbook
from genaid_server.supervision.stop_reason import StopReason
from genaid_server.supervision.supervisor import ServerState, Snapshot
from genaid_server.supervision.threads import default_threads

MAX_THREADS: Final = 512
MAX_KEEP_ALIVE: Final = 365 * 24 * 3600.0
DEFAULT_OPTIONS: Final = EngineOptions()


@dataclass(frozen=True)
class EngineInfo:
    """The engine as callers see it, with the model and the options that it really has while it is up.

    `keep_alive` is in seconds; 0 unloads after each image, negative never. `chosen` says that somebody has chosen the
    model, which otherwise is decided anew with each image. `stop_reason` is None while there is a process, or soon will
    be.
    """

    life: Snapshot[Settings]
    busy: bool
    accepting: bool
    keep_alive: float
    chosen: bool
    stop_reason: StopReason | None


@dataclass
class Use:
    """One use of the engine; whoever has made images says how large they are."""

    made: ImageSize = NO_IMAGE


class ImageEngine:
    """The image engine; use it as an async context manager, which ends the child.

    `default_model` is the model that the configuration chooses; where it is empty, the resource manager does. A note of
    the running engine is kept below `data_dir`, where one is given.
    """

    def __init__(
        self,
        manager: LeaseClient,
        logbook: Logbook,
        *,
        default_model: str = "",
        threads: int = 0,
        keep_alive: float = 300.0,
        command: Sequence[str] = (),
        variant: str = "cpu",
        data_dir: Path | None = None,
    ) -> None:
        self._manager, self._logbook = manager, logbook
        self._threads = threads or default_threads(psutil.cpu_count(logical=False) or psutil.cpu_count() or 1)
        self._keep_alive, self._variant = keep_alive, variant
        self._tenant_id = f"image-worker-{secrets.token_hex(8)}"
        self._started: RequestIds[asyncio.Future[Told]] = RequestIds()
        state = EngineState(Settings(default_model, self._threads, DEFAULT_OPTIONS, variant), keep_alive)
        self._owner = EngineOwner(
            state, manager, self._tenant_id, logbook, self._publish, command=command, data_dir=data_dir
        )
        self.info: Watchable[EngineInfo] = Watchable(_info(state))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await to_the_end(self._owner.close())
        self.info.close()

    # --- commands

    async def start(
        self,
        model_id: str,
        *,
        threads: int | None = None,
        options: EngineOptions = DEFAULT_OPTIONS,
        keep_alive: float | None = None,
        replace_running: bool = False,
        request_id: str = "",
    ) -> EngineInfo:
        """Choose a model, or the default one where `model_id` is empty, and return when it is loaded; where another
        engine would have to make room for it, the first image loads it.

        A repeat with the same `request_id` returns what the first one did, and starts nothing. The start goes on where
        its caller leaves. Raises ModelNotFoundError, InvalidRequestError, BackendError; InsufficientResourcesError
        where there is too little memory for it; ServerBusyError where the engine is up with other settings and
        `replace_running` is not set, or is in the middle of an image; ServerError where another command comes.
        """
        check_request_id(request_id)
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise InvalidRequestError(f"threads must be between 1 and {MAX_THREADS}, not {threads}", field="threads")
        if keep_alive is not None and keep_alive > MAX_KEEP_ALIVE:
            raise InvalidRequestError(
                "keep_alive must be at most a year; a negative one never unloads the model", field="keep_alive"
            )
        started = self._started.known(request_id)
        if started is None:
            ticket, started = self._owner.ticket()
            self._started.remember(request_id, started)
            started.add_done_callback(self._forget_failed_start)
            settings = Settings(model_id, threads or self._threads, options, self._variant)
            kept = self._keep_alive if keep_alive is None else keep_alive
            self._owner.look()
            self._owner.post(StartAsked(ticket, settings, kept, replace_running))
        return _info((await asyncio.shield(started))[0])

    def stop(self) -> "asyncio.Future[EngineInfo]":
        """Free the memory and refuse generations until the next start, from now on; wait for what it returns until the
        engine is gone."""
        ticket, stopped = self._owner.ticket()
        self._owner.post(StopAsked(ticket))
        return asyncio.ensure_future(_info_of(stopped))

    # --- generations

    @property
    def settings(self) -> Settings:
        """What the next generation is made with. Raises ServerError where the engine was stopped."""
        if not self._owner.state.accepting:
            raise stopped_error()
        return self._owner.state.settings

    async def next_model(self) -> ImageModel:
        """The model that the next generation is made with.

        A choice ends with the model that was chosen: whoever deletes that means another one. Raises ServerError where
        the engine was stopped or nobody can be asked; ModelNotFoundError where there is none.
        """
        settings = self.settings
        in_memory = self._model_of(settings)
        if in_memory is not None and not settings.is_default:
            return in_memory
        try:
            return await self._manager.resolve(settings.model_id, self._tenant_id)
        except ModelNotFoundError as error:
            if settings.is_default:
                raise
            self._logbook.append(Level.WARN, f"the default model is used from now on: {error.message}")
            self._owner.post(ChoiceGone(settings))
            return await self._manager.resolve("", self._tenant_id)
        except ManagerAwayError:
            if (in_memory := self._model_of(settings)) is None:
                raise
            return in_memory  # it was decided when somebody could be asked last

    @contextmanager
    def use(self) -> Iterator[Use]:
        """Keep the engine from being unloaded or given another model while the block runs."""
        self._owner.post(UseBegun())
        use = Use()
        try:
            yield use
        finally:
            life = self._owner.life
            if life is not None and life.lease is not None:
                peak = life.peak_ram_bytes() if use.made != NO_IMAGE else 0
                self._owner.reports.add(life.lease, use.made, peak)
            self._owner.post(UseOver())

    async def ready(self, size: ImageSize, model: ImageModel | None = None) -> EngineProcess:
        """Return the engine with its model loaded and memory for an image of a size, starting it where needed.

        `model` is what `next_model` has just returned, where somebody has asked. Raises ServerError,
        ModelNotFoundError, BackendError; InsufficientResourcesError where there is too little memory.
        """
        ticket, loaded = self._owner.ticket()
        self._owner.look()
        self._owner.post(LoadAsked(ticket, size, model))
        try:
            _, process = await loaded
        except asyncio.CancelledError:
            await to_the_end(self._leave(ticket))
            raise
        assert process is not None  # noqa: S101 - a load is answered while a life runs
        return process

    async def _leave(self, ticket: int) -> None:
        """Nobody waits for the engine any more: end what is done for that alone."""
        reply, left = self._owner.ticket()
        self._owner.post(LoadLeft(ticket, reply))
        await left

    async def interrupt(self, process: EngineProcess, grace: float) -> None:
        """Stop the present job; where the engine doesn't within `grace` seconds, kill it and start it again.

        One whose lease is being reclaimed is not started again.
        """
        if await process.cancel(grace):
            return
        life = self._owner.life
        if life is None or life.process is not process:
            return
        self._logbook.append(Level.WARN, f"the job did not stop within {grace:g} s; the engine is killed")
        reply, gone = self._owner.ticket()
        self._owner.post(JobStuck(life.number, reply))
        await gone

    def _publish(self) -> None:
        self.info.set(_info(self._owner.state))

    def _model_of(self, settings: Settings) -> ImageModel | None:
        """The model that is in memory, or on its way there, if it is there for these settings."""
        life = self._owner.state.life
        return life.model if life is not None and life.up and life.settings == settings else None

    def _forget_failed_start(self, started: "asyncio.Future[Told]") -> None:
        if started.cancelled() or started.exception() is not None:  # it has made nothing that could be returned
            self._started.forget(lambda made: made is started)


async def _info_of(told: "asyncio.Future[Told]") -> EngineInfo:
    return _info((await told)[0])


def _info(state: EngineState) -> EngineInfo:
    """What callers see of a state."""
    life, shown = state.life, state.shown
    settings: Settings | None = None if state.settings.is_default else state.settings
    if life is not None:
        settings = life.settings if life.model is None else life.settings.resolved(life.model.id)
        settings = settings if life.options is None else replace(settings, options=life.options)
    gone = shown.state in (ServerState.STOPPED, ServerState.CRASHED)
    return EngineInfo(
        replace(shown, config=settings),
        state.users > 0,
        state.accepting,
        state.keep_alive,
        not state.settings.is_default,
        state.stop_reason if gone else None,
    )
