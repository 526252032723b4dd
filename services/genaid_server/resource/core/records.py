"""The record of a model: one JSON file beside its weights, read with suspicion."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from genaid_server.resource.core.metadata import GgufMetadata
from genaid_server.resource.core.model import Model, ModelFormat, ModelSource, ModelType, SourceType
from genaid_server.resource.core.names import ID, MAX_ID, file_name_problem, unprintable

_MAX_RECORD_BYTES: Final = 65_536


def to_record(model: Model) -> bytes:
    """The record of a model, as the bytes of its file."""
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


def read_record(path: Path) -> Model:
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
    if model_id != path.stem or not ID.fullmatch(model_id) or len(model_id) > MAX_ID:
        raise ValueError("its id is not its file's name")
    if file_name_problem(file):
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
    if not isinstance(value, str) or unprintable(value):
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
    return not isinstance(value, str) or not unprintable(value)
