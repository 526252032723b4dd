"""Where messages of the contract become results and arguments become messages; no calls here.

Those about the machine are in `convert_system`, those about the LLM engine in `convert_llm`, those about shared memory
in `convert_orchestration`, and what all services say the same way in `convert_common`.
"""

import dataclasses
import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from genaid.image.v1 import engine_pb2, generation_pb2
from genaid.resource.v1 import downloads_pb2, models_pb2
from genaid_client.convert_common import engine_fields
from genaid_client.messages import Names, mirror, request, to_duration, to_seconds
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
    HuggingFaceSource,
    Image,
    ImageInfo,
    MetadataStrategy,
    Model,
    ModelFile,
    ModelFormat,
    ModelSource,
    ModelType,
    Progress,
    Sampler,
    SourceType,
    Stage,
    Verification,
    VerifyProgress,
)

MODEL_TYPES: Final = Names(ModelType, models_pb2.ModelType)
MODEL_FORMATS: Final = Names(ModelFormat, models_pb2.ModelFormat)
SOURCE_TYPES: Final = Names(SourceType, models_pb2.SourceType)
COMPONENTS: Final = Names(Component, models_pb2.Component)
STRATEGIES: Final = Names(MetadataStrategy, models_pb2.MetadataStrategy)
VERIFICATIONS: Final = Names(Verification, models_pb2.Verification)
PHASES: Final = Names(DownloadPhase, downloads_pb2.DownloadPhase)
GENERATION_STATES: Final = Names(GenerationState, generation_pb2.GenerationState)
STAGES: Final = Names(Stage, generation_pb2.Stage)
SAMPLERS: Final = Names(Sampler, generation_pb2.Sampler)


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
        keep_alive=None if keep_alive_seconds is None else to_duration("keep_alive", keep_alive_seconds),
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
    return mirror(
        Model,
        message,
        type=MODEL_TYPES.from_pb(message.type),
        source=_source_from_pb(message.source) if message.HasField("source") else None,
        format=MODEL_FORMATS.from_pb(message.format),
        metadata=mirror(GgufMetadata, message.metadata) if message.HasField("metadata") else None,
        files=tuple(file_from_pb(file) for file in message.files),
    )


def file_from_pb(message: models_pb2.ModelFile) -> ModelFile:
    """One file of a model."""
    return mirror(
        ModelFile,
        message,
        component=COMPONENTS.from_pb(message.component),
        source=_source_from_pb(message.source) if message.HasField("source") else None,
    )


def _source_from_pb(message: models_pb2.ModelSource) -> ModelSource:
    return mirror(ModelSource, message, type=SOURCE_TYPES.from_pb(message.type))


def raw_metadata(response: models_pb2.GetModelResponse) -> dict[str, object]:
    """Everything that a header says, by its keys; empty for a format without such a header."""
    parsed: dict[str, object] = json.loads(response.raw_metadata_json or "{}")
    return parsed


def verify_progress_from_pb(message: models_pb2.VerifyModelResponse) -> VerifyProgress:
    """How far verifying is, or what it found."""
    return mirror(
        VerifyProgress,
        message,
        result=VERIFICATIONS.from_pb(message.result),
        files=tuple(
            mirror(FileVerification, file, result=VERIFICATIONS.from_pb(file.result)) for file in message.files
        ),
    )


def download_from_pb(message: downloads_pb2.Download) -> Download:
    """One download."""
    return mirror(
        Download,
        message,
        spec=mirror(
            DownloadSpec,
            message.spec,
            items=tuple(_item_from_pb(item) for item in message.spec.items),
            type=MODEL_TYPES.from_pb(message.spec.type),
        ),
        phase=PHASES.from_pb(message.phase) or DownloadPhase.DOWNLOADING,
        remaining_seconds=to_seconds(message.remaining) if message.HasField("remaining") else None,
        files=tuple(mirror(FileProgress, file, component=COMPONENTS.from_pb(file.component)) for file in message.files),
        error=(
            mirror(DownloadFailure, message.error, facts=dict(message.error.facts))
            if message.HasField("error")
            else None
        ),
        model=model_from_pb(message.model) if message.HasField("model") else None,
    )


def _item_from_pb(message: downloads_pb2.DownloadItem) -> DownloadItem:
    source: HuggingFaceSource | str | None = None
    match message.WhichOneof("source"):
        case "huggingface":
            source = mirror(HuggingFaceSource, message.huggingface)
        case "url":
            source = message.url
    return DownloadItem(source, COMPONENTS.from_pb(message.component), message.checksum)


def engine_from_pb(message: engine_pb2.Engine) -> Engine:
    """The engine."""
    return mirror(
        Engine,
        message,
        **engine_fields(message),
        load_seconds=to_seconds(message.load_duration) if message.HasField("load_duration") else None,
        options=mirror(EngineOptions, message.options),
        keep_alive_seconds=to_seconds(message.keep_alive),
    )


def generation_from_pb(message: generation_pb2.Generation) -> Generation:
    """One generation."""
    return mirror(
        Generation,
        message,
        state=GENERATION_STATES.from_pb(message.state) or GenerationState.IN_PROGRESS,
        spec=mirror(GenerationSpec, message.spec, sampler=SAMPLERS.from_pb(message.spec.sampler)),
        progress=_progress_from_pb(message.progress) if message.HasField("progress") else None,
        images=tuple(mirror(ImageInfo, image) for image in message.images),
        error=(
            mirror(GenerationFailure, message.error, facts=dict(message.error.facts))
            if message.HasField("error")
            else None
        ),
        duration_seconds=to_seconds(message.duration) if message.HasField("duration") else None,
    )


def _progress_from_pb(message: generation_pb2.Progress) -> Progress:
    return mirror(Progress, message, stage=STAGES.from_pb(message.stage))


class PageRequest(Protocol):
    """A request for one page of a list."""

    page_token: str


class Page(Protocol):
    """One page of a list."""

    next_page_token: str


def watched_engine(response: engine_pb2.WatchEngineResponse) -> Iterable[Engine]:
    """What one message of WatchEngine carries."""
    return (engine_from_pb(response.engine),)


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
