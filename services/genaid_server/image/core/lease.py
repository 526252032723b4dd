"""What the image worker asks of the resource manager: which model draws, and the right to occupy memory for it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Protocol

from genaid_server.image.core.settings import EngineOptions, ImageModel, Settings
from genaid_server.kit.errors import ModelNotFoundError, ServerError


class ManagerAwayError(ServerError):
    """The resource manager does not answer, so it has neither granted nor refused anything."""


class LeaseState(Enum):
    """Where a lease is in its life; see the contract."""

    WAITING = auto()
    GRANTED = auto()
    RECLAIM = auto()


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The size of an image in pixels. Both 0: no image."""

    width: int
    height: int

    def covers(self, other: "ImageSize") -> bool:
        """Whether the memory for an image of this size does for the other: it follows from the number of pixels."""
        return other.width * other.height <= self.width * self.height


SMALLEST: Final = ImageSize(64, 64)
"""What a model is loaded for that nobody wants an image of yet."""
NO_IMAGE: Final = ImageSize(0, 0)


@dataclass(frozen=True, slots=True)
class EngineNeed:
    """What the engine is to do: images up to a size, with a model; the default one where `model_id` is empty."""

    model_id: str
    variant: str
    options: EngineOptions
    size: ImageSize


@dataclass(frozen=True, slots=True)
class ImagePlacement:
    """How the engine is to use its memory. `max_vram_bytes` 0 is no limit; `reason` is empty where it is the fastest
    way."""

    offload_to_cpu: bool = False
    vae_tiling: bool = False
    max_vram_bytes: int = 0
    reason: str = ""

    def applied_to(self, options: EngineOptions) -> EngineOptions:
        """What the engine computes with, of which callers asked for `options`."""
        return replace(
            options,
            offload_to_cpu=options.offload_to_cpu or self.offload_to_cpu,
            vae_tiling=options.vae_tiling or self.vae_tiling,
            max_vram_bytes=self.max_vram_bytes or options.max_vram_bytes,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease at one moment, for the engine that is to load `model`.

    `reclaim_after` counts in RECLAIM: seconds for which an idle engine may stay.
    """

    id: str
    state: LeaseState
    model: ImageModel
    reason: str = ""
    reclaim_after: float = 0.0
    placement: ImagePlacement = ImagePlacement()


@dataclass(frozen=True, slots=True)
class Prospect:
    """What would happen if a lease were asked for now: with which model, and whether nobody would have to leave."""

    model: ImageModel
    has_room: bool


class LeaseClient(Protocol):
    """The resource manager, as far as the worker asks it."""

    async def resolve(self, model_id: str, tenant_id: str = "") -> ImageModel:
        """The model of an id, or the default one where it is empty, as it is in the store now.

        With a `tenant_id` it is also told that this is what that worker draws with from now on. Raises
        ModelNotFoundError, also for one that is no diffusion model, and where none is named and none or several could
        be meant; ManagerAwayError, ServerError.
        """

    async def prospect(self, need: EngineNeed) -> Prospect:
        """What would happen if a lease were asked for now.

        Raises InsufficientResourcesError where it never could be granted, and else what `resolve` raises.
        """

    def hold(self, tenant_id: str, need: EngineNeed, *, resident: bool = False) -> AsyncGenerator[Lease, None]:
        """A lease as it is, then after each change, for as long as it is iterated.

        `resident` says that the engine has the memory already. It ends when another lease of the same tenant takes
        its place. Raises ManagerAwayError; InsufficientResourcesError and other DomainErrors where it is refused.
        """

    async def report_use(self, lease_id: str, size: ImageSize, peak_ram_bytes: int) -> None:
        """Tell that a use of the engine has ended just now, what was made, and what it took; 0 where unknown.

        Raises DomainError.
        """


def choice_missing(settings: Settings, error: ModelNotFoundError) -> ModelNotFoundError:
    """What to say where a model that was chosen is there no more; the same error where none was chosen."""
    if settings.is_default:
        return error
    return ModelNotFoundError(
        f"{error.message} The image engine was told to draw with it; choose another: genaid engine start --model ID",
        **error.facts,
    )
