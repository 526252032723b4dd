"""Answers that are errors: `{"error": {"message", "code"}}`, and the one table from reasons to statuses.

Below /openai they have the shape that OpenAI's SDKs understand: `{"error": {"message", "type", "param", "code"}}`.
"""

import json
from collections.abc import Mapping
from typing import Final

from genaid_client import GenaidError

INVALID_REQUEST: Final = "INVALID_REQUEST"
NOT_FOUND: Final = "NOT_FOUND"
SERVER_BUSY: Final = "SERVER_BUSY"
SERVER_ERROR: Final = "SERVER_ERROR"
BACKEND_ERROR: Final = "BACKEND_ERROR"
INTERNAL_ERROR: Final = "INTERNAL_ERROR"

RETRY_AFTER: Final = {"Retry-After": "1"}  # the documented polling interval, in seconds

# What a request asked wrongly is the caller's to change (4xx); what it may get later is unavailable (503).
STATUS_BY_REASON: Final = {
    INVALID_REQUEST: 400,
    NOT_FOUND: 404,
    "ALREADY_TERMINAL": 409,
    BACKEND_ERROR: 500,
    "IO_ERROR": 500,
    "MODEL_NOT_FOUND": 503,
    "INSUFFICIENT_RESOURCES": 503,
    "BINARY_ERROR": 503,
    SERVER_BUSY: 503,
    SERVER_ERROR: 503,
}
CODES: Final = (*STATUS_BY_REASON, INTERNAL_ERROR)

_UNANSWERED: Final = {
    "UNREACHABLE": "The {service} can't be reached; it may be starting, or was stopped. Try again shortly.",
    "DEADLINE_EXCEEDED": "The {service} did not answer in time. Try again shortly.",
}


class ApiError(Exception):
    """An answer that is an error.

    `suggestion` says what the caller may do; `close` ends the connection, for where the rest of the request is not
    worth reading. `openai` gives it the shape of the OpenAI API's errors.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        suggestion: str = "",
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.suggestion = suggestion
        self.headers = dict(headers or {})
        self.close = close
        self.openai = False

    def body(self) -> bytes:
        """The JSON document that callers get."""
        error: dict[str, str | None] = {"message": self.message, "code": self.code}
        if self.openai:
            error = {"message": self.message, "type": _openai_type(self.status), "param": None, "code": self.code}
        elif self.suggestion:
            error["suggestion"] = self.suggestion
        return json.dumps({"error": error}, separators=(",", ":")).encode()


def _openai_type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "permission_error" if status == 403 else "invalid_request_error"


def invalid(message: str, status: int = 400, *, close: bool = False) -> ApiError:
    """The caller's request is wrong."""
    return ApiError(status, INVALID_REQUEST, message, close=close)


def generation_not_found() -> ApiError:
    """No such generation, or no longer; the same answer for both."""
    return ApiError(404, NOT_FOUND, "Generation not found")


def image_not_found() -> ApiError:
    """The generation has no such image."""
    return ApiError(404, NOT_FOUND, "Image not found")


def internal() -> ApiError:
    """Something unexpected; the log has it, the caller doesn't."""
    return ApiError(500, INTERNAL_ERROR, "Internal error; the log of the gateway has the details.")


def from_client(error: GenaidError, service: str = "image worker") -> ApiError:
    """The answer for what a call to a service failed with."""
    if error.reason in _UNANSWERED:
        message = _UNANSWERED[error.reason].format(service=service)
        return ApiError(503, SERVER_ERROR, message, headers=RETRY_AFTER)
    if error.reason == NOT_FOUND:
        return generation_not_found()
    status = STATUS_BY_REASON.get(error.reason)
    if status is None:
        return internal()
    return ApiError(
        status,
        error.reason,
        error.message,
        suggestion=error.metadata.get("suggestion", ""),
        headers=RETRY_AFTER if error.reason == SERVER_BUSY else None,
    )
