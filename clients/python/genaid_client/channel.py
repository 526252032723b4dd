"""How both faces reach a service: the settings of a channel, and the one way from a status to an exception."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from genaid_client.errors import (
    ConnectionFailedError,
    DeadlineError,
    GenaidError,
    InternalError,
    NoAddressError,
    error_for,
)

type Service = Literal["resource", "image"]
"""A service, by the name of the client's argument that says where it is."""

DOMAIN: Final = "genaid"
DETAILS: Final = "grpc-status-details-bin"
"""The trailer in which a service sends a google.rpc.Status."""

GIVEN_CHANNEL: Final = "the end of the given channel"
"""What errors name where a client was given a channel in place of an address."""

OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment would take calls to this machine, too
    # A service that was started again is found within a second; by default that may take two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A new client looks for itself: what another one of this program met at that address may be over.
    ("grpc.use_local_subchannel_pool", 1),
)


@contextmanager
def typed_errors(address: str) -> Iterator[None]:
    """Raise what the block's call failed with as a GenaidError."""
    try:
        yield
    except grpc.RpcError as error:
        raise _typed(error, address) from error


def cut_off(address: str) -> ConnectionFailedError:
    """The error of a call that ended because the service, or this client, was closed."""
    return ConnectionFailedError(
        f"The call to the genaid service at {address} was cut off: the service or this client was closed. "
        "Start the service with `genaid up` if it doesn't run, then call again.",
        {"address": address},
    )


def no_address(service: Service) -> NoAddressError:
    """The error of a call to a service that the client was told no address of."""
    name = {"resource": "resource manager", "image": "image worker"}[service]
    return NoAddressError(
        f"This client has no address of the {name}: give `{service}` where the client is made.", {"service": service}
    )


def _typed(error: Any, address: str) -> GenaidError:
    info = _error_info(error)
    if info is not None:
        return error_for(info.reason, error.details(), info.metadata)
    code: grpc.StatusCode = error.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        return ConnectionFailedError(
            f"No genaid service answers at {address}. "
            "Start it with `genaid up`, or give the address of the one that runs.",
            {"address": address},
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"The genaid service at {address} did not answer in time.", {"address": address})
    if code is grpc.StatusCode.CANCELLED:
        return cut_off(address)
    return InternalError(
        f"The genaid service at {address} failed: {error.details()} ({code.name})", {"status": code.name}
    )


def _error_info(error: Any) -> Any | None:
    status = _rich_status(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None


def _rich_status(error: Any) -> Any | None:
    """The google.rpc.Status of a failed call; None where none came, or none that tells of this failure."""
    data = next((value for key, value in error.trailing_metadata() or () if key == DETAILS), None)
    if data is None:
        return None
    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return None
    return status if (status.code, status.message) == (error.code().value[0], error.details()) else None
