"""The folders of the model store on the disk: putting models in, and taking them out.

Below `models` there is a folder for each type of model, with a record, ID.json, for each model. The only file of a
model lies beside its record; the files of one with several lie in a folder of its own, under their own names: so
llama.cpp finds the shards. A file may be part of several models, and goes with the last one.
"""

import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import ServerBusyError
from genaid_server.kit.files import write_atomic
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.store.candidates import Candidate
from genaid_server.resource.core.store.files import free_folder, free_path, on_disk
from genaid_server.resource.core.store.install_journal import FileMove, install_files, journal_of, remove_if_empty
from genaid_server.resource.core.store.model import Model, ModelFile
from genaid_server.resource.core.store.names import variants
from genaid_server.resource.core.store.records import to_record
from genaid_server.supervision.model_lock import lock_of, taken

log = logging.getLogger(__name__)

TOMBSTONE: Final = ".deleting"
"""What the record of a model ends in while its files are removed."""


class StoreLayout:
    """The folders below one data directory.

    All methods block. One thread at a time may call those that change something.
    """

    def __init__(self, data_dir: Path) -> None:
        self.root = data_dir.absolute()
        self.inbox = self.root / "inbox"
        self.models = self.root / "models"
        self.folders = {kind: self.models / kind for kind in ModelType}

    def holds(self, path: Path) -> bool:
        """Whether a file lies among the models."""
        return path.is_relative_to(self.models)

    def is_free(self, model_id: str) -> bool:
        """Whether nothing on the disk has this id.

        A record that couldn't be read is no model, but nothing to overwrite either.
        """
        names = (f"{model_id}.json", f".{model_id}{TOMBSTONE}", journal_of(Path(), model_id).name)
        return not any(os.path.lexists(folder / name) for folder in self.folders.values() for name in names)

    def install(self, candidate: Candidate, model_id: str, stop: threading.Event) -> Model:
        """Move files into their places and make them a model with an id that is free: wholly, or not at all.

        Raises OSError where the disk refuses, and StoppedError when `stop` is set.
        """
        folder = self.folders[candidate.type]
        files = self._with_places(candidate, folder, model_id)
        model = Model(
            id=model_id,
            name=candidate.name,
            type=candidate.type,
            create_time=datetime.now(UTC),
            format=candidate.format,
            files=files,
            metadata=candidate.metadata,
            supports_reasoning=candidate.supports_reasoning,
        )
        moves = [
            FileMove(now.path, then.path, then.size_bytes, shared=self.holds(now.path))
            for now, then in zip(candidate.files, files, strict=True)
            if now.path != then.path
        ]
        if moves:
            install_files(self.root, journal_of(folder, model_id), moves, lambda: self.write_record(model), stop)
        else:
            self.write_record(model)
        return model

    def write_record(self, model: Model) -> None:
        """Write the record of a model, or write it anew. Raises OSError."""
        write_atomic(self._record(model), to_record(model, self.models))

    def remove(self, model: Model, used: Collection[Path]) -> None:
        """Remove a model and its files, but for those that others use.

        Raises ServerBusyError where an engine has loaded it, and FileSystemError where the disk refuses; then the
        model stays.
        """
        removed = [file.path for file in model.files if file.path not in used]
        with on_disk("delete", model.path.name):
            with _locked(model):
                self._remove_files(model, removed)
            for folder in {model.path.parent, *(path.parent for path in removed)} - set(self.folders.values()):
                remove_if_empty(folder)

    def _record(self, model: Model) -> Path:
        return self.folders[model.type] / f"{model.id}.json"

    # --- places

    def _with_places(self, candidate: Candidate, folder: Path, model_id: str) -> tuple[ModelFile, ...]:
        """The files with the places that they will have; one that keeps its place is shared with another model."""
        files = candidate.files
        if all(self.holds(file.path) for file in files) and (not files[0].shard or _side_by_side(candidate)):
            return files
        if len(files) == 1:
            return (replace(files[0], path=free_path(folder, candidate.names[0], model_id)),)
        own = free_folder(folder, model_id)
        if files[0].shard:  # llama.cpp wants them in one folder, and by their own names
            return tuple(replace(file, path=own / name) for file, name in zip(files, candidate.names, strict=True))
        used: set[str] = set()
        return tuple(
            file if self.holds(file.path) else replace(file, path=own / _unused(name, file, used))
            for file, name in zip(files, candidate.names, strict=True)
        )

    # --- removing

    def _remove_files(self, model: Model, removed: Sequence[Path]) -> None:
        """Remove files. As long as the first is there, the model can stay; then it is gone, whatever happens."""
        record = self._record(model)
        tombstone = record.with_name(f".{model.id}{TOMBSTONE}")
        try:
            record.replace(tombstone)
        except FileNotFoundError:
            write_atomic(tombstone, to_record(model, self.models))
        try:
            for path in removed[:1]:
                path.unlink(missing_ok=True)
        except OSError:
            tombstone.replace(record)
            raise
        finish_removal(tombstone, removed)


def finish_removal(tombstone: Path, removed: Sequence[Path]) -> None:
    """Remove what is left of a model; what can't be removed now is tried again when the store is opened."""
    left = 0
    for path in removed:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("Can't remove %s yet: %s.", path.name, error.strerror or type(error).__name__)
            left += 1
    if not left:
        with contextlib.suppress(OSError):
            tombstone.unlink()


@contextmanager
def _locked(model: Model) -> Iterator[None]:
    """Keep engines from loading the model. Raises ServerBusyError where one has."""
    lock = lock_of(model.path, model.id)
    if not lock.parent.is_dir():  # somebody has removed it by hand
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(taken(lock))
        except ServerBusyError as error:
            raise ServerBusyError(
                f"An engine has loaded the model {model.id!r}. Stop the engine, then delete the model.",
                modelId=model.id,
            ) from error
        yield
    # An engine that finds the file there no longer finds the model either. Windows removes no file that is open.
    with contextlib.suppress(OSError):
        lock.unlink()


def _side_by_side(candidate: Candidate) -> bool:
    folder = candidate.files[0].path.parent
    return all(file.path == folder / name for file, name in zip(candidate.files, candidate.names, strict=True))


def _unused(name: str, file: ModelFile, used: set[str]) -> str:
    """A name that none of the others has: its own, else one made of what it is to the model."""
    suffix = Path(name).suffix.lower()
    others = (f"{each}{suffix}" for each in variants(file.component.replace("_", "-")))
    chosen = next(each for each in itertools.chain([name], others) if each.casefold() not in used)
    used.add(chosen.casefold())
    return chosen
