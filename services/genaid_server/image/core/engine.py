"""Which model draws, and the engine that holds it: selection, supervision, unloading when idle.

Generations `use` the engine; starting another model is refused meanwhile. Each life of it holds a lease over the
memory that it takes. All state is changed between two awaits, so what was checked still holds when it is acted on.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import psutil

from genaid_server.image.core.process import EngineConfig, EngineOptions, EngineProcess, engine_process
from genaid_server.image.core.tenancy import NO_IMAGE, SMALLEST, Landlord, Size, Tenancy
from genaid_server.kit.errors import InvalidRequestError, ModelNotFoundError, ServerBusyError, ServerError
from genaid_server.kit.watchable import Watchable
from genaid_server.supervision.logbook import Level, Logbook
from genaid_server.supervision.model_lock import held, lock_of
from genaid_server.supervision.notes import noted
from genaid_server.supervision.process_memory import peak_private_bytes
from genaid_server.supervision.supervisor import Report, Snapshot, State, Supervisor
from genaid_server.supervision.threads import default_threads

MAX_THREADS: Final = 512
MAX_KEEP_ALIVE: Final = 365 * 24 * 3600.0
DEFAULT_OPTIONS: Final = EngineOptions()


@dataclass(frozen=True)
class InstalledModel:
    """What the worker needs to know of a model in the store; `files` as in EngineConfig."""

    id: str
    name: str
    files: tuple[tuple[str, Path], ...]
    is_diffusion: bool


class Models(Protocol):
    """The store, as far as the worker asks it."""

    async def find(self, model_id: str) -> InstalledModel:
        """Return a model. Raises ModelNotFoundError."""

    async def diffusion_models(self) -> Sequence[InstalledModel]:
        """Return every diffusion model."""


@dataclass(frozen=True)
class EngineInfo:
    """The engine as callers see it, with the options that it really has while it is up.

    `keep_alive` is in seconds; 0 unloads after each image, negative never.
    """

    life: Snapshot[EngineConfig]
    busy: bool
    accepting: bool
    keep_alive: float


@dataclass
class Use:
    """One use of the engine; whoever has made images says how large they are."""

    made: Size = NO_IMAGE


class Engine:
    """The image engine; use it as an async context manager, which ends the child.

    `default_model` may be empty: then the only installed diffusion model is taken. A note of the running engine is
    kept below `data_dir`, where one is given.
    """

    def __init__(
        self,
        models: Models,
        landlord: Landlord,
        logbook: Logbook,
        *,
        default_model: str = "",
        threads: int = 0,
        keep_alive: float = 300.0,
        command: Sequence[str] = (),
        variant: str = "cpu",
        data_dir: Path | None = None,
    ) -> None:
        self._models, self._logbook, self._data_dir = models, logbook, data_dir
        self._default_model, self._command, self._variant = default_model, command, variant
        self._threads = threads or default_threads(psutil.cpu_count(logical=False) or psutil.cpu_count() or 1)
        self._default_keep_alive = self._keep_alive = keep_alive
        self._selected: EngineConfig | None = None
        self._accepting = True
        self._users = self._starters = 0
        self._process: EngineProcess | None = None  # of the newest life
        self._idle_since = 0.0  # by the loop's clock
        self._idle_timer: asyncio.TimerHandle | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._follower: asyncio.Task[None] | None = None
        self._supervisor: Supervisor[EngineConfig, EngineProcess] = Supervisor("image engine", self._launch)
        self._tenancy = Tenancy(landlord, logbook, self._on_lease)
        self.info: Watchable[EngineInfo] = Watchable(self._present())

    async def __aenter__(self) -> Self:
        await self._supervisor.__aenter__()
        self._follower = asyncio.create_task(self._follow(), name="image engine follower")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._accepting = False
        self._cancel_idle_timer()
        await self._supervisor.close()
        for task in (self._unloading, self._follower):
            if task is not None:
                await task
        await self._tenancy.close()
        self.info.close()

    async def start(
        self,
        model_id: str,
        *,
        threads: int | None = None,
        options: EngineOptions = DEFAULT_OPTIONS,
        keep_alive: float | None = None,
        replace_running: bool = False,
    ) -> EngineInfo:
        """Select a model and return when it is loaded; where another engine would have to make room for it, the first
        image loads it.

        Raises ModelNotFoundError, InvalidRequestError, BackendError; InsufficientResourcesError where there is too
        little memory for it; ServerBusyError where the engine is up with other settings and `replace_running` is not
        set, or is in the middle of an image.
        """
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise InvalidRequestError(f"threads must be between 1 and {MAX_THREADS}, not {threads}", field="threads")
        if keep_alive is not None and keep_alive > MAX_KEEP_ALIVE:
            raise InvalidRequestError(
                "keep_alive must be at most a year; a negative one never unloads the model", field="keep_alive"
            )
        model = await self._diffusion_model(model_id)
        await self._settled()
        config = self._config(model, threads or self._threads, options)
        room = self._runs(config) or await self._tenancy.has_room(config)
        if self._up and config != self._selected:
            if self._users:
                raise ServerBusyError("The image engine is in the middle of an image; wait for it or cancel it.")
            if not replace_running:
                raise ServerBusyError(
                    f"The image engine already runs with {self._selected.model_id if self._selected else 'a model'} or "
                    "other settings; stop it first or set replace."
                )
        load = room or self._runs(config)
        if not self._runs(config):
            self._tenancy.wanted = SMALLEST
        self._selected, self._accepting = config, True
        self._keep_alive = self._default_keep_alive if keep_alive is None else keep_alive
        self._starters += 1
        try:
            if load:
                await self._supervisor.ensure_ready(config, replace=True)
            else:
                await self._supervisor.stop("unloaded")
        finally:
            self._starters -= 1
            self._rest()
        return self._present()

    def refuse(self) -> None:
        """Refuse generations until the next start."""
        self._accepting = False
        self._cancel_idle_timer()
        self._publish()

    async def stop(self) -> EngineInfo:
        """Free the memory and refuse generations until the next start."""
        self.refuse()
        await self._supervisor.stop()
        return self._present()

    async def selected(self) -> EngineConfig:
        """The configuration that the next generation will use, choosing a model where none is selected.

        Raises ServerError where the engine was stopped; ModelNotFoundError where there is nothing to choose.
        """
        if not self._accepting:
            raise ServerError("The image engine is stopped. Start it with a model first (genaid engine start MODEL).")
        if self._selected is None:
            model = await self._choose()
            if self._selected is None:
                self._selected = self._config(model, self._threads, DEFAULT_OPTIONS)
        return self._selected

    @contextmanager
    def use(self) -> Iterator[Use]:
        """Keep the engine from being unloaded or given another model while the block runs."""
        self._users += 1
        self._cancel_idle_timer()
        self._publish()
        use = Use()
        try:
            yield use
        finally:
            self._users -= 1
            self._tenancy.report(use.made, self._peak_ram_bytes() if use.made != NO_IMAGE else 0)
            self._rest()
            self._publish()

    async def ready(self, size: Size) -> EngineProcess:
        """Return the engine with its model loaded and memory for an image of a size, starting it where needed.

        Raises ServerError, ModelNotFoundError, BackendError; InsufficientResourcesError where there is too little
        memory.
        """
        config = await self.selected()
        await self._settled()
        self._tenancy.wanted = size
        if self._tenancy.leave_after == 0 and self._life.state is State.RUNNING:
            await self._supervisor.stop("unloaded")  # others come first
        while True:
            if self._life.state is not State.RUNNING:
                await self._diffusion_model(config.model_id)
            process = await self._supervisor.ensure_ready(config, replace=True)
            if await self._tenancy.make_room(size):
                return process
            await self._supervisor.stop("unloaded")

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[AsyncIterator[Snapshot[EngineConfig]]]:
        """Watch the engine's life for the time of the block."""
        watch = self._supervisor.snapshot.watch()
        try:
            yield watch
        finally:
            await watch.aclose()  # type: ignore[attr-defined]

    async def abandon_load(self) -> None:
        """Nobody wants the model that is being loaded any more: end the load, unless a start waits for it."""
        if not self._starters and self._life.state is State.STARTING:
            await self._supervisor.stop("unloaded")

    async def interrupt(self, process: EngineProcess, grace: float) -> None:
        """Stop the present job; where the engine doesn't within `grace` seconds, kill it and start it again.

        One whose memory is wanted back is not started again.
        """
        if await process.cancel(grace):
            return
        if self._tenancy.leave_after is not None:
            self._logbook.append(Level.WARN, f"the job did not stop within {grace:g} s; the engine is killed")
            await self._supervisor.stop("unloaded")
        else:
            self._logbook.append(Level.WARN, f"the job did not stop within {grace:g} s; the engine is started again")
            await self._supervisor.recycle()

    @property
    def _life(self) -> Snapshot[EngineConfig]:
        return self._supervisor.snapshot.value

    @property
    def _up(self) -> bool:
        return self._starters > 0 or self._users > 0 or self._life.state in (State.STARTING, State.RUNNING)

    def _runs(self, config: EngineConfig) -> bool:
        """Whether it is up, or about to be, with these settings."""
        return self._up and config == self._selected

    def _config(self, model: InstalledModel, threads: int, options: EngineOptions) -> EngineConfig:
        return EngineConfig(model.id, model.name, model.files, threads, options, self._variant)

    async def _choose(self) -> InstalledModel:
        if self._default_model:
            return await self._diffusion_model(self._default_model)
        installed = await self._models.diffusion_models()
        if not installed:
            raise ModelNotFoundError(
                "No diffusion model is installed. Import one with: genaid models import FILE --type diffusion"
            )
        if len(installed) > 1:
            names = ", ".join(model.id for model in installed[:10])
            raise ModelNotFoundError(
                f"Several diffusion models are installed ({names}). Start the engine with one of them: "
                "genaid engine start MODEL, or genaid up --image-model MODEL"
            )
        return installed[0]

    async def _diffusion_model(self, model_id: str) -> InstalledModel:
        model = await self._models.find(model_id)
        if not model.is_diffusion:
            raise ModelNotFoundError(
                f"Model {model_id!r} is no diffusion model, so it can't draw images.", modelId=model_id
            )
        return model

    @asynccontextmanager
    async def _launch(self, config: EngineConfig, report: Report) -> AsyncIterator[EngineProcess]:
        """One life. Its lease is the outermost block: the memory is given back when the process is gone."""
        async with self._tenancy.hold(config) as options:
            self._logbook.append(
                Level.INFO, f"starting with {config.model_id}, {config.threads} threads, {config.variant}"
            )
            granted = replace(config, options=options)
            lock = lock_of(config.files[0][1], config.model_id)  # while it is held, the model can't be deleted
            async with held(lock), engine_process(granted, report, self._logbook, self._command) as process:
                self._process = process
                with noted(self._data_dir, "image", config.model_id, process.pid):
                    yield process

    async def _settled(self) -> None:
        """Where the process has died, wait until its life is over: it would be given to whoever asks for the engine."""
        process = self._process
        if process is not None and not process.alive:
            async for life in self._supervisor.snapshot.watch():
                if life.pid != process.pid:
                    return

    async def _follow(self) -> None:
        """Log what happens to the engine, and pass it on to watchers."""
        event = ""
        async for life in self._supervisor.snapshot.watch():
            if life.event != event:
                event = life.event
                level = Level.ERROR if life.state is State.CRASHED else Level.INFO
                self._logbook.append(level, f"engine {event}" + (f": {life.last_error}" if life.last_error else ""))
            self._plan_unload()  # one that nobody waited for is idle as soon as it is loaded
            self._publish()

    def _on_lease(self) -> None:
        """The lease has changed."""
        self._plan_unload()
        self._publish()

    def _present(self) -> EngineInfo:
        life = self._life
        config, options = life.config or self._selected, self._tenancy.options
        if config is not None and options is not None:
            config = replace(config, options=options)
        return EngineInfo(replace(life, config=config), self._users > 0, self._accepting, self._keep_alive)

    def _publish(self) -> None:
        self.info.set(self._present())

    def _peak_ram_bytes(self) -> int:
        """The most that the engine has taken, with the files that it has mapped into memory; 0 where unknown."""
        pid, config = self._life.pid, self._life.config
        if pid is None or config is None:
            return 0
        peak = peak_private_bytes(pid)
        try:
            mapped = sum(path.stat().st_size for _, path in config.files) if config.options.memory_map else 0
        except OSError:  # a file is gone that the engine still has
            return 0
        return peak + mapped if peak else 0

    def _rest(self) -> None:
        """Somebody needs the engine no more."""
        self._idle_since = asyncio.get_running_loop().time()
        self._plan_unload()

    def _plan_unload(self) -> None:
        """Unload it once it has been idle for as long as it is kept, or as the resource manager lets it stay."""
        self._cancel_idle_timer()
        leave_after = self._tenancy.leave_after
        limits = [self._keep_alive] if self._keep_alive >= 0 else []
        limits += [leave_after] if leave_after is not None else []
        if limits and self._idle and self._accepting:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_at(self._idle_since + min(limits), self._unload)

    @property
    def _idle(self) -> bool:
        return not self._users and not self._starters

    def _unload(self) -> None:
        if self._unloading is None or self._unloading.done():
            self._unloading = asyncio.create_task(self._unload_now(), name="image engine unload")

    async def _unload_now(self) -> None:
        if self._idle and self._life.state is State.RUNNING:  # it may have got work since the timer went off
            with suppress(ServerError):  # the worker is being closed at this moment, which unloads as well
                await self._supervisor.stop("unloaded")

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
