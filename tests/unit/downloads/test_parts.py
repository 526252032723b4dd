"""The smaller parts of downloads: what is planned, what is remembered, how fast it is."""

import asyncio
from pathlib import Path

import pytest

from fakes.scripted_remote import ScriptedRemote, Served
from genaid_server.resource.core.downloads import journal
from genaid_server.resource.core.downloads import manager as module
from genaid_server.resource.core.downloads.manager import DownloadLimits, Downloads, DownloadSpec
from genaid_server.resource.core.downloads.remote import HubFile, Item
from genaid_server.resource.core.downloads.spec import plan_files, source_name
from genaid_server.resource.core.downloads.speed import WINDOW, Speedometer
from genaid_server.resource.core.store.model import Component
from genaid_server.resource.core.store.store import ModelStore
from unit.formats.gguf_files import language_model

SUM = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("sources", "planned"),
    [
        (["http://a/x.gguf"], [("http://a/x.gguf", 0)]),
        (["http://a/x-00001-of-00001.gguf"], [("http://a/x-00001-of-00001.gguf", 0)]),
        (["http://a/x-00009-of-00002.gguf"], [("http://a/x-00009-of-00002.gguf", 0)]),
        (
            ["http://a/b/x-00002-of-00002.gguf?token=t#part"],
            [
                ("http://a/b/x-00001-of-00002.gguf?token=t#part", 1),
                ("http://a/b/x-00002-of-00002.gguf?token=t#part", 2),
            ],
        ),
        (
            [HubFile("o/r", "q4/x-00001-of-00002.gguf", "v1")],
            [
                (HubFile("o/r", "q4/x-00001-of-00002.gguf", "v1"), 1),
                (HubFile("o/r", "q4/x-00002-of-00002.gguf", "v1"), 2),
            ],
        ),
        (
            ["http://a/x-00002-of-00002.gguf", "http://a/x-00001-of-00002.gguf"],
            [("http://a/x-00001-of-00002.gguf", 1), ("http://a/x-00002-of-00002.gguf", 2)],
        ),
    ],
)
def test_a_shard_stands_for_all_of_them(sources: list[str | HubFile], planned: list[tuple[str | HubFile, int]]) -> None:
    files = plan_files([Item(source) for source in sources])
    assert [(file.item.source, file.shard) for file in files] == planned


def test_a_checksum_stays_with_the_shard_that_it_was_given_for() -> None:
    files = plan_files([Item("http://a/x-00002-of-00003.gguf", checksum=SUM)])
    assert [file.item.checksum for file in files] == ["", SUM, ""]


def test_the_diffusion_model_comes_first() -> None:
    files = plan_files([Item("http://a/v.gguf", Component.VAE), Item("http://a/d.gguf", Component.DIFFUSION_MODEL)])
    assert [file.item.component for file in files] == [Component.DIFFUSION_MODEL, Component.VAE]


def test_a_name_is_the_last_part_of_a_path() -> None:
    assert source_name(Item("http://a/b/my%20model.gguf?x=/y.gguf")) == "my model.gguf"
    assert source_name(Item(HubFile("o/r", "folder/x.gguf"))) == "x.gguf"
    assert source_name(Item("http://a")) == ""


def test_speed_is_that_of_the_last_seconds() -> None:
    speed = Speedometer(100.0)
    assert speed.measure(100.0) == 0.0
    speed.add(1000)
    assert speed.measure(101.0) == 1000.0
    for second in range(2, 20):
        speed.add(500)
        measured = speed.measure(100.0 + second)
    assert measured == 500.0
    assert speed.measure(120.0 + WINDOW) == 0.0


async def test_only_so_many_that_ended_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (journal, module):
        monkeypatch.setattr(each, "KEEP_ENDED", 2)
    urls = [f"http://models.test/{number}.gguf" for number in range(4)]
    remote = ScriptedRemote({url: Served(language_model(salt=number)) for number, url in enumerate(urls)})
    store = await ModelStore.open(tmp_path)
    made = []
    async with Downloads(tmp_path, store, remote, DownloadLimits(reserve_bytes=0)) as downloads:
        for url in urls:
            download = await downloads.create(DownloadSpec((Item(url),)), url)
            made.append([each.id async for each in downloads.watch(download.id)][-1])
    async with Downloads(tmp_path, store, remote, DownloadLimits(reserve_bytes=0)) as downloads:
        assert [each.id for each in downloads.newest_first()] == made[:1:-1]
    assert {path.stem for path in (tmp_path / "downloads").iterdir()} == set(made[2:])
    await store.close()


async def test_a_caller_that_goes_away_takes_nothing_with_it(tmp_path: Path) -> None:
    url = "http://models.test/tiny.gguf"
    store = await ModelStore.open(tmp_path)
    remote = ScriptedRemote({url: Served(language_model())})
    async with Downloads(tmp_path, store, remote, DownloadLimits(reserve_bytes=0)) as downloads:
        caller = asyncio.create_task(downloads.create(DownloadSpec((Item(url),))))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        (download,) = downloads.newest_first()
        last = [each async for each in downloads.watch(download.id)][-1]
        assert store.get(last.model_id)
    await store.close()
