"""How much memory llama.cpp takes to run a language model.

The formulas are those of llama.cpp, with the numbers that its servers showed; main memory was measured, and the tests
measure it again. That of GPUs follows from how llama.cpp places tensors, and is on the safe side where it is unclear.

Weights in main memory are mapped, so that they take as much as the file has. Weights on a GPU are mapped as well while
they are loaded, but those pages are the file's, and the system drops them as soon as it needs them: they count on
the GPU only. So do the pages of those weights that a processor with wide vectors keeps in another order: they count
once. The resident set of a process may for both reasons be larger than what it needs.
"""

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from genaid_server.resource.core.fitting.footprint import Footprint, MemoryNeed
from genaid_server.resource.core.fitting.model_shape import CacheType, CacheWidth, LlmShape, Pooling
from genaid_server.resource.core.fitting.plan import LlmOptions

BATCH: Final = 512
"""Tokens of a prompt that are computed together: llama.cpp's ubatch."""
LARGEST_BATCH: Final = 8192
"""Tokens of a text that an embedding model has to see at once; for more the memory would be that of a larger model."""
PADDING: Final = 256
"""The KV cache of a slot has a multiple of so many cells."""
GPU_OVERHEAD: Final = 512 * 2**20
"""Bytes on each GPU that belong to no tensor: the driver's context, the kernels' code and the workspaces of its matrix
library. CUDA with cuBLAS is said to hold 300 to 500 MiB, depending on the GPU, and other drivers less. Unlike the
numbers of main memory it is not measured; it is chosen above that range, because an allocation that fails ends the
engine."""
FALLBACK_FACTOR: Final = 1.2
"""By how much a model of which only the size is known is larger in memory: the documented rule."""

# What the process takes besides, as measured; the library itself, before a model is loaded, is not in it.
_PROCESS: Final = 3_900_000  # the engine's threads and HTTP server
_PROCESS_LAYER: Final = 75_000  # the nodes of the graph
_PROCESS_SLOT: Final = 1_300_000  # a request, its thread and sampler
_PROCESS_TOKEN: Final = 180  # what the server remembers of each token of all contexts
_PROCESS_VOCAB: Final = 215  # the text, score and lookup of a token
_PROCESS_CANDIDATE: Final = 16  # a token of the vocabulary among the candidates that a slot samples from
_BATCHES_AT_ONCE: Final = 4  # where several GPUs have all layers, and work on a batch each
_ENCODERS: Final = ("bert", "embedding", "t5")  # in the names of architectures that have no logits of their own
_FLOAT: Final = 4
_HALF: Final = 2
_ALIGNED: Final = 2**16  # the small tensors of a graph, each on a boundary of its own

# Blocks of so many elements take so many bytes.
_CACHE_BLOCKS: Final = MappingProxyType({CacheType.F16: (1, 2), CacheType.Q8_0: (32, 34), CacheType.Q4_0: (32, 18)})


def batch(pooling: Pooling | None, context_size: int) -> int:
    """How many tokens of a text are computed at once. One whose last token has seen all others comes in parts."""
    if pooling in (None, Pooling.LAST):
        return BATCH
    return min(max(context_size, BATCH), LARGEST_BATCH)


def need(shape: LlmShape, config: LlmOptions, *, gpus: int = 1) -> MemoryNeed:
    """The memory that a model takes when it runs and all its contexts are full.

    `gpus` is over how many GPUs the layers are spread, where any of them are on GPUs: each has buffers of its own.
    """
    count = len(shape.layers)
    on_gpu = min(max(config.gpu_layers, 0), count)
    ram = _main_memory(shape, config, on_gpu)
    return MemoryNeed(ram, _gpu_memory(shape, config, on_gpu, max(gpus, 1)) if on_gpu else Footprint())


def fallback(size_bytes: int, gpu_share: float) -> MemoryNeed:
    """The memory of a model whose header doesn't tell, by the size of its files.

    `gpu_share` is the part of its layers that is on GPUs, from 0 to 1.
    """
    whole = int(size_bytes * FALLBACK_FACTOR)
    moved = int(whole * min(max(gpu_share, 0.0), 1.0))
    return MemoryNeed(Footprint(weights=whole - moved), Footprint(weights=moved), exact=False)


def _main_memory(shape: LlmShape, config: LlmOptions, on_gpu: int) -> Footprint:
    count = len(shape.layers)
    everything, moved = shape.last_layers[count], shape.last_layers[on_gpu]
    weights = shape.input_weights + everything.weights - moved.weights
    if config.experts_on_cpu:
        weights += moved.expert_weights
    if on_gpu < count:
        weights += shape.output_weights
    computes = on_gpu < count or (config.experts_on_cpu and everything.expert_weights > 0)
    compute = _compute(shape, config, on_cpu=True) if computes else _inputs(shape, config)
    return Footprint(
        weights=weights,
        kv_cache=_cache(shape, config, count) - _cache(shape, config, on_gpu),
        compute=compute,
        overhead=_process(shape, config),
    )


def _process(shape: LlmShape, config: LlmOptions) -> int:
    slot = _PROCESS_SLOT + _PROCESS_TOKEN * config.context_size + _PROCESS_CANDIDATE * shape.vocab_size
    model = _PROCESS_LAYER * len(shape.layers) + _PROCESS_VOCAB * shape.vocab_size
    return _PROCESS + model + config.parallel * slot


def _gpu_memory(shape: LlmShape, config: LlmOptions, on_gpu: int, gpus: int) -> Footprint:
    moved = shape.last_layers[on_gpu]
    weights = moved.weights
    if on_gpu == len(shape.layers):
        weights += shape.output_weights + shape.tied_weights
    staged = moved.largest_tensor_before
    if config.experts_on_cpu and moved.expert_weights:
        weights -= moved.expert_weights
        staged = shape.last_layers[0].largest_tensor_before
    # Prompts are computed on the GPU even where weights are in main memory: these are copied to it one by one.
    compute = _compute(shape, config, on_cpu=False) + staged
    if gpus > 1 and not staged:
        compute += (_BATCHES_AT_ONCE - 1) * _inputs(shape, config)
    return Footprint(
        weights=weights,
        kv_cache=_cache(shape, config, on_gpu),
        compute=gpus * compute,
        overhead=gpus * GPU_OVERHEAD,
    )


# --- the KV cache


def _padded(tokens: int) -> int:
    return -(-tokens // PADDING) * PADDING


def _cells(shape: LlmShape, config: LlmOptions, window: int) -> int:
    """Cells of the KV cache of one slot. A window moves on only after a batch has been computed."""
    cells = _padded(config.context_size)
    return min(cells, _padded(window + _batch(shape, config))) if window else cells


def _cache(shape: LlmShape, config: LlmOptions, last: int) -> int:
    """The KV cache and recurrent state of the last layers, for all slots."""
    sums = shape.last_layers[last]
    one = sum(_cells(shape, config, cache.window) * _token(shape, config, cache) for cache in sums.caches)
    return config.parallel * (one + sums.state)


def _token(shape: LlmShape, config: LlmOptions, cache: CacheWidth) -> int:
    """What one token takes in the KV cache of some layers."""
    values = cache.value_width
    if not config.flash_attention and values:
        values = cache.layers * shape.widest_values  # they lie in columns then, which all layers have the same of
    return _stored(config.cache_type_k, cache.key_width) + _stored(config.cache_type_v, values)


def _stored(kind: CacheType, elements: int) -> int:
    block, size = _CACHE_BLOCKS[kind]
    return -(-elements // block) * size


# --- the buffers for computing


def _windows(shape: LlmShape) -> Iterable[int]:
    """The different windows that layers have, 0 for one that sees everything; empty without attention."""
    return [cache.window for cache in shape.last_layers[-1].caches]


def _mask(shape: LlmShape, config: LlmOptions) -> int:
    """The attention masks: which token of a batch may see which cells."""
    size = _HALF if config.flash_attention else _FLOAT
    return sum(_batch(shape, config) * _cells(shape, config, window) * size for window in _windows(shape))


def _inputs(shape: LlmShape, config: LlmOptions) -> int:
    """What main memory holds where GPUs do all the computing: the masks and embeddings of a batch."""
    return _mask(shape, config) + _batch(shape, config) * shape.embedding_width * _FLOAT


def _compute(shape: LlmShape, config: LlmOptions, *, on_cpu: bool) -> int:
    """The buffer that intermediate results share, for one batch, and what comes of it."""
    tokens, width = _batch(shape, config), shape.embedding_width
    feed_forward = 4 * shape.feed_forward_width + width
    if shape.experts_used:
        feed_forward = 3 * shape.feed_forward_width + (shape.experts_used + 2) * width
    attention, scores = 4 * shape.query_width + width, 0
    if not config.flash_attention:
        attention = 4 * (shape.query_width + width)
        scores = _scores(shape, config)
    activations = max(tokens * feed_forward * _FLOAT, tokens * attention * _FLOAT + scores)
    logits = _outputs(shape, config) * shape.vocab_size * _FLOAT
    # A processor multiplies in the type of the weights, and converts the other side beforehand.
    converted = max(tokens * max(shape.feed_forward_width, shape.query_width, width) * _HALF, scores // 2)
    return _mask(shape, config) + activations + logits + _ALIGNED + (converted if on_cpu else 0)


def _batch(shape: LlmShape, config: LlmOptions) -> int:
    return batch(shape.pooling, config.context_size)


def _outputs(shape: LlmShape, config: LlmOptions) -> int:
    """For how many tokens there are logits: one of each slot. The library has room for those of all tokens of a text
    that becomes a vector, and computes them as well where the model could chat."""
    if shape.pooling is None:
        return config.parallel
    encoder = any(name in shape.architecture for name in _ENCODERS)
    return (1 if encoder else 2) * _batch(shape, config)


def _scores(shape: LlmShape, config: LlmOptions) -> int:
    """What all heads think of all cells, for one batch: exists only without flash attention."""
    cells = max((_cells(shape, config, window) for window in _windows(shape)), default=0)
    return _batch(shape, config) * cells * shape.head_count * _FLOAT
