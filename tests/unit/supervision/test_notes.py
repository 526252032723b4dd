"""A note about an engine is there while it runs, and is not believed when it doesn't."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from genaid_server.supervision.notes import FOLDER, EngineNote, noted, running

WRONG = b'{"kind": "llm", "model_id": "m", "pid": "no number", "started": "never"}'


@pytest.fixture
def other() -> "Iterator[subprocess.Popen[bytes]]":
    """A process that runs until its stdin is closed."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_it_is_there_for_the_time_of_the_block(tmp_path: Path) -> None:
    with noted(tmp_path, "llm", "a-model", os.getpid()):
        (note,) = running(tmp_path)
    assert note == EngineNote("llm", "a-model", os.getpid(), psutil.Process().create_time())
    assert running(tmp_path) == []
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_several_engines_are_told_apart(tmp_path: Path, other: "subprocess.Popen[bytes]") -> None:
    with noted(tmp_path, "llm", "one", os.getpid()), noted(tmp_path, "image", "two", other.pid):
        assert [(note.kind, note.model_id) for note in running(tmp_path)] == [("image", "two"), ("llm", "one")]


def test_that_of_an_engine_whose_service_was_killed_goes(tmp_path: Path, other: "subprocess.Popen[bytes]") -> None:
    block = noted(tmp_path, "image", "a-model", other.pid)
    block.__enter__()
    assert len(running(tmp_path)) == 1
    other.kill()
    other.wait()
    assert running(tmp_path) == []
    assert list((tmp_path / FOLDER).iterdir()) == []
    block.__exit__(None, None, None)


def test_a_process_that_got_the_same_id_later_is_no_engine(tmp_path: Path) -> None:
    with noted(tmp_path, "llm", "a-model", os.getpid()):
        (path,) = (tmp_path / FOLDER).iterdir()
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"started": 1.0}))
        assert running(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kind": "llm"}', b'{"kind": 1, "pid": "x"}', b"\xff", WRONG])
def test_one_that_can_not_be_read_is_removed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FOLDER / "llm-1.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert running(tmp_path) == []
    assert not path.exists()


def test_what_stands_in_the_place_of_a_note_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / FOLDER / "folder.json").mkdir(parents=True)
    (tmp_path / FOLDER / "deep.json").write_bytes(b"[" * 100_000)
    assert running(tmp_path) == []


def test_an_engine_that_ended_at_once_leaves_none(tmp_path: Path, other: "subprocess.Popen[bytes]") -> None:
    other.kill()
    other.wait()
    with noted(tmp_path, "llm", "a-model", other.pid):
        assert running(tmp_path) == []


def test_without_a_directory_there_are_none() -> None:
    with noted(None, "llm", "a-model", os.getpid()):
        pass


def test_a_directory_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert running(tmp_path / "nowhere") == []
