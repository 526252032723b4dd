"""Pages of a list that is ordered by a key."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from genaid_server.kit.errors import InvalidRequestError

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1000


class Page[T](NamedTuple):
    """Some items, and the token of the page after them (empty on the last)."""

    items: Sequence[T]
    next_token: str


def page[T](items: Sequence[T], key: Callable[[T], str], size: int, token: str) -> Page[T]:
    """Cut a page out of items that are in the order of their keys, ascending or descending.

    `size` 0 is the default; the token is the key of the last item of the page before, so a page is right even
    if items came or went meanwhile. Raises InvalidRequestError.
    """
    if not 0 <= size <= MAX_SIZE:
        raise InvalidRequestError(f"page_size must be between 0 and {MAX_SIZE}, not {size}", field="page_size")
    size = size or DEFAULT_SIZE
    start = 0
    if token:
        last = _decode(token)
        ascending = len(items) < 2 or key(items[0]) <= key(items[-1])
        while start < len(items) and (key(items[start]) <= last if ascending else key(items[start]) >= last):
            start += 1
    chosen = items[start : start + size]
    more = start + size < len(items)
    return Page(chosen, _encode(key(chosen[-1])) if more else "")


def _encode(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _decode(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError("page_token was not given out by a list", field="page_token") from error
