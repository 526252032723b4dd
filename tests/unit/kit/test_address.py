"""Which addresses may be listened on, and whether they are free."""

import socket

import pytest

from genaid_server.kit.address import Address, listening_socket, require_free
from genaid_server.kit.errors import PortInUseError

LOOPBACK = Address("127.0.0.1", 0)


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8081", "127.0.0.1", 8081),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("127.8.9.10:65535", "127.8.9.10", 65535),
        ("localhost:80", "127.0.0.1", 80),
        ("LocalHost:80", "127.0.0.1", 80),
        ("[::1]:8081", "::1", 8081),
        ("[0:0:0:0:0:0:0:1]:1", "0:0:0:0:0:0:0:1", 1),
        ("127.0.0.1:00080", "127.0.0.1", 80),
    ],
)
def test_loopback_addresses_are_read(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "8081",
        ":8081",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:-1",
        "127.0.0.1:+1",
        "127.0.0.1:65536",
        "127.0.0.1:" + "9" * 5000,
        "127.0.0.1:\N{ARABIC-INDIC DIGIT ONE}",
        "127.0.0.1:80 ",
        " 127.0.0.1:80",
        "127.0.0.1:80\n",
        "::1:8081",
        "[::1:8081",
        "::1]:8081",
        "[127.0.0.1]:80",
        "[]:80",
        "[::1]",
        "[::1%lo]:80",
        "http://127.0.0.1:80",
        "127.0.0.1:80/path",
        "unix:///tmp/socket",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port, such as 127"):
        Address.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0:8081",
        "192.168.1.2:80",
        "169.254.169.254:80",
        "128.0.0.1:80",
        "[::]:80",
        "[2001:db8::1]:80",
        "[::ffff:7f00:1]:80",
        "example.org:80",
        "localhost.example.org:80",
        "localhost.:80",
        "127.1:80",
        "2130706433:80",
        "0x7f.0.0.1:80",
    ],
)
def test_hosts_that_other_machines_may_reach_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="can be reached from other machines"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["127.0.0.1:8081", "[::1]:0"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(Address.parse(text)) == text
    assert Address.parse(str(Address.parse(text).with_port(7))).port == 7


def test_a_listening_socket_gets_a_free_port_and_keeps_it_to_itself() -> None:
    with listening_socket(LOOPBACK) as listener:
        taken = LOOPBACK.with_port(port_of(listener))
        with socket.create_connection((taken.host, taken.port)):
            pass
        with pytest.raises(PortInUseError, match=f"Port {taken.port} on 127.0.0.1 is in use") as refused:
            listening_socket(taken)
    assert refused.value.facts == {"port": str(taken.port), "host": "127.0.0.1"}


def test_a_port_can_be_taken_again_at_once_after_a_connection() -> None:
    with listening_socket(LOOPBACK) as listener:
        address = LOOPBACK.with_port(port_of(listener))
        listener.setblocking(True)
        with socket.create_connection((address.host, address.port)) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""
    listening_socket(address).close()


def test_an_address_that_the_machine_does_not_have_is_told_as_such() -> None:
    with pytest.raises(PortInUseError, match="may not be bound"):
        listening_socket(Address("192.0.2.1", 0))


def test_free_ports_are_free_and_stay_so() -> None:
    with listening_socket(LOOPBACK) as first, listening_socket(LOOPBACK) as second:
        addresses = [LOOPBACK.with_port(port_of(listener)) for listener in (first, second)]
    require_free(addresses)
    require_free([*addresses, LOOPBACK, LOOPBACK])
    require_free([])


def test_a_taken_port_is_named_and_the_others_are_let_go() -> None:
    with listening_socket(LOOPBACK) as listener, listening_socket(LOOPBACK) as other:
        taken, free = LOOPBACK.with_port(port_of(listener)), LOOPBACK.with_port(port_of(other))
        other.close()
        with pytest.raises(PortInUseError) as refused:
            require_free([free, taken])
        assert refused.value.facts["port"] == str(taken.port)
        require_free([free])


def test_a_port_that_is_asked_for_twice_is_not_free() -> None:
    with listening_socket(LOOPBACK) as listener:
        address = LOOPBACK.with_port(port_of(listener))
    with pytest.raises(PortInUseError) as refused:
        require_free([address, address])
    assert refused.value.facts["port"] == str(address.port)
