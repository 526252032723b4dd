"""Between the resource manager's core and its contracts, both ways."""

from dataclasses import asdict

from google.protobuf import timestamp_pb2

from genaid.resource.v1 import models_pb2
from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.metadata import GgufMetadata
from genaid_server.resource.core.model import Model, ModelFormat, ModelType, SourceType

_TYPES = {kind: models_pb2.ModelType.Value(f"MODEL_TYPE_{kind.name}") for kind in ModelType}
_TYPES_BACK: dict[int, ModelType] = {number: kind for kind, number in _TYPES.items()}
_FORMATS = {kind: models_pb2.ModelFormat.Value(f"MODEL_FORMAT_{kind.name}") for kind in ModelFormat}
_SOURCES = {kind: models_pb2.SourceType.Value(f"SOURCE_TYPE_{kind.name}") for kind in SourceType}


def type_from_pb(number: int) -> ModelType | None:
    """The model type of a request, None where it is not said. Raises InvalidRequestError."""
    if number == models_pb2.MODEL_TYPE_UNSPECIFIED:
        return None
    if number not in _TYPES_BACK:
        raise InvalidRequestError(f"type {number} is not known", field="type")
    return _TYPES_BACK[number]


def model_to_pb(model: Model) -> models_pb2.Model:
    """A model for callers."""
    create_time = timestamp_pb2.Timestamp()
    create_time.FromDatetime(model.create_time)
    return models_pb2.Model(
        id=model.id,
        name=model.name,
        type=_TYPES[model.type],
        size_bytes=model.size_bytes,
        path=str(model.path),
        create_time=create_time,
        source=models_pb2.ModelSource(
            type=_SOURCES[model.source.type], url=model.source.url, repo=model.source.repo, file=model.source.file
        ),
        checksum=model.checksum,
        format=_FORMATS[model.format],
        metadata=metadata_to_pb(model.metadata) if model.metadata else None,
    )


def metadata_to_pb(metadata: GgufMetadata) -> models_pb2.GgufMetadata:
    """What a header says, for callers."""
    return models_pb2.GgufMetadata(**asdict(metadata))
