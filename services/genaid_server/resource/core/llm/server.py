"""The LLM server: which model it runs and how, and who keeps it alive.

One `Llm` owns everything that is known of the engine. Its supervisor owns the state; a lock around each decision about
what to start keeps two callers from deciding on the same moment differently.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from genaid_server.kit.address import Address, require_free
from genaid_server.kit.engine_notes import noted
from genaid_server.kit.errors import DomainError, ModelNotFoundError, ServerBusyError, ServerError
from genaid_server.kit.logbook import Level, Logbook
from genaid_server.kit.model_lock import held, lock_of
from genaid_server.kit.supervisor import Report, RestartPolicy, Snapshot, State, Supervisor
from genaid_server.kit.tasks import to_the_end
from genaid_server.kit.watchable import Watchable
from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.llm.config import (
    EngineConfig,
    LlmRequest,
    check_serving,
)
from genaid_server.resource.core.llm.devices import engine_gpus
from genaid_server.resource.core.llm.process import BUILT_IN, Health, LlmProcess, llm_process
from genaid_server.resource.core.llm.watchdog import Watchdog
from genaid_server.resource.core.model import Model, ModelType
from genaid_server.resource.core.models import ModelStore

NAME: Final = "LLM engine"


class HealthState(Enum):
    """Whether the engine answers; UNKNOWN without a process."""

    UNKNOWN = auto()
    LOADING = auto()
    OK = auto()
    ERROR = auto()


@dataclass(frozen=True, slots=True)
class LlmInfo:
    """The engine as callers see it.

    `generation` counts the lives of the process. `reasons` say why each setting that the caller left open is what it
    is. `port` is None without a process, and 0 as long as a free one is not yet known.
    """

    life: Snapshot[EngineConfig]
    health: HealthState = HealthState.UNKNOWN
    port: int | None = None
    generation: int = 0
    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """How the engine is kept alive; see the configuration. Times are in seconds."""

    data_dir: Path
    program: str = ""
    command: tuple[str, ...] = ()
    policy: RestartPolicy = field(default_factory=lambda: RestartPolicy(automatic=True))
    health_interval: float = 10.0
    health_failures: int = 3


@dataclass(frozen=True, slots=True)
class _Decision:
    """What was last decided to run."""

    request: LlmRequest
    config: EngineConfig
    reasons: Mapping[str, str]


class Llm:
    """The LLM engine; use it as an async context manager, which ends the child."""

    def __init__(
        self, store: ModelStore, advisor: Advisor, logbook: Logbook, health: Health, settings: LlmSettings
    ) -> None:
        self._store, self._advisor, self._logbook, self._health = store, advisor, logbook, health
        self._settings = settings
        self._deciding = asyncio.Lock()
        self._decision: _Decision | None = None
        self._asking: set[asyncio.Task[LlmProcess]] = set()
        self._generation = 0
        self._process: LlmProcess | None = None
        self._follower: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._failure = ""
        self._gpus: int | None = None
        self._supervisor: Supervisor[EngineConfig, LlmProcess] = Supervisor(NAME, self._launch, settings.policy)
        self._watchdog = Watchdog(settings.health_interval, settings.health_failures, logbook, self._publish)
        self.info: Watchable[LlmInfo] = Watchable(LlmInfo(self._supervisor.snapshot.value))

    async def __aenter__(self) -> Self:
        await self._supervisor.__aenter__()
        self._follower = asyncio.create_task(self._follow(), name=f"{NAME} follower")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._supervisor.close()
        if self._asking:
            await asyncio.wait(self._asking)
        for task in (self._starting, self._follower):
            if task is not None:
                await task
        self.info.close()

    async def start(self, request: LlmRequest, *, replace_running: bool = False) -> LlmInfo:
        """Load a model and return when it answers; a start with an equal request is joined.

        Raises ModelNotFoundError, InvalidRequestError, PortInUseError, InsufficientResourcesError, BinaryError;
        ServerBusyError where it runs otherwise and `replace_running` is not set; ServerError where it doesn't load, or
        is stopped meanwhile. A caller who leaves leaves it loading: what ran before may be gone already.
        """
        self._failure = ""
        check_serving(request.serving)
        model = self._language_model(request.model_id)
        starting = await to_the_end(self._begin(model, request, replace_running))
        await starting
        return self.present()

    async def _begin(self, model: Model, request: LlmRequest, replace_running: bool) -> "asyncio.Task[LlmProcess]":
        """Decide what runs and ask the supervisor for it; the task ends when it answers."""
        async with self._deciding:
            decision, up = self._decision, self._up
            if not (up and decision is not None and decision.request == request):
                if up and not replace_running:
                    raise ServerBusyError(
                        f"The LLM engine already runs with {self._running_model} or other options; stop it first, or "
                        "have it replaced (genaid llm start --replace)."
                    )
                decision = await self._decide(model, request)
                await self._clear_the_way(decision.config)
                self._decision = decision  # only now: where the way isn't clear, the old one still runs
            return self._ask(decision.config)

    def start_later(self, request: LlmRequest) -> None:
        """Start in the background; a failure is in the log and in `info`."""
        self._starting = asyncio.create_task(self._start_quietly(request), name=f"{NAME} first start")

    async def _start_quietly(self, request: LlmRequest) -> None:
        try:
            await self.start(request)
        except DomainError as error:
            self._failure = error.message
            self._logbook.append(Level.ERROR, f"not started: {error.message}")
            self._publish()

    async def stop(self) -> LlmInfo:
        """End the engine, whatever it does; returns when it is dead."""
        await self._supervisor.stop()
        return self.present()

    async def restart(self) -> LlmInfo:
        """Stop, and start with the same model and options. Raises ServerError before a first start; else as `start`."""
        starting = await to_the_end(self._begin_again())
        await starting
        return self.present()

    async def _begin_again(self) -> "asyncio.Task[LlmProcess]":
        async with self._deciding:
            decision = self._decision
            if decision is None:
                raise ServerError(
                    "The LLM engine has never been started. Start it with a model: genaid llm start MODEL"
                )
            self._language_model(decision.request.model_id)
            await self._supervisor.stop()
            await self._clear_the_way(decision.config)
            return self._ask(decision.config)

    def _ask(self, config: EngineConfig) -> "asyncio.Task[LlmProcess]":
        asked = asyncio.create_task(self._supervisor.ensure_ready(config, replace=True), name=f"{NAME} start")
        self._asking.add(asked)
        asked.add_done_callback(self._answered)
        return asked

    def _answered(self, asked: "asyncio.Task[LlmProcess]") -> None:
        self._asking.discard(asked)
        if not asked.cancelled():
            asked.exception()  # whoever asked may have left

    async def checked(self) -> LlmInfo:
        """The engine now, its health asked for anew."""
        process = self._process
        if process is not None and self._life.state is State.RUNNING:
            self._watchdog.tell(await process.healthy())
        return self.present()

    def present(self) -> LlmInfo:
        """The engine as it is known to be."""
        life, process = self._life, self._process
        if self._failure and not life.last_error:
            life = replace(life, last_error=self._failure)
        alive = life.pid is not None
        return LlmInfo(
            life,
            self._health_of(life.state),
            process.port if alive and process is not None else None,
            self._generation,
            self._decision.reasons if self._decision else MappingProxyType({}),
        )

    @property
    def _life(self) -> Snapshot[EngineConfig]:
        return self._supervisor.snapshot.value

    @property
    def _up(self) -> bool:
        """Whether it runs, starts, or is about to: the supervisor may not have come to the latest request yet."""
        return bool(self._asking) or self._life.state in (State.STARTING, State.RUNNING)

    @property
    def _running_model(self) -> str:
        return self._life.config.model_id if self._life.config else "a model"

    def _health_of(self, state: State) -> HealthState:
        match state:
            case State.STARTING:
                return HealthState.LOADING
            case State.RUNNING:
                return HealthState.OK if self._watchdog.answers else HealthState.ERROR
            case State.CRASHED:
                return HealthState.ERROR
            case _:
                return HealthState.UNKNOWN

    def _language_model(self, model_id: str) -> Model:
        model = self._store.get(model_id)
        if model.type is not ModelType.LLM:
            raise ModelNotFoundError(
                f"Model {model_id!r} is no language model, so it can't chat. genaid models list shows what there is.",
                modelId=model_id,
            )
        return model

    async def _decide(self, model: Model, request: LlmRequest) -> _Decision:
        """Complete what the caller left open. Raises InvalidRequestError, InsufficientResourcesError."""
        own = self._settings.program
        given = await self._advisor.choose(model.id, request.wishes, None if own else self._engine_gpus)
        config = EngineConfig(
            model_id=model.id,
            model_path=model.path,
            size_bytes=model.size_bytes,
            llm=given.config,
            serving=request.serving,
            separates_reasoning=model.supports_reasoning,
            slot_save_path=self._settings.data_dir / "slots" / model.id,
            program=self._settings.program,
        )
        return _Decision(request, config, MappingProxyType(dict(given.reasons)))

    async def _engine_gpus(self) -> int:
        if self._gpus is None:
            self._gpus = await engine_gpus(self._settings.command or BUILT_IN)
        return self._gpus

    async def _clear_the_way(self, config: EngineConfig) -> None:
        """Stop what runs otherwise, and see that the port is free. Raises PortInUseError."""
        address = Address(config.serving.host, config.serving.port)
        own = self._process.port if self._process is not None and self._life.pid is not None else None
        if address.port and address.port != own:
            require_free([address])
        if self._life.state in (State.STARTING, State.RUNNING) and self._life.config != config:
            await self._supervisor.stop()

    @asynccontextmanager
    async def _launch(self, config: EngineConfig, report: Report) -> AsyncIterator[LlmProcess]:
        llm = config.llm
        self._generation += 1
        self._logbook.append(
            Level.INFO,
            f"starting with {config.model_id}: {llm.parallel} x {llm.context_size} tokens of context, "
            f"{llm.threads} threads, {llm.gpu_layers} layers on the GPU, {config.variant}",
        )
        settings = self._settings
        try:
            async with (
                held(lock_of(config.model_path, config.model_id)),
                llm_process(config, report, self._logbook, self._health, settings.command) as process,
            ):
                self._process = process
                with noted(settings.data_dir, "llm", config.model_id, process.pid):
                    async with self._watchdog.over(process):
                        yield process
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise ServerError(
                f"The model {config.model_id} could not be loaded: {error.strerror or error}{where}. See that the "
                "file is there, and that genaid may write below its data directory."
            ) from error

    async def _follow(self) -> None:
        """Log what happens to the engine, and pass it on to watchers."""
        event = ""
        async for life in self._supervisor.snapshot.watch():
            if life.event != event:
                event = life.event
                level = Level.ERROR if life.state is State.CRASHED else Level.INFO
                cause = life.last_error.partition("\n")[0]  # the rest repeats lines that stand above
                self._logbook.append(level, f"engine {event}" + (f": {cause}" if cause else ""))
            self._publish()

    def _publish(self) -> None:
        self.info.set(self.present())
