"""Files over HTTP, with faults on demand: what origins on the internet do to a download, done on purpose."""

import asyncio
import gzip
import hashlib
import struct
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Final

from aiohttp import hdrs, web

PIECE: Final = 4 * 2**20
FOREVER: Final = 2**63
LINGER: Final = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)
"""Drop what isn't sent yet and reset, when the socket is closed."""


@dataclass
class Faults:
    """What goes wrong with a file; offsets are those in the file, whatever range was asked for."""

    stall_at: int | None = None
    """Send nothing more from this offset on, until `released` is set."""
    stalls: int = FOREVER
    """Only so many times."""
    reset_at: int | None = None
    """Reset the connection at this offset; -1 before the answer's headers."""
    resets: int = FOREVER
    end_at: int | None = None
    """Close the connection in order at this offset."""
    ends: int = FOREVER
    status: int = 0
    """Answer with this error."""
    statuses: int = FOREVER
    retry_after: str = ""
    error_headers: dict[str, str] = field(default_factory=dict)
    redirect: str = ""
    """Send elsewhere; {url} is the address that was asked for."""
    redirects: int = FOREVER
    bytes_per_second: int = 0
    """Send a few bytes at a time, so that about so many arrive."""
    piece: int = 64
    """How many bytes are sent at a time then."""
    ignore_range: bool = False
    ignore_if_range: bool = False
    wrong_range: int = 0
    """Give the bytes so far behind those that were asked for, and say so."""
    length_error: int = 0
    """Added to the Content-Length that is sent."""
    no_etag: bool = False
    changing_etag: bool = False
    """Another ETag with each answer."""
    no_length: bool = False
    """Chunked, without a length."""
    gzip: bool = False
    html: bool = False
    """A web page in place of the file."""
    no_head: int = 0
    """Status with which HEAD is refused."""
    disposition: str = ""
    """Content-Disposition."""
    type: str = "application/octet-stream"


@dataclass
class Seen:
    """A request as it arrived, what was answered, and how many bytes of the body were sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int = 0
    sent: int = 0

    @property
    def authorization(self) -> str:
        return self.headers.get(hdrs.AUTHORIZATION, "")

    @property
    def range(self) -> str:
        return self.headers.get(hdrs.RANGE, "")


class ServedFile:
    """A file in memory or on the disk, the faults that it has, and what was asked of it."""

    def __init__(self, content: bytes | Path, etag: str | None = None) -> None:
        self.content = content
        self.etag = etag if etag is not None else f'"{hashlib.md5(str(content).encode()).hexdigest()}"'  # noqa: S324
        self.faults = Faults()
        self.released = asyncio.Event()
        self.stalled = asyncio.Event()
        """Set when a stall has begun."""
        self.seen: list[Seen] = []
        self.idle = asyncio.Event()
        """Set while nothing is being answered: then the counts are complete."""
        self.idle.set()
        self._answering = 0

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def gets(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "GET"]

    @property
    def bytes_sent(self) -> int:
        return sum(seen.sent for seen in self.seen)

    def fail(self, **faults: Any) -> None:
        """Set faults by name, after clearing all others."""
        unknown = faults.keys() - {each.name for each in fields(Faults)}
        assert not unknown, f"there is no fault {unknown}"
        self.faults = Faults(**faults)

    def sha256(self) -> str:
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        with self.content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer HEAD and GET, as honestly as the faults allow."""
        seen = Seen(request.method, request.path_qs, request.headers.copy())
        self.seen.append(seen)
        self._answering += 1
        self.idle.clear()
        try:
            return await _Answer(self, request, seen).give()
        finally:
            self._answering -= 1
            if not self._answering:
                self.idle.set()


class _Answer:
    """One answer to one request."""

    def __init__(self, file: ServedFile, request: web.Request, seen: Seen) -> None:
        self.file, self.request, self.seen, self.faults = file, request, seen, file.faults

    async def give(self) -> web.StreamResponse:
        if self.faults.reset_at == -1 and self._use("resets"):
            return self._reset(web.Response())
        if (refusal := self._refusal()) is not None:
            self.seen.status = refusal.status
            return refusal
        start, end, status = self._range()
        self.seen.status = status
        return await self._give(start, end, status)

    async def _give(self, start: int, end: int, status: int) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=self._headers(start, end, status))
        if status == 416 or self.request.method == "HEAD":
            response.content_length = 0 if status == 416 else self._length(start, end)
            await response.prepare(self.request)
            return response
        if self.faults.gzip:
            return await self._gzipped(response)
        if self.faults.no_length:
            response.enable_chunked_encoding()
        else:
            response.content_length = self._length(start, end)
        await response.prepare(self.request)
        try:
            return await self._send(response, start, end)
        except (ConnectionError, asyncio.CancelledError):
            return response  # the client has gone

    def _use(self, counter: str) -> bool:
        left = getattr(self.faults, counter)
        setattr(self.faults, counter, left - 1)
        return bool(left > 0)

    def _refusal(self) -> web.Response | None:
        faults = self.faults
        if faults.no_head and self.request.method == "HEAD":
            return web.Response(status=faults.no_head)
        if faults.status and self._use("statuses"):
            headers = faults.error_headers | ({hdrs.RETRY_AFTER: faults.retry_after} if faults.retry_after else {})
            return web.Response(status=faults.status, headers=headers, text="no")
        if faults.redirect and self._use("redirects"):
            location = faults.redirect.replace("{url}", str(self.request.url))
            return web.Response(status=302, headers={hdrs.LOCATION: location})
        if faults.html:
            return web.Response(text="<!doctype html><title>Sign in</title>", content_type="text/html")
        return None

    def _etag(self) -> str:
        if self.faults.no_etag:
            return ""
        return f'"v{len(self.file.seen)}"' if self.faults.changing_etag else self.file.etag

    def _range(self) -> tuple[int, int, int]:
        """Start, end (exclusive) and status."""
        size = self.file.size
        whole = (0, size, 200)
        asked = self.request.headers.get(hdrs.RANGE, "")
        condition = self.request.headers.get(hdrs.IF_RANGE, "")
        if not asked.startswith("bytes=") or self.faults.ignore_range:
            return whole
        if condition and not self.faults.ignore_if_range and (condition != self._etag() or condition.startswith("W/")):
            return whole
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) + self.faults.wrong_range
        if start >= size:
            return 0, 0, 416
        return start, min(int(last) + 1, size) if last else size, 206

    def _headers(self, start: int, end: int, status: int) -> dict[str, str]:
        headers: dict[str, str] = {hdrs.CONTENT_TYPE: self.faults.type, hdrs.ACCEPT_RANGES: "bytes"}
        if etag := self._etag():
            headers[hdrs.ETAG] = etag
        if self.faults.disposition:
            headers[hdrs.CONTENT_DISPOSITION] = self.faults.disposition
        if status == 206:
            headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/{self.file.size}"
        if status == 416:
            headers[hdrs.CONTENT_RANGE] = f"bytes */{self.file.size}"
        return headers

    def _length(self, start: int, end: int) -> int | None:
        return None if self.faults.no_length else end - start + self.faults.length_error

    async def _gzipped(self, response: web.StreamResponse) -> web.StreamResponse:
        assert isinstance(self.file.content, bytes)
        packed = gzip.compress(self.file.content)
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        response.content_length = len(packed)
        await response.prepare(self.request)
        await response.write(packed)
        self.seen.sent += len(packed)
        return response

    async def _send(self, response: web.StreamResponse, start: int, end: int) -> web.StreamResponse:
        offset = start
        for stop, act in self._incidents(start, end):
            await self._write(response, offset, stop)
            offset = stop
            match act:
                case "stall":
                    self.file.stalled.set()
                    await self.file.released.wait()
                case "reset":
                    return self._reset(response)
                case "end":
                    self._close()
                    return response
        await self._write(response, offset, end)
        if self.faults.length_error > 0:
            self._close()
            return response
        await response.write_eof()
        return response

    def _incidents(self, start: int, end: int) -> list[tuple[int, str]]:
        faults = self.faults
        planned = [
            (faults.stall_at, "stall", "stalls"),
            (faults.reset_at, "reset", "resets"),
            (faults.end_at, "end", "ends"),
        ]
        return sorted(
            (at, act) for at, act, counter in planned if at is not None and start <= at < end and self._use(counter)
        )

    async def _write(self, response: web.StreamResponse, start: int, end: int) -> None:
        if self.faults.bytes_per_second:
            await self._drip(response, start, end)
        elif isinstance(self.file.content, bytes):
            await response.write(self.file.content[start:end])
            self.seen.sent += end - start
        elif self.faults.no_length:
            await self._copy(response, self.file.content, start, end)
        else:
            await self._send_file(self.file.content, start, end)

    async def _drip(self, response: web.StreamResponse, start: int, end: int) -> None:
        pause = self.faults.piece / self.faults.bytes_per_second
        for offset in range(start, end, self.faults.piece):
            piece = self._read(offset, min(offset + self.faults.piece, end))
            await response.write(piece)
            self.seen.sent += len(piece)
            await asyncio.sleep(pause)

    async def _copy(self, response: web.StreamResponse, path: Path, start: int, end: int) -> None:
        for offset in range(start, end, PIECE):
            piece = self._read(offset, min(offset + PIECE, end))
            await response.write(piece)
            self.seen.sent += len(piece)

    def _read(self, start: int, end: int) -> bytes:
        if isinstance(self.file.content, bytes):
            return self.file.content[start:end]
        with self.file.content.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    async def _send_file(self, path: Path, start: int, end: int) -> None:
        transport = self.request.transport
        if transport is None:
            raise ConnectionResetError
        with path.open("rb") as file:
            for offset in range(start, end, PIECE):
                count = min(PIECE, end - offset)
                await asyncio.get_running_loop().sendfile(transport, file, offset, count)
                self.seen.sent += count

    def _reset(self, response: web.StreamResponse) -> web.StreamResponse:
        """Break the connection so that the other side sees a reset, not an end."""
        if (transport := self.request.transport) is not None:
            if (connection := transport.get_extra_info("socket")) is not None:
                connection.setsockopt(SOL_SOCKET, SO_LINGER, LINGER)
            transport.abort()
        return response

    def _close(self) -> None:
        if self.request.transport is not None:
            self.request.transport.close()  # which sends what is buffered first


@asynccontextmanager
async def listening(app: web.Application, port: int = 0) -> AsyncIterator[str]:
    """Serve an application on loopback; the address, such as http://127.0.0.1:41234, without a slash at the end."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        host, bound = runner.addresses[0][:2]
        yield f"http://{host}:{bound}"
    finally:
        await runner.cleanup()
