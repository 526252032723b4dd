"""The JSON that asks for images: what may be in it, and what is said of what is wrong with it."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic.alias_generators import to_camel

from genaid_client import GenerationSpec, Sampler
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

SHOWN_NAME: Final = 64  # characters of a caller's word that an error message repeats

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
