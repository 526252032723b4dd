"""LLM engines that die, hang and lie, files that rot, and services that are killed; with real processes."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from conftest import DemoModels
from genaid_client import (
    Client,
    ConnectionFailedError,
    EngineEvent,
    HealthState,
    Llm,
    LlmConfig,
    LlmServing,
    LogLevel,
    PortInUseError,
    ServerError,
    ServerState,
)
from genaid_server.resource.core.fitting import plan
from genaid_server.resource.core.llm import process
from genaid_server.resource.core.llm.config import LlmEngineConfig, Serving
from genaid_server.supervision import frames
from genaid_server.supervision.logbook import MAX_LINE
from llm_service import FakeProgram, LlmService, alive, ask, chat, engines, fake_program, free_port, llm_service
from support import running_genaid
from worker import children

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it sends signals and starts shell scripts")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")

GONE_WITHIN = 5.0  # seconds
SMALL = LlmConfig(threads=1, context_size=256, parallel_requests=2)
SOON: dict[str, Any] = {"first_restart_seconds": 0.2, "health_interval_seconds": 60}

SQUATTER = """
import os, socket, sys
squatter = socket.socket()
squatter.bind(("127.0.0.1", int(sys.argv[1])))
squatter.listen()
squatter.set_inheritable(True)
os.execv(sys.executable, [sys.executable, "-P", "-m", "genaid_server.engines.llm"])
"""
"""Takes the engine's port after everybody has checked that it is free, and then is the engine."""


@pytest.fixture
async def service(tmp_path: Path, demo_models: DemoModels) -> AsyncIterator[LlmService]:
    async with llm_service(tmp_path, demo_models.llm, **SOON) as running:
        yield running
    assert children() == []


@pytest.fixture
def program(tmp_path: Path) -> FakeProgram:
    return fake_program(tmp_path)


@pytest.fixture
async def fake(tmp_path: Path, demo_models: DemoModels, program: FakeProgram) -> AsyncIterator[LlmService]:
    async with llm_service(tmp_path / "data", demo_models.llm, program=program.name, **SOON) as running:
        yield running
    assert children() == []


def send(llm: Llm, number: int) -> None:
    assert llm.pid is not None
    os.kill(llm.pid, number)


async def order(llm: Llm, path: str) -> None:
    """Tell the fake program what to do; it may die of it before it answers."""
    with suppress(aiohttp.ClientError):
        await ask(llm, "POST", path)


async def crash_of(service: LlmService, act: Callable[[], object]) -> Llm:
    """The crashed engine, once `act` has brought it down."""
    crashed = asyncio.create_task(service.until(lambda llm: llm.state is ServerState.CRASHED))
    outcome = act()
    if asyncio.iscoroutine(outcome):
        await outcome
    return await crashed


# --- it dies while it serves


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
async def test_a_killed_engine_is_reported_and_comes_back(service: LlmService, name: str) -> None:
    first = await service.client.llm.start("llm", config=SMALL, serving=LlmServing(port=free_port()))
    async for entry in service.client.llm.tail_logs(0):  # the library logs from a thread of its own, a moment later
        if "listening on" in entry.message:
            break
    crashed = await crash_of(service, lambda: send(first, getattr(signal, name)))
    assert (crashed.last_event, crashed.health, crashed.pid, crashed.port) == (
        EngineEvent.CRASHED,
        HealthState.ERROR,
        None,
        None,
    )
    assert name in crashed.last_error
    assert "Last lines of its log:" in crashed.last_error
    second = await service.serving(generation=2)
    assert (second.generation, second.restarts, second.last_error) == (2, 1, "")
    assert (second.config, second.port, second.model_id) == (first.config, first.port, "llm")
    assert second.pid != first.pid
    assert (await chat(second))[0] == 200
    told = [entry.message for entry in await service.log() if entry.message.startswith("engine ")]
    assert [line.partition(":")[0] for line in told] == [
        *("engine started", "engine ready", "engine crashed", "engine restarting", "engine ready")
    ]
    assert name in told[2]


@pytest.mark.parametrize("status", [0, 1])
async def test_an_engine_that_ends_by_itself_comes_back(fake: LlmService, status: int) -> None:
    first = await fake.client.llm.start("llm")
    crashed = await crash_of(fake, lambda: order(first, f"/die/exit/{status}"))
    assert crashed.last_event is EngineEvent.CRASHED
    assert f"exit status {status}" in crashed.last_error
    second = await fake.serving(generation=2)
    assert (second.restarts, second.last_error) == (1, "")


async def test_after_so_many_restarts_it_stays_down_until_somebody_asks(
    tmp_path: Path, demo_models: DemoModels, program: FakeProgram
) -> None:
    settings: dict[str, Any] = {"max_restarts": 2, "first_restart_seconds": 0, "health_interval_seconds": 60}
    async with llm_service(tmp_path / "data", demo_models.llm, program=program.name, **settings) as service:
        llm = await service.client.llm.start("llm")
        for generation in (2, 3):
            await order(llm, "/die/exit/1")
            llm = await service.serving(generation=generation)
        await order(llm, "/die/exit/1")
        down = await service.until(lambda llm: llm.state is ServerState.CRASHED)
        assert (down.generation, down.restarts) == (3, 2)
        for _ in range(5):  # a restart would have begun at once, and shows from then on
            assert await service.client.llm.get() == down
        again = await service.client.llm.start("llm")
        assert (again.generation, again.last_error) == (4, "")
        await order(again, "/die/exit/1")  # its budget is a new one
        assert (await service.serving(generation=5)).restarts == 4


async def test_the_time_between_restarts_grows(tmp_path: Path, demo_models: DemoModels, program: FakeProgram) -> None:
    settings: dict[str, Any] = {"max_restarts": 3, "first_restart_seconds": 0.1, "health_interval_seconds": 60}
    async with llm_service(tmp_path / "data", demo_models.llm, program=program.name, **settings) as service:
        llm = await service.client.llm.start("llm")
        program.plan(die="exit:1", say="E out of order\n")
        await order(llm, "/die/exit/1")
        await service.until(lambda llm: llm.state is ServerState.CRASHED and llm.restarts == 3)
        log = await service.log()
        crashes = [entry.time for entry in log if entry.message.startswith("engine crashed")]
        begins = [entry.time for entry in log if entry.message.startswith("starting with")][1:]
        waits = [(begin - crash).total_seconds() for crash, begin in zip(crashes, begins, strict=False)]
        assert len(waits) == 3
        for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True):
            assert wait > least - 0.01


async def test_without_restarts_it_stays_down(tmp_path: Path, demo_models: DemoModels) -> None:
    async with llm_service(tmp_path, demo_models.llm, restart=False, first_restart_seconds=0) as service:
        llm = await service.client.llm.start("llm")
        crashed = await crash_of(service, lambda: send(llm, signal.SIGKILL))
        for _ in range(5):
            assert await service.client.llm.get() == crashed
        again = await service.client.llm.start("llm")
        assert (again.generation, again.restarts) == (2, 1)


async def test_stopping_ends_the_wait_for_a_restart(tmp_path: Path, demo_models: DemoModels) -> None:
    async with llm_service(tmp_path, demo_models.llm, first_restart_seconds=3600) as service:
        llm = await service.client.llm.start("llm")
        await crash_of(service, lambda: send(llm, signal.SIGKILL))
        stopped = await service.client.llm.stop()
        assert (stopped.state, stopped.last_event) == (ServerState.STOPPED, EngineEvent.STOPPED)
        assert (await service.client.llm.restart()).generation == 2
        await crash_of(service, lambda: psutil.Process(engines()[0]).kill())
        assert (await service.client.llm.start("llm")).generation == 3


# --- it dies while it loads


@pytest.mark.parametrize(
    ("death", "words"),
    [
        ("signal:SIGKILL", "signal SIGKILL"),
        ("signal:SIGSEGV", "signal SIGSEGV"),
        ("exit:0", "exit status 0"),
        ("exit:1", "exit status 1"),
    ],
)
async def test_an_engine_that_dies_while_it_loads_fails_the_start_at_once_with_the_cause(
    tmp_path: Path, demo_models: DemoModels, program: FakeProgram, death: str, words: str
) -> None:
    program.plan(die=death, say="0.00.001.000 I loading\n0.00.002.000 E the tensors are upside down\n")
    async with llm_service(tmp_path / "data", demo_models.llm, program=program.name, restart=False) as service:
        with pytest.raises(ServerError) as caught:
            await service.client.llm.start("llm")
        first, second, *_ = caught.value.message.splitlines()
        assert first == f"The model llm could not be loaded: {words}. Last lines of its log:"
        assert second.endswith("E the tensors are upside down")
        crashed = await service.client.llm.get()
        assert (crashed.state, crashed.last_error, crashed.generation) == (
            ServerState.CRASHED,
            caught.value.message,
            1,
        )
        program.plan()
        assert (await service.client.llm.start("llm")).last_error == ""
    assert children() == []


async def test_the_real_engine_killed_while_it_loads(service: LlmService) -> None:
    starting = asyncio.create_task(service.client.llm.start("llm"))
    send(await service.loading(), signal.SIGKILL)
    with pytest.raises(ServerError, match="could not be loaded: signal SIGKILL"):
        await starting


async def test_a_port_that_is_taken_after_the_check(tmp_path: Path, demo_models: DemoModels) -> None:
    port = free_port()
    command = [sys.executable, "-c", SQUATTER, str(port)]
    async with llm_service(tmp_path, demo_models.llm, engine_command=command, restart=False) as service:
        with pytest.raises(PortInUseError) as caught:
            await service.client.llm.start("llm", serving=LlmServing(port=port))
        assert caught.value.metadata["port"] == str(port)
    assert children() == []


def test_the_real_engine_says_all_it_has_to_say_before_it_ends(tmp_path: Path) -> None:
    """Whoever reads its log may be slow; the cause of its failure is the last that it says."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"nonsense")
    config = LlmEngineConfig(
        model_id="llm",
        model_path=broken,
        size_bytes=8,
        llm=plan.LlmOptions(threads=1, gpu_layers=0, context_size=256),
        serving=Serving(),
        separates_reasoning=False,
        slot_save_path=tmp_path,
    )
    reading, writing = os.pipe()
    filled = fill(writing)
    with (
        os.fdopen(reading, "rb") as log,
        subprocess.Popen(process.BUILT_IN, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writing) as engine,
    ):
        os.close(writing)
        assert engine.stdin is not None
        assert engine.stdout is not None
        engine.stdin.write(frames.encode(process.load_command(config)))
        engine.stdin.flush()
        assert b"failed" in os.read(engine.stdout.fileno(), 4096)
        assert b"failed to load model" in log.read()[filled:]
        assert engine.wait() == 1


def fill(pipe: int) -> int:
    """Write to a pipe until it takes no more; returns how many bytes that were."""
    os.set_blocking(pipe, False)
    filled = 0
    with suppress(BlockingIOError):
        while True:
            filled += os.write(pipe, bytes(4096))
    os.set_blocking(pipe, True)
    return filled


async def test_a_program_whose_port_is_taken_after_the_check(
    tmp_path: Path, demo_models: DemoModels, program: FakeProgram
) -> None:
    port = free_port()
    taker = tmp_path / "taker"
    script = SQUATTER.replace('"-P", "-m", "genaid_server.engines.llm"', "").replace(
        "os.execv(sys.executable, [sys.executable, ])", "os.execv(sys.argv[2], sys.argv[2:])"
    )
    taker.write_text(f"#!{sys.executable}\nimport sys\nsys.argv[1:1] = ['{port}', {program.name!r}]\n{script}")
    taker.chmod(0o755)
    async with llm_service(tmp_path / "data", demo_models.llm, program=str(taker), restart=False) as service:
        with pytest.raises(PortInUseError):
            await service.client.llm.start("llm", serving=LlmServing(port=port))


# --- it hangs


@pytest.mark.skipif(sys.platform == "darwin", reason="a stopped process of macOS still counts as computing")
async def test_a_hung_engine_is_killed_and_comes_back(tmp_path: Path, demo_models: DemoModels) -> None:
    settings: dict[str, Any] = {"health_interval_seconds": 0.2, "health_failures": 1, "first_restart_seconds": 0.1}
    async with llm_service(tmp_path, demo_models.llm, **settings) as service:
        llm = await service.client.llm.start("llm", config=SMALL)
        crashed = await crash_of(service, lambda: send(llm, signal.SIGSTOP))
        assert "it hung: no answer to its health check" in crashed.last_error
        assert not alive(llm.pid)
        again = await service.serving(generation=2)
        assert (await chat(again))[0] == 200
        assert (await service.logged("no answer to the health check")).level is LogLevel.WARN


async def test_a_busy_engine_is_not_killed_and_an_idle_one_is(
    tmp_path: Path, demo_models: DemoModels, program: FakeProgram
) -> None:
    settings: dict[str, Any] = {"health_interval_seconds": 0.3, "health_failures": 2, "first_restart_seconds": 0.1}
    async with llm_service(tmp_path / "data", demo_models.llm, program=program.name, **settings) as service:
        llm = await service.client.llm.start("llm")
        await ask(llm, "POST", "/spin/3")
        await ask(llm, "POST", "/health/503")
        await service.logged("no answer to the health check, 5 times in a row")
        busy = await service.client.llm.get()
        assert (busy.state, busy.health, busy.generation) == (ServerState.RUNNING, HealthState.ERROR, 1)
        crashed = await service.until(lambda llm: llm.state is ServerState.CRASHED)
        assert "it hung" in crashed.last_error
        assert (await service.serving(generation=2)).health is HealthState.OK


async def test_a_real_engine_with_more_work_than_slots_is_not_killed(tmp_path: Path, demo_models: DemoModels) -> None:
    settings: dict[str, Any] = {"health_interval_seconds": 0.05, "health_failures": 1}
    async with llm_service(tmp_path, demo_models.llm, **settings) as service:
        llm = await service.client.llm.start("llm", config=SMALL)
        answers = await asyncio.gather(*(chat(llm, tokens=150) for _ in range(10)))
        assert [status for status, _ in answers] == [200] * 10
        assert (await service.client.llm.get()).generation == 1


async def test_an_engine_that_ignores_sigterm_is_stopped_by_force(
    tmp_path: Path, demo_models: DemoModels, program: FakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STOP_GRACE", 0.3)
    program.plan(ignore_term=True)
    async with llm_service(tmp_path / "data", demo_models.llm, program=program.name) as service:
        llm = await service.client.llm.start("llm")
        assert (await service.client.llm.stop()).state is ServerState.STOPPED
        assert not alive(llm.pid)
        again = await service.client.llm.start("llm")
        assert (await service.client.llm.restart()).generation == 3
        assert not alive(again.pid)
    assert children() == []


async def test_a_stopped_process_can_still_be_stopped(service: LlmService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_GRACE", 0.3)
    llm = await service.client.llm.start("llm")
    send(llm, signal.SIGSTOP)
    assert (await service.client.llm.stop()).state is ServerState.STOPPED
    assert not alive(llm.pid)


# --- its file


async def test_a_file_that_is_deleted_under_it(service: LlmService) -> None:
    llm = await service.client.llm.start("llm", config=SMALL)
    (model,) = await service.client.models.list()
    Path(model.path).unlink()
    assert (await chat(llm))[0] == 200
    assert (await service.client.llm.get()).healthy
    with pytest.raises(ServerError, match="No such file or directory"):
        await service.client.llm.restart()
    await service.client.llm.stop()


async def test_a_file_that_is_cut_off_under_it(service: LlmService) -> None:
    llm = await service.client.llm.start("llm", config=SMALL)
    (model,) = await service.client.models.list()
    os.truncate(model.path, model.size_bytes // 2)
    with suppress(aiohttp.ClientError):
        await chat(llm)  # the mapped half is gone with the file, and so may be the engine
    with pytest.raises(ServerError, match="corrupted or incomplete"):
        await service.client.llm.restart()
    assert "corrupted or incomplete" in (await service.client.llm.get()).last_error
    await service.client.llm.stop()


# --- what it says


NOISE = "\x1b[31mred\x1b[0m \x1b]0;title\x07bell\x07 nul\x00 \xff\xfe\r\rover\x85\n"


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"say": NOISE}, "red bell\ufffd nul\ufffd \ufffd\ufffd"),
        ({"say": "x" * 10_000 + "\n", "times": 100}, "x" * (MAX_LINE - 1) + "…"),
        ({"say": "y" * 10_000, "times": 100}, "y" * (MAX_LINE - 1) + "…"),
        ({"say": "\n" * 10_000}, "engine ready"),
        ({"lines": 30_000}, "0.00.000.999 I slot line 29999 of 30000"),
    ],
    ids=["escapes", "long lines", "no newline", "empty lines", "a flood"],
)
async def test_whatever_it_prints_is_bounded_and_harmless(
    fake: LlmService, program: FakeProgram, plan: dict[str, object], expected: str
) -> None:
    program.plan(**plan)
    llm = await fake.client.llm.start("llm")
    await order(llm, "/die/exit/3")
    await fake.serving(generation=2)
    entries = await fake.log()
    messages = [entry.message for entry in entries]
    assert any(expected in message for message in messages)
    assert len(entries) <= 5000
    for message in messages:
        assert len(message) <= MAX_LINE
        assert message.isprintable()
    assert (await fake.client.llm.get()).healthy


async def test_a_flood_while_it_serves_costs_only_the_oldest_lines(fake: LlmService) -> None:
    llm = await fake.client.llm.start("llm")
    tail = fake.client.llm.tail_logs()
    following = asyncio.create_task(anext(tail))
    await asyncio.gather(ask(llm, "POST", "/say/30000"), *(fake.client.llm.get() for _ in range(20)))
    await fake.logged("line 29999 of 30000")
    assert (await following).sequence > 0
    await tail.aclose()
    entries = await fake.log()
    assert len(entries) <= 5000
    assert [entry.sequence for entry in entries] == list(range(entries[0].sequence, entries[-1].sequence + 1))


async def test_an_engine_that_does_not_speak_the_protocol(tmp_path: Path, demo_models: DemoModels) -> None:
    command = [sys.executable, "-c", "print('HTTP/1.1 400 Bad Request', flush=True); input()"]
    async with llm_service(tmp_path, demo_models.llm, engine_command=command, restart=False) as service:
        with pytest.raises(ServerError, match="could not be loaded: it doesn't speak the engine protocol"):
            await service.client.llm.start("llm")
    assert children() == []


# --- the service dies


@pytest.mark.parametrize("kind", ["built-in", "own"])
async def test_a_service_that_ends_in_the_middle_of_a_load_leaves_nothing(
    tmp_path: Path, demo_models: DemoModels, kind: str
) -> None:
    program = fake_program(tmp_path, never_ready=True, ignore_term=True)
    settings: dict[str, Any] = {"program": program.name} if kind == "own" else {}
    async with llm_service(tmp_path / "data", demo_models.llm, **settings) as service:
        starting = asyncio.create_task(service.client.llm.start("llm"))
        loading = await service.loading()
    assert not alive(loading.pid)
    assert children() == []
    await asyncio.wait([starting])
    assert isinstance(starting.exception(), Exception)


@linux_only
@pytest.mark.parametrize("moment", ["serving", "loading", "own, loading"])
def test_kill_9_of_the_service_leaves_no_engine(tmp_path: Path, demo_models: DemoModels, moment: str) -> None:
    program = fake_program(tmp_path, never_ready=True, ignore_term=True)
    env = {"GENAID_LLM__PORT": "0"}
    own = {"GENAID_LLM__PROGRAM": program.name} if moment.startswith("own") else {}
    with (
        ThreadPoolExecutor(1) as pool,
        running_genaid(tmp_path / "data", env=env | own) as genaid,
        Client(resource=genaid.ready["resource"]) as client,
    ):
        (tmp_path / "data" / "inbox" / "llm.gguf").write_bytes(demo_models.llm.read_bytes())
        client.models.import_("llm.gguf", name="llm")
        starting = pool.submit(client.llm.start, "llm")
        wanted = ServerState.RUNNING if moment == "serving" else ServerState.STARTING
        llm = next(llm for llm in client.llm.watch() if llm.state is wanted and llm.pid is not None)
        engine = psutil.Process(llm.pid)
        genaid.process.send_signal(signal.SIGKILL)
        genaid.process.wait()
        _, left = psutil.wait_procs([engine], timeout=GONE_WITHIN)
        assert left == []
        assert moment == "serving" or isinstance(starting.exception(), ConnectionFailedError)
    # What it left behind on the disk does not keep the next one from working.
    with running_genaid(tmp_path / "data", env=env) as genaid, Client(resource=genaid.ready["resource"]) as client:
        llm = client.llm.start("llm")
        assert [engine.pid for engine in client.system.get_memory().engines] == [llm.pid]
        client.llm.stop()
        client.models.delete("llm")
