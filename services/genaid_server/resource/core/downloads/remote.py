"""Files elsewhere: what is asked for, what was found out about it, and how its bytes are read.

The core knows sources only by these forms; what speaks HTTP implements `Remote` outside of it.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from genaid_server.resource.core.store.model import Component, ModelSource


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository of a Hugging Face hub.

    `repo` is OWNER/NAME, `file` a path inside it; `revision` a branch, tag or commit.
    """

    repo: str
    file: str
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class Item:
    """One file to fetch: from a hub, or from an http or https URL.

    `checksum` is what it must have: `sha256:` and 64 hexadecimal digits, or empty for what the source says.
    """

    source: HubFile | str
    component: Component = Component.MODEL
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a source says about a file; it holds no secret, because it is written to the disk.

    `url` is where its bytes are, `name` a safe name without folders. `size` is in bytes, None where it isn't told;
    `etag` and `checksum` (`sha256:` and lower-case hexadecimal digits) are empty where they aren't. `source` is the
    provenance that the model keeps: revision, ETag and license included.
    """

    url: str
    name: str
    size: int | None
    etag: str
    checksum: str
    source: ModelSource


class RemoteError(Exception):
    """A source can't be read: `message` says why and what to do, for people, without any secret.

    `permanent` tells that to try again is of no use; `retry_after` how long to wait at least, in seconds, where the
    source said so.
    """

    def __init__(self, message: str, permanent: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message, self.permanent, self.retry_after = message, permanent, retry_after


class Body(Protocol):
    """The bytes of a file, or of a part of it, as they arrive."""

    @property
    def start(self) -> int:
        """The offset in the file of its first byte: 0 where the source gives the file from its beginning only, or
        where the file is no longer the one with the ETag that was asked for."""
        ...

    @property
    def total(self) -> int | None:
        """The size of the whole file in bytes, where it is known."""
        ...

    @property
    def etag(self) -> str:
        """What tells this version of the file from others; empty where the source doesn't say."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes in order. Raises RemoteError where the connection breaks, or ends before all arrived."""
        ...


@asynccontextmanager
async def chunks_of(body: Body) -> AsyncIterator[AsyncIterator[bytes]]:
    """The chunks of a body, which are left in order when the block ends before they do."""
    chunks = body.chunks()
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


class Remote(Protocol):
    """What reads sources. Nothing else in the core does."""

    async def resolve(self, item: Item) -> Resolved:
        """Find out where a file is and what is known about it. Raises RemoteError."""
        ...

    def open(
        self, resolved: Resolved, start: int = 0, end: int | None = None, etag: str = ""
    ) -> AbstractAsyncContextManager[Body]:
        """Ask for the bytes from `start` up to, without, `end`; the connection closes with the block.

        With an `etag` the part is asked for only of that version of the file, else the whole file is given.
        Entering raises RemoteError; RangeError where the file ends before `start`.
        """
        ...


class RangeError(RemoteError):
    """The file has no byte at the offset that was asked for: it is shorter than it was (HTTP status 416)."""

    def __init__(self, message: str = "The source's file is shorter than the part that was fetched.") -> None:
        super().__init__(message, permanent=False)
