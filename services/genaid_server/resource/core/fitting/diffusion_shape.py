"""What of a diffusion model decides how much memory it takes, told from the names and shapes of its tensors.

The names are those that stable-diffusion.cpp reads: of single-file checkpoints, of their parts in files of their own,
and of diffusers. Headers come from strangers, so nothing here raises, and numbers that no model has are not believed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from genaid_server.resource.core.fitting.model_shape import Backbone, DiffusionShape
from genaid_server.resource.core.formats.gguf import GgufHeader
from genaid_server.resource.core.formats.safetensors import DTYPE_BITS, SafetensorsHeader
from genaid_server.resource.core.store.model import Component

CLIP_TOKENS: Final = 77
"""What a U-Net sees of a prompt: the one chunk that most prompts are."""
SD3_TOKENS: Final = 154
"""CLIP's chunk and as much of T5, which is filled with zeros where there is no T5."""
FLUX_CLIP_TOKENS: Final = 256
"""What the engine gives a Flux without T5: zeros."""
LONG_TOKENS: Final = 512
"""What Flux can take of T5, and newer models of their language models, at most. A short prompt is padded to 256 only,
but the prompt isn't known here."""
VAE_WIDTH: Final = 128
"""The decoder of all the usual autoencoders; also assumed where the files have none."""
TINY_WIDTH: Final = 64
"""The decoder of TAESD."""

_PIXELS_PER_LATENT: Final = 8  # of the usual autoencoders, along an edge
_MOST: Final = 2**16  # of a width; the widest model has a tenth of that
_MOST_PATCH: Final = 16  # latents along the edge of one token
_HEAD: Final = 128  # of a transformer that doesn't tell
_SD3_HEAD: Final = 64
_UNET_HEAD: Final = 64
_SD1_CONTEXT: Final = 768
_SD1_HEADS: Final = 8

_ENCODERS: Final = frozenset({Component.CLIP_L, Component.CLIP_G, Component.T5XXL, Component.LLM})
_LANGUAGE: Final = frozenset({Component.T5XXL, Component.LLM})
_AUTOENCODERS: Final = frozenset({Component.VAE, Component.TAE})

_ENCODER = re.compile(
    r"(?:text_encoders?(?:_\d)?|cond_stage_model|conditioner|te\d?|clip_[lg]|clip|t5xxl|text_model|llm)\."
)
_AUTOENCODER = re.compile(r"(?:first_stage_model|vae|tae|taesd)\.")
_PREFIX = re.compile(r"^(?:model\.diffusion_model|diffusion_model|model|unet|transformer)\.")
_T5 = re.compile(r"(?:^|\.)(?:t5xxl\.|encoder\.block\.\d+\.layer\.)")

_CROSS_ATTENTION = re.compile(
    r"(?:input_blocks\.(\d+)\.1|down_blocks\.(\d+)\.attentions\.0)\.transformer_blocks\.0\.attn2\.to_k\.weight"
)
_DOWNSAMPLER = re.compile(r"(?:input_blocks\.(\d+)\.0\.op|down_blocks\.(\d+)\.downsamplers\.0\.conv)\.weight")

_TRANSFORMER_BLOCK = re.compile(
    r"(?:double_blocks|single_blocks|joint_blocks|transformer_blocks|single_transformer_blocks|layers|blocks)\.\d+\."
)
_FUSED_BLOCK = re.compile(r"(?:single_blocks|single_transformer_blocks)\.\d+\.")
# Each turns a token of the picture into one of the hidden size, which is its last dimension in ggml's order.
_PICTURE_EMBEDDERS: Final = (
    "img_in.weight",
    "img_in_patch.weight",
    "x_embedder.proj.weight",
    "x_embedder.weight",
    "pos_embed.proj.weight",
    "patch_embedding.weight",
    "patchify_proj.weight",
    "all_x_embedder.2-1.weight",
)
_TEXT_EMBEDDERS: Final = (
    "txt_in.weight",
    "context_embedder.weight",
    "cap_embedder.1.weight",
    "text_embedding.0.weight",
    "caption_projection.linear_1.weight",
    "distilled_guidance_layer.in_proj.weight",
)
_HEAD_NORM = re.compile(
    r"\.(?:query_norm\.scale|query_norm\.weight|ln_q\.weight|norm_q\.weight|q_norm\.weight|norm_added_q\.weight)$"
)

type Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class PartTensor:
    """One tensor: its shape in ggml's order, the fastest dimension first, and the bytes that it takes in memory."""

    name: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TensorPart:
    """The tensors of one file of a model, and what that file is to it."""

    component: Component
    tensors: tuple[PartTensor, ...]

    @classmethod
    def from_gguf(cls, header: GgufHeader, component: Component = Component.MODEL) -> "TensorPart":
        """The tensors of a GGUF file; the engine keeps them as they are."""
        return cls(component, tuple(PartTensor(each.name, each.shape, each.size_bytes) for each in header.tensors))

    @classmethod
    def from_safetensors(cls, header: SafetensorsHeader, component: Component = Component.MODEL) -> "TensorPart":
        """The tensors of a safetensors file, whose dimensions come the other way around."""
        return cls(
            component,
            tuple(
                PartTensor(each.name, tuple(reversed(each.shape)), _loaded_size(each.dtype, each.size_bytes))
                for each in header.tensors
            ),
        )


def shape_of(parts: Sequence[TensorPart]) -> DiffusionShape | None:
    """Tell a diffusion model's shape from all its files. None where they hold no network that is known."""
    encoder = autoencoder = rest = 0
    backbone: Shapes = {}
    decoder: Shapes = {}
    language = False
    for part in parts:
        for tensor in part.tensors:
            size = max(0, tensor.size_bytes)
            language = language or part.component in _LANGUAGE or bool(_T5.search(tensor.name))
            if _is_encoder(part.component, tensor.name):
                encoder += size
            elif _is_autoencoder(part.component, tensor.name):
                autoencoder += size
                decoder[_AUTOENCODER.sub("", tensor.name, count=1)] = tensor.shape
            else:
                rest += size
                backbone[_PREFIX.sub("", tensor.name, count=1)] = tensor.shape
    network = _unet(backbone) or _transformer(backbone, language)
    if network is None:
        return None
    width, tiny = _decoder(decoder)
    return DiffusionShape(
        backbone=network.backbone,
        encoder_weights=encoder,
        vae_weights=autoencoder,
        backbone_weights=rest,
        width=network.width,
        heads=network.heads,
        pixels_per_token=network.pixels_per_token,
        text_tokens=network.text_tokens,
        text_width=network.text_width,
        decoder_width=width,
        tiny_decoder=tiny,
        fused_blocks=network.fused_blocks,
        language_encoder=language,
    )


# --- whose a tensor is


def _is_encoder(component: Component, name: str) -> bool:
    return component in _ENCODERS or (component not in _AUTOENCODERS and bool(_ENCODER.match(name)))


def _is_autoencoder(component: Component, name: str) -> bool:
    return component in _AUTOENCODERS or bool(_AUTOENCODER.match(name))


def _loaded_size(dtype: str, size: int) -> int:
    """ggml has no floats of 8 bits, which become those of 16, and none of 64, which become those of 32."""
    if dtype.startswith("F8_"):
        return size * 2
    return size // 2 if DTYPE_BITS.get(dtype) == 64 else size


# --- the network that removes the noise


@dataclass(frozen=True, slots=True)
class _Network:
    backbone: Backbone
    width: int
    heads: int
    pixels_per_token: int
    text_tokens: int
    text_width: int
    fused_blocks: bool = False


def _unet(shapes: Shapes) -> _Network | None:
    """A U-Net, by the first of its blocks that looks at the prompt."""
    found = [
        (_number(match), shape)
        for name, shape in shapes.items()
        if (match := _CROSS_ATTENTION.fullmatch(name)) and len(shape) == 2 and all(0 < each <= _MOST for each in shape)
    ]
    if not found:
        return None
    block, (context, width) = min(found)
    downsamplers = [_number(match) for match in map(_DOWNSAMPLER.fullmatch, shapes) if match]
    halvings = min(sum(each < block for each in downsamplers), 3)
    heads = _SD1_HEADS if context == _SD1_CONTEXT else max(1, width // _UNET_HEAD)
    return _Network(Backbone.UNET, width, heads, _PIXELS_PER_LATENT << halvings, CLIP_TOKENS, context)


def _number(match: re.Match[str]) -> int:
    # Of a number with more digits than any model has blocks, the first ones order it well enough.
    return int((match[1] or match[2])[:6])


def _transformer(shapes: Shapes, language: bool) -> _Network | None:
    """A transformer, by what makes its tokens."""
    embedder = next((shapes[name] for name in _PICTURE_EMBEDDERS if _plausible(shapes.get(name, ()))), None)
    if embedder is None or not any(map(_TRANSFORMER_BLOCK.match, shapes)):
        return None
    width = embedder[-1]
    fused = any(map(_FUSED_BLOCK.match, shapes))
    joint = any(name.startswith("joint_blocks.") for name in shapes)
    # A convolution's kernel covers the latents of one token; in the linear embedders two by two are a token.
    patch = min(embedder[0], _MOST_PATCH) if len(embedder) >= 4 else 2
    text = next((shapes[name] for name in _TEXT_EMBEDDERS if _plausible(shapes.get(name, ()))), (width, width))
    return _Network(
        Backbone.TRANSFORMER,
        width,
        heads=max(1, width // _head(shapes, width, _SD3_HEAD if joint else _HEAD)),
        pixels_per_token=patch * _PIXELS_PER_LATENT,
        text_tokens=_text_tokens(joint=joint, fused=fused, language=language),
        text_width=text[0],
        fused_blocks=fused,
    )


def _text_tokens(*, joint: bool, fused: bool, language: bool) -> int:
    if joint:
        return SD3_TOKENS
    return FLUX_CLIP_TOKENS if fused and not language else LONG_TOKENS


def _plausible(shape: tuple[int, ...]) -> bool:
    """Whether this can be a matrix or kernel that embeds something."""
    return len(shape) >= 2 and all(0 < each <= _MOST for each in shape)


def _head(shapes: Shapes, width: int, otherwise: int) -> int:
    """The elements of one attention head: those that the norms of queries have, where they are of one head."""
    norms = (shape[0] for name, shape in shapes.items() if _HEAD_NORM.search(name) and len(shape) == 1)
    return next((each for each in norms if 16 <= each <= min(width, 512)), otherwise)


# --- the autoencoder


def _decoder(shapes: Shapes) -> tuple[int, bool]:
    """The channels of the decoder's finest level, and whether it is a tiny one."""
    tiny = shapes.get("decoder.layers.0.weight")
    if tiny is not None or any(name.startswith("decoder.layers.") for name in shapes):
        return _channels(tiny, -1, TINY_WIDTH), True
    last = next((shapes[name] for name in ("decoder.conv_out.weight", "decoder.head.2.weight") if name in shapes), None)
    return _channels(last, -2, VAE_WIDTH), False


def _channels(kernel: tuple[int, ...] | None, dimension: int, otherwise: int) -> int:
    """A dimension of a convolution's kernel, if it can be one: 3 x 3 x in x out in ggml's order."""
    if kernel is None or len(kernel) < 4 or not 0 < kernel[dimension] <= _MOST:
        return otherwise
    return kernel[dimension]
