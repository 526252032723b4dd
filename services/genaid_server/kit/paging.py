"""Pages of a list that is ordered by a key."""

import base64
import operator
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from genaid_server.kit.errors import InvalidRequestError

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1000
MAX_BYTES: Final = 2 * 1024 * 1024
_ASCENDING: Final = ">"
_DESCENDING: Final = "<"


class Page[T](NamedTuple):
    """Some items, and the token of the page after them (empty on the last)."""

    items: Sequence[T]
    next_token: str


def page[T](
    items: Sequence[T], key: Callable[[T], str], size: int, token: str, weigh: Callable[[T], int] = lambda _: 0
) -> Page[T]:
    """Cut a page out of items that are in the order of their keys, ascending or descending. No two have the same key.

    `size` 0 is the default. `weigh` gives the bytes of an item: a page ends early, but not before its first item,
    rather than outgrow what a message may hold. The token holds the key of the last item of the page before and the
    direction, so a page is right even if items came or went meanwhile. Raises InvalidRequestError.
    """
    if not 0 <= size <= MAX_SIZE:
        raise InvalidRequestError(f"page_size must be between 0 and {MAX_SIZE}, not {size}", field="page_size")
    size = size or DEFAULT_SIZE
    start = 0
    if token:
        direction, last = _decode(token)
        passed = operator.le if direction == _ASCENDING else operator.ge
        while start < len(items) and passed(key(items[start]), last):
            start += 1
    chosen = _light(items[start : start + size], weigh)
    if start + len(chosen) >= len(items):
        return Page(chosen, "")
    direction = _ASCENDING if key(items[0]) < key(items[-1]) else _DESCENDING
    return Page(chosen, _encode(direction, key(chosen[-1])))


def _light[T](items: Sequence[T], weigh: Callable[[T], int]) -> Sequence[T]:
    weight = 0
    for number, item in enumerate(items):
        weight += weigh(item)
        if weight > MAX_BYTES and number:
            return items[:number]
    return items


def _encode(direction: str, key: str) -> str:
    return base64.urlsafe_b64encode(f"{direction}{key}".encode()).decode()


def _decode(token: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise _bad_token() from error
    if text[:1] not in (_ASCENDING, _DESCENDING):
        raise _bad_token()
    return text[0], text[1:]


def _bad_token() -> InvalidRequestError:
    return InvalidRequestError("page_token is not one that a list returned", field="page_token")
