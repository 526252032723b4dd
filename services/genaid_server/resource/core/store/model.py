"""A model as the store keeps it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.formats.metadata import GgufMetadata

_LAYER_BYTES: Final = 150 * 2**20  # what a layer takes, where nothing is known but a model's size
_FEWEST_LAYERS: Final = 24
_MOST_LAYERS: Final = 120
_LARGE_BYTES: Final = 30 * 2**30
_CONTEXT: Final = 4096  # tokens
_LARGE_CONTEXT: Final = 8192


class SourceType(StrEnum):
    """Where a model came from."""

    FILE = "file"
    HUGGINGFACE = "huggingface"
    URL = "url"


class Component(StrEnum):
    """What a file is to its model; MODEL is the whole model, or a shard of it."""

    MODEL = "model"
    DIFFUSION_MODEL = "diffusion_model"
    CLIP_L = "clip_l"
    CLIP_G = "clip_g"
    T5XXL = "t5xxl"
    LLM = "llm"
    VAE = "vae"
    TAE = "tae"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The provenance of a file. `file` is its name there; `repo`, as owner/name, is only for HUGGINGFACE.

    `revision` is the commit of the repository that was installed, `etag` what the source gave, `license` the tag of
    the repository; each is empty where it isn't known.
    """

    type: SourceType
    url: str = ""
    repo: str = ""
    file: str = ""
    revision: str = ""
    etag: str = ""
    license: str = ""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model.

    `path` is absolute; `checksum` is `sha256:` and 64 hexadecimal digits, empty where it isn't known; `shard` counts
    from 1, and is 0 where the model isn't sharded.
    """

    path: Path
    size_bytes: int
    checksum: str
    source: ModelSource
    component: Component = Component.MODEL
    shard: int = 0

    @property
    def name(self) -> str:
        """The file's name in the store, without folders."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file to install: complete, and hashed already.

    It lies below the data directory, and leaves its place for the store; or it is a file of another model in the
    store, which is then shared. `name` is the one that it is to have, without folders.
    """

    path: Path
    name: str
    checksum: str
    source: ModelSource
    component: Component = Component.MODEL
    shard: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """One installed model.

    `files` has at least one file, and the one that an engine opens is the first: the only one, the first shard, or
    the diffusion model of several components. `create_time` is in UTC; `metadata` is what the header of that first
    file says, None for a format without such a header.
    """

    id: str
    name: str
    type: ModelType
    create_time: datetime
    format: ModelFormat
    files: tuple[ModelFile, ...]
    metadata: GgufMetadata | None = None
    supports_reasoning: bool = False

    @property
    def primary(self) -> ModelFile:
        """The file that an engine opens."""
        return self.files[0]

    @property
    def path(self) -> Path:
        """Where the primary file lies; absolute."""
        return self.primary.path

    @property
    def checksum(self) -> str:
        """The checksum of the primary file."""
        return self.primary.checksum

    @property
    def source(self) -> ModelSource:
        """Where the primary file came from."""
        return self.primary.source

    @property
    def size_bytes(self) -> int:
        """The size of all files together, in bytes."""
        return sum(file.size_bytes for file in self.files)

    @property
    def layer_count(self) -> int:
        """Number of layers: the header's, else estimated from the size."""
        if self.metadata and self.metadata.block_count:
            return self.metadata.block_count
        return min(max(int(self.size_bytes / _LAYER_BYTES + 0.5), _FEWEST_LAYERS), _MOST_LAYERS)

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens: the header's, else estimated from the size."""
        if self.metadata and self.metadata.context_length:
            return self.metadata.context_length
        return _LARGE_CONTEXT if self.size_bytes >= _LARGE_BYTES else _CONTEXT

    @property
    def architecture(self) -> str:
        """The header's, else `llama` or `stable-diffusion` by type."""
        if self.metadata and self.metadata.architecture:
            return self.metadata.architecture
        return "llama" if self.type is ModelType.LLM else "stable-diffusion"
