"""Files over HTTP: redirects followed by hand, parts checked, refusals sorted into lasting and passing ones."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, Self

import aiohttp
from aiohttp import hdrs
from yarl import URL

from genaid_server.resource.core.downloads.remote import RangeError, RemoteError
from genaid_server.resource.remote.addresses import Origin, is_loopback, next_url, origin, proxy_for, shown
from genaid_server.resource.remote.refusals import refusal

CONNECT_SECONDS: Final = 15.0
ANSWER_SECONDS: Final = 60.0
"""How long all redirects together may take until the headers of the answer are there."""
READ_BUFFER: Final = 2**18
"""Bytes that are held for a slow reader, about; those of a connection that breaks are lost."""
MAX_REDIRECTS: Final = 10
MAX_ETAG: Final = 256
LINKED_ETAG: Final = "X-Linked-Etag"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_WEB_PAGES: Final = frozenset({"text/html", "application/xhtml+xml"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """What opens an origin, for its eyes only."""

    origin: Origin
    authorization: str = field(repr=False)

    @classmethod
    def bearer(cls, url: URL, token: str) -> Self:
        """A token for the origin of an address."""
        return cls(origin(url), f"Bearer {token}")

    @classmethod
    def basic(cls, url: URL) -> Self | None:
        """The user and password in an address, for its origin; None where there are none. Raises RemoteError."""
        if not url.user and not url.password:
            return None
        try:
            return cls(origin(url), aiohttp.encode_basic_auth(url.user or "", url.password or "", "utf-8"))
        except ValueError as error:
            raise RemoteError("The user in an address can't contain a colon.", permanent=True) from error


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to, without, `end`; of the version with this ETag only, where there is one."""

    start: int = 0
    end: int | None = None
    etag: str = ""

    @property
    def whole(self) -> bool:
        """Whether it is the file."""
        return self.start == 0 and self.end is None

    def headers(self, linked: str) -> dict[str, str]:
        """How to ask for it. `linked` is the ETag that a hub gave when it sent us to another origin.

        That origin has ETags of its own, so they can't be a condition there; the hub's tells already.
        """
        if self.whole or (linked and self.etag and linked != self.etag):
            return {}
        headers: dict[str, str] = {hdrs.RANGE: f"bytes={self.start}-{'' if self.end is None else self.end - 1}"}
        if self.etag and not linked:
            headers[hdrs.IF_RANGE] = self.etag
        return headers


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What the last of the redirects led to; `linked` is the ETag that a hub gave on the way, or empty."""

    response: aiohttp.ClientResponse
    url: URL
    linked: str

    @property
    def etag(self) -> str:
        """The version of the file, or empty."""
        return self.linked or _etag(self.response.headers.get(hdrs.ETAG, ""))

    def check(self) -> None:
        """Raises RemoteError for what holds no bytes of a file."""
        response, where = self.response, shown(self.url)
        if response.status == 416:
            raise RangeError
        if response.status not in {200, 206}:
            raise refusal(response.status, response.headers, where)
        if response.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() != "identity":
            raise RemoteError(
                f"{where} sends the file compressed although it was asked not to; use another source.", permanent=True
            )
        if response.content_type in _WEB_PAGES:
            hint = " Use the address with /resolve/ in place of /blob/." if "/blob/" in self.url.path else ""
            raise RemoteError(
                f"{where} is a web page, not a model; it may want a login, or be the page about the file.{hint}",
                permanent=True,
            )


class HttpBody:
    """The bytes of an answer; see `Body`."""

    def __init__(self, answer: HttpAnswer, etag: str, start: int, length: int | None, total: int | None) -> None:
        """`length` counts the bytes that should arrive, where that is known."""
        self.answer, self.etag, self.start, self.total = answer, etag, start, total
        self._length = length

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they arrive, mostly 256 KiB at a time. Raises RemoteError."""
        received = 0
        while chunk := await self._next():
            received += len(chunk)
            yield chunk
        if self._length is not None and received != self._length:
            raise RemoteError(
                f"{shown(self.answer.url)} sent {received} bytes where it had said {self._length}.", permanent=False
            )

    async def _next(self) -> bytes:
        try:
            return await self.answer.response.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise RemoteError(f"The connection to {shown(self.answer.url)} broke.", permanent=False) from error


class HttpClient:
    """Asks origins; made by `open_client`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._tls: asyncio.Task[ssl.SSLContext] | None = None

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._tls is not None:
            await asyncio.wait([self._tls])

    @asynccontextmanager
    async def read(self, url: URL, part: ByteRange, credentials: Credentials | None) -> AsyncIterator[HttpBody]:
        """Ask for a part, and for the whole where the origin can't give that part. Raises RemoteError."""
        for asked in [part] if part.whole else [part, ByteRange()]:
            async with self.request(hdrs.METH_GET, url, asked, credentials) as answer:
                answer.check()
                if (body := _body(answer, asked)) is not None:
                    yield body
                    return
        raise RemoteError(f"{shown(url)} sends a part of the file where it was asked for all of it.", permanent=True)

    @asynccontextmanager
    async def request(
        self, method: str, url: URL, part: ByteRange, credentials: Credentials | None
    ) -> AsyncIterator[HttpAnswer]:
        """The answer to a request, after all redirects, whatever its status. Raises RemoteError."""
        where = shown(url)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await self._follow(method, url, part, credentials)
        except aiohttp.ClientConnectorCertificateError as error:
            raise RemoteError(f"The certificate of {where} can't be trusted: {error}", permanent=True) from error
        except (aiohttp.InvalidURL, UnicodeError) as error:
            raise RemoteError(f"{where} is no address that can be asked.", permanent=True) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise RemoteError(f"{where} can't be reached: {_reason(error)}.", permanent=False) from error
        try:
            yield answer
        finally:
            answer.response.close()  # which drops a connection that still has bytes to send

    async def _follow(self, method: str, url: URL, part: ByteRange, credentials: Credentials | None) -> HttpAnswer:
        linked = ""
        for _ in range(MAX_REDIRECTS + 1):
            if credentials is not None and credentials.origin != origin(url):
                credentials = None  # for good: who sends us back would have us use them for him
            response = await self._ask(method, url, part.headers(linked), credentials)
            location = response.headers.get(hdrs.LOCATION)
            if response.status not in _REDIRECTS or location is None:
                return HttpAnswer(response, url, linked)
            linked = _etag(response.headers.get(LINKED_ETAG, "")) or linked
            response.close()
            url = next_url(url, location)
        raise RemoteError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times.", permanent=True)

    async def _ask(
        self, method: str, url: URL, headers: dict[str, str], credentials: Credentials | None
    ) -> aiohttp.ClientResponse:
        options: dict[str, Any] = {}
        if credentials is not None:
            headers[hdrs.AUTHORIZATION] = credentials.authorization
        proxy = None if is_loopback(url) else proxy_for(url)
        if proxy is not None:
            options["proxy"] = proxy
        if url.scheme == "https" or (proxy is not None and proxy.scheme == "https"):
            options["ssl"] = await self._certificates()
        return await self._session.request(method, url, headers=headers, allow_redirects=False, **options)

    async def _certificates(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = asyncio.create_task(asyncio.to_thread(_system_certificates))
        return await asyncio.shield(self._tls)


@asynccontextmanager
async def open_client() -> AsyncIterator[HttpClient]:
    """A client whose connections are closed when the block ends."""
    # trust_env would also send what ~/.netrc holds, to whatever host a redirect names: proxies are found here.
    async with aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={hdrs.USER_AGENT: f"genaid/{version('genaid')}", hdrs.ACCEPT_ENCODING: "identity"},
        read_bufsize=READ_BUFFER,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
    ) as session:
        client = HttpClient(session)
        try:
            yield client
        finally:
            await client.close()


def _system_certificates() -> ssl.SSLContext:
    """Trust whom the system trusts, as the hub's own client does; OpenSSL's files are missing on some systems."""
    import httpx2  # only who downloads over https pays for it

    context = httpx2.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _body(answer: HttpAnswer, part: ByteRange) -> HttpBody | None:
    """The body of an answer; None where it isn't the part that was asked for."""
    response = answer.response
    length = response.content_length
    if response.status == 200:
        return HttpBody(answer, answer.etag, 0, length, length)
    span = _content_range(response.headers)
    if part.whole or span is None:
        return None
    first, last, total = span
    outside = first != part.start or (part.end is not None and last >= part.end)
    other = bool(part.etag and answer.etag and part.etag != answer.etag)
    if outside or other or length not in {None, last + 1 - first}:
        return None
    return HttpBody(answer, answer.etag or part.etag, first, last + 1 - first, total)


def _content_range(headers: Mapping[str, str]) -> tuple[int, int, int | None] | None:
    """First and last byte and the size of the whole file; None where the header is none."""
    unit, _, rest = headers.get(hdrs.CONTENT_RANGE, "").strip().partition(" ")
    span, _, size = rest.partition("/")
    first, _, last = span.partition("-")
    numbers = [first, last, *([] if size == "*" else [size])]
    if unit.lower() != "bytes" or not all(text.isascii() and text.isdigit() and len(text) < 19 for text in numbers):
        return None
    start, end, total = int(first), int(last), None if size == "*" else int(size)
    return (start, end, total) if start <= end and (total is None or end < total) else None


def _etag(text: str) -> str:
    return text if len(text) <= MAX_ETAG and text.isprintable() else ""


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
