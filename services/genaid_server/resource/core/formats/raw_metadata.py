"""Everything that a GGUF header says, as JSON that any reader takes without loss."""

import json
import math
from typing import Final

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.formats.gguf import (
    MAX_SHORT_ARRAY,
    ArrayField,
    GgufHeader,
    LongString,
    Value,
    ValueType,
)

MAX_BYTES: Final = 3 * 2**20
"""The longest JSON, so that it fits into one message. Models have a tenth of that."""


def to_json(header: GgufHeader) -> str:
    """Every key of a header, as one JSON object in the header's order.

    Integers are exact, whatever their size; what is no finite number is the string `NaN`, `Infinity` or `-Infinity`.
    Arrays that are longer than MAX_SHORT_ARRAY or weren't read, and texts that weren't, are `{"type", "length"}`: so
    are the longest values of a header that would be longer than MAX_BYTES. Raises InvalidRequestError where that
    doesn't help.
    """
    members = {key: _encoded(_plain(value)) for key, value in header.fields.items()}
    names = {key: _encoded(key) for key in members}
    excess = sum(_weight(names[key]) + _weight(value) for key, value in members.items()) - MAX_BYTES
    for key in sorted(members, key=lambda key: -len(members[key])):
        if excess <= 0:
            break
        shortened = _encoded(_summary(header.fields[key]))
        excess -= _weight(members[key]) - _weight(shortened)
        members[key] = shortened
    if excess > 0:
        raise InvalidRequestError("The file's header says more than fits into a message.", field="include_raw_metadata")
    return "{" + ",".join(f"{names[key]}:{value}" for key, value in members.items()) + "}"


def _encoded(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _weight(text: str) -> int:
    return len(text.encode()) + 1  # with the colon or comma behind it


def _plain(value: Value) -> object:
    if isinstance(value, ArrayField):
        if value.values is None or value.length > MAX_SHORT_ARRAY:
            return _summary(value)
        return [_plain(each) for each in value.values]
    if isinstance(value, LongString):
        return _summary(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _summary(value: Value) -> object:
    if isinstance(value, ArrayField):
        return {"type": f"{value.element_type.name.lower()}[]", "length": value.length}
    if isinstance(value, LongString):
        return {"type": ValueType.STRING.name.lower(), "length": value.length}
    if isinstance(value, str):
        return {"type": ValueType.STRING.name.lower(), "length": len(value.encode())}
    return value
