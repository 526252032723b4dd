"""A world without processes and clocks in which the step of the image engine's owner lives: it does what the step says
when it is told to, in any order, and holds the step to what must always be true."""

from dataclasses import dataclass, field
from pathlib import Path

from genaid_server.image.core.engine_state import (
    AskModel,
    AskProspect,
    AskRoom,
    BeginLife,
    Died,
    Effect,
    Ended,
    EndLife,
    EngineState,
    Event,
    JobStuck,
    LeaseChanged,
    LeaseGranted,
    LeaveRoom,
    LifeStage,
    LoadAsked,
    LoadLeft,
    ModelCame,
    ProspectCame,
    Ready,
    RoomCame,
    SetTimer,
    Spawned,
    StartAsked,
    StopAsked,
    Tell,
    TimeUp,
    UseBegun,
    UseOver,
)
from genaid_server.image.core.engine_step import step
from genaid_server.image.core.lease import ImageSize, Prospect
from genaid_server.image.core.settings import WHOLE, EngineOptions, ImageModel, Settings
from genaid_server.kit.errors import BackendError, DomainError, InsufficientResourcesError
from genaid_server.supervision.supervisor import ServerState

SIZES = (ImageSize(64, 64), ImageSize(512, 512), ImageSize(1024, 1024))
MODELS = tuple(ImageModel(name, name, ((WHOLE, Path(name)),)) for name in ("a", "b"))
CHOICES = (Settings("", 2), Settings("a", 2), Settings("b", 2), Settings("a", 1))
NO_ROOM = InsufficientResourcesError("too little")
BROKEN = BackendError("it broke")


@dataclass
class Process:
    """A life in the world: `told_to_end`, or with a stage that it has reached."""

    number: int
    settings: Settings
    granted: bool = False
    spawned: bool = False
    ready: bool = False
    told_to_end: bool = False


@dataclass
class World:
    """What the step knows, and what it has asked for that has not come back."""

    state: EngineState = field(default_factory=lambda: EngineState(CHOICES[0], 10.0))
    now: float = 0.0
    process: Process | None = None
    prospects: list[int] = field(default_factory=list)
    models: list[int] = field(default_factory=list)
    rooms: list[AskRoom] = field(default_factory=list)
    left: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    loads: list[int] = field(default_factory=list)
    tickets: int = 0
    users: int = 0
    timer: float | None = None
    may_run: bool = True
    """Whether a start, or nothing at all, was asked for since the last stop."""

    def ticket(self) -> int:
        self.tickets += 1
        self.waiting.add(self.tickets)
        return self.tickets

    def happen(self, event: Event) -> tuple[Effect, ...]:
        """Have the step take an event, and check what comes of it."""
        self.now += 0.001
        before = self.state
        self.state, effects = step(before, event, self.now)
        for effect in effects:
            self._do(effect)
        if self.users and isinstance(event, StartAsked | ProspectCame | TimeUp):
            assert not any(isinstance(effect, EndLife) for effect in effects), "an image is in the making"
        self.check()
        return effects

    def _do(self, effect: Effect) -> None:
        match effect:
            case BeginLife(number, settings):
                assert self.process is None, "two processes at once"
                assert self.may_run, "it runs after a stop"
                self.process = Process(number, settings)
            case EndLife(number):
                assert self.process is not None
                assert self.process.number == number
                assert not self.process.told_to_end
                self.process.told_to_end = True
            case AskProspect(ticket, _):
                self.prospects.append(ticket)
            case AskModel(ticket):
                self.models.append(ticket)
            case AskRoom():
                self.rooms.append(effect)
            case LeaveRoom(ticket):
                self.left.add(ticket)
            case Tell(ticket, error):
                assert ticket in self.waiting, "told twice, or nobody"
                self.waiting.discard(ticket)
                if ticket in self.loads:
                    self.loads.remove(ticket)
                    if error is None and ticket not in self.gone:
                        self._check_served(effect)
            case SetTimer(at):
                self.timer = at
            case _:
                pass

    def _check_served(self, tell: Tell) -> None:
        life = tell.then.life
        assert life is not None
        assert life.stage is LifeStage.RUNNING
        assert self.process is not None
        assert self.process.ready
        assert not self.process.told_to_end

    def check(self) -> None:
        """What is always true."""
        life = self.state.life
        assert (life is None) == (self.process is None)
        assert self.state.unload_at == self.timer
        assert self.state.users == self.users
        if self.process is not None and life is not None:
            assert life.number == self.process.number
            assert (life.stage is LifeStage.ENDING) == self.process.told_to_end
        if not self.may_run:
            assert not self.state.accepting
            assert self.process is None or self.process.told_to_end, "it goes on after a stop"
        if self.timer is not None:
            assert not self.users
            assert self.state.shown.state is ServerState.RUNNING

    # --- what people do

    def start(self, settings: Settings, replace_running: bool) -> None:
        self.may_run = True
        self.happen(StartAsked(self.ticket(), settings, 10.0, replace_running))

    def stop(self) -> None:
        self.may_run = False
        self.happen(StopAsked(self.ticket()))
        assert not self.state.starts
        assert not self.state.loads

    def use(self) -> None:
        self.users += 1
        self.happen(UseBegun())

    def rest(self) -> None:
        self.users -= 1
        self.happen(UseOver())

    def load(self, size: ImageSize, model: ImageModel | None) -> None:
        ticket = self.ticket()
        self.loads.append(ticket)
        self.happen(LoadAsked(ticket, size, model))

    def leave(self, ticket: int) -> None:
        self.gone.add(ticket)
        self.happen(LoadLeft(ticket, self.ticket()))

    def stick(self, number: int) -> None:
        self.happen(JobStuck(number, self.ticket()))

    # --- what comes back

    def prospect(self, answer: bool | DomainError, model: ImageModel) -> None:
        settled = answer if isinstance(answer, DomainError) else Prospect(model, answer)
        self.happen(ProspectCame(self.prospects.pop(0), settled))

    def model(self, answer: ImageModel | DomainError | None) -> None:
        self.happen(ModelCame(self.models.pop(0), answer))

    def room(self, answer: bool | DomainError) -> None:
        asked = self.rooms.pop(0)
        left = asked.ticket in self.left
        self.left.discard(asked.ticket)
        self.happen(RoomCame(asked.ticket, asked.life, False if left else answer))

    def go_on(self, model: ImageModel) -> None:
        """The life comes one part further."""
        process = self.process
        assert process is not None
        if process.told_to_end:
            self.end(None)
        elif not process.granted:
            process.granted = True
            chosen = next((each for each in MODELS if each.id == process.settings.model_id), model)
            self.happen(LeaseGranted(process.number, chosen, EngineOptions()))
        elif not process.spawned:
            process.spawned = True
            self.happen(Spawned(process.number, 4711, 0.0))
        elif not process.ready:
            process.ready = True
            self.happen(Ready(process.number, 0.1))

    def end(self, error: DomainError | None) -> None:
        """The life ends; by itself with an error."""
        process = self.process
        assert process is not None
        self.process = None
        self.happen(Ended(process.number, error))

    def die(self) -> None:
        assert self.process is not None
        self.happen(Died(self.process.number))

    def want_back(self, leave_after: float | None) -> None:
        assert self.process is not None
        self.happen(LeaseChanged(self.process.number, leave_after))

    def time_passes(self) -> None:
        assert self.timer is not None
        self.now = max(self.now, self.timer)
        self.happen(TimeUp(self.timer))

    # --- the end

    def settle(self) -> None:
        """Everything comes back as well as it can."""
        for _ in range(1000):
            if self.prospects:
                self.prospect(answer=True, model=MODELS[0])
            elif self.models:
                self.model(None)
            elif self.rooms:
                self.room(answer=True)
            elif self.process is not None and (not self.process.ready or self.process.told_to_end):
                self.go_on(MODELS[0])
            elif self.state.life is not None and self.state.life.stage is LifeStage.DYING:
                self.end(BROKEN)
            else:
                return
        raise AssertionError("it never settles")
