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
from typing import Final, Protocol, Self

from genaid_server.kit.address import Address, require_free
from genaid_server.kit.errors import (
    DomainError,
    FileSystemError,
    ModelNotFoundError,
    PortInUseError,
    ServerBusyError,
    ServerError,
)
from genaid_server.kit.tasks import to_the_end
from genaid_server.kit.watchable import Watchable
from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.leases.lease import LeaseRequest
from genaid_server.resource.core.leases.leases import Leases
from genaid_server.resource.core.leases.plan import Kind
from genaid_server.resource.core.leases.usage import Usage
from genaid_server.resource.core.llm.config import (
    EngineConfig,
    LlmRequest,
    Serving,
    check_serving,
)
from genaid_server.resource.core.llm.deciding import SLOTS, Decider, Decision
from genaid_server.resource.core.llm.offloaded import OffloadedLlm, Phase
from genaid_server.resource.core.llm.offloading import Offloading, OffloadSettings
from genaid_server.resource.core.llm.process import LlmProcess, llm_process
from genaid_server.resource.core.llm.saved import SavedFile, SavedLlm
from genaid_server.resource.core.llm.slots import Endpoint, SlotsApi
from genaid_server.resource.core.llm.watchdog import Watchdog
from genaid_server.resource.core.store.model import Model
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.supervision.logbook import Level, Logbook
from genaid_server.supervision.model_lock import held, lock_of
from genaid_server.supervision.notes import noted, running
from genaid_server.supervision.supervisor import Report, RestartPolicy, Snapshot, State, Supervisor

NAME: Final = "LLM engine"


class EngineApi(SlotsApi, Protocol):
    """What a running engine can be asked."""

    async def healthy(self, host: str, port: int, timeout: float) -> bool:
        """Whether it says within `timeout` seconds that its model is loaded. Never raises."""


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
    is. `port` is None without a process, and 0 as long as a free one is not yet known. `offloaded` says that it makes
    room for another engine, or has, and comes back by itself.
    """

    life: Snapshot[EngineConfig]
    health: HealthState = HealthState.UNKNOWN
    port: int | None = None
    generation: int = 0
    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    offloaded: bool = False


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """How the engine is kept alive; see the configuration. Times are in seconds."""

    data_dir: Path
    program: str = ""
    command: tuple[str, ...] = ()
    policy: RestartPolicy = field(default_factory=lambda: RestartPolicy(automatic=True))
    health_interval: float = 10.0
    health_failures: int = 3
    drain_timeout: float = 30.0
    settle_delay: float = 2.0


class Llm:
    """The LLM engine; use it as an async context manager, which ends the child.

    What ran when an earlier process was killed is brought back.
    """

    def __init__(
        self,
        store: ModelStore,
        advisor: Advisor,
        logbook: Logbook,
        api: EngineApi,
        leases: Leases,
        usage: Usage,
        settings: LlmSettings,
    ) -> None:
        self._advisor, self._logbook, self._api = advisor, logbook, api
        self._leases, self._settings = leases, settings
        self._decider = Decider(
            store, advisor, usage, settings.data_dir, program=settings.program, command=settings.command
        )
        self._deciding = asyncio.Lock()
        self._decision: Decision | None = None
        self._asking: set[asyncio.Task[LlmProcess]] = set()
        self._generation = 0
        self._stops = 0
        self._process: LlmProcess | None = None
        self._follower: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._failure = ""
        self._last_port = 0
        self._supervisor: Supervisor[EngineConfig, LlmProcess] = Supervisor(NAME, self._launch, settings.policy)
        self._watchdog = Watchdog(settings.health_interval, settings.health_failures, logbook, self._publish)
        self._saved_file = SavedFile(settings.data_dir)
        self._offloading = Offloading(
            self,
            leases,
            api,
            self._saved_file,
            logbook,
            OffloadSettings(settings.drain_timeout, self._settle_delay(), settings.data_dir / SLOTS),
            self._publish,
        )
        self.info: Watchable[LlmInfo] = Watchable(LlmInfo(self._supervisor.snapshot.value))

    async def __aenter__(self) -> Self:
        await self._supervisor.__aenter__()
        self._follower = asyncio.create_task(self._follow(), name=f"{NAME} follower")
        self._recover()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._offloading.close()
        await self._supervisor.close()
        if self._asking:
            await asyncio.wait(self._asking)
        await self._offloading.give_up()  # a service that ends in order leaves nothing to come back
        for task in (self._starting, self._follower):
            if task is not None:
                await task
        self.info.close()

    def closing(self) -> None:
        """End every watch: the service is about to stop."""
        self._offloading.closing()
        self.info.close()

    async def start(self, request: LlmRequest, *, replace_running: bool = False) -> LlmInfo:
        """Load a model and return when it answers; a start with an equal request is joined.

        Raises ModelNotFoundError, InvalidRequestError, PortInUseError, InsufficientResourcesError, BinaryError;
        ServerBusyError where it runs otherwise and `replace_running` is not set; ServerError where it doesn't load, or
        is stopped meanwhile. A caller who leaves leaves it loading: what ran before may be gone already.
        """
        self._failure = ""
        check_serving(request.serving)
        model = self._decider.language_model(request.model_id)
        await asyncio.shield(await to_the_end(self._begin(model, request, replace_running)))
        return self.present()

    async def _begin(self, model: Model, request: LlmRequest, replace_running: bool) -> "asyncio.Task[LlmProcess]":
        """Decide what runs and ask the supervisor for it; the task ends when it answers."""
        async with self._deciding:
            decision, up = self._decision, self._up
            if up and decision is not None and decision.request == request:
                await self._offloading.hurry()
            else:
                if up and not replace_running:
                    raise ServerBusyError(
                        f"The LLM engine already runs with {self._running_model} or other options; stop it first, or "
                        "have it replaced (genaid llm start --replace)."
                    )
                decision = await self._decider.decide(model, request)
                (await self._leases.plan(self._lease_request(decision.config))).require_possible()
                self._require_port(decision.config)
                # Only now: where the way isn't clear, the old one still runs, or comes back.
                await self._offloading.give_up()
                await self._stop_other(decision.config)
                self._decision, self._last_port = decision, 0
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
        """End the engine, whatever it does; returns when it is dead. One that was offloaded does not come back."""
        self._stops += 1
        await to_the_end(self._end())
        return self.present()

    async def _end(self) -> None:
        await self._offloading.give_up()
        await self._supervisor.stop()

    @property
    def offloaded(self) -> OffloadedLlm | None:
        """The LLM that makes room for another engine, or has, and comes back."""
        return self._offloading.present

    def use_of(self, model_id: str) -> str | None:
        """Why the model of that id has to stay where it is; None where it may go."""
        if not self._up or self._decision is None or self._decision.config.model_id != model_id:
            return None
        return f"The LLM engine runs with {model_id}, or is on its way back with it. Stop it first: genaid llm stop"

    async def forget(self) -> bool:
        """Give up on an LLM that was offloaded: it stays stopped. False where there was none."""
        if not self._offloading.offloaded:
            return False
        await self.stop()
        return True

    async def restart(self) -> LlmInfo:
        """Stop, and start with the same model and options. Raises ServerError before a first start; else as `start`."""
        await asyncio.shield(await to_the_end(self._begin_again()))
        return self.present()

    async def _begin_again(self) -> "asyncio.Task[LlmProcess]":
        async with self._deciding:
            decision = self._decision
            if decision is None:
                raise ServerError(
                    "The LLM engine has never been started. Start it with a model: genaid llm start MODEL"
                )
            self._decider.language_model(decision.request.model_id)
            await self._offloading.give_up()
            await self._supervisor.stop()
            self._require_port(decision.config)
            return self._ask(decision.config)

    def _ask(self, config: EngineConfig) -> "asyncio.Task[LlmProcess]":
        asked = asyncio.create_task(self._start_up(config), name=f"{NAME} start")
        self._asking.add(asked)
        asked.add_done_callback(self._answered)
        return asked

    async def _start_up(self, config: EngineConfig) -> LlmProcess:
        stops = self._stops
        try:
            process = await self._supervisor.ensure_ready(config, replace=True)
        except DomainError:
            self._offloading.come_back()
            raise
        self._last_port = process.port
        decision = self._decision
        if decision is not None and decision.config == config and stops == self._stops:
            await self._offloading.serves(
                SavedLlm(decision.request, config.llm, dict(decision.reasons), config.amount, process.port)
            )
        if stops != self._stops:  # while it took its prompt caches back
            raise ServerError(f"The {NAME} was stopped.")
        return process

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
        if life.config is None and self._decision is not None:
            life = replace(life, config=self._decision.config)
        offloaded = self._offloading.present
        if offloaded is not None and offloaded.phase is Phase.FAILED and life.pid is None:
            life = replace(life, event="reload_failed", last_error=offloaded.last_error)
        alive = life.pid is not None
        return LlmInfo(
            life,
            self._health_of(life.state),
            process.port if alive and process is not None else None,
            self._generation,
            self._decision.reasons if self._decision else MappingProxyType({}),
            offloaded is not None,
        )

    # --- what offloading does with the engine

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it serves; None where it doesn't."""
        process, config = self._process, self._life.config
        if process is None or config is None or self._life.state is not State.RUNNING:
            return None
        return Endpoint(config.serving.host, process.port, config.serving.api_key)

    @property
    def lease_request(self) -> LeaseRequest:
        """What the engine needs, as it was last decided."""
        assert self._decision is not None  # noqa: S101 - what was offloaded was decided before
        return self._lease_request(self._decision.config)

    @property
    def starting(self) -> bool:
        """Whether a start is under way that somebody waits for."""
        return bool(self._asking)

    async def settled(self) -> None:
        """Return when no start is under way that somebody waits for."""
        while self._asking:
            await asyncio.wait(set(self._asking))

    async def halt(self) -> None:
        """Stop it, as one that comes back."""
        await self._supervisor.stop("offloaded")

    async def bring_back(self, port: int) -> None:
        """Load it again as it was, on the same port where that is free. Raises DomainError."""
        assert self._decision is not None  # noqa: S101
        self._last_port = port
        await self._ask(self._decision.config)

    def learn_memory(self) -> None:
        """Take note of what it takes while it has worked."""
        process, config = self._process, self._life.config
        if process is not None and config is not None:
            self._decider.learn(config, process.pid)

    def _lease_request(self, config: EngineConfig) -> LeaseRequest:
        return self._decider.lease_request(config, self._leases.total)

    def _settle_delay(self) -> float:
        """How long image engines of other processes have to tell of themselves, where there are any."""
        others = [note for note in running(self._settings.data_dir) if note.kind == Kind.IMAGE]
        return self._settings.settle_delay if others else 0.0

    def _recover(self) -> None:
        saved = self._saved_file.read()
        if saved is None:
            self._offloading.recover_nothing()
            return
        try:
            self._decision = self._decider.decided(saved)
        except ModelNotFoundError as error:
            self._logbook.append(Level.WARN, f"what ran before is not brought back: {error.message}")
            self._offloading.recover_nothing()
        else:
            self._offloading.recover(saved)

    @property
    def _life(self) -> Snapshot[EngineConfig]:
        return self._supervisor.snapshot.value

    @property
    def _up(self) -> bool:
        """Whether it runs, starts, or is about to: the supervisor may not have come to the latest request yet."""
        return bool(self._asking) or self._offloading.offloaded or self._life.state in (State.STARTING, State.RUNNING)

    @property
    def _running_model(self) -> str:
        return self._decision.config.model_id if self._decision else "a model"

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

    def _require_port(self, config: EngineConfig) -> None:
        """Raises PortInUseError where somebody else has the port that is asked for."""
        address = Address(config.serving.host, config.serving.port)
        own = self._process.port if self._process is not None and self._life.pid is not None else None
        if address.port and address.port != own:
            require_free([address])

    async def _stop_other(self, config: EngineConfig) -> None:
        if self._life.state in (State.STARTING, State.RUNNING) and self._life.config != config:
            await self._supervisor.stop()

    @asynccontextmanager
    async def _launch(self, config: EngineConfig, report: Report) -> AsyncIterator[LlmProcess]:
        async with self._leases.hold(self._lease_request(config), leave=self._offloading.leave) as tenancy:
            await tenancy.granted()
            async with self._process_of(config, report) as process:
                yield process

    @asynccontextmanager
    async def _process_of(self, config: EngineConfig, report: Report) -> AsyncIterator[LlmProcess]:
        llm = config.llm
        self._generation += 1
        self._logbook.append(
            Level.INFO,
            f"starting with {config.model_id}: {llm.parallel} x {llm.context_size} tokens of context, "
            f"{llm.threads} threads, {llm.gpu_layers} layers on the GPU, {config.variant}",
        )
        settings = self._settings
        try:
            async with held(lock_of(config.model_path, config.model_id)):
                pooling = await self._advisor.pooling(config.model_id)
                placed = replace(config, serving=self._with_same_port(config.serving), pooling=pooling)
                async with llm_process(placed, report, self._logbook, self._api.healthy, settings.command) as process:
                    self._process = process
                    with noted(settings.data_dir, "llm", config.model_id, process.pid):
                        async with self._watchdog.over(process):
                            yield process
        except FileSystemError as error:
            raise ServerError(f"The model {config.model_id} could not be loaded: {error.message}") from error
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise ServerError(
                f"The model {config.model_id} could not be loaded: {error.strerror or error}{where}. See that the "
                "file is there, and that genaid may write below its data directory."
            ) from error

    def _with_same_port(self, serving: Serving) -> Serving:
        """Where any free port will do, the one that callers know from the life before."""
        if serving.port or not self._last_port:
            return serving
        try:
            require_free([Address(serving.host, self._last_port)])
        except PortInUseError:
            return serving
        return replace(serving, port=self._last_port)

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
