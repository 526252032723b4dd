"""What calls take and return. Times are aware and in UTC, durations are seconds, sizes are bytes."""

from collections.abc import Mapping
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


class ServerState(StrEnum):
    """Where an engine is in its life. A state that this client doesn't know is read as STARTING: not settled."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    CRASHED = "crashed"


class Health(StrEnum):
    """Whether an engine answers. What this client doesn't know is read as UNKNOWN."""

    UNKNOWN = "unknown"
    LOADING = "loading"
    OK = "ok"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine computes; the defaults suit most models. Without `max_vram_bytes` it may use all that is free."""

    flash_attention: bool = False
    offload_to_cpu: bool = False
    clip_on_cpu: bool = False
    vae_on_cpu: bool = False
    vae_tiling: bool = False
    memory_map: bool = False
    max_vram_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """The image engine as it is at one moment.

    `pid` and `start_time` are None without a process, `load_seconds` before the first load. `keep_alive_seconds` is
    how long it stays loaded without work: 0 unloads after each image, negative never unloads. `load_percentage` is 0
    to 100. `accepting` says whether a generation would be accepted where nothing runs, `model_chosen` whether somebody
    has chosen the model; otherwise it is the default one, which is decided anew with each image.
    """

    state: ServerState
    health: Health
    busy: bool
    model_id: str
    pid: int | None
    start_time: datetime | None
    load_seconds: float | None
    threads: int
    options: EngineOptions
    keep_alive_seconds: float
    restarts: int
    last_error: str
    load_percentage: float
    last_event: str
    variant: str
    accepting: bool
    model_chosen: bool = False


class LogLevel(StrEnum):
    """How grave a log line is. A level that this client doesn't know is read as INFO."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of a log; `sequence` counts up by one a line.

    `raw` is the line as the log file has it, `[ISO time] [LEVEL] message`; empty for the image engine.
    """

    sequence: int
    time: datetime
    level: LogLevel
    message: str
    raw: str = ""


class GenerationState(StrEnum):
    """Where a generation is in its life. A state that this client doesn't know is read as IN_PROGRESS."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the generation will not change any more."""
        return self in {GenerationState.COMPLETE, GenerationState.ERROR, GenerationState.CANCELLED}


class Stage(StrEnum):
    """Where a running generation is."""

    LOADING = "loading"
    DIFFUSION = "diffusion"
    DECODING = "decoding"


class Sampler(StrEnum):
    """How images are drawn out of noise."""

    EULER_A = "euler_a"
    EULER = "euler"
    HEUN = "heun"
    DPM2 = "dpm2"
    DPMPP2S_A = "dpm++2s_a"
    DPMPP2M = "dpm++2m"
    DPMPP2MV2 = "dpm++2mv2"
    LCM = "lcm"
    IPNDM = "ipndm"
    IPNDM_V = "ipndm_v"
    DDIM_TRAILING = "ddim_trailing"
    TCD = "tcd"
    RES_MULTISTEP = "res_multistep"
    RES_2S = "res_2s"
    ER_SDE = "er_sde"
    EULER_CFG_PP = "euler_cfg_pp"
    EULER_A_CFG_PP = "euler_a_cfg_pp"
    EULER_GE = "euler_ge"
    DPMPP2M_SDE = "dpm++2m_sde"
    DPMPP2M_SDE_BT = "dpm++2m_sde_bt"
    LMS = "lms"


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What to draw. None leaves a field to the server's default; a generation comes back with all of them filled in.

    Defaults: 512 by 512 pixels, 20 steps, guidance 7.5, a random seed, `euler_a`, one image. The ranges are in the
    contract; the server checks them.
    """

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    seed: int | None = None
    sampler: Sampler | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running generation is.

    Steps are of the stage; `total_steps` is 0 where they are not known. `percentage` is of the whole generation, 0 to
    100, and never falls. `current_image` counts from 1. `stage` is None where it is not known to this client.
    """

    stage: Stage | None
    current_step: int
    total_steps: int
    percentage: float
    current_image: int
    total_images: int


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image that was made, without its bytes. `index` counts from 0; `sha256` is of the PNG, in hexadecimal."""

    index: int
    seed: int
    width: int
    height: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class GenerationFailure:
    """Why a generation failed: a stable reason such as BACKEND_ERROR, and what happened, for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation as it is at one moment.

    `progress` is None while it is pending; `images` and `duration_seconds` are there only on a complete one, `error`
    only on a failed one, `expire_time` only on a finished one. `queue_position` is how many are before it.
    """

    id: str
    state: GenerationState
    spec: GenerationSpec
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None
    progress: Progress | None
    images: tuple[ImageInfo, ...]
    error: GenerationFailure | None
    duration_seconds: float | None
    model_id: str
    queue_position: int


@dataclass(frozen=True, slots=True)
class Image:
    """One whole image: its place in the batch, from 0, and the bytes of its PNG."""

    index: int
    data: bytes
