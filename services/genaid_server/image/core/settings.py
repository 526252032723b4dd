"""What an image engine is told to load, and how it is to compute."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

WHOLE: Final = "model"
"""What the only file of a model is to it."""


@dataclass(frozen=True)
class EngineOptions:
    """How the engine computes; see the contract. `max_vram_bytes` 0 is no limit."""

    flash_attention: bool = False
    offload_to_cpu: bool = False
    clip_on_cpu: bool = False
    vae_on_cpu: bool = False
    vae_tiling: bool = False
    memory_map: bool = False
    max_vram_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A diffusion model as it is in the store.

    `files` are its files with what each is to it: one `model`, or several components, the diffusion model first.
    """

    id: str
    name: str
    files: tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class Settings:
    """What the engine is told to load and how it is to compute, to be compared with ==.

    An empty `model_id` is the default model, which the resource manager decides anew each time.
    """

    model_id: str
    threads: int
    options: EngineOptions = EngineOptions()
    variant: str = "cpu"

    @property
    def is_default(self) -> bool:
        """Whether no model was chosen."""
        return not self.model_id

    def resolved(self, model_id: str) -> "Settings":
        """The same with the model that it turned out to be."""
        return replace(self, model_id=model_id)


@dataclass(frozen=True)
class ImageEngineConfig:
    """What one life of the engine needs to know: the model with its files, and how to compute."""

    model: ImageModel
    threads: int
    options: EngineOptions = EngineOptions()
    variant: str = "cpu"
