"""Files of weights: what their headers say, their checksums, and moving them so that nothing is ever half there."""

import contextlib
import errno
import hashlib
import itertools
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import (
    FileSystemError,
    InvalidRequestError,
)
from genaid_server.resource.core import gguf, safetensors
from genaid_server.resource.core import metadata as gguf_metadata
from genaid_server.resource.core.metadata import GgufMetadata
from genaid_server.resource.core.model import ModelFormat, ModelType
from genaid_server.resource.core.names import variants

_BLOCK: Final = 2**20  # bytes hashed or copied at once, between two looks at whether to stop


@contextmanager
def on_disk(operation: str, name: str) -> Iterator[None]:
    """Turn the disk's refusals into FileSystemErrors that say what was tried, without where on the disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileSystemError(f"Can't {operation} {name}: {reason}.", operation=operation, file=name) from error


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    changed: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file in the inbox that was checked and hashed, and isn't in the store yet."""

    path: Path
    stamp: Stamp
    name: str
    type: ModelType
    format: ModelFormat
    metadata: GgufMetadata | None
    checksum: str


@dataclass(frozen=True, slots=True)
class Header:
    """What the headers of all formats have in common; `guess` is what they say that the model is for."""

    name: str
    guess: ModelType | None
    metadata: GgufMetadata | None


class StoppedError(Exception):
    """The store is being closed."""


def missing(file_name: str) -> InvalidRequestError:
    """The error for a file that is not in the inbox."""
    return InvalidRequestError(
        f"{file_name} is not in the inbox. Put the file there, then import it by its name.", field="file_name"
    )


def read_stamp(path: Path) -> Stamp:
    """Look at a file of the inbox. Raises InvalidRequestError where it is missing or no plain file."""
    try:
        found = path.lstat()
        inside = path.resolve().parent == path.parent.resolve()
    except FileNotFoundError as error:
        raise missing(path.name) from error
    if not stat.S_ISREG(found.st_mode) or not inside:
        raise InvalidRequestError(f"{path.name} is a link, a folder or a device, and no plain file", field="file_name")
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def check_stamp(path: Path, stamp: Stamp) -> None:
    """Raises InvalidRequestError where the file changed since the stamp was taken."""
    if read_stamp(path) != stamp:
        raise InvalidRequestError(
            f"{path.name} was changed while it was being imported. Import it again when it is complete.",
            field="file_name",
        )


def read_header(path: Path, form: ModelFormat) -> Header:
    """Read and check the header of a file. Raises InvalidRequestError, OSError."""
    if form is ModelFormat.GGUF:
        header = gguf.read_header(path)
        check_whole(header.tensor_count)
        guess, metadata = gguf_metadata.guess_type(header), gguf_metadata.metadata(header)
        return Header(metadata.general_name, ModelType(guess) if guess else None, metadata)
    tensors = safetensors.read_header(path)
    check_whole(len(tensors.tensors))
    title = tensors.metadata.get("modelspec.title", "")
    return Header(title, ModelType(safetensors.guess_type(tensors)), None)


def check_whole(tensor_count: int) -> None:
    """Raises InvalidRequestError for a file that is only a part of a model."""
    if not tensor_count:
        raise InvalidRequestError(
            "The file holds no tensors: it is a part of a model, such as a vocabulary. Fetch the whole model.",
            field="file",
        )


def decide_type(header: Header, form: ModelFormat, wanted: ModelType | None) -> ModelType:
    """What a model is for: as wanted, if the header does not say otherwise. Raises InvalidRequestError."""
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
                raise StoppedError


def checksum_of(path: Path, stop: threading.Event) -> str:
    """The SHA-256 of a file, as `sha256:` and hexadecimal digits. Raises StoppedError when `stop` is set."""
    digest = hashlib.sha256()
    _pump(path, digest.update, stop)
    return f"sha256:{digest.hexdigest()}"


def flush(path: Path) -> None:
    """Have a file's content on the disk, and not only on its way there."""
    if os.name == "nt":
        # Windows flushes only what it may write to, and an imported file may be read-only: that one lay there
        # before, and only a loss of power could still harm it.
        with contextlib.suppress(PermissionError), path.open("r+b") as writable:
            os.fsync(writable.fileno())
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def move(source: Path, target: Path, stop: threading.Event) -> None:
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


def free_path(folder: Path, name: str, model_id: str) -> Path:
    """Where weights can go without overwriting any: under their own name, else under one made of the id."""
    suffix = Path(name).suffix.lower()
    names = itertools.chain([name], (f"{variant}{suffix}" for variant in variants(model_id)))
    return next(path for each in names if not os.path.lexists(path := folder / each))
