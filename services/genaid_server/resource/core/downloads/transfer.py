"""Fetches one file, whatever happens on the way.

Bytes are appended to a partial file. While one buffer of them is written and hashed in a thread, the next one
arrives; what was received before a failure, or before the service was restarted, isn't fetched again, unless the
source has another file by then or can't continue.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core.downloads.download import DownloadLimits
from genaid_server.resource.core.downloads.partial_file import PartialFile
from genaid_server.resource.core.downloads.remote import Body, RangeError, Remote, RemoteError, Resolved, chunks_of
from genaid_server.resource.core.downloads.retry import Pauses, Tries, answer_within

BUFFER: Final = 2**20
"""Bytes that are written at once; twice as many are in memory, and lost when the process is killed."""
LONGEST_HOLD: Final = 0.25
"""Seconds that bytes of a slow source stay in memory."""
SLOWEST: Final = 1024
"""Bytes that have to arrive in a stall's time. What is slower is no source to wait for, but one to ask again."""
PROGRESS: Final = 65_536
"""Bytes beyond all earlier ones that renew the number of tries."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which version of a file the bytes on the disk are from: its size and its ETag, where they are known."""

    size: int | None = None
    etag: str = ""


class Listener(Protocol):
    """Told by a transfer how it goes, in the event loop."""

    def on_bytes(self, count: int, length: int) -> None:
        """`count` bytes were written, and now `length` are there; 0 and a smaller `length` where it starts over."""

    def on_retry(self, problem: str) -> None:
        """It will be tried again, because of a problem."""

    async def on_version(self, version: Version) -> None:
        """What is written from now on is from this version, which is to be remembered over a restart."""


class _ChangedError(Exception):
    """The source can't continue what is there."""


class Transfer:
    """Fetches one file to `path`; to be run once."""

    def __init__(
        self,
        remote: Remote,
        resolved: Resolved,
        path: Path,
        version: Version,
        listener: Listener,
        limits: DownloadLimits,
        pauses: Pauses,
    ) -> None:
        """`version` is the one that the bytes at `path` are from, if there are any."""
        self._remote, self._resolved, self._path = remote, resolved, path
        self._version, self._listener, self._limits = version, listener, limits
        self._tries = Tries(limits, pauses, listener.on_retry)
        self._part = PartialFile(path, resolved.name, limits.reserve_bytes)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._reported = 0  # bytes that the listener knows of
        self._best = 0  # most bytes that were ever there

    async def run(self) -> str:
        """Fetch what is missing and return the checksum of the whole.

        Raises DownloadError where the source refuses or fails too often, InsufficientResourcesError where the disk
        is full, FileSystemError. The bytes stay whatever is raised.
        """
        try:
            await self._load()
            while not self._complete:
                try:
                    await self._try()
                except _ChangedError:
                    await self._start_over()
                    await self._tries.wait(RemoteError("The source can't continue; it starts over.", permanent=False))
                except RemoteError as error:
                    if isinstance(error, RangeError):
                        await self._start_over()
                    await self._tries.wait(error)
            return self._part.checksum
        finally:
            await to_the_end(self._close())

    async def _close(self) -> None:
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await asyncio.to_thread(self._part.close)

    @property
    def _complete(self) -> bool:
        return self._version.size is not None and self._part.length == self._version.size

    async def _load(self) -> None:
        stop = threading.Event()
        loading = asyncio.get_running_loop().run_in_executor(None, self._part.load, stop)
        try:
            await asyncio.shield(loading)
        except asyncio.CancelledError:
            stop.set()
            await to_the_end(asyncio.wait([loading]))
            raise
        self._best = self._reported = self._part.length
        self._listener.on_bytes(0, self._part.length)
        size = self._version.size
        if self._part.length and (self._version == Version() or (size is not None and self._part.length > size)):
            await self._start_over()

    async def _start_over(self) -> None:
        await to_the_end(asyncio.to_thread(self._part.restart))
        self._reported = 0
        self._listener.on_bytes(0, 0)
        self._version = Version()

    async def _try(self) -> None:
        """One connection, up to its end or the file's. Raises RemoteError, _ChangedError."""
        if not (self._version.etag or self._resolved.checksum) and self._part.length:
            await self._start_over()  # nothing would tell that the rest is another file's
        start = self._part.length
        async with AsyncExitStack() as connection:
            async with answer_within(self._limits.stall_seconds):
                wanted = self._remote.open(self._resolved, start, None, self._version.etag if start else "")
                body = await connection.enter_async_context(wanted)
            await self._agree(body, start)
            await self._receive(body)
        await self._check_end()

    async def _agree(self, body: Body, start: int) -> None:
        """See which version this is, and have it remembered before a byte of it is written."""
        total = self._resolved.size if body.total is None else body.total
        if self._resolved.checksum and self._resolved.size not in (None, total):
            raise RemoteError(
                f"The source gives {total} bytes of {self._resolved.name}, which has {self._resolved.size}.",
                permanent=False,
            )
        version = Version(total, body.etag)
        if body.start != start:
            if body.start:
                raise _ChangedError
            await self._start_over()
        elif start and not _same(version, self._version):
            raise _ChangedError
        if version != self._version:
            self._version = version
            await self._listener.on_version(version)

    async def _check_end(self) -> None:
        size, length = self._version.size, self._part.length
        if size is None:
            self._version = Version(length, self._version.etag)
            await self._listener.on_version(self._version)
        elif length > size:
            await self._start_over()
            raise RemoteError(f"The source sent more than the {size} bytes that it said.", permanent=False)
        elif length < size:
            raise RemoteError(f"The source sent {length} of {size} bytes.", permanent=False)

    # --- receiving

    async def _receive(self, body: Body) -> None:
        loop = asyncio.get_running_loop()
        alive, recent = loop.time(), 0  # when the source was last seen alive, and the bytes since then
        self._ticking = loop.call_later(LONGEST_HOLD, self._tick)
        try:
            async with chunks_of(body) as chunks:
                while (chunk := await self._next(chunks, alive)) is not None and not self._too_long:
                    self._held.append(chunk)
                    self._held_bytes += len(chunk)
                    recent += len(chunk)
                    if self._held_bytes >= BUFFER:
                        await self._hand_over()
                    if recent >= SLOWEST:
                        alive, recent = loop.time(), 0
        except (RemoteError, asyncio.CancelledError):
            await to_the_end(self._flush())
            raise
        finally:
            if self._ticking is not None:
                self._ticking.cancel()
        await to_the_end(self._flush())

    async def _next(self, chunks: AsyncIterator[bytes], alive: float) -> bytes | None:
        try:
            async with asyncio.timeout_at(alive + self._limits.stall_seconds):
                return await anext(chunks, None)
        except TimeoutError as error:
            raise RemoteError(
                f"The source sent next to nothing for {self._limits.stall_seconds:g} seconds.", permanent=False
            ) from error

    @property
    def _too_long(self) -> bool:
        return self._version.size is not None and self._part.length > self._version.size

    def _tick(self) -> None:
        """Write what a slow source has sent."""
        idle = self._writing is None or (self._writing.done() and self._writing.exception() is None)
        if self._held and idle:
            self._begin_write()
        self._ticking = asyncio.get_running_loop().call_later(LONGEST_HOLD, self._tick)

    async def _hand_over(self) -> None:
        """Have what was received written, once what was received before it is."""
        await self._settle()
        if self._held:
            self._begin_write()

    def _begin_write(self) -> None:
        pieces, self._held, self._held_bytes = self._held, [], 0
        size, length = self._version.size, sum(map(len, pieces))
        needed = length if size is None else max(length, size - self._part.length)
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._part.append, pieces, needed)
        self._writing.add_done_callback(self._on_written)

    def _on_written(self, writing: "asyncio.Future[None]") -> None:
        if writing.cancelled() or writing.exception() is not None:
            return  # which whoever waits for it raises
        before, self._reported = self._reported, self._part.length
        self._listener.on_bytes(self._reported - before, self._reported)
        if self._reported >= self._best + PROGRESS:
            self._best = self._reported
            self._tries.renew()

    async def _settle(self) -> None:
        """Wait until nothing is being written. Raises what a write raised; then nothing more may be written."""
        while (writing := self._writing) is not None:
            await asyncio.wait([writing])
            if self._writing is writing:
                self._writing = None
            writing.result()

    async def _flush(self) -> None:
        await self._hand_over()
        await self._settle()


def _same(one: Version, other: Version) -> bool:
    """Whether two versions may be the same; what isn't known doesn't tell them apart."""
    return (one.size is None or other.size is None or one.size == other.size) and (
        not one.etag or not other.etag or one.etag == other.etag
    )
