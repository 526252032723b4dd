"""How much memory stable-diffusion.cpp takes for a diffusion model. Sizes are bytes, edges of pictures pixels.

A picture takes three networks, one after the other: the text encoders, the backbone at each step, the decoder of the
autoencoder. The weights of all stay in memory; of the buffers that computing needs only one is alive at a time, hence
the largest counts. The factors below are what the engine says of its buffers for SD 1.5, SDXL, SD3 medium, Flux dev
and the demo models, and what their processes were seen to take.
"""

from dataclasses import dataclass
from typing import Final

from genaid_server.resource.core.fitting.footprint import Footprint, MemoryNeed
from genaid_server.resource.core.fitting.model_shape import Backbone, DiffusionShape

FALLBACK_FACTOR: Final = 1.2
"""Of a file's size, where its header says nothing: what the engine is known to take for small pictures."""
GPU_OVERHEAD: Final = 512 * 2**20
"""What a GPU's driver and libraries set aside before anything is computed."""
TILE: Final = 256
"""The edge of a tile of the autoencoder, in pixels of the picture."""

_PROCESS: Final = 54_000_000  # tokenizers, lists of tensors, and the heap around them, once a picture was made
_PICTURE: Final = 24  # for each pixel: its three channels as floats, twice
_FLOAT: Final = 4
_CLIP: Final = 2_500_000  # the larger CLIP's buffer
_TEXT_HEAD: Final = 64  # elements of an attention head of T5
_TEXT_SCORES: Final = 4  # of its attention: plain, with positions, and copies
# The same of the backbone, with the copies that multiplying makes of them: while scores are computed, or without any.
_STATES_BESIDE_SCORES: Final = {True: 13, False: 7}
_STATES: Final = {True: 16, False: 8}
_UNET_STATES_BESIDE_SCORES: Final = 11
_UNET_CONVOLUTION: Final = 99  # bytes for each channel and latent: three stacked inputs, unrolled for a 3 x 3 kernel
_UNET_SKIPS: Final = 3  # states of a level that wait until the network comes back to it
_UNET_PIXELS: Final = 8  # that a latent covers along an edge, where the convolutions are
_DECODER: Final = 52  # for each channel and pixel: twice the channels come in, unrolled for a 3 x 3 kernel
_TINY_DECODER: Final = 30  # the same, but no more channels come in than go out
_DECODER_PIXELS: Final = 8  # that a latent covers along an edge, where the decoder's attention is
_DECODER_CHANNELS: Final = 4  # times the finest level's, there
_DECODER_STATES: Final = 5  # that are alive there beside the scores


@dataclass(frozen=True, slots=True)
class _Stage:
    """One of the three networks: its weights, the buffer that it computes in, and where it does."""

    weights: int
    compute: int
    on_gpu: bool

    @property
    def total(self) -> int:
        return self.weights + self.compute


def need(
    shape: DiffusionShape,
    *,
    width: int = 512,
    height: int = 512,
    gpu: bool,
    flash_attention: bool = False,
    vae_tiling: bool = False,
    offload_to_cpu: bool = False,
    clip_on_cpu: bool = False,
    vae_on_cpu: bool = False,
) -> MemoryNeed:
    """What a model takes for one picture at its peak, beyond a process that has only imported the engine.

    With `offload_to_cpu` all weights stay in main memory, and those of the network that computes are also on the GPU.
    Without a GPU the three last settings are of no effect.
    """
    stages = (
        _Stage(shape.encoder_weights, _text(shape), gpu and not clip_on_cpu),
        _Stage(shape.backbone_weights, _backbone(shape, width * height, flash_attention=flash_attention), gpu),
        _Stage(shape.vae_weights, _decoder(shape, width, height, tiling=vae_tiling), gpu and not vae_on_cpu),
    )
    here = [stage for stage in stages if not stage.on_gpu]
    there = [stage for stage in stages if stage.on_gpu]
    ram = Footprint(
        weights=sum(stage.weights for stage in (stages if offload_to_cpu else here)),
        compute=max((stage.compute for stage in here), default=0) + _PICTURE * width * height,
        overhead=_PROCESS,
    )
    return MemoryNeed(ram, _on_gpu(there, offload_to_cpu=offload_to_cpu))


def fallback(size_bytes: int, gpu: bool) -> MemoryNeed:
    """What a model takes of which only the size of its files is known: on the GPU, if there is one."""
    guess = Footprint(weights=int(size_bytes * FALLBACK_FACTOR))
    return MemoryNeed(Footprint(), guess, exact=False) if gpu else MemoryNeed(guess, exact=False)


def _on_gpu(stages: list[_Stage], *, offload_to_cpu: bool) -> Footprint:
    if not stages:
        return Footprint()
    if offload_to_cpu:
        largest = max(stages, key=lambda stage: stage.total)
        return Footprint(weights=largest.weights, compute=largest.compute, overhead=GPU_OVERHEAD)
    return Footprint(
        weights=sum(stage.weights for stage in stages),
        compute=max(stage.compute for stage in stages),
        overhead=GPU_OVERHEAD,
    )


# --- the buffers of the three networks


def _text(shape: DiffusionShape) -> int:
    if not shape.language_encoder:
        return _CLIP
    scores = _TEXT_SCORES * shape.text_tokens**2 * (shape.text_width // _TEXT_HEAD)
    return max(_CLIP, (scores + shape.text_tokens * shape.text_width) * _FLOAT)


def _backbone(shape: DiffusionShape, pixels: int, *, flash_attention: bool) -> int:
    """The larger of two moments: when attention is computed, and when the widest states or convolutions are."""
    tokens = _tokens(pixels, shape.pixels_per_token)
    if shape.backbone is Backbone.UNET:
        # The finest level has as many channels less as it has latents more along an edge.
        channels = shape.width * _UNET_PIXELS // shape.pixels_per_token
        finest = channels * _tokens(pixels, _UNET_PIXELS)
        widest = _UNET_CONVOLUTION * finest
        beside = _UNET_STATES_BESIDE_SCORES * tokens * shape.width
        if shape.pixels_per_token > _UNET_PIXELS:
            beside += _UNET_SKIPS * finest
    else:
        text = shape.text_tokens * shape.text_width
        tokens += shape.text_tokens
        widest = (_STATES[shape.fused_blocks] * tokens * shape.width + text) * _FLOAT
        beside = _STATES_BESIDE_SCORES[shape.fused_blocks] * tokens * shape.width + text
    if flash_attention:
        return widest
    return max(widest, (tokens**2 * shape.heads + beside) * _FLOAT)


def _decoder(shape: DiffusionShape, width: int, height: int, *, tiling: bool) -> int:
    """The larger of two moments: the decoder's last convolutions, and the attention at its beginning."""
    pixels = min(width, TILE) * min(height, TILE) if tiling else width * height
    if shape.tiny_decoder:
        return _TINY_DECODER * shape.decoder_width * pixels
    tokens = _tokens(pixels, _DECODER_PIXELS)
    states = _DECODER_STATES * tokens * _DECODER_CHANNELS * shape.decoder_width
    return max(_DECODER * shape.decoder_width * pixels, (tokens**2 + states) * _FLOAT)


def _tokens(pixels: int, edge: int) -> int:
    """How many squares with this edge cover so many pixels."""
    return -(-pixels // edge**2)
