"""Checks what a caller has decided about how a model is to run."""

from typing import Final

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.fitting.model_shape import CacheType, LlmShape
from genaid_server.resource.core.fitting.plan import LlmWishes

BLOCK: Final = 32
"""Elements that share a scale in q8_0 and q4_0; a head has to be whole blocks."""

MIN_CONTEXT: Final = 32
MAX_CONTEXT: Final = 2**24

SMALLEST_EDGE: Final = 64  # pixels
LARGEST_EDGE: Final = 8192
DEFAULT_EDGE: Final = 512

_RANGES: Final = (
    ("threads", "threads", 1, 512),
    ("gpu_layers", "gpu_layers", 0, 1000),
    ("context_size", "context_size", MIN_CONTEXT, MAX_CONTEXT),
    ("parallel_requests", "parallel", 1, 64),
)


def check_wishes(wishes: LlmWishes, shape: LlmShape | None = None) -> None:
    """Raises InvalidRequestError, with the fact `field`, for a number out of range, and for a KV cache that the engine
    can't store as wished: without flash attention, or with heads of this model that are no whole blocks."""
    for field, name, least, most in _RANGES:
        value = getattr(wishes, name)
        if value is not None and not least <= value <= most:
            raise InvalidRequestError(f"{field} must be between {least} and {most}, not {value}", field=field)
    for field, cache in (("cache_type_k", wishes.cache_type_k), ("cache_type_v", wishes.cache_type_v)):
        if cache not in (None, CacheType.F16):
            _check_quantized(field, f"{field} {cache}", wishes, shape)


def check_size(width: int, height: int) -> None:
    """Raises InvalidRequestError for edges, in pixels, that no image has."""
    for field, edge in (("width", width), ("height", height)):
        if not SMALLEST_EDGE <= edge <= LARGEST_EDGE:
            raise InvalidRequestError(
                f"{field} must be between {SMALLEST_EDGE} and {LARGEST_EDGE} pixels, not {edge}", field=field
            )


def whole_blocks(shape: LlmShape) -> bool:
    """Whether the heads of all layers with attention are whole blocks, so that their KV cache can be quantized."""
    return all(layer.head_width % BLOCK == 0 for layer in shape.layers if layer.key_width or layer.value_width)


def _check_quantized(field: str, wish: str, wishes: LlmWishes, shape: LlmShape | None) -> None:
    if wishes.flash_attention is False:
        raise InvalidRequestError(f"{wish} needs flash attention: leave flash_attention on, or take f16", field=field)
    if shape is not None and not whole_blocks(shape):
        raise InvalidRequestError(
            f"{wish} needs heads whose width {BLOCK} divides, and this model has others: take f16", field=field
        )
