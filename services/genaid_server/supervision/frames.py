"""Messages on a pipe between a service and its engine child: a JSON header and, where it has one, a payload.

A frame is two big-endian 32-bit lengths (header, payload), the header in UTF-8 JSON, the payload as it is.
"""

import json
import struct
from typing import Any, Final, NamedTuple

_LENGTHS: Final = struct.Struct(">II")
MAX_HEADER: Final = 1_048_576
MAX_PAYLOAD: Final = 268_435_456


class FrameError(ValueError):
    """Not a frame of this protocol, or one beyond its bounds."""


class Frame(NamedTuple):
    """One message."""

    header: dict[str, Any]
    payload: bytes


def encode(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of one frame. Raises FrameError where the other side would refuse it."""
    text = json.dumps(header, separators=(",", ":")).encode()
    _check(len(text), len(payload))
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


class FrameReader:
    """Cuts a stream of bytes into frames; holds one unfinished frame at most, and that is bounded."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes. Raises FrameError for what is no frame."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= _LENGTHS.size:
            header, payload = _LENGTHS.unpack_from(self._buffer)
            _check(header, payload)
            body, end = _LENGTHS.size + header, _LENGTHS.size + header + payload
            if len(self._buffer) < end:
                break
            frames.append(Frame(_parse(bytes(self._buffer[_LENGTHS.size : body])), bytes(self._buffer[body:end])))
            del self._buffer[:end]
        return frames


def _check(header: int, payload: int) -> None:
    if header > MAX_HEADER or payload > MAX_PAYLOAD:
        raise FrameError(f"a frame of {header} + {payload} bytes")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FrameError("a frame header that is not JSON") from error
    if not isinstance(header, dict):
        raise FrameError("a frame header that is not an object")
    return header
