"""What calls raise: one exception a reason, as the services give them.

A reason is part of the contract and never changes; `metadata` holds its facts, such as the `field` that is wrong.
A message is for people and never decides anything.
"""

from collections.abc import Mapping

from genaid_client.types_downloads import Download
from genaid_client.types_images import Generation


class GenaidError(Exception):
    """A call failed. Raised as itself only for a reason that this version of the client doesn't know."""

    reason: str = "UNKNOWN"

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidRequestError(GenaidError):
    """A field of a request is wrong; `metadata["field"]` names it."""

    reason = "INVALID_REQUEST"


class ModelNotFoundError(GenaidError):
    """No such model is installed."""

    reason = "MODEL_NOT_FOUND"


class NotFoundError(GenaidError):
    """No such generation, image or download, or it expired."""

    reason = "NOT_FOUND"


class ServerBusyError(GenaidError):
    """The thing is in use; the same request may succeed later."""

    reason = "SERVER_BUSY"


class AlreadyTerminalError(GenaidError):
    """What should be cancelled is complete, or has failed."""

    reason = "ALREADY_TERMINAL"


class ServerError(GenaidError):
    """A server or engine is not in the state that the request needs."""

    reason = "SERVER_ERROR"


class PortInUseError(GenaidError):
    """Something else listens on the address."""

    reason = "PORT_IN_USE"


class InsufficientResourcesError(GenaidError):
    """Too little memory or disk; metadata: `required`, `available`, `suggestion`."""

    reason = "INSUFFICIENT_RESOURCES"


class BackendError(GenaidError):
    """The engine failed or died in the middle of the work."""

    reason = "BACKEND_ERROR"


class IoError(GenaidError):
    """Reading or writing a result failed."""

    reason = "IO_ERROR"


class FileSystemError(GenaidError):
    """A file operation of the store failed."""

    reason = "FILE_SYSTEM_ERROR"


class ChecksumError(GenaidError):
    """A file is not what its checksum says."""

    reason = "CHECKSUM_ERROR"


class DownloadError(GenaidError):
    """A download failed for good."""

    reason = "DOWNLOAD_FAILED"


class BinaryError(GenaidError):
    """No runtime of an engine works on this machine."""

    reason = "BINARY_ERROR"


class ConnectionFailedError(GenaidError):
    """No service answers at the address, or it went away during the call."""

    reason = "UNREACHABLE"


class NoAddressError(GenaidError):
    """The client was made without the address of the service that is called; `metadata["service"]` names it."""

    reason = "NO_ADDRESS"


class DeadlineError(GenaidError):
    """The service did not answer within the call's timeout. What was asked for may happen all the same."""

    reason = "DEADLINE_EXCEEDED"


class InternalError(GenaidError):
    """The service failed in a way that has no reason of its own; its log has the details."""

    reason = "INTERNAL"


_BY_REASON = {error.reason: error for error in GenaidError.__subclasses__()}


def error_for(reason: str, message: str, metadata: Mapping[str, str]) -> GenaidError:
    """The exception of a reason; the base class with that reason where it is unknown."""
    known = _BY_REASON.get(reason)
    if known is not None:
        return known(message, metadata)
    error = GenaidError(message, metadata)
    error.reason = reason
    return error


def raise_for_failure(ended: Download | Generation) -> None:
    """Raise the exception that belongs to the code of a download or generation that failed; return for every other.

    Its metadata are the facts. Raises DownloadError, ChecksumError, InsufficientResourcesError, InvalidRequestError or
    FileSystemError for a download; BackendError, IoError, InsufficientResourcesError, ModelNotFoundError or ServerError
    for a generation.
    """
    if ended.error is not None:
        raise error_for(ended.error.code, ended.error.message, ended.error.facts)
