"""A source of files in memory, which fails as a test's script says.

Each time a file's bytes are asked for, the next fault of the script happens; when it has run out, all goes well.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from genaid_server.resource.core.downloads.remote import HubFile, Item, RangeError, RemoteError, Resolved
from genaid_server.resource.core.store.model import ModelSource, SourceType

COMMIT = "c0ffee" + "0" * 34


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True)
class Refuse:
    """The source answers with an error."""

    message: str = "The source is overloaded."
    permanent: bool = False
    retry_after: float | None = None


@dataclass(frozen=True)
class Break:
    """The connection breaks after so many bytes of the answer."""

    after: int


@dataclass(frozen=True)
class End:
    """The answer ends after so many bytes, as if that were all."""

    after: int


@dataclass(frozen=True)
class Stall:
    """After so many bytes nothing comes any more."""

    after: int


@dataclass(frozen=True)
class Trickle:
    """After so many bytes, one comes now and then, and that is all."""

    after: int


@dataclass(frozen=True)
class IgnoreRange:
    """The whole file is given, whatever was asked for; `then` breaks it after so many bytes."""

    then: int | None = None


@dataclass(frozen=True)
class WrongPart:
    """Another part is given than was asked for."""


@dataclass(frozen=True)
class WrongTotal:
    """The source speaks of another size than the file has."""

    by: int


@dataclass(frozen=True)
class TooMuch:
    """More bytes come than were announced."""

    count: int


@dataclass(frozen=True)
class Replace:
    """Before the answer, the file becomes another one."""

    content: bytes
    etag: str = '"other"'


@dataclass
class Hold:
    """After so many bytes the source waits for `go`; `reached` says that it does."""

    after: int
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)


type Fault = Refuse | Break | End | Stall | Trickle | IgnoreRange | WrongPart | WrongTotal | TooMuch | Replace | Hold


@dataclass
class Served:
    """One file of the source, and what it says about it."""

    content: bytes
    etag: str = '"one"'
    name: str = ""
    checksum: str = ""
    tells_size: bool = True
    revision: str = COMMIT


@dataclass(frozen=True)
class Opening:
    """One request for bytes."""

    name: str
    start: int
    end: int | None
    etag: str


@dataclass
class ScriptedBody:
    """What a request gets."""

    start: int
    total: int | None
    etag: str
    pieces: "AsyncIterator[bytes]"

    def chunks(self) -> AsyncIterator[bytes]:
        return self.pieces


class ScriptedRemote:
    """Remote over `files`, by URL or by the path in the repository."""

    def __init__(self, files: dict[str, Served], chunk: int = 64 * 1024) -> None:
        self.files, self._chunk = files, chunk
        self.script: defaultdict[str, list[Fault]] = defaultdict(list)
        self.resolving: list[Refuse | Hold] = []
        self.openings: list[Opening] = []
        self.resolved: list[Item] = []
        self.sent = 0
        self.open_bodies = 0

    def fail(self, key: str, *faults: Fault) -> None:
        """Let these happen, one a request for the bytes of `key`, those for its header included."""
        self.script[key] += faults

    async def resolve(self, item: Item) -> Resolved:
        self.resolved.append(item)
        if self.resolving:
            fault = self.resolving.pop(0)
            if isinstance(fault, Refuse):
                raise RemoteError(fault.message, fault.permanent, fault.retry_after)
            fault.reached.set()
            await fault.go.wait()
        key = item.source.file if isinstance(item.source, HubFile) else item.source
        if key not in self.files:
            raise RemoteError(f"The source has no file {key}.", permanent=True)
        served = self.files[key]
        if isinstance(item.source, HubFile):
            source = ModelSource(
                SourceType.HUGGINGFACE,
                repo=item.source.repo,
                file=item.source.file,
                revision=served.revision,
                etag=served.etag,
                license="mit",
            )
        else:
            source = ModelSource(SourceType.URL, url=item.source, etag=served.etag)
        return Resolved(
            url=key,
            name=served.name or key.rsplit("/", 1)[-1],
            size=len(served.content) if served.tells_size else None,
            etag=served.etag,
            checksum=served.checksum,
            source=source,
        )

    @asynccontextmanager
    async def open(
        self, resolved: Resolved, start: int = 0, end: int | None = None, etag: str = ""
    ) -> AsyncIterator[ScriptedBody]:
        self.openings.append(Opening(resolved.url, start, end, etag))
        script = self.script[resolved.url]
        fault = script.pop(0) if script else None
        served = self.files[resolved.url]
        match fault:
            case Refuse(message, permanent, retry_after):
                raise RemoteError(message, permanent, retry_after)
            case Replace(content, new_etag):
                served.content, served.etag = content, new_etag
        if etag and etag != served.etag:
            start, end = 0, None
        if isinstance(fault, IgnoreRange):
            start, end = 0, None
        if start and start >= len(served.content):
            raise RangeError
        if isinstance(fault, WrongPart) and start:
            start -= 1
        part = served.content[start:end]
        total: int | None = len(served.content) if served.tells_size else None
        if isinstance(fault, WrongTotal) and total is not None:
            total += fault.by
        self.open_bodies += 1
        try:
            yield ScriptedBody(start, total, served.etag, self._send(part, fault))
        finally:
            self.open_bodies -= 1

    async def _send(self, part: bytes, fault: Fault | None) -> AsyncIterator[bytes]:
        whole, part = part, part[: _sent_before(fault)]
        for begin in range(0, len(part), self._chunk):
            await asyncio.sleep(0)
            piece = part[begin : begin + self._chunk]
            self.sent += len(piece)
            yield piece
        match fault:
            case Break() | IgnoreRange(int()):
                raise RemoteError("The connection broke.", permanent=False)
            case Stall():
                await asyncio.Event().wait()
            case Trickle():
                for place in range(fault.after, len(whole)):
                    await asyncio.sleep(0.001)
                    yield whole[place : place + 1]
            case TooMuch(count):
                yield bytes(count)
            case Hold(after, reached, go):
                reached.set()
                await go.wait()
                yield whole[after:]


def _sent_before(fault: Fault | None) -> int | None:
    match fault:
        case Break(after) | End(after) | Stall(after) | Trickle(after) | Hold(after):
            return after
        case IgnoreRange(then):
            return then
        case _:
            return None


def keys(files: Sequence[Served]) -> dict[str, Served]:
    """The same files, each at an address of its own."""
    return {f"http://models.test/{file.name}": file for file in files}
