"""Ids, names for people and names of files, as they are given: what is not safe on every system is refused."""

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import (
    InvalidRequestError,
)
from genaid_server.resource.core.formats.kinds import ModelFormat

MAX_ID: Final = 80
MAX_NAME: Final = 200
MAX_FILE_NAME: Final = 200
ID: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# Windows has devices of these names in every folder, whatever the suffix.
_DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³")]
)
PICKLED: Final = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


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


def variants(base: str) -> Iterator[str]:
    """`base`, `base-2`, `base-3` and so on, none longer than an id may be."""
    yield base
    for number in itertools.count(2):
        ending = f"-{number}"
        yield base[: MAX_ID - len(ending)].rstrip("-") + ending


def check_id(model_id: str) -> None:
    """Raises InvalidRequestError for what is no id."""
    if len(model_id) > MAX_ID or not ID.fullmatch(model_id) or model_id in _DEVICES:
        raise InvalidRequestError(
            f"model_id must be lower-case letters and digits with single dashes between them, at most {MAX_ID} "
            f"characters, and no name that Windows reserves; {slug(model_id)!r} would do",
            field="model_id",
        )


def id_taken(model_id: str) -> InvalidRequestError:
    """The error for an id that another model has."""
    return InvalidRequestError(
        f"The model id {model_id!r} is taken. Choose another one, or delete that model first.", field="model_id"
    )


def check_name(name: str) -> str:
    """A name for people, checked. Raises InvalidRequestError."""
    if len(name) > MAX_NAME:
        raise InvalidRequestError(f"name must be at most {MAX_NAME} characters, not {len(name)}", field="name")
    if unprintable(name):
        raise InvalidRequestError("name must not contain control characters", field="name")
    return name.strip()


def check_file_name(name: str, field: str = "file_name") -> ModelFormat:
    """Check that this is a bare name of a model's file, and return the format that its suffix says.

    Raises InvalidRequestError, which names the field.
    """
    if problem := file_name_problem(name):
        raise InvalidRequestError(f"A model's file must have a bare name, and {problem}", field=field)
    suffix = Path(name).suffix.lower()
    if suffix in PICKLED:
        raise InvalidRequestError(
            f"{suffix} files are pickled: to load one can run any code that its maker put in. "
            "Fetch the model as .gguf or .safetensors.",
            field=field,
        )
    try:
        return ModelFormat(suffix.removeprefix("."))
    except ValueError as error:
        raise InvalidRequestError("A model's file must end in .gguf or .safetensors", field=field) from error


def file_name_problem(name: str) -> str:
    """Why a name is no bare file name that is safe on every system; empty where it is."""
    if not name:
        return "it is empty"
    if len(name) > MAX_FILE_NAME:
        return f"this one has {len(name)} characters, where {MAX_FILE_NAME} are the most"
    if unprintable(name):
        return "this one contains control characters"
    if name in {".", ".."} or any(character in name for character in "/\\:"):
        return "this one names a folder or a drive"
    if name.split(".")[0].strip().lower() in _DEVICES:
        return "Windows reserves this one"
    return ""


def unprintable(text: str) -> bool:
    """Whether a text has control characters or halves of surrogate pairs."""
    return any(unicodedata.category(character) in {"Cc", "Cs"} for character in text)


def readable(text: str) -> str:
    """A name out of a file's header, without what a name can't contain."""
    return "".join(" " if unprintable(character) else character for character in text)[:MAX_NAME].strip()
