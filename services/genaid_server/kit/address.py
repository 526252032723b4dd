"""Addresses to listen on: loopback only, and free."""

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from genaid_server.kit.errors import PortInUseError


@dataclass(frozen=True)
class Address:
    """A loopback host and a TCP port; port 0 asks the system for a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port` or `[::1]:port`.

        Raises ValueError for anything else, and for a host that other machines can reach.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is not host:port, such as 127.0.0.1:8081")
        if host != "localhost" and not _is_loopback(host):
            raise ValueError(
                f"{text!r} can be reached from other machines; genaid has no encryption or accounts yet "
                "and listens on loopback only: use 127.0.0.1"
            )
        return cls("127.0.0.1" if host == "localhost" else host, int(port))

    def with_port(self, port: int) -> "Address":
        """The same host with another port."""
        return Address(self.host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening_socket(address: Address) -> socket.socket:
    """Open a listening socket that nobody shares.

    Raises PortInUseError where something else listens there.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # on Windows this option means sharing the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise port_in_use(address) from error
    listener.setblocking(False)
    return listener


def port_in_use(address: Address) -> PortInUseError:
    """The error that says so and what to do."""
    return PortInUseError(
        f"Port {address.port} on {address.host} is in use or may not be bound. "
        "Stop the program that listens there, or choose another port (0 for a free one).",
        port=str(address.port),
        host=address.host,
    )


def require_free(addresses: Sequence[Address]) -> None:
    """Check that nothing listens on any of the addresses.

    Raises PortInUseError for the first one that is taken, or asked for twice.
    """
    probes: list[socket.socket] = []
    try:
        probes.extend(listening_socket(address) for address in addresses)
    finally:
        for probe in probes:
            probe.close()
