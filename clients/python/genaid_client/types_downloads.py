"""What calls about downloads take and return. Times are aware and in UTC, durations are seconds, sizes are bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from genaid_client.types_models import Component, Model, ModelType


class DownloadPhase(StrEnum):
    """Where a download is. A phase that this client doesn't know is read as DOWNLOADING."""

    QUEUED = "queued"
    CHECKING = "checking"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    INSTALLED = "installed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the download will not change any more."""
        return self in {DownloadPhase.INSTALLED, DownloadPhase.FAILED, DownloadPhase.CANCELLED}


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """A file on the Hugging Face hub: `repo` is owner/name, `file` has its folders, `revision` is `main` if empty."""

    repo: str
    file: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class DownloadItem:
    """One file to fetch: from the hub, or from an http or https address.

    `component` is None for a model of one file, or of shards. `checksum` is `sha256:` and 64 hexadecimal digits; empty
    for the hub's, if it has one. `source` is None only on a download that comes back, where this client doesn't know
    the kind.
    """

    source: HuggingFaceSource | str | None
    component: Component | None = None
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class DownloadSpec:
    """What to fetch.

    `items` are one file; or the first of several shards, whose others are found by name; or one file a component, the
    diffusion model among them. The rest is told from the header where it is not given.
    """

    items: tuple[DownloadItem, ...]
    name: str = ""
    type: ModelType | None = None
    model_id: str = ""


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How far one file is; `bytes_total` is None while it is not known. `bytes_done` never falls."""

    name: str
    component: Component | None
    bytes_done: int
    bytes_total: int | None


@dataclass(frozen=True, slots=True)
class DownloadFailure:
    """Why a download failed: a stable reason such as CHECKSUM_ERROR, what happened, for people, and facts."""

    code: str
    message: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Download:
    """One download as it is at one moment.

    Bytes are of all files together; `bytes_total` is None while not all sizes are known, `remaining_seconds` while it
    can't be told. `error` is there only on a failed one, `model` only on an installed one. `retries` is how often
    something had to be tried again; `problem` says why something is being tried again now.
    """

    id: str
    spec: DownloadSpec
    phase: DownloadPhase
    create_time: datetime
    update_time: datetime
    bytes_done: int
    bytes_total: int | None
    bytes_per_second: float
    remaining_seconds: float | None
    files: tuple[FileProgress, ...]
    error: DownloadFailure | None
    model: Model | None
    retries: int
    problem: str
