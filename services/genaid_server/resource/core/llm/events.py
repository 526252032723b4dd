"""The words of the LLM engine's owner: what it knows, what it is told, and what it has done for it."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from genaid_server.kit.backoff import Backoff
from genaid_server.kit.errors import DomainError
from genaid_server.resource.core.llm.config import LlmRequest
from genaid_server.resource.core.llm.deciding import Decision
from genaid_server.resource.core.llm.saved import SavedLlm
from genaid_server.resource.core.llm.slots import EngineEndpoint
from genaid_server.supervision.logbook import Level

RETRIES: Final = Backoff(first=1.0, longest=60.0)
"""How long an LLM that could not be brought back waits for the next try."""


class LlmStage(Enum):
    """Where the engine is on its way. AWAY waits for the memory to come back to."""

    DOWN = auto()
    STARTING = auto()
    RESTORING = auto()
    RUNNING = auto()
    LEAVING = auto()
    GOING = auto()
    AWAY = auto()


@dataclass(frozen=True, slots=True)
class Deciding:
    """A start whose settings are being decided, while what ran before still runs.

    `again` is what ran before where that is started again, as it was.
    """

    number: int
    request: LlmRequest
    replace: bool
    again: Decision | None = None


@dataclass(frozen=True, slots=True)
class Waiter:
    """Somebody who waits for the end of a command: until the engine of that `wish` serves, or is gone."""

    id: int
    wish: int
    until_gone: bool = False


@dataclass(frozen=True, slots=True)
class ReturnFailure:
    """What bringing it back failed with last; `next_at` is in seconds since the epoch."""

    attempts: int
    message: str
    next_at: float


@dataclass(frozen=True, slots=True)
class LlmState:
    """All that the owner knows.

    Each change of direction has a number, the newest of which is `newest`: effects carry the one that they serve, so
    what comes back for an older one is not followed. `plan` is that of the present direction, `launch` that of the
    life that serves or is to (0: none), `halted` the highest of which the process is known to be gone.

    `saved` is what is on disk: what is to run, or to come back. `reclaimed` says why the lease is being reclaimed, and
    is empty where it isn't. `crashed` holds between the unexpected end of a life that served and the next one.
    `refusal` is what the last start failed with, while nothing runs.
    """

    newest: int = 0
    plan: int = 0
    launch: int = 0
    halted: int = 0
    stage: LlmStage = LlmStage.DOWN
    decision: Decision | None = None
    deciding: Deciding | None = None
    saved: SavedLlm | None = None
    endpoint: EngineEndpoint | None = None
    last_port: int = 0
    crashed: bool = False
    reclaimed: str = ""
    failure: ReturnFailure | None = None
    refusal: DomainError | None = None
    waiters: tuple[Waiter, ...] = ()
    closing: bool = False

    @property
    def offloaded(self) -> bool:
        """Whether it makes room for another engine, or has, and is not back yet."""
        return self.saved is not None and self.saved.offloaded_at is not None

    @property
    def wanted(self) -> LlmRequest | None:
        """What runs, starts, or is on its way back; None where nothing does, or it crashed and may not come back."""
        if self.decision is None or self.stage is LlmStage.DOWN or (self.stage is LlmStage.RUNNING and self.crashed):
            return None
        return self.decision.request


# --- commands


class Start(Struct, frozen=True):
    """Load a model. `waiter` 0 is nobody."""

    request: LlmRequest
    replace: bool = False
    waiter: int = 0


class Restart(Struct, frozen=True):
    """Stop, and start with the same model and options."""

    waiter: int


class Stop(Struct, frozen=True):
    """End it, whatever it does. With `offloaded_only`, one that is not offloaded stays as it is."""

    waiter: int
    offloaded_only: bool = False


class Recover(Struct, frozen=True):
    """The service stands: bring back what ran before, or else load what is configured.

    `decision` is None where nothing ran before, or its model is gone; `delay` in seconds is how long to wait.
    """

    saved: SavedLlm | None
    decision: Decision | None
    delay: float
    configured: LlmRequest | None


class Close(Struct, frozen=True):
    """The service is about to stop."""


class Left(Struct, frozen=True):
    """A waiter is gone."""

    waiter: int


# --- what comes back from effects


class Decided(Struct, frozen=True):
    """What a start is to run is decided, and there is a way for it."""

    number: int
    decision: Decision


class Refused(Struct, frozen=True):
    """There is no way for a start."""

    number: int
    error: DomainError


class Renewed(Struct, frozen=True):
    """A life runs with this instead, as the model's files have changed."""

    launch: int
    decision: Decision


class Granted(Struct, frozen=True):
    """A life has got its memory."""

    launch: int


class Reclaimed(Struct, frozen=True):
    """The lease of a life is being reclaimed."""

    launch: int
    reason: str


class LetStay(Struct, frozen=True):
    """The lease of a life is no longer being reclaimed."""

    launch: int


class Serves(Struct, frozen=True):
    """A life answers."""

    launch: int
    endpoint: EngineEndpoint


class Failed(Struct, frozen=True):
    """A life ended before it answered."""

    launch: int
    error: DomainError


class Crashed(Struct, frozen=True):
    """A life that answered has ended by itself."""

    launch: int
    message: str


class CachesSaved(Struct, frozen=True):
    """Requests in flight are through, and the prompt caches saved: the tokens of each slot."""

    plan: int
    slots: dict[int, int]


class CachesRestored(Struct, frozen=True):
    """The prompt caches are read back, as far as they could be."""

    plan: int


class Halted(Struct, frozen=True):
    """The process is gone."""

    number: int


class Due(Struct, frozen=True):
    """It is time for the next try."""

    plan: int


type Event = (
    Start
    | Restart
    | Stop
    | Recover
    | Close
    | Left
    | Decided
    | Refused
    | Renewed
    | Granted
    | Reclaimed
    | LetStay
    | Serves
    | Failed
    | Crashed
    | CachesSaved
    | CachesRestored
    | Halted
    | Due
)

# --- effects


class Decide(Struct, frozen=True):
    """Decide with what a start runs, and see that there is a way for it."""

    number: int
    request: LlmRequest
    again: Decision | None


class Launch(Struct, frozen=True):
    """Begin a life, on this port where the request leaves it open and it is free; an earlier one ends first."""

    number: int
    decision: Decision
    port: int
    background: bool


class Halt(Struct, frozen=True):
    """End the process. `event` is what watchers are told."""

    number: int
    event: str


class SaveCaches(Struct, frozen=True):
    """Wait for requests in flight, and save the prompt caches."""

    plan: int
    endpoint: EngineEndpoint
    model_id: str


class RestoreCaches(Struct, frozen=True):
    """Read the prompt caches back."""

    plan: int
    endpoint: EngineEndpoint
    model_id: str
    slots: dict[int, int]


class DiscardCaches(Struct, frozen=True):
    """Remove saved prompt caches; of all models where none is named."""

    model_id: str = ""


class Keep(Struct, frozen=True):
    """Write to disk what is to run; None removes it."""

    saved: SavedLlm | None


class Wait(Struct, frozen=True):
    """Say when so many seconds are over."""

    plan: int
    seconds: float


class TellWaiter(Struct, frozen=True):
    """Tell a waiter."""

    waiter: int
    error: DomainError | None = None
    acted: bool = True


class Say(Struct, frozen=True):
    """Log a line."""

    level: Level
    message: str


type Effect = Decide | Launch | Halt | SaveCaches | RestoreCaches | DiscardCaches | Keep | Wait | TellWaiter | Say
