"""One life of the LLM engine: the memory, the model's lock, the process and what watches it, all or nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from genaid_server.kit.address import Address, require_free
from genaid_server.kit.errors import FileSystemError, PortInUseError, ServerError
from genaid_server.kit.watchable import Watchable
from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.leases.lease import Lease, LeaseState
from genaid_server.resource.core.leases.leases import Leases
from genaid_server.resource.core.leases.plan import TenantKind
from genaid_server.resource.core.llm.config import LlmEngineConfig, Serving
from genaid_server.resource.core.llm.deciding import Decider, Decision
from genaid_server.resource.core.llm.events import Event, Granted, Launch, LetStay, Reclaimed, Renewed
from genaid_server.resource.core.llm.process import LlmProcess, llm_process
from genaid_server.resource.core.llm.slots import SlotsApi
from genaid_server.resource.core.llm.watchdog import Watchdog
from genaid_server.supervision.logbook import Level, Logbook
from genaid_server.supervision.model_lock import held, lock_of
from genaid_server.supervision.notes import noted
from genaid_server.supervision.supervisor import Report, RestartPolicy


class EngineApi(SlotsApi, Protocol):
    """What a running engine can be asked."""

    async def healthy(self, host: str, port: int, timeout: float) -> bool:
        """Whether it says within `timeout` seconds that its model is loaded. Never raises."""


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


class Lives:
    """Begins lives of the engine. `tell` is told of their leases, `on_change` of their health."""

    def __init__(
        self,
        decider: Decider,
        advisor: Advisor,
        leases: Leases,
        logbook: Logbook,
        api: EngineApi,
        settings: LlmSettings,
        tell: Callable[[Event], None],
        on_change: Callable[[], None],
    ) -> None:
        self._decider, self._advisor, self._leases, self._logbook = decider, advisor, leases, logbook
        self._api, self._settings, self._tell = api, settings, tell
        self._watchdog: Final = Watchdog(settings.health_interval, settings.health_failures, logbook, on_change)
        self.count = 0
        self.newest: LlmProcess | None = None
        self._launch = 0

    @property
    def answers(self) -> bool:
        """Whether the newest life answered its last health check."""
        return self._watchdog.answers

    async def check_health(self) -> None:
        """Ask the newest life for its health now."""
        process = self.newest
        if process is not None:
            answers = await process.healthy()
            if process is self.newest:
                self._watchdog.tell(answers)

    @asynccontextmanager
    async def live(self, launch: Launch, report: Report) -> AsyncIterator[LlmProcess]:
        """One life, from the memory that it waits for to the end of its process.

        The model is looked up now: its files may be others than when this was decided.
        """
        decision = await self._decider.renew(launch.decision)
        if decision != launch.decision:
            self._tell(Renewed(launch.number, decision))
        request = self._decider.lease_request(decision.config, self._leases.total)
        async with self._leases.hold(replace(request, background=launch.background)) as held:
            await held.granted()
            self._tell(Granted(launch.number))
            async with (
                _followed(held.lease, launch.number, self._tell),
                self._process(decision, self._port(launch), report) as process,
            ):
                yield process

    def _port(self, launch: Launch) -> int:
        """The port that callers know; a life that follows a crash has the one before it to ask."""
        same = self.newest is not None and self._launch == launch.number
        self._launch = launch.number
        return self.newest.port if same and self.newest is not None else launch.port

    @asynccontextmanager
    async def _process(self, decision: Decision, port: int, report: Report) -> AsyncIterator[LlmProcess]:
        config, settings = decision.config, self._settings
        self.count += 1
        self._logbook.append(Level.INFO, _beginning(config))
        try:
            async with held(lock_of(config.model_path, config.model_id)):
                pooling = await self._advisor.pooling(config.model_id)
                placed = replace(config, serving=_on_port(config.serving, port), pooling=pooling)
                command: Sequence[str] = settings.command
                async with llm_process(placed, report, self._logbook, self._api.healthy, command) as process:
                    self.newest = process
                    with noted(settings.data_dir, TenantKind.LLM, config.model_id, process.pid):
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


@asynccontextmanager
async def _followed(lease: Watchable[Lease], launch: int, tell: Callable[[Event], None]) -> AsyncIterator[None]:
    """Tell, for the time of the block, when the lease is being reclaimed, and when it is no longer."""

    async def follow() -> None:
        async for now in lease.watch():
            tell(Reclaimed(launch, now.reason) if now.state is LeaseState.RECLAIM else LetStay(launch))

    following = asyncio.create_task(follow(), name="LLM lease follower")
    try:
        yield
    finally:
        following.cancel()
        await asyncio.wait([following])
        if not following.cancelled():
            following.result()


def _beginning(config: LlmEngineConfig) -> str:
    llm = config.llm
    return (
        f"starting with {config.model_id}: {llm.parallel} x {llm.context_size} tokens of context, "
        f"{llm.threads} threads, {llm.gpu_layers} layers on the GPU, {config.variant}"
    )


def _on_port(serving: Serving, port: int) -> Serving:
    """Where any free port will do, the one that callers know from the life before."""
    if serving.port or not port:
        return serving
    try:
        require_free([Address(serving.host, port)])
    except PortInUseError:
        return serving
    return replace(serving, port=port)
