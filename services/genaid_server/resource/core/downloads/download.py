"""A download as others see it, and the limits that all of them share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from genaid_server.resource.core.downloads.remote import Item
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.store.model import Component


class DownloadPhase(StrEnum):
    """Where a download is."""

    QUEUED = "queued"
    CHECKING = "checking"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    INSTALLED = "installed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing will change any more."""
        return self in (DownloadPhase.INSTALLED, DownloadPhase.FAILED, DownloadPhase.CANCELLED)


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """What all downloads keep to; times in seconds.

    `parallel` of them run at once, and leave `reserve_bytes` of the disk free. What didn't work is tried again after
    `first_delay`, doubled each time up to `max_delay`, and given up after `attempts` without progress in between. A
    source that sends next to nothing for `stall_seconds` counts as one that didn't work.
    """

    parallel: int = 2
    reserve_bytes: int = 2**30
    stall_seconds: float = 30.0
    attempts: int = 10
    first_delay: float = 1.0
    max_delay: float = 60.0


@dataclass(frozen=True, slots=True)
class DownloadSpec:
    """What to fetch, and what the model shall be called; the empty ones are chosen."""

    items: tuple[Item, ...]
    name: str = ""
    model_type: ModelType | None = None
    model_id: str = ""


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How far one file is, in bytes; `bytes_done` never falls, `bytes_total` is None while it isn't known."""

    name: str
    component: Component
    bytes_done: int
    bytes_total: int | None


@dataclass(frozen=True, slots=True)
class DownloadFailure:
    """Why a download failed: a stable reason, a message for people, and facts for programs."""

    code: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Download:
    """One download at one moment.

    Times are in seconds since the epoch, `remaining` in seconds, None where it can't be told. `bytes_done` never
    falls; `bytes_total` is None while a file's size isn't known. `failure` is only in a failed one, `model_id` only
    in an installed one. `retries` counts what had to be tried again; `problem` says why something is being tried
    again just now, and is empty while all is well.
    """

    id: str
    spec: DownloadSpec
    phase: DownloadPhase
    created_at: float
    updated_at: float
    bytes_done: int = 0
    bytes_total: int | None = None
    bytes_per_second: float = 0.0
    remaining: float | None = None
    files: tuple[FileProgress, ...] = ()
    failure: DownloadFailure | None = None
    model_id: str = ""
    retries: int = 0
    problem: str = ""
