"""The image engine where its library is not installed: there are systems that it has no build for."""

import subprocess
import sys

from genaid_server.engines.image import NO_LIBRARY
from genaid_server.supervision import frames

WITHOUT = """
import runpy, sys

sys.modules["cyllama"] = None
runpy.run_module("genaid_server.engines.image", run_name="__main__")
"""
LOAD = {"op": "load", "model": "model.gguf", "threads": 1, "components": {}, "options": {}}


def test_it_says_what_is_missing() -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", WITHOUT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as engine:
        assert engine.stdin is not None
        assert engine.stdout is not None
        engine.stdin.write(frames.encode(LOAD))
        reader, answers = frames.FrameReader(), list[frames.Frame]()
        while not answers and (data := engine.stdout.read(4096)):
            answers += reader.feed(data)
        engine.stdin.close()
    assert [answer.header for answer in answers] == [{"event": "failed", "message": NO_LIBRARY}]
