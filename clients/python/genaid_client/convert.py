"""The one place where messages of the contract become results and arguments become messages; no calls here."""

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from genaid.image.v1 import engine_pb2, generation_pb2
from genaid.resource.v1 import downloads_pb2, models_pb2
from genaid_client.errors import InvalidRequestError
from genaid_client.types import (
    Component,
    Download,
    DownloadFailure,
    DownloadItem,
    DownloadPhase,
    DownloadSpec,
    Engine,
    EngineOptions,
    FileProgress,
    FileVerification,
    Generation,
    GenerationFailure,
    GenerationSpec,
    GenerationState,
    GgufMetadata,
    Health,
    HuggingFaceSource,
    Image,
    ImageInfo,
    LogEntry,
    LogLevel,
    MetadataStrategy,
    Model,
    ModelFile,
    ModelFormat,
    ModelSource,
    ModelType,
    Progress,
    Sampler,
    ServerState,
    SourceType,
    Stage,
    Verification,
    VerifyProgress,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

LONGEST: Final = 315_576_000_000  # seconds of the longest google.protobuf.Duration


class _Names[Member: StrEnum, Number: int]:
    """An enum of `types` and its counterpart in the contract; their members have the same names."""

    def __init__(self, members: type[Member], wrapper: "_EnumTypeWrapper[Number]") -> None:
        self._unspecified = wrapper.values()[0]
        prefix = wrapper.Name(self._unspecified).removesuffix("UNSPECIFIED")
        self._numbers = {member: wrapper.Value(prefix + member.name) for member in members}
        self._members = {number: member for member, number in self._numbers.items()}

    def to_pb(self, member: Member | None) -> Number:
        return self._unspecified if member is None else self._numbers[member]

    def from_pb(self, number: Number) -> Member | None:
        """The member; None for unspecified, and for a number of a newer server's."""
        return self._members.get(number)


MODEL_TYPES: Final = _Names(ModelType, models_pb2.ModelType)
MODEL_FORMATS: Final = _Names(ModelFormat, models_pb2.ModelFormat)
SOURCE_TYPES: Final = _Names(SourceType, models_pb2.SourceType)
COMPONENTS: Final = _Names(Component, models_pb2.Component)
STRATEGIES: Final = _Names(MetadataStrategy, models_pb2.MetadataStrategy)
VERIFICATIONS: Final = _Names(Verification, models_pb2.Verification)
PHASES: Final = _Names(DownloadPhase, downloads_pb2.DownloadPhase)
SERVER_STATES: Final = _Names(ServerState, engine_pb2.ServerState)
HEALTHS: Final = _Names(Health, engine_pb2.Health)
LOG_LEVELS: Final = _Names(LogLevel, engine_pb2.LogLevel)
GENERATION_STATES: Final = _Names(GenerationState, generation_pb2.GenerationState)
STAGES: Final = _Names(Stage, generation_pb2.Stage)
SAMPLERS: Final = _Names(Sampler, generation_pb2.Sampler)


def request[**Fields, Request: Message](
    kind: Callable[Fields, Request], *args: Fields.args, **fields: Fields.kwargs
) -> Request:
    """The message with these fields; None leaves one absent.

    Raises InvalidRequestError for a value that no message can hold: a number beyond its type, text that is no Unicode.
    """
    try:
        return kind(*args, **fields)
    except ValueError as error:
        field = next(name for name, value in fields.items() if not _fits(kind, name, value))
        raise InvalidRequestError(f"`{field}` can't be sent: {error}.", {"field": field}) from error


def _fits(kind: Callable[..., Message], name: str, value: object) -> bool:
    try:
        kind(**{name: value})
    except ValueError:
        return False
    return True


def list_models_request(model_type: ModelType | None) -> models_pb2.ListModelsRequest:
    """The request of ListModels for the first page."""
    return models_pb2.ListModelsRequest(type=MODEL_TYPES.to_pb(model_type))


def list_generations_request(state: GenerationState | None) -> generation_pb2.ListGenerationsRequest:
    """The request of ListGenerations for the first page."""
    # Ten generations with the longest prompts fit into one message of 4 MiB; the default page would not.
    return generation_pb2.ListGenerationsRequest(state=GENERATION_STATES.to_pb(state), page_size=10)


def import_model_request(
    file_name: str, name: str, model_type: ModelType | None, model_id: str, request_id: str | None
) -> models_pb2.ImportModelRequest:
    """The request of ImportModel, with an id of its own where none is given."""
    return request(
        models_pb2.ImportModelRequest,
        file_name=file_name,
        name=name,
        type=MODEL_TYPES.to_pb(model_type),
        model_id=model_id,
        request_id=request_id or str(uuid.uuid4()),
    )


def refresh_request(model_id: str, strategy: MetadataStrategy) -> models_pb2.RefreshModelMetadataRequest:
    """The request of RefreshModelMetadata."""
    return request(models_pb2.RefreshModelMetadataRequest, model_id=model_id, strategy=STRATEGIES.to_pb(strategy))


def create_download_request(spec: DownloadSpec, request_id: str | None) -> downloads_pb2.CreateDownloadRequest:
    """The request of CreateDownload, with an id of its own where none is given."""
    return request(
        downloads_pb2.CreateDownloadRequest,
        spec=download_spec_to_pb(spec),
        request_id=request_id or str(uuid.uuid4()),
    )


def list_downloads_request(active_only: bool) -> downloads_pb2.ListDownloadsRequest:
    """The request of ListDownloads for the first page."""
    # Each may carry a model of many shards: the default page could grow beyond one message of 4 MiB.
    return downloads_pb2.ListDownloadsRequest(active_only=active_only, page_size=20)


def start_engine_request(
    model_id: str, threads: int | None, options: EngineOptions, keep_alive_seconds: float | None, replace: bool
) -> engine_pb2.StartEngineRequest:
    """The request of StartEngine."""
    return request(
        engine_pb2.StartEngineRequest,
        model_id=model_id,
        threads=threads,
        options=request(engine_pb2.EngineOptions, **dataclasses.asdict(options)),
        keep_alive=None if keep_alive_seconds is None else _duration("keep_alive", keep_alive_seconds),
        replace=replace,
    )


def create_generation_request(spec: GenerationSpec, request_id: str | None) -> generation_pb2.CreateGenerationRequest:
    """The request of CreateGeneration, with an id of its own where none is given."""
    return request(
        generation_pb2.CreateGenerationRequest, spec=spec_to_pb(spec), request_id=request_id or str(uuid.uuid4())
    )


def spec_to_pb(spec: GenerationSpec) -> generation_pb2.GenerationSpec:
    """Raises InvalidRequestError for a value that no message can hold."""
    return request(
        generation_pb2.GenerationSpec,
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        width=spec.width,
        height=spec.height,
        steps=spec.steps,
        cfg_scale=spec.cfg_scale,
        seed=spec.seed,
        sampler=SAMPLERS.to_pb(spec.sampler),
        count=spec.count,
    )


def download_spec_to_pb(spec: DownloadSpec) -> downloads_pb2.DownloadSpec:
    """Raises InvalidRequestError for a value that no message can hold."""
    return request(
        downloads_pb2.DownloadSpec,
        items=[_item_to_pb(item) for item in spec.items],
        name=spec.name,
        type=MODEL_TYPES.to_pb(spec.type),
        model_id=spec.model_id,
    )


def _item_to_pb(item: DownloadItem) -> downloads_pb2.DownloadItem:
    component, checksum = COMPONENTS.to_pb(item.component), item.checksum
    match item.source:
        case HuggingFaceSource() as hub:
            source = request(downloads_pb2.HuggingFaceSource, **dataclasses.asdict(hub))
            return request(downloads_pb2.DownloadItem, huggingface=source, component=component, checksum=checksum)
        case str() as url:
            return request(downloads_pb2.DownloadItem, url=url, component=component, checksum=checksum)
        case None:
            return request(downloads_pb2.DownloadItem, component=component, checksum=checksum)


def model_from_pb(message: models_pb2.Model) -> Model:
    """One model."""
    return _mirror(
        Model,
        message,
        type=MODEL_TYPES.from_pb(message.type),
        source=_source_from_pb(message.source) if message.HasField("source") else None,
        format=MODEL_FORMATS.from_pb(message.format),
        metadata=_mirror(GgufMetadata, message.metadata) if message.HasField("metadata") else None,
        files=tuple(_file_from_pb(file) for file in message.files),
    )


def _file_from_pb(message: models_pb2.ModelFile) -> ModelFile:
    return _mirror(
        ModelFile,
        message,
        component=COMPONENTS.from_pb(message.component),
        source=_source_from_pb(message.source) if message.HasField("source") else None,
    )


def _source_from_pb(message: models_pb2.ModelSource) -> ModelSource:
    return _mirror(ModelSource, message, type=SOURCE_TYPES.from_pb(message.type))


def raw_metadata(response: models_pb2.GetModelResponse) -> dict[str, object]:
    """Everything that a header says, by its keys; empty for a format without such a header."""
    parsed: dict[str, object] = json.loads(response.raw_metadata_json or "{}")
    return parsed


def verify_progress_from_pb(message: models_pb2.VerifyModelResponse) -> VerifyProgress:
    """How far verifying is, or what it found."""
    return _mirror(
        VerifyProgress,
        message,
        result=VERIFICATIONS.from_pb(message.result),
        files=tuple(
            _mirror(FileVerification, file, result=VERIFICATIONS.from_pb(file.result)) for file in message.files
        ),
    )


def download_from_pb(message: downloads_pb2.Download) -> Download:
    """One download."""
    return _mirror(
        Download,
        message,
        spec=_mirror(
            DownloadSpec,
            message.spec,
            items=tuple(_item_from_pb(item) for item in message.spec.items),
            type=MODEL_TYPES.from_pb(message.spec.type),
        ),
        phase=PHASES.from_pb(message.phase) or DownloadPhase.DOWNLOADING,
        remaining_seconds=_seconds(message.remaining) if message.HasField("remaining") else None,
        files=tuple(
            _mirror(FileProgress, file, component=COMPONENTS.from_pb(file.component)) for file in message.files
        ),
        error=(
            _mirror(DownloadFailure, message.error, facts=dict(message.error.facts))
            if message.HasField("error")
            else None
        ),
        model=model_from_pb(message.model) if message.HasField("model") else None,
    )


def _item_from_pb(message: downloads_pb2.DownloadItem) -> DownloadItem:
    source: HuggingFaceSource | str | None = None
    match message.WhichOneof("source"):
        case "huggingface":
            source = _mirror(HuggingFaceSource, message.huggingface)
        case "url":
            source = message.url
    return DownloadItem(source, COMPONENTS.from_pb(message.component), message.checksum)


def engine_from_pb(message: engine_pb2.Engine) -> Engine:
    """The engine."""
    return _mirror(
        Engine,
        message,
        state=SERVER_STATES.from_pb(message.state) or ServerState.STARTING,
        health=HEALTHS.from_pb(message.health) or Health.UNKNOWN,
        load_seconds=_seconds(message.load_duration) if message.HasField("load_duration") else None,
        options=_mirror(EngineOptions, message.options),
        keep_alive_seconds=_seconds(message.keep_alive),
    )


def log_entry_from_pb(message: engine_pb2.LogEntry) -> LogEntry:
    """One line of the log."""
    return _mirror(LogEntry, message, level=LOG_LEVELS.from_pb(message.level) or LogLevel.INFO)


def generation_from_pb(message: generation_pb2.Generation) -> Generation:
    """One generation."""
    return _mirror(
        Generation,
        message,
        state=GENERATION_STATES.from_pb(message.state) or GenerationState.IN_PROGRESS,
        spec=_mirror(GenerationSpec, message.spec, sampler=SAMPLERS.from_pb(message.spec.sampler)),
        progress=_progress_from_pb(message.progress) if message.HasField("progress") else None,
        images=tuple(_mirror(ImageInfo, image) for image in message.images),
        error=_mirror(GenerationFailure, message.error) if message.HasField("error") else None,
        duration_seconds=_seconds(message.duration) if message.HasField("duration") else None,
    )


def _progress_from_pb(message: generation_pb2.Progress) -> Progress:
    return _mirror(Progress, message, stage=STAGES.from_pb(message.stage))


class PageRequest(Protocol):
    """A request for one page of a list."""

    page_token: str


class Page(Protocol):
    """One page of a list."""

    next_page_token: str


def watched_engine(response: engine_pb2.WatchEngineResponse) -> Iterable[Engine]:
    """What one message of WatchEngine carries."""
    return (engine_from_pb(response.engine),)


def tailed_entries(response: engine_pb2.TailLogsResponse) -> Iterable[LogEntry]:
    """What one message of TailLogs carries."""
    return map(log_entry_from_pb, response.entries)


def watched_generation(response: generation_pb2.WatchGenerationResponse) -> Iterable[Generation]:
    """What one message of WatchGeneration carries."""
    return (generation_from_pb(response.generation),)


def verified(response: models_pb2.VerifyModelResponse) -> Iterable[VerifyProgress]:
    """What one message of VerifyModel carries."""
    return (verify_progress_from_pb(response),)


def watched_download(response: downloads_pb2.WatchDownloadResponse) -> Iterable[Download]:
    """What one message of WatchDownload carries."""
    return (download_from_pb(response.download),)


def image_chunk(response: generation_pb2.GetImageResponse) -> Iterable[bytes]:
    """What one message of GetImage carries."""
    return (response.chunk,)


class ImageAssembly:
    """Makes whole images out of the messages of one GenerateImages call."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, response: generation_pb2.GenerateImagesResponse) -> Iterator[Generation | Image]:
        """What is ready once this message has come; nothing for a kind of message that is not known."""
        match response.WhichOneof("part"):
            case "generation":
                yield generation_from_pb(response.generation)
            case "chunk":
                self._data += response.chunk.data
                if response.chunk.last:
                    yield Image(response.chunk.index, bytes(self._data))
                    self._data.clear()


def _mirror[Result: "DataclassInstance"](kind: type[Result], message: Message, **converted: Any) -> Result:
    """A dataclass out of the message's fields of the same names, but for those that are given converted."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in converted]
    return kind(**{name: _value(message, name) for name in names}, **converted)


def _value(message: Any, name: str) -> Any:
    if message.DESCRIPTOR.fields_by_name[name].has_presence and not message.HasField(name):
        return None
    value = getattr(message, name)
    return value.ToDatetime(UTC) if isinstance(value, Timestamp) else value


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _duration(field: str, seconds: float) -> Duration:
    if not abs(seconds) <= LONGEST:  # so written, it refuses NaN as well
        raise InvalidRequestError(f"`{field}` can't be {seconds} seconds.", {"field": field})
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
