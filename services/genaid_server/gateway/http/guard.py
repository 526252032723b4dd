"""Who may call: programs on this machine and pages of this machine, not the pages of strangers.

A web page reaches a loopback server in two ways. DNS rebinding gives its own name our address: the Host header tells,
so only loopback names are answered. A cross-site request sends ours and an Origin of its own, or, where it is an image
or a link, only says that it is cross-site; both are refused before anything happens, preflight or not.
"""

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final

_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:]+\]|[a-z0-9.-]+)(?::[0-9]{1,5})?", re.ASCII)
_LOCAL_NAME: Final = re.compile(r"(?:[a-z0-9-]+\.)+localhost", re.ASCII)
_ORIGIN: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/?#@\s]*)", re.ASCII)
_WEB_SCHEMES: Final = frozenset({"http", "https", "ws", "wss", "ftp"})


@lru_cache(maxsize=256)
def is_loopback_host(host: str) -> bool:
    """Whether a Host header names this machine: localhost, 127.0.0.0/8 or [::1], with any port.

    Names below localhost never leave the machine either (RFC 6761); Tauri on Windows serves pages from one.
    """
    match = _HOST.fullmatch(host.lower())
    if match is None:
        return False
    name = match["name"]
    if name in {"localhost", "[::1]"} or _LOCAL_NAME.fullmatch(name):
        return True
    try:
        return ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=256)
def is_trusted_origin(origin: str, allowed: Collection[str]) -> bool:
    """Whether pages of an origin may call: those of this machine, of applications, and the `allowed` ones.

    Pages of applications have schemes of their own (app, file, tauri, vscode-webview, ...). `null` is what the
    sandboxed frame of any web page says, so it is nobody.
    """
    if origin in allowed:
        return True
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None:
        return False
    return match["scheme"] not in _WEB_SCHEMES or (
        match["scheme"] in {"http", "https"} and is_loopback_host(match["host"])
    )
