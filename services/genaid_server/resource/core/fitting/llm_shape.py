"""The shape of a language model, read from its GGUF header.

A header comes from a stranger: what is missing, of the wrong type or beyond all reason makes the shape unknown, and
never an error. Where it is unclear how llama.cpp will run a layer, the shape is of the way that takes more memory.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from genaid_server.resource.core.fitting.model_shape import Layer, LlmShape, Pooling
from genaid_server.resource.core.formats.gguf import ArrayField, GgufHeader, TensorInfo, ValueType
from genaid_server.resource.core.formats.metadata import GgufMetadata, arch_field, metadata

MAX_LAYERS: Final = 1024
"""Layers of a model, so many as an array of the header may have; llama.cpp stops at half of that."""
MAX_HEADS: Final = 2**12
"""Attention heads of a layer. The largest models have some hundred."""
MAX_WIDTH: Final = 2**20
"""Elements that anything in a layer is wide: its hidden size, feed-forward, all its heads."""
MAX_VOCAB: Final = 2**24
"""Tokens of a vocabulary. The largest have a quarter of a million."""
MAX_TOKENS: Final = 2**31
"""Context and window, in tokens."""
MAX_STATE: Final = 2**32
"""Bytes of recurrent state in a layer."""
MAX_WEIGHTS: Final = 2**50
"""Bytes of all tensors together."""

_FLOAT: Final = 4  # bytes: recurrent state is F32
_TOKEN_SHIFTS: Final = 2  # of RWKV, where the header doesn't say
_DELTA_CONVOLUTION: Final = 4  # of a delta network, where the header doesn't say
_TENSOR: Final = re.compile(r"blk\.(?P<layer>[0-9]{1,4})\.(?P<name>.+)", re.DOTALL)
_EXPERTS: Final = re.compile(r"_(ch)?exps[._]")
_INPUT: Final = ("token_embd.", "per_layer_token_embd")
_RECURRENT: Final = ("ssm_", "time_mix_", "shortconv.")

# Of so many layers the last one sees everything and the others only a window. What other architectures do, or what
# llama.cpp makes of their windows, is only believed where the header marks each layer.
_WINDOW_PERIODS: Final = MappingProxyType({"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4})
# Their recurrent layers have tensors of the same names as attention, but the header counts KV heads for all layers.
_DELTA_NETWORKS: Final = frozenset({"qwen3next", "qwen35", "qwen35moe"})


def shape_of(headers: Sequence[GgufHeader]) -> LlmShape | None:
    """The shape of the model whose shards have these headers, the first shard first.

    None where the header lacks what is needed, or says what no model can have: then only the size of the files tells
    how much memory the model takes.
    """
    if not headers:
        return None
    header = headers[0]
    said = metadata(header)
    tensors = _Tensors.of(said, headers)
    if tensors is None:
        return None
    model = _Model.of(header, said)
    if model is None:
        return None
    layers = tuple(_layer(model, number, group) for number, group in enumerate(tensors.layers))
    shape = LlmShape(
        architecture=said.architecture,
        layers=layers,
        input_weights=tensors.input,
        output_weights=tensors.output,
        embedding_width=model.width,
        feed_forward_width=model.feed_forward,
        query_width=model.query_width,
        head_count=max(model.heads),
        vocab_size=_bounded(said.vocab_size, MAX_VOCAB) or tensors.vocab_size,
        context_length=model.context_length,
        experts_used=model.experts_used,
        tied_weights=tensors.tied,
        pooling=_pooling(header),
    )
    return shape if _believable(shape) else None


def _pooling(header: GgufHeader) -> Pooling | None:
    kind = _number(header, "pooling_type", max(Pooling))
    return Pooling(kind) if kind else None


def _believable(shape: LlmShape) -> bool:
    widest = max(max(layer.key_width, layer.value_width) for layer in shape.layers)
    return (
        max(widest, shape.query_width, shape.feed_forward_width) <= MAX_WIDTH
        and max(layer.state for layer in shape.layers) <= MAX_STATE
        and shape.weights <= MAX_WEIGHTS
    )


# --- tensors


@dataclass(slots=True)
class _Group:
    """The tensors of one layer: sizes in bytes, and their names without the layer's."""

    weights: int = 0
    experts: int = 0
    largest: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str, size: int) -> None:
        self.weights += size
        self.largest = max(self.largest, size)
        self.names.append(name)
        if _EXPERTS.search(name):
            self.experts += size

    def has(self, *starts: str) -> bool:
        return any(name.startswith(starts) for name in self.names)


@dataclass(slots=True)
class _Tensors:
    """All tensors of a model, by where they belong; sizes in bytes."""

    layers: list[_Group]
    input: int = 0
    output: int = 0
    tied: int = 0
    vocab_size: int = 0

    @classmethod
    def of(cls, said: GgufMetadata, headers: Iterable[GgufHeader]) -> "_Tensors | None":
        count = _bounded(said.block_count, MAX_LAYERS)
        if not count:
            return None
        result = cls([_Group() for _ in range(count)])
        embeddings, has_output = 0, False
        for tensor in (tensor for header in headers for tensor in header.tensors):
            found = _TENSOR.fullmatch(tensor.name)
            number = int(found["layer"]) if found else count
            if found and number < count:
                result.layers[number].add(found["name"], tensor.size_bytes)
            elif tensor.name.startswith(_INPUT):
                result.input += tensor.size_bytes
                if tensor.name == "token_embd.weight":
                    embeddings, result.vocab_size = tensor.size_bytes, _rows(tensor)
            else:
                result.output += tensor.size_bytes
                has_output = has_output or tensor.name == "output.weight"
        result.tied = 0 if has_output else embeddings
        return result if any(group.names for group in result.layers) else None


def _rows(tensor: TensorInfo) -> int:
    return tensor.shape[1] if len(tensor.shape) > 1 and tensor.shape[1] <= MAX_VOCAB else 0


# --- fields


def _bounded(value: object, most: int) -> int | None:
    """A number from the header; None where it isn't one, or is out of all bounds."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
        return value
    return None


@dataclass(frozen=True, slots=True)
class _Heads:
    """Widths of one attention head, in elements."""

    key: int
    value: int


@dataclass(frozen=True, slots=True)
class _Model:
    """What the header says of all layers.

    Lists have one entry for each layer. `latent_width` is what latent attention keeps of a token instead of its
    heads, 0 for other attention; `state` are bytes that a recurrent layer keeps of one sequence.
    """

    architecture: str
    width: int
    context_length: int
    feed_forward: int
    experts_used: int
    heads: list[int]
    kv_heads: list[int]
    head: _Heads
    windowed_head: _Heads
    windows: list[int]
    latent_width: int
    shared_kv_layers: int
    state: int

    @classmethod
    def of(cls, header: GgufHeader, said: GgufMetadata) -> "_Model | None":
        count = _bounded(said.block_count, MAX_LAYERS) or 0
        width = _bounded(said.embedding_length, MAX_WIDTH)
        context_length = _bounded(said.context_length, MAX_TOKENS)
        heads = _per_layer(header, "attention.head_count", count, MAX_HEADS)
        kv_heads = heads
        if arch_field(header, "attention.head_count_kv") is not None:
            kv_heads = _per_layer(header, "attention.head_count_kv", count, MAX_HEADS)
        if not width or not context_length or heads is None or kv_heads is None:
            return None
        experts_used = _number(header, "expert_used_count", MAX_HEADS)
        default = width // min((each for each in heads if each), default=width)
        return cls(
            architecture=said.architecture,
            width=width,
            context_length=context_length,
            feed_forward=_feed_forward(header, count, experts_used),
            experts_used=experts_used,
            heads=heads,
            kv_heads=kv_heads,
            head=_heads(header, default, ("",)),
            windowed_head=_heads(header, default, ("_swa", "")),
            windows=_windows(header, said.architecture, count),
            latent_width=_latent_width(header),
            shared_kv_layers=_number(header, "attention.shared_kv_layers", MAX_LAYERS),
            state=_state(header, width, max(heads)),
        )

    @property
    def query_width(self) -> int:
        return max(self.heads) * (self.latent_width or max(self.head.key, self.windowed_head.key))


def _number(header: GgufHeader, name: str, most: int) -> int:
    """A field of the architecture; 0 where it is absent or beyond reason."""
    return _bounded(arch_field(header, name), most) or 0


def _per_layer(header: GgufHeader, name: str, count: int, most: int) -> list[int] | None:
    """A field that may have one value for each layer; None where it is absent or beyond reason."""
    value = arch_field(header, name)
    if not isinstance(value, ArrayField):
        number = _bounded(value, most)
        return None if number is None else [number] * count
    numbers = [number for each in value.values or () if (number := _bounded(each, most)) is not None]
    if not numbers or len(numbers) != value.length:
        return None
    # llama.cpp refuses an array that is too short: then any value is as good, and the greatest is safe.
    return [*numbers[:count], *[max(numbers)] * (count - len(numbers))]


def _feed_forward(header: GgufHeader, count: int, experts_used: int) -> int:
    """How wide the widest thing is that a layer computes for one token besides attention."""
    dense = max(_per_layer(header, "feed_forward_length", count, MAX_WIDTH) or [0])
    expert = _number(header, "expert_feed_forward_length", MAX_WIDTH) or dense
    shared = _number(header, "expert_shared_feed_forward_length", MAX_WIDTH)
    # A recurrent layer has its inner width twice: the sequence and its gate.
    return max(dense, experts_used * expert + shared, 2 * _number(header, "ssm.inner_size", MAX_WIDTH))


def _windows(header: GgufHeader, architecture: str, count: int) -> list[int]:
    window = _number(header, "attention.sliding_window", MAX_TOKENS)
    pattern = arch_field(header, "attention.sliding_window_pattern")
    if isinstance(pattern, ArrayField):
        marks = pattern.values if pattern.element_type is ValueType.BOOL and pattern.values else ()
        return [window if number < len(marks) and marks[number] is True else 0 for number in range(count)]
    period = _WINDOW_PERIODS.get(architecture, 1)
    if period > 1:
        period = _bounded(pattern, MAX_LAYERS) or period
    return [window if number % period < period - 1 else 0 for number in range(count)]


def _heads(header: GgufHeader, default: int, suffixes: tuple[str, ...]) -> _Heads:
    """The widths of heads by the first of the fields with these suffixes that the header has."""

    def width(name: str) -> int:
        found = (_number(header, f"attention.{name}{suffix}", MAX_WIDTH) for suffix in suffixes)
        return next(filter(None, found), default)

    return _Heads(width("key_length"), width("value_length"))


def _latent_width(header: GgufHeader) -> int:
    """Only a header that knows the heads' widths beside those of the latent vector has the tensors for it."""
    rank = _number(header, "attention.kv_lora_rank", MAX_WIDTH)
    if not rank or not _number(header, "attention.key_length_mla", MAX_WIDTH):
        return 0
    # Sparse attention keeps a short key besides, by which it chooses the tokens to look at.
    indexer = _number(header, "attention.indexer.key_length", MAX_WIDTH)
    return rank + _number(header, "rope.dimension_count", MAX_WIDTH) + indexer


def _state(header: GgufHeader, width: int, heads: int) -> int:
    """Bytes that a recurrent layer keeps of one sequence: what it convolves, and what it remembers."""
    if wkv_head := _number(header, "wkv.head_size", MAX_WIDTH):
        shifts = _number(header, "token_shift_count", MAX_HEADS) or _TOKEN_SHIFTS
        return width * (shifts + wkv_head) * _FLOAT
    if kept := _number(header, "shortconv.l_cache", MAX_WIDTH):
        return width * (kept - 1) * _FLOAT
    kernel = _number(header, "ssm.conv_kernel", MAX_WIDTH)
    if delta_head := _number(header, "kda.head_dim", MAX_WIDTH):
        return heads * delta_head * (3 * ((kernel or _DELTA_CONVOLUTION) - 1) + delta_head) * _FLOAT
    inner, state = _number(header, "ssm.inner_size", MAX_WIDTH), _number(header, "ssm.state_size", MAX_WIDTH)
    convolved = inner + 2 * _number(header, "ssm.group_count", MAX_WIDTH) * state
    return (max(0, kernel - 1) * convolved + inner * state) * _FLOAT


# --- layers


def _layer(model: _Model, number: int, group: _Group) -> Layer:
    keys, values, head = _cached(model, number, group)
    return Layer(
        weights=group.weights,
        expert_weights=group.experts,
        key_width=keys,
        value_width=values,
        head_width=head,
        window=model.windows[number] if keys or values else 0,
        state=model.state if group.has(*_RECURRENT) else 0,
        largest_tensor=group.largest,
    )


def _cached(model: _Model, number: int, group: _Group) -> tuple[int, int, int]:
    """What attention keeps of a token in a layer: the widths of keys and values, and what divides their heads."""
    kv_heads = model.kv_heads[number]
    shared = number >= len(model.kv_heads) - model.shared_kv_layers
    if not kv_heads or shared or not _attends(model, group):
        return 0, 0, 0
    if model.latent_width:
        return model.latent_width, 0, model.latent_width
    head = model.windowed_head if model.windows[number] else model.head
    return kv_heads * head.key, kv_heads * head.value, math.gcd(head.key, head.value)


def _attends(model: _Model, group: _Group) -> bool:
    """Whether a layer has attention: a recurrent one only if there are tensors for it."""
    if not group.has(*_RECURRENT):
        return True
    return group.has("attn_k.") or (group.has("attn_qkv.") and model.architecture not in _DELTA_NETWORKS)
