"""The ids that callers give their requests: a repeat of a request returns what the original made."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from genaid_server.kit.errors import InvalidRequestError

MAX_REQUEST_ID: Final = 128
"""Characters."""
REMEMBERED: Final = 1000
"""Requests that are remembered; those that were used the longest ago are forgotten."""


def check_request_id(request_id: str) -> None:
    """Raises InvalidRequestError for one that is too long."""
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidRequestError(
            f"request_id must be at most {MAX_REQUEST_ID} characters long, not {len(request_id)}", field="request_id"
        )


class RequestIds[Made]:
    """What each request has made, by its id; an empty id is none."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._made: OrderedDict[str, Made] = OrderedDict()

    def known(self, request_id: str) -> Made | None:
        """What the request of that id has made, None where it is not known."""
        if request_id not in self._made:
            return None
        self._made.move_to_end(request_id)
        return self._made[request_id]

    def remember(self, request_id: str, made: Made) -> None:
        """A request of that id has made this."""
        if not request_id:
            return
        self._made[request_id] = made
        self._made.move_to_end(request_id)
        while len(self._made) > self._limit:
            self._made.popitem(last=False)

    def forget(self, gone: Callable[[Made], bool]) -> None:
        """Forget the requests of which `gone` says that what they made is there no more."""
        for request_id in [request_id for request_id, made in self._made.items() if gone(made)]:
            del self._made[request_id]
