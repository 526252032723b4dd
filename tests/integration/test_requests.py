"""Every field of every request that may be wrong, over gRPC: a clear refusal that names it, and the service lives."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from genaid.image.v1 import engine_pb2, engine_pb2_grpc, generation_pb2, generation_pb2_grpc
from genaid.resource.v1 import models_pb2, models_pb2_grpc
from worker import Worker, image_worker

Spec = generation_pb2.GenerationSpec
LONG_ID = "x" * 129

BAD_SPECS: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": "\0"}),
    ("prompt", {"prompt": "x" * 32_769}),
    ("negative_prompt", {"negative_prompt": "\0"}),
    ("negative_prompt", {"negative_prompt": "x" * 32_769}),
    *((side, {side: value}) for side in ("width", "height") for value in (-8, 0, 56, 65, 4104, 2**31 - 1)),
    ("width", {"width": 4096, "height": 4096}),
    *(("steps", {"steps": value}) for value in (-1, 0, 201)),
    *(("cfg_scale", {"cfg_scale": value}) for value in (-0.5, 101, float("nan"), float("inf"), float("-inf"))),
    ("seed", {"seed": 2**31}),
    ("sampler", {"sampler": 999}),
    *(("count", {"count": value}) for value in (-1, 0, 6)),
]
BAD_ENGINES: list[tuple[str, engine_pb2.StartEngineRequest]] = [
    ("threads", engine_pb2.StartEngineRequest(model_id="m", threads=0)),
    ("threads", engine_pb2.StartEngineRequest(model_id="m", threads=513)),
    (
        "options.max_vram_bytes",
        engine_pb2.StartEngineRequest(model_id="m", options=engine_pb2.EngineOptions(max_vram_bytes=-1)),
    ),
    ("keep_alive", engine_pb2.StartEngineRequest(model_id="m", keep_alive=duration_pb2.Duration(seconds=10**11))),
    ("request_id", engine_pb2.StartEngineRequest(model_id="m", request_id=LONG_ID)),
]
BAD_IMPORTS: list[tuple[str, models_pb2.ImportModelRequest]] = [
    ("file_name", models_pb2.ImportModelRequest()),
    *(
        ("file_name", models_pb2.ImportModelRequest(file_name=name))
        for name in ("../a.gguf", "/etc/passwd", "a/b.gguf", "C:\\a.gguf", "a\0.gguf", "not-there.gguf", "a.ckpt")
    ),
    ("name", models_pb2.ImportModelRequest(file_name="a.gguf", name="x" * 201)),
    ("model_id", models_pb2.ImportModelRequest(file_name="a.gguf", model_id="No Slug")),
    ("type", models_pb2.ImportModelRequest(file_name="a.gguf", type=99)),  # type: ignore[arg-type]
    ("request_id", models_pb2.ImportModelRequest(file_name="a.gguf", request_id=LONG_ID)),
]


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    async with image_worker(tmp_path) as running:
        yield running
        assert not (await running.client.engine.get()).busy
        assert await running.client.models.list() == []


async def refusal(call: Any) -> tuple[str, str, str]:
    """The code, reason and field of the error that a call or a stream ends in."""

    async def end() -> None:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await end()
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
    assert status is not None, refused.value
    info = error_details_pb2.ErrorInfo()
    (detail,) = status.details
    assert detail.Unpack(info)
    assert info.domain == "genaid"
    assert status.message
    return refused.value.code().name, info.reason, info.metadata.get("field", "")


@pytest.mark.parametrize(("field", "values"), BAD_SPECS)
async def test_what_to_draw(worker: Worker, field: str, values: dict[str, Any]) -> None:
    spec = Spec(**({"prompt": "a cat"} | values))
    expected = ("INVALID_ARGUMENT", "INVALID_REQUEST", field)
    async with grpc.aio.insecure_channel(worker.image_address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        assert await refusal(stub.CreateGeneration(generation_pb2.CreateGenerationRequest(spec=spec))) == expected
        assert await refusal(stub.GenerateImages(generation_pb2.GenerateImagesRequest(spec=spec))) == expected


async def test_a_request_without_anything_in_it(worker: Worker) -> None:
    async with grpc.aio.insecure_channel(worker.image_address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        engine = engine_pb2_grpc.EngineServiceStub(channel)
        created = stub.CreateGeneration(generation_pb2.CreateGenerationRequest())
        assert await refusal(created) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "prompt")
        not_found = ("NOT_FOUND", "NOT_FOUND", "")
        assert await refusal(stub.GetGeneration(generation_pb2.GetGenerationRequest())) == not_found
        assert await refusal(stub.WatchGeneration(generation_pb2.WatchGenerationRequest())) == not_found
        assert await refusal(stub.CancelGeneration(generation_pb2.CancelGenerationRequest())) == not_found
        assert await refusal(stub.DeleteGeneration(generation_pb2.DeleteGenerationRequest())) == not_found
        assert await refusal(stub.GetImage(generation_pb2.GetImageRequest())) == not_found
        started = engine.StartEngine(engine_pb2.StartEngineRequest())
        assert await refusal(started) == ("NOT_FOUND", "MODEL_NOT_FOUND", "")


@pytest.mark.parametrize(("field", "request_"), BAD_ENGINES)
async def test_how_to_start_the_engine(worker: Worker, field: str, request_: engine_pb2.StartEngineRequest) -> None:
    async with grpc.aio.insecure_channel(worker.image_address) as channel:
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        assert await refusal(stub.StartEngine(request_)) == ("INVALID_ARGUMENT", "INVALID_REQUEST", field)


@pytest.mark.parametrize(("field", "request_"), BAD_IMPORTS)
async def test_what_to_import(worker: Worker, field: str, request_: models_pb2.ImportModelRequest) -> None:
    async with grpc.aio.insecure_channel(worker.resource_address) as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        assert await refusal(stub.ImportModel(request_)) == ("INVALID_ARGUMENT", "INVALID_REQUEST", field)


@pytest.mark.parametrize(
    ("field", "values"),
    [("page_size", {"page_size": -1}), ("page_size", {"page_size": 1001}), ("page_token", {"page_token": "nonsense"})],
)
async def test_how_to_page(worker: Worker, field: str, values: dict[str, Any]) -> None:
    expected = ("INVALID_ARGUMENT", "INVALID_REQUEST", field)
    async with (
        grpc.aio.insecure_channel(worker.image_address) as images,
        grpc.aio.insecure_channel(worker.resource_address) as models,
    ):
        generations = generation_pb2_grpc.GenerationServiceStub(images)
        assert await refusal(generations.ListGenerations(generation_pb2.ListGenerationsRequest(**values))) == expected
        installed = models_pb2_grpc.ModelServiceStub(models)
        assert await refusal(installed.ListModels(models_pb2.ListModelsRequest(**values))) == expected


async def test_numbers_that_name_nothing(worker: Worker) -> None:
    async with (
        grpc.aio.insecure_channel(worker.image_address) as images,
        grpc.aio.insecure_channel(worker.resource_address) as models,
    ):
        generations = generation_pb2_grpc.GenerationServiceStub(images)
        listed = generations.ListGenerations(generation_pb2.ListGenerationsRequest(state=99))  # type: ignore[arg-type]
        assert await refusal(listed) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "state")
        installed = models_pb2_grpc.ModelServiceStub(models)
        typed = installed.ListModels(models_pb2.ListModelsRequest(type=99))  # type: ignore[arg-type]
        assert await refusal(typed) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "type")
        for model_id in ("", "nothing", "../x", "x" * 100_000):
            missing = ("NOT_FOUND", "MODEL_NOT_FOUND", "")
            assert await refusal(installed.GetModel(models_pb2.GetModelRequest(model_id=model_id))) == missing
            assert await refusal(installed.DeleteModel(models_pb2.DeleteModelRequest(model_id=model_id))) == missing
        engine = engine_pb2_grpc.EngineServiceStub(images)
        logs = engine.ListLogs(engine_pb2.ListLogsRequest(lines=-1))
        assert await refusal(logs) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "lines")
