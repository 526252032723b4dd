"""ModelService over gRPC, with a hub on loopback: what is documented of the model manager, by its client."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from fakes.hub_server import HubServer
from genaid.resource.v1 import models_pb2
from genaid_client import (
    Component,
    DownloadItem,
    DownloadSpec,
    HuggingFaceSource,
    MetadataStrategy,
    Model,
    ModelFormat,
    ModelType,
    SourceType,
    Verification,
    errors,
)
from genaid_server.resource.core.formats.gguf import ValueType
from genaid_server.supervision.model_lock import held, lock_of
from resource_service import Resource, resource_service
from unit.formats.gguf_files import array, language_model, model, pair
from unit.store.store_files import FLUX, sha256, shard_names, shards

REPO = "owner/name"


@pytest.fixture
async def hub() -> AsyncIterator[HubServer]:
    async with HubServer().serving() as running:
        yield running


@pytest.fixture
async def resource(tmp_path: Path, hub: HubServer) -> AsyncIterator[Resource]:
    async with resource_service(tmp_path / "data", hub) as running:
        yield running


async def imported(resource: Resource, content: bytes, name: str = "a.gguf") -> Model:
    (resource.data_dir / "inbox" / name).write_bytes(content)
    return await resource.client.models.import_(name)


async def downloaded(resource: Resource, *items: DownloadItem) -> Model:
    created = await resource.client.downloads.create(DownloadSpec(items))
    last = [download async for download in resource.client.downloads.watch(created.id)][-1]
    assert last.model is not None, last.error
    return last.model


def on_hub(file: str, component: Component | None = None) -> DownloadItem:
    return DownloadItem(HuggingFaceSource(REPO, file), component)


async def to_its_end(
    call: "grpc.aio.UnaryStreamCall[models_pb2.VerifyModelRequest, models_pb2.VerifyModelResponse]",
) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_downloaded_model_tells_all_about_itself(resource: Resource, hub: HubServer) -> None:
    content = language_model()
    repo = hub.add_repo(REPO, {"quants/Qwen3-8B.Q4_K_M.gguf": content}, license="apache-2.0")
    made = await downloaded(resource, on_hub("quants/Qwen3-8B.Q4_K_M.gguf"))
    assert await resource.client.models.get(made.id) == made
    assert await resource.client.models.list() == [made]
    assert (made.type, made.format, made.size_bytes) == (ModelType.LLM, ModelFormat.GGUF, len(content))
    assert (made.checksum, Path(made.path).read_bytes()) == (sha256(content), content)
    assert made.source is not None
    assert (made.source.type, made.source.repo) == (SourceType.HUGGINGFACE, REPO)
    assert (made.source.file, made.source.license) == ("quants/Qwen3-8B.Q4_K_M.gguf", "apache-2.0")
    assert made.source.revision == repo.revisions["main"]
    assert made.supports_reasoning
    assert (made.layer_count, made.context_length, made.architecture) == (2, 4096, "llama")
    (file,) = made.files
    assert (file.name, file.path, file.checksum) == ("Qwen3-8B.Q4_K_M.gguf", made.path, made.checksum)
    assert (file.component, file.shard, file.source) == (None, 0, made.source)


async def test_shards_and_components_are_one_model_each(resource: Resource, hub: HubServer) -> None:
    hub.add_repo(
        REPO,
        dict(zip(shard_names(3), shards(3), strict=True))
        | {
            f"{component}.{'gguf' if content.startswith(b'GGUF') else 'safetensors'}": content
            for component, content in FLUX.items()
        },
    )
    llm = await downloaded(resource, on_hub(shard_names(3)[0]))
    assert [(file.name, file.shard) for file in llm.files] == [(name, n) for n, name in enumerate(shard_names(3), 1)]
    assert [Path(file.path).read_bytes() for file in llm.files] == shards(3)
    flux = await downloaded(
        resource,
        on_hub("vae.safetensors", Component.VAE),
        on_hub("clip_l.safetensors", Component.CLIP_L),
        on_hub("diffusion_model.gguf", Component.DIFFUSION_MODEL),
        on_hub("t5xxl.gguf", Component.T5XXL),
    )
    assert flux.type is ModelType.DIFFUSION
    found = {str(file.component): Path(file.path).read_bytes() for file in flux.files}
    assert found == {str(component): content for component, content in FLUX.items()}
    assert (flux.path, flux.files[0].component) == (flux.files[0].path, Component.DIFFUSION_MODEL)
    assert (await resource.client.models.list(ModelType.DIFFUSION)) == [flux]
    await resource.client.models.delete(flux.id)
    assert await resource.client.models.list() == [llm]


async def test_the_whole_header_is_there_on_request(resource: Resource) -> None:
    pairs = [
        pair("general.architecture", ValueType.STRING, "flux"),
        pair("big", ValueType.UINT64, 2**64 - 1),
        pair("words", ValueType.ARRAY, array(ValueType.STRING, ["a"] * 2000)),
    ]
    made = await imported(resource, model(pairs, [("a", (4,))]))
    assert await resource.client.models.get_raw_metadata(made.id) == {
        "general.architecture": "flux",
        "big": 2**64 - 1,
        "words": {"type": "string[]", "length": 2000},
    }
    plain = await resource.models.GetModel(models_pb2.GetModelRequest(model_id=made.id))
    assert plain.raw_metadata_json == ""


async def test_verifying_tells_good_from_bad(resource: Resource) -> None:
    made = await imported(resource, language_model())
    good = [progress async for progress in resource.client.models.verify(made.id)]
    assert all(each.result is None for each in good[:-1])
    assert good[-1].result is Verification.VALID
    assert (good[-1].bytes_done, good[-1].bytes_total) == (made.size_bytes, made.size_bytes)
    Path(made.path).write_bytes(b"other")
    bad = [progress async for progress in resource.client.models.verify(made.id)][-1]
    assert bad.result is Verification.INVALID
    assert [(each.name, each.expected, each.actual) for each in bad.files] == [
        ("a.gguf", made.checksum, sha256(b"other"))
    ]
    with pytest.raises(errors.ModelNotFoundError):
        [progress async for progress in resource.client.models.verify("nothing")]


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes there by default")
async def test_a_service_that_stops_does_not_wait_for_hours_of_hashing(tmp_path: Path, hub: HubServer) -> None:
    async with resource_service(tmp_path, hub) as resource:
        made = await imported(resource, language_model())
        try:
            os.truncate(made.path, 2**42)
        except OSError:
            pytest.skip("this file system has no such large files")
        async with contextlib.aclosing(resource.client.models.verify(made.id)) as left:
            assert (await anext(left)).bytes_total == 2**42
        call = resource.models.VerifyModel(models_pb2.VerifyModelRequest(model_id=made.id))
        assert await call.read() is not grpc.aio.EOF
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await to_its_end(call)


async def test_metadata_is_read_anew_here_or_at_the_source(resource: Resource, hub: HubServer) -> None:
    hub.add_repo(REPO, {"a.gguf": language_model()})
    made = await downloaded(resource, on_hub("a.gguf"))
    Path(made.path).write_bytes(b"damaged")
    assert (await resource.client.models.refresh_metadata(made.id)).metadata == made.metadata
    for strategy in (MetadataStrategy.REMOTE_ONLY, MetadataStrategy.LOCAL_REMOTE, MetadataStrategy.REMOTE_LOCAL):
        fresh = await resource.client.models.refresh_metadata(made.id, strategy=strategy)
        assert fresh.metadata == made.metadata
    with pytest.raises(errors.InvalidRequestError):
        await resource.client.models.refresh_metadata(made.id, strategy=MetadataStrategy.LOCAL_ONLY)
    hub.repos.clear()
    with pytest.raises(errors.DownloadError):
        await resource.client.models.refresh_metadata(made.id, strategy=MetadataStrategy.REMOTE_ONLY)


async def test_an_imported_model_has_no_source_to_ask(resource: Resource) -> None:
    made = await imported(resource, language_model())
    with pytest.raises(errors.DownloadError):
        await resource.client.models.refresh_metadata(made.id, strategy=MetadataStrategy.REMOTE_ONLY)
    assert await resource.client.models.refresh_metadata(made.id) == made


async def test_a_strategy_that_is_none_is_refused(resource: Resource) -> None:
    made = await imported(resource, language_model())
    request = models_pb2.RefreshModelMetadataRequest(model_id=made.id, strategy=99)  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await resource.models.RefreshModelMetadata(request)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_model_that_an_engine_holds_is_not_deleted(resource: Resource) -> None:
    made = await imported(resource, language_model())
    async with held(lock_of(Path(made.path), made.id)):
        with pytest.raises(errors.ServerBusyError):
            await resource.client.models.delete(made.id)
        assert await resource.client.models.list() == [made]
    await resource.client.models.delete(made.id)
    assert await resource.client.models.list() == []


async def test_a_list_shows_what_has_changed(resource: Resource) -> None:
    made = await imported(resource, language_model())
    assert await resource.client.models.list() == [made]
    Path(made.path).write_bytes(model([pair("general.architecture", ValueType.STRING, "gemma3")], [("a", (4,))]))
    fresh = await resource.client.models.refresh_metadata(made.id)
    assert fresh.architecture == "gemma3"
    assert await resource.client.models.list() == [fresh]
    await resource.client.models.delete(made.id)
    again = await imported(resource, language_model(salt=1))
    assert again.id == made.id
    assert await resource.client.models.list() == [again]
