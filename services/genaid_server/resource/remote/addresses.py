"""Addresses of files: which are followed, with which proxy, and how they are shown."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from genaid_server.resource.core.downloads.remote import RemoteError
from genaid_server.resource.core.store.names import unprintable

MAX_URL: Final = 8192
SCHEMES: Final = frozenset({"http", "https"})

type Origin = tuple[str, str, int | None]


def check_url(text: str) -> URL:
    """Parse the address of a file. Raises RemoteError for what is none over http or https."""
    if len(text) > MAX_URL or unprintable(text) or text != text.strip():
        raise RemoteError(f"An address has at most {MAX_URL} characters, all of them printable.", permanent=True)
    if "#" in text:
        raise RemoteError("The address of a file has no # in it.", permanent=True)
    return _parsed(text)


def next_url(url: URL, location: str) -> URL:
    """Where a redirect leads, without credentials. Raises RemoteError for where it must not."""
    if len(location) > MAX_URL or unprintable(location):
        raise RemoteError(f"{shown(url)} redirects to what is no address.", permanent=True)
    plain = location.isascii() and " " not in location  # then it is kept to the letter: it may be signed
    try:
        target = url.join(URL(location, encoded=plain))
    except ValueError as error:
        raise RemoteError(f"{shown(url)} redirects to what is no address.", permanent=True) from error
    if target.scheme not in SCHEMES:
        raise RemoteError(f"{shown(url)} redirects to {target.scheme}, which isn't followed.", permanent=True)
    if url.scheme == "https" and target.scheme == "http":
        raise RemoteError(f"{shown(url)} redirects from https to http, which isn't followed.", permanent=True)
    if _is_own(target) and not _is_own(url):
        raise RemoteError(f"{shown(url)} redirects to this machine, which isn't followed.", permanent=True)
    return _parsed(str(target), encoded=True).with_user(None).with_fragment(None)


def _parsed(text: str, *, encoded: bool = False) -> URL:
    try:
        url = URL(text, encoded=encoded)
        host, port = url.host, url.port
    except ValueError as error:
        raise RemoteError(f"An address can't be understood: {error}.", permanent=True) from error
    if url.scheme not in SCHEMES:
        raise RemoteError("The address of a file begins with http:// or https://.", permanent=True)
    if not host or port == 0:
        raise RemoteError("The address of a file names a host.", permanent=True)
    return url


def origin(url: URL) -> Origin:
    """Scheme, host and port: what decides who may see credentials."""
    return url.scheme, (url.host or "").lower(), url.port


def shown(url: URL) -> str:
    """An address for people and logs: without what may be a secret, and not too long."""
    bare = str(url.with_user(None).with_query(None).with_fragment(None))
    return bare if len(bare) <= 200 else f"{bare[:197]}..."


def is_loopback(url: URL) -> bool:
    """Whether this is the machine itself, which no proxy can reach for us."""
    host = (url.host or "").lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _ip(url)
    return address is not None and address.is_loopback


def _is_own(url: URL) -> bool:
    """Whether this is the machine itself, or what only it can reach, such as the metadata of a virtual machine."""
    address = _ip(url)
    return is_loopback(url) or (address is not None and (address.is_link_local or address.is_unspecified))


def _ip(url: URL) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address((url.host or "").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def proxy_for(url: URL) -> URL | None:
    """The proxy that the environment or the system has for an address; None for a direct connection."""
    proxy = getproxies().get(url.scheme)
    if not proxy or is_loopback(url) or proxy_bypass(url.host or ""):
        return None
    try:
        found = URL(proxy if "://" in proxy else f"http://{proxy}")
    except ValueError as error:
        raise RemoteError(f"The address of the proxy for {url.scheme} can't be understood.", permanent=True) from error
    return found if found.scheme in SCHEMES and found.host else None
