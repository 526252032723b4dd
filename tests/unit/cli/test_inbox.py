"""Files on their way into the store."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from genaid_server.cli import inbox
from genaid_server.cli.inbox import placed


class Copies:
    """Counts what is copied; `fail_after` interrupts a copy once so many bytes are through."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.copied, self._fail_after = 0, fail_after

    @contextmanager
    def __call__(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        yield self._advance

    def _advance(self, count: int) -> None:
        self.copied += count
        if self._fail_after is not None and self.copied >= self._fail_after:
            raise KeyboardInterrupt


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "My Model.Q4.gguf"
    file.write_bytes(b"weights" * 1000)
    return file


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system boundary between the file and the store, as the system reports one."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)


def test_the_file_is_linked_under_its_own_name(model: Path, data_dir: Path) -> None:
    copies = Copies()
    with placed(model, data_dir, copies) as name:
        assert name == model.name
        assert (data_dir / "inbox" / name).samefile(model)
    assert copies.copied == 0
    assert list((data_dir / "inbox").iterdir()) == []
    assert model.exists()


def test_the_link_may_have_been_moved_away(model: Path, data_dir: Path) -> None:
    with placed(model, data_dir, Copies()) as name:
        (data_dir / "inbox" / name).rename(data_dir / "taken.gguf")
    assert (data_dir / "taken.gguf").samefile(model)


def test_of_a_symbolic_link_the_weights_are_taken_and_the_name_kept(
    model: Path, data_dir: Path, tmp_path: Path
) -> None:
    link = tmp_path / "pretty.gguf"
    try:
        link.symlink_to(model)
    except OSError:
        pytest.skip("this system lets nobody make symbolic links")
    with placed(link, data_dir, Copies()) as name:
        assert name == "pretty.gguf"
        assert not (data_dir / "inbox" / name).is_symlink()
        assert (data_dir / "inbox" / name).samefile(model)


def test_two_files_of_one_name_get_two_names(model: Path, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / model.name
    other.write_bytes(b"others")
    with placed(model, data_dir, Copies()) as first, placed(other, data_dir, Copies()) as second:
        assert first != second
        assert Path(second).suffix == ".gguf"
        assert (data_dir / "inbox" / first).read_bytes() == model.read_bytes()
        assert (data_dir / "inbox" / second).read_bytes() == b"others"
    assert list((data_dir / "inbox").iterdir()) == []


@pytest.mark.usefixtures("no_links")
def test_across_file_systems_it_is_copied(model: Path, data_dir: Path) -> None:
    copies = Copies()
    with placed(model, data_dir, copies) as first, placed(model, data_dir, copies) as second:
        files = {(data_dir / "inbox" / name) for name in (first, second)}
        assert set((data_dir / "inbox").iterdir()) == files
        assert len(files) == 2
        assert all(file.read_bytes() == model.read_bytes() for file in files)
        assert not any(file.samefile(model) for file in files)
    assert copies.copied == 2 * model.stat().st_size
    assert list((data_dir / "inbox").iterdir()) == []


@pytest.mark.usefixtures("no_links")
def test_a_copy_that_is_interrupted_leaves_nothing(
    model: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "BLOCK", 1024)
    with pytest.raises(KeyboardInterrupt), placed(model, data_dir, Copies(fail_after=2048)):
        pytest.fail("the copy was not interrupted")
    assert list((data_dir / "inbox").iterdir()) == []
    assert model.exists()


def test_an_error_while_it_lies_there_leaves_nothing(model: Path, data_dir: Path) -> None:
    with pytest.raises(KeyboardInterrupt), placed(model, data_dir, Copies()):
        raise KeyboardInterrupt
    assert list((data_dir / "inbox").iterdir()) == []


def test_a_missing_file(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), placed(tmp_path / "none.gguf", data_dir, Copies()):
        pytest.fail("there is nothing to place")
