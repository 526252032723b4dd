"""What to draw: the fields of a generation, their ranges and their defaults (image-generation API, contracts)."""

import math
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from genaid_server.kit.errors import InvalidRequestError

MAX_PROMPT: Final = 32_768
MIN_SIDE: Final = 64
MAX_SIDE: Final = 4096
SIDE_STEP: Final = 8  # one latent covers 8x8 pixels; the library would round other sizes by itself
MAX_PIXELS: Final = 4_194_304
MAX_STEPS: Final = 200
MAX_CFG_SCALE: Final = 100.0
MAX_SEED: Final = 2_147_483_647
MAX_COUNT: Final = 5


class Sampler(StrEnum):
    """How images are drawn out of noise; the values are the names that the engine and the REST API use."""

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


@dataclass(frozen=True)
class GenerationSpec:
    """One request for images, complete and valid.

    Sizes are in pixels; `seed` is the first image's, and the others count up from it. Raises InvalidRequestError
    that names the first field that is wrong.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg_scale: float = 7.5
    seed: int = 0
    sampler: Sampler = Sampler.EULER_A
    count: int = 1

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InvalidRequestError("Missing required field: prompt", field="prompt")
        _check_text("prompt", self.prompt)
        _check_text("negative_prompt", self.negative_prompt)
        _check_side("width", self.width)
        _check_side("height", self.height)
        if self.width * self.height > MAX_PIXELS:
            raise InvalidRequestError(
                f"width times height must be at most {MAX_PIXELS} pixels, not {self.width * self.height}", field="width"
            )
        _check_range("steps", self.steps, 1, MAX_STEPS)
        if not math.isfinite(self.cfg_scale):
            raise InvalidRequestError("cfg_scale must be a finite number", field="cfg_scale")
        _check_range("cfg_scale", self.cfg_scale, 0, MAX_CFG_SCALE)
        _check_range("count", self.count, 1, MAX_COUNT)
        _check_range("seed", self.seed, 0, MAX_SEED)

    @property
    def megapixels(self) -> float:
        """Size of one image in millions of pixels."""
        return self.width * self.height / 1e6


def choose_seed(wanted: int | None, count: int = 1) -> int:
    """The seed of the first image: the wanted one, or a random one where it is absent or negative.

    A random one leaves room for the `count` images to count up.
    """
    if wanted is None or wanted < 0:
        return secrets.randbelow(MAX_SEED + 1 - max(1, count))
    return wanted


def _check_text(field: str, text: str) -> None:
    if len(text) > MAX_PROMPT:
        raise InvalidRequestError(f"{field} must be at most {MAX_PROMPT} characters, not {len(text)}", field=field)
    if "\0" in text:
        # The library takes C strings: what comes after a NUL would silently not be drawn.
        raise InvalidRequestError(f"{field} must not contain a NUL character", field=field)


def _check_side(field: str, value: int) -> None:
    _check_range(field, value, MIN_SIDE, MAX_SIDE)
    if value % SIDE_STEP:
        near = max(MIN_SIDE, round(value / SIDE_STEP) * SIDE_STEP)
        raise InvalidRequestError(
            f"{field} must be a multiple of {SIDE_STEP}, such as {near}, not {value}", field=field
        )


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRequestError(f"{field} must be between {low:g} and {high:.10g}, not {value:.10g}", field=field)
