"""The JSON of the documented API: requests in, states out. Knows no HTTP beyond the status of a wrong request."""

import base64
import difflib
import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic.alias_generators import to_camel

from genaid_client import Generation, GenerationFailure, GenerationSpec, GenerationState, Progress, Sampler
from genaid_server.gateway.http.bodies import read_object
from genaid_server.gateway.http.errors import ApiError, invalid

MAX_PROMPT: Final = 32_768
MIN_SIDE: Final = 64
MAX_SIDE: Final = 4096
SIDE_STEP: Final = 8
MAX_PIXELS: Final = 4_194_304
MAX_STEPS: Final = 200
MAX_CFG_SCALE: Final = 100
MAX_SEED: Final = 2_147_483_647
MAX_COUNT: Final = 5
DEFAULT_SIDE: Final = 512

BASE64_CHUNK: Final = 3 * 256 * 1024  # bytes, a multiple of 3: chunks encode without padding, and join
SHOWN_NAME: Final = 64  # characters of a caller's word that an error message repeats

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_SAMPLERS: Final = tuple(sampler.value for sampler in Sampler)


def _whole(value: object) -> object:
    """JSON has one kind of number, and some writers say 512.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sampler(value: object) -> object:
    return Sampler(value) if isinstance(value, str) and value in _SAMPLERS else value


_WHOLE: Final = BeforeValidator(_whole)
_NO_NUL: Final = r"^[^\x00]*$"
_SIDE: Final = Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_STEP)


def _default(value: JsonValue, description: str) -> Any:
    # The default is the worker's; here it is only documented.
    return Field(default=None, description=description, json_schema_extra={"default": value})


class GenerationRequest(BaseModel):
    """What to draw. `null` is the same as absent."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        field_title_generator=lambda name, _: to_camel(name),
    )

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, pattern=_NO_NUL)] = Field(
        description="Text that describes the image; not only white space, no NUL."
    )
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT, pattern=_NO_NUL)] | None = _default(
        "", "Text that describes what to avoid; no NUL."
    )
    width: Annotated[int, _SIDE, _WHOLE] | None = _default(
        DEFAULT_SIDE, f"Width in pixels. Width times height is at most {MAX_PIXELS}."
    )
    height: Annotated[int, _SIDE, _WHOLE] | None = _default(
        DEFAULT_SIDE, f"Height in pixels. Width times height is at most {MAX_PIXELS}."
    )
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS), _WHOLE] | None = _default(20, "Sampling steps.")
    cfg_scale: Annotated[float, Field(ge=0, le=MAX_CFG_SCALE, allow_inf_nan=False)] | None = _default(
        7.5, "Guidance: how closely to follow the prompt; 1 turns guidance off and halves the work."
    )
    seed: Annotated[int, Field(le=MAX_SEED), _WHOLE] | None = _default(
        None, "Seed of the noise. Absent or negative: a random one. The real one is reported."
    )
    sampler: Annotated[Sampler, BeforeValidator(_sampler)] | None = _default("euler_a", "How to sample.")
    count: Annotated[int, Field(ge=1, le=MAX_COUNT), _WHOLE] | None = _default(
        1, "How many images, with seeds counted up from the first."
    )


FIELDS: Final = tuple(to_camel(name) for name in GenerationRequest.model_fields)

_TEXT_RULE: Final = f"valid Unicode text of at most {MAX_PROMPT} characters without NUL"
_SIDE_RULE: Final = f"a whole number between {MIN_SIDE} and {MAX_SIDE} and a multiple of {SIDE_STEP}"
_RULES: Final = {
    "prompt": _TEXT_RULE,
    "negativePrompt": _TEXT_RULE,
    "width": _SIDE_RULE,
    "height": _SIDE_RULE,
    "steps": f"a whole number between 1 and {MAX_STEPS}",
    "cfgScale": f"a number between 0 and {MAX_CFG_SCALE}",
    "seed": f"a whole number up to {MAX_SEED}, or negative for a random one",
    "sampler": f"one of {', '.join(_SAMPLERS)}",
    "count": f"between 1 and {MAX_COUNT}",
}


def read_spec(body: bytes) -> GenerationSpec:
    """What a request's body asks for. Raises ApiError (400) that names the field that is wrong."""
    fields = {name: value for name, value in _read_object(body).items() if value is not None}
    _refuse_unknown(fields)
    prompt = fields.get("prompt")
    if isinstance(prompt, str) and not prompt.strip():
        del fields["prompt"]
    try:
        asked = GenerationRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _wrong_field(str(first["loc"][0]), first["type"], fields) from None
    if (asked.width or DEFAULT_SIDE) * (asked.height or DEFAULT_SIDE) > MAX_PIXELS:
        raise invalid(f"width times height must be at most {MAX_PIXELS} pixels")
    return GenerationSpec(
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt or "",
        width=asked.width,
        height=asked.height,
        steps=asked.steps,
        cfg_scale=asked.cfg_scale,
        seed=None if asked.seed is None or asked.seed < 0 else asked.seed,
        sampler=asked.sampler,
        count=asked.count,
    )


def _read_object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise invalid("Missing request body: send a JSON object with a prompt")
    return read_object(body, _unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise invalid(f"Duplicate field: {_shown(name)}")
        fields[name] = value
    return fields


def _refuse_unknown(fields: Iterable[str]) -> None:
    for name in fields:
        if name not in FIELDS:
            raise invalid(f"Unknown field: {_shown(name)}. {_did_you_mean(name, FIELDS)}")


def _wrong_field(name: str, kind: str, fields: dict[str, Any]) -> ApiError:
    if kind == "missing":
        return invalid(f"Missing required field: {name}")
    value = fields[name]
    if name == "sampler" and isinstance(value, str):
        return invalid(f"Unknown sampler: {_shown(value)}. {_did_you_mean(value, _SAMPLERS)}")
    return invalid(f"{name} must be {_RULES[name]}")


def _did_you_mean(word: str, words: Sequence[str]) -> str:
    by_plain = {known.lower(): known for known in words}
    near = difflib.get_close_matches(word[:SHOWN_NAME].lower(), by_plain, n=1, cutoff=0.5)
    return f"Did you mean {by_plain[near[0]]}?" if near else f"Known are {', '.join(words)}."


def _shown(word: str) -> str:
    return word if len(word) <= SHOWN_NAME else word[:SHOWN_NAME] + "…"


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
