"""An image engine that misbehaves on purpose; speaks the frames of the real one.

usage: image_engine.py MISBEHAVIOUR
  deaf         ignores cancel and never finishes a job
  silent-load  never finishes loading
  garbage      writes what is no frame while it draws
  noise        prints a megabyte without a line break, invalid UTF-8 and 2000 lines, then draws
  too-few      sends one image fewer than asked for
  full-disk    answers a job with an error
  exit-0       ends politely in the middle of a job
  abort        aborts in the middle of a job
  refuses      says that the model can't be loaded
  late         says things of the job before in the middle of the next one
"""

import os
import struct
import sys
import zlib
from typing import Any

from genaid_server.supervision import frames


def send(event: str, payload: bytes = b"", **values: object) -> None:
    os.write(1, frames.encode({"event": event, **values}, payload))


def png() -> bytes:
    """The smallest honest PNG: one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\x7f")) + chunk(b"IEND", b"")


def load(kind: str) -> None:
    send("loading", done=0, total=10)
    if kind == "refuses":
        send("failed", message="the tensors are upside down")
    elif kind != "silent-load":
        send("loading", done=10, total=10)
        send("ready")


def draw(kind: str, job: dict[str, Any]) -> None:
    name = job["job"]
    send("stage", job=name, stage="diffusion", image=1, step=0, steps=job["steps"])
    match kind:
        case "late" if before := int(name) - 1:
            send("image", png(), job=str(before), index=0, seed=4711, width=2, height=2)
            send("done", job=str(before))
        case "deaf":
            return
        case "garbage":
            os.write(1, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return
        case "noise":
            os.write(2, b"x" * 1_000_000 + b"\n\xff\xfe not text\n\0nul\n")
            os.write(2, b"".join(b"\rline %d" % number for number in range(2000)))
            os.write(2, b"\nmore\n")
        case "full-disk":
            send("error", job=name, message="no space left on device")
            return
        case "exit-0":
            print("I have had enough", file=sys.stderr, flush=True)
            os._exit(0)
        case "abort":
            print("GGML_ASSERT(false) failed", file=sys.stderr, flush=True)
            os.abort()
    for index in range(job["count"] - (kind == "too-few")):
        send("image", png(), job=name, index=index, seed=job["seed"] + index, width=1, height=1)
    send("done", job=name)


def main() -> None:
    kind = sys.argv[1]
    reader = frames.FrameReader()
    while data := os.read(0, 65536):
        for frame in reader.feed(data):
            if frame.header["op"] == "load":
                load(kind)
            elif frame.header["op"] == "generate":
                draw(kind, frame.header)


if __name__ == "__main__":
    main()
