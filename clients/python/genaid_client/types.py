"""What calls take and return. Times are aware and in UTC, durations are seconds, sizes are bytes."""

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


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The provenance of a model. `type` is None where it is not known to this client."""

    type: SourceType | None
    url: str = ""
    repo: str = ""
    file: str = ""


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

    `path` is its file on the server's machine. `type` and `format` are None where they are not known to this client.
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
    to 100. `accepting` says whether a generation would be accepted where nothing runs.
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


class LogLevel(StrEnum):
    """How grave a log line is. A level that this client doesn't know is read as INFO."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of a log; `sequence` counts up by one a line."""

    sequence: int
    time: datetime
    level: LogLevel
    message: str


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
