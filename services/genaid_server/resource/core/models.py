"""The models on this machine, and the only one who adds or removes any.

Below the data directory lie `models/llm` and `models/diffusion`, with each model's weights and beside them its
record, ID.json; and `inbox`, where a file to import has to be put first. A record is written after the weights are
in place and removed before they are, and both appear by renaming: whenever the process dies, each model is either
wholly there or not at all.
"""

import asyncio
import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import stat
import tempfile
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from genaid_server.kit.errors import (
    FileSystemError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerBusyError,
    ServerError,
)
from genaid_server.kit.files import write_atomic
from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core import gguf, safetensors
from genaid_server.resource.core.gguf import GgufMetadata

log = logging.getLogger(__name__)

MAX_ID: Final = 80
MAX_NAME: Final = 200
MAX_FILE_NAME: Final = 200
MAX_REQUEST_ID: Final = 128
REMEMBERED_REQUESTS: Final = 1024
"""How many finished imports are remembered by their request id."""

_MAX_RECORD_BYTES: Final = 65_536
_BLOCK: Final = 2**20  # bytes hashed or copied at once, between two looks at whether to stop
_ID: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# Windows has devices of these names in every folder, whatever the suffix.
_DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³")]
)
_PICKLED: Final = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


class ModelType(StrEnum):
    """What a model is for; also the name of the folder that it lies in."""

    LLM = "llm"
    DIFFUSION = "diffusion"


class ModelFormat(StrEnum):
    """How weights are stored; also the suffix of their files."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"


class SourceType(StrEnum):
    """Where a model came from."""

    FILE = "file"
    HUGGINGFACE = "huggingface"
    URL = "url"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The provenance of a model. `file` is its name there; `repo`, as owner/name, is only for HUGGINGFACE."""

    type: SourceType
    url: str = ""
    repo: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One installed model.

    `path` is absolute, `create_time` in UTC, `checksum` is `sha256:` and 64 hexadecimal digits; `metadata` is None
    for a format without such a header.
    """

    id: str
    name: str
    type: ModelType
    size_bytes: int
    path: Path
    create_time: datetime
    source: ModelSource
    checksum: str
    format: ModelFormat
    metadata: GgufMetadata | None = None


# --- names


def slug(name: str) -> str:
    """Derive an id from a name.

    Lower case; white space becomes a dash; what is no letter a to z, digit or dash is dropped; dashes are
    collapsed, and trimmed at both ends; at most 80 characters. A name of which nothing is left gets `model-` and
    eight digits of its SHA-256, and one that Windows reserves gets `model-` before it.
    """
    text = re.sub(r"\s+", "-", name.lower())
    text = re.sub(r"-+", "-", re.sub(r"[^a-z0-9-]", "", text)).strip("-")[:MAX_ID].strip("-")
    if not text:
        return f"model-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"
    return f"model-{text}" if text in _DEVICES else text


def _variants(base: str) -> Iterator[str]:
    """`base`, `base-2`, `base-3` and so on, none longer than an id may be."""
    yield base
    for number in itertools.count(2):
        ending = f"-{number}"
        yield base[: MAX_ID - len(ending)].rstrip("-") + ending


def _check_id(model_id: str) -> None:
    if len(model_id) > MAX_ID or not _ID.fullmatch(model_id) or model_id in _DEVICES:
        raise InvalidRequestError(
            f"model_id must be lower-case letters and digits with single dashes between them, at most {MAX_ID} "
            f"characters, and no name that Windows reserves; {slug(model_id)!r} would do",
            field="model_id",
        )


def _check_name(name: str) -> str:
    if len(name) > MAX_NAME:
        raise InvalidRequestError(f"name must be at most {MAX_NAME} characters, not {len(name)}", field="name")
    if _unprintable(name):
        raise InvalidRequestError("name must not contain control characters", field="name")
    return name.strip()


def _check_file_name(name: str) -> ModelFormat:
    """Check that this is a bare name of a model's file, and return the format that its suffix says."""
    if problem := _file_name_problem(name):
        raise InvalidRequestError(
            f"file_name must be the bare name of a file in the inbox, and {problem}", field="file_name"
        )
    suffix = Path(name).suffix.lower()
    if suffix in _PICKLED:
        raise InvalidRequestError(
            f"{suffix} files are pickled: to load one can run any code that its maker put in. "
            "Fetch the model as .gguf or .safetensors.",
            field="file_name",
        )
    try:
        return ModelFormat(suffix.removeprefix("."))
    except ValueError as error:
        raise InvalidRequestError("file_name must end in .gguf or .safetensors", field="file_name") from error


def _file_name_problem(name: str) -> str:
    if not name:
        return "it is empty"
    if len(name) > MAX_FILE_NAME:
        return f"this one has {len(name)} characters, where {MAX_FILE_NAME} are the most"
    if _unprintable(name):
        return "this one contains control characters"
    if name in {".", ".."} or any(character in name for character in "/\\:"):
        return "this one names a folder or a drive"
    if name.split(".")[0].strip().lower() in _DEVICES:
        return "Windows reserves this one"
    return ""


def _unprintable(text: str) -> bool:
    return any(unicodedata.category(character) in {"Cc", "Cs"} for character in text)


def _readable(text: str) -> str:
    """A name out of a file's header, without what a name can't contain."""
    return "".join(" " if _unprintable(character) else character for character in text)[:MAX_NAME].strip()


# --- records


def _record(model: Model) -> bytes:
    record = {
        "id": model.id,
        "name": model.name,
        "type": model.type,
        "format": model.format,
        "file": model.path.name,
        "size_bytes": model.size_bytes,
        "create_time": model.create_time.isoformat(),
        "source": asdict(model.source),
        "checksum": model.checksum,
        "metadata": asdict(model.metadata) if model.metadata else None,
    }
    return json.dumps(record, indent=2).encode() + b"\n"


def _read_record(path: Path) -> Model:
    """The model that the record at `path` describes.

    Keys that this version doesn't know are ignored, and only what makes a model must be there. Raises ValueError
    where the record is damaged and OSError where it or the weights can't be read.
    """
    if path.stat().st_size > _MAX_RECORD_BYTES:
        raise ValueError("it is too long")
    try:
        record = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    model_id, file = _text(record, "id"), _text(record, "file")
    if model_id != path.stem or not _ID.fullmatch(model_id) or len(model_id) > MAX_ID:
        raise ValueError("its id is not its file's name")
    if _file_name_problem(file):
        raise ValueError("its weights have no bare file name")
    weights = path.with_name(file)
    if not weights.is_file():
        raise ValueError("its weights are missing")
    return Model(
        id=model_id,
        name=_text(record, "name", model_id),
        type=ModelType(path.parent.name),
        size_bytes=weights.stat().st_size,
        path=weights,
        create_time=_time(record, weights),
        source=_source(record.get("source")),
        checksum=_text(record, "checksum", ""),
        format=ModelFormat(weights.suffix.lower().removeprefix(".")),
        metadata=_metadata(record.get("metadata")),
    )


def _text(record: Mapping[str, object], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str) or _unprintable(value):
        raise ValueError(f"its {key} is no text")
    return value


def _time(record: Mapping[str, object], weights: Path) -> datetime:
    if "create_time" not in record:
        return datetime.fromtimestamp(weights.stat().st_mtime, UTC)
    time = datetime.fromisoformat(_text(record, "create_time"))
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def _source(record: object) -> ModelSource:
    if not isinstance(record, dict):
        return ModelSource(SourceType.FILE)
    return ModelSource(
        type=SourceType(_text(record, "type", SourceType.FILE)),
        url=_text(record, "url", ""),
        repo=_text(record, "repo", ""),
        file=_text(record, "file", ""),
    )


def _metadata(record: object) -> GgufMetadata | None:
    if not isinstance(record, dict):
        return None
    known = {
        field.name: value
        for field in fields(GgufMetadata)
        if (value := record.get(field.name)) is not None and _fits(value, field.type)
    }
    return GgufMetadata(**known)


def _fits(value: object, kind: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    if isinstance(value, int):
        return 0 <= value < 2**63
    return not isinstance(value, str) or not _unprintable(value)


# --- the disk


@contextmanager
def _disk(operation: str, name: str) -> Iterator[None]:
    """Turn the disk's refusals into FileSystemErrors that say what was tried, without where on the disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileSystemError(f"Can't {operation} {name}: {reason}.", operation=operation, file=name) from error


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    changed: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file in the inbox that was checked and hashed, and isn't in the store yet."""

    path: Path
    stamp: _Stamp
    name: str
    type: ModelType
    format: ModelFormat
    metadata: GgufMetadata | None
    checksum: str


@dataclass(frozen=True, slots=True)
class _Header:
    """What the headers of all formats have in common; `guess` is what they say that the model is for."""

    name: str
    guess: ModelType | None
    tensor_count: int
    metadata: GgufMetadata | None


class _Stopped(Exception):  # noqa: N818 - no failure: the owner asked for it
    """The store is being closed."""


def _read_stamp(path: Path) -> _Stamp:
    """Look at a file of the inbox. Raises InvalidRequestError where it is missing or no plain file."""
    try:
        found = path.lstat()
        inside = path.resolve().parent == path.parent.resolve()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidRequestError(
            f"{path.name} is not in the inbox. Put the file there, then import it by its name.", field="file_name"
        ) from error
    if not stat.S_ISREG(found.st_mode) or not inside:
        raise InvalidRequestError(f"{path.name} is a link, a folder or a device, and no plain file", field="file_name")
    return _Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _check_stamp(path: Path, stamp: _Stamp) -> None:
    if _read_stamp(path) != stamp:
        raise InvalidRequestError(
            f"{path.name} was changed while it was being imported. Import it again when it is complete.",
            field="file_name",
        )


def _read_header(path: Path, form: ModelFormat) -> _Header:
    if form is ModelFormat.GGUF:
        header = gguf.read_header(path)
        guess, metadata = gguf.guess_type(header), gguf.metadata(header)
        return _Header(metadata.general_name, ModelType(guess) if guess else None, header.tensor_count, metadata)
    tensors = safetensors.read_header(path)
    title = tensors.metadata.get("modelspec.title", "")
    return _Header(title, ModelType(safetensors.guess_type(tensors)), len(tensors.tensors), None)


def _decide_type(header: _Header, form: ModelFormat, wanted: ModelType | None) -> ModelType:
    if form is ModelFormat.SAFETENSORS:
        return _safetensors_type(header.guess, wanted)
    if wanted and header.guess and wanted is not header.guess:
        raise InvalidRequestError(
            f"The file's header says that it is a model of type {header.guess}, not {wanted}. Leave the type away.",
            field="type",
        )
    found = wanted or header.guess
    if found is None:
        raise InvalidRequestError(
            "The file's header doesn't say what the model is for: give the type, llm or diffusion.", field="type"
        )
    return found


def _safetensors_type(guess: ModelType | None, wanted: ModelType | None) -> ModelType:
    if wanted is ModelType.LLM:
        raise InvalidRequestError(
            "A safetensors file can only be a diffusion model. Fetch the language model as .gguf.", field="type"
        )
    if wanted is None and guess is ModelType.LLM:
        raise InvalidRequestError(
            "The safetensors file looks like a language model, which has to be GGUF. Fetch it as .gguf.", field="file"
        )
    return ModelType.DIFFUSION


def _pump(path: Path, sink: Callable[[bytes], object], stop: threading.Event) -> None:
    """Pass the content of a file to `sink`, block by block, until its end or until told to stop."""
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            sink(block)
            if stop.is_set():
                raise _Stopped


def _flush(path: Path) -> None:
    """Have a file's content on the disk, and not only on its way there."""
    if os.name == "nt":
        # Windows flushes only what it may write to, and an imported file may be read-only: that one lay there
        # before, and only a loss of power could still harm it.
        with contextlib.suppress(PermissionError), path.open("r+b") as writable:
            os.fsync(writable.fileno())
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _move(source: Path, target: Path, stop: threading.Event) -> None:
    """Move a file to a name that is free. Between file systems this takes a copy, which appears when it is whole."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_between_disks(source, target, stop)


def _move_between_disks(source: Path, target: Path, stop: threading.Event) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:50]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _pump(source, file.write, stop)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    source.unlink()


def _free_weights(folder: Path, name: str, model_id: str) -> Path:
    """Where weights can go without overwriting any: under their own name, else under one made of the id."""
    suffix = Path(name).suffix.lower()
    names = itertools.chain([name], (f"{variant}{suffix}" for variant in _variants(model_id)))
    return next(path for each in names if not os.path.lexists(path := folder / each))


# --- the store


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
        form = _check_file_name(file_name)
        name = _check_name(name)
        if model_id:
            _check_id(model_id)
            self._check_free(model_id)
        try:
            candidate = await asyncio.to_thread(self._check, file_name, form, name, wanted)
            async with self._lock:
                model = await to_the_end(asyncio.to_thread(self._install, candidate, model_id))
                self._set(model.id, model)
        except _Stopped as error:
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

    def _check(self, file_name: str, form: ModelFormat, name: str, wanted: ModelType | None) -> _Candidate:
        """Everything that takes long or can go wrong before the store is touched. Runs in a thread."""
        path = self._inbox / file_name
        with _disk("read", file_name):
            stamp = _read_stamp(path)
            header = _read_header(path, form)
            kind = _decide_type(header, form, wanted)
            if header.tensor_count == 0:
                raise InvalidRequestError(
                    "The file holds no tensors: it is a part of a model, such as a vocabulary. Fetch the whole model.",
                    field="file",
                )
            digest = hashlib.sha256()
            _pump(path, digest.update, self._stop)
            _flush(path)
            _check_stamp(path, stamp)
        return _Candidate(
            path=path,
            stamp=stamp,
            name=name or _readable(header.name) or path.stem,
            type=kind,
            format=form,
            metadata=header.metadata,
            checksum=f"sha256:{digest.hexdigest()}",
        )

    def _install(self, candidate: _Candidate, model_id: str) -> Model:
        """Move the file into its folder and write its record. Runs in a thread, under the lock."""
        folder = self._folders[candidate.type]
        with _disk("install", candidate.path.name):
            if model_id:
                self._check_free(model_id)
            else:
                model_id = next(each for each in _variants(slug(candidate.name)) if self._is_free(each))
            _check_stamp(candidate.path, candidate.stamp)
            target = _free_weights(folder, candidate.path.name, model_id)
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
            _move(candidate.path, target, self._stop)
            try:
                write_atomic(folder / f"{model_id}.json", _record(model))
            except BaseException:
                _move(target, candidate.path, threading.Event())  # to undo is not to be stopped
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
        with _disk("delete", model.path.name):
            record.unlink(missing_ok=True)
            try:
                model.path.unlink(missing_ok=True)
            except OSError:
                write_atomic(record, _record(model))
                raise

    def _set(self, model_id: str, model: Model | None) -> None:
        if model is None:
            self._models.pop(model_id, None)
        else:
            self._models[model_id] = model
        self._ordered = None

    # --- loading

    def _load(self) -> None:
        with _disk("open", "the model store"):
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
            model = _read_record(path)
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
