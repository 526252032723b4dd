"""Whatever a source does, and whenever the service dies: the right bytes are installed, or it is said why not."""

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.scripted_remote import (
    Break,
    End,
    Fault,
    IgnoreRange,
    Refuse,
    Replace,
    ScriptedRemote,
    Served,
    Stall,
    TooMuch,
    WrongPart,
    WrongTotal,
    sha256,
)
from genaid_server.resource.core.downloads.manager import (
    Download,
    DownloadLimits,
    DownloadPhase,
    Downloads,
    DownloadSpec,
    Pauses,
)
from genaid_server.resource.core.downloads.remote import Item
from genaid_server.resource.core.store.store import ModelStore
from unit.formats.gguf_files import language_model, model

URL = "http://models.test/tiny.gguf"
CONTENT = language_model(salt=1)
OTHERS = [language_model("Longer and other", salt=2), model(), b"<html>no model</html>"]
LIMITS = DownloadLimits(reserve_bytes=0, stall_seconds=0.005, attempts=4)
ENDS = {"DOWNLOAD_FAILED", "CHECKSUM_ERROR", "INVALID_REQUEST"}

places = st.integers(0, len(CONTENT))
faults = st.one_of(
    st.builds(Break, places),
    st.builds(End, places),
    st.builds(Stall, places),
    st.builds(IgnoreRange, st.none() | places),
    st.builds(TooMuch, st.integers(1, 100)),
    st.builds(WrongTotal, st.integers(-50, 50).filter(bool)),
    st.builds(Refuse, permanent=st.booleans()),
    st.builds(Replace, st.sampled_from([*OTHERS, CONTENT]), st.sampled_from(['"other"', '"third"'])),
    st.just(WrongPart()),
)


async def no_wait(seconds: float) -> None:
    await asyncio.sleep(0)


async def follow(downloads: Downloads, download_id: str, floor: int = 0) -> Download:
    """The download at its end; its progress never falls below what it was."""
    last = downloads.get(download_id)
    async for last in downloads.watch(download_id):
        assert last.bytes_done >= floor
        assert last.bytes_total is None or last.bytes_total >= last.bytes_done
        floor = last.bytes_done
    return last


def check(last: Download, store: ModelStore, remote: ScriptedRemote) -> None:
    if last.phase is DownloadPhase.INSTALLED:
        installed = store.get(last.model_id)
        assert installed.path.read_bytes() in {CONTENT, *OTHERS}
        assert installed.checksum == sha256(installed.path.read_bytes())
    else:
        assert last.failure is not None
        assert last.failure.code in ENDS
        assert last.failure.message
        assert not store.list()
    assert remote.open_bodies == 0


@settings(deadline=None, max_examples=60)
@given(script=st.lists(faults, max_size=8), known=st.booleans())
async def test_any_script_ends_well_or_with_a_reason(script: list[Fault], known: bool) -> None:
    remote = ScriptedRemote({URL: Served(CONTENT, checksum=sha256(CONTENT) if known else "")}, chunk=100)
    remote.fail(URL, *script)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = await ModelStore.open(folder)
        async with Downloads(folder, store, remote, LIMITS, Pauses(no_wait, lambda: 0.5)) as downloads:
            download = await downloads.create(DownloadSpec((Item(URL),)))
            last = await follow(downloads, download.id)
            check(last, store, remote)
            if known and last.phase is DownloadPhase.INSTALLED:
                assert store.get(last.model_id).path.read_bytes() == CONTENT
        await store.close()


@settings(deadline=None, max_examples=40)
@given(turns=st.integers(0, 400), killed=st.booleans(), script=st.lists(faults, max_size=2))
async def test_the_service_may_end_at_any_turn_of_the_loop(turns: int, killed: bool, script: list[Fault]) -> None:
    with tempfile.TemporaryDirectory() as name:
        before, after = Path(name, "before"), Path(name, "after")
        remote = ScriptedRemote({URL: Served(CONTENT)}, chunk=100)
        remote.fail(URL, *script)
        async with AsyncExitStack() as stack:
            store = await ModelStore.open(before)
            stack.push_async_callback(store.close)
            downloads = await stack.enter_async_context(
                Downloads(before, store, remote, LIMITS, Pauses(no_wait, lambda: 0.5))
            )
            download = await downloads.create(DownloadSpec((Item(URL),)))
            for _ in range(turns):
                await asyncio.sleep(0)
            if killed:
                snapshot(before, after)
        if not killed:
            before.rename(after)
        remote = ScriptedRemote({URL: Served(CONTENT)})
        store = await ModelStore.open(after)
        async with Downloads(after, store, remote, LIMITS, Pauses(no_wait, lambda: 0.5)) as downloads:
            last = await follow(downloads, download.id)
            check(last, store, remote)
        await store.close()


def snapshot(before: Path, after: Path) -> None:
    """What is on the disk now, as a killed process leaves it. What is renamed meanwhile is there under one name."""
    while True:
        try:
            shutil.copytree(before, after)
        except shutil.Error:
            shutil.rmtree(after)
        else:
            return
