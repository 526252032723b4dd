"""What calls about images and their engine take and return. Times are aware and in UTC, durations are seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from genaid_client.types_common import EngineEvent, HealthState, ServerState, StopReason


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
    to 100. `accepting` says whether a generation would be accepted where nothing runs. `last_event` is None where
    nothing has happened yet, and `stop_reason` while it has a process; both are where this client doesn't know them.
    `model_chosen` says whether somebody has chosen the model; otherwise it is the default one, which is decided anew
    with each image.
    """

    state: ServerState
    health: HealthState
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
    last_event: EngineEvent | None
    variant: str
    accepting: bool
    stop_reason: StopReason | None = None
    model_chosen: bool = False


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
    """Why a generation failed: a stable reason such as BACKEND_ERROR, what happened, for people, and facts.

    `facts` are for programs: `required`, `available` and `suggestion` of INSUFFICIENT_RESOURCES, for instance.
    """

    code: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)


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
