"""The owner of the image engine's state: it hands events to the step, and carries out the effects that it decides.

Events are taken one after the other, each whole before the next: nothing is awaited in between. What is to be done runs
in tasks beside the queue, and comes back as events.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from genaid_server.image.core.engine_lease import UseReports
from genaid_server.image.core.engine_life import EngineLife
from genaid_server.image.core.engine_state import (
    Announce,
    AskModel,
    AskProspect,
    AskRoom,
    BeginLife,
    Died,
    Effect,
    EndLife,
    EngineState,
    Event,
    LeaveRoom,
    ModelCame,
    Note,
    ProspectCame,
    RoomCame,
    SetTimer,
    StopAsked,
    Tell,
    TimeUp,
)
from genaid_server.image.core.engine_step import step
from genaid_server.image.core.lease import SMALLEST, EngineNeed, LeaseClient, ManagerAwayError
from genaid_server.image.core.process import EngineProcess
from genaid_server.image.core.settings import ImageModel
from genaid_server.kit.backoff import Backoff
from genaid_server.kit.errors import DomainError, ServerError
from genaid_server.kit.event_queue import EventQueue
from genaid_server.supervision.logbook import Level, Logbook

log = logging.getLogger(__name__)

ANNOUNCE_AGAIN: Final = Backoff(0.5, 30.0)

type Told = tuple[EngineState, EngineProcess | None]
"""What who waits is told: what was known of the engine then, and the process of its newest life."""


class EngineOwner:
    """Owner of what the image engine is and is to do. `changed` is called once events have been taken."""

    def __init__(
        self,
        state: EngineState,
        manager: LeaseClient,
        tenant_id: str,
        logbook: Logbook,
        changed: Callable[[], None],
        *,
        command: Sequence[str] = (),
        data_dir: Path | None = None,
    ) -> None:
        self.state = state
        self.life: EngineLife | None = None  # the newest one
        self.reports = UseReports(manager)
        self._manager, self._tenant_id, self._logbook = manager, tenant_id, logbook
        self._command, self._data_dir = command, data_dir
        self._events: EventQueue[Event] = EventQueue(self._take, changed)
        self._tickets = 0
        self._waiting: dict[int, asyncio.Future[Told]] = {}
        self._rooms: dict[int, asyncio.Task[bool | DomainError]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._announcing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ticket(self) -> "tuple[int, asyncio.Future[Told]]":
        """A number for somebody who waits, and what he waits for. Raises in it what a Tell says."""
        self._tickets += 1
        told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._waiting[self._tickets] = told
        return self._tickets, told

    def post(self, event: Event) -> None:
        """Something has happened, or somebody wants something."""
        self._events.post(event)

    def look(self) -> None:
        """Where the process has just died, say so: it would be given to whoever asks for the engine."""
        if self.life is not None and self.life.process is not None and not self.life.process.alive:
            self.post(Died(self.life.number))

    async def close(self) -> None:
        """End the engine for good, and all that is done for it."""
        ticket, stopped = self.ticket()
        self.post(StopAsked(ticket, closing=True))
        await stopped
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))
        await self.reports.close()

    def _take(self, event: Event) -> None:
        self.state, effects = step(self.state, event, asyncio.get_running_loop().time())
        for effect in effects:
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Tell():
                self._tell(effect)
            case Note(event, error):
                level = Level.ERROR if event == "crashed" else Level.INFO
                self._logbook.append(level, f"engine {event}" + (f": {error}" if error else ""))
                cause = error.partition("\n")[0]  # the rest repeats lines of the engine's log
                tell = log.error if event == "crashed" else log.info
                tell("the image engine: %s%s", event, f": {cause}" if cause else "")
            case BeginLife():
                self._begin(effect)
            case EndLife(number):
                if self.life is not None and self.life.number == number:
                    self.life.end()
            case SetTimer(at):
                self._set_timer(at)
            case _:
                self._ask(effect)

    def _ask(self, effect: Effect) -> None:
        """What the resource manager is asked or told, or no more."""
        match effect:
            case AskProspect(ticket, settings):
                need = EngineNeed(settings.model_id, settings.variant, settings.options, SMALLEST)
                asked = self._spawn(_outcome(self._manager.prospect(need)))
                _then(asked, lambda prospect: self.post(ProspectCame(ticket, prospect)))
            case AskModel(ticket):
                _then(self._spawn(_outcome(self._default())), lambda model: self.post(ModelCame(ticket, model)))
            case AskRoom():
                self._ask_room(effect)
            case LeaveRoom(ticket):
                if (room := self._rooms.get(ticket)) is not None:
                    room.cancel()
            case Announce(model_id):
                if self._announcing is not None:
                    self._announcing.cancel()
                self._announcing = self._spawn(self._announce(model_id))

    def _begin(self, effect: BeginLife) -> None:
        self.life = EngineLife(
            effect,
            self._manager,
            self._tenant_id,
            self._logbook,
            self.reports,
            self.post,
            command=self._command,
            data_dir=self._data_dir,
        )
        self.life.begin()

    def _tell(self, tell: Tell) -> None:
        told = self._waiting.pop(tell.ticket, None)
        if told is None or told.done():  # who waited has left
            return
        if tell.error is not None:
            told.set_exception(tell.error)
        else:
            told.set_result((tell.then, self.life.process if self.life else None))

    def _set_timer(self, at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(at, self.post, TimeUp(at)) if at is not None else None

    def _ask_room(self, effect: AskRoom) -> None:
        life = self.life
        assert life is not None  # noqa: S101 - room is asked for a life that runs
        room = self._rooms[effect.ticket] = self._spawn(_outcome(life.make_room(effect.size)))

        def came(room: "asyncio.Task[bool | DomainError]") -> None:
            if self._rooms.get(effect.ticket) is room:
                del self._rooms[effect.ticket]
            self.post(RoomCame(effect.ticket, effect.life, False if room.cancelled() else room.result()))

        room.add_done_callback(came)

    async def _default(self) -> ImageModel | None:
        try:
            return await self._manager.resolve("", self._tenant_id)
        except ManagerAwayError:
            return None

    async def _announce(self, model_id: str) -> None:
        """Tell the manager which model was chosen, for those who ask it what the next image would take."""
        failures = 0
        while isinstance(await _outcome(self._manager.resolve(model_id, self._tenant_id)), ManagerAwayError):
            failures += 1
            await asyncio.sleep(ANNOUNCE_AGAIN.delay(failures))

    def _spawn[T](self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(work, name="image engine effect")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _then[T](task: "asyncio.Task[T]", act: Callable[[T], None]) -> None:
    task.add_done_callback(lambda done: None if done.cancelled() else act(done.result()))


async def _outcome[T](question: Coroutine[Any, Any, T]) -> T | DomainError:
    try:
        return await question
    except DomainError as error:
        return error
    except Exception:  # whoever waits has to be told
        log.exception("asking the resource manager failed unexpectedly")
        return ServerError("Internal error while the resource manager was asked.")
