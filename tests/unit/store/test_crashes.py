"""Kill the process at any moment: nothing is ever half there, and nothing is lost.

Before each step that changes the disk, the data directory is copied: a process that is killed there leaves just
that. Then a store is opened on each of the copies.
"""

import asyncio
import shutil
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genaid_server.kit.errors import FileSystemError
from genaid_server.resource.core.store import install_journal, layout
from genaid_server.resource.core.store.install_journal import FileMove
from genaid_server.resource.core.store.model import Component, Model
from genaid_server.resource.core.store.store import ModelStore
from unit.formats.gguf_files import diffusion_model, language_model
from unit.store.store_files import FLUX, Staging, expected_names, names_below, shards

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "open", "os.chmod"}


class Camera:
    """Copies a folder before each change of what is below it, while it is switched on."""

    def __init__(self, subject: Path, album: Path) -> None:
        self.subject, self.album = subject, album
        self.pictures: list[Path] = []
        self.on = self._busy = False

    def look(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or self._busy or event not in CHANGES or not str(args[0]).startswith(str(self.subject)):
            return
        self._busy = True
        try:
            self.take()
        finally:
            self._busy = False

    def take(self) -> None:
        picture = self.album / str(len(self.pictures))
        shutil.copytree(self.subject, picture)
        self.pictures.append(picture)


CAMERAS: list[Camera] = []


@pytest.fixture(scope="module", autouse=True)
def audit_hook() -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        for camera in CAMERAS:
            camera.look(event, args)

    sys.addaudithook(hook)  # for good, but it does nothing without a camera


@contextmanager
def photographed(subject: Path, album: Path) -> Iterator[list[Path]]:
    camera = Camera(subject, album)
    CAMERAS.append(camera)
    try:
        camera.on = True
        yield camera.pictures
        camera.on = False
        camera.take()
    finally:
        CAMERAS.remove(camera)


def waiting_files(data_dir: Path) -> list[bytes]:
    """What lies where files wait to be installed."""
    places = (data_dir / "downloads", data_dir / "inbox")
    return sorted(path.read_bytes() for place in places for path in place.rglob("*") if path.is_file())


def contents_of(model: Model) -> list[bytes]:
    return sorted(file.path.read_bytes() for file in model.files)


async def outcomes(pictures: list[Path]) -> list[tuple[dict[str, list[bytes]], list[bytes]]]:
    """For each picture the models in it with their contents, and the files that wait; none of it is half there."""
    found = []
    for picture in pictures:
        store = await ModelStore.open(picture)
        # The lock of an installed model may stay: engines leave it behind as well.
        locks = {f".{each.id}.lock" for each in store.list()}
        assert {name for name in names_below(store) if Path(name).name not in locks} == expected_names(store)
        found.append(({each.id: contents_of(each) for each in store.list()}, waiting_files(picture)))
        await store.close()
        again = await ModelStore.open(picture)
        assert again.list() == store.list()
        await again.close()
    return found


type Work = Callable[[ModelStore, Staging], Awaitable[Model]]


async def install_file(store: ModelStore, staging: Staging) -> Model:
    return await store.install([staging.file("a.gguf", language_model())])


async def install_shards(store: ModelStore, staging: Staging) -> Model:
    return await store.install(staging.shards(shards(3)))


async def install_components(store: ModelStore, staging: Staging) -> Model:
    return await store.install(staging.components(FLUX))


async def import_file(store: ModelStore, staging: Staging) -> Model:
    (store.inbox / "a.gguf").write_bytes(language_model())
    return await store.import_file("a.gguf")


@pytest.mark.parametrize("install", [install_file, install_shards, install_components, import_file])
async def test_an_installation_that_is_killed_is_undone_or_done(tmp_path: Path, install: Work) -> None:
    # Once to know what comes out, and once to look at it.
    rehearsal = await ModelStore.open(tmp_path / "rehearsal")
    whole = contents_of(await install(rehearsal, Staging(rehearsal)))

    store = await ModelStore.open(tmp_path / "data")
    with photographed(tmp_path / "data", tmp_path / "album") as pictures:
        made = await install(store, Staging(store))
    await store.close()
    found = await outcomes(pictures)
    # While the files are being laid out for it, some are still missing.
    seen = [(models, waiting) for models, waiting in found if models or waiting == whole]
    assert all(models in ({}, {made.id: whole}) for models, _ in found)
    assert all(waiting == ([] if models else whole) for models, waiting in seen)
    first = found.index(({}, whole))
    assert all(each in (({}, whole), ({made.id: whole}, [])) for each in found[first:])
    assert found[-1] == ({made.id: whole}, [])
    assert len(found[first:]) > 4


@pytest.mark.parametrize("linked", [True, False])
async def test_a_shared_shard_never_leaves_its_first_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    if not linked:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "no links on this file system")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    store = await ModelStore.open(tmp_path / "data")
    staging = Staging(store)
    first = await store.install(staging.shards(shards(3)), model_id="first")
    staged = staging.shards(shards(3))
    staged[1].path.unlink()
    staged[1] = replace(staged[1], path=first.files[1].path)
    with photographed(tmp_path / "data", tmp_path / "album") as pictures:
        await store.install(staged, model_id="second")
    await store.close()
    whole = sorted(shards(3))
    waiting = sorted([shards(3)[0], shards(3)[2]])
    found = await outcomes(pictures)
    assert all(each in (({"first": whole}, waiting), ({"first": whole, "second": whole}, [])) for each in found)
    assert found[0] == ({"first": whole}, waiting)
    assert found[-1] == ({"first": whole, "second": whole}, [])


async def test_a_removal_that_is_killed_is_done_at_the_next_start(tmp_path: Path) -> None:
    store = await ModelStore.open(tmp_path / "data")
    staging = Staging(store)
    await store.install(staging.components(FLUX), model_id="first")
    other = FLUX | {Component.DIFFUSION_MODEL: diffusion_model("Other")}
    await store.install(staging.components(other), model_id="second")
    await store.install(staging.shards(shards(2)), model_id="third")
    with photographed(tmp_path / "data", tmp_path / "album") as pictures:
        await store.delete("first")
        await store.delete("third")
    await store.close()
    found = [models for models, _ in await outcomes(pictures)]
    assert all(set(each) in ({"first", "second", "third"}, {"second", "third"}, {"second"}) for each in found)
    assert (set(found[0]), set(found[-1])) == ({"first", "second", "third"}, {"second"})
    assert all(each["second"] == sorted(other.values()) for each in found)


async def test_where_the_record_cannot_be_written_all_files_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await ModelStore.open(tmp_path / "data")
    staged = Staging(store).shards(shards(3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layout.StoreLayout, "write_record", full)
    with pytest.raises(FileSystemError, match="No space left"):
        await store.install(staged)
    assert [file.path.read_bytes() for file in staged] == shards(3)
    assert names_below(store) == set()
    assert list((store.inbox.parent / "models" / "llm").iterdir()) == []
    monkeypatch.undo()
    assert contents_of(await store.install(staged)) == sorted(shards(3))


async def test_a_caller_that_leaves_while_files_move_finds_the_model_installed(tmp_path: Path) -> None:
    store = await ModelStore.open(tmp_path / "data")
    staged = Staging(store).shards(shards(3))
    for _ in range(20):
        caller = asyncio.create_task(store.install(staged))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        if store.list():
            break
        assert [file.path.read_bytes() for file in staged] == shards(3)
    assert names_below(store) == expected_names(store)


def journal(root: Path, moves: list[FileMove]) -> Path:
    """The journal that a process leaves which is killed before it moves anything."""
    path = install_journal.journal_of(root / "models" / "llm", "x")

    def stop() -> None:
        shutil.copy(path, root / "kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install_journal.install_files(root, path, moves, stop, threading.Event())
    (root / "kept").rename(path)
    return path


async def test_a_file_that_somebody_put_where_one_was_to_go_is_left_alone(tmp_path: Path) -> None:
    store = await ModelStore.open(tmp_path)
    staged = Staging(store).file("a.gguf", language_model())
    target = tmp_path / "models" / "llm" / "a.gguf"
    path = journal(tmp_path, [FileMove(staged.path, target, len(language_model()))])
    target.write_bytes(b"somebody's")
    await ModelStore.open(tmp_path)
    assert target.read_bytes() == b"somebody's"
    assert staged.path.read_bytes() == language_model()
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"{" * 10_000,
        b'{"files": [{}]}',
        b'{"files": [{"from": "../outside", "to": "models/llm/a.gguf", "size_bytes": 7, "shared": false}]}',
        b'{"files": [{"from": "inbox/a.gguf", "to": "../outside", "size_bytes": 7, "shared": true}]}',
        b'{"files": [{"from": "inbox/a.gguf", "to": "/outside", "size_bytes": 7, "shared": true}]}',
        b" " * 2**21,
    ],
)
async def test_a_damaged_journal_moves_nothing(tmp_path: Path, content: bytes) -> None:
    store = await ModelStore.open(tmp_path / "data")
    outside, inside = tmp_path / "outside", tmp_path / "data" / "models" / "llm" / "a.gguf"
    outside.write_bytes(b"outside")
    inside.write_bytes(b"inside!")
    path = install_journal.journal_of(inside.parent, "x")
    path.write_bytes(content)
    again = await ModelStore.open(tmp_path / "data")
    assert again.list() == store.list() == ()
    assert (outside.read_bytes(), inside.read_bytes(), path.read_bytes()) == (b"outside", b"inside!", content)


async def test_a_damaged_tombstone_removes_nothing(tmp_path: Path) -> None:
    store = await ModelStore.open(tmp_path)
    made = await store.install([Staging(store).file("a.gguf", language_model())])
    for content in (b"", b'{"files": [{"path": "../a.gguf"}]}', b'{"files": [{"path": "inbox/a.gguf"}]}'):
        (tmp_path / "inbox" / "a.gguf").write_bytes(b"inbox")
        tombstone = made.path.with_name(f".gone{layout.TOMBSTONE}")
        tombstone.write_bytes(content)
        assert (await ModelStore.open(tmp_path)).list() == (made,)
        assert tombstone.exists()
        assert (tmp_path / "inbox" / "a.gguf").exists()


async def test_a_tombstone_never_takes_what_a_model_has(tmp_path: Path) -> None:
    store = await ModelStore.open(tmp_path)
    made = await store.install([Staging(store).file("a.gguf", language_model())])
    record = made.path.with_name(f"{made.id}.json")
    shutil.copy(record, made.path.with_name(f".gone{layout.TOMBSTONE}"))
    again = await ModelStore.open(tmp_path)
    assert again.list() == (made,)
    assert names_below(again) == expected_names(again)
