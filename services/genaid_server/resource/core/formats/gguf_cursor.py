"""Reading forward through a GGUF header, a chunk at a time, never beyond its limit or the end of the file."""

import struct
from typing import Any, Final

from genaid_server.resource.core.formats.byte_source import Source
from genaid_server.resource.core.formats.gguf_errors import too_large, truncated

MAX_HEADER_BYTES: Final = 256 * 2**20
"""How far into a file a header may reach. The largest vocabularies make headers of some 20 MB."""

_FIRST_CHUNK: Final = 2**16  # read at once at first, each time four times as much, and at last
CHUNK: Final = 2**20
"""Bytes that are read at once."""
_U64: Final = struct.Struct("<Q")


class Cursor:
    """Walks forward through a source and holds one chunk of it at a time."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._end = min(source.size, MAX_HEADER_BYTES)
        self._chunk = _FIRST_CHUNK
        self._buffer = b""
        self._base = 0  # where in the file the buffer begins
        self._index = 0  # of the next byte in the buffer; beyond its end after a jump

    @property
    def position(self) -> int:
        """Of the next byte in the file."""
        return self._base + self._index

    @property
    def room(self) -> int:
        """Bytes between here and the end of the file."""
        return self._source.size - self.position

    def skip(self, length: int) -> None:
        """Jump over so many bytes."""
        self._require(length)
        self._index += length

    def take(self, length: int) -> bytes:
        """Read so many bytes, at most MAX_STRING_BYTES."""
        self._fill(length)
        start, self._index = self._index, self._index + length
        return self._buffer[start : self._index]

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Read numbers."""
        self._fill(layout.size)
        start, self._index = self._index, self._index + layout.size
        return layout.unpack_from(self._buffer, start)

    def skip_strings(self, count: int) -> None:
        """Jump over so many strings.

        The one loop that runs for each token of a vocabulary: it does nothing else, and only now and then looks
        whether it has left the buffer.
        """
        length_at = _U64.unpack_from
        while count:
            self._fill(_U64.size)
            buffer, index = self._buffer, self._index
            last = len(buffer) - _U64.size
            for rest in range(count, 0, -1):
                if index > last:
                    count = rest
                    break
                index += 8 + length_at(buffer, index)[0]
            else:
                count = 0
            self._index = index
            self._require(0)

    def _fill(self, length: int) -> None:
        """Have the next `length` bytes in the buffer."""
        if self._index + length <= len(self._buffer):
            return
        self._require(length)
        position = self.position
        wanted = min(max(length, self._chunk), self._end - position)
        self._chunk = min(4 * self._chunk, CHUNK)
        buffer = self._source.read_at(position, wanted)
        if len(buffer) != wanted:
            raise truncated("it ended while it was being read")
        self._buffer, self._base, self._index = buffer, position, 0

    def _require(self, length: int) -> None:
        if self.position + length <= self._end:
            return
        if length <= self.room:
            raise too_large(f"is longer than {MAX_HEADER_BYTES // 2**20} MiB")
        raise truncated(f"its header goes on beyond the file's end at {self._source.size} bytes")
