"""What the image engine is to do: a pure step from what is known and what has happened to what is known then, and what
is to be done about it.

Nothing is awaited here, and nothing is asked: what must be known comes as an event. A command that comes later wins
over an earlier one, also where that is half done. Whoever waits is told by what the state has become.
"""

from dataclasses import replace

from genaid_server.image.core.engine_state import (
    Announce,
    AskModel,
    AskProspect,
    ChoiceGone,
    Died,
    Effect,
    Ended,
    Ending,
    EngineState,
    Event,
    JobStuck,
    LeaseChanged,
    LeaseGranted,
    LeaveRoom,
    Life,
    LifeStage,
    LoadAsked,
    Loading,
    LoadLeft,
    LoadStage,
    ModelCame,
    PendingLoad,
    PendingStart,
    ProspectCame,
    Ready,
    RoomCame,
    SetTimer,
    Spawned,
    StartAsked,
    StartStage,
    StopAsked,
    TimeUp,
    UseBegun,
    UseOver,
)
from genaid_server.image.core.engine_turn import Turn
from genaid_server.image.core.lease import SMALLEST, Prospect
from genaid_server.image.core.settings import ImageModel
from genaid_server.kit.errors import DomainError, ServerBusyError, ServerError
from genaid_server.supervision.stop_reason import StopReason
from genaid_server.supervision.supervisor import ServerState

STOPPED = Ending("stopped", StopReason.STOPPED)
UNLOADED = Ending("unloaded", StopReason.UNLOADED_WHEN_IDLE)
OFFLOADED = Ending("unloaded", StopReason.OFFLOADED)


def step(state: EngineState, event: Event, now: float) -> tuple[EngineState, tuple[Effect, ...]]:
    """What is known after an event, and what is to be done. `now` is by the clock of the state's times, in seconds."""
    turn = _Turn(state, now)
    turn.take(event)
    turn.settle()
    return turn.state, tuple(turn.effects)


def stopped_error() -> ServerError:
    """What a generation gets while the engine is stopped."""
    return ServerError("The image engine is stopped. Start it first: genaid engine start")


class _Turn(Turn):
    """One event, and all that follows from it."""

    def take(self, event: Event) -> None:
        match event:
            case StartAsked():
                self._on_start(PendingStart(event.ticket, event.settings, event.keep_alive, event.replace))
            case ProspectCame(ticket, answer):
                self._on_prospect(ticket, answer)
            case StopAsked():
                self._on_stop(event)
            case ChoiceGone(settings) if settings == self.state.settings:
                self._change(settings=settings.resolved(""))
                self.effects.append(Announce(""))
            case UseBegun():
                self._change(users=self.state.users + 1)
            case UseOver():
                self._change(users=self.state.users - 1, idle_since=self.now)
            case LoadAsked():
                self._on_load(PendingLoad(event.ticket, event.size, event.model))
            case ModelCame(ticket, answer):
                self._on_model(ticket, answer)
            case RoomCame():
                self._on_room(event)
            case LoadLeft(ticket, reply):
                self._on_left(ticket, reply)
            case TimeUp(at):
                self._on_time(at)
            case _:
                self._on_life(event)

    def _on_life(self, event: Event) -> None:
        """What happens to a life, as long as it is the present one."""
        life = self.state.life
        match event:
            case JobStuck(number, reply):
                self._on_stuck(life if life and life.number == number else None, reply)
            case _ if life is None or event.life != life.number:  # type: ignore[union-attr]
                pass
            case LeaseGranted(_, model, options):
                self._change_life(model=model, options=options)
            case LeaseChanged(_, leave_after):
                self._change_life(leave_after=leave_after)
            case Spawned(_, pid, at):
                self._show(pid=pid, started_at=at)
            case Loading(_, done, total):
                self._show(loaded=done, to_load=total)
            case Ready(_, seconds) if life.stage is LifeStage.STARTING:
                self._on_ready(seconds)
            case Died() if life.stage is LifeStage.RUNNING:
                self._leave_rooms()
                self._change_life(stage=LifeStage.DYING)
            case Ended(_, error):
                self._on_ended(life, error)
            case _:  # it is being ended
                pass

    def settle(self) -> None:
        """Begin the life that somebody waits for, and set the timer."""
        if self.state.life is None and self._awaited:
            self._begin_life("started")
        due = self._due()
        if due != self.state.unload_at:
            self._change(unload_at=due)
            self.effects.append(SetTimer(due))

    # --- commands

    def _on_start(self, start: PendingStart) -> None:
        if self.state.closing:
            self._tell(start.ticket, _closing_error())
        elif not start.settings.is_default and self._runs(start, None):
            self._commit(start, has_room=True)
        else:
            self._change(starts=(*self.state.starts, start))
            self.effects.append(AskProspect(start.ticket, start.settings))

    def _on_prospect(self, ticket: int, answer: Prospect | DomainError) -> None:
        start = next((each for each in self.state.starts if each.ticket == ticket), None)
        if start is None:  # another command has taken its place
            return
        self._change(starts=tuple(each for each in self.state.starts if each is not start))
        if isinstance(answer, DomainError):
            self._tell(ticket, answer)
        elif (busy := self._in_the_way(start, answer.model)) is not None:
            self._tell(ticket, busy)
        else:
            self._commit(start, answer.has_room, answer.model)

    def _in_the_way(self, start: PendingStart, model: ImageModel) -> ServerBusyError | None:
        """Why a start has to wait for what is being done."""
        life = self.state.life
        if self._runs(start, model):
            return None
        same, up = self.state.settings == start.settings, life is not None and life.up
        if (
            self.state.users and self.state.accepting and (up or not same)
        ):  # a stop has cancelled what was in the making
            return ServerBusyError("The image engine is in the middle of an image; wait for it or cancel it.")
        if start.replace or same or not (up or self._awaited):
            return None
        name = (life.model.id if life and life.model else "") or self.state.settings.model_id
        return ServerBusyError(
            f"The image engine runs already, with {name or 'a model'} and the settings that it was started with. "
            "Stop it first (genaid engine stop), or replace it (genaid engine start --replace)."
        )

    def _commit(self, start: PendingStart, has_room: bool, model: ImageModel | None = None) -> None:
        """From here on it is the newest choice."""
        runs, life = self._runs(start, model), self.state.life
        for other in self.state.starts:
            superseded = other.ticket < start.ticket or other.stage is not StartStage.ASKING
            if superseded and other.settings != start.settings:
                self._drop_start(other, ServerError("The image engine was started with other settings meanwhile."))
        self._change(settings=start.settings, keep_alive=start.keep_alive, accepting=True, idle_since=self.now)
        self.effects.append(Announce(start.settings.model_id))
        if runs:
            self._change_life(settings=start.settings)
            if self._running:
                self._tell(start.ticket)
            else:
                self._wait(start, StartStage.LOADING)
            return
        if not self.state.users:
            self._change(wanted=SMALLEST)
        if life is not None and life.up:
            self._end_life(STOPPED if has_room else OFFLOADED)
        elif life is not None:  # what was to come after it is what was chosen before
            self._change_life(ending=replace(life.ending, again=False) if life.ending else None)
        if has_room:
            self._wait(start, StartStage.LOADING)
        elif life is not None:
            self._wait(start, StartStage.SELECTING)
        else:
            self._selected()
            self._tell(start.ticket)

    def _selected(self) -> None:
        """A model is chosen that others would have to make room for: the first image loads it."""
        if self.state.shown.state is ServerState.CRASHED:
            self._show(state=ServerState.STOPPED, event="stopped")
        if self.state.stop_reason not in (StopReason.NEVER_STARTED, StopReason.OFFLOADED):
            self._change(stop_reason=StopReason.UNLOADED_WHEN_IDLE)  # it waits for work

    def _on_stop(self, stop: StopAsked) -> None:
        life = self.state.life
        self._change(accepting=False, closing=self.state.closing or stop.closing)
        for start in self.state.starts:
            self._drop_start(start, ServerError("The image engine was stopped."))
        for load in self.state.loads:
            self._drop_load(load, ServerError("The image engine was stopped."))
        if life is None:
            self._show_stopped(STOPPED)
            self._tell(stop.ticket)
            return
        self._end_life(STOPPED)
        self._change(waiting_for_end=(*self.state.waiting_for_end, stop.ticket))

    # --- generations

    def _on_load(self, load: PendingLoad) -> None:
        if not self.state.accepting:
            self._tell(load.ticket, _closing_error() if self.state.closing else stopped_error())
            return
        self._change(wanted=load.size, loads=(*self.state.loads, load))
        life = self.state.life
        if life is not None and life.up and life.model and load.model is None and self.state.settings.is_default:
            self._replace_load(load, stage=LoadStage.ASKING_MODEL)
            self.effects.append(AskModel(load.ticket))
        else:
            self._arrived(load)

    def _on_model(self, ticket: int, answer: ImageModel | DomainError | None) -> None:
        load = self._load(ticket)
        if load is None or load.stage is not LoadStage.ASKING_MODEL:
            return
        if isinstance(answer, DomainError):
            self._drop_load(load, answer)
        else:  # where nobody can be asked, what is in memory is what was decided last
            self._arrived(self._replace_load(load, stage=LoadStage.WAITING, model=answer))

    def _arrived(self, load: PendingLoad) -> None:
        life = self.state.life
        if life is None or not life.up:
            return
        if load.model is not None and life.model is not None and load.model != life.model:
            self._end_life(STOPPED)
        elif life.stage is LifeStage.RUNNING and life.leave_after == 0:  # others come first
            self._end_life(OFFLOADED)
        elif life.stage is LifeStage.RUNNING:
            self._serve(load, life)

    def _on_room(self, came: RoomCame) -> None:
        load, life = self._load(came.ticket), self.state.life
        if load is None or load.stage is not LoadStage.ASKING_ROOM or life is None or life.number != came.life:
            return
        if load.left:
            self._drop_load(load)
        elif isinstance(came.answer, DomainError):
            self._drop_load(load, came.answer)
        elif came.answer:
            if not life.size.covers(load.size):
                self._change_life(size=load.size)
            self._drop_load(load)
        else:
            self._replace_load(load, stage=LoadStage.WAITING)
            self._end_life(OFFLOADED)

    def _on_left(self, ticket: int, reply: int) -> None:
        load, life = self._load(ticket), self.state.life
        if load is None:
            self._tell(reply)
            return
        if load.stage is LoadStage.ASKING_ROOM:
            self._replace_load(load, left=reply)
            self.effects.append(LeaveRoom(ticket))
            return
        self._drop_load(load)
        if life is None or life.stage is not LifeStage.STARTING or self._awaited:
            self._tell(reply)
            return
        self._end_life(UNLOADED)
        self._change(waiting_for_end=(*self.state.waiting_for_end, reply))

    def _on_stuck(self, life: Life | None, reply: int) -> None:
        if life is None:
            self._tell(reply)
            return
        if life.stage is LifeStage.RUNNING:
            again = life.leave_after is None and self.state.accepting
            self._end_life(replace(STOPPED, again=True) if again else OFFLOADED)
        self._change(waiting_for_end=(*self.state.waiting_for_end, reply))

    # --- the life

    def _on_ready(self, seconds: float) -> None:
        self._change_life(stage=LifeStage.RUNNING)
        self._show(state=ServerState.RUNNING, load_seconds=seconds, loaded=self.state.shown.to_load)
        self._show(last_error="", last_error_reason="")
        self._happened("ready")
        self._change(idle_since=self.now)
        for start in self.state.starts:
            if start.stage is StartStage.LOADING:
                self._drop_start(start)
        for load in self.state.loads:
            life = self.state.life
            if load.stage is LoadStage.WAITING and life is not None:
                self._serve(load, life)

    def _on_ended(self, life: Life, error: DomainError | None) -> None:
        self._leave_rooms()
        self._change(life=None)
        if life.ending is not None:
            self._show_stopped(life.ending)
        elif self.state.shown.pid is None:
            self._refused(error or ServerError("The image engine was stopped before it was ready."))
        else:
            self._crashed(life, error or ServerError("The image engine ended without an error."))
        for start in self.state.starts:
            if start.stage is StartStage.SELECTING:
                self._selected()
                self._drop_start(start)
        waiting = self.state.waiting_for_end
        self._change(waiting_for_end=(), idle_since=self.now)
        for ticket in waiting:
            self._tell(ticket)
        if life.ending is not None and life.ending.again and self.state.accepting:
            self._begin_life("restarting")

    # --- the time

    def _due(self) -> float | None:
        """When an engine without work is to be unloaded."""
        life = self.state.life
        if life is None or life.stage is not LifeStage.RUNNING or self.state.users or self._awaited:
            return None
        limits = [self.state.keep_alive] if self.state.keep_alive >= 0 else []
        limits += [life.leave_after] if life.leave_after is not None else []
        return self.state.idle_since + min(limits) if limits else None

    def _on_time(self, at: float) -> None:
        life = self.state.life
        if at != self.state.unload_at or life is None:  # it was set to another time since
            return
        wanted_back = life.leave_after is not None and self.state.idle_since + life.leave_after <= at
        self._end_life(OFFLOADED if wanted_back else UNLOADED)


def _closing_error() -> ServerError:
    return ServerError("The image engine is shutting down.")
