"""Both faces of the client against a real server that answers, fails, hangs and dies as scripted."""

import asyncio
import pickle
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from contract.faces import IMAGE, RESOURCE, Connect, Face
from contract.scripted import Flag, Script, serve
from genaid.common.v1 import engines_pb2, logs_pb2
from genaid.image.v1 import engine_pb2, generation_pb2
from genaid.resource.v1 import models_pb2
from genaid_client import (
    AsyncClient,
    BackendError,
    Client,
    ConnectionFailedError,
    DeadlineError,
    DownloadSpec,
    EngineOptions,
    GenaidError,
    GenerationSpec,
    GenerationState,
    Image,
    InternalError,
    InvalidRequestError,
    ModelType,
    Sampler,
    ServerState,
    errors,
)
from genaid_server.kit.errors import DomainError

DOMAIN_ERRORS = DomainError.__subclasses__()
PATIENCE = 30.0  # seconds until a test that waits for something gives up


@pytest.fixture(params=["asyncio", "blocking"])
def face(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(face: str) -> Connect:
    return IMAGE[face]


@pytest.fixture
def resource(face: str) -> Connect:
    return RESOURCE[face]


def status(code: grpc.StatusCode, message: str = "", *details: Any) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    number: int = code.value[0]
    return status_pb2.Status(code=number, message=message, details=packed)


NOT_FOUND_IN_WORDS = status(grpc.StatusCode.NOT_FOUND, "NOT_FOUND: server is busy, SERVER_BUSY")


# Models


async def test_models_come_page_by_page(resource: Connect, script: Script, address: str) -> None:
    def page(request: models_pb2.ListModelsRequest) -> models_pb2.ListModelsResponse:
        number = int(request.page_token or 0)
        return models_pb2.ListModelsResponse(
            models=[models_pb2.Model(id=f"model-{number}")], next_page_token=str(number + 1) if number < 2 else ""
        )

    script.steps["ListModels"] = [page]
    async with resource(address) as client:
        models = await client.call("models.list", ModelType.DIFFUSION)
    assert [model.id for model in models] == ["model-0", "model-1", "model-2"]
    asked = [(request.type, request.page_token) for _, request in script.requests]
    assert asked == [(models_pb2.MODEL_TYPE_DIFFUSION, token) for token in ("", "1", "2")]


async def test_all_models_are_asked_for_without_a_type(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        assert await client.call("models.list") == []
    assert script.requests == [("ListModels", models_pb2.ListModelsRequest())]


async def test_one_model(resource: Connect, script: Script, address: str) -> None:
    script.steps["GetModel"] = [
        lambda request: models_pb2.GetModelResponse(
            model=models_pb2.Model(id=request.model_id, type=models_pb2.MODEL_TYPE_LLM)
        )
    ]
    async with resource(address) as client:
        model = await client.call("models.get", "tiny")
    assert (model.id, model.type) == ("tiny", ModelType.LLM)


async def test_import_sends_what_it_was_given(resource: Connect, script: Script, address: str) -> None:
    script.steps["ImportModel"] = [models_pb2.ImportModelResponse(model=models_pb2.Model(id="mine"))]
    async with resource(address) as client:
        model = await client.call(
            "models.import_",
            "file.gguf",
            name="My Model",
            type=ModelType.DIFFUSION,
            model_id="mine",
            request_id="once",
        )
    assert model.id == "mine"
    assert script.requests == [
        (
            "ImportModel",
            models_pb2.ImportModelRequest(
                file_name="file.gguf",
                name="My Model",
                type=models_pb2.MODEL_TYPE_DIFFUSION,
                model_id="mine",
                request_id="once",
            ),
        )
    ]


async def test_delete_model(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        assert await client.call("models.delete", "tiny") is None
    assert script.requests == [("DeleteModel", models_pb2.DeleteModelRequest(model_id="tiny"))]


# The engine


async def test_start_sends_what_it_was_given(image: Connect, script: Script, address: str) -> None:
    script.steps["StartEngine"] = [
        engine_pb2.StartEngineResponse(engine=engine_pb2.Engine(state=engines_pb2.SERVER_STATE_RUNNING))
    ]
    async with image(address) as client:
        engine = await client.call(
            "engine.start",
            "tiny",
            threads=2,
            options=EngineOptions(flash_attention=True, vae_tiling=True, max_vram_bytes=0),
            keep_alive_seconds=-0.5,
            replace=True,
        )
    assert engine.state is ServerState.RUNNING
    assert script.requests == [
        (
            "StartEngine",
            engine_pb2.StartEngineRequest(
                model_id="tiny",
                threads=2,
                options=engine_pb2.EngineOptions(flash_attention=True, vae_tiling=True, max_vram_bytes=0),
                keep_alive=duration_pb2.Duration(nanos=-500_000_000),
                replace=True,
            ),
        )
    ]


async def test_start_leaves_defaults_to_the_server(image: Connect, script: Script, address: str) -> None:
    async with image(address) as client:
        await client.call("engine.start", "tiny")
    (_, request) = script.requests[0]
    assert not request.HasField("threads")
    assert not request.HasField("keep_alive")
    assert not request.options.HasField("max_vram_bytes")


async def test_keep_alive_of_zero_is_not_absent(image: Connect, script: Script, address: str) -> None:
    async with image(address) as client:
        await client.call("engine.start", "tiny", keep_alive_seconds=0)
    assert script.requests[0][1].HasField("keep_alive")


@pytest.mark.parametrize(("method", "rpc"), [("engine.stop", "StopEngine"), ("engine.get", "GetEngine")])
async def test_the_engine_is_returned(image: Connect, script: Script, address: str, method: str, rpc: str) -> None:
    engine = engine_pb2.Engine(model_id="tiny", state=engines_pb2.SERVER_STATE_STOPPED)
    script.steps[rpc] = [getattr(engine_pb2, f"{rpc}Response")(engine=engine)]
    async with image(address) as client:
        result = await client.call(method)
    assert (result.model_id, result.state) == ("tiny", ServerState.STOPPED)


async def test_watching_the_engine_ends_with_the_stream(image: Connect, script: Script, address: str) -> None:
    script.steps["WatchEngine"] = [
        engine_pb2.WatchEngineResponse(engine=engine_pb2.Engine(restarts=number)) for number in range(3)
    ]
    async with image(address) as client:
        assert [engine.restarts async for engine in client.iterate("engine.watch")] == [0, 1, 2]


async def test_logs(image: Connect, script: Script, address: str) -> None:
    entries = [logs_pb2.LogEntry(sequence=number) for number in range(3)]
    script.steps["ListLogs"] = [engine_pb2.ListLogsResponse(entries=entries)]
    script.steps["TailLogs"] = [
        engine_pb2.TailLogsResponse(entries=entries[:2]),
        engine_pb2.TailLogsResponse(entries=entries[2:]),
    ]
    async with image(address) as client:
        assert [entry.sequence for entry in await client.call("engine.list_logs", 0)] == [0, 1, 2]
        assert [entry.sequence async for entry in client.iterate("engine.tail_logs", 0)] == [0, 1, 2]
        await client.call("engine.clear_logs")
    assert script.requests == [
        ("ListLogs", engine_pb2.ListLogsRequest(lines=0)),
        ("TailLogs", engine_pb2.TailLogsRequest(from_sequence=0)),
        ("ClearLogs", engine_pb2.ClearLogsRequest()),
    ]


async def test_logs_without_numbers(image: Connect, script: Script, address: str) -> None:
    async with image(address) as client:
        assert await client.call("engine.list_logs") == []
        assert [entry async for entry in client.iterate("engine.tail_logs")] == []
    assert script.requests == [
        ("ListLogs", engine_pb2.ListLogsRequest()),
        ("TailLogs", engine_pb2.TailLogsRequest()),
    ]


# Generations


async def test_each_create_has_a_request_id_of_its_own(image: Connect, script: Script, address: str) -> None:
    async with image(address) as client:
        await client.call("images.create", GenerationSpec("a fox"))
        await client.call("images.create", GenerationSpec("a fox"))
        await client.call("images.create", GenerationSpec("a fox"), request_id="mine")
    first, second, third = [request.request_id for _, request in script.requests]
    assert len(first) == len(second) == 36
    assert first != second
    assert third == "mine"


async def test_create_sends_the_spec(image: Connect, script: Script, address: str) -> None:
    script.steps["CreateGeneration"] = [
        generation_pb2.CreateGenerationResponse(
            generation=generation_pb2.Generation(id="g", state=generation_pb2.GENERATION_STATE_PENDING)
        )
    ]
    spec = GenerationSpec("a fox", "blurry", 64, 128, 4, 0.0, 0, Sampler.DPMPP2S_A, 2)
    async with image(address) as client:
        generation = await client.call("images.create", spec, request_id="once")
    assert (generation.id, generation.state) == ("g", GenerationState.PENDING)
    assert script.requests == [
        (
            "CreateGeneration",
            generation_pb2.CreateGenerationRequest(
                spec=generation_pb2.GenerationSpec(
                    prompt="a fox",
                    negative_prompt="blurry",
                    width=64,
                    height=128,
                    steps=4,
                    cfg_scale=0,
                    seed=0,
                    sampler=generation_pb2.SAMPLER_DPMPP2S_A,
                    count=2,
                ),
                request_id="once",
            ),
        )
    ]


@pytest.mark.parametrize(("method", "rpc"), [("images.get", "GetGeneration"), ("images.cancel", "CancelGeneration")])
async def test_a_generation_is_returned(image: Connect, script: Script, address: str, method: str, rpc: str) -> None:
    script.steps[rpc] = [
        lambda request: getattr(generation_pb2, f"{rpc}Response")(
            generation=generation_pb2.Generation(id=request.generation_id)
        )
    ]
    async with image(address) as client:
        assert (await client.call(method, "g")).id == "g"


async def test_delete_generation(image: Connect, script: Script, address: str) -> None:
    async with image(address) as client:
        assert await client.call("images.delete", "g") is None
    assert script.requests == [("DeleteGeneration", generation_pb2.DeleteGenerationRequest(generation_id="g"))]


async def test_generations_come_page_by_page_however_long_their_prompts(
    image: Connect, script: Script, address: str
) -> None:
    spec = generation_pb2.GenerationSpec(prompt="\N{FOX FACE}" * 32768, negative_prompt="\N{FOX FACE}" * 32768)
    known = [generation_pb2.Generation(id=str(number), spec=spec) for number in range(100)]

    def page(request: generation_pb2.ListGenerationsRequest) -> generation_pb2.ListGenerationsResponse:
        start = int(request.page_token or 0)
        end = start + (request.page_size or 100)
        return generation_pb2.ListGenerationsResponse(
            generations=known[start:end], next_page_token=str(end) if end < len(known) else ""
        )

    script.steps["ListGenerations"] = [page]
    async with image(address) as client:
        generations = await client.call("images.list", GenerationState.COMPLETE)
    assert [generation.id for generation in generations] == [generation.id for generation in known]
    assert {request.state for _, request in script.requests} == {generation_pb2.GENERATION_STATE_COMPLETE}


async def test_watching_a_generation_ends_with_the_stream(image: Connect, script: Script, address: str) -> None:
    script.steps["WatchGeneration"] = [
        generation_pb2.WatchGenerationResponse(generation=generation_pb2.Generation(id="g", state=state))
        for state in (generation_pb2.GENERATION_STATE_IN_PROGRESS, generation_pb2.GENERATION_STATE_COMPLETE)
    ]
    async with image(address) as client:
        states = [generation.state async for generation in client.iterate("images.watch", "g")]
    assert states == [GenerationState.IN_PROGRESS, GenerationState.COMPLETE]
    assert [state.terminal for state in states] == [False, True]


async def test_an_image_is_put_together(image: Connect, script: Script, address: str) -> None:
    chunks = [bytes([number]) * 1_048_576 for number in range(5)]
    script.steps["GetImage"] = [generation_pb2.GetImageResponse(chunk=chunk) for chunk in chunks]
    async with image(address) as client:
        assert await client.call("images.get_image", "g", 3) == b"".join(chunks)
    assert script.requests == [("GetImage", generation_pb2.GetImageRequest(generation_id="g", index=3))]


async def test_generate_gives_progress_and_then_whole_images(image: Connect, script: Script, address: str) -> None:
    def chunk(index: int, data: bytes, *, last: bool) -> generation_pb2.GenerateImagesResponse:
        part = generation_pb2.ImageChunk(index=index, data=data, last=last)
        return generation_pb2.GenerateImagesResponse(chunk=part)

    script.steps["GenerateImages"] = [
        generation_pb2.GenerateImagesResponse(generation=generation_pb2.Generation(id="g")),
        generation_pb2.GenerateImagesResponse(),  # as from a newer server: a part that this client doesn't know
        chunk(0, b"one", last=False),
        chunk(0, b" two", last=True),
        chunk(1, b"three", last=True),
    ]
    async with image(address) as client:
        generation, *images = [part async for part in client.iterate("images.stream", GenerationSpec("a fox", steps=4))]
    assert generation.id == "g"
    assert images == [Image(0, b"one two"), Image(1, b"three")]
    assert script.requests == [
        (
            "GenerateImages",
            generation_pb2.GenerateImagesRequest(spec=generation_pb2.GenerationSpec(prompt="a fox", steps=4)),
        )
    ]


# Failures


@pytest.mark.parametrize("error", DOMAIN_ERRORS, ids=lambda error: error.reason)
async def test_each_reason_arrives_with_its_facts(
    image: Connect, script: Script, address: str, error: type[DomainError]
) -> None:
    failure = error("What happened \N{EN DASH} in words.", field="steps", available="3")
    script.steps["GetGeneration"] = [failure]
    script.steps["WatchGeneration"] = [generation_pb2.WatchGenerationResponse(), failure]
    async with image(address) as client:
        with pytest.raises(GenaidError) as unary:
            await client.call("images.get", "g")
        watch = client.iterate("images.watch", "g")
        await anext(watch)
        with pytest.raises(GenaidError) as stream:
            await anext(watch)
    for raised in (unary.value, stream.value):
        assert type(raised) is getattr(errors, error.__name__)
        assert raised.reason == error.reason
        assert raised.message == str(raised) == "What happened \N{EN DASH} in words."
        assert raised.metadata == failure.facts


async def test_a_message_decides_nothing(image: Connect, script: Script, address: str) -> None:
    script.steps["GetEngine"] = [NOT_FOUND_IN_WORDS]
    async with image(address) as client:
        with pytest.raises(InternalError):
            await client.call("engine.get")


@pytest.mark.parametrize(
    "failure",
    [
        status(grpc.StatusCode.UNIMPLEMENTED, "no such method"),
        status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large"),
        status(grpc.StatusCode.NOT_FOUND, "x", error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="elsewhere")),
        status(grpc.StatusCode.NOT_FOUND, "x", error_details_pb2.DebugInfo(detail="a detail of another kind")),
    ],
    ids=["no details", "no details either", "another domain", "another detail"],
)
async def test_without_a_reason_of_ours_it_is_internal(
    image: Connect, script: Script, address: str, failure: status_pb2.Status
) -> None:
    script.steps["GetEngine"] = [failure]
    async with image(address) as client:
        with pytest.raises(InternalError) as raised:
            await client.call("engine.get")
    (name,) = (code.name for code in grpc.StatusCode if code.value[0] == failure.code)
    assert raised.value.reason == "INTERNAL"
    assert raised.value.metadata == {"status": name}
    assert failure.message in raised.value.message
    assert address in raised.value.message


@pytest.mark.parametrize("details", [b"\xff\xff\xff", status(grpc.StatusCode.ABORTED, "x").SerializeToString()])
async def test_details_that_make_no_sense_are_internal(image: Connect, details: bytes) -> None:
    async def abort(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "x", (("grpc-status-details-bin", details),))

    async with raw_server(abort) as address, image(address) as client:
        with pytest.raises(InternalError):
            await client.call("engine.get")


@asynccontextmanager
async def raw_server(behaviour: Callable[..., Awaitable[bytes]]) -> AsyncIterator[str]:
    """A server that speaks in bytes and has no error mapping."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler: Any = grpc.unary_unary_rpc_method_handler
    handlers = {"GetEngine": handler(behaviour)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("genaid.image.v1.EngineService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_reason_of_a_newer_server_keeps_its_name(image: Connect, script: Script, address: str) -> None:
    info = error_details_pb2.ErrorInfo(reason="QUOTA_EXCEEDED", domain="genaid", metadata={"limit": "3"})
    script.steps["GetEngine"] = [status(grpc.StatusCode.RESOURCE_EXHAUSTED, "Enough.", info)]
    async with image(address) as client:
        with pytest.raises(GenaidError) as raised:
            await client.call("engine.get")
    assert type(raised.value) is GenaidError
    assert (raised.value.reason, raised.value.metadata) == ("QUOTA_EXCEEDED", {"limit": "3"})


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(BackendError("It died.", {"exit": "9"})))  # noqa: S301
    assert type(error) is BackendError
    assert (error.message, error.metadata, error.reason) == ("It died.", {"exit": "9"}, "BACKEND_ERROR")


async def test_nobody_listens(image: Connect) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        async with image(address) as client:
            for attempt in (client.call("engine.get"), anext(client.iterate("engine.watch"))):
                with pytest.raises(ConnectionFailedError) as raised:
                    await attempt
                assert address in raised.value.message
                assert "genaid up" in raised.value.message
                assert raised.value.reason == "UNREACHABLE"


async def test_something_else_listens(image: Connect) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with listener, image(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(ConnectionFailedError):
            await client.call("engine.get")


async def test_the_service_dies_in_the_middle(image: Connect, script: Script) -> None:
    script.steps["WatchEngine"] = [engine_pb2.WatchEngineResponse(), Flag.HANG]
    script.steps["GetEngine"] = [Flag.HANG]
    async with serve(script) as (address, server), image(address) as client:
        watch = client.iterate("engine.watch")
        await anext(watch)
        watching = asyncio.ensure_future(anext(watch))
        await asyncio.wait_for(script.hanging.wait(), PATIENCE)
        script.hanging.clear()
        getting = asyncio.create_task(client.call("engine.get"))
        await asyncio.wait_for(script.hanging.wait(), PATIENCE)
        await server.stop(None)
        for call in (watching, getting):
            with pytest.raises(ConnectionFailedError) as raised:
                await call
            assert address in raised.value.message
            assert "genaid up" in raised.value.message


async def test_a_service_that_was_started_again_is_found(image: Connect, script: Script) -> None:
    async with serve(script) as (address, server), image(address) as client:
        await client.call("engine.get")
        await server.stop(None)
        with pytest.raises(ConnectionFailedError):
            await client.call("engine.get")
        async with serve(script, address), asyncio.timeout(PATIENCE):
            await until_it_answers(client)


async def until_it_answers(client: Face) -> None:
    while True:
        try:
            await client.call("engine.get")
        except ConnectionFailedError:
            continue
        return


async def test_the_service_ends_a_call_with_cancelled(image: Connect, script: Script, address: str) -> None:
    script.steps["GetEngine"] = script.steps["WatchEngine"] = [status(grpc.StatusCode.CANCELLED, "shutting down")]
    async with image(address) as client:
        for call in (client.call("engine.get"), anext(client.iterate("engine.watch"))):
            with pytest.raises(ConnectionFailedError):
                await call


async def test_a_call_without_an_answer_meets_its_deadline(image: Connect, script: Script, address: str) -> None:
    script.steps["GetEngine"] = script.steps["StartEngine"] = [Flag.HANG]
    async with image(address, timeout=0.2) as client:
        with pytest.raises(DeadlineError) as raised:
            await client.call("engine.get")
        assert address in raised.value.message
        await asyncio.wait_for(script.cancelled.wait(), PATIENCE)
    async with image(address) as client:
        with pytest.raises(DeadlineError):
            await client.call("engine.start", "tiny", timeout=0.2)


async def test_unary_calls_have_deadlines_and_watches_none(
    image: Connect, resource: Connect, script: Script, address: str
) -> None:
    async with image(address, timeout=100) as client:
        for name in ("engine.stop", "engine.get", "engine.list_logs", "engine.clear_logs", "images.list"):
            await client.call(name)
        for name in ("engine.start", "images.get", "images.cancel", "images.delete", "images.get_image"):
            await client.call(name, "x")
        await client.call("images.create", GenerationSpec("a fox"))
        for iterator in (
            client.iterate("engine.watch"),
            client.iterate("engine.tail_logs"),
            client.iterate("images.watch", "x"),
            client.iterate("images.stream", GenerationSpec("a fox")),
        ):
            assert [item async for item in iterator] == []
    async with resource(address, timeout=100) as client:
        for name in ("models.list", "downloads.list", "system.get_capabilities", "system.get_memory"):
            await client.call(name)
        await client.call("downloads.create", DownloadSpec(()))
        for name in ("models.get", "models.import_", "models.delete", "models.refresh_metadata"):
            await client.call(name, "x")
        for name in ("downloads.get", "downloads.cancel", "system.check_model", "system.recommend_llm_config"):
            await client.call(name, "x")
        for iterator in (
            client.iterate("models.verify", "x"),
            client.iterate("downloads.watch", "x"),
            client.iterate("system.watch_memory"),
        ):
            assert [item async for item in iterator] == []
    unlimited = {"WatchEngine", "TailLogs", "WatchGeneration", "GenerateImages", "VerifyModel", "WatchDownload"}
    unlimited |= {"WatchMemory"}
    longer = {"StartEngine": 600, "ImportModel": 3600, "RefreshModelMetadata": 120}
    longer |= dict.fromkeys(("StopEngine", "CancelGeneration", "DeleteGeneration", "CancelDownload"), 60)
    assert {name for name, left in script.deadlines.items() if left is None} == unlimited
    for name in script.deadlines.keys() - unlimited:
        left = script.deadlines[name]
        assert left is not None
        limit = longer.get(name, 100)
        assert limit / 2 < left < limit * 1.02  # gRPC rounds a little on the way
    assert len(script.deadlines) == 31


async def test_there_is_a_deadline_by_default(image: Connect, script: Script, address: str) -> None:
    async with image(address) as client:
        await client.call("engine.get")
    left = script.deadlines["GetEngine"]
    assert left is not None
    assert left < 10.2


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (GenerationSpec("a fox", width=2**40), "width"),
        (GenerationSpec("a fox", seed=2**70), "seed"),
        (GenerationSpec("a lone surrogate \ud800"), "prompt"),
        (GenerationSpec("a fox", negative_prompt="\udfff"), "negative_prompt"),
    ],
)
async def test_what_no_message_can_hold_is_refused_at_once(
    image: Connect, script: Script, address: str, spec: GenerationSpec, field: str
) -> None:
    async with image(address) as client:
        with pytest.raises(InvalidRequestError) as created:
            await client.call("images.create", spec)
        with pytest.raises(InvalidRequestError) as generated:
            await anext(client.iterate("images.stream", spec))
    for raised in (created.value, generated.value):
        assert raised.metadata == {"field": field}
        assert field in raised.message
    assert script.requests == []


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e12, 1e300])
async def test_a_keep_alive_that_is_no_duration_is_refused(
    image: Connect, script: Script, address: str, seconds: float
) -> None:
    async with image(address) as client:
        with pytest.raises(InvalidRequestError) as raised:
            await client.call("engine.start", "tiny", keep_alive_seconds=seconds)
    assert raised.value.metadata == {"field": "keep_alive"}
    assert script.requests == []


async def test_other_arguments_that_no_message_can_hold(image: Connect, resource: Connect, address: str) -> None:
    async with image(address) as client, resource(address) as models:
        for call in (
            client.call("images.get", "\ud800"),
            client.call("images.get_image", "g", 2**40),
            client.call("engine.list_logs", 2**40),
            client.call("engine.start", "tiny", threads=2**40),
            client.call("engine.start", "tiny", options=EngineOptions(max_vram_bytes=2**70)),
            anext(client.iterate("images.watch", "\ud800")),
            anext(client.iterate("engine.tail_logs", 2**70)),
            models.call("models.get", "\ud800"),
            models.call("models.import_", "\ud800"),
        ):
            with pytest.raises(InvalidRequestError):
                await call


# Leaving


ABANDONABLE = {
    "engine.watch": ("WatchEngine", engine_pb2.WatchEngineResponse(), ()),
    "engine.tail_logs": ("TailLogs", engine_pb2.TailLogsResponse(entries=[logs_pb2.LogEntry()]), ()),
    "images.watch": ("WatchGeneration", generation_pb2.WatchGenerationResponse(), ("g",)),
    "images.stream": (
        "GenerateImages",
        generation_pb2.GenerateImagesResponse(generation=generation_pb2.Generation()),
        (GenerationSpec("a fox"),),
    ),
}


@pytest.mark.parametrize("method", ABANDONABLE)
async def test_a_closed_iterator_cancels_its_call(image: Connect, script: Script, address: str, method: str) -> None:
    rpc, first, args = ABANDONABLE[method]
    script.steps[rpc] = [first, Flag.HANG]
    async with image(address) as client:
        iterator = client.iterate(method, *args)
        await anext(iterator)
        await asyncio.wait_for(script.hanging.wait(), PATIENCE)
        await iterator.aclose()
        await asyncio.wait_for(script.cancelled.wait(), PATIENCE)


async def test_breaking_out_cancels_the_call(script: Script, address: str) -> None:
    script.steps["WatchEngine"] = [engine_pb2.WatchEngineResponse(), Flag.HANG]
    async with AsyncClient(image=address) as client:
        async for _ in client.engine.watch():
            await asyncio.wait_for(script.hanging.wait(), PATIENCE)
            break
        await asyncio.wait_for(script.cancelled.wait(), PATIENCE)


async def test_breaking_out_cancels_the_call_of_the_blocking_face(script: Script, address: str) -> None:
    def watch_once(client: Client) -> None:
        for _ in client.engine.watch():
            break

    script.steps["WatchEngine"] = [engine_pb2.WatchEngineResponse(), Flag.HANG]
    with Client(image=address) as client:
        await asyncio.to_thread(watch_once, client)
        await asyncio.wait_for(script.cancelled.wait(), PATIENCE)


async def test_a_cancelled_caller_cancels_its_call(script: Script, address: str) -> None:
    async def watch(client: AsyncClient) -> None:
        async for _ in client.engine.watch():
            pass

    script.steps["GetEngine"] = script.steps["WatchEngine"] = [Flag.HANG]
    async with AsyncClient(image=address) as client:
        for work in (client.engine.get(), watch(client)):
            task = asyncio.create_task(work)
            await asyncio.wait_for(script.hanging.wait(), PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(script.cancelled.wait(), PATIENCE)
            script.hanging.clear()
            script.cancelled.clear()


async def test_a_callers_timeout_stays_a_timeout(script: Script, address: str) -> None:
    script.steps["GetEngine"] = [Flag.HANG]
    async with AsyncClient(image=address) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.engine.get(), 0.2)
        await asyncio.wait_for(script.cancelled.wait(), PATIENCE)


async def test_closing_the_client_ends_its_calls(image: Connect, script: Script, address: str) -> None:
    script.steps["WatchEngine"] = [engine_pb2.WatchEngineResponse(), Flag.HANG]
    script.steps["GetEngine"] = [Flag.HANG]
    async with image(address) as client:
        watch = client.iterate("engine.watch")
        await anext(watch)
        watching = asyncio.ensure_future(anext(watch))
        await asyncio.wait_for(script.hanging.wait(), PATIENCE)
        script.hanging.clear()
        getting = asyncio.create_task(client.call("engine.get"))
        await asyncio.wait_for(script.hanging.wait(), PATIENCE)
        await client.close()
        for call in (watching, getting):
            with pytest.raises(ConnectionFailedError):
                await call


async def test_no_proxy_stands_between(
    image: Connect, script: Script, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with image(address) as client:
        await client.call("engine.get")
    assert [name for name, _ in script.requests] == ["GetEngine"]


async def test_one_error_leaves_the_client_usable(image: Connect, script: Script, address: str) -> None:
    script.steps["GetGeneration"] = [NOT_FOUND_IN_WORDS]
    async with image(address) as client:
        with pytest.raises(InternalError):
            await client.call("images.get", "g")
        assert (await client.call("engine.get")).state is ServerState.STARTING
