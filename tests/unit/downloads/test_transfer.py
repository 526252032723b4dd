"""Fetching one file: what arrives in the end is right, or it is said why not, and nothing is fetched needlessly."""

import asyncio
import contextlib
import hashlib
import random
import tempfile
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.scripted_remote import (
    Break,
    End,
    Fault,
    Hold,
    IgnoreRange,
    Refuse,
    Replace,
    ScriptedRemote,
    Served,
    Stall,
    TooMuch,
    Trickle,
    WrongPart,
    WrongTotal,
    sha256,
)
from genaid_server.kit.errors import DomainError, DownloadError, FileSystemError, InsufficientResourcesError
from genaid_server.resource.core.downloads import disk_space
from genaid_server.resource.core.downloads import partial_file as partial
from genaid_server.resource.core.downloads.download import DownloadLimits
from genaid_server.resource.core.downloads.remote import Item, Resolved
from genaid_server.resource.core.downloads.retry import Pauses
from genaid_server.resource.core.downloads.transfer import BUFFER, Transfer, Version

URL = "http://models.test/model.gguf"
CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(200_000)
LIMITS = DownloadLimits(reserve_bytes=0, stall_seconds=60.0, attempts=5)
IMPATIENT = replace(LIMITS, stall_seconds=0.02)


@dataclass
class Heard:
    """What a transfer tells."""

    lengths: list[int] = field(default_factory=list)
    written: int = 0
    problems: list[str] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def on_bytes(self, count: int, length: int) -> None:
        assert count >= 0
        self.written += count
        self.lengths.append(length)

    def on_retry(self, problem: str) -> None:
        self.problems.append(problem)

    async def on_version(self, version: Version) -> None:
        self.versions.append(version)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)


def remote_with(*faults: Fault, **served: object) -> ScriptedRemote:
    remote = ScriptedRemote({URL: Served(CONTENT, **served)}, chunk=10_000)  # type: ignore[arg-type]
    remote.fail(URL, *faults)
    return remote


async def resolved_of(remote: ScriptedRemote) -> Resolved:
    return await remote.resolve(Item(URL))


async def fetch(
    remote: ScriptedRemote,
    path: Path,
    heard: Heard | None = None,
    *,
    version: Version = Version(),  # noqa: B008
    limits: DownloadLimits = LIMITS,
    resolved: Resolved | None = None,
) -> str:
    heard = heard or Heard()
    pauses = Pauses(heard.sleep, lambda: 0.0)
    transfer = Transfer(remote, resolved or await resolved_of(remote), path, version, heard, limits, pauses)
    return await transfer.run()


async def test_a_file_arrives_and_its_checksum_with_it(tmp_path: Path) -> None:
    remote, heard = remote_with(), Heard()
    assert await fetch(remote, tmp_path / "folder" / "part", heard) == sha256(CONTENT)
    assert (tmp_path / "folder" / "part").read_bytes() == CONTENT
    assert heard.written == heard.lengths[-1] == len(CONTENT)
    assert heard.versions == [Version(len(CONTENT), '"one"')]
    assert not heard.problems
    assert remote.open_bodies == 0


@pytest.mark.parametrize(
    "fault",
    [Break(123_456), Break(0), End(123_456), Stall(123_456), Trickle(123_456), Refuse()],
    ids=lambda fault: type(fault).__name__,
)
async def test_what_has_arrived_is_not_fetched_again(fault: Fault, tmp_path: Path) -> None:
    remote, heard = remote_with(fault), Heard()
    assert await fetch(remote, tmp_path / "part", heard, limits=IMPATIENT) == sha256(CONTENT)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert len(heard.problems) == 1
    assert heard.written == len(CONTENT)
    first, second = remote.openings
    assert (first.start, first.etag) == (0, "")
    assert second.etag == ('"one"' if second.start else "")
    assert 0 <= second.start <= 123_456 + 100


@pytest.mark.parametrize(
    "faults",
    [
        (Break(100_000), IgnoreRange()),
        (Break(100_000), WrongPart()),
        (TooMuch(5),),
        (WrongTotal(-1),),
        (WrongTotal(1),),
        (Break(100_000), WrongTotal(7)),
    ],
    ids=str,
)
async def test_what_can_not_be_continued_is_started_over(faults: tuple[Fault, ...], tmp_path: Path) -> None:
    remote, heard = remote_with(*faults), Heard()
    assert await fetch(remote, tmp_path / "part", heard) == sha256(CONTENT)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert 0 in heard.lengths


@pytest.mark.parametrize("content", [OTHER, CONTENT + OTHER, OTHER[:50]], ids=["shorter", "longer", "tiny"])
async def test_a_file_that_was_replaced_is_fetched_from_its_beginning(content: bytes, tmp_path: Path) -> None:
    remote, heard = remote_with(Break(100_000), Replace(content)), Heard()
    assert await fetch(remote, tmp_path / "part", heard) == sha256(content)
    assert (tmp_path / "part").read_bytes() == content
    assert heard.versions == [Version(len(CONTENT), '"one"'), Version(len(content), '"other"')]


async def test_a_source_without_etags_is_only_continued_where_a_checksum_tells(tmp_path: Path) -> None:
    remote = remote_with(Break(100_000), etag="")
    assert await fetch(remote, tmp_path / "part") == sha256(CONTENT)
    assert [opening.start for opening in remote.openings] == [0, 0]
    remote = remote_with(Break(100_000), etag="", checksum=sha256(CONTENT))
    assert await fetch(remote, tmp_path / "other") == sha256(CONTENT)
    assert [opening.start for opening in remote.openings] == [0, 100_000]


async def test_a_file_that_shrank_below_what_is_there_is_started_over(tmp_path: Path) -> None:
    remote = remote_with(Break(100_000), Replace(OTHER[:90_000], etag=""), etag="", checksum=sha256(OTHER[:90_000]))
    resolved = replace(await resolved_of(remote), size=None)
    assert await fetch(remote, tmp_path / "part", resolved=resolved) == sha256(OTHER[:90_000])


async def test_a_source_that_does_not_tell_the_size_is_believed_where_it_ends(tmp_path: Path) -> None:
    remote, heard = remote_with(tells_size=False), Heard()
    assert await fetch(remote, tmp_path / "part", heard) == sha256(CONTENT)
    assert heard.versions[-1] == Version(len(CONTENT), '"one"')


async def test_nothing_is_asked_for_when_all_is_there(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(CONTENT)
    remote = remote_with()
    version = Version(len(CONTENT), '"one"')
    assert await fetch(remote, tmp_path / "part", version=version) == sha256(CONTENT)
    assert not remote.openings


@pytest.mark.parametrize(
    ("there", "version", "start"),
    [
        (CONTENT[:70_000], Version(len(CONTENT), '"one"'), 70_000),
        (CONTENT[:70_000], Version(None, '"one"'), 70_000),
        (OTHER[:70_000], Version(len(OTHER), '"older"'), 70_000),  # which the source then refuses to continue
        (OTHER[:70_000], Version(), 0),
        (CONTENT + b"more", Version(len(CONTENT), '"one"'), 0),
    ],
)
async def test_a_part_from_before_is_continued_if_it_can_be(
    there: bytes, version: Version, start: int, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(there)
    remote = remote_with()
    assert await fetch(remote, tmp_path / "part", version=version) == sha256(CONTENT)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert remote.openings[0].start == start


# --- giving up


async def test_a_refusal_for_good_is_not_repeated(tmp_path: Path) -> None:
    remote = remote_with(Refuse("There is no such file.", permanent=True))
    with pytest.raises(DownloadError, match="There is no such file"):
        await fetch(remote, tmp_path / "part")
    assert len(remote.openings) == 1


async def test_waits_double_up_to_the_longest_and_then_it_is_given_up(tmp_path: Path) -> None:
    remote, heard = remote_with(*[Refuse("It is overloaded.")] * 5), Heard()
    with pytest.raises(DownloadError, match=r"5 tries: It is overloaded\.") as failure:
        await fetch(remote, tmp_path / "part", heard, limits=replace(LIMITS, first_delay=8.0, max_delay=20.0))
    assert heard.waits == [4.0, 8.0, 10.0, 10.0]
    assert failure.value.facts["tries"] == "5"


async def test_a_source_is_not_asked_before_it_wants_to_be(tmp_path: Path) -> None:
    remote, heard = remote_with(Refuse(retry_after=77.0), Refuse(retry_after=1e9), Refuse(retry_after=0.0)), Heard()
    await fetch(remote, tmp_path / "part", heard)
    assert heard.waits == [77.0, 3600.0, 2.0]


async def test_progress_renews_the_tries(tmp_path: Path) -> None:
    remote, heard = remote_with(*(Break(70_000), Refuse(), Refuse()) * 4), Heard()
    assert await fetch(remote, tmp_path / "part", heard, limits=replace(LIMITS, attempts=4)) == sha256(CONTENT)
    assert len(heard.problems) == 12
    assert max(heard.waits) == 2.0


async def test_to_start_over_again_and_again_is_no_progress(tmp_path: Path) -> None:
    remote = remote_with(*[IgnoreRange(100_000)] * 50)
    with pytest.raises(DownloadError):
        await fetch(remote, tmp_path / "part")
    assert len(remote.openings) == LIMITS.attempts


async def test_a_source_that_tells_a_wrong_size_of_a_known_file_is_not_believed(tmp_path: Path) -> None:
    remote = remote_with(*[WrongTotal(-10)] * 9, checksum=sha256(CONTENT))
    with pytest.raises(DownloadError, match=r"299990 bytes of model\.gguf, which has 300000"):
        await fetch(remote, tmp_path / "part")


# --- the disk


async def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10**9, 1234])
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: next(free))
    monkeypatch.setattr(partial, "_LOOK_AT_DISK", 1)
    remote = ScriptedRemote({URL: Served(CONTENT * 10)}, chunk=BUFFER)
    with pytest.raises(InsufficientResourcesError) as failure:
        await fetch(remote, tmp_path / "part", limits=replace(LIMITS, reserve_bytes=1000))
    facts = failure.value.facts
    assert int(facts["required"]) == len(CONTENT) * 10 - BUFFER + 1000
    assert (facts["available"], bool(facts["suggestion"])) == ("1234", True)
    assert (tmp_path / "part").stat().st_size == BUFFER
    assert str(tmp_path) not in failure.value.message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_what_the_disk_did_not_take_is_not_there(tmp_path: Path) -> None:
    with partial.PartialFile(tmp_path / "part", "model.gguf", 0) as part, Path("/dev/full").open("ab", 0) as full:
        part.load(threading.Event())
        part.append([b"some ", b"bytes"], 15)
        there, part._file = part._file, full
        with pytest.raises(InsufficientResourcesError) as failure:
            part.append([b"more"], 5)
        part._file = there
        assert (part.length, part.checksum) == (10, sha256(b"some bytes"))
    assert failure.value.facts["required"] == "5"


async def test_a_folder_that_can_not_be_written_to_is_an_error_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileSystemError) as failure:
        await fetch(remote_with(), tmp_path / "file" / "part")
    assert str(tmp_path) not in failure.value.message


# --- stopping


async def test_what_has_arrived_is_there_after_it_was_stopped(tmp_path: Path) -> None:
    hold = Hold(123_456)
    remote, heard = remote_with(hold), Heard()
    task = asyncio.create_task(fetch(remote, tmp_path / "part", heard))
    await hold.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "part").read_bytes() == CONTENT[:123_456]
    assert remote.open_bodies == 0
    assert await fetch(remote, tmp_path / "part", version=heard.versions[-1]) == sha256(CONTENT)
    assert remote.openings[-1].start == 123_456


# --- anything


def faults() -> st.SearchStrategy[Fault]:
    places = st.integers(0, 3000)
    return st.one_of(
        st.builds(Break, places),
        st.builds(End, places),
        st.builds(Stall, places),
        st.builds(IgnoreRange, st.none() | places),
        st.builds(TooMuch, st.integers(1, 100)),
        st.builds(WrongTotal, st.integers(-50, 50).filter(bool)),
        st.builds(Refuse, permanent=st.booleans()),
        st.builds(Replace, st.binary(min_size=1, max_size=2000), st.sampled_from(['"other"', '"third"'])),
        st.just(WrongPart()),
    )


@settings(deadline=None, max_examples=150)
@given(script=st.lists(faults(), max_size=8), content=st.binary(min_size=1, max_size=3000), size=st.booleans())
async def test_any_script_ends_with_the_right_bytes_or_an_error(
    script: list[Fault], content: bytes, size: bool
) -> None:
    remote, heard = ScriptedRemote({URL: Served(content, tells_size=size)}, chunk=500), Heard()
    remote.fail(URL, *script)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part"
        with contextlib.suppress(DomainError):
            checksum = await fetch(remote, path, heard, limits=replace(LIMITS, stall_seconds=0.005))
            there = path.read_bytes()
            assert checksum == f"sha256:{hashlib.sha256(there).hexdigest()}"
            if size:
                assert there == remote.files[URL].content
    assert remote.open_bodies == 0
