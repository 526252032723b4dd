"""What a GGUF header means: the fields that people and planners ask for, and what the model is for."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from genaid_server.resource.core.formats.gguf import ArrayField, GgufHeader, Value


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """The part of a header that people and planners ask for. None or "" is what the header doesn't say.

    Counts and lengths are at least 0 and below 2**63; where layers differ in one, it is the greatest. Of a model in
    shards, `tensor_count` and `tensor_bytes` are those of all shards together.
    """

    version: int = 0
    tensor_count: int = 0
    kv_count: int = 0
    architecture: str = ""
    general_name: str = ""
    file_type: int | None = None
    block_count: int | None = None
    context_length: int | None = None
    attention_head_count: int | None = None
    attention_head_count_kv: int | None = None
    embedding_length: int | None = None
    feed_forward_length: int | None = None
    vocab_size: int | None = None
    rope_dimension_count: int | None = None
    rope_freq_base: float | None = None
    attention_layer_norm_rms_epsilon: float | None = None
    tensor_bytes: int = 0


_MAX_TEXT: Final = 200  # characters of a name that are worth keeping


def arch_field(header: GgufHeader, name: str) -> Value | None:
    """The field that the model's architecture prefixes: `block_count` is `llama.block_count` in a llama."""
    return header.fields.get(f"{_text(header, 'general.architecture')}.{name}")


def metadata(header: GgufHeader) -> GgufMetadata:
    """Pick out what the header says of the model. A value of the wrong type counts as absent."""

    def integer(name: str) -> int | None:
        return _integer(arch_field(header, name))

    vocab_size = integer("vocab_size")
    tokens = header.fields.get("tokenizer.ggml.tokens")
    if vocab_size is None and isinstance(tokens, ArrayField):
        vocab_size = tokens.length
    return GgufMetadata(
        version=header.version,
        tensor_count=header.tensor_count,
        kv_count=header.kv_count,
        architecture=_text(header, "general.architecture"),
        general_name=_text(header, "general.name"),
        file_type=_integer(header.fields.get("general.file_type")),
        block_count=integer("block_count"),
        context_length=integer("context_length"),
        attention_head_count=integer("attention.head_count"),
        attention_head_count_kv=integer("attention.head_count_kv"),
        embedding_length=integer("embedding_length"),
        feed_forward_length=integer("feed_forward_length"),
        vocab_size=vocab_size,
        rope_dimension_count=integer("rope.dimension_count"),
        rope_freq_base=_float(arch_field(header, "rope.freq_base")),
        attention_layer_norm_rms_epsilon=_float(arch_field(header, "attention.layer_norm_rms_epsilon")),
        tensor_bytes=header.tensor_bytes,
    )


def metadata_of_shards(headers: Sequence[GgufHeader]) -> GgufMetadata:
    """What the headers of all shards say together, the first shard's first: the others have little but tensors."""
    return replace(
        metadata(headers[0]),
        tensor_count=sum(header.tensor_count for header in headers),
        tensor_bytes=sum(header.tensor_bytes for header in headers),
    )


def _text(header: GgufHeader, key: str) -> str:
    value = header.fields.get(key)
    if not isinstance(value, str):
        return ""
    return "".join(character if character >= " " else " " for character in value[:_MAX_TEXT]).strip()


def _integer(value: Value | None) -> int | None:
    if isinstance(value, ArrayField):
        numbers = [number for each in value.values or () if (number := _integer(each)) is not None]
        return max(numbers, default=None)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    return None


def _float(value: Value | None) -> float | None:
    if isinstance(value, ArrayField):
        numbers = [number for each in value.values or () if (number := _float(each)) is not None]
        return max(numbers, default=None)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


# Architectures that the converters of stable-diffusion.cpp and ComfyUI-GGUF write.
_DIFFUSION_ARCHITECTURES: Final = frozenset(
    {
        *("flux", "flux2", "chroma", "sd1", "sd2", "sd3", "sdxl", "aura", "hidream", "lumina2", "z_image"),
        *("cosmos", "hyvid", "ltxv", "wan", "qwen_image", "qwen_image21"),
    }
)
# Encoders of text and images, which serve language models and diffusion models alike.
_SHARED_ARCHITECTURES: Final = frozenset({"clip", "t5", "t5encoder"})
# stable-diffusion.cpp writes no architecture at all: then the tensors' names tell.
_DIFFUSION_TENSORS: Final = (
    *("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders."),
    *("double_blocks.", "single_blocks.", "joint_blocks.", "input_blocks.", "middle_block.", "output_blocks."),
    *("transformer_blocks.", "single_transformer_blocks.", "joint_transformer_blocks.", "double_layers."),
)


def guess_type(header: GgufHeader, shards: Iterable[GgufHeader] = ()) -> Literal["llm", "diffusion"] | None:
    """Tell what the model is for, or None where the header leaves it open.

    `shards` are the headers of its other shards: a first one may be without tensors.
    """
    architecture = _text(header, "general.architecture")
    if architecture in _DIFFUSION_ARCHITECTURES:
        return "diffusion"
    if architecture in _SHARED_ARCHITECTURES:
        return None
    names = [tensor.name for each in (header, *shards) for tensor in each.tensors]
    if "tokenizer.ggml.model" in header.fields and any(
        name == "token_embd.weight" or name.startswith("blk.0.") for name in names
    ):
        return "llm"
    return "diffusion" if any(name.startswith(_DIFFUSION_TENSORS) for name in names) else None
