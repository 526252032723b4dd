"""A generation: one request for images, as it is at one moment of its life."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from genaid_server.image.core.progress import Progress
from genaid_server.image.core.spec import GenerationSpec


class GenerationState(Enum):
    """Where a generation is in its life."""

    PENDING = auto()
    IN_PROGRESS = auto()
    COMPLETE = auto()
    ERROR = auto()
    CANCELLED = auto()

    @property
    def terminal(self) -> bool:
        """Whether nothing comes after it."""
        return self in (GenerationState.COMPLETE, GenerationState.ERROR, GenerationState.CANCELLED)


@dataclass(frozen=True)
class ImageInfo:
    """One image, without its bytes. `index` counts from 0; `sha256` is hexadecimal."""

    index: int
    seed: int
    width: int
    height: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Failure:
    """Why a generation failed: a stable reason, a message for people, and facts for programs, by their names."""

    code: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """A generation as it is at one moment. Times are in seconds since the epoch, `seconds` is a duration."""

    id: str
    spec: GenerationSpec
    model_id: str
    created_at: float
    updated_at: float
    state: GenerationState = GenerationState.PENDING
    progress: Progress | None = None
    images: tuple[ImageInfo, ...] = ()
    failure: Failure | None = None
    seconds: float | None = None
    expires_at: float | None = None
    queue_position: int = 0


@dataclass(frozen=True)
class Limits:
    """How much is kept and how many wait. Times are in seconds."""

    queue_depth: int = 0
    result_ttl: float = 300.0
    cleanup_interval: float = 60.0
    max_results: int = 100
    max_result_bytes: int = 268_435_456
    cancel_grace: float = 2.0
