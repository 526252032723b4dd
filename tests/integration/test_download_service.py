"""DownloadService over gRPC, with a hub on loopback: every field of the contract, there and back."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fakes.hub_server import HubServer
from genaid.resource.v1 import downloads_pb2 as pb
from genaid.resource.v1 import downloads_pb2_grpc, models_pb2
from genaid_client import errors
from resource_service import Resource, resource_service
from unit.formats.gguf_files import language_model
from unit.store.store_files import sha256, shard_names, shards

REPO = "owner/name"
LARGE = language_model() + bytes(2_000_000)


@pytest.fixture
async def hub() -> AsyncIterator[HubServer]:
    async with HubServer().serving() as running:
        yield running


@pytest.fixture
async def resource(tmp_path: Path, hub: HubServer) -> AsyncIterator[Resource]:
    async with resource_service(tmp_path / "data", hub) as running:
        yield running


def url_spec(hub: HubServer, file: str, **more: Any) -> pb.DownloadSpec:
    return pb.DownloadSpec(items=[pb.DownloadItem(url=hub.file_url(file))], **more)


async def create(resource: Resource, spec: pb.DownloadSpec, request_id: str = "") -> pb.Download:
    request = pb.CreateDownloadRequest(spec=spec, request_id=request_id)
    return (await resource.downloads.CreateDownload(request)).download


async def watched(resource: Resource, download_id: str) -> list[pb.Download]:
    request = pb.WatchDownloadRequest(download_id=download_id)
    return [response.download async for response in resource.downloads.WatchDownload(request)]


async def get(resource: Resource, download_id: str) -> pb.Download:
    return (await resource.downloads.GetDownload(pb.GetDownloadRequest(download_id=download_id))).download


async def refusal(call: Any) -> tuple[str, str]:
    """The reason and the field of the error that a call or a stream ends in."""

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
    assert status.details[0].Unpack(info)
    return info.reason, info.metadata.get("field", "")


async def test_a_download_is_followed_to_its_model(resource: Resource, hub: HubServer) -> None:
    served = hub.add_file("a.gguf", LARGE)
    spec = url_spec(hub, "a.gguf", name="My Model", model_id="mine", type=models_pb2.MODEL_TYPE_LLM)
    spec.items[0].checksum = sha256(LARGE).upper().replace("SHA256", "sha256")
    served.fail(stall_at=1_500_000, stalls=1)
    created = await create(resource, spec)
    await served.stalled.wait()
    assert created.id
    assert (created.spec.name, created.spec.model_id, created.spec.type) == ("My Model", "mine", spec.type)
    assert created.spec.items[0].url == hub.file_url("a.gguf")
    assert created.spec.items[0].checksum == sha256(LARGE)
    assert not created.HasField("model")
    assert not created.HasField("error")
    stream = resource.downloads.WatchDownload(pb.WatchDownloadRequest(download_id=created.id))
    async for response in stream:
        if response.download.phase == pb.DOWNLOAD_PHASE_DOWNLOADING:
            break
    served.released.set()
    seen = [response.download async for response in stream]
    last = seen[-1]
    assert last.phase == pb.DOWNLOAD_PHASE_INSTALLED
    assert (last.bytes_done, last.bytes_total) == (len(LARGE), len(LARGE))
    assert [each.bytes_done for each in seen] == sorted(each.bytes_done for each in seen)
    assert [(file.name, file.bytes_done, file.bytes_total) for file in last.files] == [
        ("a.gguf", len(LARGE), len(LARGE))
    ]
    assert last.model.id == "mine"
    assert last.model.source.url == hub.file_url("a.gguf")
    assert last.create_time.ToNanoseconds() <= last.update_time.ToNanoseconds()
    assert await get(resource, created.id) == last
    await resource.client.models.delete("mine")
    assert not (await get(resource, created.id)).HasField("model")


async def test_a_file_of_the_hub_comes_back_as_it_was_asked_for(resource: Resource, hub: HubServer) -> None:
    repo = hub.add_repo(REPO, {"folder/a.gguf": language_model()})
    item = pb.DownloadItem(huggingface=pb.HuggingFaceSource(repo=REPO, file="folder/a.gguf"))
    created = await create(resource, pb.DownloadSpec(items=[item]))
    assert created.spec.items[0].huggingface == pb.HuggingFaceSource(repo=REPO, file="folder/a.gguf", revision="main")
    assert created.spec.items[0].component == models_pb2.COMPONENT_UNSPECIFIED
    last = (await watched(resource, created.id))[-1]
    assert last.phase == pb.DOWNLOAD_PHASE_INSTALLED
    assert last.model.source.revision == repo.revisions["main"]


async def test_each_shard_has_its_progress(resource: Resource, hub: HubServer) -> None:
    hub.add_repo(REPO, dict(zip(shard_names(3), shards(3), strict=True)))
    item = pb.DownloadItem(huggingface=pb.HuggingFaceSource(repo=REPO, file=shard_names(3)[0]))
    last = (await watched(resource, (await create(resource, pb.DownloadSpec(items=[item]))).id))[-1]
    assert last.phase == pb.DOWNLOAD_PHASE_INSTALLED, last.error
    assert [(file.name, file.bytes_done) for file in last.files] == [
        (name, len(content)) for name, content in zip(shard_names(3), shards(3), strict=True)
    ]
    assert [file.shard for file in last.model.files] == [1, 2, 3]


async def test_a_failure_says_why(resource: Resource, hub: HubServer) -> None:
    hub.add_file("a.gguf", language_model())
    spec = url_spec(hub, "a.gguf")
    spec.items[0].checksum = f"sha256:{'0' * 64}"
    failed = (await watched(resource, (await create(resource, spec)).id))[-1]
    assert failed.phase == pb.DOWNLOAD_PHASE_FAILED
    assert failed.error.code == "CHECKSUM_ERROR"
    assert failed.error.message
    assert not failed.HasField("model")
    page = hub.add_file("page.gguf", b"<html>")
    refused = (await watched(resource, (await create(resource, url_spec(hub, "page.gguf"))).id))[-1]
    assert (refused.phase, refused.error.code) == (pb.DOWNLOAD_PHASE_FAILED, "INVALID_REQUEST")
    assert page.seen
    assert await resource.client.models.list() == []
    assert await refusal(resource.downloads.CancelDownload(pb.CancelDownloadRequest(download_id=failed.id))) == (
        "ALREADY_TERMINAL",
        "",
    )


async def test_a_download_is_cancelled_and_cancelled_again(resource: Resource, hub: HubServer) -> None:
    served = hub.add_file("a.gguf", LARGE)
    served.fail(stall_at=1_500_000)
    created = await create(resource, url_spec(hub, "a.gguf"))
    await served.stalled.wait()
    request = pb.CancelDownloadRequest(download_id=created.id)
    for _ in range(2):
        cancelled = (await resource.downloads.CancelDownload(request)).download
        assert cancelled.phase == pb.DOWNLOAD_PHASE_CANCELLED
    assert [each.phase for each in await watched(resource, created.id)] == [pb.DOWNLOAD_PHASE_CANCELLED]
    served.released.set()


async def test_a_repeat_and_a_twin_are_the_same_download(resource: Resource, hub: HubServer) -> None:
    served = hub.add_file("a.gguf", LARGE)
    served.fail(stall_at=1_500_000, stalls=1)
    first = await create(resource, url_spec(hub, "a.gguf"), "r")
    await served.stalled.wait()
    assert (await create(resource, url_spec(hub, "other.gguf"), "r")).id == first.id
    assert (await create(resource, url_spec(hub, "a.gguf"))).id == first.id
    served.released.set()
    assert (await watched(resource, first.id))[-1].phase == pb.DOWNLOAD_PHASE_INSTALLED
    known = url_spec(hub, "a.gguf")
    known.items[0].checksum = sha256(LARGE)
    again = await create(resource, known)
    assert again.phase == pb.DOWNLOAD_PHASE_INSTALLED
    assert again.model.id == "tiny-llama"
    assert [each.id for each in await resource.client.models.list()] == ["tiny-llama"]


async def test_downloads_are_listed_by_pages_the_newest_first(resource: Resource, hub: HubServer) -> None:
    ids = []
    for number in range(5):
        served = hub.add_file(f"{number}.gguf", language_model(str(number), salt=number))
        if number == 2:
            served.fail(status=503)
        else:
            download = await create(resource, url_spec(hub, f"{number}.gguf"))
            await watched(resource, download.id)
            ids.append(download.id)
    large = hub.add_file("large.gguf", LARGE)
    large.fail(stall_at=1_500_000)
    ids.append((await create(resource, url_spec(hub, "large.gguf"))).id)
    listed, token = [], ""
    while True:
        request = pb.ListDownloadsRequest(page_size=2, page_token=token)
        answer = await resource.downloads.ListDownloads(request)
        assert len(answer.downloads) <= 2
        listed += [download.id for download in answer.downloads]
        if not (token := answer.next_page_token):
            break
    assert listed == ids[::-1]
    active = await resource.downloads.ListDownloads(pb.ListDownloadsRequest(active_only=True))
    assert [download.id for download in active.downloads] == [ids[-1]]
    assert await refusal(resource.downloads.ListDownloads(pb.ListDownloadsRequest(page_size=-1))) == (
        "INVALID_REQUEST",
        "page_size",
    )


async def test_an_unknown_download_is_not_found(resource: Resource) -> None:
    missing = ("NOT_FOUND", "")
    for download_id in ("", "nothing", "../x", "x" * 100_000):
        assert await refusal(resource.downloads.GetDownload(pb.GetDownloadRequest(download_id=download_id))) == missing
        request = pb.WatchDownloadRequest(download_id=download_id)
        assert await refusal(resource.downloads.WatchDownload(request)) == missing
        cancel = pb.CancelDownloadRequest(download_id=download_id)
        assert await refusal(resource.downloads.CancelDownload(cancel)) == missing


GOOD = pb.DownloadItem(url="http://127.0.0.1:9/a.gguf")
COMPONENTS = models_pb2.Component


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("items", pb.DownloadSpec()),
        ("items[0].source", pb.DownloadSpec(items=[pb.DownloadItem()])),
        ("items[1].source", pb.DownloadSpec(items=[GOOD, pb.DownloadItem(checksum="x")])),
        ("items[0].source", pb.DownloadSpec(items=[pb.DownloadItem(url="ftp://host/a.gguf")])),
        ("items[0].source", pb.DownloadSpec(items=[pb.DownloadItem(url="file:///etc/passwd")])),
        ("items[0].source", pb.DownloadSpec(items=[pb.DownloadItem(url="http://host/a.ckpt")])),
        ("items[0].source", pb.DownloadSpec(items=[pb.DownloadItem(huggingface=pb.HuggingFaceSource(repo="one"))])),
        ("items[0].component", pb.DownloadSpec(items=[pb.DownloadItem(url=GOOD.url, component=99)])),  # type: ignore[arg-type]
        ("items[0].checksum", pb.DownloadSpec(items=[pb.DownloadItem(url=GOOD.url, checksum="md5:1")])),
        ("items", pb.DownloadSpec(items=[GOOD, pb.DownloadItem(url=GOOD.url, component=COMPONENTS.COMPONENT_VAE)])),
        ("name", pb.DownloadSpec(items=[GOOD], name="x" * 201)),
        ("model_id", pb.DownloadSpec(items=[GOOD], model_id="No Slug")),
        ("type", pb.DownloadSpec(items=[GOOD], type=99)),  # type: ignore[arg-type]
    ],
)
async def test_what_cannot_be_right_is_refused_by_name(resource: Resource, field: str, spec: pb.DownloadSpec) -> None:
    request = pb.CreateDownloadRequest(spec=spec)
    assert await refusal(resource.downloads.CreateDownload(request)) == ("INVALID_REQUEST", field)
    assert len((await resource.downloads.ListDownloads(pb.ListDownloadsRequest())).downloads) == 0


async def test_a_request_id_has_a_limit(resource: Resource) -> None:
    request = pb.CreateDownloadRequest(spec=pb.DownloadSpec(items=[GOOD]), request_id="x" * 129)
    assert await refusal(resource.downloads.CreateDownload(request)) == ("INVALID_REQUEST", "request_id")


async def test_watches_end_with_the_service_and_the_download_goes_on_with_the_next(
    tmp_path: Path, hub: HubServer
) -> None:
    served = hub.add_file("a.gguf", LARGE)
    served.fail(stall_at=1_500_000, stalls=1)
    async with contextlib.AsyncExitStack() as after:
        async with resource_service(tmp_path, hub) as resource:
            created = await create(resource, url_spec(hub, "a.gguf"))
            await served.stalled.wait()
            channel = await after.enter_async_context(grpc.aio.insecure_channel(resource.address))
            stub = downloads_pb2_grpc.DownloadServiceStub(channel)
            stream = stub.WatchDownload(pb.WatchDownloadRequest(download_id=created.id))
            responses = aiter(stream)
            assert (await anext(responses)).download.phase == pb.DOWNLOAD_PHASE_DOWNLOADING
        rest = [response.download.phase async for response in responses]
        assert pb.DOWNLOAD_PHASE_INSTALLED not in rest
        assert await stream.code() is grpc.StatusCode.OK
    served.released.set()
    async with resource_service(tmp_path, hub) as resource:
        last = (await watched(resource, created.id))[-1]
        assert last.phase == pb.DOWNLOAD_PHASE_INSTALLED
        assert Path(last.model.path).read_bytes() == LARGE
        with pytest.raises(errors.ModelNotFoundError):
            await resource.client.models.get("nothing")
