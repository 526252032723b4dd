"""What the store finds on the disk when it is opened: its models, and what an interrupted change left behind."""

import contextlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import ServerBusyError
from genaid_server.resource.core.formats.kinds import ModelFormat
from genaid_server.resource.core.store.install_journal import SUFFIX, recover, remove_if_empty
from genaid_server.resource.core.store.layout import TOMBSTONE, StoreLayout, finish_removal
from genaid_server.resource.core.store.model import Model
from genaid_server.resource.core.store.records import read_paths, read_record
from genaid_server.supervision.model_lock import taken

log = logging.getLogger(__name__)

_FORMATS: Final = frozenset(f".{form}" for form in ModelFormat)


def load(layout: StoreLayout) -> dict[str, Model]:
    """All models by their ids, after the folders were made and tidied up.

    A damaged record, or one without weights, is left alone, logged and passed over; so is a file that no record and
    no journal names, and what can't be undone or removed, which is tried again when the store is opened again. Raises
    OSError where the folders can't be made or read.
    """
    for folder in (layout.inbox, *layout.folders.values()):
        folder.mkdir(parents=True, exist_ok=True)
    models: dict[str, Model] = {}
    for folder in layout.folders.values():
        for path in sorted(folder.glob("*.json")):
            if not path.name.startswith("."):
                _load_record(path, models)
    owned = {file.path for model in models.values() for file in model.files}
    for folder in layout.folders.values():
        _finish_changes(layout, folder, owned)
        _remove_leftovers(folder, models)
        _report_unrecorded(folder, owned)
    return models


def _load_record(path: Path, models: dict[str, Model]) -> None:
    try:
        model = read_record(path)
        if model.id in models:
            raise ValueError("its id is another model's")
    except (OSError, ValueError) as error:
        log.warning("Passing over the model record %s/%s: %s.", path.parent.name, path.name, _reason(error))
        return
    models[model.id] = model


def _finish_changes(layout: StoreLayout, folder: Path, owned: Collection[Path]) -> None:
    """Undo installations and finish removals that were interrupted."""
    for journal in sorted(folder.glob(f".*{SUFFIX}")):
        with _passing_over(journal):
            if (folder / f"{_id(journal)}.json").exists():
                journal.unlink()
            else:
                recover(layout.root, journal, owned)
    for tombstone in sorted(folder.glob(f".*{TOMBSTONE}")):
        with _passing_over(tombstone):
            left = [path for path in read_paths(tombstone) if path not in owned]
            finish_removal(tombstone, left)


def _remove_leftovers(folder: Path, models: Collection[str]) -> None:
    """Remove what was only of use to a process that has ended."""
    for path in (*folder.iterdir(), *_inner(folder)):
        if path.name.startswith(".") and path.suffix == ".tmp":
            log.info("Removing %s, which an interrupted write left behind.", path.name)
            with contextlib.suppress(OSError):
                path.unlink()
        elif path.name.startswith(".") and path.suffix == ".lock" and _id(path) not in models:
            with contextlib.suppress(OSError, ServerBusyError):
                with taken(path):
                    pass
                path.unlink()
    for path in [path for path in folder.iterdir() if path.is_dir()]:
        remove_if_empty(path)


def _report_unrecorded(folder: Path, owned: Collection[Path]) -> None:
    for path in sorted([*folder.iterdir(), *_inner(folder)]):
        if path.suffix.lower() in _FORMATS and path not in owned:
            log.info("%s belongs to no model: no record names it.", path.relative_to(folder.parent).as_posix())


def _inner(folder: Path) -> Iterator[Path]:
    """What lies in the folders of models with several files."""
    for path in folder.iterdir():
        if path.is_dir():
            with contextlib.suppress(OSError):  # somebody else's
                yield from path.iterdir()


def _id(path: Path) -> str:
    return path.stem.removeprefix(".")


@contextlib.contextmanager
def _passing_over(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        log.warning("Passing over %s/%s: %s.", path.parent.name, path.name, _reason(error))


def _reason(error: OSError | ValueError) -> object:
    return (error.strerror if isinstance(error, OSError) else None) or error
