"""One life of an LLM engine, with programs that speak its protocol, well and badly."""

import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from genaid_server.kit.address import Address, require_free
from genaid_server.kit.errors import PortInUseError, ServerError
from genaid_server.resource.core.fitting.model_shape import Pooling
from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.llm.config import LlmEngineConfig, Serving
from genaid_server.resource.core.llm.process import (
    LlmProcess,
    environment,
    free_port,
    llm_process,
    load_command,
    load_timeout,
)
from genaid_server.supervision.logbook import Logbook
from genaid_server.supervision.process import MAX_REASON

GIB = 2**30
KEY = "open-sesame"

ENGINE = """
import os, sys
from genaid_server.supervision import frames

reader = frames.FrameReader()
commands = []
while not commands:
    commands = reader.feed(os.read(0, 65536))
command = commands[0].header

def send(**header):
    os.write(1, frames.encode(header))
"""
"""What the programs below have in common: they have read their command."""


@pytest.fixture
def config(tmp_path: Path) -> LlmEngineConfig:
    return LlmEngineConfig(
        model_id="demo",
        model_path=tmp_path / "demo.gguf",
        size_bytes=1000,
        llm=LlmOptions(threads=1, gpu_layers=0, context_size=256, parallel=2),
        serving=Serving(port=0, api_key=KEY),
        separates_reasoning=False,
        slot_save_path=tmp_path / "slots" / "demo",
    )


@pytest.fixture
def logbook() -> Iterator[Logbook]:
    logbook = Logbook()
    yield logbook
    logbook.close()


class Asked:
    """Health checks that are answered as told; remembers where they went."""

    def __init__(self, *answers: bool) -> None:
        self._answers = list(answers)
        self.places: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int, timeout: float) -> bool:
        """The next answer; the last one for ever."""
        self.places.append((host, port))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def ignored(done: int, total: int) -> None:
    """Nobody wants to know how far it is."""


@asynccontextmanager
async def engine(
    config: LlmEngineConfig, logbook: Logbook, program: str, health: Asked | None = None
) -> AsyncIterator[LlmProcess]:
    command = (sys.executable, "-c", ENGINE + program)
    async with llm_process(config, ignored, logbook, health or Asked(True), command) as life:
        yield life


def messages(logbook: Logbook) -> list[str]:
    return [record.message for record in logbook.tail(100)]


async def test_an_engine_is_ready_where_it_says_once_it_answers(config: LlmEngineConfig, logbook: Logbook) -> None:
    health = Asked(False, False, True)
    program = "send(event='ready', port=4711); os.read(0, 1)"
    async with engine(config, logbook, program, health) as life:
        await life.ready()
        assert life.loaded
        assert (life.port, life.host) == (4711, "127.0.0.1")
        assert life.cpu_seconds() > 0
        assert await life.healthy()
    assert health.places == [("127.0.0.1", 4711)] * 4
    assert not await life.healthy()
    assert life.cpu_seconds() == 0
    assert len(health.places) == 4, "nobody asks a dead process"


async def test_it_is_told_what_to_load(config: LlmEngineConfig, logbook: Logbook) -> None:
    program = "import json; print(json.dumps(command), file=sys.stderr, flush=True); os.read(0, 1)"
    async with engine(config, logbook, program):
        told = (await anext(logbook.watch(1)))[0].message
    assert json.loads(told) == load_command(config)
    assert config.slot_save_path.is_dir()


@pytest.mark.parametrize(
    ("pooling", "told"), [(None, (False, 512)), (Pooling.CLS, (True, 1024)), (Pooling.LAST, (True, 512))]
)
def test_only_an_embedding_model_is_told_to_embed(
    config: LlmEngineConfig, pooling: Pooling | None, told: tuple[bool, int]
) -> None:
    longer = replace(config, pooling=pooling, llm=replace(config.llm, context_size=1024))
    command = load_command(longer)
    assert (command["embeddings"], command["batch"]) == told


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("sys.exit(3)", "exit status 3"),
        ("send(event='failed', message='no'); sys.exit(1)", "exit status 1"),
        ("os.abort()", "signal SIGABRT"),
        ("os.write(1, b'HTTP/1.1 200 OK'); os.read(0, 1)", "it doesn't speak the engine protocol"),
        ("send(event='ready'); os.read(0, 1)", "it doesn't speak the engine protocol"),
        ("send(event='ready', port='soon'); os.read(0, 1)", "it doesn't speak the engine protocol"),
        ("send(event='ready', port=None); os.read(0, 1)", "it doesn't speak the engine protocol"),
        ("send(ready=True); os.read(0, 1)", "it doesn't speak the engine protocol"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the ends of processes have other names")
async def test_an_engine_that_does_not_get_ready(
    config: LlmEngineConfig, logbook: Logbook, program: str, reason: str
) -> None:
    async with engine(config, logbook, program) as life:
        with pytest.raises(ServerError) as caught:
            await life.ready()
    assert caught.value.message.startswith(f"The model demo could not be loaded: {reason}")


async def test_the_cause_stands_first_in_a_bounded_message(config: LlmEngineConfig, logbook: Logbook) -> None:
    program = """
for n in range(100):
    print(f"0.00.000.001 I line {n} " + "x" * 1000, file=sys.stderr)
print("0.00.000.001 E upside down", file=sys.stderr)
print("last, without an end", end="", file=sys.stderr, flush=True)
sys.exit(1)
"""
    async with engine(config, logbook, program) as life:
        with pytest.raises(ServerError) as caught:
            await life.ready()
    lines = caught.value.message.splitlines()
    assert lines[1] == "0.00.000.001 E upside down"
    assert len(caught.value.message) <= MAX_REASON
    assert messages(logbook)[-1] == "last, without an end"


async def test_a_port_that_is_taken_is_told_apart(config: LlmEngineConfig, logbook: Logbook) -> None:
    taken = replace(config, serving=Serving(port=4711))
    program = "print('0.00.001.000 E start: couldn\\'t bind HTTP server socket', file=sys.stderr); sys.exit(1)"
    async with engine(taken, logbook, program) as life:
        with pytest.raises(PortInUseError) as caught:
            await life.ready()
    assert caught.value.facts["port"] == "4711"


async def test_loading_has_a_limit(config: LlmEngineConfig, logbook: Logbook) -> None:
    hurried = replace(config, size_bytes=int(-119.95 / 30 * GIB))  # no file is so small, but it leaves 50 ms
    async with engine(hurried, logbook, "os.read(0, 1)") as life:
        with pytest.raises(ServerError, match="it did not answer within 0 s"):
            await life.ready()


async def test_a_condemned_engine_ends_for_that_reason(config: LlmEngineConfig, logbook: Logbook) -> None:
    async with engine(config, logbook, "send(event='ready', port=1); os.read(0, 1)") as life:
        await life.ready()
        life.condemn("it hung")
        assert (await life.exited()).startswith("it hung")


async def test_garbage_while_it_serves_ends_it(config: LlmEngineConfig, logbook: Logbook, tmp_path: Path) -> None:
    now = tmp_path / "now"
    program = f"""
import time
send(event="ready", port=1)
while not os.path.exists({str(now)!r}):
    time.sleep(0.01)
os.write(1, b"x" * 99)
os.read(0, 1)
"""
    async with engine(config, logbook, program) as life:
        await life.ready()
        now.touch()
        assert "doesn't speak the engine protocol" in await life.exited()


def test_large_models_may_take_longer_to_load() -> None:
    assert load_timeout(0) == 120
    assert load_timeout(40 * GIB) == 120 + 40 * 30


def test_the_environment_of_an_engine(config: LlmEngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    monkeypatch.delenv("LLAMA_API_KEY", raising=False)
    built_in = environment(config)
    assert "LLAMA_ARG_CTX_SIZE" not in built_in
    assert "LLAMA_API_KEY" not in built_in
    assert (built_in["SOMETHING_ELSE"], built_in["GOMP_SPINCOUNT"]) == ("kept", "77")
    assert built_in["GGML_NO_BACKTRACE"] == "1"
    own = replace(config, program="llama-server")
    assert environment(own)["LLAMA_API_KEY"] == KEY
    assert "LLAMA_API_KEY" not in environment(replace(own, serving=Serving()))


def test_a_free_port_can_be_bound() -> None:
    require_free([Address("127.0.0.1", free_port("127.0.0.1"))])
