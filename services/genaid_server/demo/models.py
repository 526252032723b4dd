"""Small, complete GGUF models with random weights, which the real engines load and run.

What they compute is noise, but noise that depends on the prompt and the seed, and that passes through every
stage a real model passes through:

- the LLM is a llama over bytes with two layers: a quarter of a megabyte;
- the diffusion model is a Flux transformer cut down to one double and one single block, a CLIP-L text encoder
  and an autoencoder: about 150 MB, because the engine fixes the sizes of the text encoder and of the
  autoencoder's encoding half.

An architecture is a generator of `Tensor`s, so that a file's header is known before the first weight is drawn
and no more than one tensor is ever in memory. The same arguments give the same bytes, on every machine.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Encoding
from numpy.typing import NDArray

type _Array = NDArray[Any]

LLM_NAME = "genaid demo LLM (random weights)"
DIFFUSION_NAME = "genaid demo diffusion (random weights)"

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
_NORM_GROUPS = 32  # of a group norm, which needs its channels to divide evenly

_LLM_WIDTH = 64
_LLM_HEADS = 4
_LLM_FEED_FORWARD = 128
_SPECIAL_TOKENS = (b"<unk>", b"<s>", b"</s>")
_BYTE_TOKENS = 256
_SMALLEST_VOCAB = len(_SPECIAL_TOKENS) + _BYTE_TOKENS
_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "
# The engine finds out how a model marks its thoughts from what the template does with those of earlier answers.
_REASONING_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['role'] == 'assistant' and message['reasoning_content'] %}"
    "<think>{{ message['reasoning_content'] }}</think>{% endif %}"
    "{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)

_BIAS_SPREAD = 0.01
_PROMPT_GAIN = 2.5
_TAE_GAIN = 8.0
_Q4_BLOCK = 32  # weights that share one float16 scale
_Q4_BLOCK_BYTES = 2 + _Q4_BLOCK // 2
_Q4_SCALE = 0.005
_SEED = 20240801


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to come: normally distributed around `centre` with the standard deviation `spread`.

    `shape` is in numpy's order, the slowest dimension first. Where `live_rows` is set, all rows outside that
    half-open range are zero. Neither spread nor rows mean anything to Q4_0, whose blocks have one fixed scale.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding = Encoding.F32
    spread: float = 0.0
    centre: float = 0.0
    live_rows: tuple[int, int] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type in the file; bytes where the file holds blocks."""
        if self.encoding == Encoding.Q4_0:
            return np.dtype(np.uint8)
        return np.dtype(np.float16 if self.encoding == Encoding.F16 else np.float32)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in elements of `dtype`."""
        if self.encoding == Encoding.Q4_0:
            return (*self.shape[:-1], self.shape[-1] // _Q4_BLOCK * _Q4_BLOCK_BYTES)
        return self.shape

    @property
    def stored_bytes(self) -> int:
        """How many bytes the file spends on it, alignment apart."""
        return math.prod(self.stored_shape) * self.dtype.itemsize


class _Dice:
    """An endless, reproducible supply of random weights.

    The raw output of a bit generator is the one thing that numpy promises to keep from version to version. A
    byte of it picks one of 256 evenly likely values of the normal distribution: several times faster than to
    draw normally distributed floats and to round them, and as random as these models have to be.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)
        normal = NormalDist()
        self._normal = np.array([normal.inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)

    def roll(self, tensor: Tensor) -> _Array:
        """Draw the contents of `tensor`, as they stand in the file."""
        if tensor.encoding == Encoding.Q4_0:
            blocks = self._bytes(tensor.stored_bytes).reshape(-1, _Q4_BLOCK_BYTES)
            blocks[:, :2] = np.array([_Q4_SCALE], "<f2").view(np.uint8)
            return blocks.reshape(tensor.stored_shape)
        if not tensor.spread:
            return np.full(tensor.shape, tensor.centre, tensor.dtype)
        # Narrowed before the look-up, so that no tensor is ever converted. A numpy float64 would widen the
        # table to a type that llama.cpp refuses.
        table = (self._normal * np.float32(tensor.spread) + np.float32(tensor.centre)).astype(tensor.dtype)
        # An index of one byte cannot leave the table; "wrap" only spares the check, which costs more than half.
        values = np.take(table, self._bytes(math.prod(tensor.shape)), mode="wrap").reshape(tensor.shape)
        if tensor.live_rows:
            first, end = tensor.live_rows
            values[:first] = values[end:] = 0
        return values

    def _bytes(self, count: int) -> NDArray[np.uint8]:
        words = self._bits.random_raw(-(-count // 8))
        return words.astype("<u8", copy=False).view(np.uint8)[:count]


# --- what networks are made of


def _under(prefix: str, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        yield replace(tensor, name=f"{prefix}.{tensor.name}")


def _weight(*shape: int, gain: float = 0.5) -> Tensor:
    """A matrix or a kernel that multiplies the magnitude of what passes through it by about `gain`."""
    return Tensor("weight", shape, Encoding.F16, spread=gain / math.sqrt(math.prod(shape[1:])))


def _bias(size: int, centre: float = 0.0) -> Tensor:
    return Tensor("bias", (size,), spread=_BIAS_SPREAD, centre=centre)


def _scale(name: str, size: int) -> Tensor:
    return Tensor(name, (size,), centre=1.0)


def _linear(name: str, out: int, into: int, gain: float = 0.5) -> Iterator[Tensor]:
    return _under(name, (_weight(out, into, gain=gain), _bias(out)))


def _convolution(name: str, out: int, into: int, kernel: int = 3, *, bias: bool = True) -> Iterator[Tensor]:
    weight = _weight(out, into, kernel, kernel)
    return _under(name, (weight, _bias(out)) if bias else (weight,))


def _norm(name: str, size: int) -> Iterator[Tensor]:
    return _under(name, (_scale("weight", size), _bias(size)))


# --- Flux


def _flux() -> Iterator[Tensor]:
    width = _FLUX_WIDTH
    yield from _linear("img_in", width, 4 * _LATENT_CHANNELS)
    yield from _linear("txt_in", width, _T5_WIDTH)
    # The prompt enters through the second alone, and would be lost in the noise if it entered as softly as time.
    for embedder, into, gain in (("time_in", 256, 0.5), ("vector_in", _CLIP_WIDTH, _PROMPT_GAIN)):
        yield from _linear(f"{embedder}.in_layer", width, into, gain)
        yield from _linear(f"{embedder}.out_layer", width, width, gain)
    for stream in ("img", "txt"):
        yield from _under("double_blocks.0", _flux_stream(stream))
    yield from _under("single_blocks.0", _flux_single_block())
    yield from _linear("final_layer.linear", 4 * _LATENT_CHANNELS, width)
    yield from _linear("final_layer.adaLN_modulation.1", 2 * width, width)


def _flux_stream(stream: str) -> Iterator[Tensor]:
    width = _FLUX_WIDTH
    yield from _linear(f"{stream}_mod.lin", 6 * width, width)
    yield from _linear(f"{stream}_attn.qkv", 3 * width, width)
    yield from _linear(f"{stream}_attn.proj", width, width)
    yield _scale(f"{stream}_attn.norm.query_norm.scale", _FLUX_HEAD)
    yield _scale(f"{stream}_attn.norm.key_norm.scale", _FLUX_HEAD)
    yield from _linear(f"{stream}_mlp.0", 4 * width, width)
    yield from _linear(f"{stream}_mlp.2", width, 4 * width)


def _flux_single_block() -> Iterator[Tensor]:
    width = _FLUX_WIDTH
    yield from _linear("linear1", 7 * width, width)  # query, key, value and the four of the MLP in one
    yield from _linear("linear2", width, 5 * width)
    yield from _linear("modulation.lin", 3 * width, width)
    yield _scale("norm.query_norm.scale", _FLUX_HEAD)
    yield _scale("norm.key_norm.scale", _FLUX_HEAD)


# --- the text encoder


def _clip_l() -> Iterator[Tensor]:
    width = _CLIP_WIDTH
    yield Tensor("embeddings.token_embedding.weight", (_CLIP_VOCAB, width), Encoding.Q4_0)
    positions = (_CLIP_POSITIONS, width)
    yield Tensor("embeddings.position_embedding.weight", positions, spread=1 / math.sqrt(width))
    for layer in range(_CLIP_LAYERS):
        yield from _under(f"encoder.layers.{layer}", _clip_layer())
    yield from _norm("final_layer_norm", width)


def _clip_layer() -> Iterator[Tensor]:
    width = _CLIP_WIDTH
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _quantized_linear(f"self_attn.{projection}", width, width)
    yield from _quantized_linear("mlp.fc1", 4 * width, width)
    yield from _quantized_linear("mlp.fc2", width, 4 * width)
    yield from _norm("layer_norm1", width)
    yield from _norm("layer_norm2", width)


def _quantized_linear(name: str, out: int, into: int) -> Iterator[Tensor]:
    return _under(name, (Tensor("weight", (out, into), Encoding.Q4_0), _bias(out)))


# --- the autoencoder


def _vae(decoder_width: int) -> Iterator[Tensor]:
    yield from _under("decoder", _vae_decoder(decoder_width))
    yield from _under("encoder", _vae_encoder())


def _vae_decoder(width: int) -> Iterator[Tensor]:
    channels = 4 * width
    yield from _convolution("conv_in", channels, _LATENT_CHANNELS)
    yield from _under("mid", _vae_middle(channels))
    for level, factor in ((3, 4), (2, 4), (1, 2), (0, 1)):
        for block in range(3):
            yield from _under(f"up.{level}.block.{block}", _residual(channels, factor * width))
            channels = factor * width
        if level:
            yield from _convolution(f"up.{level}.upsample.conv", channels, channels)
    yield from _norm("norm_out", channels)
    yield from _convolution("conv_out", 3, channels)


def _vae_encoder() -> Iterator[Tensor]:
    channels = _ENCODER_WIDTH
    yield from _convolution("conv_in", channels, 3)
    for level, factor in enumerate((1, 2, 4, 4)):
        for block in range(2):
            yield from _under(f"down.{level}.block.{block}", _residual(channels, factor * _ENCODER_WIDTH))
            channels = factor * _ENCODER_WIDTH
        if level < 3:
            yield from _convolution(f"down.{level}.downsample.conv", channels, channels)
    yield from _under("mid", _vae_middle(channels))
    yield from _norm("norm_out", channels)
    yield from _convolution("conv_out", 2 * _LATENT_CHANNELS, channels)


def _vae_middle(channels: int) -> Iterator[Tensor]:
    yield from _under("block_1", _residual(channels, channels))
    yield from _norm("attn_1.norm", channels)
    for name in ("q", "k", "v", "proj_out"):
        yield from _convolution(f"attn_1.{name}", channels, channels, kernel=1)
    yield from _under("block_2", _residual(channels, channels))


def _residual(into: int, out: int) -> Iterator[Tensor]:
    yield from _norm("norm1", into)
    yield from _convolution("conv1", out, into)
    yield from _norm("norm2", out)
    yield from _convolution("conv2", out, out)
    if into != out:
        yield from _convolution("nin_shortcut", out, into, kernel=1)


def _tae() -> Iterator[Tensor]:
    """A tiny autoencoder; its layers have the numbers that they have in the TAESD checkpoints."""
    decoder = _tae_layers(blocks=(2, 3, 4, 7, 8, 9, 12, 13, 14, 17), resamplers=(6, 11, 16))
    encoder = _tae_layers(blocks=(1, 3, 4, 5, 7, 8, 9, 11, 12, 13), resamplers=(2, 6, 10))
    yield from _convolution("decoder.layers.0", _TAE_WIDTH, _LATENT_CHANNELS)
    yield from _under("decoder.layers", decoder)
    # Around middle grey, and loud enough not to be one single colour after all those layers.
    picture = (_weight(3, _TAE_WIDTH, 3, 3, gain=_TAE_GAIN), _bias(3, centre=0.5))
    yield from _under("decoder.layers.18", picture)
    yield from _convolution("encoder.layers.0", _TAE_WIDTH, 3)
    yield from _under("encoder.layers", encoder)
    yield from _convolution("encoder.layers.14", _LATENT_CHANNELS, _TAE_WIDTH)


def _tae_layers(blocks: tuple[int, ...], resamplers: tuple[int, ...]) -> Iterator[Tensor]:
    for block in blocks:
        for convolution in (0, 2, 4):
            yield from _convolution(f"{block}.conv.{convolution}", _TAE_WIDTH, _TAE_WIDTH)
    for resampler in resamplers:
        yield from _convolution(str(resampler), _TAE_WIDTH, _TAE_WIDTH, bias=False)


# --- the LLM


def _llama(vocab: int, layers: int) -> Iterator[Tensor]:
    width = _LLM_WIDTH
    yield _matrix("token_embd.weight", vocab, width)
    # Only printable ASCII gets a say, and a loud one: the gibberish is then valid UTF-8 however it is cut, and
    # it goes on until the caller's limit, because the end of the text is hardly ever the likeliest token.
    printable = (len(_SPECIAL_TOKENS) + ord(" "), len(_SPECIAL_TOKENS) + ord("~") + 1)
    yield replace(_matrix("output.weight", vocab, width, gain=3.0), live_rows=printable)
    yield _scale("output_norm.weight", width)
    for layer in range(layers):
        yield from _under(f"blk.{layer}", _llama_block())


def _llama_block() -> Iterator[Tensor]:
    width = _LLM_WIDTH
    yield _scale("attn_norm.weight", width)
    yield _scale("ffn_norm.weight", width)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield _matrix(f"{name}.weight", width, width)
    yield _matrix("ffn_gate.weight", _LLM_FEED_FORWARD, width)
    yield _matrix("ffn_up.weight", _LLM_FEED_FORWARD, width)
    yield _matrix("ffn_down.weight", width, _LLM_FEED_FORWARD)


def _matrix(name: str, out: int, into: int, gain: float = 1.0) -> Tensor:
    return Tensor(name, (out, into), Encoding.F16, spread=gain / math.sqrt(into))


def _describe_llama(file: gguf.GGUFWriter, vocab: int, layers: int, context_length: int, template: str) -> None:
    file.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    file.add_block_count(layers)
    file.add_context_length(context_length)
    file.add_embedding_length(_LLM_WIDTH)
    file.add_feed_forward_length(_LLM_FEED_FORWARD)
    file.add_head_count(_LLM_HEADS)
    file.add_head_count_kv(_LLM_HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(_LLM_WIDTH // _LLM_HEADS)
    file.add_rope_freq_base(10000.0)
    file.add_vocab_size(vocab)
    padding = vocab - _SMALLEST_VOCAB
    kinds = gguf.TokenType
    file.add_tokenizer_model("llama")
    file.add_token_list(
        [
            *_SPECIAL_TOKENS,
            *(f"<0x{byte:02X}>".encode() for byte in range(_BYTE_TOKENS)),
            *(f"<padding {i}>".encode() for i in range(padding)),
        ]
    )
    file.add_token_scores([0.0] * vocab)
    file.add_token_types(
        [
            *(kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL),
            *[kinds.BYTE] * _BYTE_TOKENS,
            *[kinds.NORMAL] * padding,
        ]
    )
    file.add_unk_token_id(0)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    # Each byte of a prompt is then one token, except that this tokenizer writes a space as the three of U+2581.
    file.add_add_space_prefix(False)
    file.add_chat_template(template)


# --- files


def write_llm(
    path: Path,
    *,
    vocab: int = _SMALLEST_VOCAB,
    context_length: int = 2048,
    layers: int = 2,
    reasoning: bool = False,
    pooling: gguf.PoolingType | None = None,
) -> Path:
    """Write a llama over bytes to `path`, and return that.

    A `vocab` above 259 pads the token list with tokens that no text contains: a header as long as a real
    model's. `reasoning` opens each answer with a thought, whose end `</think>` only a grammar makes sure of. `pooling`
    makes it an embedding model. Raises ValueError for a smaller vocabulary, or for a length or a number of layers
    below 1.
    """
    if vocab < _SMALLEST_VOCAB:
        raise ValueError(f"a vocabulary of bytes has at least {_SMALLEST_VOCAB} tokens, not {vocab}")
    if context_length < 1 or layers < 1:
        raise ValueError("context_length and layers must be at least 1")

    def describe(file: gguf.GGUFWriter) -> None:
        _describe_llama(file, vocab, layers, context_length, _REASONING_TEMPLATE if reasoning else _TEMPLATE)
        if pooling is not None:
            file.add_pooling_type(pooling)

    return _write(path, "llama", LLM_NAME, _llama(vocab, layers), describe)


def write_diffusion(path: Path, *, decoder_width: int = 32) -> Path:
    """Write a diffusion model that needs no other file to `path`, and return that.

    `decoder_width` sets how long the decoding takes; a real autoencoder has 128. Raises ValueError where it is
    not a positive multiple of 32.
    """
    if decoder_width < 1 or decoder_width % _NORM_GROUPS:
        raise ValueError(f"decoder_width must be a positive multiple of {_NORM_GROUPS}, not {decoder_width}")

    def tensors() -> Iterator[Tensor]:
        yield from _under("model.diffusion_model", _flux())
        yield from _under("text_encoders.clip_l.transformer.text_model", _clip_l())
        yield from _under("first_stage_model", _vae(decoder_width))

    return _write(path, "flux", DIFFUSION_NAME, tensors())


def write_diffusion_parts(folder: Path) -> dict[str, Path]:
    """Write a diffusion model of several files into `folder`, and return each under its role.

    The roles are `diffusion_model`, `clip_l` and `tae`, a tiny autoencoder in place of the usual one.
    """
    parts = {
        "diffusion_model": ("flux", _flux()),
        "clip_l": ("clip", _under("text_model", _clip_l())),
        "tae": ("tae", _tae()),
    }
    return {
        role: _write(folder / f"diffusion-{role}.gguf", architecture, f"{DIFFUSION_NAME}: {role}", tensors)
        for role, (architecture, tensors) in parts.items()
    }


def write_all(folder: Path) -> list[Path]:
    """Write `llm.gguf` and `diffusion.gguf` into `folder`, and return their paths."""
    return [write_llm(folder / "llm.gguf"), write_diffusion(folder / "diffusion.gguf")]


def _write(
    path: Path,
    architecture: str,
    name: str,
    tensors: Iterable[Tensor],
    describe: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Write one file under a temporary name, and give it its own only when it is whole.

    It isn't flushed to the disk before that, unlike what genaid keeps for a person: these weights can be
    written again at any time, and 150 MB of flushing can take longer than all the rest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary_name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(temporary_name)
    try:
        file = gguf.GGUFWriter(temporary, architecture)
        try:
            file.add_name(name)
            if describe:
                describe(file)
            _write_contents(file, list(tensors))
        finally:
            file.close()
        temporary.chmod(0o644)  # a temporary file is born readable by its owner alone
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _write_contents(file: gguf.GGUFWriter, tensors: list[Tensor]) -> None:
    for tensor in tensors:
        file.add_tensor_info(
            tensor.name, tensor.stored_shape, tensor.dtype, tensor.stored_bytes, raw_dtype=tensor.encoding
        )
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_ti_data_to_file()
    dice = _Dice(_SEED)
    for tensor in tensors:
        file.write_tensor_data(dice.roll(tensor))
