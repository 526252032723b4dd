"""Two commands to the LLM engine at one moment: the later one wins, and nobody waits for ever."""

import asyncio
import contextlib
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import DemoModels
from genaid_client import LeaseState, ServerError, ServerState
from genaid_server import settings as configuration
from genaid_server.kit.errors import PortInUseError
from genaid_server.resource import main as resource
from genaid_server.resource.core.llm import process
from genaid_server.resource.core.llm.saved import SavedFile
from llm_service import FakeProgram, LlmService, alive, chat, fake_program, llm_service
from scarce import WISHES, Place
from worker import children

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="the fake program is started by a shell script")


@pytest.fixture(scope="module")
def scarce(tmp_path_factory: pytest.TempPathFactory, demo_models: DemoModels) -> Place:
    return asyncio.run(Place.make(tmp_path_factory.mktemp("scarce"), demo_models))


@pytest.fixture
def place(scarce: Place, tmp_path: Path) -> Place:
    return replace(scarce, data_dir=tmp_path / "data")


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ignores SIGTERM is killed soon."""
    monkeypatch.setattr(process, "STOP_GRACE", 1.0)


@pytest.fixture
def stubborn(tmp_path: Path, short_grace: None) -> FakeProgram:
    return fake_program(tmp_path, ignore_term=True)


async def stopping(service: LlmService) -> None:
    await service.until(lambda llm: llm.state is ServerState.STOPPING)


async def assert_stays_stopped(service: LlmService, generation: int) -> None:
    now = await service.client.llm.get()
    assert (now.state, now.pid, now.offloaded) == (ServerState.STOPPED, None, False)
    assert now.generation <= generation
    assert SavedFile(service.data_dir).read() is None


@posix_only
async def test_a_stop_while_a_restart_ends_the_old_process(
    tmp_path: Path, demo_models: DemoModels, stubborn: FakeProgram
) -> None:
    async with llm_service(tmp_path / "data", demo_models.llm, program=stubborn.name) as service:
        await service.client.llm.start("llm")
        restart = asyncio.create_task(service.client.llm.restart())
        await stopping(service)
        assert (await service.client.llm.stop()).state is ServerState.STOPPED
        with pytest.raises(ServerError, match="was stopped"):
            await restart
        await assert_stays_stopped(service, generation=2)
    assert children() == []


@posix_only
async def test_a_stop_while_a_replacement_ends_the_old_process(
    tmp_path: Path, demo_models: DemoModels, stubborn: FakeProgram
) -> None:
    async with llm_service(tmp_path / "data", demo_models.llm, program=stubborn.name) as service:
        await service.install(demo_models.llm, "other")
        await service.client.llm.start("llm")
        start = asyncio.create_task(service.client.llm.start("other", replace=True))
        await stopping(service)
        assert (await service.client.llm.get()).model_id == "llm"  # which is the one that ends
        assert (await service.client.llm.stop()).state is ServerState.STOPPED
        with pytest.raises(ServerError, match="was stopped"):
            await start
        await assert_stays_stopped(service, generation=2)


async def test_a_stop_at_any_moment_of_a_restart(tmp_path: Path, demo_models: DemoModels) -> None:
    async with llm_service(tmp_path, demo_models.llm) as service:
        for turns in (0, 1, 5, 20, 60):
            before = await service.client.llm.start("llm")
            restart = asyncio.create_task(service.client.llm.restart())
            for _ in range(turns):
                await asyncio.sleep(0)
            await service.client.llm.stop()
            with contextlib.suppress(ServerError):
                await restart
            now = await service.client.llm.get()
            if now.state is ServerState.RUNNING:  # the restart was asked for later
                assert now.generation > before.generation
                await service.client.llm.stop()
            await assert_stays_stopped(service, generation=1000)


@posix_only
async def test_a_restart_and_an_image_that_waits_for_the_memory_do_not_wait_for_each_other(
    place: Place, tmp_path: Path
) -> None:
    program = fake_program(tmp_path, never_ready=True)
    async with place.open(program=program.name) as service:
        start = asyncio.create_task(service.client.llm.start("talker", config=WISHES))
        loading = await service.loading()
        async with service.image_engine() as engine:
            waiting = await engine.until(LeaseState.WAITING)
            assert waiting.reason == "" or "offloaded" in waiting.reason
            await reclaimed(service)
            program.plan()
            restart = asyncio.create_task(service.client.llm.restart())
            await engine.until(LeaseState.GRANTED)
            assert not alive(loading.pid)
        assert (await restart).state is ServerState.RUNNING
        with pytest.raises(ServerError, match="has taken the place"):
            await start


async def reclaimed(service: LlmService) -> None:
    """Return once the LLM has been asked to leave."""
    while True:
        leases = (await service.client.orchestration.list_leases()).leases
        if any(lease.state is LeaseState.RECLAIM for lease in leases):
            return


async def test_a_start_of_the_service_that_fails_late_keeps_what_is_to_come_back(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    async with llm_service(tmp_path, demo_models.llm) as service:
        await service.client.llm.start("llm")
        left_by_a_kill = (tmp_path / "llm.json").read_bytes()
    (tmp_path / "llm.json").write_bytes(left_by_a_kill)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        config = configuration.load(flags={"data_dir": tmp_path, "resource": {"listen": listen}, "llm": {"port": 0}})
        with pytest.raises(PortInUseError):
            async with resource.serve(config):
                pass
    assert (tmp_path / "llm.json").read_bytes() == left_by_a_kill
    async with llm_service(tmp_path) as service:
        assert (await service.back(generation=1)).model_id == "llm"
    assert SavedFile(tmp_path).read() is None


async def test_a_service_beside_it_that_can_not_start_forgets_nothing(tmp_path: Path, demo_models: DemoModels) -> None:
    """As where the gateway's port is taken: the LLM is back already when all services end again."""
    async with llm_service(tmp_path, demo_models.llm) as service:
        await service.client.llm.start("llm")
        left_by_a_kill = (tmp_path / "llm.json").read_bytes()
    (tmp_path / "llm.json").write_bytes(left_by_a_kill)
    with pytest.raises(PortInUseError):
        await serves_beside_one_that_fails(tmp_path)
    saved = SavedFile(tmp_path).read()
    assert saved is not None
    assert saved.request.model_id == "llm"
    async with llm_service(tmp_path) as service:
        assert (await service.back(generation=1)).model_id == "llm"


async def serves_beside_one_that_fails(data_dir: Path) -> None:
    async with llm_service(data_dir) as service:
        await service.back(generation=1)
        raise PortInUseError("The port of the gateway is taken.")


async def test_a_model_that_was_imported_again_is_opened_where_it_lies_now(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    async with llm_service(tmp_path, demo_models.llm) as service:
        await service.client.llm.start("llm")
        await service.client.llm.stop()
        await service.client.models.delete("llm")
        (tmp_path / "inbox" / "better.gguf").write_bytes(demo_models.llm.read_bytes())
        await service.client.models.import_("better.gguf", model_id="llm")
        again = await service.client.llm.restart()
        assert (again.state, again.model_id) == (ServerState.RUNNING, "llm")
        assert (await chat(again))[0] == 200


async def test_a_repeat_of_a_start_after_a_stop_starts_nothing(tmp_path: Path, demo_models: DemoModels) -> None:
    """An answer that was lost, a stop by somebody else, and the try again of whoever lost the answer."""
    async with llm_service(tmp_path, demo_models.llm) as service:
        first = await service.client.llm.start("llm", request_id="one")
        await service.client.llm.stop()
        again = await service.client.llm.start("llm", request_id="one")
        assert (again.generation, again.state) == (first.generation, ServerState.STOPPED)
        assert (await service.client.llm.start("llm", request_id="two")).generation == first.generation + 1


@posix_only
async def test_a_repeat_of_a_start_that_failed_is_another_try(tmp_path: Path, demo_models: DemoModels) -> None:
    program = fake_program(tmp_path, never_ready=True)
    async with llm_service(tmp_path / "data", demo_models.llm, program=program.name) as service:
        start = asyncio.create_task(service.client.llm.start("llm", request_id="one"))
        await service.loading()
        await service.client.llm.stop()
        with pytest.raises(ServerError):
            await start
        program.plan()
        assert (await service.client.llm.start("llm", request_id="one")).state is ServerState.RUNNING
