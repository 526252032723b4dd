"""Addresses to listen on: loopback only, and free."""

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Self

from genaid_server.kit.errors import PortInUseError

_FORM: Final = re.compile(r"(?:\[(?P<bracketed>[0-9A-Fa-f:]+)\]|(?P<host>[^\s:\[\]]+)):(?P<port>[0-9]{1,5})")
_LOOPBACK_6: Final = ipaddress.IPv6Address("::1")


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
        match = _FORM.fullmatch(text)
        if match is None or int(match["port"]) > 65535:
            raise ValueError(f"{text!r} is not host:port, such as 127.0.0.1:8081")
        host = match["bracketed"] or match["host"].lower()
        if host != "localhost" and not _is_loopback(host):
            raise ValueError(
                f"{text!r} can be reached from other machines; genaid has no encryption or accounts yet "
                "and listens on loopback only: use 127.0.0.1"
            )
        return cls("127.0.0.1" if host == "localhost" else host, int(match["port"]))

    def with_port(self, port: int) -> "Address":
        """The same host with another port."""
        return Address(self.host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback if address.version == 4 else address == _LOOPBACK_6


def listening_socket(address: Address) -> socket.socket:
    """Open a listening socket that nobody shares.

    Raises PortInUseError where something else listens there, or the machine has no such address.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with ExitStack() as unless_it_listens:
            listener = unless_it_listens.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if os.name == "posix":  # on Windows this option means sharing the port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
            listener.listen(128)
            listener.setblocking(False)
            unless_it_listens.pop_all()
    except OSError as error:
        raise port_in_use(address) from error
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
    """Check that nothing listens on any of the addresses; port 0 is always free.

    Raises PortInUseError for the first one that is taken, or asked for twice.
    """
    with ExitStack() as probes:
        for address in addresses:
            probes.enter_context(listening_socket(address))
