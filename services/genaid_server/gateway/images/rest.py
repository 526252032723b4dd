"""The answers of the documented API as JSON: states of generations, events, images. Knows no HTTP."""

import base64
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from genaid_client import Generation, GenerationFailure, GenerationState, Progress
from genaid_server.gateway.http.errors import ApiError

BASE64_CHUNK: Final = 3 * 256 * 1024  # bytes, a multiple of 3: chunks encode without padding, and join

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def milliseconds(time: datetime) -> int:
    """Milliseconds since the epoch, without the detour over floating point."""
    return (time - _EPOCH) // _MILLISECOND


def image_path(generation_id: str, index: int) -> str:
    """Where the PNG of an image is."""
    return f"/v1/images/generations/{generation_id}/images/{index}"


def created(generation: Generation) -> bytes:
    """The answer to an accepted request."""
    return _json({"id": generation.id, "status": "pending", "createdAt": milliseconds(generation.create_time)})


def cancelled(generation_id: str) -> bytes:
    """The answer to a cancellation."""
    return _json({"id": generation_id, "status": "cancelled"})


def health(busy: bool) -> bytes:
    """The answer of a worker that is there."""
    return _json({"status": "ok", "busy": busy})


def state(generation: Generation) -> bytes:
    """The state of a generation that has no images."""
    return _json(_state(generation))


def complete(generation: Generation, images: Sequence[bytes]) -> bytes:
    """The state of a complete generation; `images` are its PNGs, in order. Takes time: about 1 ms a megabyte."""
    # Assembled by hand: base64 needs no escaping, and a JSON encoder would visit every character.
    head = _json(_state(generation) | {"result": {"images": []}}).removesuffix(b"]}}")
    parts = [head]
    for info, png in zip(generation.images, images, strict=True):
        parts.append(b'{"image":"' if len(parts) == 1 else b',{"image":"')
        parts.extend(base64.b64encode(png[at : at + BASE64_CHUNK]) for at in range(0, len(png), BASE64_CHUNK))
        parts.append(f'","seed":{info.seed},"width":{info.width},"height":{info.height}}}'.encode())
    parts.append(f'],"format":"png","timeTaken":{_time_taken(generation)}}}}}'.encode())
    return b"".join(parts)


def event(generation: Generation) -> bytes:
    """The state as a server-sent event; images are named by their URL instead of included.

    A terminal one carries an id, which a client that reconnects sends back as Last-Event-ID.
    """
    document = _state(generation)
    if generation.state is GenerationState.COMPLETE:
        images = [
            {
                "url": image_path(generation.id, info.index),
                "seed": info.seed,
                "width": info.width,
                "height": info.height,
            }
            for info in generation.images
        ]
        document["result"] = {"images": images, "format": "png", "timeTaken": _time_taken(generation)}
    mark = b"id: " + generation.state.value.encode() + b"\n" if generation.state.terminal else b""
    return b"event: state\n" + mark + b"data: " + _json(document) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """What ends a stream that can't go on, as a server-sent event."""
    return b"event: error\ndata: " + error.body() + b"\n\n"


def _state(generation: Generation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": generation.id,
        "status": generation.state.value,
        "createdAt": milliseconds(generation.create_time),
        "updatedAt": milliseconds(generation.update_time),
    }
    if generation.state is GenerationState.IN_PROGRESS:
        document["progress"] = _progress(generation.progress)
    if generation.state is GenerationState.ERROR and generation.error is not None:
        document["error"] = _failure(generation.error)
    return document


def _failure(failure: GenerationFailure) -> dict[str, Any]:
    document: dict[str, Any] = {"message": failure.message, "code": failure.code}
    if failure.facts:
        document["details"] = dict(sorted(failure.facts.items()))
    return document


def _progress(progress: Progress | None) -> dict[str, Any]:
    if progress is None:
        return {"currentStep": 0, "totalSteps": 0, "stage": "loading", "percentage": 0}
    document: dict[str, Any] = {
        "currentStep": progress.current_step,
        "totalSteps": progress.total_steps,
        "stage": progress.stage.value if progress.stage is not None else "loading",
        # Cut, not rounded: 100 is for the end alone.
        "percentage": math.floor(progress.percentage * 100) / 100,
    }
    if progress.total_images > 1:
        document["currentImage"] = progress.current_image
        document["totalImages"] = progress.total_images
    return document


def _time_taken(generation: Generation) -> int:
    return round((generation.duration_seconds or 0) * 1000)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
