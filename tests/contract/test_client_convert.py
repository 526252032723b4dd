"""Conversions lose nothing, and nothing that a newer server sends breaks them."""

import dataclasses
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genaid.common.v1 import engines_pb2, logs_pb2
from genaid.image.v1 import engine_pb2, generation_pb2
from genaid.resource.v1 import downloads_pb2, llm_pb2, models_pb2, orchestration_pb2, system_pb2
from genaid_client import (
    convert,
    convert_common,
    convert_llm,
    convert_system,
    types_llm,
    types_orchestration,
    types_system,
)
from genaid_client.messages import LONGEST
from genaid_client.types import (
    Component,
    Download,
    DownloadFailure,
    DownloadItem,
    DownloadPhase,
    DownloadSpec,
    Engine,
    EngineEvent,
    EngineOptions,
    FileProgress,
    FileVerification,
    Generation,
    GenerationFailure,
    GenerationSpec,
    GenerationState,
    GgufMetadata,
    HealthState,
    HuggingFaceSource,
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
    StopReason,
    Verification,
    VerifyProgress,
)

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))

specs = st.builds(
    GenerationSpec,
    prompt=TEXT,
    negative_prompt=TEXT,
    width=st.none() | INT32,
    height=st.none() | INT32,
    steps=st.none() | INT32,
    cfg_scale=st.none() | st.floats(allow_nan=False),
    seed=st.none() | INT64,
    sampler=st.none() | st.sampled_from(Sampler),
    count=st.none() | INT32,
)


@unhurried
@given(specs)
def test_a_spec_comes_back_as_it_went(spec: GenerationSpec) -> None:
    wire = generation_pb2.Generation(spec=convert.spec_to_pb(spec)).SerializeToString()
    assert convert.generation_from_pb(generation_pb2.Generation.FromString(wire)).spec == spec


download_specs = st.builds(
    DownloadSpec,
    items=st.lists(
        st.builds(
            DownloadItem,
            source=st.none() | TEXT | st.builds(HuggingFaceSource, repo=TEXT, file=TEXT, revision=TEXT),
            component=st.none() | st.sampled_from(Component),
            checksum=TEXT,
        ),
        max_size=3,
    ).map(tuple),
    name=TEXT,
    type=st.none() | st.sampled_from(ModelType),
    model_id=TEXT,
)


@unhurried
@given(download_specs)
def test_what_to_fetch_comes_back_as_it_went(spec: DownloadSpec) -> None:
    wire = convert.create_download_request(spec, None).SerializeToString()
    received = downloads_pb2.CreateDownloadRequest.FromString(wire)
    assert convert.download_from_pb(downloads_pb2.Download(spec=received.spec)).spec == spec


@unhurried
@given(st.floats(-LONGEST, LONGEST))
def test_a_keep_alive_comes_back_as_it_went(seconds: float) -> None:
    request = convert.start_engine_request("m", None, EngineOptions(), seconds, replace=False)
    engine = convert.engine_from_pb(engine_pb2.Engine(keep_alive=request.keep_alive))
    assert math.isclose(engine.keep_alive_seconds, seconds, rel_tol=1e-12, abs_tol=1e-9)


@unhurried
@given(
    st.builds(
        EngineOptions,
        **{
            name: st.booleans()
            for name in engine_pb2.EngineOptions.DESCRIPTOR.fields_by_name
            if name != "max_vram_bytes"
        },
        max_vram_bytes=st.none() | INT64,
    )
)
def test_options_come_back_as_they_went(options: EngineOptions) -> None:
    request = convert.start_engine_request("m", None, options, None, replace=False)
    assert convert.engine_from_pb(engine_pb2.Engine(options=request.options)).options == options


def test_a_whole_model() -> None:
    message = models_pb2.Model(
        id="tiny",
        name="Tiny",
        type=models_pb2.MODEL_TYPE_LLM,
        size_bytes=2**40,
        path="/models/tiny.gguf",
        create_time=Timestamp(seconds=1_700_000_000, nanos=250_000_000),
        source=models_pb2.ModelSource(
            type=models_pb2.SOURCE_TYPE_HUGGINGFACE, url="https://example.org", repo="a/b", file="f.gguf"
        ),
        checksum="sha256:00",
        format=models_pb2.MODEL_FORMAT_GGUF,
        metadata=models_pb2.GgufMetadata(version=3, tensor_count=7, kv_count=9, architecture="llama", block_count=0),
        files=[
            models_pb2.ModelFile(
                name="vae.safetensors",
                component=models_pb2.COMPONENT_VAE,
                shard=2,
                size_bytes=2**33,
                checksum="sha256:11",
                path="/models/vae.safetensors",
                source=models_pb2.ModelSource(
                    type=models_pb2.SOURCE_TYPE_URL, url="http://x/y", etag='"e"', license="mit", revision="c"
                ),
            ),
            models_pb2.ModelFile(name="plain"),
        ],
        supports_reasoning=True,
        layer_count=32,
        context_length=4096,
        architecture="llama",
    )
    assert convert.model_from_pb(message) == Model(
        id="tiny",
        name="Tiny",
        type=ModelType.LLM,
        size_bytes=2**40,
        path="/models/tiny.gguf",
        create_time=datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC),
        source=ModelSource(SourceType.HUGGINGFACE, "https://example.org", "a/b", "f.gguf"),
        checksum="sha256:00",
        format=ModelFormat.GGUF,
        metadata=GgufMetadata(version=3, tensor_count=7, kv_count=9, architecture="llama", block_count=0),
        files=(
            ModelFile(
                name="vae.safetensors",
                component=Component.VAE,
                shard=2,
                size_bytes=2**33,
                checksum="sha256:11",
                path="/models/vae.safetensors",
                source=ModelSource(SourceType.URL, "http://x/y", revision="c", etag='"e"', license="mit"),
            ),
            ModelFile("plain", component=None, shard=0, size_bytes=0, checksum="", path="", source=None),
        ),
        supports_reasoning=True,
        layer_count=32,
        context_length=4096,
        architecture="llama",
    )


def test_a_whole_download() -> None:
    message = downloads_pb2.Download(
        id="d",
        spec=downloads_pb2.DownloadSpec(
            items=[
                downloads_pb2.DownloadItem(
                    huggingface=downloads_pb2.HuggingFaceSource(repo="a/b", file="x/f.gguf", revision="v1"),
                    component=models_pb2.COMPONENT_DIFFUSION_MODEL,
                    checksum="sha256:00",
                ),
                downloads_pb2.DownloadItem(url="http://127.0.0.1/vae.safetensors", component=models_pb2.COMPONENT_VAE),
                downloads_pb2.DownloadItem(),  # as from a newer server: a source that this client doesn't know
            ],
            name="Mine",
            type=models_pb2.MODEL_TYPE_DIFFUSION,
            model_id="mine",
        ),
        phase=downloads_pb2.DOWNLOAD_PHASE_FAILED,
        create_time=Timestamp(seconds=1),
        update_time=Timestamp(seconds=2),
        bytes_done=2**40,
        bytes_total=2**41,
        bytes_per_second=1.5,
        remaining=Duration(seconds=3, nanos=500_000_000),
        files=[
            downloads_pb2.FileProgress(
                name="f.gguf", component=models_pb2.COMPONENT_DIFFUSION_MODEL, bytes_done=1, bytes_total=0
            ),
            downloads_pb2.FileProgress(name="vae.safetensors"),
        ],
        error=downloads_pb2.DownloadError(code="CHECKSUM_ERROR", message="It is not it.", facts={"expected": "00"}),
        model=models_pb2.Model(id="mine"),
        retries=4,
        problem="the connection broke",
    )
    start = datetime(1970, 1, 1, tzinfo=UTC)
    assert convert.download_from_pb(message) == Download(
        id="d",
        spec=DownloadSpec(
            items=(
                DownloadItem(HuggingFaceSource("a/b", "x/f.gguf", "v1"), Component.DIFFUSION_MODEL, "sha256:00"),
                DownloadItem("http://127.0.0.1/vae.safetensors", Component.VAE),
                DownloadItem(None),
            ),
            name="Mine",
            type=ModelType.DIFFUSION,
            model_id="mine",
        ),
        phase=DownloadPhase.FAILED,
        create_time=start + timedelta(seconds=1),
        update_time=start + timedelta(seconds=2),
        bytes_done=2**40,
        bytes_total=2**41,
        bytes_per_second=1.5,
        remaining_seconds=3.5,
        files=(
            FileProgress("f.gguf", Component.DIFFUSION_MODEL, 1, 0),
            FileProgress("vae.safetensors", None, 0, None),
        ),
        error=DownloadFailure("CHECKSUM_ERROR", "It is not it.", {"expected": "00"}),
        model=convert.model_from_pb(models_pb2.Model(id="mine")),
        retries=4,
        problem="the connection broke",
    )


def test_a_download_of_which_little_is_known() -> None:
    download = convert.download_from_pb(downloads_pb2.Download(phase=downloads_pb2.DOWNLOAD_PHASE_QUEUED))
    assert download.phase is DownloadPhase.QUEUED
    assert (download.bytes_total, download.remaining_seconds, download.error, download.model) == (None,) * 4


def test_what_verifying_found() -> None:
    message = models_pb2.VerifyModelResponse(
        bytes_done=2**40,
        bytes_total=2**41,
        result=models_pb2.VERIFICATION_INVALID,
        files=[
            models_pb2.FileVerification(
                name="a", result=models_pb2.VERIFICATION_INVALID, expected="sha256:00", actual="sha256:11"
            )
        ],
    )
    assert convert.verify_progress_from_pb(message) == VerifyProgress(
        2**40, 2**41, Verification.INVALID, (FileVerification("a", Verification.INVALID, "sha256:00", "sha256:11"),)
    )


@pytest.mark.parametrize(
    ("text", "header"),
    [("", {}), ("{}", {}), ('{"a": 18446744073709551615, "b": [1.5, "x"]}', {"a": 2**64 - 1, "b": [1.5, "x"]})],
)
def test_a_raw_header(text: str, header: dict[str, object]) -> None:
    assert convert.raw_metadata(models_pb2.GetModelResponse(raw_metadata_json=text)) == header


def test_a_whole_engine() -> None:
    message = engine_pb2.Engine(
        state=engines_pb2.SERVER_STATE_CRASHED,
        health=engines_pb2.HEALTH_STATE_ERROR,
        busy=True,
        model_id="tiny",
        pid=0,
        start_time=Timestamp(seconds=1),
        load_duration=Duration(seconds=1, nanos=500_000_000),
        threads=2,
        options=engine_pb2.EngineOptions(vae_tiling=True),
        keep_alive=Duration(seconds=-1, nanos=-500_000_000),
        restarts=3,
        last_error="killed",
        load_percentage=50.5,
        variant="cpu",
        accepting=True,
        last_event=engines_pb2.ENGINE_EVENT_CRASHED,
        stop_reason=engines_pb2.STOP_REASON_REFUSED_FOR_MEMORY,
    )
    assert convert.engine_from_pb(message) == Engine(
        state=ServerState.CRASHED,
        health=HealthState.ERROR,
        busy=True,
        model_id="tiny",
        pid=0,
        start_time=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        load_seconds=1.5,
        threads=2,
        options=EngineOptions(vae_tiling=True),
        keep_alive_seconds=-1.5,
        restarts=3,
        last_error="killed",
        load_percentage=50.5,
        last_event=EngineEvent.CRASHED,
        variant="cpu",
        accepting=True,
        stop_reason=StopReason.REFUSED_FOR_MEMORY,
    )


def test_an_engine_without_a_process() -> None:
    engine = convert.engine_from_pb(engine_pb2.Engine())
    assert (engine.pid, engine.start_time, engine.load_seconds) == (None, None, None)


def test_a_log_entry() -> None:
    message = logs_pb2.LogEntry(
        sequence=2**40, time=Timestamp(seconds=2), level=logs_pb2.LOG_LEVEL_WARN, message="slow", raw="[then] slow"
    )
    when = datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)
    assert convert_common.log_entry_from_pb(message) == LogEntry(2**40, when, LogLevel.WARN, "slow", "[then] slow")


def test_a_complete_generation() -> None:
    message = generation_pb2.Generation(
        id="g",
        state=generation_pb2.GENERATION_STATE_COMPLETE,
        spec=generation_pb2.GenerationSpec(prompt="a fox", seed=0, sampler=generation_pb2.SAMPLER_LMS),
        create_time=Timestamp(seconds=1),
        update_time=Timestamp(seconds=2),
        expire_time=Timestamp(seconds=3),
        progress=generation_pb2.Progress(
            stage=generation_pb2.STAGE_DECODING,
            current_step=1,
            total_steps=2,
            percentage=100,
            current_image=3,
            total_images=4,
        ),
        images=[generation_pb2.ImageInfo(index=1, seed=2, width=3, height=4, size_bytes=5, sha256="00")],
        duration=Duration(seconds=2, nanos=1_000_000),
        model_id="tiny",
    )
    start = datetime(1970, 1, 1, tzinfo=UTC)
    assert convert.generation_from_pb(message) == Generation(
        id="g",
        state=GenerationState.COMPLETE,
        spec=GenerationSpec("a fox", seed=0, sampler=Sampler.LMS),
        create_time=start + timedelta(seconds=1),
        update_time=start + timedelta(seconds=2),
        expire_time=start + timedelta(seconds=3),
        progress=Progress(Stage.DECODING, 1, 2, 100.0, 3, 4),
        images=(ImageInfo(1, 2, 3, 4, 5, "00"),),
        error=None,
        duration_seconds=2.001,
        model_id="tiny",
        queue_position=0,
    )


def test_a_pending_and_a_failed_generation() -> None:
    pending = convert.generation_from_pb(
        generation_pb2.Generation(state=generation_pb2.GENERATION_STATE_PENDING, queue_position=2)
    )
    assert (pending.state, pending.queue_position) == (GenerationState.PENDING, 2)
    assert (pending.progress, pending.error, pending.images, pending.expire_time) == (None, None, (), None)
    failed = convert.generation_from_pb(
        generation_pb2.Generation(
            error=generation_pb2.GenerationError(code="BACKEND_ERROR", message="died", facts={"a": "b"})
        )
    )
    assert failed.error == GenerationFailure("BACKEND_ERROR", "died", {"a": "b"})


CONVERSIONS: list[tuple[Callable[[Any], Any], Descriptor]] = [
    (convert.model_from_pb, models_pb2.Model.DESCRIPTOR),
    (convert.verify_progress_from_pb, models_pb2.VerifyModelResponse.DESCRIPTOR),
    (convert.download_from_pb, downloads_pb2.Download.DESCRIPTOR),
    (convert.engine_from_pb, engine_pb2.Engine.DESCRIPTOR),
    (convert_common.log_entry_from_pb, logs_pb2.LogEntry.DESCRIPTOR),
    (convert.generation_from_pb, generation_pb2.Generation.DESCRIPTOR),
    (convert_system.capabilities_from_pb, system_pb2.SystemCapabilities.DESCRIPTOR),
    (convert_system.memory_from_pb, system_pb2.MemorySnapshot.DESCRIPTOR),
    (convert_system.version_from_pb, system_pb2.GetVersionResponse.DESCRIPTOR),
    (convert_system.check_from_pb, system_pb2.CheckModelResponse.DESCRIPTOR),
    (convert_system.recommendation_from_pb, system_pb2.RecommendLlmConfigResponse.DESCRIPTOR),
    (convert_system.llm_config_from_pb, system_pb2.LlmConfig.DESCRIPTOR),
    (convert_llm.llm_from_pb, llm_pb2.Llm.DESCRIPTOR),
]


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Anything that a server, a newer one too, may put into a field."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(TEXT, TEXT, max_size=3)
    scalars: dict[int, st.SearchStrategy[Any]] = {
        FieldDescriptor.CPPTYPE_STRING: TEXT,
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_INT32: INT32,
        FieldDescriptor.CPPTYPE_INT64: INT64,
        FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
        FieldDescriptor.CPPTYPE_ENUM: INT32,
    }
    one = messages(field.message_type) if field.message_type is not None else scalars[field.cpp_type]
    return st.lists(one, max_size=3) if field.is_repeated else one


def messages(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages with any of their fields set, or none."""
    if descriptor.full_name == "google.protobuf.Timestamp":
        return st.builds(Timestamp, seconds=st.integers(0, 2**33), nanos=st.integers(0, 999_999_999))
    if descriptor.full_name == "google.protobuf.Duration":
        return st.builds(Duration, seconds=st.integers(0, 2**33), nanos=st.integers(0, 999_999_999))
    fields = {field.name: values(field) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: GetMessageClass(descriptor)(**chosen))


@pytest.mark.parametrize(("from_pb", "descriptor"), CONVERSIONS, ids=lambda each: getattr(each, "name", ""))
@unhurried
@given(data=st.data())
def test_any_message_converts_and_keeps_its_plain_fields(
    from_pb: Callable[[Any], Any], descriptor: Descriptor, data: st.DataObject
) -> None:
    message = data.draw(messages(descriptor))
    result = from_pb(message)
    for field in descriptor.fields:
        if field.message_type is None and field.enum_type is None:
            absent = field.has_presence and not message.HasField(field.name)
            sent = getattr(message, field.name)
            expected = tuple(sent) if field.is_repeated else None if absent else sent
            assert getattr(result, field.name) == expected


RENAMED = {
    "remaining": "remaining_seconds",
    "load_duration": "load_seconds",
    "keep_alive": "keep_alive_seconds",
    "duration": "duration_seconds",
    "reclaim_after": "reclaim_after_seconds",
}


def _oneofs(descriptor: Any) -> list[OneofDescriptor]:
    """Those that somebody wrote: each optional field has one of its own, too."""
    return [oneof for oneof in descriptor.oneofs if not oneof.name.startswith("_")]


def _in_oneof(field: Any) -> bool:
    return any(field in oneof.fields for oneof in _oneofs(field.containing_type))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Model, models_pb2.Model),
        (ModelSource, models_pb2.ModelSource),
        (ModelFile, models_pb2.ModelFile),
        (VerifyProgress, models_pb2.VerifyModelResponse),
        (FileVerification, models_pb2.FileVerification),
        (Download, downloads_pb2.Download),
        (DownloadSpec, downloads_pb2.DownloadSpec),
        (DownloadItem, downloads_pb2.DownloadItem),
        (HuggingFaceSource, downloads_pb2.HuggingFaceSource),
        (FileProgress, downloads_pb2.FileProgress),
        (DownloadFailure, downloads_pb2.DownloadError),
        (GgufMetadata, models_pb2.GgufMetadata),
        (Engine, engine_pb2.Engine),
        (EngineOptions, engine_pb2.EngineOptions),
        (LogEntry, logs_pb2.LogEntry),
        (types_llm.Llm, llm_pb2.Llm),
        (types_llm.LlmServing, llm_pb2.LlmServing),
        (Generation, generation_pb2.Generation),
        (GenerationSpec, generation_pb2.GenerationSpec),
        (Progress, generation_pb2.Progress),
        (ImageInfo, generation_pb2.ImageInfo),
        (GenerationFailure, generation_pb2.GenerationError),
        (types_system.SystemCapabilities, system_pb2.SystemCapabilities),
        (types_system.Cpu, system_pb2.Cpu),
        (types_system.Ram, system_pb2.Ram),
        (types_system.Gpu, system_pb2.Gpu),
        (types_system.Recommendations, system_pb2.Recommendations),
        (types_system.MemorySnapshot, system_pb2.MemorySnapshot),
        (types_system.GpuMemory, system_pb2.GpuMemory),
        (types_system.EngineMemory, system_pb2.EngineMemory),
        (types_system.MemoryNeed, system_pb2.MemoryNeed),
        (types_system.Footprint, system_pb2.Footprint),
        (types_system.LlmConfig, system_pb2.LlmConfig),
        (types_system.ServerVersion, system_pb2.GetVersionResponse),
        (types_system.ModelCheck, system_pb2.CheckModelResponse),
        (types_system.LlmRecommendation, system_pb2.RecommendLlmConfigResponse),
        (types_orchestration.ImageNeed, orchestration_pb2.ImageNeed),
        (types_orchestration.ImagePlacement, orchestration_pb2.ImagePlacement),
        (types_orchestration.ImagePlan, orchestration_pb2.PlanImageGenerationResponse),
        (types_orchestration.Departure, orchestration_pb2.Departure),
        (types_orchestration.Lease, orchestration_pb2.Lease),
        (types_orchestration.OffloadedLlm, orchestration_pb2.OffloadedLlm),
    ],
)
def test_results_have_every_field_of_their_messages(kind: Any, message: type[Message]) -> None:
    told = {RENAMED.get(field.name, field.name) for field in message.DESCRIPTOR.fields if not _in_oneof(field)}
    told |= {oneof.name for oneof in _oneofs(message.DESCRIPTOR)}
    assert {field.name for field in dataclasses.fields(kind)} == told


@pytest.mark.parametrize(
    ("members", "wrapper"),
    [
        (ModelType, models_pb2.ModelType),
        (ModelFormat, models_pb2.ModelFormat),
        (SourceType, models_pb2.SourceType),
        (Component, models_pb2.Component),
        (MetadataStrategy, models_pb2.MetadataStrategy),
        (Verification, models_pb2.Verification),
        (DownloadPhase, downloads_pb2.DownloadPhase),
        (ServerState, engines_pb2.ServerState),
        (StopReason, engines_pb2.StopReason),
        (HealthState, engines_pb2.HealthState),
        (EngineEvent, engines_pb2.EngineEvent),
        (LogLevel, logs_pb2.LogLevel),
        (GenerationState, generation_pb2.GenerationState),
        (Stage, generation_pb2.Stage),
        (Sampler, generation_pb2.Sampler),
        (types_system.GpuVendor, system_pb2.GpuVendor),
        (types_system.CacheType, system_pb2.CacheType),
        (types_system.Placement, system_pb2.Placement),
        (types_orchestration.MemoryKind, orchestration_pb2.MemoryKind),
        (types_orchestration.TenantKind, orchestration_pb2.TenantKind),
        (types_orchestration.LeaseState, orchestration_pb2.LeaseState),
        (types_orchestration.OffloadPhase, orchestration_pb2.OffloadedLlm.Phase),
    ],
)
def test_enums_have_every_value_of_the_contract(members: Any, wrapper: Any) -> None:
    prefix = wrapper.Name(0).removesuffix("UNSPECIFIED")
    assert [prefix + name for name in sorted(members.__members__)] == sorted(set(wrapper.keys()) - {wrapper.Name(0)})


@pytest.mark.parametrize("number", [0, 999])
def test_a_number_that_is_not_known_has_its_documented_meaning(number: Any) -> None:
    model = convert.model_from_pb(
        models_pb2.Model(type=number, format=number, source=models_pb2.ModelSource(type=number))
    )
    assert model.source is not None
    assert (model.type, model.format, model.source.type) == (None, None, None)
    file = models_pb2.ModelFile(component=number)
    assert convert.model_from_pb(models_pb2.Model(files=[file])).files[0].component is None
    assert convert.verify_progress_from_pb(models_pb2.VerifyModelResponse(result=number)).result is None
    assert convert.download_from_pb(downloads_pb2.Download(phase=number)).phase is DownloadPhase.DOWNLOADING
    engine = convert.engine_from_pb(
        engine_pb2.Engine(state=number, health=number, last_event=number, stop_reason=number)
    )
    assert (engine.state, engine.health) == (ServerState.STARTING, HealthState.UNKNOWN)
    assert (engine.last_event, engine.stop_reason) == (None, None)
    assert convert_common.log_entry_from_pb(logs_pb2.LogEntry(level=number)).level is LogLevel.INFO
    generation = convert.generation_from_pb(
        generation_pb2.Generation(
            state=number,
            progress=generation_pb2.Progress(stage=number),
            spec=generation_pb2.GenerationSpec(sampler=number),
        )
    )
    assert generation.progress is not None
    assert (generation.state, generation.progress.stage, generation.spec.sampler) == (
        GenerationState.IN_PROGRESS,
        None,
        None,
    )


def test_an_image_that_never_ends_is_not_given_out() -> None:
    assembly = convert.ImageAssembly()
    part = generation_pb2.GenerateImagesResponse(chunk=generation_pb2.ImageChunk(data=b"half"))
    assert list(assembly.add(part)) == []
