"""Downloads: accepted, checked, fetched, installed or ended, and whole whenever the service dies."""

import asyncio
import json
import logging
import random
import shutil
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.scripted_remote import (
    COMMIT,
    Break,
    End,
    Fault,
    Hold,
    IgnoreRange,
    Refuse,
    Replace,
    ScriptedRemote,
    Served,
    TooMuch,
    sha256,
)
from genaid_server.kit.errors import (
    AlreadyTerminalError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
)
from genaid_server.resource.core.downloads import disk_space
from genaid_server.resource.core.downloads.manager import (
    Download,
    DownloadLimits,
    DownloadPhase,
    Downloads,
    DownloadSpec,
)
from genaid_server.resource.core.downloads.remote import HubFile, Item
from genaid_server.resource.core.formats.gguf import ValueType
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.store.model import Component, SourceType
from genaid_server.resource.core.store.store import ModelStore
from unit.downloads import download_service
from unit.formats.gguf_files import diffusion_model, language_model, model, pair

URL = "http://models.test/tiny.gguf"
LIMITS = DownloadLimits(reserve_bytes=0, stall_seconds=60.0, attempts=4)


def large(name: str = "Large Llama", size: int = 400_000, seed: int = 1) -> bytes:
    """A language model whose last tensor is noise."""
    pairs = [
        pair("general.architecture", ValueType.STRING, "llama"),
        pair("general.name", ValueType.STRING, name),
        pair("tokenizer.ggml.model", ValueType.STRING, "gpt2"),
        pair("test.seed", ValueType.UINT32, seed),
    ]
    content = model(pairs, [("token_embd.weight", (8, 4)), ("blk.0.attn_q.weight", (1024, size // 4096))])
    noise = random.Random(seed).randbytes(size // 4096 * 4096)
    return content[: -len(noise)] + noise


BIG = large()


def running(
    folder: Path, remote: ScriptedRemote, limits: DownloadLimits = LIMITS
) -> AbstractAsyncContextManager[tuple[Downloads, ModelStore]]:
    return download_service.running(folder, remote, limits)


def one(content: bytes = BIG, *faults: Fault, url: str = URL, **served: object) -> ScriptedRemote:
    """A source with one file; the faults happen once its header was read."""
    remote = ScriptedRemote({url: Served(content, **served)}, chunk=10_000)  # type: ignore[arg-type]
    if faults:
        remote.fail(url, *after_header(content, *faults))
    return remote


def after_header(content: bytes, *faults: Fault) -> list[Fault]:
    """The faults, after the requests that read the header of a file."""
    requests = -(-len(content) // 65_536)  # the first piece; then whatever the parser asks for
    return [*[End(10**9)] * min(2, requests), *faults]


def spec(*sources: str | HubFile, **options: object) -> DownloadSpec:
    return DownloadSpec(tuple(Item(source) for source in sources), **options)  # type: ignore[arg-type]


async def ended(downloads: Downloads, download: Download) -> Download:
    """The download at its end; meanwhile nothing of it falls."""
    done, last = [0] * len(download.files), download
    async for last in downloads.watch(download.id):
        now = [file.bytes_done for file in last.files]
        assert all(new >= old for old, new in zip(done, now, strict=True)), "progress fell"
        assert last.bytes_done == sum(now)
        done = now
    return last


def left_over(folder: Path) -> set[str]:
    """What lies in the folder of downloads, apart from journals."""
    return {path.name for path in (folder / "downloads").rglob("*") if path.suffix != ".json"}


async def test_a_model_is_downloaded_and_installed(tmp_path: Path) -> None:
    remote = one(checksum=sha256(BIG))
    async with running(tmp_path, remote) as (downloads, store):
        download = await downloads.create(spec(URL, name="My Model"))
        assert download.phase is DownloadPhase.QUEUED
        phases = [seen.phase async for seen in downloads.watch(download.id)]
        assert phases == sorted(phases, key=list(DownloadPhase).index)
        assert phases[-1] is DownloadPhase.INSTALLED
        last = downloads.get(download.id)
        installed = store.get(last.model_id)
        assert (installed.name, installed.type, installed.checksum) == ("My Model", ModelType.LLM, sha256(BIG))
        assert installed.path.read_bytes() == BIG
        assert (installed.source.type, installed.source.url, installed.source.etag) == (SourceType.URL, URL, '"one"')
        assert (last.bytes_done, last.bytes_total, last.retries) == (len(BIG), len(BIG), 0)
        assert left_over(tmp_path) == set()


async def test_the_log_has_a_line_for_the_begin_and_the_end_and_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "genaid_server")
    async with running(tmp_path, one()) as (downloads, _):
        good = await ended(downloads, await downloads.create(spec(URL, model_id="tiny")))
        bad = await ended(downloads, await downloads.create(spec("http://models.test/none.gguf?token=s3cret")))
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("log_lines")]
    assert [line for line in lines if good.id in line] == [
        f"download {good.id} begins: tiny.gguf",
        f"download {good.id} ended: installed as tiny",
    ]
    assert [line for line in lines if bad.id in line] == [
        f"download {bad.id} begins: none.gguf",
        f"download {bad.id} failed: DOWNLOAD_FAILED: The source has no file http://models.test/none.gguf",
    ]
    assert len(lines) == 4
    assert "s3cret" not in caplog.text


async def test_the_hub_s_commit_and_license_are_kept(tmp_path: Path) -> None:
    remote = ScriptedRemote({"sub/tiny.gguf": Served(language_model())})
    async with running(tmp_path, remote) as (downloads, store):
        download = await downloads.create(spec(HubFile("owner/repo", "sub/tiny.gguf")))
        source = store.get((await ended(downloads, download)).model_id).source
        assert (source.repo, source.file, source.revision, source.license) == (
            *("owner/repo", "sub/tiny.gguf"),
            *(COMMIT, "mit"),
        )


# --- what is asked for


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (DownloadSpec(()), "items"),
        (spec("ftp://models.test/a.gguf"), "items[0].source"),
        (spec("file:///etc/passwd"), "items[0].source"),
        (spec("http://"), "items[0].source"),
        (spec("http://user:secret@models.test/a.gguf"), "items[0].source"),
        (spec("http://models.test/a b.gguf"), "items[0].source"),
        (spec("http://models.test:99999/a.gguf"), "items[0].source"),
        (spec("http://models.test/" + "a" * 3000), "items[0].source"),
        (spec(URL, "http://models.test/model.ckpt"), "items[1].source"),
        (spec("http://models.test/model.PT?x=y"), "items[0].source"),
        (spec(HubFile("norepo", "a.gguf")), "items[0].source"),
        (spec(HubFile("../..", "a.gguf")), "items[0].source"),
        (spec(HubFile("owner/repo", "../a.gguf")), "items[0].source"),
        (spec(HubFile("owner/repo", "/a.gguf")), "items[0].source"),
        (spec(HubFile("owner/repo", "pytorch_model.bin")), "items[0].source"),
        (spec(HubFile("owner/repo", "README.md")), "items[0].source"),
        (spec(HubFile("owner/repo", "a.gguf", "../main")), "items[0].source"),
        (spec(HubFile("owner/repo", "a.gguf", "")), "items[0].source"),
        (DownloadSpec((Item(URL, checksum="md5:" + "0" * 64),)), "items[0].checksum"),
        (DownloadSpec((Item(URL, checksum="sha256:" + "0" * 63),)), "items[0].checksum"),
        (DownloadSpec((Item(URL, Component.VAE),)), "items"),
        (DownloadSpec((Item(URL, Component.DIFFUSION_MODEL), Item(f"{URL}2"))), "items"),
        (DownloadSpec((Item(URL, Component.DIFFUSION_MODEL), Item(f"{URL}2", Component.DIFFUSION_MODEL))), "items"),
        (DownloadSpec((Item(URL, Component.DIFFUSION_MODEL),), model_type=ModelType.LLM), "type"),
        (spec(URL, "http://models.test/other.gguf"), "items"),
        (spec(URL, name="a\nb"), "name"),
        (spec(URL, model_id="Not An Id"), "model_id"),
    ],
)
async def test_what_can_not_be_right_is_refused_at_once(wrong: DownloadSpec, field: str, tmp_path: Path) -> None:
    async with running(tmp_path, one()) as (downloads, _):
        with pytest.raises(InvalidRequestError) as refusal:
            await downloads.create(wrong)
        assert refusal.value.facts["field"] == field
        assert "secret" not in refusal.value.message
        assert not downloads.newest_first()


async def test_an_id_that_is_taken_is_refused_before_the_download(tmp_path: Path) -> None:
    hold = Hold(0)
    remote = one(BIG, hold)
    async with running(tmp_path, remote) as (downloads, store):
        (store.inbox / "other.gguf").write_bytes(language_model())
        taken = await store.import_file("other.gguf")
        await downloads.create(spec(URL, model_id="mine"))
        for model_id in (taken.id, "mine"):
            with pytest.raises(InvalidRequestError) as refusal:
                await downloads.create(spec("http://models.test/another.gguf", model_id=model_id))
            assert refusal.value.facts["field"] == "model_id"


async def test_a_repeated_request_returns_the_original(tmp_path: Path) -> None:
    async with running(tmp_path, one()) as (downloads, _):
        first = await downloads.create(spec(URL), "key")
        assert (await downloads.create(spec("http://models.test/other.gguf"), "key")).id == first.id
        await ended(downloads, first)
    async with running(tmp_path, one()) as (downloads, _):
        assert (await downloads.create(spec(URL), "key")).id == first.id
        with pytest.raises(InvalidRequestError):
            await downloads.create(spec(URL), "k" * 129)


async def test_requests_for_the_same_files_join_one_download(tmp_path: Path) -> None:
    hold = Hold(100)
    remote = one(BIG, hold)
    wanted = DownloadSpec((Item(URL, checksum=sha256(BIG).upper().replace("SHA", "sha")),))
    async with running(tmp_path, remote) as (downloads, store):
        first, second = await asyncio.gather(downloads.create(wanted), downloads.create(wanted, "late"))
        assert first.id == second.id == (await downloads.create(spec(URL, name="another name"))).id
        await hold.reached.wait()
        assert (await downloads.create(spec(URL))).id == first.id
        hold.go.set()
        await ended(downloads, first)
        assert (await downloads.create(wanted, "late")).id == first.id
        assert len(store.list()) == 1


async def test_what_is_installed_is_not_fetched_again(tmp_path: Path) -> None:
    remote = ScriptedRemote({"tiny.gguf": Served(language_model()), URL: Served(language_model())})
    hub = HubFile("owner/repo", "tiny.gguf", COMMIT)
    async with running(tmp_path, remote) as (downloads, store):
        first = await ended(downloads, await downloads.create(spec(hub)))
        asked = len(remote.resolved)
        again = await downloads.create(spec(hub))
        assert (again.phase, again.model_id, again.id) == (DownloadPhase.INSTALLED, first.model_id, first.id)
        same = await downloads.create(DownloadSpec((Item(URL, checksum=sha256(language_model())),)))
        assert (same.phase, same.model_id, same.bytes_done) == (
            DownloadPhase.INSTALLED,
            first.model_id,
            len(language_model()),
        )
        assert len(remote.resolved) == asked
        # A branch has to be asked where it points to; the bytes are not.
        opened = len(remote.openings)
        branch = await ended(downloads, await downloads.create(spec(HubFile("owner/repo", "tiny.gguf"))))
        assert (branch.phase, branch.model_id, len(remote.openings)) == (
            DownloadPhase.INSTALLED,
            first.model_id,
            opened,
        )
        assert len(store.list()) == 1
        await store.delete(first.model_id)
        anew = await ended(downloads, await downloads.create(spec(hub)))
        assert anew.phase is DownloadPhase.INSTALLED
        assert anew.id != first.id


# --- checking


async def failed(folder: Path, remote: ScriptedRemote, wanted: DownloadSpec | None = None) -> Download:
    """Expect that a download fails and that nothing is installed."""
    async with running(folder, remote) as (downloads, store):
        last = await ended(downloads, await downloads.create(wanted or spec(URL)))
        assert last.phase is DownloadPhase.FAILED
        assert not store.list()
        assert last.failure is not None
        assert str(folder) not in last.failure.message
        return last


def code(download: Download) -> str:
    assert download.failure is not None
    return download.failure.code


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"<html>" + bytes(5_000_000), "tiny.gguf"),
        (BIG[:-1], "tiny.gguf"),
        (BIG, "tiny.safetensors"),
        (BIG, "tiny.bin"),
        (BIG, "CON.gguf"),
        (BIG, "nothing"),
    ],
)
async def test_what_is_no_model_is_refused_before_it_is_fetched(content: bytes, name: str, tmp_path: Path) -> None:
    remote = one(content, name=name)
    assert code(await failed(tmp_path, remote)) == "INVALID_REQUEST"
    assert remote.sent <= 2**20
    assert left_over(tmp_path) == set()


async def test_a_wrong_type_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    remote = one(BIG)
    assert code(await failed(tmp_path, remote, spec(URL, model_type=ModelType.DIFFUSION))) == "INVALID_REQUEST"
    assert all(opening.end is not None for opening in remote.openings)


async def test_a_disk_without_room_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: len(BIG) - 1)
    remote = one(BIG)
    failure = (await failed(tmp_path, remote)).failure
    assert failure is not None
    assert failure.code == "INSUFFICIENT_RESOURCES"
    assert (failure.facts["required"], failure.facts["available"]) == (str(len(BIG)), str(len(BIG) - 1))
    assert failure.facts["suggestion"]
    assert all(opening.end is not None for opening in remote.openings)


async def test_what_other_downloads_will_take_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: len(BIG) * 3 // 2)
    hold, other = Hold(0), "http://models.test/other.gguf"
    remote = one(BIG, hold)
    remote.files[other] = Served(large(seed=2))
    async with running(tmp_path, remote) as (downloads, _):
        first = await downloads.create(spec(URL))
        await hold.reached.wait()
        second = await ended(downloads, await downloads.create(spec(other)))
        assert code(second) == "INSUFFICIENT_RESOURCES"
        hold.go.set()
        assert (await ended(downloads, first)).phase is DownloadPhase.INSTALLED
        # What was missing is there now, and so the same may be asked for again.
        assert (await ended(downloads, await downloads.create(spec(other)))).phase is DownloadPhase.INSTALLED


async def test_sources_are_asked_again_while_they_fail(tmp_path: Path) -> None:
    remote = one()
    remote.resolving = [Refuse(), Refuse("Please wait.", retry_after=3.0)]
    async with running(tmp_path, remote) as (downloads, _):
        last = await ended(downloads, await downloads.create(spec(URL)))
        assert (last.phase, last.retries, last.problem) == (DownloadPhase.INSTALLED, 2, "")


async def test_a_source_that_refuses_for_good_fails_the_download(tmp_path: Path) -> None:
    last = await failed(tmp_path, one(), spec("http://models.test/missing.gguf"))
    assert code(last) == "DOWNLOAD_FAILED"
    assert last.retries == 0


# --- checksums


async def test_a_wrong_checksum_of_the_request_is_told_before_the_download(tmp_path: Path) -> None:
    remote = one(BIG, checksum=sha256(BIG))
    last = await failed(tmp_path, remote, DownloadSpec((Item(URL, checksum=sha256(b"")),)))
    assert last.failure is not None
    assert last.failure.code == "CHECKSUM_ERROR"
    assert (last.failure.facts["expected"], last.failure.facts["actual"]) == (sha256(b""), sha256(BIG))
    assert remote.sent == 0


@pytest.mark.parametrize("whose", ["request", "source"])
async def test_a_file_with_a_wrong_checksum_is_gone_and_nothing_else_is(whose: str, tmp_path: Path) -> None:
    remote = one(BIG, checksum=sha256(b"") if whose == "source" else "")
    item = Item(URL, checksum="" if whose == "source" else sha256(b""))
    async with running(tmp_path, remote) as (downloads, store):
        (store.inbox / "tiny.gguf").write_bytes(language_model("Large Llama"))
        bystander = await store.import_file("tiny.gguf")
        last = await ended(downloads, await downloads.create(DownloadSpec((item,))))
        assert last.failure is not None
        assert last.failure.code == "CHECKSUM_ERROR"
        assert (last.failure.facts["expected"], last.failure.facts["actual"]) == (sha256(b""), sha256(BIG))
        assert not list((tmp_path / "downloads").rglob("*.partial"))
        assert store.list() == (bystander,)
        assert bystander.path.read_bytes() == language_model("Large Llama")
        # With the right one it is fetched and installed.
        remote.files[URL].checksum = ""
        again = await downloads.create(DownloadSpec((replace(item, checksum=sha256(BIG)),)))
        assert (await ended(downloads, again)).phase is DownloadPhase.INSTALLED


# --- models of several files


def shards(count: int) -> dict[str, bytes]:
    """A language model in shards; the first one has no tensors."""
    names = [f"big-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    split = [pair("split.count", ValueType.UINT16, count)]
    contents = {}
    for number, name in enumerate(names):
        pairs = [*split, pair("split.no", ValueType.UINT16, number)]
        if number == 0:
            pairs += [
                pair("general.architecture", ValueType.STRING, "llama"),
                pair("general.name", ValueType.STRING, "Big"),
                pair("tokenizer.ggml.model", ValueType.STRING, "gpt2"),
            ]
        contents[name] = model(pairs, [(f"blk.{number - 1}.attn_q.weight", (64, 64))] if number else [])
    return contents


async def test_shards_are_found_by_the_first_one_s_name(tmp_path: Path) -> None:
    contents = shards(3)
    remote = ScriptedRemote(
        {f"q4/{name}": Served(content, checksum=sha256(content)) for name, content in contents.items()}
    )
    remote.fail("q4/big-00003-of-00003.gguf", Break(100))
    async with running(tmp_path, remote) as (downloads, store):
        download = await downloads.create(spec(HubFile("owner/repo", "q4/big-00001-of-00003.gguf")))
        assert [file.name for file in download.files] == list(contents)
        last = await ended(downloads, download)
        assert last.phase is DownloadPhase.INSTALLED, last.failure
        assert [file.bytes_done for file in last.files] == [len(content) for content in contents.values()]
        installed = store.get(last.model_id)
        assert [(file.name, file.shard) for file in installed.files] == list(zip(contents, (1, 2, 3), strict=True))
        assert [file.path.read_bytes() for file in installed.files] == list(contents.values())
        assert (await downloads.create(spec(HubFile("owner/repo", "q4/big-00002-of-00003.gguf", COMMIT)))).id


async def test_a_shard_that_is_bad_does_not_cost_the_good_ones(tmp_path: Path) -> None:
    contents = shards(3)
    remote = ScriptedRemote({f"http://models.test/{name}": Served(content) for name, content in contents.items()})
    bad = "http://models.test/big-00002-of-00003.gguf"
    remote.files[bad].checksum = sha256(b"")
    async with running(tmp_path, remote) as (downloads, _):
        wanted = spec("http://models.test/big-00001-of-00003.gguf")
        assert code(await ended(downloads, await downloads.create(wanted))) == "CHECKSUM_ERROR"
        remote.files[bad].checksum = ""
        remote.openings.clear()
        assert (await ended(downloads, await downloads.create(wanted))).phase is DownloadPhase.INSTALLED
        whole = {opening.name for opening in remote.openings if opening.end is None}
        assert whole == {bad, "http://models.test/big-00003-of-00003.gguf"}


def diffusion_parts() -> tuple[ScriptedRemote, DownloadSpec]:
    files = {
        "http://models.test/unet.gguf": Served(diffusion_model()),
        "http://models.test/vae.gguf": Served(model([], [("decoder.weight", (64, 64))]), checksum=""),
    }
    for served in files.values():
        served.checksum = sha256(served.content)
    items = (
        Item("http://models.test/vae.gguf", Component.VAE),
        Item("http://models.test/unet.gguf", Component.DIFFUSION_MODEL),
    )
    return ScriptedRemote(files), DownloadSpec(items)


async def test_components_make_one_model_and_are_shared(tmp_path: Path) -> None:
    remote, wanted = diffusion_parts()
    async with running(tmp_path, remote) as (downloads, store):
        last = await ended(downloads, await downloads.create(wanted))
        assert last.phase is DownloadPhase.INSTALLED, last.failure
        first = store.get(last.model_id)
        assert first.type is ModelType.DIFFUSION
        assert [file.component for file in first.files] == [Component.DIFFUSION_MODEL, Component.VAE]
        other = "http://models.test/other.gguf"
        remote.files[other] = Served(diffusion_model("Other"))
        remote.openings.clear()
        items = (wanted.items[0], Item(other, Component.DIFFUSION_MODEL))
        last = await ended(downloads, await downloads.create(DownloadSpec(items)))
        assert last.phase is DownloadPhase.INSTALLED, last.failure
        assert {opening.name for opening in remote.openings} == {other}
        second = store.get(last.model_id)
        assert second.files[1].path == first.files[1].path
        assert last.bytes_done == last.bytes_total == second.size_bytes


async def test_a_shared_file_that_is_deleted_meanwhile_is_fetched(tmp_path: Path) -> None:
    remote, wanted = diffusion_parts()
    async with running(tmp_path, remote) as (downloads, store):
        first = await ended(downloads, await downloads.create(wanted))
        other, hold = "http://models.test/other.gguf", Hold(10)
        content = diffusion_model("Other")
        remote.files[other] = Served(content)
        remote.fail(other, *after_header(content, hold)[-2:])
        items = (wanted.items[0], Item(other, Component.DIFFUSION_MODEL))
        second = await downloads.create(DownloadSpec(items))
        await hold.reached.wait()
        await store.delete(first.model_id)
        hold.go.set()
        last = await ended(downloads, second)
        assert last.phase is DownloadPhase.INSTALLED, last.failure
        assert all(file.path.is_file() for file in store.get(last.model_id).files)


# --- one after the other


async def test_only_so_many_run_at_once_and_the_others_wait_in_order(tmp_path: Path) -> None:
    urls = [f"http://models.test/{number}.gguf" for number in range(4)]
    contents = [large(seed=number, name=f"L{number}") for number in range(4)]
    remote = ScriptedRemote({url: Served(content) for url, content in zip(urls, contents, strict=True)})
    holds = [Hold(0) for _ in urls]
    for url, content, hold in zip(urls, contents, holds, strict=True):
        remote.fail(url, *after_header(content, hold))
    async with running(tmp_path, remote) as (downloads, _):
        made = [await downloads.create(spec(url)) for url in urls]
        await holds[0].reached.wait()
        await holds[1].reached.wait()
        assert [downloads.get(each.id).phase for each in made[2:]] == [DownloadPhase.QUEUED] * 2
        assert [each.id for each in downloads.newest_first()] == [each.id for each in reversed(made)]
        holds[0].go.set()
        await ended(downloads, made[0])
        await holds[2].reached.wait()
        assert not holds[3].reached.is_set()
        assert [each.id for each in downloads.newest_first(active_only=True)] == [each.id for each in made[:0:-1]]
        await downloads.cancel(made[1].id)
        await holds[3].reached.wait()


# --- cancelling


async def cancelled(downloads: Downloads, download: Download, folder: Path) -> None:
    first = await downloads.cancel(download.id)
    assert first.phase is DownloadPhase.CANCELLED
    assert await downloads.cancel(download.id) == first
    assert left_over(folder) == set()


async def test_a_running_download_can_be_cancelled(tmp_path: Path) -> None:
    hold = Hold(200_000)
    remote = one(BIG, hold)
    async with running(tmp_path, remote) as (downloads, store):
        download = await downloads.create(spec(URL))
        watching = asyncio.create_task(ended(downloads, download))
        await hold.reached.wait()
        await cancelled(downloads, download, tmp_path)
        assert (await watching).phase is DownloadPhase.CANCELLED
        assert not store.list()
        assert remote.open_bodies == 0
    async with running(tmp_path, remote) as (downloads, _):
        assert downloads.get(download.id).phase is DownloadPhase.CANCELLED


async def test_a_download_can_be_cancelled_before_it_runs_and_while_it_is_checked(tmp_path: Path) -> None:
    remote, hold, header = one(), Hold(0), Hold(0)
    remote.resolving = [hold]
    async with running(tmp_path, remote, replace(LIMITS, parallel=1)) as (downloads, _):
        checking = await downloads.create(spec(URL))
        await hold.reached.wait()
        waiting = await downloads.create(spec("http://models.test/other.gguf"))
        await cancelled(downloads, waiting, tmp_path)
        await cancelled(downloads, checking, tmp_path)
        remote.fail(URL, header)
        reading = await downloads.create(spec(URL))
        await header.reached.wait()
        await cancelled(downloads, reading, tmp_path)


async def test_what_has_ended_can_not_be_cancelled(tmp_path: Path) -> None:
    async with running(tmp_path, one()) as (downloads, _):
        download = await ended(downloads, await downloads.create(spec(URL)))
        with pytest.raises(AlreadyTerminalError):
            await downloads.cancel(download.id)
        with pytest.raises(NotFoundError):
            await downloads.cancel("unknown")
        with pytest.raises(NotFoundError):
            downloads.get("unknown")
        with pytest.raises(NotFoundError):
            await anext(downloads.watch("unknown"))


async def test_what_the_store_is_taking_is_installed_and_not_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    async with running(tmp_path, one()) as (downloads, store):
        install: Callable[..., Awaitable[object]] = store.install

        async def slow(*args: object, **options: object) -> object:
            begun.set()
            await go.wait()
            return await install(*args, **options)

        monkeypatch.setattr(store, "install", slow)
        download = await downloads.create(spec(URL))
        await begun.wait()
        cancelling = asyncio.create_task(downloads.cancel(download.id))
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(AlreadyTerminalError):
            await cancelling
        assert len(store.list()) == 1
        assert downloads.get(download.id).phase is DownloadPhase.INSTALLED


# --- surviving


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("end", ["closed", "killed"])
async def test_a_download_goes_on_wherever_the_service_ended(tenth: int, end: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    place = len(BIG) * tenth // 10
    hold = Hold(place)
    remote = one(BIG, hold, checksum=sha256(BIG))
    async with running(before, remote) as (downloads, _):
        download = await downloads.create(spec(URL), "key")
        await hold.reached.wait()
        if end == "killed":  # which leaves on the disk what is there now
            shutil.copytree(before, after)
    if end == "closed":
        before.rename(after)
    again = one(BIG)
    async with running(after, again) as (downloads, store):
        resumed = await downloads.create(spec(URL), "key")
        assert resumed.id == download.id
        last = await ended(downloads, resumed)
        assert last.phase is DownloadPhase.INSTALLED
        assert store.get(last.model_id).path.read_bytes() == BIG
        assert left_over(after) == set()
    if end == "closed" and place:
        assert [(opening.start, opening.etag) for opening in again.openings] == [(place, '"one"')]


@pytest.mark.parametrize("kill", ["resolving", "header", "installing", "installed"])
async def test_a_download_goes_on_from_every_phase(kill: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    remote, hold = one(), Hold(0)
    async with running(before, remote) as (downloads, store):
        install: Callable[..., Awaitable[object]] = store.install

        async def killed(*args: object, **options: object) -> object:
            if kill == "installing":
                shutil.copytree(before, after)
            result = await install(*args, **options)
            if kill == "installed":
                shutil.copytree(before, after)
            return result

        monkeypatch.setattr(store, "install", killed)
        if kill == "resolving":
            remote.resolving = [hold]
        elif kill == "header":
            remote.fail(URL, hold)
        else:
            hold.reached.set()
        download = await downloads.create(spec(URL))
        await hold.reached.wait()
        if not kill.startswith("install"):
            shutil.copytree(before, after)
        hold.go.set()
        await ended(downloads, download)
    again = one()
    async with running(after, again) as (downloads, store):
        last = await ended(downloads, downloads.get(download.id))
        assert last.phase is DownloadPhase.INSTALLED
        assert [each.path.read_bytes() for each in store.list()] == [BIG]
        assert left_over(after) == set()
    if kill.startswith("install"):
        assert not again.openings


async def test_a_file_that_changed_while_the_service_was_down_is_fetched_from_its_beginning(tmp_path: Path) -> None:
    hold, new = Hold(200_000), large(seed=7, size=300_000)
    async with running(tmp_path, one(BIG, hold)) as (downloads, _):
        download = await downloads.create(spec(URL))
        await hold.reached.wait()
    remote = one(new, etag='"new"')
    async with running(tmp_path, remote) as (downloads, store):
        last = await ended(downloads, downloads.get(download.id))
        assert store.get(last.model_id).path.read_bytes() == new


async def test_a_failed_download_s_bytes_are_used_by_the_next_try(tmp_path: Path) -> None:
    remote = one(BIG, Break(200_000), *[Refuse()] * 3)
    async with running(tmp_path, remote) as (downloads, _):
        first = await ended(downloads, await downloads.create(spec(URL)))
        assert code(first) == "DOWNLOAD_FAILED"
        assert first.bytes_done == 200_000
    again = one(BIG)
    async with running(tmp_path, again) as (downloads, _):
        second = await downloads.create(spec(URL))
        assert (second.id != first.id, second.bytes_done) == (True, 200_000) or second.phase is DownloadPhase.QUEUED
        assert (await ended(downloads, second)).phase is DownloadPhase.INSTALLED
        assert again.openings[-1].start == 200_000
        assert left_over(tmp_path) == set()
        assert len(downloads.newest_first()) == 2


async def test_a_failed_download_s_bytes_of_another_version_are_not_used(tmp_path: Path) -> None:
    async with running(tmp_path, one(BIG, Break(200_000), *[Refuse()] * 3)) as (downloads, _):
        await ended(downloads, await downloads.create(spec(URL)))
    new = large(seed=7)
    again = one(new, etag='"new"')
    async with running(tmp_path, again) as (downloads, store):
        last = await ended(downloads, await downloads.create(spec(URL)))
        assert store.get(last.model_id).path.read_bytes() == new
        assert again.openings[-1].start == 0


async def test_what_ended_is_remembered_and_nothing_else_is_left(tmp_path: Path) -> None:
    async with running(tmp_path, one()) as (downloads, _):
        made = await ended(downloads, await downloads.create(spec(URL)))
    async with running(tmp_path, one()) as (downloads, _):
        assert downloads.get(made.id) == made
        with pytest.raises(InvalidRequestError):
            await downloads.create(DownloadSpec(()))
    with pytest.raises(ServerError):
        await downloads.create(spec(URL))


async def test_a_journal_that_can_not_be_read_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "downloads"
    (folder / "0123456789abcdef").mkdir(parents=True)
    (folder / "0123456789abcdef.json").write_text('{"id": "0123456789abcdef"}')
    (folder / "fedcba9876543210.json").write_bytes(b"\xff\xfe nothing")
    (folder / "fedcba9876543210").mkdir()
    (folder / "00000000000000ff").mkdir()  # nobody's
    (folder / ".0123456789abcdef.json.x.tmp").write_bytes(b"")
    async with running(tmp_path, one()) as (downloads, _):
        assert not downloads.newest_first()
        assert (await ended(downloads, await downloads.create(spec(URL)))).phase is DownloadPhase.INSTALLED
    assert len([record for record in caplog.records if "Passing over" in record.message]) == 2
    assert left_over(tmp_path) == {"0123456789abcdef", "fedcba9876543210"}


async def test_old_downloads_are_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path, one()) as (downloads, _):
        old = await ended(downloads, await downloads.create(spec(URL)))
    path = tmp_path / "downloads" / f"{old.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"updated_at": 1.0}))
    async with running(tmp_path, one()) as (downloads, _):
        assert not downloads.newest_first()
    assert not path.exists()


async def test_watchers_are_let_go(tmp_path: Path) -> None:
    hold = Hold(0)
    async with AsyncExitStack() as stack:
        downloads, _ = await stack.enter_async_context(running(tmp_path, one(BIG, hold)))
        download = await downloads.create(spec(URL))
        watching = asyncio.create_task(ended(downloads, download))
        await hold.reached.wait()
        downloads.end_watches()
        assert not (await watching).phase.terminal


@pytest.mark.parametrize(
    "faults",
    [
        (Break(200_000), IgnoreRange()),
        (Break(200_000), Replace(large(seed=9, size=100_000))),
        (TooMuch(7),),
        (IgnoreRange(300_000), IgnoreRange(1000), IgnoreRange()),
    ],
    ids=str,
)
async def test_progress_never_falls_even_where_a_file_is_started_over(
    faults: tuple[Fault, ...], tmp_path: Path
) -> None:
    remote = one(BIG, *faults)
    async with running(tmp_path, remote) as (downloads, store):
        last = await ended(downloads, await downloads.create(spec(URL)))
        assert last.phase is DownloadPhase.INSTALLED
        assert store.get(last.model_id).path.read_bytes() == remote.files[URL].content
