"""Between the image worker's core and its contracts, both ways."""

from collections.abc import Iterator
from typing import Final

from google.protobuf import duration_pb2

from genaid.common.v1 import engines_pb2
from genaid.image.v1 import engine_pb2, generation_pb2
from genaid_server.common.convert import event_to_pb, state_to_pb, stop_reason_to_pb
from genaid_server.common.times import duration_to_pb, time_to_pb
from genaid_server.image.core.engine import EngineInfo
from genaid_server.image.core.generation import Failure, Generation, GenerationState, ImageInfo
from genaid_server.image.core.progress import Progress, Stage
from genaid_server.image.core.settings import EngineOptions
from genaid_server.image.core.spec import GenerationSpec, Sampler, choose_seed
from genaid_server.kit.errors import InvalidRequestError
from genaid_server.supervision.supervisor import ServerState

_HEALTH = {
    ServerState.STOPPED: engines_pb2.HEALTH_STATE_UNKNOWN,
    ServerState.STARTING: engines_pb2.HEALTH_STATE_LOADING,
    ServerState.RUNNING: engines_pb2.HEALTH_STATE_OK,
    ServerState.STOPPING: engines_pb2.HEALTH_STATE_UNKNOWN,
    ServerState.CRASHED: engines_pb2.HEALTH_STATE_ERROR,
}
_STATES = {state: generation_pb2.GenerationState.Value(f"GENERATION_STATE_{state.name}") for state in GenerationState}
_STAGES = {stage: generation_pb2.Stage.Value(f"STAGE_{stage.name}") for stage in Stage}
_SAMPLERS = {sampler: generation_pb2.Sampler.Value(f"SAMPLER_{sampler.name}") for sampler in Sampler}
_SAMPLERS_BACK = {number: sampler for sampler, number in _SAMPLERS.items()}
_STATES_BACK: dict[int, GenerationState] = {number: state for state, number in _STATES.items()}
CHUNK: Final = 1_048_576
DEFAULTS: Final = GenerationSpec("any")


def seconds_from_pb(value: duration_pb2.Duration) -> float:
    """Seconds of a span of time."""
    return value.seconds + value.nanos / 1e9


def engine_to_pb(info: EngineInfo) -> engine_pb2.Engine:
    """The engine for callers."""
    life, config = info.life, info.life.config
    loaded = 100.0 if life.state is ServerState.RUNNING else 0.0
    if life.state is ServerState.STARTING and life.to_load:
        loaded = 100.0 * life.loaded / life.to_load
    return engine_pb2.Engine(
        state=state_to_pb(life.state),
        health=_HEALTH[life.state],
        busy=info.busy,
        model_id=config.model_id if config else "",
        pid=life.pid,
        start_time=time_to_pb(life.started_at) if life.started_at is not None else None,
        load_duration=duration_to_pb(life.load_seconds) if life.load_seconds is not None else None,
        threads=config.threads if config else 0,
        options=options_to_pb(config.options) if config else None,
        keep_alive=duration_to_pb(info.keep_alive),
        restarts=life.restarts,
        last_error=life.last_error,
        load_percentage=loaded,
        last_event=event_to_pb(life.event),
        variant=config.variant if config else "",
        accepting=info.accepting,
        stop_reason=stop_reason_to_pb(info.stop_reason),
        model_chosen=info.chosen,
    )


def options_to_pb(options: EngineOptions) -> engine_pb2.EngineOptions:
    """Engine options for callers."""
    return engine_pb2.EngineOptions(
        flash_attention=options.flash_attention,
        offload_to_cpu=options.offload_to_cpu,
        clip_on_cpu=options.clip_on_cpu,
        vae_on_cpu=options.vae_on_cpu,
        vae_tiling=options.vae_tiling,
        memory_map=options.memory_map,
        max_vram_bytes=options.max_vram_bytes or None,
    )


def options_from_pb(options: engine_pb2.EngineOptions) -> EngineOptions:
    """Engine options of a request. Raises InvalidRequestError."""
    if options.max_vram_bytes < 0:
        raise InvalidRequestError("max_vram_bytes must not be negative", field="options.max_vram_bytes")
    return EngineOptions(
        flash_attention=options.flash_attention,
        offload_to_cpu=options.offload_to_cpu,
        clip_on_cpu=options.clip_on_cpu,
        vae_on_cpu=options.vae_on_cpu,
        vae_tiling=options.vae_tiling,
        memory_map=options.memory_map,
        max_vram_bytes=options.max_vram_bytes,
    )


def spec_from_pb(spec: generation_pb2.GenerationSpec) -> GenerationSpec:
    """What a request asks for, with the defaults filled in and the seed chosen. Raises InvalidRequestError."""
    if spec.sampler != generation_pb2.SAMPLER_UNSPECIFIED and spec.sampler not in _SAMPLERS_BACK:
        raise InvalidRequestError(f"sampler {spec.sampler} is not known", field="sampler")
    count = spec.count if spec.HasField("count") else DEFAULTS.count
    return GenerationSpec(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        width=spec.width if spec.HasField("width") else DEFAULTS.width,
        height=spec.height if spec.HasField("height") else DEFAULTS.height,
        steps=spec.steps if spec.HasField("steps") else DEFAULTS.steps,
        cfg_scale=spec.cfg_scale if spec.HasField("cfg_scale") else DEFAULTS.cfg_scale,
        seed=choose_seed(spec.seed if spec.HasField("seed") else None, count),
        sampler=_SAMPLERS_BACK.get(spec.sampler, DEFAULTS.sampler),
        count=count,
    )


def spec_to_pb(spec: GenerationSpec) -> generation_pb2.GenerationSpec:
    """What was asked for, complete."""
    return generation_pb2.GenerationSpec(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        width=spec.width,
        height=spec.height,
        steps=spec.steps,
        cfg_scale=spec.cfg_scale,
        seed=spec.seed,
        sampler=_SAMPLERS[spec.sampler],
        count=spec.count,
    )


def generation_to_pb(generation: Generation) -> generation_pb2.Generation:
    """A generation for callers, without the bytes of its images."""
    return generation_pb2.Generation(
        id=generation.id,
        state=_STATES[generation.state],
        spec=spec_to_pb(generation.spec),
        create_time=time_to_pb(generation.created_at),
        update_time=time_to_pb(generation.updated_at),
        expire_time=time_to_pb(generation.expires_at) if generation.expires_at is not None else None,
        progress=progress_to_pb(generation.progress) if generation.progress else None,
        images=[image_to_pb(image) for image in generation.images],
        error=failure_to_pb(generation.failure) if generation.failure else None,
        duration=duration_to_pb(generation.seconds) if generation.seconds is not None else None,
        model_id=generation.model_id,
        queue_position=generation.queue_position,
    )


def failure_to_pb(failure: Failure) -> generation_pb2.GenerationError:
    """Why a generation failed, for callers."""
    return generation_pb2.GenerationError(code=failure.code, message=failure.message, facts=failure.facts)


def progress_to_pb(progress: Progress) -> generation_pb2.Progress:
    """How far a generation is, for callers."""
    return generation_pb2.Progress(
        stage=_STAGES[progress.stage],
        current_step=progress.current_step,
        total_steps=progress.total_steps,
        percentage=progress.percentage,
        current_image=progress.current_image,
        total_images=progress.total_images,
    )


def image_to_pb(image: ImageInfo) -> generation_pb2.ImageInfo:
    """About an image, for callers."""
    return generation_pb2.ImageInfo(
        index=image.index,
        seed=image.seed,
        width=image.width,
        height=image.height,
        size_bytes=image.size_bytes,
        sha256=image.sha256,
    )


def state_from_pb(number: int) -> GenerationState | None:
    """The state that a list asks for, None for all. Raises InvalidRequestError."""
    if number == generation_pb2.GENERATION_STATE_UNSPECIFIED:
        return None
    if number not in _STATES_BACK:
        raise InvalidRequestError(f"state {number} is not known", field="state")
    return _STATES_BACK[number]


def chunks(data: bytes) -> Iterator[bytes]:
    """The bytes in pieces of at most 1 MiB, at least one piece."""
    for start in range(0, max(1, len(data)), CHUNK):
        yield data[start : start + CHUNK]
