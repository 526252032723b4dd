"""Where a generation is, in words and numbers."""

from typing import Final

from genaid_client import Generation, GenerationState, Stage

STAGE_NAMES: Final = {Stage.LOADING: "loading the model", Stage.DIFFUSION: "drawing", Stage.DECODING: "decoding"}


def describe(generation: Generation) -> str:
    """Say in a few words where a generation is."""
    if generation.state is GenerationState.PENDING:
        before = generation.queue_position
        return f"waiting, {before} before it" if before else "waiting"
    stage = generation.progress.stage if generation.progress else None
    return STAGE_NAMES[stage] if stage else "working"


def percentage(generation: Generation) -> float:
    """The share that is done, 0 to 100."""
    if generation.state is GenerationState.COMPLETE:
        return 100.0
    return generation.progress.percentage if generation.progress else 0.0


def detail(generation: Generation) -> str:
    """Say which step of which image is worked on."""
    progress = generation.progress
    if progress is None:
        return ""
    parts = []
    if progress.stage is Stage.DIFFUSION and progress.total_steps:
        parts.append(f"step {progress.current_step}/{progress.total_steps}")
    if progress.total_images > 1 and progress.current_image:
        parts.append(f"image {progress.current_image}/{progress.total_images}")
    return ", ".join(parts)
