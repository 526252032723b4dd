"""Downloads and the service that fetches: killed at many points, stopped, out of disk; with real processes."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from conftest import DemoModels
from fakes.faulty_http import ServedFile
from fakes.hub_server import HubServer
from genaid_client import AsyncClient, Download, DownloadItem, DownloadPhase, DownloadSpec, HuggingFaceSource
from support import RunningGenaid, running_genaid

NEAR = 16 * 1024 * 1024
"""Bytes that may be on their way between the source and the disk."""
QUICK = {"GENAID_DOWNLOADS__FIRST_DELAY_SECONDS": "0.05", "GENAID_DOWNLOADS__RESERVE_BYTES": "0"}


@pytest.fixture
async def hub() -> AsyncIterator[HubServer]:
    async with HubServer().serving() as server:
        yield server


@asynccontextmanager
async def genaid(data_dir: Path, **env: str) -> AsyncIterator[RunningGenaid]:
    """`genaid up` beside the test's event loop, which serves its downloads."""
    manager = running_genaid(data_dir, env=QUICK | env)
    running = await asyncio.to_thread(manager.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


async def last(client: AsyncClient, identity: str) -> Download:
    return [download async for download in client.downloads.watch(identity)][-1]


async def fetched(client: AsyncClient, identity: str, least: int) -> Download:
    """Wait until so many bytes are there."""
    async for download in client.downloads.watch(identity):
        if download.bytes_done >= least:
            return download
        assert not download.phase.terminal, download.error
    raise AssertionError("the watch ended")


def kill(running: RunningGenaid) -> None:
    running.process.kill()
    running.process.wait()


async def assert_whole(client: AsyncClient, file: ServedFile, download: Download) -> None:
    assert download.phase is DownloadPhase.INSTALLED, download.error
    assert download.model is not None
    content = await asyncio.to_thread(Path(download.model.path).read_bytes)
    assert hashlib.sha256(content).hexdigest() == file.sha256()
    assert download.model.checksum == f"sha256:{file.sha256()}"
    assert [model.id for model in await client.models.list()] == [download.model.id]


@pytest.mark.parametrize("points", [1, pytest.param(10, marks=pytest.mark.long)])
async def test_kill_9_at_points_of_a_download(
    tmp_path: Path, demo_models: DemoModels, hub: HubServer, points: int
) -> None:
    file = hub.add_file("model.gguf", demo_models.diffusion)
    identity = ""
    for point in range(points):
        offset = file.size * (2 * point + 1) // (2 * points)
        file.fail(stall_at=offset, stalls=1)
        async with genaid(tmp_path) as running, AsyncClient(resource=running.ready["resource"]) as client:
            if not identity:
                spec = DownloadSpec((DownloadItem(hub.file_url("model.gguf")),))
                identity = (await client.downloads.create(spec)).id
            await fetched(client, identity, max(0, offset - NEAR))
            kill(running)
    file.fail()
    async with genaid(tmp_path) as running, AsyncClient(resource=running.ready["resource"]) as client:
        await assert_whole(client, file, await last(client, identity))
    assert not list((tmp_path / "downloads").rglob("*.partial"))


async def test_a_stop_in_the_middle_and_a_start_go_on(tmp_path: Path, demo_models: DemoModels, hub: HubServer) -> None:
    hub.add_repo("maker/demo", {"demo.gguf": demo_models.diffusion})
    file = hub.repos["maker/demo"].file("demo.gguf")
    file.fail(stall_at=file.size // 2, stalls=1)
    hub_env = {"GENAID_DOWNLOADS__HUB_ENDPOINT": hub.url}
    async with genaid(tmp_path, **hub_env) as running, AsyncClient(resource=running.ready["resource"]) as client:
        spec = DownloadSpec((DownloadItem(HuggingFaceSource("maker/demo", "demo.gguf")),))
        identity = (await client.downloads.create(spec)).id
        await fetched(client, identity, file.size // 2 - NEAR)
        assert await asyncio.to_thread(running.stop) == 0
    sent = file.bytes_sent
    async with genaid(tmp_path, **hub_env) as running, AsyncClient(resource=running.ready["resource"]) as client:
        download = await last(client, identity)
        await assert_whole(client, file, download)
        assert download.model is not None
        assert download.model.source is not None
        assert download.model.source.repo == "maker/demo"
        assert len(download.model.source.revision) == 40
    assert file.bytes_sent - sent < file.size * 0.7


async def test_a_full_disk_is_said_before_anything_is_fetched(
    tmp_path: Path, demo_models: DemoModels, hub: HubServer
) -> None:
    file = hub.add_file("model.gguf", demo_models.diffusion)
    reserve = {"GENAID_DOWNLOADS__RESERVE_BYTES": str(2**60)}
    async with genaid(tmp_path, **reserve) as running, AsyncClient(resource=running.ready["resource"]) as client:
        spec = DownloadSpec((DownloadItem(hub.file_url("model.gguf")),))
        failed = await last(client, (await client.downloads.create(spec)).id)
        assert failed.error is not None
        assert failed.error.code == "INSUFFICIENT_RESOURCES"
        assert {"required", "available", "suggestion"} <= set(failed.error.facts)
        assert file.bytes_sent < file.size // 10
        assert await client.models.list() == []


async def test_a_wrong_checksum_leaves_nothing_and_touches_nothing(
    tmp_path: Path, demo_models: DemoModels, hub: HubServer
) -> None:
    good = hub.add_file("model.gguf", demo_models.llm)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(genaid(tmp_path))
        client = await stack.enter_async_context(AsyncClient(resource=running.ready["resource"]))
        item = DownloadItem(hub.file_url("model.gguf"), checksum=f"SHA256:{good.sha256().upper()}")
        installed = await last(client, (await client.downloads.create(DownloadSpec((item,), name="Same"))).id)
        await assert_whole(client, good, installed)
        hub.add_file("other.gguf", demo_models.diffusion)
        bad = DownloadItem(hub.file_url("other.gguf"), checksum="sha256:" + "0" * 64)
        failed = await last(client, (await client.downloads.create(DownloadSpec((bad,), name="Same"))).id)
        assert failed.error is not None
        assert failed.error.code == "CHECKSUM_ERROR"
        await assert_whole(client, good, installed)
    assert not list((tmp_path / "downloads").rglob("*.partial"))
