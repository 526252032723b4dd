"""Who may call the gateway."""

import pytest

from genaid_server.gateway.http.guard import is_loopback_host, is_trusted_origin

NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8081",
        "tauri.localhost",
        "a.b-c.localhost:1",
        "LocalHost:8081",
        "127.0.0.1",
        "127.0.0.1:65535",
        "127.0.0.2:80",
        "127.255.255.254",
        "[::1]",
        "[::1]:8081",
    ],
)
def test_names_of_this_machine(host: str) -> None:
    assert is_loopback_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":8081",
        "evil.example",
        "evil.example:8081",
        "localhost.evil.example",
        ".localhost",
        "evil..localhost",
        "127.0.0.1.evil.example",
        "localhost.",
        "notlocalhost",
        "127.0.0.1@evil.example",
        "evil.example#127.0.0.1",
        "127.0.0.1 evil.example",
        "127.0.0.1, evil.example",
        "127.0.0.1:8081:8081",
        "127.0.0.1:http",
        "127.0.0.1:",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "127.0.0.01",
        "0.0.0.0",  # noqa: S104 - refused here
        "192.168.1.2",
        "::1",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::2]:8081",
        "localhost\n",
        "l\u00f6calhost",
    ],
)
def test_every_other_name_is_refused(host: str) -> None:
    assert not is_loopback_host(host)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://tauri.localhost",
        "http://localhost:3000",
        "https://localhost:8443",
        "http://127.0.0.1:5173",
        "http://[::1]:5173",
        "HTTP://LOCALHOST:3000",
        "app://.",
        "app://my-app",
        "file://",
        "tauri://localhost",
        "capacitor://localhost",
        "vscode-webview://1a2b3c",
    ],
)
def test_origins_of_this_machine_and_of_applications(origin: str) -> None:
    assert is_trusted_origin(origin, NONE)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "http://",
        "http://evil.example",
        "https://evil.example:8081",
        "https://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://localhost@evil.example",
        "http://evil.example/http://localhost",
        "http://localhost/path",
        "http://localhost http://evil.example",
        "http://192.168.1.2",
        "ws://evil.example",
        "wss://localhost",
        "ftp://localhost",
        "localhost",
        "//localhost",
        "app:",
        "://localhost",
        "app://x\nhttp://evil.example",
    ],
)
def test_every_other_origin_is_refused(origin: str) -> None:
    assert not is_trusted_origin(origin, NONE)


def test_configured_origins_are_matched_whole() -> None:
    allowed = frozenset({"https://app.example"})
    assert is_trusted_origin("https://app.example", allowed)
    assert not is_trusted_origin("https://app.example:444", allowed)
    assert not is_trusted_origin("https://app.example.evil.example", allowed)
    assert not is_trusted_origin("http://app.example", allowed)
