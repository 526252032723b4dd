"""The models on this machine, and the only one who adds or removes any.

Below the data directory lie `models/llm` and `models/diffusion`, with each model's weights and its record, ID.json;
and `inbox`, where a file to import has to be put first. A record is written after the weights are in place and
leaves its place before they do, and both appear by renaming: whenever the process dies, each model is either wholly
there or not at all, and what a journal says was half done is undone when the store is opened again.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from genaid_server.kit.errors import (
    DomainError,
    FileSystemError,
    ModelNotFoundError,
    ServerBusyError,
    ServerError,
)
from genaid_server.kit.request_ids import RequestIds, check_request_id
from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core.formats.headers import Header
from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.store.candidates import Candidate, inspect
from genaid_server.resource.core.store.files import (
    Stamp,
    StoppedError,
    check_stamp,
    checksum_of,
    flush,
    missing,
    on_disk,
    read_stamp,
    shared_file_gone,
)
from genaid_server.resource.core.store.layout import StoreLayout
from genaid_server.resource.core.store.model import Model, ModelFile, ModelSource, SourceType, StagedFile
from genaid_server.resource.core.store.names import (
    MAX_ID,
    check_file_name,
    check_id,
    check_name,
    id_taken,
    slug,
    variants,
)
from genaid_server.resource.core.store.recovery import load
from genaid_server.resource.core.store.refreshing import RemoteHeader, Strategy, fresh_header, raw_header, refreshed
from genaid_server.resource.core.store.verification import VerifyProgress, verify_files


class ModelStore:
    """Keeps the models below one data directory. One store at a time may have the directory open.

    Reading takes the index in memory. Each change to the store, after the long work of checking a file, is made
    under one lock and all at once. All methods belong to one event loop.
    """

    def __init__(self, data_dir: Path) -> None:
        """Use `open`, which also loads what is there."""
        self._layout = StoreLayout(data_dir)
        self._models: dict[str, Model] = {}
        self._ordered: tuple[Model, ...] | None = ()
        self._by_checksum: dict[str, ModelFile] | None = None
        self._lock = asyncio.Lock()
        self._stop = threading.Event()
        self._verifications: set[threading.Event] = set()
        self._imports: set[asyncio.Task[Model]] = set()
        self._running: dict[str, asyncio.Task[Model]] = {}
        self._answered = RequestIds[str]()
        self.in_use: Callable[[str], str | None] | None = None
        """Asked before a model is deleted, with its id; may return why that can't be, which is SERVER_BUSY."""

    @classmethod
    async def open(cls, data_dir: Path) -> "ModelStore":
        """Open the store below `data_dir`, which is made where it doesn't exist.

        A damaged record, or one without weights, is left alone, logged and passed over. Raises FileSystemError
        where the folders can't be made or read.
        """
        store = cls(data_dir)
        with on_disk("open", "the model store"):
            store._models, store._ordered = await asyncio.to_thread(load, store._layout), None
        return store

    async def close(self) -> None:
        """Stop imports and verifications that aren't finished, and wait until no change is under way.

        Nothing can be imported or installed after.
        """
        self._stop.set()
        self.end_verifications()
        if self._imports:
            await asyncio.wait(self._imports)
        async with self._lock:
            pass

    def end_verifications(self) -> None:
        """Stop verifications that aren't finished; they raise ServerError."""
        for stop in self._verifications:
            stop.set()

    @property
    def inbox(self) -> Path:
        """Where files to import lie."""
        return self._layout.inbox

    # --- reading

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

    def file_with(self, checksum: str) -> ModelFile | None:
        """A file of the store that was installed with this checksum (`sha256:` and lower-case digits), if it is there.

        To share it, pass its path to `install`, which fails where its model was deleted meanwhile.
        """
        if self._by_checksum is None:
            files = (file for model in self.list() for file in model.files)
            self._by_checksum = {file.checksum: file for file in files if file.checksum}
        file = self._by_checksum.get(checksum)
        try:
            return file if file and file.path.stat().st_size == file.size_bytes else None
        except OSError:
            return None

    async def raw_metadata(self, model_id: str) -> str:
        """Everything that the header of the primary file says, as JSON; empty for a format without such a header.

        Raises ModelNotFoundError, also where the model is deleted meanwhile; FileSystemError where the file can't be
        read; InvalidRequestError where it has been damaged.
        """
        model = self.get(model_id)
        if model.format is not ModelFormat.GGUF:
            return ""
        try:
            return await asyncio.to_thread(raw_header, model.path)
        except DomainError:
            self._check_same(model)
            raise

    async def verify(self, model_id: str) -> AsyncGenerator[VerifyProgress]:
        """Hash a model's files and compare with the checksums that they were installed with.

        Yields how far it is a few times a second, and at last the result. To leave it ends the work. Raises
        ModelNotFoundError, also where the model is deleted meanwhile; FileSystemError where a file can't be read;
        ServerError when the store is closed meanwhile.
        """
        model = self.get(model_id)
        stop = threading.Event()
        self._verifications.add(stop)
        try:
            async with contextlib.aclosing(verify_files(model.files, stop)) as found:
                async for progress in found:
                    if progress.verdict is not None:
                        self._check_same(model)
                    yield progress
        except StoppedError as error:
            raise ServerError("The model store was closed before the files were verified.") from error
        except FileSystemError:
            self._check_same(model)
            raise
        finally:
            self._verifications.discard(stop)

    # --- adding

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
        while it is installed; finished calls are remembered in memory only, the last thousand of them.
        A caller that goes away doesn't end the import. A file that is refused stays in the inbox.

        Raises InvalidRequestError where the file or an argument isn't right, FileSystemError where the disk
        refuses, and ServerError when the store is closed meanwhile.
        """
        check_request_id(request_id)
        if earlier := self._models.get(self._answered.known(request_id) or ""):
            return earlier
        task = self._running.get(request_id)
        if task is None:
            task = asyncio.create_task(self._import(file_name, name, model_type, model_id, request_id))
            self._imports.add(task)
            if request_id:
                self._running[request_id] = task
            task.add_done_callback(lambda done: self._imported(request_id, done))
        return await asyncio.shield(task)

    async def install(
        self,
        staged: Sequence[StagedFile],
        *,
        name: str = "",
        model_type: ModelType | None = None,
        model_id: str = "",
    ) -> Model:
        """Make files that are complete and hashed one model: wholly, or not at all, and then they stay where they are.

        They are one file, or all shards of a model in order, or the components of a diffusion model. They lie below
        the data directory and are moved, or are files of the store and are shared. `name` defaults to the header's
        own name, else the primary file's; `model_type` to what the header says; `model_id` to a free one made of the
        name. A caller that is cancelled while the files move finds the model installed.

        Raises InvalidRequestError where a file or an argument isn't right, FileSystemError where the disk refuses or
        a shared file is gone, and ServerError when the store is closed.
        """
        name = self._check_wishes(name, model_id)
        candidate = await to_the_end(asyncio.to_thread(self._check_staged, tuple(staged), name, model_type))
        return await to_the_end(self._install(candidate, model_id))

    async def _import(
        self, file_name: str, name: str, wanted: ModelType | None, model_id: str, request_id: str
    ) -> Model:
        name = self._check_wishes(name, model_id)
        try:
            candidate, stamp = await asyncio.to_thread(self._check_inbox, file_name, name, wanted)
            return await to_the_end(self._install(candidate, model_id, stamp, request_id))
        except StoppedError as error:
            raise ServerError("The model store was closed before the import was finished.") from error

    def _imported(self, request_id: str, task: "asyncio.Task[Model]") -> None:
        self._imports.discard(task)
        self._running.pop(request_id, None)
        if not task.cancelled():
            task.exception()  # which says that it was seen: the caller may be gone

    def _check_wishes(self, name: str, model_id: str) -> str:
        """Refuse what can be refused before any work, and return the name for people."""
        if self._stop.is_set():
            raise ServerError("The model store is closed.")
        if model_id:
            check_id(model_id)
            self._check_free(model_id)
        return check_name(name)

    def _check_inbox(self, file_name: str, name: str, wanted: ModelType | None) -> tuple[Candidate, Stamp]:
        """Everything that takes long or can go wrong before the store is touched. Runs in a thread."""
        check_file_name(file_name)
        path = self.inbox / file_name
        with on_disk("read", file_name):
            try:
                stamp = read_stamp(path)
                source = ModelSource(SourceType.FILE, file=file_name)
                candidate = inspect([StagedFile(path, file_name, "", source)], name, wanted)
                checksum = checksum_of(path, self._stop)
                flush(path)
                check_stamp(path, stamp)
            except FileNotFoundError as error:  # it went away in the middle, into another import for example
                raise missing(file_name) from error
        return replace(candidate, files=(replace(candidate.files[0], checksum=checksum),)), stamp

    def _check_staged(self, staged: Sequence[StagedFile], name: str, wanted: ModelType | None) -> Candidate:
        """The same for files that are hashed already."""
        with on_disk("read", staged[0].name if staged else "nothing"):
            try:
                candidate = inspect(staged, name, wanted)
                for file in candidate.files:
                    if not self._layout.holds(file.path):
                        flush(file.path)
            except FileNotFoundError as error:
                for each in staged:
                    if self._layout.holds(each.path) and not each.path.is_file():
                        raise shared_file_gone(each.name) from error
                raise
        return candidate

    async def _install(
        self, candidate: Candidate, model_id: str, stamp: Stamp | None = None, request_id: str = ""
    ) -> Model:
        async with self._lock:
            model = await asyncio.to_thread(self._move_in, candidate, model_id, stamp)
            self._set(model.id, model)
            self._answered.remember(request_id, model.id)
            return model

    def _move_in(self, candidate: Candidate, model_id: str, stamp: Stamp | None) -> Model:
        """Choose an id and move the files. Runs in a thread, under the lock."""
        if self._stop.is_set():
            raise ServerError("The model store is closed.")
        with on_disk("install", candidate.names[0]):
            if model_id:
                self._check_free(model_id)
            else:
                model_id = next(each for each in variants(slug(candidate.name)) if self._is_free(each))
            if stamp is not None:
                check_stamp(candidate.files[0].path, stamp)
            self._check_shared(candidate)
            return self._layout.install(candidate, model_id, self._stop)

    def _check_shared(self, candidate: Candidate) -> None:
        owned = self._paths(self._models.values())
        for file in candidate.files:
            if self._layout.holds(file.path) and file.path not in owned:
                raise shared_file_gone(file.name)

    def _check_free(self, model_id: str) -> None:
        if not self._is_free(model_id):
            raise id_taken(model_id)

    def _is_free(self, model_id: str) -> bool:
        return model_id not in self._models and self._layout.is_free(model_id)

    # --- changing

    async def refresh(self, model_id: str, strategy: Strategy, remote: RemoteHeader) -> Model:
        """Read the header of a model's primary file anew, here or at its source, and keep what it says.

        A model that is replaced by another one under its id meanwhile has its own header read. Raises
        ModelNotFoundError; InvalidRequestError where the file is no GGUF file or damaged; FileSystemError;
        DownloadError where the source can't be read or isn't known.
        """
        while True:
            model = self.get(model_id)
            try:
                header = await fresh_header(model, strategy, remote)
            except DomainError:
                self.get(model_id)
                if not self._is_same(model):
                    continue
                raise
            if kept := await to_the_end(self._keep(model, header)):
                return kept

    async def _keep(self, model: Model, header: Header) -> Model | None:
        """Keep what the header of this model says; None where another one has its id by now."""
        async with self._lock:
            present = self.get(model.id)
            if not self._is_same(model):
                return None
            changed = refreshed(present, header)
            with on_disk("write", f"{model.id}.json"):
                await asyncio.to_thread(self._layout.write_record, changed)
            self._set(model.id, changed)
            return changed

    def _is_same(self, model: Model) -> bool:
        """Whether this model is still there, and not another one under its id."""
        present = self._models.get(model.id)
        return present is not None and (present.create_time, present.files) == (model.create_time, model.files)

    def _check_same(self, model: Model) -> None:
        """Raises ModelNotFoundError where this model was deleted, also if another one has its id by now."""
        if not self._is_same(model):
            raise ModelNotFoundError(f"Model {model.id!r} was deleted meanwhile.", modelId=model.id)

    async def delete(self, model_id: str) -> None:
        """Remove a model and its files, but for those that other models use.

        Raises ModelNotFoundError; ServerBusyError where an engine has loaded the model or `in_use` says so;
        FileSystemError where the disk refuses; in each case the model stays.
        """
        await to_the_end(self._delete(model_id))

    async def _delete(self, model_id: str) -> None:
        async with self._lock:
            model = self.get(model_id)
            if self.in_use and (reason := self.in_use(model_id)):
                raise ServerBusyError(reason, modelId=model_id)
            self._set(model_id, None)
            try:
                await asyncio.to_thread(self._layout.remove, model, self._paths(self._models.values()))
            except BaseException:
                self._set(model_id, model)
                raise
            self._answered.forget(lambda made: made == model_id)

    @staticmethod
    def _paths(models: Collection[Model]) -> frozenset[Path]:
        return frozenset(file.path for model in models for file in model.files)

    def _set(self, model_id: str, model: Model | None) -> None:
        if model is None:
            self._models.pop(model_id, None)
        else:
            self._models[model_id] = model
        self._ordered = self._by_checksum = None
