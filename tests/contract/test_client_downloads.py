"""The calls about models on their way, and about what models are, on both faces against a scripted server."""

import asyncio
from typing import Any

import pytest

from contract.faces import Connect
from contract.scripted import Flag, Script, Step
from genaid.image.v1 import generation_pb2
from genaid.resource.v1 import downloads_pb2, models_pb2
from genaid_client import (
    ChecksumError,
    Component,
    Download,
    DownloadItem,
    DownloadPhase,
    DownloadSpec,
    GenaidError,
    HuggingFaceSource,
    InsufficientResourcesError,
    InvalidRequestError,
    MetadataStrategy,
    ModelNotFoundError,
    ModelType,
    Verification,
    convert,
    raise_for_failure,
)
from genaid_client import NotFoundError as NotThere
from genaid_server.kit.errors import ModelNotFoundError as NotInstalled
from genaid_server.kit.errors import NotFoundError

PATIENCE = 30.0  # seconds until a test that waits for something gives up
HUB_FILE = HuggingFaceSource("owner/name", "folder/file.gguf", "v1")


def failed(code: str, **facts: str) -> Download:
    error = downloads_pb2.DownloadError(code=code, message="It did not work.", facts=facts)
    return convert.download_from_pb(downloads_pb2.Download(error=error))


# Models


async def test_everything_that_a_header_says(resource: Connect, script: Script, address: str) -> None:
    script.steps["GetModel"] = [models_pb2.GetModelResponse(raw_metadata_json='{"general.name": "Größe", "n": 7}')]
    async with resource(address) as client:
        assert await client.call("models.get_raw_metadata", "tiny") == {"general.name": "Größe", "n": 7}
    assert script.requests == [
        ("GetModel", models_pb2.GetModelRequest(model_id="tiny", include_raw_metadata=True)),
    ]


async def test_a_model_is_asked_for_without_all_of_its_header(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        await client.call("models.get", "tiny")
    assert script.requests == [("GetModel", models_pb2.GetModelRequest(model_id="tiny"))]


async def test_verifying_says_how_far_it_is_and_then_what_it_found(
    resource: Connect, script: Script, address: str
) -> None:
    found = models_pb2.FileVerification(name="a", result=models_pb2.VERIFICATION_VALID)
    script.steps["VerifyModel"] = [
        models_pb2.VerifyModelResponse(bytes_done=1, bytes_total=2),
        models_pb2.VerifyModelResponse(
            bytes_done=2, bytes_total=2, result=models_pb2.VERIFICATION_VALID, files=[found]
        ),
    ]
    async with resource(address) as client:
        first, last = [progress async for progress in client.iterate("models.verify", "tiny")]
    assert (first.bytes_done, first.bytes_total, first.result, first.files) == (1, 2, None, ())
    assert (last.result, [file.name for file in last.files]) == (Verification.VALID, ["a"])
    assert script.requests == [("VerifyModel", models_pb2.VerifyModelRequest(model_id="tiny"))]


async def test_verifying_what_is_not_there(resource: Connect, script: Script, address: str) -> None:
    script.steps["VerifyModel"] = [NotInstalled("It is not here.", modelId="tiny")]
    async with resource(address) as client:
        with pytest.raises(ModelNotFoundError):
            await anext(client.iterate("models.verify", "tiny"))


@pytest.mark.parametrize("strategy", MetadataStrategy)
async def test_refreshing_says_where_to_read(
    resource: Connect, script: Script, address: str, strategy: MetadataStrategy
) -> None:
    script.steps["RefreshModelMetadata"] = [
        models_pb2.RefreshModelMetadataResponse(model=models_pb2.Model(id="tiny", layer_count=3))
    ]
    async with resource(address) as client:
        model = await client.call("models.refresh_metadata", "tiny", strategy)
    assert (model.id, model.layer_count) == ("tiny", 3)
    number = models_pb2.MetadataStrategy.Value(f"METADATA_STRATEGY_{strategy.name}")
    assert script.requests == [
        ("RefreshModelMetadata", models_pb2.RefreshModelMetadataRequest(model_id="tiny", strategy=number))
    ]


async def test_refreshing_reads_the_file_first_if_not_told_otherwise(
    resource: Connect, script: Script, address: str
) -> None:
    async with resource(address) as client:
        await client.call("models.refresh_metadata", "tiny")
    assert script.requests[0][1].strategy == models_pb2.METADATA_STRATEGY_LOCAL_REMOTE


# Downloads


async def test_create_sends_what_it_was_given(resource: Connect, script: Script, address: str) -> None:
    script.steps["CreateDownload"] = [
        downloads_pb2.CreateDownloadResponse(
            download=downloads_pb2.Download(id="d", phase=downloads_pb2.DOWNLOAD_PHASE_QUEUED)
        )
    ]
    spec = DownloadSpec(
        (
            DownloadItem(HUB_FILE, Component.DIFFUSION_MODEL, "sha256:00"),
            DownloadItem("http://127.0.0.1/vae.safetensors", Component.VAE),
        ),
        name="Mine",
        type=ModelType.DIFFUSION,
        model_id="mine",
    )
    async with resource(address) as client:
        download = await client.call("downloads.create", spec, request_id="once")
    assert (download.id, download.phase) == ("d", DownloadPhase.QUEUED)
    hub_file = downloads_pb2.HuggingFaceSource(repo="owner/name", file="folder/file.gguf", revision="v1")
    assert script.requests == [
        (
            "CreateDownload",
            downloads_pb2.CreateDownloadRequest(
                spec=downloads_pb2.DownloadSpec(
                    items=[
                        downloads_pb2.DownloadItem(
                            huggingface=hub_file,
                            component=models_pb2.COMPONENT_DIFFUSION_MODEL,
                            checksum="sha256:00",
                        ),
                        downloads_pb2.DownloadItem(
                            url="http://127.0.0.1/vae.safetensors", component=models_pb2.COMPONENT_VAE
                        ),
                    ],
                    name="Mine",
                    type=models_pb2.MODEL_TYPE_DIFFUSION,
                    model_id="mine",
                ),
                request_id="once",
            ),
        )
    ]


async def test_each_create_has_a_request_id_of_its_own(resource: Connect, script: Script, address: str) -> None:
    spec = DownloadSpec((DownloadItem(HUB_FILE),))
    async with resource(address) as client:
        await client.call("downloads.create", spec)
        await client.call("downloads.create", spec)
    first, second = [request.request_id for _, request in script.requests]
    assert len(first) == len(second) == 36
    assert first != second


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (DownloadSpec((), name="\ud800"), "name"),
        (DownloadSpec((DownloadItem("http://\ud800"),)), "url"),
        (DownloadSpec((DownloadItem(HuggingFaceSource("o/n", "\ud800")),)), "file"),
        (DownloadSpec((DownloadItem(None, checksum="\ud800"),)), "checksum"),
    ],
)
async def test_what_no_message_can_hold_is_refused_at_once(
    resource: Connect, script: Script, address: str, spec: DownloadSpec, field: str
) -> None:
    async with resource(address) as client:
        with pytest.raises(InvalidRequestError) as raised:
            await client.call("downloads.create", spec)
    assert raised.value.metadata == {"field": field}
    assert script.requests == []


@pytest.mark.parametrize(("method", "rpc"), [("downloads.get", "GetDownload"), ("downloads.cancel", "CancelDownload")])
async def test_a_download_is_returned(resource: Connect, script: Script, address: str, method: str, rpc: str) -> None:
    script.steps[rpc] = [
        lambda request: getattr(downloads_pb2, f"{rpc}Response")(
            download=downloads_pb2.Download(id=request.download_id, phase=downloads_pb2.DOWNLOAD_PHASE_CANCELLED)
        )
    ]
    async with resource(address) as client:
        download = await client.call(method, "d")
    assert (download.id, download.phase) == ("d", DownloadPhase.CANCELLED)


@pytest.mark.parametrize("active_only", [False, True])
async def test_downloads_come_page_by_page_however_many_files_they_have(
    resource: Connect, script: Script, address: str, active_only: bool
) -> None:
    shard = models_pb2.ModelFile(name="n" * 200, path="p" * 1000, checksum="c" * 71)
    known = [
        downloads_pb2.Download(id=str(number), model=models_pb2.Model(files=[shard] * 100)) for number in range(50)
    ]

    def page(request: downloads_pb2.ListDownloadsRequest) -> downloads_pb2.ListDownloadsResponse:
        start = int(request.page_token or 0)
        end = start + (request.page_size or 100)
        return downloads_pb2.ListDownloadsResponse(
            downloads=known[start:end], next_page_token=str(end) if end < len(known) else ""
        )

    script.steps["ListDownloads"] = [page]
    async with resource(address) as client:
        downloads = await client.call("downloads.list", active_only)
    assert [download.id for download in downloads] == [download.id for download in known]
    assert {request.active_only for _, request in script.requests} == {active_only}


async def test_ended_downloads_are_listed_if_not_told_otherwise(
    resource: Connect, script: Script, address: str
) -> None:
    async with resource(address) as client:
        assert await client.call("downloads.list") == []
    assert not script.requests[0][1].active_only


async def test_watching_a_download_ends_with_the_stream(resource: Connect, script: Script, address: str) -> None:
    script.steps["WatchDownload"] = [
        downloads_pb2.WatchDownloadResponse(download=downloads_pb2.Download(id="d", phase=phase))
        for phase in downloads_pb2.DownloadPhase.values()[1:]
    ]
    async with resource(address) as client:
        phases = [download.phase async for download in client.iterate("downloads.watch", "d")]
    assert phases == list(DownloadPhase)
    assert [phase.terminal for phase in phases] == [False] * 4 + [True] * 3
    assert script.requests == [("WatchDownload", downloads_pb2.WatchDownloadRequest(download_id="d"))]


async def test_watching_what_is_not_there(resource: Connect, script: Script, address: str) -> None:
    script.steps["WatchDownload"] = [NotFoundError("There is no such download.")]
    async with resource(address) as client:
        with pytest.raises(NotThere):
            await anext(client.iterate("downloads.watch", "d"))


@pytest.mark.parametrize(
    ("method", "rpc", "first"),
    [
        ("downloads.watch", "WatchDownload", downloads_pb2.WatchDownloadResponse()),
        ("models.verify", "VerifyModel", models_pb2.VerifyModelResponse()),
    ],
)
async def test_a_closed_iterator_cancels_its_call(
    resource: Connect, script: Script, address: str, method: str, rpc: str, first: Step
) -> None:
    script.steps[rpc] = [first, Flag.HANG]
    async with resource(address) as client:
        iterator = client.iterate(method, "x")
        await anext(iterator)
        await asyncio.wait_for(script.hanging.wait(), PATIENCE)
        await iterator.aclose()
        await asyncio.wait_for(script.cancelled.wait(), PATIENCE)


# Failed downloads as exceptions


def test_a_failed_download_raises_what_its_code_says() -> None:
    with pytest.raises(ChecksumError, match=r"It did not work\.") as raised:
        raise_for_failure(failed("CHECKSUM_ERROR", expected="00", actual="11"))
    assert raised.value.metadata == {"expected": "00", "actual": "11"}


def test_a_code_of_a_newer_server_keeps_its_name() -> None:
    with pytest.raises(GenaidError) as raised:
        raise_for_failure(failed("QUOTA_EXCEEDED"))
    assert type(raised.value) is GenaidError
    assert raised.value.reason == "QUOTA_EXCEEDED"


def test_so_does_a_failed_generation() -> None:
    error = generation_pb2.GenerationError(
        code="INSUFFICIENT_RESOURCES", message="It is too large.", facts={"required": "2", "available": "1"}
    )
    generation = generation_pb2.Generation(state=generation_pb2.GENERATION_STATE_ERROR, error=error)
    with pytest.raises(InsufficientResourcesError, match="too large") as raised:
        raise_for_failure(convert.generation_from_pb(generation))
    assert raised.value.metadata == {"required": "2", "available": "1"}


@pytest.mark.parametrize("state", generation_pb2.GenerationState.values())
def test_any_other_generation_raises_nothing(state: Any) -> None:
    raise_for_failure(convert.generation_from_pb(generation_pb2.Generation(state=state)))


@pytest.mark.parametrize("phase", downloads_pb2.DownloadPhase.values())
def test_any_other_download_raises_nothing(phase: Any) -> None:
    raise_for_failure(convert.download_from_pb(downloads_pb2.Download(phase=phase)))
