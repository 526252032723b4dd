"""Where messages about the machine become results and arguments become messages; no calls here."""

from collections.abc import Iterable
from typing import Final

from genaid.resource.v1 import system_pb2
from genaid_client.messages import Names, mirror, request, to_duration
from genaid_client.types_system import (
    CacheType,
    Cpu,
    EngineMemory,
    Footprint,
    Gpu,
    GpuMemory,
    GpuVendor,
    LlmConfig,
    LlmRecommendation,
    MemoryNeed,
    MemorySnapshot,
    ModelCheck,
    Placement,
    Ram,
    Recommendations,
    ServerVersion,
    SystemCapabilities,
)

VENDORS: Final = Names(GpuVendor, system_pb2.GpuVendor)
CACHE_TYPES: Final = Names(CacheType, system_pb2.CacheType)
PLACEMENTS: Final = Names(Placement, system_pb2.Placement)


def watch_memory_request(interval_seconds: float | None) -> system_pb2.WatchMemoryRequest:
    """The request of WatchMemory."""
    interval = None if interval_seconds is None else to_duration("interval", interval_seconds)
    return system_pb2.WatchMemoryRequest(interval=interval)


def check_model_request(
    model_id: str, check_total_memory: bool, llm_config: LlmConfig | None, width: int | None, height: int | None
) -> system_pb2.CheckModelRequest:
    """The request of CheckModel."""
    return request(
        system_pb2.CheckModelRequest,
        model_id=model_id,
        check_total_memory=check_total_memory,
        llm_config=None if llm_config is None else llm_config_to_pb(llm_config),
        width=width,
        height=height,
    )


def recommend_request(model_id: str, wishes: LlmConfig | None) -> system_pb2.RecommendLlmConfigRequest:
    """The request of RecommendLlmConfig."""
    return request(
        system_pb2.RecommendLlmConfigRequest,
        model_id=model_id,
        wishes=None if wishes is None else llm_config_to_pb(wishes),
    )


def llm_config_to_pb(config: LlmConfig) -> system_pb2.LlmConfig:
    """Raises InvalidRequestError for a value that no message can hold."""
    return request(
        system_pb2.LlmConfig,
        threads=config.threads,
        gpu_layers=config.gpu_layers,
        context_size=config.context_size,
        parallel_requests=config.parallel_requests,
        flash_attention=config.flash_attention,
        cache_type_k=CACHE_TYPES.to_pb(config.cache_type_k),
        cache_type_v=CACHE_TYPES.to_pb(config.cache_type_v),
        experts_on_cpu=config.experts_on_cpu,
    )


def capabilities_from_pb(message: system_pb2.SystemCapabilities) -> SystemCapabilities:
    """What the machine has."""
    return mirror(
        SystemCapabilities,
        message,
        cpu=mirror(Cpu, message.cpu, features=tuple(message.cpu.features)),
        memory=mirror(Ram, message.memory),
        gpus=tuple(mirror(Gpu, gpu, vendor=VENDORS.from_pb(gpu.vendor)) for gpu in message.gpus),
        recommendations=mirror(
            Recommendations,
            message.recommendations,
            quantizations=tuple(message.recommendations.quantizations),
        ),
        notes=tuple(message.notes),
    )


def memory_from_pb(message: system_pb2.MemorySnapshot) -> MemorySnapshot:
    """All memory at one moment."""
    return mirror(
        MemorySnapshot,
        message,
        ram=mirror(Ram, message.ram),
        gpus=tuple(mirror(GpuMemory, gpu) for gpu in message.gpus),
        engines=tuple(mirror(EngineMemory, engine) for engine in message.engines),
        notes=tuple(message.notes),
    )


def watched_memory(response: system_pb2.WatchMemoryResponse) -> Iterable[MemorySnapshot]:
    """What one message of WatchMemory carries."""
    return (memory_from_pb(response.memory),)


def version_from_pb(message: system_pb2.GetVersionResponse) -> ServerVersion:
    """What runs."""
    return mirror(ServerVersion, message, addresses=dict(message.addresses))


def check_from_pb(message: system_pb2.CheckModelResponse) -> ModelCheck:
    """Whether a model can run."""
    return mirror(
        ModelCheck,
        message,
        need=_need_from_pb(message.need),
        llm_config=llm_config_from_pb(message.llm_config) if message.HasField("llm_config") else None,
    )


def recommendation_from_pb(message: system_pb2.RecommendLlmConfigResponse) -> LlmRecommendation:
    """How best to run a language model."""
    return mirror(
        LlmRecommendation,
        message,
        config=llm_config_from_pb(message.config),
        placement=PLACEMENTS.from_pb(message.placement),
        need=_need_from_pb(message.need),
        reasons=dict(message.reasons),
    )


def llm_config_from_pb(message: system_pb2.LlmConfig) -> LlmConfig:
    """How a language model is run."""
    return mirror(
        LlmConfig,
        message,
        cache_type_k=CACHE_TYPES.from_pb(message.cache_type_k),
        cache_type_v=CACHE_TYPES.from_pb(message.cache_type_v),
    )


def _need_from_pb(message: system_pb2.MemoryNeed) -> MemoryNeed:
    return mirror(MemoryNeed, message, ram=mirror(Footprint, message.ram), vram=mirror(Footprint, message.vram))
