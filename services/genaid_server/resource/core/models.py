"""The models on this machine, and the only one who adds or removes any.

Below the data directory lie `models/llm` and `models/diffusion`, with each model's weights and beside them its
record, ID.json; and `inbox`, where a file to import has to be put first. A record is written after the weights are
in place and removed before they are, and both appear by renaming: whenever the process dies, each model is either
wholly there or not at all.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    ServerBusyError,
    ServerError,
)
from genaid_server.kit.files import write_atomic
from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core.model import Model, ModelFormat, ModelSource, ModelType, SourceType
from genaid_server.resource.core.names import MAX_ID, check_file_name, check_id, check_name, readable, slug, variants
from genaid_server.resource.core.records import read_record, to_record
from genaid_server.resource.core.weights import (
    Candidate,
    StoppedError,
    check_stamp,
    checksum_of,
    decide_type,
    flush,
    free_path,
    missing,
    move,
    on_disk,
    read_header,
    read_stamp,
)

log = logging.getLogger(__name__)

MAX_REQUEST_ID: Final = 128
REMEMBERED_REQUESTS: Final = 1024
"""How many finished imports are remembered by their request id."""


class ModelStore:
    """Keeps the models below one data directory. One store at a time may have the directory open.

    Reading takes the index in memory. Each change to the store, after the long work of checking a file, is made
    under one lock and all at once. All methods belong to one event loop.
    """

    def __init__(self, data_dir: Path) -> None:
        """Use `open`, which also loads what is there."""
        root = data_dir.absolute()
        self._inbox = root / "inbox"
        self._folders = {kind: root / "models" / kind for kind in ModelType}
        self._models: dict[str, Model] = {}
        self._ordered: tuple[Model, ...] | None = ()
        self._lock = asyncio.Lock()
        self._stop = threading.Event()
        self._imports: set[asyncio.Task[Model]] = set()
        self._running: dict[str, asyncio.Task[Model]] = {}
        self._answered: OrderedDict[str, Model] = OrderedDict()
        self.in_use: Callable[[str], str | None] | None = None
        """Asked before a model is deleted, with its id; may return why that can't be, which is SERVER_BUSY."""

    @classmethod
    async def open(cls, data_dir: Path) -> "ModelStore":
        """Open the store below `data_dir`, which is made where it doesn't exist.

        A damaged record, or one without weights, is left alone, logged and passed over. Raises FileSystemError
        where the folders can't be made or read.
        """
        store = cls(data_dir)
        await asyncio.to_thread(store._load)
        return store

    async def close(self) -> None:
        """Stop imports that aren't finished, and wait until no change is under way. Nothing can be imported after."""
        self._stop.set()
        if self._imports:
            await asyncio.wait(self._imports)
        async with self._lock:
            pass

    @property
    def inbox(self) -> Path:
        """Where files to import lie."""
        return self._inbox

    def list(self, model_type: ModelType | None = None) -> tuple[Model, ...]:
        """All models, or those of one type, ordered by id."""
        if self._ordered is None:
            self._ordered = tuple(sorted(self._models.values(), key=lambda model: model.id))
        if model_type is None:
            return self._ordered
        return tuple(model for model in self._ordered if model.type is model_type)

    def get(self, model_id: str) -> Model:
        """One model. Raises ModelNotFoundError."""
        if model := self._models.get(model_id):
            return model
        raise ModelNotFoundError(f"Model {model_id[:MAX_ID]!r} is not installed.", modelId=model_id[:MAX_ID])

    async def import_file(
        self,
        file_name: str,
        *,
        name: str = "",
        model_type: ModelType | None = None,
        model_id: str = "",
        request_id: str = "",
    ) -> Model:
        """Move a file from the inbox into the store, after its header was checked and its content hashed.

        `name` defaults to the header's own name, else the file's; `model_type` to what the header says; `model_id`
        to a free one made of the name. A call with the `request_id` of an earlier one returns the model of that,
        while it is installed; finished calls are remembered in memory only, the last REMEMBERED_REQUESTS of them.
        A caller that goes away doesn't end the import. A file that is refused stays in the inbox.

        Raises InvalidRequestError where the file or an argument isn't right, FileSystemError where the disk
        refuses, and ServerError when the store is closed meanwhile.
        """
        if len(request_id) > MAX_REQUEST_ID:
            raise InvalidRequestError(f"request_id must be at most {MAX_REQUEST_ID} characters", field="request_id")
        if earlier := self._answered.get(request_id):
            self._answered.move_to_end(request_id)
            return earlier
        task = self._running.get(request_id)
        if task is None:
            task = asyncio.create_task(self._import(file_name, name, model_type, model_id))
            self._imports.add(task)
            if request_id:
                self._running[request_id] = task
            task.add_done_callback(lambda done: self._imported(request_id, done))
        return await asyncio.shield(task)

    async def delete(self, model_id: str) -> None:
        """Remove a model and its files.

        Raises ModelNotFoundError; ServerBusyError where `in_use` says so; FileSystemError where the disk refuses,
        and then the model stays.
        """
        await to_the_end(self._delete(model_id))

    # --- importing

    async def _import(self, file_name: str, name: str, wanted: ModelType | None, model_id: str) -> Model:
        if self._stop.is_set():
            raise ServerError("The model store is closed.")
        form = check_file_name(file_name)
        name = check_name(name)
        if model_id:
            check_id(model_id)
            self._check_free(model_id)
        try:
            candidate = await asyncio.to_thread(self._check, file_name, form, name, wanted)
            async with self._lock:
                model = await to_the_end(asyncio.to_thread(self._install, candidate, model_id))
                self._set(model.id, model)
        except StoppedError as error:
            raise ServerError("The model store was closed before the import was finished.") from error
        return model

    def _imported(self, request_id: str, task: "asyncio.Task[Model]") -> None:
        self._imports.discard(task)
        self._running.pop(request_id, None)
        # To ask for the exception also says that it was seen: the caller may be gone.
        if not request_id or task.cancelled() or task.exception() is not None:
            return
        if task.result().id in self._models:
            self._answered[request_id] = task.result()
        if len(self._answered) > REMEMBERED_REQUESTS:
            self._answered.popitem(last=False)

    def _check(self, file_name: str, form: ModelFormat, name: str, wanted: ModelType | None) -> Candidate:
        """Everything that takes long or can go wrong before the store is touched. Runs in a thread."""
        path = self._inbox / file_name
        with on_disk("read", file_name):
            try:
                stamp = read_stamp(path)
                header = read_header(path, form)
                kind = decide_type(header, form, wanted)
                checksum = checksum_of(path, self._stop)
                flush(path)
                check_stamp(path, stamp)
            except FileNotFoundError as error:  # it went away in the middle, into another import for example
                raise missing(file_name) from error
        return Candidate(
            path=path,
            stamp=stamp,
            name=name or readable(header.name) or path.stem,
            type=kind,
            format=form,
            metadata=header.metadata,
            checksum=checksum,
        )

    def _install(self, candidate: Candidate, model_id: str) -> Model:
        """Move the file into its folder and write its record. Runs in a thread, under the lock."""
        folder = self._folders[candidate.type]
        with on_disk("install", candidate.path.name):
            if model_id:
                self._check_free(model_id)
            else:
                model_id = next(each for each in variants(slug(candidate.name)) if self._is_free(each))
            check_stamp(candidate.path, candidate.stamp)
            target = free_path(folder, candidate.path.name, model_id)
            model = Model(
                id=model_id,
                name=candidate.name,
                type=candidate.type,
                size_bytes=candidate.stamp.size,
                path=target,
                create_time=datetime.now(UTC),
                source=ModelSource(SourceType.FILE, file=candidate.path.name),
                checksum=candidate.checksum,
                format=candidate.format,
                metadata=candidate.metadata,
            )
            move(candidate.path, target, self._stop)
            try:
                write_atomic(folder / f"{model_id}.json", to_record(model))
            except BaseException:
                move(target, candidate.path, threading.Event())  # to undo is not to be stopped
                raise
        return model

    def _check_free(self, model_id: str) -> None:
        if not self._is_free(model_id):
            raise InvalidRequestError(
                f"The model id {model_id!r} is taken. Choose another one, or delete that model first.",
                field="model_id",
            )

    def _is_free(self, model_id: str) -> bool:
        # The disk is asked as well: a record that couldn't be read is no model, but nothing to overwrite either.
        return model_id not in self._models and not any(
            os.path.lexists(folder / f"{model_id}.json") for folder in self._folders.values()
        )

    # --- deleting

    async def _delete(self, model_id: str) -> None:
        async with self._lock:
            model = self.get(model_id)
            if self.in_use and (reason := self.in_use(model_id)):
                raise ServerBusyError(reason, modelId=model_id)
            self._set(model_id, None)
            try:
                await asyncio.to_thread(self._remove, model)
            except BaseException:
                self._set(model_id, model)
                raise
            for request_id in [each for each, made in self._answered.items() if made.id == model_id]:
                del self._answered[request_id]

    def _remove(self, model: Model) -> None:
        """Remove the record, then the weights; where these can't be removed, put the record back."""
        record = model.path.with_name(f"{model.id}.json")
        with on_disk("delete", model.path.name):
            record.unlink(missing_ok=True)
            try:
                model.path.unlink(missing_ok=True)
            except OSError:
                write_atomic(record, to_record(model))
                raise

    def _set(self, model_id: str, model: Model | None) -> None:
        if model is None:
            self._models.pop(model_id, None)
        else:
            self._models[model_id] = model
        self._ordered = None

    # --- loading

    def _load(self) -> None:
        with on_disk("open", "the model store"):
            for folder in (self._inbox, *self._folders.values()):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in self._folders.values():
                self._load_folder(folder)

    def _load_folder(self, folder: Path) -> None:
        owned: dict[Path, str] = {}
        weights = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") and path.suffix == ".tmp":
                log.info("Removing %s, which an interrupted write left behind.", path.name)
                with contextlib.suppress(OSError):
                    path.unlink()
            elif path.suffix == ".json":
                self._load_record(path, owned)
            elif path.suffix.lower().removeprefix(".") in set(ModelFormat):
                weights.append(path)
        for path in weights:
            if path not in owned:
                log.info("%s/%s is no model's: it has no record beside it.", folder.name, path.name)

    def _load_record(self, path: Path, owned: dict[Path, str]) -> None:
        where = f"{path.parent.name}/{path.name}"
        try:
            model = read_record(path)
            if model.id in self._models:
                raise ValueError("its id is another model's")
            if model.path in owned:
                raise ValueError(f"its weights are those of {owned[model.path]}")
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            log.warning("Passing over the model record %s: %s.", where, reason)
            return
        owned[model.path] = model.id
        self._set(model.id, model)
