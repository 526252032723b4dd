"""Reads the header of a file elsewhere, without the file.

The parsers are those of files here; they run in a thread and ask for pieces, which are fetched by ranged requests.
Where a source ignores ranges, one answer is read from its beginning until the parser has enough.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core.downloads.remote import Body, Remote, RemoteError, Resolved, chunks_of
from genaid_server.resource.core.downloads.retry import answer_within
from genaid_server.resource.core.formats import gguf, headers, safetensors
from genaid_server.resource.core.formats.byte_source import Source
from genaid_server.resource.core.formats.gguf import GgufHeader
from genaid_server.resource.core.formats.headers import decide_type, of_gguf
from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.formats.safetensors import SafetensorsHeader

FIRST_PIECE: Final = 65_536
"""Bytes of the first request: enough to see what the file is not."""

type Header = GgufHeader | SafetensorsHeader

_BEGINNINGS: Final = {ModelFormat.GGUF: slice(0, 4), ModelFormat.SAFETENSORS: slice(8, 9)}
_MAGIC: Final = {ModelFormat.GGUF: b"GGUF", ModelFormat.SAFETENSORS: b"{"}


async def read_remote_header(
    remote: Remote, resolved: Resolved, form: ModelFormat, stall_seconds: float
) -> Header | None:
    """Read and check a header; None where the source doesn't tell the file's size, after a look at how it begins.

    Raises InvalidRequestError where the file isn't what its format says or is damaged, and RemoteError where the
    source fails, or is silent for `stall_seconds`.
    """
    async with _Pieces(remote, resolved, stall_seconds) as pieces:
        beginning = await pieces.read(0, FIRST_PIECE)
        if pieces.size is None:
            _check_beginning(beginning, form)
            return None
        return await _parse(pieces, _BridgedSource(pieces.size), form)


def tell_type(read: Sequence[Header], wanted: ModelType | None) -> ModelType:
    """What a model is for, by its header, or by those of its first shards.

    Raises InvalidRequestError where it is no whole model, or not what is wanted.
    """
    first = read[0]
    if isinstance(first, SafetensorsHeader):
        kind = ModelType(safetensors.guess_type(first))
        return decide_type(headers.Header(ModelFormat.SAFETENSORS, "", kind, None), wanted)
    if len(read) == 1 and _is_shard(first):
        raise InvalidRequestError(
            "The file is a shard of a model, whose name doesn't say so: its other shards can't be found by it. "
            "Download the model from where its shards are named NAME-00001-of-0000N.gguf.",
            field="items",
        )
    return decide_type(of_gguf([each for each in read if isinstance(each, GgufHeader)]), wanted)


def _is_shard(header: GgufHeader) -> bool:
    count = header.fields.get("split.count")
    return isinstance(count, int) and count > 1


def _check_beginning(beginning: bytes, form: ModelFormat) -> None:
    if beginning[_BEGINNINGS[form]] != _MAGIC[form]:
        raise InvalidRequestError(
            f"The file is no {form} file: it doesn't begin like one. Fetch the model itself, not a page about it.",
            field="items",
        )


async def _parse(pieces: "_Pieces", source: "_BridgedSource", form: ModelFormat) -> Header:
    parser: Callable[[Source], Header] = gguf.parse_header if form is ModelFormat.GGUF else safetensors.parse_header
    parsing = asyncio.ensure_future(asyncio.to_thread(parser, source))
    parsing.add_done_callback(lambda _: source.requests.put_nowait(None))
    try:
        while (request := await source.requests.get()) is not None:
            await _answer(pieces, request)
    finally:
        source.give_up()
        await to_the_end(asyncio.wait([parsing]))
        parsing.exception()  # which says that it was seen, where this is being cancelled
    return parsing.result()


@dataclass(frozen=True, slots=True)
class _RangeRequest:
    offset: int
    length: int
    reply: Future[bytes]


async def _answer(pieces: "_Pieces", request: _RangeRequest) -> None:
    try:
        request.reply.set_result(await pieces.read(request.offset, request.length))
    except RemoteError as error:
        request.reply.set_exception(error)
    except BaseException:
        request.reply.set_exception(_given_up())
        raise


def _given_up() -> RemoteError:
    return RemoteError("Reading the header was cancelled.", permanent=False)


class _BridgedSource:
    """A Source whose reads, in the parser's thread, wait for what the event loop fetches."""

    def __init__(self, size: int) -> None:
        self.requests: asyncio.Queue[_RangeRequest | None] = asyncio.Queue()
        self._size, self._loop = size, asyncio.get_running_loop()
        self._lock, self._given_up = threading.Lock(), False

    @property
    def size(self) -> int:
        """Of the whole file, in bytes."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, fewer where the file ends. Raises RemoteError."""
        request = _RangeRequest(offset, max(0, min(length, self._size - offset)), Future())
        if not request.length:
            return b""
        with self._lock:
            if self._given_up:
                raise _given_up()
            self._loop.call_soon_threadsafe(self.requests.put_nowait, request)
        return request.reply.result()

    def give_up(self) -> None:
        """Let the parser's thread end: from now on each of its reads fails."""
        with self._lock:
            self._given_up = True
        self._loop.call_soon(self._refuse_rest)

    def _refuse_rest(self) -> None:
        while not self.requests.empty():
            if request := self.requests.get_nowait():
                request.reply.set_exception(_given_up())


class _ForwardReader:
    """Bytes of a file as they arrive, read forward only."""

    def __init__(self, chunks: AsyncIterator[bytes], position: int, stall_seconds: float) -> None:
        self._chunks, self._position, self._stall_seconds = chunks, position, stall_seconds
        self._rest = b""

    async def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`, fewer where there are no more; what lies before `start` is dropped."""
        wanted = bytearray()
        while self._position < end:
            if not self._rest:
                async with answer_within(self._stall_seconds):
                    chunk = await anext(self._chunks, None)
                if chunk is None:
                    break
                self._rest = chunk
            taken = self._rest[: end - self._position]
            wanted += taken[max(0, start - self._position) :]
            self._rest = self._rest[len(taken) :]
            self._position += len(taken)
        return bytes(wanted)


class _Pieces:
    """Pieces of one version of a file elsewhere, each asked for where the one before it ended or later.

    `size` is the whole file's, in bytes, known after the first piece, or never.
    """

    def __init__(self, remote: Remote, resolved: Resolved, stall_seconds: float) -> None:
        self._remote, self._resolved, self._stall_seconds = remote, resolved, stall_seconds
        self.size = resolved.size
        self._etag = ""
        self._buffer, self._buffer_at = b"", 0
        self._whole: _ForwardReader | None = None  # of a source that ignores ranges
        self._connection = AsyncExitStack()

    async def __aenter__(self) -> "_Pieces":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.aclose()

    async def read(self, offset: int, length: int) -> bytes:
        """Return a piece, fewer bytes where the file ends. Raises RemoteError."""
        end = offset + length if self.size is None else min(offset + length, self.size)
        known = b""
        if self._buffer_at <= offset:
            known = self._buffer[offset - self._buffer_at : end - self._buffer_at]
        if offset + len(known) < end:
            known += await self._fetch(offset + len(known), end)
        self._buffer, self._buffer_at = known, offset
        return known

    async def _fetch(self, start: int, end: int) -> bytes:
        if self._whole is None:
            async with AsyncExitStack() as connection:
                wanted = self._remote.open(self._resolved, start, end, self._etag if start else "")
                async with answer_within(self._stall_seconds):
                    body = await connection.enter_async_context(wanted)
                self._check(body)
                chunks = await connection.enter_async_context(chunks_of(body))
                stream = _ForwardReader(chunks, body.start, self._stall_seconds)
                if body.start == start:
                    return self._enough(await stream.read(start, end), start, end)
                self._whole, self._connection = stream, connection.pop_all()
        return self._enough(await self._whole.read(start, end), start, end)

    def _check(self, body: Body) -> None:
        if self._etag and body.etag != self._etag:
            raise RemoteError("The file was changed at its source while its header was read.", permanent=False)
        self._etag = body.etag
        if body.total is not None:
            self.size = body.total

    def _enough(self, data: bytes, start: int, end: int) -> bytes:
        wanted = end if self.size is None else min(end, self.size)
        if self.size is not None and len(data) < wanted - start:
            raise RemoteError("The source sent less of the file than it said.", permanent=False)
        return data
