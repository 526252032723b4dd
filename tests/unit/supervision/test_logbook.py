"""Lines are the same however the bytes arrive; the ring and the file stay bounded, and the file keeps whole lines."""

import asyncio
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.kit.errors import FileSystemError
from genaid_server.kit.line_writer import LIMIT, LineWriter, RotatingFile
from genaid_server.supervision.logbook import (
    MAX_LINE,
    Level,
    LineSplitter,
    Logbook,
    LogRecord,
    guess_level,
    in_portions,
    newest_within,
)

LINE = re.compile(r"\[(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)\] \[(DEBUG|INFO |WARN |ERROR)\] (.+)")


def split(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.flush()


def messages(logbook: Logbook) -> list[str]:
    return [record.message for record in logbook.tail(sys.maxsize)]


PATIENCE = 30.0  # seconds until a test that waits for a thread gives up


def file_of(logbook: Logbook) -> LineWriter:
    """What writes the file of a logbook."""
    assert logbook._file is not None
    return logbook._file.lines


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)  # nothing tells what a thread has written


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


# Of such pieces, every way to cut a line, an escape or a character in two is found soon.
pieces = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"\x1b[31m", b"\x1b]0;t\x07", b"\xc3\xa9", b"\xff", b"\0", b"\t", b" ", b"word"]
    )
    | st.binary(max_size=4)
    | st.sampled_from([b"x" * MAX_LINE, b"y" * (MAX_LINE - 1), b"z" * (2 * MAX_LINE + 1)]),
    max_size=12,
)


@given(parts=pieces, data=st.data())
def test_lines_are_the_same_whatever_the_cuts(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = split(stream)
    assert split(*chunks) == whole
    for line in whole:
        assert line.strip()
        assert not re.search(r"[\r\n\0\x1b]", line)
        assert len(line) <= MAX_LINE + 1


@given(st.lists(st.text("abc é", min_size=1).map(str.rstrip).filter(bool)), st.sampled_from(["\n", "\r", "\r\n"]))
def test_lines_come_out_as_they_went_in(lines: list[str], end: str) -> None:
    assert split("".join(line + end for line in lines).encode()) == lines


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n\r\n \n\t\n", []),
        (b"a\rb\nc", ["a", "b", "c"]),
        (b"| 1/4\r| 2/4\r| 4/4\n", ["| 1/4", "| 2/4", "| 4/4"]),
        (b"trailing  \n  leading", ["trailing", "  leading"]),
        (b"caf\xc3\xa9 \xff\xc3(", ["café \ufffd\ufffd("]),
        (b"a\0b\x07c\td", ["a\ufffdb\ufffdc\td"]),
        (b"\x1b[1;31merror\x1b[0m: \x1b[?25lno\x1b[K", ["error: no"]),
        (b"\x1b]0;title\x07text \x1b]8;;http://x\x1b\\link", ["text link"]),
        (b"\x1b[31m\x1b[0m\n", []),
        (b"\xc2\x9b31mred", ["\ufffd31mred"]),
    ],
)
def test_what_libraries_print_becomes_clean_lines(data: bytes, lines: list[str]) -> None:
    assert split(data) == lines


def test_a_megabyte_without_a_newline_is_one_marked_line_and_holds_little_memory() -> None:
    splitter = LineSplitter()
    lines = []
    for _ in range(256):
        lines += splitter.feed(b"x" * 4096)
        assert len(splitter._rest) <= MAX_LINE + 4096
    lines += splitter.feed(b"\nnext\n")
    assert lines == ["x" * MAX_LINE + "…", "next"]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("error: no such file", Level.ERROR),
        ("loading Failed", Level.ERROR),
        ("GGML_ASSERT(x) assert", Level.ERROR),
        ("Aborted (core dumped)", Level.ERROR),
        ("warning: slow", Level.WARN),
        ("terrorist", Level.INFO),
        ("loaded", Level.INFO),
    ],
)
def test_the_level_is_told_from_the_words(line: str, level: Level) -> None:
    assert guess_level(line) is level


async def test_lines_are_counted_from_one_and_the_oldest_are_forgotten() -> None:
    logbook = Logbook(keep=3)
    assert (logbook.next_sequence, logbook.tail(5)) == (1, [])
    for number in range(1, 6):
        logbook.append(Level.INFO, f"line {number}")
    assert [(record.sequence, record.message) for record in logbook.tail(10)] == [
        (3, "line 3"),
        (4, "line 4"),
        (5, "line 5"),
    ]
    assert logbook.next_sequence == 6


async def test_a_tail_is_the_newest_lines() -> None:
    logbook = Logbook()
    for letter in "abc":
        logbook.append(Level.INFO, letter)
    assert logbook.tail(0) == []
    assert logbook.tail(-1) == []
    assert [record.message for record in logbook.tail(2)] == ["b", "c"]


@pytest.mark.parametrize(("start", "sequences"), [(-5, [3, 4]), (0, [3, 4]), (3, [3, 4]), (4, [4]), (5, []), (99, [])])
async def test_reading_resumes_at_a_sequence_number(start: int, sequences: list[int]) -> None:
    logbook = Logbook(keep=2)
    for letter in "abcd":
        logbook.append(Level.INFO, letter)
    assert [record.sequence for record in logbook.since(start)] == sequences


async def test_a_message_of_several_lines_becomes_several_records() -> None:
    logbook = Logbook()
    logbook.append(Level.ERROR, "it died. Last lines:\nfirst\r\nsecond\n")
    logbook.append(Level.INFO, "")
    assert messages(logbook) == ["it died. Last lines:", "first", "second", ""]


async def test_a_message_is_bounded_and_can_be_written_as_utf8() -> None:
    logbook = Logbook()
    logbook.append(Level.INFO, "x" * (2 * MAX_LINE))
    logbook.append(Level.INFO, "half a pair: \ud83d")
    assert messages(logbook) == ["x" * (MAX_LINE - 1) + "…", "half a pair: ?"]


async def flattened(watch: AsyncIterator[object]) -> list[int]:
    return [record.sequence async for records in watch for record in records]  # type: ignore[attr-defined]


async def test_a_watch_without_a_start_sees_new_lines_only() -> None:
    logbook = Logbook()
    logbook.append(Level.INFO, "old")
    watch = logbook.watch(None)
    first = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    logbook.append(Level.INFO, "new")
    assert [record.message for record in await first] == ["new"]


async def test_a_watch_resumes_and_skips_what_is_forgotten() -> None:
    logbook = Logbook(keep=3)
    for letter in "abcde":
        logbook.append(Level.INFO, letter)
    watch = logbook.watch(2)
    assert [record.message for record in await anext(watch)] == ["c", "d", "e"]
    for letter in "fghij":
        logbook.append(Level.INFO, letter)
    assert [record.message for record in await anext(watch)] == ["h", "i", "j"]
    logbook.end_watches()
    assert await flattened(watch) == []


async def test_a_watch_from_a_number_to_come_waits_for_it() -> None:
    logbook = Logbook()
    watch = logbook.watch(3)
    first = asyncio.ensure_future(anext(watch))
    for letter in "abc":
        await asyncio.sleep(0)
        assert not first.done()
        logbook.append(Level.INFO, letter)
    assert [record.message for record in await first] == ["c"]


async def test_the_end_of_watches_comes_after_the_last_line() -> None:
    logbook = Logbook()
    watches = [asyncio.create_task(flattened(logbook.watch(1))) for _ in range(3)]
    await asyncio.sleep(0)
    logbook.append(Level.INFO, "last")
    logbook.end_watches()
    assert await asyncio.gather(*watches) == [[1]] * 3
    assert await flattened(logbook.watch(1)) == [1]


async def test_the_file_has_one_stamped_record_a_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "engine.log"
    logbook = Logbook(path)
    for level in Level:
        logbook.append(level, f"a {level.name} é\nand more")
    logbook.close()
    matches = [LINE.fullmatch(line) for line in lines_of(path)]
    assert all(matches)
    assert [match[3] for match in matches if match] == [
        text for level in Level for text in (f"a {level.name} é", "and more")
    ]
    assert {match[2] for match in matches if match} == {"DEBUG", "INFO ", "WARN ", "ERROR"}


def test_a_record_is_stamped_in_utc_with_milliseconds() -> None:
    moment = datetime(2031, 2, 3, 4, 5, 6, 789_000, UTC).timestamp()
    assert str(LogRecord(1, moment, Level.WARN, "text")) == "[2031-02-03T04:05:06.789Z] [WARN ] text"


async def test_lines_reach_the_file_without_being_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    logbook = Logbook(path)
    logbook.append(Level.INFO, "soon")
    await asyncio.to_thread(wait_for, lambda: path.exists() and bool(lines_of(path)))
    assert lines_of(path)[0].endswith("soon")
    logbook.close()


async def test_a_new_logbook_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    for text in ("first", "second"):
        logbook = Logbook(path)
        logbook.append(Level.INFO, text)
        logbook.close()
    assert [line.rpartition(" ")[2] for line in lines_of(path)] == ["first", "second"]


async def test_rotation_keeps_whole_lines_in_order_and_a_bounded_number_of_files(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    written = [f"line {number:03} {'é' * 20}" for number in range(60)]
    for start in range(0, len(written), 5):
        logbook = Logbook(path, file_bytes=500, files=3)
        for text in written[start : start + 5]:
            logbook.append(Level.INFO, text)
        logbook.close()
    files = sorted(tmp_path.iterdir(), reverse=True)
    assert [file.name for file in files] in (
        ["engine.log.2", "engine.log.1", "engine.log"],
        ["engine.log.2", "engine.log.1"],
    )
    matches = [LINE.fullmatch(line) for file in files for line in lines_of(file)]
    assert all(matches)
    kept = [match[3] for match in matches if match]
    assert len(kept) >= 10
    assert kept == written[-len(kept) :]


async def test_clearing_forgets_lines_and_files_and_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    for text in ("one " * 50, "two " * 50, "three"):
        earlier = Logbook(path, file_bytes=100)
        earlier.append(Level.INFO, text)
        earlier.close()
    logbook = Logbook(path)
    logbook.append(Level.INFO, "not yet written")
    watch = logbook.watch(None)
    assert len(list(tmp_path.iterdir())) == 3
    logbook.clear()
    assert logbook.tail(10) == []
    assert list(tmp_path.iterdir()) == []
    following = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    logbook.append(Level.INFO, "after")
    assert [(record.sequence, record.message) for record in await following] == [(2, "after")]
    logbook.close()
    assert len(lines_of(path)) == 1


async def test_a_file_that_can_not_be_cleared_is_told(tmp_path: Path) -> None:
    (tmp_path / "engine.log").mkdir()
    logbook = Logbook(tmp_path / "engine.log")
    with pytest.raises(FileSystemError):
        logbook.clear()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
async def test_a_full_disk_harms_nobody(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.symlink_to("/dev/full")
    logbook = Logbook(path)
    for text in ("a", "b"):
        logbook.append(Level.INFO, text)
        assert await asyncio.to_thread(file_of(logbook).flush, PATIENCE)
    logbook.append(Level.INFO, "c")
    logbook.close()
    assert messages(logbook) == ["a", "b", "c"]
    assert file_of(logbook).dropped == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
async def test_a_disk_that_has_room_again_is_told_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.symlink_to("/dev/full")
    logbook = Logbook(path)
    for text in ("a", "b"):
        logbook.append(Level.INFO, text)
    assert await asyncio.to_thread(file_of(logbook).flush, PATIENCE)
    path.unlink()
    logbook.append(Level.INFO, "c")
    logbook.close()
    assert [LINE.fullmatch(line)[3] for line in lines_of(path)] == ["2 lines could not be written here", "c"]  # type: ignore[index]


async def test_lines_come_and_go_while_the_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def hang(_: RotatingFile, text: str) -> None:
        begun.set()
        assert goes_on.wait(PATIENCE)

    monkeypatch.setattr(RotatingFile, "write", hang)
    logbook = Logbook(tmp_path / "engine.log")
    logbook.append(Level.INFO, "first")
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    for number in range(LIMIT + 5):
        logbook.append(Level.INFO, f"line {number}")
    assert messages(logbook)[-1] == f"line {LIMIT + 4}"
    assert file_of(logbook).dropped == 5
    goes_on.set()
    logbook.close()


async def test_a_folder_that_can_not_be_made_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    logbook = Logbook(tmp_path / "file" / "engine.log")
    logbook.append(Level.INFO, "text")
    logbook.close()
    assert messages(logbook) == ["text"]


def records_of(*sizes: int) -> list[LogRecord]:
    return [LogRecord(number, 0.0, Level.INFO, "x" * size) for number, size in enumerate(sizes)]


def test_portions_keep_the_order_and_the_limit() -> None:
    records = records_of(10, 400, 400, 400, 5000, 10)
    portions = list(in_portions(records, 2000))
    assert [record for portion in portions for record in portion] == records
    assert [len(portion) for portion in portions] == [3, 1, 1, 1]
    assert list(in_portions([])) == []


def test_the_newest_are_kept_within_the_limit() -> None:
    records = records_of(400, 400, 400)
    assert newest_within(records, 2000) == records[1:]
    assert newest_within(records) == records
    assert newest_within(records, 100) == []
