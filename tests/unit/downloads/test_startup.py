"""What an earlier process has left behind never keeps the service down: it is logged, and removed another time."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.scripted_remote import ScriptedRemote, Served
from genaid_server.kit.errors import FileSystemError
from genaid_server.resource.core.downloads.manager import DownloadLimits, DownloadPhase, Downloads, DownloadSpec
from genaid_server.resource.core.downloads.remote import Item
from genaid_server.resource.core.store.store import ModelStore
from unit.formats.gguf_files import language_model

URL = "http://models.test/tiny.gguf"
NOBODYS = "0123456789abcdef"


def removal_refused_of(path: Path) -> Callable[..., None]:
    """A `shutil.rmtree` that fails as Windows does while somebody else has a file open."""
    remove = shutil.rmtree

    def refuse(tree: Path, *args: Any, **options: Any) -> None:
        if Path(tree) == path:
            raise PermissionError(13, "The process cannot access the file")
        remove(tree, *args, **options)

    return refuse


async def installed(folder: Path) -> str:
    """Download a model and return the download's id."""
    store = await ModelStore.open(folder)
    remote = ScriptedRemote({URL: Served(language_model())})
    async with Downloads(folder, store, remote, DownloadLimits(reserve_bytes=0)) as downloads:
        made = await downloads.create(DownloadSpec((Item(URL),)))
        last = [each async for each in downloads.watch(made.id)][-1]
        assert last.phase is DownloadPhase.INSTALLED
    await store.close()
    return made.id


@pytest.mark.parametrize("whose", ["one that is installed", "one that is forgotten", "nobody"])
async def test_bytes_that_can_not_be_removed_are_removed_another_time(
    whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = await installed(tmp_path)
    journal = tmp_path / "downloads" / f"{made}.json"
    if whose == "one that is forgotten":
        text = journal.read_text()
        at = text.index('"updated_at": ')
        journal.write_text(text[:at] + '"updated_at": 1.0' + text[text.index(",", at) :])
    leftover = tmp_path / "downloads" / (NOBODYS if whose == "nobody" else made)
    leftover.mkdir()
    (leftover / "0.partial").write_bytes(b"x")
    with monkeypatch.context() as busy:
        busy.setattr(shutil, "rmtree", removal_refused_of(leftover))
        assert (await listed(tmp_path)) == ([] if whose == "one that is forgotten" else [made])
    assert leftover.exists()
    assert [leftover.name in record.message for record in caplog.records if "Can't remove" in record.message] == [True]
    await listed(tmp_path)
    assert not leftover.exists()


async def listed(folder: Path) -> list[str]:
    """The downloads of a service that is started."""
    store = await ModelStore.open(folder)
    async with Downloads(folder, store, ScriptedRemote({}), DownloadLimits()) as downloads:
        assert [each.name for each in store.list()] == ["Tiny Llama"]
        found = [each.id for each in downloads.newest_first()]
    await store.close()
    return found


async def test_a_file_in_the_place_of_the_folder_is_no_leftover(tmp_path: Path) -> None:
    (tmp_path / "downloads").write_bytes(b"")
    store = await ModelStore.open(tmp_path)
    with pytest.raises(FileSystemError):
        async with Downloads(tmp_path, store, ScriptedRemote({}), DownloadLimits()):
            pass
    await store.close()
