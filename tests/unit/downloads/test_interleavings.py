"""Commands at every turn of the event loop while a download is at work: all answers about it agree."""

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.scripted_remote import Break, End, Refuse, ScriptedRemote, Served, sha256
from genaid_server.kit.errors import (
    AlreadyTerminalError,
    DomainError,
    FileSystemError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
)
from genaid_server.resource.core.downloads import disk_space, job
from genaid_server.resource.core.downloads.manager import (
    Download,
    DownloadLimits,
    DownloadPhase,
    Downloads,
    DownloadSpec,
)
from genaid_server.resource.core.downloads.remote import Item
from genaid_server.resource.core.store.model import Component
from genaid_server.resource.core.store.store import ModelStore
from turns import in_lockstep, outcome, turns, within_turns
from unit.downloads import download_service
from unit.formats.gguf_files import diffusion_model, language_model
from unit.store.store_files import expected_names, names_below, safetensors

URL = "http://models.test/tiny.gguf"
CONTENT = language_model()
LIMITS = DownloadLimits(reserve_bytes=0, stall_seconds=60.0, attempts=2)


@pytest.fixture(autouse=True)
def _shown_at_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "TICK", 0)


def running(folder: Path, remote: ScriptedRemote) -> AbstractAsyncContextManager[tuple[Downloads, ModelStore]]:
    return download_service.running(folder, remote, LIMITS)


async def last_of(downloads: Downloads, download_id: str) -> Download:
    """What a watch shows at its end."""
    return [download async for download in downloads.watch(download_id)][-1]


def phase_on_disk(folder: Path, download_id: str) -> str:
    phase: str = json.loads((folder / "downloads" / f"{download_id}.json").read_text())["phase"]
    return phase


def a_model(checksum: str = "") -> ScriptedRemote:
    return ScriptedRemote({URL: Served(CONTENT, checksum=checksum)})


async def nothing(folder: Path) -> None:
    folder.mkdir()


async def a_model_that_is_installed(folder: Path) -> None:
    """The model is there, and the download that brought it is forgotten, as after a week."""
    async with running(folder, a_model(sha256(CONTENT))) as (downloads, _):
        made = await downloads.create(DownloadSpec((Item(URL),)))
        assert (await within_turns(last_of(downloads, made.id))).phase is DownloadPhase.INSTALLED
    (folder / "downloads" / f"{made.id}.json").unlink()


async def bytes_of_an_earlier_try(folder: Path) -> None:
    remote = a_model(sha256(CONTENT))
    remote.fail(URL, *[End(10**6)] * 2, Break(100), Refuse(permanent=True))
    async with running(folder, remote) as (downloads, _):
        made = await downloads.create(DownloadSpec((Item(URL),)))
        last = await within_turns(last_of(downloads, made.id))
        assert (last.phase, last.bytes_done) == (DownloadPhase.FAILED, 100)


SPARSE = 7
"""Turns between two that are tried where each is the business of the long tests."""


@pytest.mark.parametrize(
    ("before", "step"),
    [
        (a_model_that_is_installed, 1),
        (nothing, SPARSE),
        (bytes_of_an_earlier_try, SPARSE),
        pytest.param(nothing, 1, marks=pytest.mark.long),
        pytest.param(bytes_of_an_earlier_try, 1, marks=pytest.mark.long),
    ],
)
async def test_a_cancellation_at_any_turn_has_one_outcome(
    before: Callable[[Path], Awaitable[None]], step: int, tmp_path: Path
) -> None:
    in_lockstep()
    await before(tmp_path / "before")
    phases, turn, over = Counter[DownloadPhase](), 0, False
    while not over:
        folder = tmp_path / str(turn)
        shutil.copytree(tmp_path / "before", folder)
        remote = a_model(sha256(CONTENT))
        async with running(folder, remote) as (downloads, store):
            installed_before = len(store.list())
            creating = asyncio.create_task(downloads.create(DownloadSpec((Item(URL),))))
            await turns(1)
            (listed, *_) = downloads.newest_first()
            watching = asyncio.create_task(last_of(downloads, listed.id))
            await turns(turn)
            over = downloads.get(listed.id).phase.terminal
            answer = await within_turns(outcome(downloads.cancel(listed.id), AlreadyTerminalError))
            shown = downloads.get(listed.id)
            assert (await within_turns(last_of(downloads, listed.id))) == shown
            assert (await asyncio.wait_for(watching, 30)) == shown
            assert (await asyncio.wait_for(creating, 30)).id == listed.id
            assert phase_on_disk(folder, listed.id) == shown.phase
            assert not (folder / "downloads" / listed.id).exists()
            if isinstance(answer, Download):
                assert answer == shown
                assert shown.phase is DownloadPhase.CANCELLED
                assert len(store.list()) == installed_before
            else:
                assert shown.phase is DownloadPhase.INSTALLED
                assert store.get(shown.model_id).path.read_bytes() == CONTENT
            phases[shown.phase] += 1
        shutil.rmtree(folder)
        turn += step
    assert phases.keys() == {DownloadPhase.CANCELLED, DownloadPhase.INSTALLED}


@pytest.mark.parametrize("step", [SPARSE, pytest.param(1, marks=pytest.mark.long)])
async def test_a_service_that_closes_at_any_turn_has_written_down_what_it_accepted(step: int, tmp_path: Path) -> None:
    in_lockstep()
    turn, over = 0, False
    while not over:
        folder = tmp_path / str(turn)
        async with running(folder, a_model()) as (downloads, _):
            creating = asyncio.create_task(outcome(downloads.create(DownloadSpec((Item(URL),)), "key"), ServerError))
            await turns(turn)
            over = bool(downloads.newest_first()) and downloads.newest_first()[0].phase.terminal
        created = await within_turns(outcome(asyncio.wait_for(creating, 30)))
        assert left_of(folder) <= ({created.id} if isinstance(created, Download) else set())
        async with running(folder, a_model()) as (downloads, store):
            if isinstance(created, Download):
                assert (await within_turns(last_of(downloads, created.id))).phase is DownloadPhase.INSTALLED
                assert len(store.list()) == 1
            else:
                assert downloads.newest_first() == ()
        shutil.rmtree(folder)
        # All of the first ones, in which it is accepted.
        turn += 1 if turn < 3 * SPARSE else step
    assert turn > 3 * SPARSE


def left_of(folder: Path) -> set[str]:
    """Whose journals and bytes there are."""
    return {path.stem for path in (folder / "downloads").iterdir()}


async def test_of_two_downloads_that_fit_only_alone_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_lockstep()
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: len(CONTENT) * 3 // 2)
    urls = [f"http://models.test/{number}.gguf" for number in range(2)]
    remote = ScriptedRemote({url: Served(language_model(salt=number)) for number, url in enumerate(urls)})
    async with running(tmp_path, remote) as (downloads, _):
        made = await asyncio.gather(*(downloads.create(DownloadSpec((Item(url),))) for url in urls))
        last = [await within_turns(last_of(downloads, each.id)) for each in made]
    assert [each.phase for each in last] == [DownloadPhase.INSTALLED, DownloadPhase.FAILED]
    assert last[1].failure is not None
    assert last[1].failure.code == "INSUFFICIENT_RESOURCES"


PARTS = {
    "http://models.test/unet.gguf": (Component.DIFFUSION_MODEL, diffusion_model()),
    "http://models.test/other.gguf": (Component.DIFFUSION_MODEL, diffusion_model("Other")),
    "http://models.test/vae.safetensors": (Component.VAE, safetensors(("decoder.weight",))),
}


def in_parts(*places: int) -> DownloadSpec:
    urls = [list(PARTS)[place] for place in places]
    return DownloadSpec(tuple(Item(url, PARTS[url][0]) for url in urls))


@pytest.mark.parametrize("step", [SPARSE, pytest.param(1, marks=pytest.mark.long)])
async def test_a_shared_file_may_be_deleted_at_any_turn(step: int, tmp_path: Path) -> None:
    in_lockstep()
    turn, over = 0, False
    while not over:
        folder = tmp_path / str(turn)
        remote = ScriptedRemote({url: Served(part, checksum=sha256(part)) for url, (_, part) in PARTS.items()})
        async with running(folder, remote) as (downloads, store):
            first = await downloads.create(in_parts(0, 2))
            model_id = (await within_turns(last_of(downloads, first.id))).model_id
            second = await downloads.create(in_parts(1, 2))
            await turns(turn)
            over = downloads.get(second.id).phase.terminal
            await store.delete(model_id)
            last = await within_turns(last_of(downloads, second.id))
            assert last.phase is DownloadPhase.INSTALLED, last.failure
            assert all(file.path.is_file() for file in store.get(last.model_id).files)
            assert names_below(store) == expected_names(store)
        turn += step
    assert turn > 30


async def test_a_download_that_could_not_be_written_down_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, a_model()) as (downloads, store):
        with monkeypatch.context() as full:
            full.setattr(downloads._journal, "write", no_space)
            with pytest.raises(FileSystemError):
                await downloads.create(DownloadSpec((Item(URL),)), "key")
        assert downloads.newest_first() == ()
        made = await downloads.create(DownloadSpec((Item(URL),)), "key")
        assert (await last_of(downloads, made.id)).phase is DownloadPhase.INSTALLED
        assert len(store.list()) == 1


async def test_a_cancelled_download_stays_cancelled_although_that_could_not_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = a_model()
    remote.fail(URL, *[Refuse()] * 2)
    async with running(tmp_path, remote) as (downloads, _):
        made = await downloads.create(DownloadSpec((Item(URL),)))
        monkeypatch.setattr(downloads._journal, "write", no_space)
        assert (await downloads.cancel(made.id)).phase is DownloadPhase.CANCELLED
    async with running(tmp_path, a_model()) as (downloads, _):
        assert downloads.newest_first() == ()


def no_space(record: object) -> None:
    raise PermissionError(13, "The disk refuses")


# --- anything at any turn

URLS = [f"http://models.test/{number}.gguf" for number in range(3)]
CONTENTS = [language_model("Same", salt=number) for number in range(3)]
COMMANDS = st.one_of(
    st.tuples(st.just("create"), st.integers(0, 2), st.sampled_from(["", "one", "two"])),
    st.tuples(st.just("cancel"), st.integers(0, 5), st.just("")),
    st.tuples(st.just("delete"), st.integers(0, 5), st.just("")),
    st.tuples(st.just("import"), st.integers(0, 2), st.sampled_from(["", "same", "same-2"])),
)


@dataclass
class World:
    """A service, and what it has answered."""

    folder: Path
    remote: ScriptedRemote
    made: list[str] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    imports: int = 0

    async def command(self, downloads: Downloads, store: ModelStore, verb: str, number: int, option: str) -> None:
        if verb == "create":
            made = await downloads.create(DownloadSpec((Item(URLS[number]),)), option)
            self.made.append(made.id)
            assert made.phase is DownloadPhase.CANCELLED or (self.folder / "downloads" / f"{made.id}.json").exists()
        elif verb == "cancel" and self.made:
            download_id = self.made[number % len(self.made)]
            answer = await outcome(downloads.cancel(download_id), AlreadyTerminalError)
            shown = downloads.get(download_id)
            assert shown.phase is DownloadPhase.CANCELLED if isinstance(answer, Download) else shown.phase.terminal
        elif verb == "delete" and store.list():
            model_id = store.list()[number % len(store.list())].id
            self.deleted.add(model_id)
            await store.delete(model_id)
        elif verb == "import":
            self.imports += 1
            name = f"{self.imports}.gguf"
            (store.inbox / name).write_bytes(CONTENTS[number])
            await store.import_file(name, model_id=option)

    def check(self, downloads: Downloads, store: ModelStore) -> None:
        for download in downloads.newest_first():
            assert download.phase.terminal
            assert phase_on_disk(self.folder, download.id) == download.phase
            if download.phase is DownloadPhase.INSTALLED:
                assert download.model_id in {each.id for each in store.list()} | self.deleted
        assert names_below(store) == expected_names(store)
        for model in store.list():
            assert sha256(model.path.read_bytes()) == model.checksum
        assert self.remote.open_bodies == 0


async def play(folder: Path, script: list[tuple[int, tuple[str, int, str]]], closing: int) -> None:
    in_lockstep()
    world = World(folder, ScriptedRemote({url: Served(content) for url, content in zip(URLS, CONTENTS, strict=True)}))
    async with running(folder, world.remote) as (downloads, store):
        tasks = []
        for wait, command in script:
            await turns(wait)
            allowed = (InvalidRequestError, NotFoundError, ServerError)
            tasks.append(asyncio.create_task(outcome(world.command(downloads, store, *command), *allowed)))
        await turns(closing)
    for task in tasks:
        await within_turns(outcome(asyncio.wait_for(task, 30), DomainError))
    async with running(folder, world.remote) as (downloads, store):
        for download in downloads.newest_first():
            await within_turns(last_of(downloads, download.id))
        world.check(downloads, store)
        shown, listed = downloads.newest_first(), store.list()
    async with running(folder, world.remote) as (downloads, store):
        assert (downloads.newest_first(), store.list()) == (shown, listed)


@settings(deadline=None, max_examples=25)
@given(
    script=st.lists(st.tuples(st.integers(0, 60), COMMANDS), max_size=8),
    closing=st.integers(0, 300),
)
async def test_anything_at_any_turn_leaves_one_truth(
    script: list[tuple[int, tuple[str, int, str]]], closing: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await play(Path(folder), script, closing)
