"""LlmService over gRPC with the real engine on a small model, and with a program of the user's own."""

import asyncio
import re
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from conftest import DemoModels
from genaid_client import (
    BinaryError,
    CacheType,
    EngineEvent,
    GenaidError,
    HealthState,
    InsufficientResourcesError,
    InvalidRequestError,
    Llm,
    LlmConfig,
    LlmServing,
    LogLevel,
    ModelNotFoundError,
    ModelType,
    PortInUseError,
    ServerBusyError,
    ServerError,
    ServerState,
    StopReason,
)
from genaid_server.demo.models import write_llm
from llm_service import EVERYTHING, LlmService, alive, ask, chat, engines, fake_program, free_port, llm_service
from worker import children

MIB = 2**20
KEY = "sesame-opens-no-door-0815"
SMALL = LlmConfig(threads=1, context_size=256, parallel_requests=2)
OTHER = replace(SMALL, context_size=512)
RAW = re.compile(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] \[(DEBUG|INFO |WARN |ERROR)\] (.*)", re.DOTALL)

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="the fake program is started by a shell script")


@pytest.fixture
async def service(tmp_path: Path, demo_models: DemoModels) -> AsyncIterator[LlmService]:
    async with llm_service(tmp_path, demo_models.llm) as running:
        yield running
    assert children() == []


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


async def slots(llm: Llm) -> list[int]:
    """The context of each slot, in tokens."""
    status, answer = await ask(llm, "GET", "/slots")
    assert status == 200
    return [slot["n_ctx"] for slot in answer]


# --- a start


async def test_a_started_model_answers(service: LlmService) -> None:
    llm = await service.client.llm.start("llm")
    assert (llm.state, llm.health, llm.last_event) == (ServerState.RUNNING, HealthState.OK, EngineEvent.READY)
    assert llm.healthy
    assert (llm.model_id, llm.host, llm.variant, llm.generation, llm.restarts) == ("llm", "127.0.0.1", "cpu", 1, 0)
    assert (llm.load_percentage, llm.last_error, llm.separates_reasoning) == (100.0, "", False)
    assert llm.load_seconds is not None
    assert llm.load_seconds > 0
    assert engines() == [llm.pid]
    assert await ask(llm, "GET", "/health") == (200, {"status": "ok"})
    assert [model["id"] for model in (await ask(llm, "GET", "/v1/models"))[1]["data"]] == ["llm"]
    status, answer = await chat(llm, tokens=5)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 5)
    assert answer["choices"][0]["message"]["content"].isascii()
    assert await service.client.llm.get() == llm


async def test_what_is_left_open_is_chosen_and_explained(tmp_path: Path, demo_models: DemoModels) -> None:
    long = write_llm(tmp_path / "long.gguf", context_length=32_768)
    async with llm_service(tmp_path / "data", demo_models.llm, long) as service:
        for name, context in (("llm", 2048), ("long", 4096)):
            llm = await service.client.llm.start(name, replace=True)
            assert await slots(llm) == [context] * 4
            assert (await ask(llm, "GET", "/props"))[1]["default_generation_settings"]["n_ctx"] == context
            assert llm.config is not None
            assert (llm.config.context_size, llm.config.parallel_requests) == (context, 4)
            chosen = asdict(llm.config)
            assert None not in chosen.values()
            assert set(llm.reasons) == set(chosen)
            assert all(reason.endswith(".") for reason in llm.reasons.values())


async def test_given_options_reach_the_engine(service: LlmService) -> None:
    wishes = LlmConfig(threads=1, context_size=512, parallel_requests=3, flash_attention=False, gpu_layers=0)
    serving = LlmServing(port=free_port(), memory_map=False)
    llm = await service.client.llm.start("llm", config=wishes, serving=serving)
    assert await slots(llm) == [512] * 3
    assert llm.config == replace(wishes, cache_type_k=CacheType.F16, cache_type_v=CacheType.F16, experts_on_cpu=False)
    assert llm.port == serving.port
    assert llm.serving == replace(serving, host="127.0.0.1", memory_lock=False)
    lines = [entry.message for entry in await service.log()]
    assert any(re.search(r"threadpool init, n_threads = 1\b", line) for line in lines)
    assert llm.reasons["threads"] == llm.reasons["context_size"] == "As asked for."


@pytest.mark.parametrize(
    ("field", "config", "serving"),
    [
        ("cache_type_k", LlmConfig(cache_type_k=CacheType.Q8_0), LlmServing()),  # the model's heads are too narrow
        ("context_size", LlmConfig(context_size=0), LlmServing()),
        ("parallel_requests", LlmConfig(parallel_requests=65), LlmServing()),
        ("threads", LlmConfig(threads=0), LlmServing()),
        ("gpu_layers", LlmConfig(gpu_layers=-1), LlmServing()),
        ("port", LlmConfig(), LlmServing(port=65_536)),
        ("port", LlmConfig(), LlmServing(port=-1)),
        ("host", LlmConfig(), LlmServing(host="0.0.0.0")),  # noqa: S104 - it is to be refused
        ("host", LlmConfig(), LlmServing(host="example.org")),
        ("api_key", LlmConfig(), LlmServing(api_key="x" * 257)),
        ("api_key", LlmConfig(), LlmServing(api_key="two words")),
    ],
)
async def test_what_is_out_of_range_is_refused_and_starts_nothing(
    service: LlmService, field: str, config: LlmConfig, serving: LlmServing
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await service.client.llm.start("llm", config=config, serving=serving)
    assert caught.value.metadata["field"] == field
    assert field in caught.value.message
    assert (await service.client.llm.get()).state is ServerState.STOPPED
    assert await service.log() == []


async def test_a_request_id_has_a_limit(service: LlmService) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await service.client.llm.start("llm", request_id="x" * 129)
    assert caught.value.metadata["field"] == "request_id"


async def test_only_a_language_model_can_be_started(service: LlmService, demo_models: DemoModels) -> None:
    with pytest.raises(ModelNotFoundError):
        await service.client.llm.start("nobody")
    inbox = service.data_dir / "inbox"
    (inbox / "pictures.gguf").hardlink_to(demo_models.diffusion)
    await service.client.models.import_("pictures.gguf", name="pictures", type=ModelType.DIFFUSION)
    with pytest.raises(ModelNotFoundError, match="no language model"):
        await service.client.llm.start("pictures")
    assert (await service.client.llm.get()).generation == 0


async def test_a_taken_port_is_refused_before_the_model_is_loaded(service: LlmService) -> None:
    running = await service.client.llm.start("llm", config=SMALL)
    with taken_port() as port:
        for replacing in (False, True):
            with pytest.raises((PortInUseError, ServerBusyError)) as caught:
                await service.client.llm.start("llm", serving=LlmServing(port=port), replace=replacing)
        assert isinstance(caught.value, PortInUseError)
        assert caught.value.metadata == {"port": str(port), "host": "127.0.0.1"}
        # What ran still runs, is still what runs, and comes back with a restart.
        assert await service.client.llm.start("llm", config=SMALL) == running
        with pytest.raises(ServerBusyError):
            await service.client.llm.start("llm", serving=LlmServing(port=port))
        assert alive(running.pid)
        assert (await service.client.llm.restart()).config == running.config


async def test_ipv6_loopback_serves_as_well(service: LlmService) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    llm = await service.client.llm.start("llm", config=SMALL, serving=LlmServing(host="::1"))
    assert llm.base_url == f"http://[::1]:{llm.port}"
    assert (await chat(llm))[0] == 200


# --- one engine, many callers


async def test_equal_starts_are_joined(service: LlmService) -> None:
    first, *others = await asyncio.gather(*(service.client.llm.start("llm", config=SMALL) for _ in range(5)))
    assert all(other == first for other in others)
    assert first.generation == 1
    assert await service.client.llm.start("llm", config=SMALL, replace=True) == first
    assert engines() == [first.pid]


async def test_of_different_starts_at_once_one_wins(service: LlmService) -> None:
    asked = (SMALL, OTHER, replace(SMALL, parallel_requests=1))
    outcomes = await asyncio.gather(
        *(service.client.llm.start("llm", config=config) for config in asked), return_exceptions=True
    )
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Llm)]
    assert all(isinstance(outcome, ServerBusyError) for outcome in outcomes if outcome is not winner), outcomes
    assert winner.generation == 1
    assert engines() == [winner.pid]


async def test_another_start_replaces_only_when_it_says_so(service: LlmService) -> None:
    running = await service.client.llm.start("llm", config=SMALL)
    with pytest.raises(ServerBusyError, match="replace"):
        await service.client.llm.start("llm", config=OTHER)
    assert await service.client.llm.get() == running
    replaced = await service.client.llm.start("llm", config=OTHER, replace=True)
    assert replaced.pid != running.pid
    assert await slots(replaced) == [512, 512]
    assert not alive(running.pid)


async def test_what_does_not_fit_says_what_it_needs_and_leaves_the_rest_alone(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    large = write_llm(tmp_path / "large.gguf", vocab=50_000)
    async with llm_service(tmp_path / "data", demo_models.llm, large, memory={"ram_limit_bytes": 24 * MIB}) as service:
        running = await service.client.llm.start("llm", config=SMALL)
        with pytest.raises(InsufficientResourcesError) as caught:
            await service.client.llm.start("large", replace=True)
        facts = caught.value.metadata
        assert set(facts) == {"required", "available", "suggestion"}
        assert int(facts["required"]) > int(facts["available"])
        assert int(facts["available"]) <= 24 * MIB
        assert facts["suggestion"]
        assert facts["suggestion"] in caught.value.message
        assert await service.client.llm.get() == running
        assert await service.client.llm.start("llm", config=SMALL) == running


async def test_a_start_can_be_stopped(service: LlmService) -> None:
    starting = asyncio.create_task(service.client.llm.start("llm"))
    loading = await service.loading()
    assert (loading.health, loading.last_event) == (HealthState.LOADING, EngineEvent.STARTED)
    stopped = await service.client.llm.stop()
    with pytest.raises(ServerError, match="stopped"):
        await starting
    assert (stopped.state, stopped.health, stopped.last_event) == (
        ServerState.STOPPED,
        HealthState.UNKNOWN,
        EngineEvent.STOPPED,
    )
    assert (stopped.pid, stopped.port, stopped.host, stopped.start_time) == (None, None, "", None)
    assert engines() == []
    assert (await service.client.llm.start("llm")).generation == 2


async def test_a_start_goes_on_when_its_caller_leaves(service: LlmService) -> None:
    starting = asyncio.create_task(service.client.llm.start("llm"))
    loading = await service.loading()
    starting.cancel()
    llm = await service.serving(generation=1)
    assert llm.pid == loading.pid


# --- stop and restart


async def test_stopping_frees_everything_and_may_be_repeated(service: LlmService) -> None:
    assert (await service.client.llm.stop()).state is ServerState.STOPPED
    llm = await service.client.llm.start("llm")
    for _ in range(2):
        stopped = await service.client.llm.stop()
        assert (stopped.state, stopped.pid, stopped.base_url) == (ServerState.STOPPED, None, None)
        assert (stopped.model_id, stopped.config) == ("llm", llm.config)
    assert not alive(llm.pid)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", llm.port or 0)) != 0


async def test_a_restart_keeps_model_options_and_port(service: LlmService) -> None:
    with pytest.raises(ServerError, match="never been started"):
        await service.client.llm.restart()
    first = await service.client.llm.start("llm", config=SMALL, serving=LlmServing(port=free_port(), api_key=KEY))
    second = await service.client.llm.restart()
    assert (second.generation, second.restarts) == (2, 0)
    assert second.pid != first.pid
    assert (second.model_id, second.config, second.port) == (first.model_id, first.config, first.port)
    assert second.reasons == first.reasons
    assert (await chat(second))[0] == 401
    assert (await chat(second, key=KEY))[0] == 200
    await service.client.llm.stop()
    third = await service.client.llm.restart()
    assert (third.generation, third.config, third.port) == (3, first.config, first.port)


async def test_a_slot_can_be_saved_and_brought_back_after_a_restart(service: LlmService) -> None:
    llm = await service.client.llm.start("llm", config=SMALL)
    body = {"prompt": "once upon a time " * 5, "n_predict": 1, "id_slot": 0, "cache_prompt": True}
    first = (await ask(llm, "POST", "/completion", body))[1]["timings"]
    status, saved = await ask(llm, "POST", "/slots/0?action=save", {"filename": "talk.bin"})
    assert status == 200, saved
    assert (service.data_dir / "slots" / "llm" / "talk.bin").stat().st_size > 0
    llm = await service.client.llm.restart()
    status, restored = await ask(llm, "POST", "/slots/0?action=restore", {"filename": "talk.bin"})
    assert status == 200, restored
    assert restored["n_restored"] == saved["n_saved"] > 0
    again = (await ask(llm, "POST", "/completion", body))[1]["timings"]
    assert first["prompt_n"] > 50
    assert again["prompt_n"] < 5


# --- what is told meanwhile


async def test_a_watcher_sees_every_state_from_the_present_one_on(service: LlmService) -> None:
    seen: list[Llm] = []

    async def watch() -> None:
        async with aclosing(service.client.llm.watch()) as states:
            async for llm in states:
                seen.append(llm)
                subscribed.set()
                if llm.last_event is EngineEvent.STOPPED:
                    return

    subscribed = asyncio.Event()
    watching = asyncio.create_task(watch())
    await subscribed.wait()
    await service.client.llm.start("llm")
    await service.client.llm.stop()
    await watching
    assert (seen[0].state, seen[0].last_event, seen[0].config) == (ServerState.STOPPED, None, None)
    events = [llm.last_event for llm in seen]
    assert list(dict.fromkeys(events)) == [None, EngineEvent.STARTED, EngineEvent.READY, EngineEvent.STOPPED]
    states = [llm.state for llm in seen]
    assert set(states) >= {ServerState.STOPPED, ServerState.STARTING, ServerState.RUNNING}
    assert states[-1] is ServerState.STOPPED


@posix_only
async def test_loading_tells_how_far_it_is(tmp_path: Path, demo_models: DemoModels) -> None:
    program = fake_program(tmp_path, never_ready=True)
    async with llm_service(tmp_path, demo_models.llm, program=program.name) as service:
        starting = asyncio.create_task(service.client.llm.start("llm"))
        llm = await service.until(lambda llm: llm.load_percentage > 0)
        assert llm.state is ServerState.STARTING
        assert 0 < llm.load_percentage < 100
        await service.client.llm.stop()
        with pytest.raises(ServerError):
            await starting
        assert (await service.client.llm.get()).load_percentage == 0


@posix_only
async def test_health_is_asked_for_anew(tmp_path: Path, demo_models: DemoModels) -> None:
    program = fake_program(tmp_path)
    async with llm_service(tmp_path, demo_models.llm, program=program.name) as service:
        assert (await service.client.llm.get()).health is HealthState.UNKNOWN
        llm = await service.client.llm.start("llm")
        await ask(llm, "POST", "/health/500")
        sick = await service.client.llm.get()
        assert (sick.state, sick.health) == (ServerState.RUNNING, HealthState.ERROR)
        await ask(llm, "POST", "/health/200")
        assert (await service.client.llm.get()).health is HealthState.OK


async def test_the_watches_end_with_the_service(tmp_path: Path, demo_models: DemoModels) -> None:
    async with llm_service(tmp_path, demo_models.llm) as service:
        await service.client.llm.start("llm")
        states, lines = service.client.llm.watch(), service.client.llm.tail_logs(1)
        assert (await anext(states)).state is ServerState.RUNNING
        assert (await anext(lines)).sequence == 1
        ends = [asyncio.create_task(_to_the_end(states)), asyncio.create_task(_to_the_end(lines))]
    for end in ends:
        await end
    assert children() == []


async def _to_the_end(stream: AsyncIterator[object]) -> None:
    try:
        async for _ in stream:
            pass
    except GenaidError:  # the client was closed before it heard of the end
        return


# --- logs


async def test_the_log_is_listed_followed_and_cleared(service: LlmService) -> None:
    await service.client.llm.start("llm")
    everything = await service.client.llm.list_logs(EVERYTHING)
    assert [entry.sequence for entry in everything] == list(range(1, len(everything) + 1))
    assert await service.client.llm.list_logs(0) == []
    assert await service.client.llm.list_logs(3) == everything[-3:]
    assert await service.client.llm.list_logs() == everything[-100:]
    assert (await service.logged("engine ready")).level is LogLevel.INFO
    for entry in everything:
        match = RAW.fullmatch(entry.raw)
        assert match is not None, entry
        assert (match[1].strip().lower(), match[2]) == (entry.level.value, entry.message)
    async with aclosing(service.client.llm.tail_logs(4)) as tail:
        assert [(await anext(tail)).sequence for _ in range(5)] == [4, 5, 6, 7, 8]
    with pytest.raises(InvalidRequestError) as caught:
        await service.client.llm.list_logs(-1)
    assert caught.value.metadata["field"] == "lines"
    async with aclosing(service.client.llm.tail_logs()) as tail:
        following = asyncio.create_task(anext(tail))
        await service.client.llm.clear_logs()
        assert await service.log() == []
        await service.client.llm.stop()
        assert (await following).sequence > everything[-1].sequence
    after = await service.log()
    assert after[0].sequence > everything[-1].sequence
    assert after[-1].message == "engine stopped"


async def test_the_log_is_kept_in_a_file(tmp_path: Path, demo_models: DemoModels) -> None:
    path = tmp_path / "logs" / "llm-engine.log"
    async with llm_service(tmp_path, demo_models.llm) as service:
        await service.client.llm.start("llm")
        told = [entry.raw for entry in await service.log()]
    written = path.read_text("utf-8").splitlines()
    assert written[: len(told)] == told
    assert written[-1].endswith("engine stopped")
    async with llm_service(tmp_path) as service:
        await service.client.llm.clear_logs()
        assert not path.exists()


# --- a key


async def test_a_key_is_asked_for_and_never_told(service: LlmService) -> None:
    llm = await service.client.llm.start("llm", config=SMALL, serving=LlmServing(api_key=KEY))
    assert (await ask(llm, "GET", "/health"))[0] == 200
    assert (await chat(llm))[0] == 401
    assert (await chat(llm, key="wrong"))[0] == 401
    assert (await chat(llm, key=KEY))[0] == 200
    with pytest.raises(ServerBusyError) as busy:
        await service.client.llm.start("llm", config=SMALL, serving=LlmServing(api_key=KEY[::-1]))
    with pytest.raises(InvalidRequestError) as wrong:
        await service.client.llm.start("llm", serving=LlmServing(api_key=f"{KEY} {KEY}"))
    psutil.Process(llm.pid).kill()
    again = await service.serving(generation=2)
    assert (await chat(again, key=KEY))[0] == 200
    await service.client.llm.stop()
    told = [repr(llm), repr(again), repr(busy.value), repr(wrong.value), repr(await service.log())]
    told += [path.read_text("utf-8") for path in service.data_dir.rglob("*") if path.suffix in (".log", ".json")]
    assert not any(KEY in text or KEY[::-1] in text for text in told)


# --- files


async def test_a_model_that_was_cut_off_says_so(service: LlmService, demo_models: DemoModels) -> None:
    path = await service.install(demo_models.llm, "cut")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ServerError) as caught:
        await service.client.llm.start("cut")
    summary, cause, *_ = caught.value.message.splitlines()
    assert summary == "The model cut could not be loaded: exit status 1. Last lines of its log:"
    assert "corrupted or incomplete" in cause
    failed = await service.until(lambda llm: llm.state is ServerState.CRASHED)
    assert "corrupted or incomplete" in failed.last_error
    llm = await service.client.llm.start("llm", replace=True)
    assert (llm.model_id, llm.last_error) == ("llm", "")


async def test_a_model_that_runs_can_not_be_deleted(service: LlmService) -> None:
    llm = await service.client.llm.start("llm")
    with pytest.raises(ServerBusyError, match="Stop it first: genaid llm stop"):
        await service.client.models.delete("llm")
    assert (await chat(llm))[0] == 200
    await service.client.llm.stop()
    await service.client.models.delete("llm")
    with pytest.raises(ModelNotFoundError):
        await service.client.llm.restart()


async def test_an_unwritable_data_directory_is_told(service: LlmService) -> None:
    (service.data_dir / "slots").write_text("a file, where a folder should be")
    with pytest.raises(ServerError, match=r"could not be loaded: .*slots.*may write"):
        await service.client.llm.start("llm")


# --- a program of the user's own


@posix_only
async def test_a_program_of_ones_own_gets_the_documented_arguments(tmp_path: Path, demo_models: DemoModels) -> None:
    program = fake_program(tmp_path)
    port = free_port()
    async with llm_service(tmp_path / "data", demo_models.llm, program=program.name) as service:
        (model,) = await service.client.models.list()
        config = replace(SMALL, flash_attention=False, experts_on_cpu=False)
        serving = LlmServing(port=port, api_key=KEY, memory_map=False)
        llm = await service.client.llm.start("llm", config=config, serving=serving)
        assert (llm.variant, llm.port) == ("own", port)
        assert (await ask(llm, "GET", "/argv"))[1] == [
            *("-m", model.path, "--alias", "llm", "--host", "127.0.0.1", "--port", str(port)),
            *("-c", "512", "-np", "2", "-t", "1", "-ngl", "0", "-fa", "off"),
            *("--cache-type-k", "f16", "--cache-type-v", "f16", "--cache-ram", "0"),
            *("--slot-save-path", str(tmp_path / "data" / "slots" / "llm"), "--no-webui", "--jinja"),
            *("--reasoning-format", "none", "--no-mmap"),
        ]
        assert (await ask(llm, "GET", "/key"))[1] == KEY
        assert KEY not in " ".join(psutil.Process(llm.pid).cmdline())
        llm = await service.client.llm.start("llm", replace=True)
        assert (await ask(llm, "GET", "/key"))[1] == ""
    assert children() == []


@posix_only
async def test_it_is_ready_only_when_our_own_child_listens(tmp_path: Path, demo_models: DemoModels) -> None:
    asked = asyncio.Queue[None]()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        asked.put_nowait(None)

    program = fake_program(tmp_path, deaf=True)
    async with llm_service(tmp_path, demo_models.llm, program=program.name) as service:
        starting = asyncio.create_task(service.client.llm.start("llm"))
        loading = await service.loading()
        async with await asyncio.start_server(impostor, loading.host, loading.port):
            for _ in range(4):
                await asked.get()
            assert (await service.client.llm.get()).state is ServerState.STARTING
        await service.client.llm.stop()
        with pytest.raises(ServerError):
            await starting


@pytest.mark.parametrize("what", ["missing", "no program"])
async def test_a_program_that_can_not_be_run(tmp_path: Path, demo_models: DemoModels, what: str) -> None:
    program = tmp_path / "llama-server"
    if what == "no program":
        program.write_text("just text")
    async with llm_service(tmp_path / "data", demo_models.llm, program=str(program)) as service:
        with pytest.raises(BinaryError) as caught:
            await service.client.llm.start("llm")
        assert str(program) in caught.value.message
    assert children() == []


# --- the configuration


async def test_a_configured_model_starts_with_the_service(tmp_path: Path, demo_models: DemoModels) -> None:
    async with llm_service(tmp_path, demo_models.llm):
        pass
    port = free_port()
    async with llm_service(tmp_path, model="llm", port=port) as service:
        llm = await service.serving(generation=1)
        assert (llm.model_id, llm.port) == ("llm", port)
        assert await service.client.llm.start("llm") == llm
    async with llm_service(tmp_path, model="nobody") as service:
        failed = await service.until(lambda llm: bool(llm.last_error))
        assert failed.state is ServerState.STOPPED
        assert "nobody" in failed.last_error
        assert (await service.logged("not started")).level is LogLevel.ERROR
        assert (await service.client.llm.start("llm")).last_error == ""


# --- which engine is meant


async def refusals(service: LlmService, model_id: str) -> list[ModelNotFoundError]:
    """What each call that names a model fails with; a call that doesn't is a failure of the test."""
    client = service.client

    async def first[T](items: AsyncGenerator[T, None]) -> T:
        async with aclosing(items):
            return await anext(items)

    found = []
    for call in (
        client.llm.stop(model_id),
        client.llm.restart(model_id),
        client.llm.get(model_id),
        first(client.llm.watch(model_id)),
        client.llm.list_logs(model_id=model_id),
        first(client.llm.tail_logs(1, model_id=model_id)),
        client.llm.clear_logs(model_id=model_id),
        client.orchestration.get_offloaded_llm(model_id),
        client.orchestration.forget_offloaded_llm(model_id),
    ):
        with pytest.raises(ModelNotFoundError, match=re.escape(repr(model_id))) as caught:
            await call
        found.append(caught.value)
    return found


async def test_a_call_that_names_a_model_means_its_engine_alone(service: LlmService) -> None:
    client = service.client
    assert (await client.llm.get()).stop_reason is StopReason.NEVER_STARTED
    for named in ("llm", ""):
        assert [error.metadata for error in await refusals(service, named)] == [{"modelId": named}] * 9
    await client.llm.start("llm", config=SMALL)
    for named in ("another", ""):
        facts = {"modelId": named, "engineModelId": "llm"}
        assert [error.metadata for error in await refusals(service, named)] == [facts] * 9
    running = await client.llm.get("llm")
    assert (running.state, running.stop_reason) == (ServerState.RUNNING, None)
    assert await client.llm.list_logs(EVERYTHING, model_id="llm") == await service.log() != []
    async with aclosing(client.llm.tail_logs(1, model_id="llm")) as entries:
        assert (await anext(entries)).sequence == 1
    assert (await client.llm.restart("llm")).generation == 2
    assert await client.orchestration.get_offloaded_llm("llm") is None
    assert not await client.orchestration.forget_offloaded_llm("llm")
    await client.llm.clear_logs(model_id="llm")
    stopped = await client.llm.stop("llm")
    assert (stopped.state, stopped.stop_reason) == (ServerState.STOPPED, StopReason.STOPPED)
    assert (await client.llm.get("llm")).model_id == "llm"  # it had that model last


async def test_a_watch_of_a_model_ends_when_the_engine_gets_another(
    service: LlmService, demo_models: DemoModels
) -> None:
    await service.install(demo_models.llm, "other")
    await service.client.llm.start("llm", config=SMALL)
    seen = asyncio.create_task(collect(service.client.llm.watch("llm")))
    every = service.client.llm.watch()
    await anext(every)
    await service.client.llm.start("other", config=SMALL, replace=True)
    async with asyncio.timeout(30):
        assert {llm.model_id for llm in await seen} == {"llm"}
        async with aclosing(every):
            while (await anext(every)).model_id != "other":
                pass


async def collect[T](items: AsyncGenerator[T, None]) -> list[T]:
    return [item async for item in items]
