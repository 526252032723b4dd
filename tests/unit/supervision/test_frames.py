"""Frames survive any cutting of the stream; what is no frame is told, within bounds."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.supervision.frames import MAX_HEADER, MAX_PAYLOAD, Frame, FrameError, FrameReader, encode

headers = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.integers()),
    max_size=4,
)
frames = st.lists(st.builds(Frame, headers, st.binary(max_size=64)), max_size=6)


def raw(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">II", len(header), len(payload)) + header + payload


@given(frames=frames, data=st.data())
def test_frames_are_the_same_whatever_the_cuts(frames: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode(*frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader = FrameReader()
    read = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        read += reader.feed(stream[start:end])
    assert read == frames


def test_byte_by_byte_a_frame_comes_with_its_last_byte() -> None:
    stream = encode({"event": "image"}, b"\x89PNG\0\r\n")
    reader = FrameReader()
    assert [reader.feed(bytes([byte])) for byte in stream[:-1]] == [[]] * (len(stream) - 1)
    assert reader.feed(stream[-1:]) == [({"event": "image"}, b"\x89PNG\0\r\n")]


def test_any_text_travels() -> None:
    header = {"prompt": 'a "cat"\n\0\u2028\N{SNOWMAN}\N{GRINNING FACE}\ud800', "empty": ""}
    assert FrameReader().feed(encode(header)) == [(header, b"")]


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[1]", b'"text"', b"1", b"null", b"{} {}", b'{"a": \xff}', b"[" * 500_000, b'{"a": ' * 150_000],
    ids=["empty", "half", "list", "text", "number", "null", "two", "not UTF-8", "deep list", "deep object"],
)
def test_a_header_that_is_no_object_is_refused(header: bytes) -> None:
    with pytest.raises(FrameError, match="header"):
        FrameReader().feed(raw(header))


@pytest.mark.parametrize(("header", "payload"), [(MAX_HEADER + 1, 0), (2, MAX_PAYLOAD + 1), (2**32 - 1, 2**32 - 1)])
def test_a_frame_beyond_the_bounds_is_refused_before_it_is_held(header: int, payload: int) -> None:
    with pytest.raises(FrameError, match=f"{header} \\+ {payload} bytes"):
        FrameReader().feed(struct.pack(">II", header, payload))


def test_a_stream_of_something_else_is_refused() -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(b"ggml_vulkan: No devices found\n")


def test_the_largest_header_travels_and_a_larger_one_is_not_sent() -> None:
    around = len(encode({"prompt": ""})) - 8
    header = {"prompt": "x" * (MAX_HEADER - around)}
    assert FrameReader().feed(encode(header)) == [(header, b"")]
    with pytest.raises(FrameError):
        encode({"prompt": "x" * (MAX_HEADER - around + 1)})


def test_a_payload_beyond_the_bounds_is_not_sent() -> None:
    with pytest.raises(FrameError):
        encode({}, bytes(MAX_PAYLOAD + 1))
