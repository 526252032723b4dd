"""The blocking face over grpc_testing's channel: its stubs are called as gRPC means them to be."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc_testing
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_status import rpc_status

from contract.scripted import SERVICES
from genaid.common.v1 import engines_pb2
from genaid.image.v1 import engine_pb2, generation_pb2
from genaid.resource.v1 import downloads_pb2, llm_pb2, models_pb2, orchestration_pb2, system_pb2
from genaid_client import (
    Client,
    DownloadItem,
    DownloadPhase,
    DownloadSpec,
    EngineEvent,
    GenaidError,
    GenerationSpec,
    Image,
    ImageNeed,
    InternalError,
    LeaseState,
    LlmConfig,
    LlmServing,
    ModelNotFoundError,
    ServerBusyError,
)
from genaid_server.kit.errors import DomainError
from genaid_server.kit.errors import ModelNotFoundError as NotInstalled
from genaid_server.kit.errors import ServerBusyError as Busy
from genaid_server.kit.rpc import rich_status

METHODS = {method.name: method for service in SERVICES for method in service.methods}
PATIENCE = 30.0  # seconds
OK = ((), grpc.StatusCode.OK, "")


@pytest.fixture
def channel() -> Any:
    return grpc_testing.channel(SERVICES, grpc_testing.strict_real_time())


@pytest.fixture
def caller() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def image(channel: Any) -> Client:
    return Client(image=channel)


@pytest.fixture
def resource(channel: Any) -> Client:
    return Client(resource=channel)


def failure(error: DomainError) -> tuple[Any, grpc.StatusCode, str]:
    status: Any = rpc_status.to_status(rich_status(error))
    (code,) = (code for code in grpc.StatusCode if code == status.code)
    return status.trailing_metadata, code, status.details


def take_unary(channel: Any, name: str) -> tuple[Any, Any]:
    method: MethodDescriptor = METHODS[name]
    _, request, call = channel.take_unary_unary(method)
    call.send_initial_metadata(())
    return request, call


def take_stream(channel: Any, name: str) -> tuple[Any, Any]:
    method: MethodDescriptor = METHODS[name]
    _, request, call = channel.take_unary_stream(method)
    call.send_initial_metadata(())
    return request, call


def test_a_call_and_its_answer(channel: Any, caller: ThreadPoolExecutor, resource: Client) -> None:
    result = caller.submit(resource.models.get, "tiny")
    request, call = take_unary(channel, "GetModel")
    call.terminate(models_pb2.GetModelResponse(model=models_pb2.Model(id="tiny")), *OK)
    assert request == models_pb2.GetModelRequest(model_id="tiny")
    assert result.result().id == "tiny"


def test_a_call_that_fails(channel: Any, caller: ThreadPoolExecutor, resource: Client) -> None:
    result = caller.submit(resource.models.delete, "tiny")
    _, call = take_unary(channel, "DeleteModel")
    call.terminate(None, *failure(NotInstalled("It is not here.", modelId="tiny")))
    with pytest.raises(ModelNotFoundError, match=r"It is not here\.") as raised:
        result.result()
    assert raised.value.metadata == {"modelId": "tiny"}


def test_a_call_that_fails_without_a_reason(channel: Any, caller: ThreadPoolExecutor, image: Client) -> None:
    result = caller.submit(image.engine.get)
    _, call = take_unary(channel, "GetEngine")
    call.terminate(None, (), grpc.StatusCode.UNIMPLEMENTED, "no such method")
    with pytest.raises(InternalError):
        result.result()


def test_pages(channel: Any, caller: ThreadPoolExecutor, image: Client) -> None:
    result = caller.submit(image.images.list)
    tokens = []
    for number, following in enumerate(["more", ""]):
        request, call = take_unary(channel, "ListGenerations")
        tokens.append(request.page_token)
        generation = generation_pb2.Generation(id=str(number))
        page = generation_pb2.ListGenerationsResponse(generations=[generation], next_page_token=following)
        call.terminate(page, *OK)
    assert tokens == ["", "more"]
    assert [generation.id for generation in result.result()] == ["0", "1"]


def test_a_stream_that_ends(channel: Any, caller: ThreadPoolExecutor, image: Client) -> None:
    result = caller.submit(lambda: list(image.images.stream(GenerationSpec("a fox"))))
    request, call = take_stream(channel, "GenerateImages")
    chunk = generation_pb2.ImageChunk(data=b"png", last=True)
    call.send_response(generation_pb2.GenerateImagesResponse(chunk=chunk))
    call.terminate(*OK)
    assert request.spec.prompt == "a fox"
    assert result.result() == [Image(0, b"png")]


def test_a_stream_that_fails(channel: Any, caller: ThreadPoolExecutor, image: Client) -> None:
    result = caller.submit(image.images.get_image, "g")
    _, call = take_stream(channel, "GetImage")
    call.send_response(generation_pb2.GetImageResponse(chunk=b"half"))
    call.terminate(*failure(Busy("Not yet.")))
    with pytest.raises(ServerBusyError) as raised:
        result.result()
    assert isinstance(raised.value, GenaidError)
    assert isinstance(raised.value.__cause__, grpc.RpcError)


def test_an_iterator_that_is_left(channel: Any, caller: ThreadPoolExecutor, image: Client) -> None:
    watch = image.engine.watch()
    first = caller.submit(next, watch)
    _, call = take_stream(channel, "WatchEngine")
    call.send_response(engine_pb2.WatchEngineResponse(engine=engine_pb2.Engine(restarts=3)))
    assert first.result().restarts == 3
    watch.close()
    call.cancelled()  # returns once the call is cancelled


def test_a_channel_that_was_given_is_not_closed() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as shared:
        Client(image=shared).close()
        call: Any = shared.unary_unary("/still/open")
        with pytest.raises(grpc.RpcError):  # nobody listens there; a closed channel would be a ValueError
            call(b"", timeout=PATIENCE)


def test_a_download_is_watched_to_its_end(channel: Any, caller: ThreadPoolExecutor, resource: Client) -> None:
    result = caller.submit(lambda: [download.phase for download in resource.downloads.watch("d")])
    request, call = take_stream(channel, "WatchDownload")
    for phase in (downloads_pb2.DOWNLOAD_PHASE_DOWNLOADING, downloads_pb2.DOWNLOAD_PHASE_INSTALLED):
        call.send_response(downloads_pb2.WatchDownloadResponse(download=downloads_pb2.Download(phase=phase)))
    call.terminate(*OK)
    assert request == downloads_pb2.WatchDownloadRequest(download_id="d")
    assert result.result() == [DownloadPhase.DOWNLOADING, DownloadPhase.INSTALLED]


def test_a_download_is_asked_for(channel: Any, caller: ThreadPoolExecutor, resource: Client) -> None:
    result = caller.submit(resource.downloads.create, DownloadSpec((DownloadItem("http://127.0.0.1/x.gguf"),)))
    request, call = take_unary(channel, "CreateDownload")
    call.terminate(downloads_pb2.CreateDownloadResponse(download=downloads_pb2.Download(id="d")), *OK)
    assert [item.url for item in request.spec.items] == ["http://127.0.0.1/x.gguf"]
    assert result.result().id == "d"


def test_memory_is_watched(channel: Any, caller: ThreadPoolExecutor, resource: Client) -> None:
    result = caller.submit(lambda: [memory.ram.used_bytes for memory in resource.system.watch_memory(2.5)])
    request, call = take_stream(channel, "WatchMemory")
    for used in (1, 2):
        memory = system_pb2.MemorySnapshot(ram=system_pb2.Ram(used_bytes=used))
        call.send_response(system_pb2.WatchMemoryResponse(memory=memory))
    call.terminate(*OK)
    assert (request.interval.seconds, request.interval.nanos) == (2, 500_000_000)
    assert result.result() == [1, 2]


def test_a_config_is_recommended(channel: Any, caller: ThreadPoolExecutor, resource: Client) -> None:
    result = caller.submit(resource.system.recommend_llm_config, "tiny", LlmConfig(context_size=512))
    request, call = take_unary(channel, "RecommendLlmConfig")
    call.terminate(system_pb2.RecommendLlmConfigResponse(config=request.wishes, fits=True), *OK)
    assert request == system_pb2.RecommendLlmConfigRequest(
        model_id="tiny", wishes=system_pb2.LlmConfig(context_size=512)
    )
    assert result.result().config == LlmConfig(context_size=512)


def test_a_language_model_is_started(channel: Any, caller: ThreadPoolExecutor, resource: Client) -> None:
    result = caller.submit(resource.llm.start, "tiny", serving=LlmServing(port=0), request_id="mine")
    request, call = take_unary(channel, "StartLlm")
    call.terminate(llm_pb2.StartLlmResponse(llm=llm_pb2.Llm(host="127.0.0.1", port=7)), *OK)
    assert request == llm_pb2.StartLlmRequest(model_id="tiny", serving=llm_pb2.LlmServing(port=0), request_id="mine")
    assert result.result().base_url == "http://127.0.0.1:7"


def test_the_llm_engine_is_watched(channel: Any, caller: ThreadPoolExecutor, resource: Client) -> None:
    result = caller.submit(lambda: [now.last_event for now in resource.llm.watch()])
    _, call = take_stream(channel, "WatchLlm")
    for event in (engines_pb2.ENGINE_EVENT_STARTED, engines_pb2.ENGINE_EVENT_READY):
        call.send_response(llm_pb2.WatchLlmResponse(llm=llm_pb2.Llm(last_event=event)))
    call.terminate(*OK)
    assert result.result() == [EngineEvent.STARTED, EngineEvent.READY]


def test_a_lease_is_held_until_it_is_left(channel: Any, caller: ThreadPoolExecutor, resource: Client) -> None:
    leases = resource.orchestration.hold_lease("worker", ImageNeed("sd"))
    first = caller.submit(next, leases)
    request, call = take_stream(channel, "HoldLease")
    lease = orchestration_pb2.Lease(state=orchestration_pb2.LEASE_STATE_GRANTED)
    call.send_response(orchestration_pb2.HoldLeaseResponse(lease=lease))
    assert (request.tenant_id, request.need.model_id, request.resident) == ("worker", "sd", False)
    assert first.result().state is LeaseState.GRANTED
    leases.close()
    call.cancelled()  # returns once the call is cancelled
