"""What calls about models take and return. Times are aware and in UTC, sizes are bytes."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ModelType(StrEnum):
    """What a model is for."""

    LLM = "llm"
    DIFFUSION = "diffusion"


class ModelFormat(StrEnum):
    """How the weights are stored."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"


class SourceType(StrEnum):
    """Where a model came from."""

    FILE = "file"
    HUGGINGFACE = "huggingface"
    URL = "url"


class Component(StrEnum):
    """What a file is to a model of several; the whole model, and a shard of it, is none of these."""

    DIFFUSION_MODEL = "diffusion_model"
    CLIP_L = "clip_l"
    CLIP_G = "clip_g"
    T5XXL = "t5xxl"
    LLM = "llm"
    VAE = "vae"
    TAE = "tae"


class MetadataStrategy(StrEnum):
    """Where a header is read anew: the file on the server's machine, its source, or one where the other fails."""

    LOCAL_REMOTE = "local-remote"
    LOCAL_ONLY = "local-only"
    REMOTE_ONLY = "remote-only"
    REMOTE_LOCAL = "remote-local"


class Verification(StrEnum):
    """What verifying found: the content is what its checksum says, is not, or there is no checksum."""

    VALID = "valid"
    INVALID = "invalid"
    UNVERIFIABLE = "unverifiable"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The provenance of a file. `type` is None where it is not known to this client.

    `revision` is the commit of the hub repository, `license` its license tag; both are empty for other sources.
    """

    type: SourceType | None
    url: str = ""
    repo: str = ""
    file: str = ""
    revision: str = ""
    etag: str = ""
    license: str = ""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model.

    `component` is None for the whole model, for a shard, and where it is not known to this client. `shard` counts
    from 1, and is 0 where the model is not sharded. `path` is on the server's machine.
    """

    name: str
    component: Component | None
    shard: int
    size_bytes: int
    checksum: str
    path: str
    source: ModelSource | None


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """What the header of a GGUF file says; None or empty where it does not say it."""

    version: int
    tensor_count: int
    kv_count: int
    architecture: str = ""
    general_name: str = ""
    file_type: int | None = None
    block_count: int | None = None
    context_length: int | None = None
    attention_head_count: int | None = None
    attention_head_count_kv: int | None = None
    embedding_length: int | None = None
    feed_forward_length: int | None = None
    vocab_size: int | None = None
    rope_dimension_count: int | None = None
    rope_freq_base: float | None = None
    attention_layer_norm_rms_epsilon: float | None = None
    tensor_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """One installed model.

    `path`, `source`, `checksum`, `format` and `metadata` are those of the file that an engine opens: the only one, the
    first shard, or the diffusion model of several components; `path` is on the server's machine. `size_bytes` is of
    all `files` together. `type` and `format` are None where they are not known to this client. `layer_count`,
    `context_length` and `architecture` are estimates where the header does not say them.
    """

    id: str
    name: str
    type: ModelType | None
    size_bytes: int
    path: str
    create_time: datetime
    source: ModelSource | None
    checksum: str
    format: ModelFormat | None
    metadata: GgufMetadata | None
    files: tuple[ModelFile, ...] = ()
    supports_reasoning: bool = False
    layer_count: int = 0
    context_length: int = 0
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class FileVerification:
    """What verifying found of one file; `actual` is empty where the file is missing, `expected` without a checksum."""

    name: str
    result: Verification | None
    expected: str
    actual: str


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How far verifying is; `result`, of all files together, and `files` are there only at its end."""

    bytes_done: int
    bytes_total: int
    result: Verification | None
    files: tuple[FileVerification, ...]
