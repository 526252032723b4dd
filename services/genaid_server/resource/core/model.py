"""A model as the store keeps it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from genaid_server.resource.core.metadata import GgufMetadata


class ModelType(StrEnum):
    """What a model is for; also the name of the folder that it lies in."""

    LLM = "llm"
    DIFFUSION = "diffusion"


class ModelFormat(StrEnum):
    """How weights are stored; also the suffix of their files."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"


class SourceType(StrEnum):
    """Where a model came from."""

    FILE = "file"
    HUGGINGFACE = "huggingface"
    URL = "url"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The provenance of a model. `file` is its name there; `repo`, as owner/name, is only for HUGGINGFACE."""

    type: SourceType
    url: str = ""
    repo: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One installed model.

    `path` is absolute, `create_time` in UTC, `checksum` is `sha256:` and 64 hexadecimal digits; `metadata` is None
    for a format without such a header.
    """

    id: str
    name: str
    type: ModelType
    size_bytes: int
    path: Path
    create_time: datetime
    source: ModelSource
    checksum: str
    format: ModelFormat
    metadata: GgufMetadata | None = None
