"""What the statuses of an origin mean: whether to try again, when, and what a person can do."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from genaid_server.resource.core.downloads.remote import RemoteError

LONGEST_WAIT: Final = 600.0
"""The most seconds that an origin may make us wait."""
_PASSING: Final = frozenset({408, 425, 429})
_IDENTIFY: Final = "give a token that may read it as HF_TOKEN or downloads.hub_token"
_HUB: Final[Mapping[str, str]] = {
    "GatedRepo": f"is gated: accept its license on its page at the hub, and {_IDENTIFY} (one of the same account).",
    "RepoNotFound": f"is not at the hub, or private: check the name of the repository; if it is private, {_IDENTIFY}.",
    "RevisionNotFound": "has no such revision: check the branch, tag or commit.",
    "EntryNotFound": "has no such file: check its name, folders and letter case included.",
}
_STATUSES: Final[Mapping[int, str]] = {
    401: f"asks for credentials: check them; for a private repository of the hub, {_IDENTIFY}.",
    403: "may not be read: check the address and the credentials; a license may have to be accepted at its site.",
    404: "does not exist: check the address.",
    407: "is behind a proxy that asks for credentials: check the proxy's address.",
    410: "does not exist any more.",
    429: "was asked for too often: its server limits requests. Try again later.",
}


def refusal(status: int, headers: Mapping[str, str], where: str) -> RemoteError:
    """The error for an answer without a file; `where` is its address for people.

    `headers` are looked up without regard to case where they are those of a response. Client errors are permanent
    except 408, 425 and 429; server errors pass.
    """
    said = _HUB.get(headers.get("X-Error-Code", "")) or _STATUSES.get(status) or f"was answered with status {status}."
    passing = status in _PASSING or status >= 500
    return RemoteError(f"{where} {said}", permanent=not passing, retry_after=_wait(headers) if passing else None)


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait at least: by Retry-After, as a number or a date, else by the hub's own header."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_WAIT)
    if text:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return min(max((zoned - datetime.now(UTC)).total_seconds(), 0.0), LONGEST_WAIT)
    limited = re.search(r"\br=0\s*;\s*t=(\d{1,9})", headers.get("RateLimit", ""))
    return min(float(limited[1]), LONGEST_WAIT) if limited else None
