"""One turn of the owner of the image engine: what is known, and the changes that its step is made of."""

from collections.abc import Callable
from dataclasses import replace

from genaid_server.image.core.engine_state import (
    NOBODY,
    AskRoom,
    BeginLife,
    Effect,
    Ending,
    EndLife,
    EngineState,
    LeaveRoom,
    Life,
    LifeStage,
    LoadStage,
    Note,
    PendingLoad,
    PendingStart,
    StartStage,
    Tell,
)
from genaid_server.image.core.settings import ImageModel
from genaid_server.kit.errors import DomainError, InsufficientResourcesError
from genaid_server.supervision.stop_reason import StopReason
from genaid_server.supervision.supervisor import ServerState


class Turn:
    """What is known at `now`, and what is to be done about it."""

    def __init__(self, state: EngineState, now: float) -> None:
        self.state, self.now = state, now
        self.effects: list[Effect] = []

    # --- what is known

    @property
    def _running(self) -> bool:
        return self.state.life is not None and self.state.life.stage is LifeStage.RUNNING

    @property
    def _awaited(self) -> bool:
        """Whether somebody waits for a life to run."""
        return bool(self.state.loads) or any(start.stage is StartStage.LOADING for start in self.state.starts)

    def _runs(self, start: PendingStart, model: ImageModel | None) -> bool:
        """Whether the present life is what is started. `model` is the one that would be loaded, None if not known."""
        life = self.state.life
        if life is None or not life.up:
            return False
        if life.model is None:
            return life.settings == start.settings
        wanted = model.id if model else start.settings.model_id
        same = life.settings.resolved(life.model.id) == start.settings.resolved(wanted)
        return same and (model is None or model == life.model)

    def _load(self, ticket: int) -> PendingLoad | None:
        return next((load for load in self.state.loads if load.ticket == ticket), None)

    # --- the life

    def _begin_life(self, event: str) -> None:
        crashed, number = self.state.shown.state is ServerState.CRASHED, self.state.lives + 1
        wanted = [load.size for load in self.state.loads] or [self.state.wanted]
        size = max(wanted, key=lambda size: size.width * size.height)
        life = Life(number, self.state.settings, size)
        self._change(life=life, lives=number)
        self._show(
            state=ServerState.STARTING,
            pid=None,
            started_at=None,
            loaded=0,
            to_load=0,
            load_seconds=None,
            restarts=self.state.shown.restarts + crashed,
        )
        self._happened("restarting" if crashed else event)
        self.effects.append(BeginLife(number, life.settings, life.size))

    def _end_life(self, ending: Ending) -> None:
        """End it, or have it end for this instead."""
        self._leave_rooms()
        if self.state.life is not None and self.state.life.stage is not LifeStage.ENDING:
            self.effects.append(EndLife(self.state.life.number))
            self._show(state=ServerState.STOPPING)
        self._change_life(stage=LifeStage.ENDING, ending=ending)

    def _leave_rooms(self) -> None:
        """A larger lease of a life that is over is of no use: who waits for it waits for the next life."""
        for load in self.state.loads:
            if load.stage is LoadStage.ASKING_ROOM:
                self.effects.append(LeaveRoom(load.ticket))
                if load.left:
                    self._drop_load(load)
                else:
                    self._replace_load(load, stage=LoadStage.WAITING)

    def _refused(self, error: DomainError) -> None:
        """There was no process yet that could have crashed."""
        reason = self.state.stop_reason
        if isinstance(error, InsufficientResourcesError):
            reason = StopReason.REFUSED_FOR_MEMORY
        self._show_stopped(Ending("stopped", reason), error)
        self._fail(error)

    def _crashed(self, life: Life, error: DomainError) -> None:
        self._show(state=ServerState.CRASHED, pid=None, started_at=None)
        self._show_error(error)
        self._change(stop_reason=StopReason.CRASHED)
        self._happened("crashed", error.message)
        if life.stage is LifeStage.STARTING:
            self._fail(error)

    def _fail(self, error: DomainError) -> None:
        """Tell all who have waited for a life that did not come to run."""
        for start in self.state.starts:
            if start.stage is StartStage.LOADING:
                self._drop_start(start, error)
        for load in self.state.loads:
            if load.stage is LoadStage.WAITING:
                self._drop_load(load, error)

    def _show_stopped(self, ending: Ending, error: DomainError | None = None) -> None:
        if self.state.shown.state is not ServerState.STOPPED:
            self._show(state=ServerState.STOPPED, pid=None, started_at=None)
            if error is not None:
                self._show_error(error)
            self._happened(ending.event, error.message if error else "")
        self._change(stop_reason=ending.reason)

    def _show_error(self, error: DomainError) -> None:
        self._show(last_error=error.message, last_error_reason=error.reason)

    # --- who waits

    def _serve(self, load: PendingLoad, life: Life) -> None:
        if life.size.covers(load.size):
            self._drop_load(load)
        else:
            self._replace_load(load, stage=LoadStage.ASKING_ROOM)
            self.effects.append(AskRoom(load.ticket, life.number, load.size))

    # --- changes

    def _change(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]

    def _change_life(self, **changes: object) -> None:
        if self.state.life is not None:
            self._change(life=replace(self.state.life, **changes))  # type: ignore[arg-type]

    def _show(self, **changes: object) -> None:
        self._change(shown=replace(self.state.shown, **changes))  # type: ignore[arg-type]

    def _happened(self, event: str, error: str = "") -> None:
        self._show(event=event)
        self.effects.append(Note(event, error))

    def _tell(self, ticket: int, error: DomainError | None = None) -> None:
        if ticket != NOBODY:
            self.effects.append(Tell(ticket, error, self.state))

    def _wait(self, start: PendingStart, stage: StartStage) -> None:
        self._change(starts=(*self.state.starts, replace(start, stage=stage)))

    def _drop_start(self, start: PendingStart, error: DomainError | None = None) -> None:
        self._change(starts=_without(self.state.starts, lambda each: each.ticket == start.ticket))
        self._tell(start.ticket, error)

    def _replace_load(self, load: PendingLoad, **changes: object) -> PendingLoad:
        changed = replace(load, **changes)  # type: ignore[arg-type]
        self._change(loads=tuple(changed if each.ticket == load.ticket else each for each in self.state.loads))
        return changed

    def _drop_load(self, load: PendingLoad, error: DomainError | None = None) -> None:
        """It waits no more: who has left is told so, else who waits."""
        self._change(loads=_without(self.state.loads, lambda each: each.ticket == load.ticket))
        if load.left:
            self._tell(load.left)
        self._tell(load.ticket, error)


def _without[T](items: tuple[T, ...], gone: Callable[[T], bool]) -> tuple[T, ...]:
    return tuple(item for item in items if not gone(item))
