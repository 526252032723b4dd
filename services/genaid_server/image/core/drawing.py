"""The turn of one generation: gets the engine, has it draw, and tells how far it is."""

import asyncio
import math
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from genaid_server.image.core.engine import ImageEngine
from genaid_server.image.core.lease import ImageSize
from genaid_server.image.core.process import EngineProcess, ImageEvent, JobEvent, StageEvent
from genaid_server.image.core.progress import Calibration, Progress, Stage, Timings, Tracker
from genaid_server.image.core.settings import ImageModel
from genaid_server.image.core.spec import GenerationSpec
from genaid_server.kit.errors import BackendError
from genaid_server.kit.tasks import to_the_end
from genaid_server.supervision.supervisor import ServerState

TICK: Final = 0.25  # seconds between looks at the clock, for stages that report nothing


@dataclass(frozen=True, slots=True)
class Assumption:
    """What is known of the model before the engine has it: its id and the variant that computes. `fresh` is the model
    itself, where somebody has just asked for it."""

    model_id: str
    variant: str
    fresh: ImageModel | None


class Drawing:
    """Draws for one generation.

    `show` is called with each look at how far it is, `loaded` with the id of the model that the engine turned out to
    have. `grace` is for how many seconds a job that is cancelled may go on.
    """

    def __init__(
        self,
        engine: ImageEngine,
        calibration: Calibration,
        spec: GenerationSpec,
        grace: float,
        show: Callable[[Progress], None],
        loaded: Callable[[str], None],
    ) -> None:
        self._engine, self._calibration, self._spec, self._grace = engine, calibration, spec, grace
        self._show_progress, self._loaded = show, loaded
        self._size = ImageSize(spec.width, spec.height)

    async def draw(self, assumed: Assumption, done: Callable[[list[ImageEvent]], None]) -> None:
        """Draw, and hand the images over while the engine is still in use.

        Raises what the engine raises; when it is cancelled, nothing computes for it any more.
        """
        with self._engine.use() as use:
            tracker = Tracker(self._spec, self._calibration.expect(assumed.model_id, assumed.variant, self._spec))
            self._show_progress(tracker.progress())
            ticker = asyncio.create_task(self._tick(tracker), name="generation ticker")
            try:
                process, images = await self._load_and_generate(tracker, assumed.fresh)
            finally:
                ticker.cancel()
                await asyncio.wait([ticker])
            done(images)
            use.made = self._size
            config = process.config
            self._calibration.learn(config.model.id, config.variant, self._spec, self._measured(tracker))

    async def _load_and_generate(
        self, tracker: Tracker, model: ImageModel | None
    ) -> tuple[EngineProcess, list[ImageEvent]]:
        follower = asyncio.create_task(self._follow_load(tracker), name="generation load follower")
        try:
            process = await self._engine.ready(self._size, model)
        finally:
            follower.cancel()
            await asyncio.wait([follower])
        self._loaded(process.config.model.id)
        tracker.loaded()
        self._show_progress(tracker.progress())
        images: list[ImageEvent] = []
        try:
            async with aclosing(process.generate(self._spec)) as events:
                async for event in events:
                    _take(event, tracker, images)
                    self._show_progress(tracker.progress())
                    await asyncio.sleep(0)  # where several events came at once, watchers see the end of a stage as well
        except asyncio.CancelledError:
            await to_the_end(self._engine.interrupt(process, self._grace))
            raise
        if len(images) != self._spec.count:
            raise BackendError(f"The image engine made {len(images)} of {self._spec.count} images.")
        return process, images

    async def _follow_load(self, tracker: Tracker) -> None:
        async for info in self._engine.info.watch():
            life = info.life
            if life.state is ServerState.STARTING and life.pid is not None:  # before that it waits for memory
                tracker.loading(life.loaded, life.to_load)
                self._show_progress(tracker.progress())

    async def _tick(self, tracker: Tracker) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._show_progress(tracker.progress())

    def _measured(self, tracker: Tracker) -> Timings:
        """What the stages took. That of loading leaves out the wait for memory, which says nothing of the next time."""
        measured, load_seconds = tracker.measured(), self._engine.info.value.life.load_seconds
        if math.isnan(measured.load) or load_seconds is None:
            return measured
        return replace(measured, load=load_seconds)


def _take(event: JobEvent, tracker: Tracker, images: list[ImageEvent]) -> None:
    match event:
        case StageEvent(Stage.DECODING, image, _, _):
            tracker.decoding(image)
        case StageEvent(_, image, step, steps):
            tracker.diffusion(image, step, steps)
        case ImageEvent():
            images.append(event)
