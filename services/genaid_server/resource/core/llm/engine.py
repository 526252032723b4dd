"""The LLM engine and its one owner.

Start, stop, restart, offload, return and recover are commands to it. What is to be done follows from `transitions`;
here it is done, outside the owner's turn, and what comes of it is told to the owner as an event.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Final, Self

from genaid_server.kit.address import Address, require_free
from genaid_server.kit.errors import DomainError, ModelNotFoundError, ServerError
from genaid_server.kit.event_queue import EventQueue
from genaid_server.kit.request_ids import RequestIds, check_request_id
from genaid_server.kit.watchable import Watchable
from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.leases.leases import Leases
from genaid_server.resource.core.leases.plan import TenantKind
from genaid_server.resource.core.leases.usage import Usage
from genaid_server.resource.core.llm import events as on
from genaid_server.resource.core.llm.config import LlmEngineConfig, LlmRequest, check_serving
from genaid_server.resource.core.llm.deciding import SLOTS, Decider, Decision
from genaid_server.resource.core.llm.events import Effect, Event, Launch, LlmState
from genaid_server.resource.core.llm.info import LlmInfo, llm_info, offloaded_llm
from genaid_server.resource.core.llm.life import EngineApi, Lives, LlmSettings
from genaid_server.resource.core.llm.offloaded import OffloadedLlm
from genaid_server.resource.core.llm.process import LlmProcess
from genaid_server.resource.core.llm.saved import SavedFile
from genaid_server.resource.core.llm.slots import EngineEndpoint, PromptCaches, discard
from genaid_server.resource.core.llm.transitions import outdated, step
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.supervision.logbook import Level, Logbook
from genaid_server.supervision.notes import running
from genaid_server.supervision.supervisor import Report, ServerState, Snapshot, Supervisor

log = logging.getLogger(__name__)

NAME: Final = "LLM engine"


class LlmEngine:
    """The LLM engine; use it as an async context manager, which ends the child.

    Once `recover` is called it brings back what ran when an earlier process was killed; a service that ends in order
    after that leaves nothing to come back. One that fails, also because another service beside it could not start,
    leaves what it found, or what runs.
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
        self._logbook, self._api, self._leases, self._settings = logbook, api, leases, settings
        self._decider = Decider(
            store, advisor, usage, settings.data_dir, program=settings.program, command=settings.command
        )
        self._lives = Lives(self._decider, advisor, leases, logbook, api, settings, self._tell, self._publish)
        self._supervisor: Supervisor[Launch, LlmProcess] = Supervisor(NAME, self._live, settings.policy)
        self._file, self._slots = SavedFile(settings.data_dir), settings.data_dir / SLOTS
        self._state = LlmState()
        self._events: EventQueue[Event] = EventQueue(self._take, self._publish)
        self._recovered = False
        self._waiters: dict[int, asyncio.Future[bool]] = {}
        self._asked = 0
        self._requests: RequestIds[asyncio.Future[bool]] = RequestIds()
        self._effects: dict[asyncio.Task[None], Effect] = {}
        self._follower: asyncio.Task[None] | None = None
        self.info: Watchable[LlmInfo] = Watchable(self.present())

    async def __aenter__(self) -> Self:
        await self._supervisor.__aenter__()
        self._follower = asyncio.create_task(self._follow(), name=f"{NAME} follower")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell(on.Close())
        await self._supervisor.close()
        failed = kind is not None and issubclass(kind, Exception)
        if self._recovered and not failed:
            self._file.keep(None)
            discard(self._slots)
        self._tell(on.Halted(self._state.newest))
        if self._effects:
            await asyncio.wait(list(self._effects))
        if self._follower is not None:
            await self._follower
        self.info.close()

    def closing(self) -> None:
        """Nothing starts any more, and every watch ends: the service is about to stop."""
        self._tell(on.Close())
        self.info.close()

    # --- commands

    async def start(self, request: LlmRequest, *, replace_running: bool = False, request_id: str = "") -> LlmInfo:
        """Load a model and return when it answers; a start with an equal request is joined.

        A repeat of a `request_id` returns what the original made, and starts nothing.
        Raises ModelNotFoundError, InvalidRequestError, PortInUseError, InsufficientResourcesError, BinaryError;
        ServerBusyError where it runs otherwise and `replace_running` is not set; ServerError where it doesn't load, or
        is stopped or replaced meanwhile. A caller who leaves leaves it loading: what ran before may be gone already.
        """
        check_request_id(request_id)
        check_serving(request.serving)
        if (original := self._requests.known(request_id)) is not None:
            await asyncio.shield(original)
            return self.present()
        self._decider.language_model(request.model_id)
        waiter = self._next_waiter()
        if request_id:
            self._requests.remember(request_id, self._waiters[waiter])
        self._tell(on.Start(request, replace_running, waiter))
        await self._answer(waiter, repeatable=bool(request_id))
        return self.present()

    async def stop(self) -> LlmInfo:
        """End the engine, whatever it does; returns when it is dead. One that was offloaded does not come back."""
        await self._command(on.Stop(self._next_waiter()))
        return self.present()

    async def restart(self) -> LlmInfo:
        """Stop, and start with the same model and options. Raises ServerError before a first start; else as `start`."""
        await self._command(on.Restart(self._next_waiter()))
        return self.present()

    async def forget(self) -> bool:
        """Give up on an LLM that was offloaded: it stays stopped. False where there was none."""
        return await self._command(on.Stop(self._next_waiter(), offloaded_only=True))

    def recover(self, configured: LlmRequest | None = None) -> None:
        """The service stands: bring back what ran before, or else load what is configured, in the background."""
        self._recovered = True
        saved, decision = self._file.read(), None
        if saved is not None:
            try:
                decision = self._decider.decided(saved)
            except ModelNotFoundError as error:
                self._logbook.append(Level.WARN, f"what ran before is not brought back: {error.message}")
        self._tell(on.Recover(saved, decision, self._settle_delay(), configured))

    # --- views

    @property
    def offloaded(self) -> OffloadedLlm | None:
        """The LLM that makes room for another engine, or has, and comes back."""
        return offloaded_llm(self._state)

    @property
    def model_id(self) -> str | None:
        """The model of the newest start, also while that is being decided; None before the first one."""
        state = self._state
        if state.deciding is not None:
            return state.deciding.request.model_id
        return state.decision.request.model_id if state.decision is not None else None

    def use_of(self, model_id: str) -> str | None:
        """Why the model of that id has to stay where it is; None where it may go."""
        wanted = self._state.wanted
        if wanted is None or wanted.model_id != model_id:
            return None
        return f"The LLM engine runs with {model_id}, or is on its way back with it. Stop it first: genaid llm stop"

    async def checked(self) -> LlmInfo:
        """The engine now, its health asked for anew."""
        if self._life.state is ServerState.RUNNING:
            await self._lives.check_health()
        return self.present()

    def present(self) -> LlmInfo:
        """The engine as it is known to be."""
        process = self._lives.newest
        return llm_info(
            self._state,
            self._life,
            answers=self._lives.answers,
            port=process.port if process is not None else None,
            generation=self._lives.count,
        )

    @property
    def _life(self) -> Snapshot[Launch]:
        return self._supervisor.snapshot.value

    def _publish(self) -> None:
        self.info.set(self.present())

    def _settle_delay(self) -> float:
        """How long image engines of other processes have to tell of themselves, where there are any."""
        others = [note for note in running(self._settings.data_dir) if note.kind == TenantKind.IMAGE]
        return self._settings.settle_delay if others else 0.0

    # --- the owner's turn

    def _tell(self, event: Event) -> None:
        self._events.post(event)

    def _take(self, event: Event) -> None:
        self._state, effects = step(self._state, event, time.time())
        self._end_outdated()
        for effect in effects:
            self._act(effect)

    def _act(self, effect: Effect) -> None:
        """Do what is done at once, and begin what takes its time."""
        match effect:
            case on.TellWaiter(waiter, error, acted):
                _settle(self._waiters.get(waiter), error, acted=acted)
            case on.Say(level, message):
                self._logbook.append(level, message)
            case on.Keep(saved):
                self._file.keep(saved)
            case on.DiscardCaches(model_id):
                discard(self._slots / model_id)
            case _:
                task = asyncio.create_task(self._work(effect), name=f"{NAME}: {type(effect).__name__}")
                self._effects[task] = effect
                task.add_done_callback(self._worked)

    def _end_outdated(self) -> None:
        for task, effect in self._effects.items():
            if outdated(effect, self._state):
                task.cancel()

    def _worked(self, task: "asyncio.Task[None]") -> None:
        effect = self._effects.pop(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("the %s failed unexpectedly", NAME, exc_info=error)
        internal = ServerError(f"The {NAME} failed unexpectedly ({type(error).__name__}).")
        match effect:  # whoever waits for this must not wait for ever
            case on.Decide(number):
                self._tell(on.Refused(number, internal))
            case on.Launch(number):
                self._tell(on.Failed(number, internal))
            case on.SaveCaches(plan):
                self._tell(on.CachesSaved(plan, {}))
            case on.RestoreCaches(plan):
                self._tell(on.CachesRestored(plan))
            case on.Halt(number):
                self._tell(on.Halted(number))

    # --- effects

    async def _work(self, effect: Effect) -> None:
        match effect:
            case on.Decide(number, request, again):
                await self._decide(number, request, again)
            case on.Launch(number):
                await self._launch(effect, number)
            case on.Halt(number, event):
                with suppress(ServerError):  # the service is about to stop, which ends the process as well
                    await self._supervisor.stop(event)
                    self._tell(on.Halted(number))
            case on.SaveCaches(plan, endpoint, model_id):
                self._tell(on.CachesSaved(plan, await self._save(self._caches(endpoint, model_id))))
            case on.RestoreCaches(plan, endpoint, model_id, slots):
                await self._caches(endpoint, model_id).restore(slots)
                self._tell(on.CachesRestored(plan))
            case on.Wait(plan, seconds):
                await asyncio.sleep(seconds)
                self._tell(on.Due(plan))

    async def _decide(self, number: int, request: LlmRequest, again: Decision | None) -> None:
        try:
            if again is None:
                decision = await self._decider.decide(self._decider.language_model(request.model_id), request)
            else:
                decision = await self._decider.renew(again)
            lease_request = self._decider.lease_request(decision.config, self._leases.total)
            (await self._leases.plan(lease_request)).require_possible()
            self._require_port(decision.config)
        except DomainError as error:
            self._refused(number, request, error)
        else:
            self._tell(on.Decided(number, decision))

    def _refused(self, number: int, request: LlmRequest, error: DomainError) -> None:
        alone = not any(waiter.wish == number for waiter in self._state.waiters)
        if alone:  # nobody else tells
            self._logbook.append(Level.ERROR, f"not started with {request.model_id}: {error.message}")
        self._tell(on.Refused(number, error))

    def _require_port(self, config: LlmEngineConfig) -> None:
        """Raises PortInUseError where somebody else has the port that is asked for."""
        address, process = Address(config.serving.host, config.serving.port), self._lives.newest
        own = process.port if process is not None and self._life.pid is not None else None
        if address.port and address.port != own:
            require_free([address])

    async def _launch(self, launch: Launch, number: int) -> None:
        try:
            process = await self._supervisor.ensure_ready(launch, replace=True)
        except DomainError as error:
            self._tell(on.Failed(number, error))
        else:
            self._tell(on.Serves(number, _endpoint(launch, process)))

    async def _save(self, caches: PromptCaches) -> dict[int, int]:
        """Wait for requests in flight, and save the prompt caches."""
        seconds = self._settings.drain_timeout
        if not await caches.drain(seconds):
            self._logbook.append(Level.WARN, f"requests that took longer than {seconds:g} s are cut off")
        slots = await caches.save()
        process, decision = self._lives.newest, self._state.decision
        if slots and process is not None and decision is not None:  # it has worked, so it shows what it takes
            self._decider.learn(decision.config, process.pid)
        return slots

    def _caches(self, endpoint: EngineEndpoint, model_id: str) -> PromptCaches:
        return PromptCaches(self._api, endpoint, self._slots / model_id, self._logbook)

    # --- waiting

    def _next_waiter(self) -> int:
        self._asked += 1
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters[self._asked] = answer
        return self._asked

    async def _command(self, command: on.Stop | on.Restart) -> bool:
        self._tell(command)
        return await self._answer(command.waiter)

    async def _answer(self, waiter: int, *, repeatable: bool = False) -> bool:
        """Wait for it. Who leaves is counted no more, unless a repeat may ask for the answer."""
        answer = self._waiters[waiter]
        answer.add_done_callback(lambda _: self._answered(waiter, answer))
        try:
            return await asyncio.shield(answer)
        finally:
            if not answer.done() and not repeatable:
                self._tell(on.Left(waiter))
                answer.cancel()

    def _answered(self, waiter: int, answer: "asyncio.Future[bool]") -> None:
        del self._waiters[waiter]
        if answer.cancelled() or answer.exception() is not None:  # a repeat is another try
            self._requests.forget(lambda made: made is answer)

    # --- the supervisor

    @asynccontextmanager
    async def _live(self, launch: Launch, report: Report) -> AsyncIterator[LlmProcess]:
        async with self._lives.live(launch, report) as process:
            yield process

    async def _follow(self) -> None:
        """Log what happens to the process, and tell the owner of lives that end or begin by themselves."""
        event = ""
        async for life in self._supervisor.snapshot.watch():
            if life.event != event:
                event = life.event
                level = Level.ERROR if life.state is ServerState.CRASHED else Level.INFO
                cause = life.last_error.partition("\n")[0]  # the rest repeats lines that stand above
                self._logbook.append(level, f"engine {event}" + (f": {cause}" if cause else ""))
            launch, process = life.config, self._lives.newest
            if launch is not None and life.state is ServerState.CRASHED:
                self._tell(on.Crashed(launch.number, life.last_error))
            elif launch is not None and process is not None and life.state is ServerState.RUNNING:
                self._tell(on.Serves(launch.number, _endpoint(launch, process)))
            self._publish()


def _endpoint(launch: Launch, process: LlmProcess) -> EngineEndpoint:
    serving = launch.decision.config.serving
    return EngineEndpoint(serving.host, process.port, serving.api_key)


def _settle(answer: "asyncio.Future[bool] | None", error: DomainError | None, *, acted: bool) -> None:
    if answer is None or answer.done():
        return
    if error is None:
        answer.set_result(acted)
    else:
        answer.set_exception(error)
        answer.exception()  # whoever asked may have left
