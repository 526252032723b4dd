"""The record of a model: one JSON file beside its weights, read with suspicion."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.formats.metadata import GgufMetadata
from genaid_server.resource.core.formats.reasoning import named_for_reasoning
from genaid_server.resource.core.formats.shards import MAX_SHARDS
from genaid_server.resource.core.store.model import Component, Model, ModelFile, ModelSource, SourceType
from genaid_server.resource.core.store.names import ID, MAX_ID, file_name_problem, unprintable

_MAX_RECORD_BYTES: Final = 8 * 2**20  # MAX_SHARDS files with the longest addresses
_MAX_PARTS: Final = 3  # of a file's path below the models: type, perhaps a folder, name


def to_record(model: Model, models: Path) -> bytes:
    """The record of a model, as the bytes of its file.

    Paths in it are relative to `models`, the folder of all models, so that the data directory may move.
    """
    record = {
        "id": model.id,
        "name": model.name,
        "type": model.type,
        "format": model.format,
        "create_time": model.create_time.isoformat(),
        "supports_reasoning": model.supports_reasoning,
        "files": [
            {
                "path": file.path.relative_to(models).as_posix(),
                "size_bytes": file.size_bytes,
                "checksum": file.checksum,
                "component": file.component,
                "shard": file.shard,
                "source": asdict(file.source),
            }
            for file in model.files
        ],
        "metadata": asdict(model.metadata) if model.metadata else None,
    }
    return json.dumps(record, indent=2).encode() + b"\n"


def read_record(path: Path) -> Model:
    """The model that the record at `path` describes.

    Keys that this version doesn't know are ignored, and only what makes a model must be there. Files other than the
    primary one may be missing: what is left of such a model can still be looked at and deleted. Raises ValueError
    where the record is damaged and OSError where it or the weights can't be read.
    """
    record = _load(path)
    model_id = _text(record, "id")
    if model_id != path.stem or not ID.fullmatch(model_id) or len(model_id) > MAX_ID:
        raise ValueError("its id is not its file's name")
    kind = ModelType(path.parent.name)
    files = _files(record, path.parent)
    return Model(
        id=model_id,
        name=_text(record, "name", model_id),
        type=kind,
        create_time=_time(record, files[0].path),
        format=_format(files[0].path),
        files=files,
        metadata=_metadata(record.get("metadata")),
        supports_reasoning=_reasons(record, kind, files[0]),
    )


def read_paths(path: Path) -> tuple[Path, ...]:
    """Where the files of a model lie, whether they exist or not. Raises ValueError, OSError."""
    record, folder = _load(path), path.parent
    return tuple(_path(entry, folder) for entry in _entries(record))


def _load(path: Path) -> Mapping[str, object]:
    if path.stat().st_size > _MAX_RECORD_BYTES:
        raise ValueError("it is too long")
    try:
        record = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    return record


def _entries(record: Mapping[str, object]) -> list[Mapping[str, object]]:
    """What the record says of each file. A record of the first version has one file, and says that of the model."""
    entries = record.get("files", [record])
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_SHARDS:
        raise ValueError("its files are no list, or too many")
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("its files are no JSON objects")
    return entries


def _files(record: Mapping[str, object], folder: Path) -> tuple[ModelFile, ...]:
    files = tuple(_file(entry, folder) for entry in _entries(record))
    if len({file.path for file in files}) < len(files):
        raise ValueError("it names a file twice")
    if not files[0].path.is_file():
        raise ValueError("its weights are missing")
    return files


def _file(entry: Mapping[str, object], folder: Path) -> ModelFile:
    path = _path(entry, folder)
    _format(path)
    return ModelFile(
        path=path,
        size_bytes=path.stat().st_size if path.is_file() else _integer(entry, "size_bytes"),
        checksum=_text(entry, "checksum", ""),
        source=_source(entry.get("source")),
        component=Component(_text(entry, "component", Component.MODEL)),
        shard=_integer(entry, "shard"),
    )


def _path(entry: Mapping[str, object], folder: Path) -> Path:
    parts = _text(entry, "path").split("/") if "path" in entry else [folder.name, _text(entry, "file")]
    kind, *names = parts
    if len(parts) > _MAX_PARTS or not names or kind not in set(ModelType) or any(map(file_name_problem, names)):
        raise ValueError("its weights have no place in the store")
    return folder.parent.joinpath(*parts)


def _format(path: Path) -> ModelFormat:
    return ModelFormat(path.suffix.lower().removeprefix("."))


def _text(record: Mapping[str, object], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str) or unprintable(value):
        raise ValueError(f"its {key} is no text")
    return value


def _integer(record: Mapping[str, object], key: str) -> int:
    value = record.get(key, 0)
    return value if isinstance(value, int) and _fits(value, int) else 0


def _time(record: Mapping[str, object], weights: Path) -> datetime:
    if "create_time" not in record:
        return datetime.fromtimestamp(weights.stat().st_mtime, UTC)
    time = datetime.fromisoformat(_text(record, "create_time"))
    try:
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("its create_time is out of range") from error


def _source(record: object) -> ModelSource:
    if not isinstance(record, dict):
        return ModelSource(SourceType.FILE)
    texts = {key: _text(record, key, "") for key in ("url", "repo", "file", "revision", "etag", "license")}
    return ModelSource(type=SourceType(_text(record, "type", SourceType.FILE)), **texts)


def _reasons(record: Mapping[str, object], kind: ModelType, primary: ModelFile) -> bool:
    found = record.get("supports_reasoning")
    if isinstance(found, bool):
        return found
    return kind is ModelType.LLM and any(map(named_for_reasoning, (primary.name, primary.source.file)))


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
    return not isinstance(value, str) or not unprintable(value)
