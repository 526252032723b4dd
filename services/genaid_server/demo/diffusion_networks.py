"""The networks of a diffusion model: transformer, text encoder, autoencoder."""

import math
from collections.abc import Iterator

from gguf import GGMLQuantizationType as Encoding

from genaid_server.demo.tensors import Tensor, bias, convolution, linear, norm, scale, under, weight

# The engine reads the transformer's width and depth off the file; everything else below it takes for granted.
_FLUX_WIDTH = 128
_FLUX_HEAD = 128
_T5_WIDTH = 4096
_LATENT_CHANNELS = 16
_CLIP_WIDTH = 768
_CLIP_LAYERS = 12
_CLIP_VOCAB = 49408
_CLIP_POSITIONS = 77
_ENCODER_WIDTH = 128
_TAE_WIDTH = 64
NORM_GROUPS = 32  # of a group norm, which needs its channels to divide evenly
_PROMPT_GAIN = 2.5
_TAE_GAIN = 8.0


# --- Flux


def flux() -> Iterator[Tensor]:
    """A Flux transformer with one double and one single block."""
    width = _FLUX_WIDTH
    yield from linear("img_in", width, 4 * _LATENT_CHANNELS)
    yield from linear("txt_in", width, _T5_WIDTH)
    # The prompt enters through the second alone, and would be lost in the noise if it entered as softly as time.
    for embedder, into, gain in (("time_in", 256, 0.5), ("vector_in", _CLIP_WIDTH, _PROMPT_GAIN)):
        yield from linear(f"{embedder}.in_layer", width, into, gain)
        yield from linear(f"{embedder}.out_layer", width, width, gain)
    for stream in ("img", "txt"):
        yield from under("double_blocks.0", _flux_stream(stream))
    yield from under("single_blocks.0", _flux_single_block())
    yield from linear("final_layer.linear", 4 * _LATENT_CHANNELS, width)
    yield from linear("final_layer.adaLN_modulation.1", 2 * width, width)


def _flux_stream(stream: str) -> Iterator[Tensor]:
    width = _FLUX_WIDTH
    yield from linear(f"{stream}_mod.lin", 6 * width, width)
    yield from linear(f"{stream}_attn.qkv", 3 * width, width)
    yield from linear(f"{stream}_attn.proj", width, width)
    yield scale(f"{stream}_attn.norm.query_norm.scale", _FLUX_HEAD)
    yield scale(f"{stream}_attn.norm.key_norm.scale", _FLUX_HEAD)
    yield from linear(f"{stream}_mlp.0", 4 * width, width)
    yield from linear(f"{stream}_mlp.2", width, 4 * width)


def _flux_single_block() -> Iterator[Tensor]:
    width = _FLUX_WIDTH
    yield from linear("linear1", 7 * width, width)  # query, key, value and the four of the MLP in one
    yield from linear("linear2", width, 5 * width)
    yield from linear("modulation.lin", 3 * width, width)
    yield scale("norm.query_norm.scale", _FLUX_HEAD)
    yield scale("norm.key_norm.scale", _FLUX_HEAD)


# --- the text encoder


def clip_l() -> Iterator[Tensor]:
    """A CLIP-L text encoder."""
    width = _CLIP_WIDTH
    yield Tensor("embeddings.token_embedding.weight", (_CLIP_VOCAB, width), Encoding.Q4_0)
    positions = (_CLIP_POSITIONS, width)
    yield Tensor("embeddings.position_embedding.weight", positions, spread=1 / math.sqrt(width))
    for layer in range(_CLIP_LAYERS):
        yield from under(f"encoder.layers.{layer}", _clip_layer())
    yield from norm("final_layer_norm", width)


def _clip_layer() -> Iterator[Tensor]:
    width = _CLIP_WIDTH
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _quantized_linear(f"self_attn.{projection}", width, width)
    yield from _quantized_linear("mlp.fc1", 4 * width, width)
    yield from _quantized_linear("mlp.fc2", width, 4 * width)
    yield from norm("layer_norm1", width)
    yield from norm("layer_norm2", width)


def _quantized_linear(name: str, out: int, into: int) -> Iterator[Tensor]:
    return under(name, (Tensor("weight", (out, into), Encoding.Q4_0), bias(out)))


# --- the autoencoder


def vae(decoder_width: int) -> Iterator[Tensor]:
    """An autoencoder; `decoder_width` sets how long decoding takes."""
    yield from under("decoder", _vae_decoder(decoder_width))
    yield from under("encoder", _vae_encoder())


def _vae_decoder(width: int) -> Iterator[Tensor]:
    channels = 4 * width
    yield from convolution("conv_in", channels, _LATENT_CHANNELS)
    yield from under("mid", _vae_middle(channels))
    for level, factor in ((3, 4), (2, 4), (1, 2), (0, 1)):
        for block in range(3):
            yield from under(f"up.{level}.block.{block}", _residual(channels, factor * width))
            channels = factor * width
        if level:
            yield from convolution(f"up.{level}.upsample.conv", channels, channels)
    yield from norm("norm_out", channels)
    yield from convolution("conv_out", 3, channels)


def _vae_encoder() -> Iterator[Tensor]:
    channels = _ENCODER_WIDTH
    yield from convolution("conv_in", channels, 3)
    for level, factor in enumerate((1, 2, 4, 4)):
        for block in range(2):
            yield from under(f"down.{level}.block.{block}", _residual(channels, factor * _ENCODER_WIDTH))
            channels = factor * _ENCODER_WIDTH
        if level < 3:
            yield from convolution(f"down.{level}.downsample.conv", channels, channels)
    yield from under("mid", _vae_middle(channels))
    yield from norm("norm_out", channels)
    yield from convolution("conv_out", 2 * _LATENT_CHANNELS, channels)


def _vae_middle(channels: int) -> Iterator[Tensor]:
    yield from under("block_1", _residual(channels, channels))
    yield from norm("attn_1.norm", channels)
    for name in ("q", "k", "v", "proj_out"):
        yield from convolution(f"attn_1.{name}", channels, channels, kernel=1)
    yield from under("block_2", _residual(channels, channels))


def _residual(into: int, out: int) -> Iterator[Tensor]:
    yield from norm("norm1", into)
    yield from convolution("conv1", out, into)
    yield from norm("norm2", out)
    yield from convolution("conv2", out, out)
    if into != out:
        yield from convolution("nin_shortcut", out, into, kernel=1)


def tae() -> Iterator[Tensor]:
    """A tiny autoencoder; its layers have the numbers that they have in the TAESD checkpoints."""
    decoder = _tae_layers(blocks=(2, 3, 4, 7, 8, 9, 12, 13, 14, 17), resamplers=(6, 11, 16))
    encoder = _tae_layers(blocks=(1, 3, 4, 5, 7, 8, 9, 11, 12, 13), resamplers=(2, 6, 10))
    yield from convolution("decoder.layers.0", _TAE_WIDTH, _LATENT_CHANNELS)
    yield from under("decoder.layers", decoder)
    # Around middle grey, and loud enough not to be one single colour after all those layers.
    picture = (weight(3, _TAE_WIDTH, 3, 3, gain=_TAE_GAIN), bias(3, centre=0.5))
    yield from under("decoder.layers.18", picture)
    yield from convolution("encoder.layers.0", _TAE_WIDTH, 3)
    yield from under("encoder.layers", encoder)
    yield from convolution("encoder.layers.14", _LATENT_CHANNELS, _TAE_WIDTH)


def _tae_layers(blocks: tuple[int, ...], resamplers: tuple[int, ...]) -> Iterator[Tensor]:
    for block in blocks:
        for place in (0, 2, 4):
            yield from convolution(f"{block}.conv.{place}", _TAE_WIDTH, _TAE_WIDTH)
    for resampler in resamplers:
        yield from convolution(str(resampler), _TAE_WIDTH, _TAE_WIDTH, biased=False)
