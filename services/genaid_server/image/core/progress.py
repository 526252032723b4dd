"""How far a generation is: one overall percentage that never falls, made of stages whose times are learnt.

The whole is estimated as load + encode + count * (steps * step + decode). What a stage takes is learnt per model,
size and runtime from the generations that completed, and kept on disk. Stages that report nothing while they work
(encoding the prompt, decoding) advance with the clock.
"""

import json
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from genaid_server.image.core.spec import GenerationSpec, Sampler
from genaid_server.kit.files import write_atomic

log = logging.getLogger(__name__)

_KEY: Final = re.compile(r".+\|.+\|[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")

UNFINISHED: Final = 99.0  # 100 means complete, and nothing else does
MAX_KNOWN: Final = 500  # sizes of models; the oldest are forgotten
SMOOTHING: Final = 0.5  # weight of the newest measurement
SILENT_SHARE: Final = 0.95  # how far the clock alone may take a stage that reports nothing
TWO_EVALUATIONS: Final = frozenset({Sampler.HEUN, Sampler.DPM2, Sampler.DPMPP2S_A, Sampler.RES_2S})


class Stage(StrEnum):
    """Where a running generation is."""

    LOADING = "loading"
    DIFFUSION = "diffusion"
    DECODING = "decoding"


@dataclass(frozen=True)
class Progress:
    """How far a running generation is; `percentage` is 0 to 100, images count from 1."""

    stage: Stage
    current_step: int
    total_steps: int
    percentage: float
    current_image: int
    total_images: int


@dataclass(frozen=True)
class Timings:
    """What the stages take, in seconds: loading the model, encoding the prompt, one evaluation of the model for
    one image, decoding one image. The defaults are what a small model takes on a processor, a first guess.
    """

    load: float = 2.0
    encode: float = 1.0
    evaluation: float = 0.5
    decode: float = 2.0

    def blend(self, newer: "Timings") -> "Timings":
        """These, moved towards newer measurements; a measurement that is missing is NaN."""
        values = asdict(self)
        for name, value in asdict(newer).items():
            if not math.isnan(value):
                values[name] += SMOOTHING * (value - values[name])
        return Timings(**values)

    def scaled(self, factor: float) -> "Timings":
        """For an image `factor` times as large."""
        return Timings(self.load, self.encode, self.evaluation * factor, self.decode * factor)


def evaluations(spec: GenerationSpec) -> int:
    """How often the model is evaluated in one step: guidance doubles it, and so do second-order samplers."""
    return (1 if spec.cfg_scale == 1 else 2) * (2 if spec.sampler in TWO_EVALUATIONS else 1)


class Calibration:
    """Remembers what generations took, in one JSON file; an unreadable file is begun anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Timings] = {}
        try:
            stored = json.loads(path.read_text("utf-8"))
            self._known = {_checked(key): _timings(value) for key, value in stored.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            log.warning("the calibration %s is unreadable and begun anew: %s", path.name, error)

    def expect(self, model: str, variant: str, spec: GenerationSpec) -> Timings:
        """What the stages will take: as measured at this size, else scaled from the nearest one, else a guess."""
        if exact := self._known.get(_key(model, variant, spec.width, spec.height)):
            return exact
        pixels = spec.width * spec.height
        nearest: tuple[float, Timings] | None = None
        for key, timings in self._known.items():
            known_model, known_variant, size = key.rsplit("|", 2)
            if (known_model, known_variant) == (model, variant):
                width, _, height = size.partition("x")
                factor = pixels / (int(width) * int(height))
                if nearest is None or abs(math.log(factor)) < abs(math.log(nearest[0])):
                    nearest = (factor, timings)
        if nearest is None:
            return Timings().scaled(spec.megapixels / 0.25)
        return nearest[1].scaled(nearest[0])

    def learn(self, model: str, variant: str, spec: GenerationSpec, measured: Timings) -> None:
        """Take in what a completed generation took."""
        key = _key(model, variant, spec.width, spec.height)
        known = self._known.get(key)
        guess = self.expect(model, variant, spec)
        self._known[key] = known.blend(measured) if known else _filled(measured, guess)
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        data = {key: asdict(timings) for key, timings in self._known.items()}
        try:
            write_atomic(self._path, json.dumps(data, indent=2).encode(), durable=False)
        except OSError as error:  # an estimate is not worth a generation
            log.warning("the calibration could not be written: %s", error)


def _key(model: str, variant: str, width: int, height: int) -> str:
    return f"{model}|{variant}|{width}x{height}"


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"the key {key!r}")
    return key


def _filled(measured: Timings, guess: Timings) -> Timings:
    fallback = asdict(guess)
    return Timings(**{name: fallback[name] if math.isnan(value) else value for name, value in asdict(measured).items()})


def _timings(value: dict[str, float]) -> Timings:
    timings = Timings(**{name: float(number) for name, number in value.items()})
    if not all(math.isfinite(number) and number >= 0 for number in asdict(timings).values()):
        raise ValueError("a time that is not a finite number")
    return timings


class Tracker:
    """Follows one generation through its stages. `clock` is in seconds and only goes forward."""

    def __init__(self, spec: GenerationSpec, expected: Timings, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec, self._expected, self._clock = spec, expected, clock
        self._needs_load = False
        self._stage = Stage.LOADING
        self._step = self._steps = 0
        self._image = 1
        self._percentage = 0.0
        self._since = self._began = clock()
        self._sampling_began: float | None = None
        self._decoding_began: float | None = None
        self._load_seconds = math.nan

    def loading(self, done: int, total: int) -> None:
        """The model is being loaded: `done` of `total` tensors."""
        self._needs_load = True
        self._step, self._steps = done, total

    def loaded(self) -> None:
        """The engine has the model and gets the job: the prompt is encoded next."""
        if self._needs_load:
            self._load_seconds = self._clock() - self._began
        self._enter(Stage.DIFFUSION, 1, 0, self._spec.steps)

    def diffusion(self, image: int, step: int, steps: int) -> None:
        """`step` of `steps` sampling steps of an image (from 1) are done."""
        if self._sampling_began is None:
            self._sampling_began = self._clock()
            self._encoded = self._sampling_began - self._since
        self._enter(Stage.DIFFUSION, min(image, self._spec.count), min(step, steps), steps)

    def decoding(self, image: int) -> None:
        """An image (from 1) is being decoded."""
        if self._decoding_began is None:
            self._decoding_began = self._clock()
        self._enter(Stage.DECODING, min(image, self._spec.count), 0, 0)

    def progress(self) -> Progress:
        """Where the generation is now."""
        total = self._total()
        share = self._done() / total if total > 0 else 0.0
        self._percentage = max(self._percentage, min(UNFINISHED, round(100 * share, 1)))
        return Progress(self._stage, self._step, self._steps, self._percentage, self._image, self._spec.count)

    def measured(self) -> Timings:
        """What the stages took, to be asked when the last image is there; NaN for what was not measured."""
        now, spec = self._clock(), self._spec
        if self._sampling_began is None or self._decoding_began is None:
            return Timings(self._load_seconds, math.nan, math.nan, math.nan)
        sampling = self._decoding_began - self._sampling_began
        return Timings(
            load=self._load_seconds,
            encode=self._encoded,
            evaluation=sampling / (spec.count * spec.steps * evaluations(spec)),
            decode=(now - self._decoding_began) / spec.count,
        )

    def _enter(self, stage: Stage, image: int, step: int, steps: int) -> None:
        if (stage, image) != (self._stage, self._image):
            self._since = self._clock()
        self._stage, self._image, self._step, self._steps = stage, image, step, steps

    def _sampling(self) -> float:
        return self._spec.steps * evaluations(self._spec) * self._expected.evaluation

    def _total(self) -> float:
        load = self._expected.load if self._needs_load else 0.0
        return load + self._expected.encode + self._spec.count * (self._sampling() + self._expected.decode)

    def _done(self) -> float:
        """The estimated seconds of work that are behind."""
        expected, earlier = self._expected, self._image - 1
        load = expected.load if self._needs_load else 0.0
        if self._stage is Stage.LOADING:
            return load * self._step / self._steps if self._steps else self._silent(load)
        if self._stage is Stage.DIFFUSION:
            if self._sampling_began is None:
                return load + self._silent(expected.encode)
            share = self._step / self._steps if self._steps else 0.0
            return load + expected.encode + (earlier + share) * self._sampling()
        sampled = load + expected.encode + self._spec.count * self._sampling()
        return sampled + earlier * expected.decode + self._silent(expected.decode)

    def _silent(self, expected: float) -> float:
        """What the clock says of a stage that reports nothing."""
        return min(self._clock() - self._since, SILENT_SHARE * expected)
