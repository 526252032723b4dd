"""The request id: one word that all log lines about a request carry, in whichever of the services they are written.

It travels in the header `X-Request-Id` over REST and in the metadata `x-request-id` over gRPC. A program that sets one
finds its own requests in the services' logs; each client sends what is set in the context of the call.
"""

import re
import secrets
from contextvars import ContextVar
from typing import Final

METADATA_KEY: Final = "x-request-id"

_SANE: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_request_id: ContextVar[str] = ContextVar("genaid_request_id", default="")


def current_request_id() -> str:
    """The request id of the present context, that is task or thread; empty where there is none."""
    return _request_id.get()


def set_request_id(request_id: str) -> None:
    """Give the present context a request id: 1 to 128 ASCII letters, digits and `._:/+=@-`; empty for none.

    Raises ValueError for anything else.
    """
    if request_id and not is_request_id(request_id):
        raise ValueError("a request id has 1 to 128 ASCII letters, digits and ._:/+=@-")
    _request_id.set(request_id)


def is_request_id(text: str) -> bool:
    """Whether a text may be a request id."""
    return _SANE.fullmatch(text) is not None


def accepted_request_id(offered: str | None) -> str:
    """What a request is called that came with that id: the same where it is a sane one, else a new one."""
    return offered if offered is not None and is_request_id(offered) else secrets.token_hex(8)


def call_metadata() -> tuple[tuple[str, str], ...]:
    """The metadata of a call that is made in the present context."""
    request_id = current_request_id()
    return ((METADATA_KEY, request_id),) if request_id else ()
