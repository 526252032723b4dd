"""What of a model decides how much memory it takes, told from its header. Sizes are bytes."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cached_property
from itertools import accumulate


class CacheType(StrEnum):
    """How the KV cache is stored; q8_0 and q4_0 need flash attention."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class Pooling(IntEnum):
    """How an embedding model makes one vector of a text's tokens: the numbers are the header's. Those for none, and for
    a rank instead of a vector, are left out."""

    MEAN = 1
    CLS = 2
    LAST = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a language model.

    `weights` are all its tensors, `expert_weights` the part that belongs to the experts of a mixture, and
    `largest_tensor` the size of the largest one. `key_width` and `value_width` are elements of the KV cache for one
    token: KV heads times head dimension; 0 in a layer without attention, and values are 0 where they are computed from
    the keys. `head_width` divides the dimensions of both kinds of heads, and is the greatest number that does.
    `window` is the sliding window in tokens, 0 where the layer sees everything. `state` are bytes of recurrent state
    for one sequence.
    """

    weights: int
    expert_weights: int = 0
    key_width: int = 0
    value_width: int = 0
    head_width: int = 0
    window: int = 0
    state: int = 0
    largest_tensor: int = 0


@dataclass(frozen=True, slots=True)
class CacheWidth:
    """What layers with the same window keep for one token, all of them together.

    `layers` is their number; widths and window are as in Layer.
    """

    window: int
    key_width: int
    value_width: int
    layers: int


@dataclass(frozen=True, slots=True)
class LayerSums:
    """The sums over some last layers of a model, each as in Layer, and the largest tensor of the layers before them."""

    weights: int
    expert_weights: int
    state: int
    caches: tuple[CacheWidth, ...]
    largest_tensor_before: int


@dataclass(frozen=True)  # without slots, because properties are remembered
class LlmShape:
    """A language model.

    `input_weights` are the token embeddings, which stay in main memory; `output_weights` what comes after the last
    layer, which follows it to the GPU. `tied_weights` are the part of the input that is the output as well: the GPU
    gets a copy of it. Widths are elements for one token: `feed_forward_width` that of all experts that a token visits,
    or what a recurrent layer has in its place; `query_width` that of all heads together. `context_length` is what the
    model was trained for, in tokens, `experts_used` how many experts a token visits, 0 where the model is no mixture.
    `pooling` is how it makes vectors of texts, None where it is no embedding model.
    """

    architecture: str
    layers: tuple[Layer, ...]
    input_weights: int
    output_weights: int
    embedding_width: int
    feed_forward_width: int
    query_width: int
    head_count: int
    vocab_size: int
    context_length: int
    experts_used: int = 0
    tied_weights: int = 0
    pooling: Pooling | None = None

    @property
    def weights(self) -> int:
        """All tensors."""
        return self.input_weights + self.output_weights + sum(layer.weights for layer in self.layers)

    @property
    def expert_weights(self) -> int:
        """The tensors of all experts; 0 where the model is no mixture of experts."""
        return sum(layer.expert_weights for layer in self.layers)

    @cached_property
    def last_layers(self) -> tuple[LayerSums, ...]:
        """The sums over the last n layers, for each n from 0 to all of them: a search asks for them again and again."""
        largest = [0, *accumulate((layer.largest_tensor for layer in self.layers), max)]
        sums = [LayerSums(0, 0, 0, (), largest[-1])]
        caches: dict[int, CacheWidth] = {}
        for before, layer in zip(reversed(largest[:-1]), reversed(self.layers), strict=True):
            if layer.key_width or layer.value_width:
                same = caches.get(layer.window, CacheWidth(layer.window, 0, 0, 0))
                keys, values = same.key_width + layer.key_width, same.value_width + layer.value_width
                caches[layer.window] = CacheWidth(layer.window, keys, values, same.layers + 1)
            last = sums[-1]
            sums.append(
                LayerSums(
                    weights=last.weights + layer.weights,
                    expert_weights=last.expert_weights + layer.expert_weights,
                    state=last.state + layer.state,
                    caches=tuple(caches.values()),
                    largest_tensor_before=before,
                )
            )
        return tuple(sums)

    @cached_property
    def widest_values(self) -> int:
        """The greatest `value_width` of all layers."""
        return max((layer.value_width for layer in self.layers), default=0)


class Backbone(StrEnum):
    """What kind of network removes the noise."""

    TRANSFORMER = "transformer"
    UNET = "unet"


@dataclass(frozen=True, slots=True)
class DiffusionShape:
    """A diffusion model, all its files together.

    `encoder_weights` are the text encoders, `vae_weights` the autoencoder, `backbone_weights` the rest; together they
    are all tensors. `width` and `heads` are the hidden size and attention heads of a transformer, or those of a U-Net's
    outermost level with attention, and `pixels_per_token` how many pixels of a picture's edge one token covers there.
    `text_tokens` is how many tokens of text join the picture's, `text_width` the width that they come with.
    `decoder_width` is the number of channels at the autoencoder's finest level, and `tiny_decoder` says that it is a
    TAESD instead of a full autoencoder. `fused_blocks` says that attention and feed-forward share a matrix in some
    blocks of a transformer, as in Flux, so that more is alive at once. `language_encoder` says that T5 or a language
    model encodes the text, and not CLIP alone.
    """

    backbone: Backbone
    encoder_weights: int
    vae_weights: int
    backbone_weights: int
    width: int
    heads: int
    pixels_per_token: int
    text_tokens: int
    text_width: int
    decoder_width: int
    tiny_decoder: bool = False
    fused_blocks: bool = False
    language_encoder: bool = False

    @property
    def weights(self) -> int:
        """All tensors."""
        return self.encoder_weights + self.vae_weights + self.backbone_weights
