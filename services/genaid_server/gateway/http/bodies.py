"""JSON bodies of requests: what is none is told in words."""

import json
from collections.abc import Callable
from typing import Any, NoReturn

from genaid_server.gateway.http.errors import invalid

type Pairs = list[tuple[str, Any]]


def read_object(body: bytes, on_pairs: Callable[[Pairs], dict[str, Any]] | None = None) -> dict[str, Any]:
    """The JSON object that a body is; `on_pairs` makes each object of its fields. Raises ApiError (400)."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=on_pairs, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise invalid(f"The body is not UTF-8: byte {error.start} is wrong") from None
    except json.JSONDecodeError as error:
        raise invalid(f"Malformed JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise invalid("Malformed JSON: nested too deeply") from None
    except ValueError:  # an integer of thousands of digits, which Python refuses to read
        raise invalid("Malformed JSON: a number is too long") from None
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise invalid(f"Malformed JSON: {name} is not a JSON number")
