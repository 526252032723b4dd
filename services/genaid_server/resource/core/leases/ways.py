"""How an image engine can compute, and which way it takes: the fastest that fits. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from genaid_server.resource.core.fitting import diffusion_memory
from genaid_server.resource.core.fitting.capacity import Capacity
from genaid_server.resource.core.fitting.footprint import Amount, MemoryNeed
from genaid_server.resource.core.fitting.model_shape import DiffusionShape
from genaid_server.resource.core.fitting.sizes import pair
from genaid_server.resource.core.leases.lease import ImagePlacement

CPU: Final = "cpu"
"""The one variant that takes no VRAM."""

_NO_GPU: Final = "No GPU was found whose memory is known: all that it takes is counted as main memory."

type Measured = Callable[[ImageNeed], int | None]
"""What an engine was seen to take of main memory when it ran so before; None where it did not."""


@dataclass(frozen=True, slots=True)
class ImageNeed:
    """What an image engine is to do; see the contract. Edges are in pixels, `max_vram_bytes` 0 is no limit."""

    model_id: str
    width: int = 512
    height: int = 512
    variant: str = CPU
    flash_attention: bool = False
    vae_tiling: bool = False
    offload_to_cpu: bool = False
    clip_on_cpu: bool = False
    vae_on_cpu: bool = False
    max_vram_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Way:
    """How an engine computes, and the memory that this takes.

    `need` has all that was chosen, the variant and the limit of VRAM that hold included. `on_gpu` are bytes on the GPU,
    which are a part of `amount.ram` where both share one memory. `measured` says that main memory was; the rest is
    always estimated.
    """

    need: ImageNeed
    amount: Amount
    on_gpu: int
    measured: bool
    placement: ImagePlacement


def choose(
    shape: DiffusionShape | None,
    size_bytes: int,
    need: ImageNeed,
    whole: Capacity,
    vram_limit: int,
    measured: Measured,
    *,
    as_asked: bool = False,
) -> Way:
    """The fastest way that fits where no other engine runs, else the one that comes closest.

    There is no choice where an engine computes `as_asked` already. Without a `shape` the size of the model's files
    tells what it takes. `whole` is all that genaid may use, `vram_limit` the part of it that is configured for GPUs, 0
    without such a limit.
    """
    asked = _asked(need, whole, vram_limit)
    of_gpu = min(whole.vram_best, asked.max_vram_bytes or whole.vram_best)
    needs = [asked] if as_asked else _needs(shape, asked)
    ways = [_way(shape, size_bytes, each, whole, measured) for each in needs]
    fastest, chosen = ways[0], min(ways, key=lambda way: _shortage(way, whole.ram, of_gpu))
    reasons = []
    if need.variant != asked.variant:
        reasons.append(_NO_GPU)
    if chosen != fastest:
        reasons.append(_why(fastest, chosen, whole.ram, of_gpu))
    if of_gpu < chosen.on_gpu <= whole.vram_best:
        required, limit = pair(chosen.on_gpu, of_gpu)
        reasons.append(f"It would take {required} of VRAM, and computes in smaller parts to stay within {limit}.")
    return replace(chosen, placement=replace(chosen.placement, reason=" ".join(reasons)))


def _asked(need: ImageNeed, whole: Capacity, vram_limit: int) -> ImageNeed:
    """What is asked for, with what holds on this machine: a variant without its GPU computes on the processor."""
    if need.variant == CPU or not whole.vram:
        return replace(need, variant=CPU, max_vram_bytes=0)
    return replace(need, max_vram_bytes=min(filter(None, (need.max_vram_bytes, vram_limit)), default=0))


def _needs(shape: DiffusionShape | None, asked: ImageNeed) -> list[ImageNeed]:
    """All ways, the fastest first."""
    if shape is None:  # nobody knows what would change
        return [asked]
    ways = [asked, replace(asked, vae_tiling=True)]
    if asked.variant != CPU:
        ways += [replace(way, offload_to_cpu=True) for way in ways]
    return list(dict.fromkeys(ways))


def _way(shape: DiffusionShape | None, size_bytes: int, need: ImageNeed, whole: Capacity, measured: Measured) -> Way:
    estimate = _estimate(shape, size_bytes, need)
    shared = whole.unified and need.variant != CPU
    known = None if shared else measured(need)  # who shares memory with a GPU does not show all that it takes
    ram = whole.ram_for(estimate)
    if known is not None:
        ram = known if ram > whole.ram else min(known, whole.ram)  # what fits is not refused for having been measured
    on_gpu = estimate.vram.total
    placement = ImagePlacement(need.offload_to_cpu, need.vae_tiling, need.max_vram_bytes)
    return Way(need, Amount(ram, 0 if shared else on_gpu), on_gpu, known is not None, placement)


def _estimate(shape: DiffusionShape | None, size_bytes: int, need: ImageNeed) -> MemoryNeed:
    gpu = need.variant != CPU
    if shape is None:
        guess = diffusion_memory.fallback(size_bytes, gpu)
        in_ram = diffusion_memory.fallback(size_bytes, gpu=False).ram
        return replace(guess, ram=in_ram) if need.offload_to_cpu else guess
    return diffusion_memory.need(
        shape,
        width=need.width,
        height=need.height,
        gpu=gpu,
        flash_attention=need.flash_attention,
        vae_tiling=need.vae_tiling,
        offload_to_cpu=need.offload_to_cpu,
        clip_on_cpu=need.clip_on_cpu,
        vae_on_cpu=need.vae_on_cpu,
    )


def _shortage(way: Way, ram: int, of_gpu: int) -> int:
    """The bytes that are missing; 0 where it fits."""
    return max(0, way.amount.ram - ram) + max(0, way.on_gpu - of_gpu)


def _why(fastest: Way, chosen: Way, ram: int, of_gpu: int) -> str:
    """What is done instead of the fastest way, and what that is short of."""
    changes = []
    if chosen.need.offload_to_cpu and not fastest.need.offload_to_cpu:
        changes.append("the weights stay in main memory and move to the GPU as they are needed")
    if chosen.need.vae_tiling and not fastest.need.vae_tiling:
        changes.append("the image is decoded in tiles")
    if fastest.on_gpu > of_gpu:
        name, (required, there) = "VRAM", pair(fastest.on_gpu, of_gpu)
    else:
        name, (required, there) = "RAM", pair(fastest.amount.ram, ram)
    what = ", and ".join(changes)
    return f"To save memory {what}: else it would take {required} of {name}, and may use {there}."
