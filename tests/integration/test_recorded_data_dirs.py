"""What earlier versions have written opens: see record_data_dir."""

import json
import logging
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fakes.faulty_http import ServedFile
from fakes.hub_server import HubServer
from genaid_client import AsyncClient, DownloadPhase, ImageNeed
from genaid_server import settings as configuration
from genaid_server.image.core.progress import Calibration
from genaid_server.image.core.spec import GenerationSpec
from genaid_server.resource import main as resource
from llm_service import PATIENCE, FakeProgram, LlmService, fake_program
from record_data_dir import HALF, HUB, RECORDED

VERSIONS = sorted(path for path in RECORDED.iterdir() if path.is_dir())


@dataclass(frozen=True)
class Opened:
    """A manager that has opened a copy of a recorded directory, and what it must find there."""

    service: LlmService
    expected: dict[str, Any]
    half: ServedFile
    """What the half-done download is of."""


def copied(recorded: Path, data_dir: Path, hub: str, expected: dict[str, Any]) -> None:
    """Copy a directory, with the hub where it is now, and as if the finished download had just ended."""
    shutil.copytree(recorded / "data", data_dir)
    for path in data_dir.rglob("*.json"):
        text = path.read_text("utf-8").replace(HUB, hub).replace(str(expected["ended_at"]), str(time.time()))
        path.write_text(text, "utf-8")


@asynccontextmanager
async def opened(recorded: Path, folder: Path, program: FakeProgram) -> AsyncIterator[Opened]:
    """Open a copy of a recorded directory, with a hub that has what was half done."""
    expected = json.loads((recorded / "expected.json").read_text("utf-8"))
    async with HubServer().serving() as hub:
        half = hub.add_file("half.gguf", (recorded / "half.gguf").read_bytes(), etag='"half"')
        copied(recorded, folder / "data", hub.url, expected)
        config = configuration.load(
            flags={
                "data_dir": folder / "data",
                "resource": {"listen": "127.0.0.1:0"},
                "downloads": {"reserve_bytes": 0},
                "llm": {"port": 0, "program": program.name, "reload_delay_seconds": 0.05},
            }
        )
        async with resource.serve(config) as address, AsyncClient(resource=str(address), timeout=PATIENCE) as client:
            yield Opened(LlmService(client, str(address), folder / "data"), expected, half)


@pytest.fixture
def program(tmp_path: Path) -> FakeProgram:
    return fake_program(tmp_path)


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
async def found(request: pytest.FixtureRequest, tmp_path: Path, program: FakeProgram) -> AsyncIterator[Opened]:
    async with opened(request.param, tmp_path, program) as running:
        yield running


def test_there_is_something_to_open() -> None:
    assert "0.1.0" in [path.name for path in VERSIONS]


async def test_models_are_listed_and_are_what_they_were(found: Opened) -> None:
    client, expected = found.service.client, found.expected["models"]
    models = [[model.id, model.name, str(model.type), model.checksum] for model in await client.models.list()]
    assert [model for model in models if model in expected] == expected  # the half-done one may be there already
    for identity, *_ in expected:
        assert [progress async for progress in client.models.verify(identity)][-1].result == "valid"


async def test_a_download_is_remembered_and_the_other_goes_on_where_it_was(found: Opened) -> None:
    client, expected = found.service.client, found.expected
    installed = await client.downloads.get(expected["installed_download"])
    assert (installed.phase, installed.model is not None) == (DownloadPhase.INSTALLED, True)
    half = [download async for download in client.downloads.watch(expected["half_done_download"])][-1]
    assert half.phase is DownloadPhase.INSTALLED, half.error
    assert half.model is not None
    assert Path(half.model.path).read_bytes() == found.half.content
    assert [seen.range for seen in found.half.gets] == [f"bytes={HALF}-"]


async def test_the_llm_comes_back(found: Opened) -> None:
    offloaded = await found.service.client.orchestration.get_offloaded_llm(found.expected["llm"]["model_id"])
    assert offloaded is not None
    assert offloaded.config.context_size == found.expected["llm"]["context_size"]
    back = await found.service.back(generation=1)
    assert back.model_id == found.expected["llm"]["model_id"]
    assert back.config == offloaded.config


async def test_what_was_measured_still_counts(found: Opened, tmp_path: Path) -> None:
    drawn = found.expected["drawn"]
    need = ImageNeed(drawn["model_id"], drawn["width"], drawn["height"])
    assert (await found.service.client.orchestration.plan_image_generation(need)).measured
    spec = GenerationSpec("a fox", width=drawn["width"], height=drawn["height"])
    measured = Calibration(found.service.data_dir / "calibration.json").expect(drawn["model_id"], "cpu", spec)
    assert measured != Calibration(tmp_path / "none.json").expect(drawn["model_id"], "cpu", spec)


@pytest.mark.parametrize("recorded", VERSIONS, ids=lambda path: path.name)
async def test_nothing_is_passed_over(
    recorded: Path, tmp_path: Path, program: FakeProgram, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with opened(recorded, tmp_path, program) as found:
        await found.service.back(generation=1)
        client, identity = found.service.client, found.expected["half_done_download"]
        assert [download async for download in client.downloads.watch(identity)][-1].phase is DownloadPhase.INSTALLED
    assert [record.getMessage() for record in caplog.records if record.name.startswith("genaid")] == []
    kept = {path.name for path in (tmp_path / "data").rglob("*") if path.is_file()}
    gone = {path.name for path in (recorded / "data").rglob("*") if path.is_file()} - kept
    assert gone == {"0.partial", "llm.json"}  # installed, and ended in order


async def test_what_can_not_be_read_is_told(
    tmp_path: Path, program: FakeProgram, caplog: pytest.LogCaptureFixture
) -> None:
    """So that the test above can fail."""
    damaged = tmp_path / "recorded"
    shutil.copytree(VERSIONS[-1], damaged)
    for name in ("llm.json", "memory-usage.json", "models/llm/whole.json"):
        (damaged / "data" / name).write_text("{", "utf-8")
    async with opened(damaged, tmp_path, program) as found:
        assert "whole" not in [model.id for model in await found.service.client.models.list()]
        assert await found.service.client.orchestration.get_offloaded_llm() is None
    assert len([record for record in caplog.records if record.name.startswith("genaid")]) >= 3
