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
from dataclasses import replace
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Encoding

from genaid_server.demo.diffusion_networks import NORM_GROUPS, clip_l, flux, tae, vae
from genaid_server.demo.tensors import Tensor, WeightSource, scale, under

LLM_NAME = "genaid demo LLM (random weights)"
DIFFUSION_NAME = "genaid demo diffusion (random weights)"


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

_SEED = 20240801


# --- the LLM


def _llama(vocab: int, layers: int) -> Iterator[Tensor]:
    width = _LLM_WIDTH
    yield _matrix("token_embd.weight", vocab, width)
    # Only printable ASCII gets a say, and a loud one: the gibberish is then valid UTF-8 however it is cut, and
    # it goes on until the caller's limit, because the end of the text is hardly ever the likeliest token.
    printable = (len(_SPECIAL_TOKENS) + ord(" "), len(_SPECIAL_TOKENS) + ord("~") + 1)
    yield replace(_matrix("output.weight", vocab, width, gain=3.0), live_rows=printable)
    yield scale("output_norm.weight", width)
    for layer in range(layers):
        yield from under(f"blk.{layer}", _llama_block())


def _llama_block() -> Iterator[Tensor]:
    width = _LLM_WIDTH
    yield scale("attn_norm.weight", width)
    yield scale("ffn_norm.weight", width)
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
    if decoder_width < 1 or decoder_width % NORM_GROUPS:
        raise ValueError(f"decoder_width must be a positive multiple of {NORM_GROUPS}, not {decoder_width}")

    def tensors() -> Iterator[Tensor]:
        yield from under("model.diffusion_model", flux())
        yield from under("text_encoders.clip_l.transformer.text_model", clip_l())
        yield from under("first_stage_model", vae(decoder_width))

    return _write(path, "flux", DIFFUSION_NAME, tensors())


def write_diffusion_parts(folder: Path) -> dict[str, Path]:
    """Write a diffusion model of several files into `folder`, and return each under its role.

    The roles are `diffusion_model`, `clip_l` and `tae`, a tiny autoencoder in place of the usual one.
    """
    parts = {
        "diffusion_model": ("flux", flux()),
        "clip_l": ("clip", under("text_model", clip_l())),
        "tae": ("tae", tae()),
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
    weights = WeightSource(_SEED)
    for tensor in tensors:
        file.write_tensor_data(weights.draw(tensor))
