"""Models, both ways."""

from dataclasses import fields
from typing import Final

from google.protobuf import timestamp_pb2

from genaid.resource.v1 import models_pb2
from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.formats.metadata import GgufMetadata
from genaid_server.resource.core.store.model import Component, Model, ModelFile, ModelSource, SourceType
from genaid_server.resource.core.store.refreshing import Strategy
from genaid_server.resource.core.store.verification import FileVerification, Verdict, VerifyProgress

TYPES: Final = {kind: models_pb2.ModelType.Value(f"MODEL_TYPE_{kind.name}") for kind in ModelType}
_TYPES_BACK: dict[int, ModelType] = {number: kind for kind, number in TYPES.items()}
_FORMATS = {kind: models_pb2.ModelFormat.Value(f"MODEL_FORMAT_{kind.name}") for kind in ModelFormat}
_SOURCES = {kind: models_pb2.SourceType.Value(f"SOURCE_TYPE_{kind.name}") for kind in SourceType}
COMPONENTS: Final = {
    each: models_pb2.COMPONENT_UNSPECIFIED
    if each is Component.MODEL
    else models_pb2.Component.Value(f"COMPONENT_{each.name}")
    for each in Component
}
_VERDICTS = {each: models_pb2.Verification.Value(f"VERIFICATION_{each.name}") for each in Verdict}
_STRATEGIES_BACK: dict[int, Strategy] = {
    models_pb2.METADATA_STRATEGY_UNSPECIFIED: Strategy.LOCAL_REMOTE,
    **{models_pb2.MetadataStrategy.Value(f"METADATA_STRATEGY_{each.name}"): each for each in Strategy},
}
_METADATA: Final = tuple(field.name for field in fields(GgufMetadata))


def type_from_pb(number: int) -> ModelType | None:
    """The model type of a request, None where it is not said. Raises InvalidRequestError."""
    if number == models_pb2.MODEL_TYPE_UNSPECIFIED:
        return None
    if number not in _TYPES_BACK:
        raise InvalidRequestError(f"type {number} is not known", field="type")
    return _TYPES_BACK[number]


def strategy_from_pb(number: int) -> Strategy:
    """Where to read a header. Raises InvalidRequestError."""
    if number not in _STRATEGIES_BACK:
        raise InvalidRequestError(f"strategy {number} is not known", field="strategy")
    return _STRATEGIES_BACK[number]


def model_to_pb(model: Model) -> models_pb2.Model:
    """A model for callers."""
    create_time = timestamp_pb2.Timestamp()
    create_time.FromDatetime(model.create_time)
    return models_pb2.Model(
        id=model.id,
        name=model.name,
        type=TYPES[model.type],
        size_bytes=model.size_bytes,
        path=str(model.path),
        create_time=create_time,
        source=source_to_pb(model.source),
        checksum=model.checksum,
        format=_FORMATS[model.format],
        metadata=metadata_to_pb(model.metadata) if model.metadata else None,
        files=[file_to_pb(file) for file in model.files],
        supports_reasoning=model.supports_reasoning,
        layer_count=model.layer_count,
        context_length=model.context_length,
        architecture=model.architecture,
    )


def file_to_pb(file: ModelFile) -> models_pb2.ModelFile:
    """One file of a model, for callers."""
    return models_pb2.ModelFile(
        name=file.name,
        component=COMPONENTS[file.component],
        shard=file.shard,
        size_bytes=file.size_bytes,
        checksum=file.checksum,
        path=str(file.path),
        source=source_to_pb(file.source),
    )


def source_to_pb(source: ModelSource) -> models_pb2.ModelSource:
    """The provenance of a file, for callers."""
    return models_pb2.ModelSource(
        type=_SOURCES[source.type],
        url=source.url,
        repo=source.repo,
        file=source.file,
        revision=source.revision,
        etag=source.etag,
        license=source.license,
    )


def metadata_to_pb(metadata: GgufMetadata) -> models_pb2.GgufMetadata:
    """What a header says, for callers."""
    return models_pb2.GgufMetadata(**{name: getattr(metadata, name) for name in _METADATA})


def verification_to_pb(progress: VerifyProgress) -> models_pb2.VerifyModelResponse:
    """How far verifying is, or what it found."""
    return models_pb2.VerifyModelResponse(
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        result=_VERDICTS[progress.verdict] if progress.verdict else models_pb2.VERIFICATION_UNSPECIFIED,
        files=[_file_verification_to_pb(file) for file in progress.files],
    )


def _file_verification_to_pb(file: FileVerification) -> models_pb2.FileVerification:
    return models_pb2.FileVerification(
        name=file.name, result=_VERDICTS[file.verdict], expected=file.expected, actual=file.actual
    )
