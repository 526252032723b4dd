"""What the owner of the image engine knows, what it is told, and what it has done: the words of `engine_step`.

A ticket is the number of somebody who waits for an answer. Lives are numbered as well: what comes back for a life that
is over is not followed.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from genaid_server.image.core.lease import SMALLEST, ImageSize, Prospect
from genaid_server.image.core.settings import EngineOptions, ImageModel, Settings
from genaid_server.kit.errors import DomainError
from genaid_server.supervision.stop_reason import StopReason
from genaid_server.supervision.supervisor import Snapshot

NOBODY: Final = 0
"""The ticket of nobody."""


class LifeStage(Enum):
    """Where a life of the engine is. DYING: its process has ended by itself, and what it held is being given back."""

    STARTING = auto()
    RUNNING = auto()
    DYING = auto()
    ENDING = auto()


@dataclass(frozen=True, slots=True)
class Ending:
    """What a life is ended for: the event and the reason that are told once it is over. `again`: begin another."""

    event: str
    reason: StopReason
    again: bool = False


@dataclass(frozen=True, slots=True)
class Life:
    """One life of the engine, from the request for its memory to the end of its process.

    `model` and `options` are None until the memory is granted. `size` is that of the images that its lease covers.
    `leave_after` is for how many seconds it may stay without work where its lease is being reclaimed.
    """

    number: int
    settings: Settings
    size: ImageSize
    stage: LifeStage = LifeStage.STARTING
    model: ImageModel | None = None
    options: EngineOptions | None = None
    leave_after: float | None = None
    ending: Ending | None = None

    @property
    def up(self) -> bool:
        """Whether it runs or will."""
        return self.stage in (LifeStage.STARTING, LifeStage.RUNNING)


class StartStage(Enum):
    """Where a start is: asks the manager, waits for the load, or only for the end of what ran before."""

    ASKING = auto()
    LOADING = auto()
    SELECTING = auto()


@dataclass(frozen=True, slots=True)
class PendingStart:
    """Somebody who starts the engine. `keep_alive` is in seconds."""

    ticket: int
    settings: Settings
    keep_alive: float
    replace: bool
    stage: StartStage = StartStage.ASKING


class LoadStage(Enum):
    """Where a generation that needs the engine is: asks which model is the default, waits for a life that runs, or for
    the life's lease to cover its images."""

    ASKING_MODEL = auto()
    WAITING = auto()
    ASKING_ROOM = auto()


@dataclass(frozen=True, slots=True)
class PendingLoad:
    """A generation that waits for the engine. `model` is the one that it is to be made with, None if nobody has asked
    yet. `left` is the ticket of who waits until nothing is done for it any more."""

    ticket: int
    size: ImageSize
    model: ImageModel | None
    stage: LoadStage = LoadStage.WAITING
    left: int = NOBODY


@dataclass(frozen=True, slots=True)
class EngineState:
    """All that the owner knows.

    Times are by the loop's clock; `keep_alive` is in seconds. `settings` are the newest choice, `wanted` the size of
    the images that were asked for last, and `stop_reason` is why there was no process when there was none last.
    """

    settings: Settings
    keep_alive: float
    accepting: bool = True
    closing: bool = False
    users: int = 0
    lives: int = 0
    life: Life | None = None
    starts: tuple[PendingStart, ...] = ()
    loads: tuple[PendingLoad, ...] = ()
    waiting_for_end: tuple[int, ...] = ()
    wanted: ImageSize = SMALLEST
    idle_since: float = 0.0
    unload_at: float | None = None
    shown: Snapshot[Settings] = field(default_factory=Snapshot)
    stop_reason: StopReason = StopReason.NEVER_STARTED


# --- what the owner is told


class StartAsked(Struct, frozen=True):
    """Somebody starts the engine."""

    ticket: int
    settings: Settings
    keep_alive: float
    replace: bool


class ProspectCame(Struct, frozen=True):
    """The manager's answer to a start."""

    ticket: int
    answer: Prospect | DomainError


class StopAsked(Struct, frozen=True):
    """Somebody stops the engine, for good where the service is `closing`."""

    ticket: int
    closing: bool = False


class ChoiceGone(Struct, frozen=True):
    """The model that these settings chose is not installed any more."""

    settings: Settings


class UseBegun(Struct, frozen=True):
    """A generation's turn begins: the engine is not unloaded, and not given another model."""


class UseOver(Struct, frozen=True):
    """A generation's turn is over."""


class LoadAsked(Struct, frozen=True):
    """A generation needs the engine for images of a size; with this model, where somebody has just asked for it."""

    ticket: int
    size: ImageSize
    model: ImageModel | None = None


class ModelCame(Struct, frozen=True):
    """The manager's answer to which model is the default; None where it does not answer."""

    ticket: int
    answer: ImageModel | DomainError | None


class RoomCame(Struct, frozen=True):
    """What came of the request for a larger lease: whether the engine may go on in it."""

    ticket: int
    life: int
    answer: bool | DomainError


class LoadLeft(Struct, frozen=True):
    """A generation needs the engine no more; `reply` is told when nothing is done for it any more."""

    ticket: int
    reply: int


class JobStuck(Struct, frozen=True):
    """A job of this life does not stop; `reply` is told when the process is gone."""

    life: int
    reply: int


class LeaseGranted(Struct, frozen=True):
    """The memory of a life may be used, for this model and in this way."""

    life: int
    model: ImageModel
    options: EngineOptions


class LeaseChanged(Struct, frozen=True):
    """For how long a life may stay without work, None for as long as it likes."""

    life: int
    leave_after: float | None


class Spawned(Struct, frozen=True):
    """The process of a life is there; `at` is in seconds since the epoch."""

    life: int
    pid: int
    at: float


class Loading(Struct, frozen=True):
    """A life has loaded so many parts of so many."""

    life: int
    done: int
    total: int


class Ready(Struct, frozen=True):
    """A life has loaded its model, in so many seconds."""

    life: int
    seconds: float


class Died(Struct, frozen=True):
    """The process of a life has ended by itself; why is not known yet."""

    life: int


class Ended(Struct, frozen=True):
    """A life is over, its process gone and its memory given back; with an error where it was not ended."""

    life: int
    error: DomainError | None


class TimeUp(Struct, frozen=True):
    """The time that was set is there."""

    at: float


type Event = (
    StartAsked
    | ProspectCame
    | StopAsked
    | ChoiceGone
    | UseBegun
    | UseOver
    | LoadAsked
    | ModelCame
    | RoomCame
    | LoadLeft
    | JobStuck
    | LeaseGranted
    | LeaseChanged
    | Spawned
    | Loading
    | Ready
    | Died
    | Ended
    | TimeUp
)

# --- what the owner has done


class AskProspect(Struct, frozen=True):
    """Ask what would happen if the engine were started; comes back as ProspectCame."""

    ticket: int
    settings: Settings


class AskModel(Struct, frozen=True):
    """Ask which model is the default; comes back as ModelCame."""

    ticket: int


class AskRoom(Struct, frozen=True):
    """Have the lease of a life cover images of a size; comes back as RoomCame."""

    ticket: int
    life: int
    size: ImageSize


class LeaveRoom(Struct, frozen=True):
    """Give up what AskRoom asked for; RoomCame tells when that is done."""

    ticket: int


class BeginLife(Struct, frozen=True):
    """Ask for memory, start a process and have it load; it ends as Ended, whatever happens."""

    life: int
    settings: Settings
    size: ImageSize


class EndLife(Struct, frozen=True):
    """End a life, wherever it is; it comes back as Ended."""

    life: int


class Tell(Struct, frozen=True):
    """Answer somebody who waits: it is done, or why it can't be; and what the engine is `then`."""

    ticket: int
    error: DomainError | None
    then: EngineState


class SetTimer(Struct, frozen=True):
    """Come back with TimeUp at this time; never where it is None. There is one timer."""

    at: float | None


class Announce(Struct, frozen=True):
    """Tell the manager which model was chosen; empty: none."""

    model_id: str


class Note(Struct, frozen=True):
    """Write into the engine's log what has happened to it."""

    event: str
    error: str = ""


type Effect = AskProspect | AskModel | AskRoom | LeaveRoom | BeginLife | EndLife | Tell | SetTimer | Announce | Note
