"""What the machine has and what fits on it, both ways."""

from genaid.resource.v1 import system_pb2
from genaid_server.common.times import time_to_pb
from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.fitting.advisor import Capabilities
from genaid_server.resource.core.fitting.capacity import Budgets
from genaid_server.resource.core.fitting.footprint import Footprint, MemoryNeed
from genaid_server.resource.core.fitting.model_shape import CacheType
from genaid_server.resource.core.fitting.plan import Fit, LayerPlacement, LlmOptions, LlmWishes, Recommendation
from genaid_server.resource.core.system.facts import EngineMemory, Gpu, GpuMemory, Hardware, Memory, Ram, Vendor

_VENDORS = {each: system_pb2.GpuVendor.Value(f"GPU_VENDOR_{each.name}") for each in Vendor}
_CACHE_TYPES = {each: system_pb2.CacheType.Value(f"CACHE_TYPE_{each.name}") for each in CacheType}
_CACHE_TYPES_BACK: dict[int, CacheType] = {number: each for each, number in _CACHE_TYPES.items()}
_PLACEMENTS = {each: system_pb2.Placement.Value(f"PLACEMENT_{each.name}") for each in LayerPlacement}


def capabilities_to_pb(found: Capabilities, budgets: Budgets) -> system_pb2.SystemCapabilities:
    """The machine, for callers."""
    hardware, given = found.hardware, found.advice
    cpu = hardware.cpu
    free = {gpu.gpu_id: gpu.free for gpu in found.memory.gpus}
    return system_pb2.SystemCapabilities(
        cpu=system_pb2.Cpu(
            model=cpu.model,
            architecture=cpu.architecture,
            physical_cores=cpu.physical_cores,
            logical_cores=cpu.logical_cores,
            usable_cores=cpu.usable_cores,
            features=cpu.features,
        ),
        memory=_ram_to_pb(found.memory.ram, budgets),
        gpu_available=bool(hardware.gpus),
        gpus=[_gpu_to_pb(gpu, free.get(gpu.id, gpu.vram_free)) for gpu in hardware.gpus],
        platform=hardware.platform,
        platform_key=f"{hardware.platform}-{cpu.architecture}",
        recommendations=system_pb2.Recommendations(
            max_model_size=given.max_model_size,
            quantizations=given.quantizations,
            threads=given.threads,
            gpu_layers=given.gpu_layers,
            size_reason=given.size_reason,
            threads_reason=given.threads_reason,
            gpu_layers_reason=given.gpu_layers_reason,
        ),
        notes=_distinct(hardware.notes, found.memory.notes),
        container=hardware.container,
        wsl=hardware.wsl,
        detect_time=time_to_pb(found.detected_at),
        vram_budget_bytes=budgets.vram or None,
    )


def memory_to_pb(memory: Memory, hardware: Hardware, budgets: Budgets) -> system_pb2.MemorySnapshot:
    """Memory, for callers; `hardware` names the GPUs."""
    names = {gpu.id: gpu.name for gpu in hardware.gpus}
    return system_pb2.MemorySnapshot(
        time=time_to_pb(memory.time),
        ram=_ram_to_pb(memory.ram, budgets),
        gpus=[_gpu_memory_to_pb(gpu, names.get(gpu.gpu_id, "")) for gpu in memory.gpus],
        engines=[_engine_memory_to_pb(engine) for engine in memory.engines],
        notes=memory.notes,
        vram_budget_bytes=budgets.vram or None,
    )


def wishes_from_pb(config: system_pb2.LlmConfig) -> LlmWishes:
    """What a caller has decided. Raises InvalidRequestError for an unknown cache type; the core checks the rest."""
    return LlmWishes(
        threads=_given(config, "threads"),
        gpu_layers=_given(config, "gpu_layers"),
        context_size=_given(config, "context_size"),
        parallel=_given(config, "parallel_requests"),
        flash_attention=config.flash_attention if config.HasField("flash_attention") else None,
        cache_type_k=_cache_type(config.cache_type_k, "cache_type_k"),
        cache_type_v=_cache_type(config.cache_type_v, "cache_type_v"),
        experts_on_cpu=config.experts_on_cpu if config.HasField("experts_on_cpu") else None,
    )


def config_to_pb(config: LlmOptions) -> system_pb2.LlmConfig:
    """A complete configuration, for callers."""
    return system_pb2.LlmConfig(
        threads=config.threads,
        gpu_layers=config.gpu_layers,
        context_size=config.context_size,
        parallel_requests=config.parallel,
        flash_attention=config.flash_attention,
        cache_type_k=_CACHE_TYPES[config.cache_type_k],
        cache_type_v=_CACHE_TYPES[config.cache_type_v],
        experts_on_cpu=config.experts_on_cpu,
    )


def fit_to_pb(fit: Fit) -> system_pb2.CheckModelResponse:
    """Whether a model can run, for callers."""
    return system_pb2.CheckModelResponse(
        possible=fit.possible,
        reason=fit.reason,
        suggestion=fit.suggestion,
        required_bytes=fit.required,
        available_bytes=fit.available,
        need=_need_to_pb(fit.need),
        llm_config=config_to_pb(fit.config) if fit.config else None,
    )


def recommendation_to_pb(given: Recommendation) -> system_pb2.RecommendLlmConfigResponse:
    """How to run a model, for callers."""
    return system_pb2.RecommendLlmConfigResponse(
        config=config_to_pb(given.config),
        placement=_PLACEMENTS[given.placement],
        need=_need_to_pb(given.need),
        fits=given.fits,
        context_reduced=given.context_reduced,
        reasons={FIELDS.get(setting, setting): reason for setting, reason in given.reasons.items()},
    )


FIELDS = {"parallel": "parallel_requests"}  # of the contract, by ours where they differ


def _given(config: system_pb2.LlmConfig, field: str) -> int | None:
    return int(getattr(config, field)) if config.HasField(field) else None  # type: ignore[arg-type]


def _cache_type(number: int, field: str) -> CacheType | None:
    if number == system_pb2.CACHE_TYPE_UNSPECIFIED:
        return None
    if number not in _CACHE_TYPES_BACK:
        raise InvalidRequestError(f"{field} {number} is not known", field=field)
    return _CACHE_TYPES_BACK[number]


def _ram_to_pb(ram: Ram, budgets: Budgets) -> system_pb2.Ram:
    return system_pb2.Ram(
        total_bytes=ram.total,
        available_bytes=ram.available,
        used_bytes=ram.used,
        container_limit_bytes=ram.container_limit,
        budget_bytes=budgets.ram or None,
    )


def _gpu_to_pb(gpu: Gpu, free: int | None) -> system_pb2.Gpu:
    return system_pb2.Gpu(
        id=gpu.id,
        vendor=_VENDORS[gpu.vendor],
        name=gpu.name,
        vram_bytes=gpu.vram_total,
        vram_free_bytes=free,
        unified_memory=gpu.unified,
        integrated=gpu.integrated,
        driver=gpu.driver,
        compute_capability=gpu.compute_capability,
        cuda=gpu.cuda,
        metal=gpu.metal,
        rocm=gpu.rocm,
        vulkan=gpu.vulkan,
    )


def _gpu_memory_to_pb(gpu: GpuMemory, name: str) -> system_pb2.GpuMemory:
    return system_pb2.GpuMemory(gpu_id=gpu.gpu_id, name=name, total_bytes=gpu.total, free_bytes=gpu.free)


def _engine_memory_to_pb(engine: EngineMemory) -> system_pb2.EngineMemory:
    return system_pb2.EngineMemory(
        kind=engine.kind,
        model_id=engine.model_id,
        pid=engine.pid,
        resident_bytes=engine.resident,
        vram_bytes=engine.vram,
    )


def _need_to_pb(need: MemoryNeed) -> system_pb2.MemoryNeed:
    return system_pb2.MemoryNeed(ram=_footprint_to_pb(need.ram), vram=_footprint_to_pb(need.vram), exact=need.exact)


def _footprint_to_pb(footprint: Footprint) -> system_pb2.Footprint:
    return system_pb2.Footprint(
        weights_bytes=footprint.weights,
        kv_cache_bytes=footprint.kv_cache,
        compute_bytes=footprint.compute,
        overhead_bytes=footprint.overhead,
        total_bytes=footprint.total,
    )


def _distinct(*notes: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(note for some in notes for note in some))
