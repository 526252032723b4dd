"""Between the resource manager's core and its contracts, both ways."""

from dataclasses import fields
from typing import Final

from google.protobuf import duration_pb2, timestamp_pb2

from genaid.resource.v1 import downloads_pb2, models_pb2
from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.download import Download, DownloadSpec, FileProgress, Phase
from genaid_server.resource.core.metadata import GgufMetadata
from genaid_server.resource.core.model import (
    Component,
    Model,
    ModelFile,
    ModelFormat,
    ModelSource,
    ModelType,
    SourceType,
)
from genaid_server.resource.core.refreshing import Strategy
from genaid_server.resource.core.remote import HubFile, Item
from genaid_server.resource.core.verification import FileVerification, Verdict, VerifyProgress

_TYPES = {kind: models_pb2.ModelType.Value(f"MODEL_TYPE_{kind.name}") for kind in ModelType}
_TYPES_BACK: dict[int, ModelType] = {number: kind for kind, number in _TYPES.items()}
_FORMATS = {kind: models_pb2.ModelFormat.Value(f"MODEL_FORMAT_{kind.name}") for kind in ModelFormat}
_SOURCES = {kind: models_pb2.SourceType.Value(f"SOURCE_TYPE_{kind.name}") for kind in SourceType}
_COMPONENTS = {
    each: models_pb2.COMPONENT_UNSPECIFIED
    if each is Component.MODEL
    else models_pb2.Component.Value(f"COMPONENT_{each.name}")
    for each in Component
}
_COMPONENTS_BACK: dict[int, Component] = {number: each for each, number in _COMPONENTS.items()}
_VERDICTS = {each: models_pb2.Verification.Value(f"VERIFICATION_{each.name}") for each in Verdict}
_STRATEGIES_BACK: dict[int, Strategy] = {
    models_pb2.METADATA_STRATEGY_UNSPECIFIED: Strategy.LOCAL_REMOTE,
    **{models_pb2.MetadataStrategy.Value(f"METADATA_STRATEGY_{each.name}"): each for each in Strategy},
}
_PHASES = {phase: downloads_pb2.DownloadPhase.Value(f"DOWNLOAD_PHASE_{phase.name}") for phase in Phase}
_METADATA: Final = tuple(field.name for field in fields(GgufMetadata))
_LONGEST: Final = 315_576_000_000  # seconds in a Duration: ten thousand years


# --- models


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
        type=_TYPES[model.type],
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
        component=_COMPONENTS[file.component],
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


# --- downloads


def spec_from_pb(spec: downloads_pb2.DownloadSpec) -> DownloadSpec:
    """What to fetch. Raises InvalidRequestError for what has no counterpart in the core, which checks the rest."""
    return DownloadSpec(
        items=tuple(_item_from_pb(item, f"items[{index}]") for index, item in enumerate(spec.items)),
        name=spec.name,
        model_type=type_from_pb(spec.type),
        model_id=spec.model_id,
    )


def _item_from_pb(item: downloads_pb2.DownloadItem, where: str) -> Item:
    if item.component not in _COMPONENTS_BACK:
        raise InvalidRequestError(f"component {item.component} is not known", field=f"{where}.component")
    return Item(_source_from_pb(item, where), _COMPONENTS_BACK[item.component], item.checksum)


def _source_from_pb(item: downloads_pb2.DownloadItem, where: str) -> HubFile | str:
    match item.WhichOneof("source"):
        case "huggingface":
            hub = item.huggingface
            return HubFile(hub.repo, hub.file, hub.revision) if hub.revision else HubFile(hub.repo, hub.file)
        case "url":
            return item.url
        case None:
            raise InvalidRequestError("an item needs a source: a file on the hub, or a url", field=f"{where}.source")


def download_to_pb(download: Download, model: Model | None) -> downloads_pb2.Download:
    """A download for callers; `model` is what it installed, while that is there."""
    failure = download.failure
    return downloads_pb2.Download(
        id=download.id,
        spec=_spec_to_pb(download.spec),
        phase=_PHASES[download.phase],
        create_time=_time_to_pb(download.created_at),
        update_time=_time_to_pb(download.updated_at),
        bytes_done=download.bytes_done,
        bytes_total=download.bytes_total,
        bytes_per_second=download.bytes_per_second,
        remaining=None if download.remaining is None else _duration_to_pb(download.remaining),
        files=[_progress_to_pb(file) for file in download.files],
        error=downloads_pb2.DownloadError(code=failure.code, message=failure.message, facts=failure.facts)
        if failure
        else None,
        model=model_to_pb(model) if model else None,
        retries=download.retries,
        problem=download.problem,
    )


def _spec_to_pb(spec: DownloadSpec) -> downloads_pb2.DownloadSpec:
    return downloads_pb2.DownloadSpec(
        items=[_item_to_pb(item) for item in spec.items],
        name=spec.name,
        type=_TYPES[spec.model_type] if spec.model_type else models_pb2.MODEL_TYPE_UNSPECIFIED,
        model_id=spec.model_id,
    )


def _item_to_pb(item: Item) -> downloads_pb2.DownloadItem:
    message = downloads_pb2.DownloadItem(component=_COMPONENTS[item.component], checksum=item.checksum)
    if isinstance(item.source, str):
        message.url = item.source
    else:
        hub = downloads_pb2.HuggingFaceSource(
            repo=item.source.repo, file=item.source.file, revision=item.source.revision
        )
        message.huggingface.CopyFrom(hub)
    return message


def _progress_to_pb(file: FileProgress) -> downloads_pb2.FileProgress:
    return downloads_pb2.FileProgress(
        name=file.name,
        component=_COMPONENTS[file.component],
        bytes_done=file.bytes_done,
        bytes_total=file.bytes_total,
    )


def _time_to_pb(seconds: float) -> timestamp_pb2.Timestamp:
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


def _duration_to_pb(seconds: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromMicroseconds(round(min(max(seconds, 0.0), _LONGEST) * 1e6))
    return message
