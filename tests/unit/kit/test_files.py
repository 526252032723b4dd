"""A file that is written atomically is the old one or the new one, never a part, and leaves nothing behind."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from genaid_server.kit.files import write_atomic

SIZE = 300_000
OLD, NEW = b"o" * SIZE, b"n" * SIZE

WRITE_FOR_EVER = """
import itertools, pathlib, sys
from genaid_server.kit.files import write_atomic
for letter in itertools.cycle(b"on"):
    write_atomic(pathlib.Path(sys.argv[1]), bytes([letter]) * int(sys.argv[2]), durable=False)
    print("written", flush=True)
"""


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """A disk that is full after so many bytes of a file."""
    resource = pytest.importorskip("resource", reason="the limit is POSIX's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
def test_content_is_written_and_replaced(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "folder" / "note.json"
    for data in (OLD, b"", NEW):
        write_atomic(path, data, durable=durable)
        assert path.read_bytes() == data
    assert names(path.parent) == ["note.json"]


def test_a_full_disk_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_atomic(path, OLD)
    with file_size_limit(SIZE // 2), pytest.raises(OSError):
        write_atomic(path, NEW)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["note.json"]


def test_what_can_not_be_replaced_stays_and_no_temporary_file_does(tmp_path: Path) -> None:
    folder = tmp_path / "note.json"
    (folder / "something").mkdir(parents=True)
    with pytest.raises(OSError):
        write_atomic(folder, NEW)
    assert names(tmp_path) == ["note.json"]
    assert names(folder) == ["something"]


def test_a_folder_that_can_not_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):
        write_atomic(tmp_path / "file" / "note.json", NEW)


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no file that is being read")
def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_atomic(path, OLD)
    over = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not over.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(50):
            write_atomic(path, NEW, durable=False)
            write_atomic(path, OLD, durable=False)
    finally:
        over.set()
        reader.join()
    assert seen
    assert set(seen) <= {OLD, NEW}


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(path), str(SIZE)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            for _ in range(5):
                assert writer.stdout.readline().strip() == b"written"
            writer.kill()
        assert path.read_bytes() in (OLD, NEW)
