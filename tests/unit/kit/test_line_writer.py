"""Whoever has a line never waits; what can't be written is counted, and the count is told; files stay bounded."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from genaid_server.kit.line_writer import CHUNK, LineWriter, RotatingFile

PATIENCE = 30.0  # seconds until a test that waits for a thread gives up


class Place:
    """Where lines are written: it refuses, or does not return, when a test says so."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.refuses = False
        self.entered, self.lets_go = threading.Event(), threading.Event()
        self.lets_go.set()

    def write(self, text: str) -> None:
        self.entered.set()
        assert self.lets_go.wait(PATIENCE)
        if self.refuses:
            raise OSError(28, "No space left on device")
        self.texts.append(text)

    @property
    def lines(self) -> list[str]:
        return "".join(self.texts).splitlines()


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def writer(place: Place) -> Iterator[LineWriter]:
    writer = LineWriter("test", place.write, lambda count: f"lost {count}", limit=10)
    yield writer
    place.lets_go.set()
    assert writer.close(PATIENCE)


def test_lines_come_in_order(place: Place, writer: LineWriter) -> None:
    for word in ("a", "b", 3):
        writer.put(word)
    assert writer.flush(PATIENCE)
    assert place.lines == ["a", "b", "3"]
    assert writer.dropped == 0


def test_a_burst_costs_one_write(place: Place) -> None:
    writer = LineWriter("test", place.write, str, pause=PATIENCE)
    for number in range(CHUNK):
        writer.put(number)
    assert writer.close(PATIENCE)
    assert len(place.texts) == 1
    assert len(place.lines) == CHUNK


def test_nobody_waits_for_a_place_that_does_not_return(place: Place, writer: LineWriter) -> None:
    place.lets_go.clear()
    writer.put("first")
    assert place.entered.wait(PATIENCE)
    for number in range(15):
        writer.put(number)
    assert not writer.flush(0)
    assert writer.dropped == 5
    place.lets_go.set()
    assert writer.flush(PATIENCE)
    assert place.lines == ["first", "lost 5", *map(str, range(10))]
    writer.put("last")
    assert writer.flush(PATIENCE)
    assert place.lines[-1] == "last"


def test_what_was_refused_is_told_when_it_works_again(place: Place, writer: LineWriter) -> None:
    place.refuses = True
    for word in ("a", "b"):
        writer.put(word)
        assert writer.flush(PATIENCE)
    place.refuses = False
    writer.put("c")
    assert writer.flush(PATIENCE)
    assert place.lines == ["lost 2", "c"]
    assert writer.dropped == 2


def test_the_end_has_a_limit(place: Place, writer: LineWriter) -> None:
    place.lets_go.clear()
    writer.put("first")
    assert place.entered.wait(PATIENCE)
    assert not writer.close(0)
    writer.put("too late")
    assert (writer.dropped, writer.missing) == (1, 2)


def test_a_writer_that_was_never_needed_ends_at_once(place: Place, writer: LineWriter) -> None:
    assert writer.close(0)
    assert place.texts == []


def test_silence_forgets_what_waits_and_lets_nothing_be_written(place: Place) -> None:
    writer = LineWriter("test", place.write, str, pause=0.01)
    writer.put("forgotten")
    with writer.silence(PATIENCE):
        before = place.lines
        writer.put("later")
        assert place.lines == before
    assert writer.close(PATIENCE)
    assert place.lines in (["later"], ["forgotten", "later"])  # the latter where the thread was quicker than we


def test_silence_does_not_wait_for_ever(place: Place, writer: LineWriter) -> None:
    place.lets_go.clear()
    writer.put("first")
    assert place.entered.wait(PATIENCE)
    with pytest.raises(TimeoutError), writer.silence(0.01):
        raise AssertionError


def test_lines_from_many_threads_all_arrive(place: Place) -> None:
    writer = LineWriter("test", place.write, str)

    def say(name: str) -> None:
        for number in range(200):
            writer.put(f"{name} {number}")

    threads = [threading.Thread(target=say, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close(PATIENCE)
    for name in "abcd":
        assert [line for line in place.lines if line[0] == name] == [f"{name} {number}" for number in range(200)]


def test_files_are_renamed_before_they_grow_too_long(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "logs" / "a.log", max_bytes=20, files=3)
    for number in range(6):
        file.write(f"text {number}...\n")
    file.close()
    names = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert names == {"a.log": "text 5...\n", "a.log.1": "text 4...\n", "a.log.2": "text 3...\n"}


def test_a_text_that_is_longer_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "a.log", max_bytes=10, files=2)
    file.write("x" * 50)
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]


def test_where_a_file_can_not_be_renamed_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "The file is in use")

    file = RotatingFile(tmp_path / "a.log", max_bytes=10, files=2)
    file.write("first text\n")
    monkeypatch.setattr(os, "rename", refuse)
    file.write("second text\n")
    file.close()
    assert (tmp_path / "a.log").read_text() == "first text\nsecond text\n"


def test_a_file_that_can_not_be_written_is_told_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "logs").write_bytes(b"")
    file = RotatingFile(tmp_path / "logs" / "a.log", max_bytes=100, files=2)
    with pytest.raises(OSError):
        file.write("text")
    (tmp_path / "logs").unlink()
    file.write("text")
    file.remove()
    assert list((tmp_path / "logs").iterdir()) == []
    file.write("again")
    file.close()
    assert (tmp_path / "logs" / "a.log").read_text() == "again"
