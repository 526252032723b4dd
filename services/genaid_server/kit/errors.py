"""Domain errors: a stable reason, facts, and a message for people.

The core raises them, `kit.rpc` turns them into a gRPC status, the client turns that back. A reason is part of
the contract and never changes; a message is prose and never decides anything.
"""

from enum import Enum, auto
from typing import ClassVar


class ErrorKind(Enum):
    """What sort of failure an error is; `kit.rpc` has the one table from kinds to gRPC codes."""

    INVALID = auto()
    NOT_FOUND = auto()
    PRECONDITION = auto()
    BUSY = auto()
    EXHAUSTED = auto()
    UNAVAILABLE = auto()
    DATA_LOSS = auto()
    INTERNAL = auto()


class DomainError(Exception):
    """A failure that callers are told of.

    `facts` are short strings for programs; they travel as the metadata of the ErrorInfo.
    """

    reason: ClassVar[str]
    kind: ClassVar[ErrorKind]

    def __init__(self, message: str, **facts: str) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts


class InvalidRequestError(DomainError):
    """A field of a request is wrong; the fact `field` names it."""

    reason = "INVALID_REQUEST"
    kind = ErrorKind.INVALID


class ModelNotFoundError(DomainError):
    """No such model is installed."""

    reason = "MODEL_NOT_FOUND"
    kind = ErrorKind.NOT_FOUND


class NotFoundError(DomainError):
    """No such generation or image, or it expired."""

    reason = "NOT_FOUND"
    kind = ErrorKind.NOT_FOUND


class ServerBusyError(DomainError):
    """The thing is in use; the same request may succeed later."""

    reason = "SERVER_BUSY"
    kind = ErrorKind.BUSY


class AlreadyTerminalError(DomainError):
    """The generation is complete or has failed, so it can't be cancelled."""

    reason = "ALREADY_TERMINAL"
    kind = ErrorKind.PRECONDITION


class ServerError(DomainError):
    """A server or engine is not in the state that the request needs."""

    reason = "SERVER_ERROR"
    kind = ErrorKind.PRECONDITION


class PortInUseError(DomainError):
    """Something else listens on the address."""

    reason = "PORT_IN_USE"
    kind = ErrorKind.PRECONDITION


class InsufficientResourcesError(DomainError):
    """Too little memory or disk; facts: `required`, `available`, `suggestion`."""

    reason = "INSUFFICIENT_RESOURCES"
    kind = ErrorKind.EXHAUSTED


class BackendError(DomainError):
    """The engine failed or died in the middle of the work."""

    reason = "BACKEND_ERROR"
    kind = ErrorKind.INTERNAL


class IoError(DomainError):
    """Reading or writing a result failed."""

    reason = "IO_ERROR"
    kind = ErrorKind.INTERNAL


class FileSystemError(DomainError):
    """A file operation of the store failed."""

    reason = "FILE_SYSTEM_ERROR"
    kind = ErrorKind.INTERNAL


class ChecksumError(DomainError):
    """A file is not what its checksum says."""

    reason = "CHECKSUM_ERROR"
    kind = ErrorKind.DATA_LOSS


class DownloadError(DomainError):
    """A download failed for good."""

    reason = "DOWNLOAD_FAILED"
    kind = ErrorKind.UNAVAILABLE


class BinaryError(DomainError):
    """No runtime of an engine works on this machine."""

    reason = "BINARY_ERROR"
    kind = ErrorKind.PRECONDITION
