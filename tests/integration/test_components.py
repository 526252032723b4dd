"""A diffusion model of several files, from a hub to a picture, with the real engine."""

from pathlib import Path

import pytest

from fakes.hub_server import HubServer
from genaid_client import (
    Component,
    DownloadItem,
    DownloadPhase,
    DownloadSpec,
    GenerationState,
    HuggingFaceSource,
    ServerBusyError,
)
from genaid_server.demo.models import write_diffusion_parts
from worker import TINY, image_worker

ROLES = {"diffusion_model": Component.DIFFUSION_MODEL, "clip_l": Component.CLIP_L, "tae": Component.TAE}


async def test_components_are_fetched_shared_drawn_with_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = write_diffusion_parts(tmp_path / "parts")
    async with HubServer().serving() as hub:
        hub.add_repo("maker/parts", {path.name: path for path in parts.values()})
        monkeypatch.setenv("GENAID_DOWNLOADS__HUB_ENDPOINT", hub.url)
        monkeypatch.setenv("GENAID_DOWNLOADS__RESERVE_BYTES", "0")
        async with image_worker(tmp_path / "data") as worker:
            items = tuple(
                DownloadItem(HuggingFaceSource("maker/parts", path.name), ROLES[role]) for role, path in parts.items()
            )
            models = []
            for name in ("First", "Second"):
                # A model that is installed already would be returned as it is: the second one has a file less.
                spec = DownloadSpec(items if name == "First" else items[:2], name=name)
                download = await worker.client.downloads.create(spec)
                last = [state async for state in worker.client.downloads.watch(download.id)][-1]
                assert last.phase is DownloadPhase.INSTALLED, last.error
                assert len(last.files) == len(spec.items)
                assert last.model is not None
                models.append(last.model)
            first, second = models
            assert [file.component for file in first.files] == list(ROLES.values())
            assert {file.path for file in second.files} < {file.path for file in first.files}
            created = await worker.client.engine.start(first.id)
            assert created.model_id == first.id
            done = await worker.client.images.create(TINY)
            states = [state async for state in worker.client.images.watch(done.id)]
            assert states[-1].state is GenerationState.COMPLETE, states[-1].error
            with pytest.raises(ServerBusyError):
                await worker.client.models.delete(first.id)
            await worker.client.engine.stop()
            await worker.client.models.delete(first.id)
            assert all(Path(file.path).exists() for file in second.files)
            await worker.client.models.delete(second.id)
            assert not any(Path(file.path).exists() for file in (*first.files, *second.files))
