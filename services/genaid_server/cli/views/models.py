"""What people are shown of a model."""

import json
from collections.abc import Iterable, Mapping

from genaid_client import HuggingFaceSource, Model, ModelFile, ModelSource, SourceType
from genaid_server.cli.sources import describe_source
from genaid_server.cli.views.units import format_bytes

type Rows = list[tuple[str, object]]


def type_name(model: Model) -> str:
    """What a model is for."""
    return model.type.value if model.type else "unknown"


def model_row(model: Model) -> tuple[str, ...]:
    """A model as one row of a table: id, name, type, architecture, layers, context, size, date."""
    return (
        model.id,
        model.name,
        type_name(model),
        model.architecture,
        str(model.layer_count or ""),
        str(model.context_length or ""),
        format_bytes(model.size_bytes),
        f"{model.create_time.astimezone():%Y-%m-%d}",
    )


def model_details(model: Model) -> Rows:
    """A model as rows of a label and a value; some values are None or empty."""
    return [
        ("id", model.id),
        ("name", model.name),
        ("type", type_name(model)),
        ("format", model.format),
        ("size", _exact_size(model.size_bytes)),
        ("added", f"{model.create_time.astimezone():%Y-%m-%d %H:%M}"),
        ("architecture", model.architecture),
        ("layers", model.layer_count or None),
        ("context", f"{model.context_length} tokens" if model.context_length else None),
        ("reasoning", "thinks before it answers" if model.supports_reasoning else None),
        *_header_rows(model),
        *_license_rows(model),
        *_files_rows(model),
    ]


def raw_rows(header: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    """Everything that a header says, a row a key; text as it is, the rest as JSON."""
    return ((key, value if isinstance(value, str) else json.dumps(value)) for key, value in header.items())


def _header_rows(model: Model) -> Rows:
    if model.metadata is None:
        return []
    return [("vocabulary", model.metadata.vocab_size), ("tensors", model.metadata.tensor_count)]


def _license_rows(model: Model) -> Rows:
    sources = [model.source, *(file.source for file in model.files)]
    licenses = dict.fromkeys(source.license for source in sources if source is not None and source.license)
    return [("license", ", ".join(licenses))]


def _files_rows(model: Model) -> Rows:
    if len(model.files) > 1:
        return [row for file in model.files for row in _file_rows(file)]
    source = model.files[0].source if model.files else model.source
    return [("file", model.path), ("checksum", model.checksum), ("source", _provenance(source))]


def _file_rows(file: ModelFile) -> Rows:
    role = f"{file.component}: " if file.component else ""
    return [
        ("file", f"{role}{file.path}"),
        ("  size", _exact_size(file.size_bytes)),
        ("  checksum", file.checksum),
        ("  source", _provenance(file.source)),
    ]


def _provenance(source: ModelSource | None) -> str:
    if source is None or source.type is None:
        return ""
    match source.type:
        case SourceType.HUGGINGFACE:
            return describe_source(HuggingFaceSource(source.repo, source.file, source.revision))
        case SourceType.URL:
            return source.url
        case SourceType.FILE:
            return f"imported from {source.file}" if source.file else "imported"


def _exact_size(size: int) -> str:
    return f"{format_bytes(size)} ({size:,} bytes)"
