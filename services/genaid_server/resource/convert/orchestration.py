"""Leases, plans and the offloaded LLM, both ways."""

from genaid.resource.v1 import orchestration_pb2
from genaid_server.common.times import duration_to_pb, time_to_pb
from genaid_server.resource.convert.llm import serving_to_pb
from genaid_server.resource.convert.models import file_to_pb
from genaid_server.resource.convert.system import config_to_pb
from genaid_server.resource.core.fitting.footprint import MemoryKind
from genaid_server.resource.core.fitting.wishes import DEFAULT_EDGE
from genaid_server.resource.core.leases.images import ImageLeaseRequest
from genaid_server.resource.core.leases.lease import ImagePlacement, Lease, LeaseRequest, LeaseState
from genaid_server.resource.core.leases.plan import Departure, Plan, TenantKind
from genaid_server.resource.core.leases.ways import CPU, ImageNeed
from genaid_server.resource.core.llm.offloaded import OffloadedLlm, OffloadPhase
from genaid_server.resource.core.store.model import Model

_MEMORY_KINDS = {each: orchestration_pb2.MemoryKind.Value(f"MEMORY_KIND_{each.name}") for each in MemoryKind}
_TENANT_KINDS = {each: orchestration_pb2.TenantKind.Value(f"TENANT_KIND_{each.name}") for each in TenantKind}
_STATES = {each: orchestration_pb2.LeaseState.Value(f"LEASE_STATE_{each.name}") for each in LeaseState}
_PHASES = {each: orchestration_pb2.OffloadedLlm.Phase.Value(f"PHASE_{each.name}") for each in OffloadPhase}


def need_from_pb(need: orchestration_pb2.ImageNeed) -> ImageNeed:
    """What an image engine is to do; the core checks it."""
    return ImageNeed(
        model_id=need.model_id,
        width=need.width or DEFAULT_EDGE,
        height=need.height or DEFAULT_EDGE,
        variant=need.variant or CPU,
        flash_attention=need.flash_attention,
        vae_tiling=need.vae_tiling,
        offload_to_cpu=need.offload_to_cpu,
        clip_on_cpu=need.clip_on_cpu,
        vae_on_cpu=need.vae_on_cpu,
        max_vram_bytes=need.max_vram_bytes,
    )


def image_model_to_pb(model: Model) -> orchestration_pb2.ImageModel:
    """A diffusion model, for who opens it."""
    return orchestration_pb2.ImageModel(id=model.id, name=model.name, files=[file_to_pb(file) for file in model.files])


def _model_of(request: LeaseRequest) -> orchestration_pb2.ImageModel | None:
    return image_model_to_pb(request.model) if isinstance(request, ImageLeaseRequest) else None


def lease_to_pb(lease: Lease) -> orchestration_pb2.Lease:
    """A lease, for its holder and for lists."""
    request = lease.request
    placement = request.placement if lease.state is not LeaseState.WAITING else None
    return orchestration_pb2.Lease(
        id=lease.id,
        tenant_id=request.tenant_id,
        kind=_TENANT_KINDS[request.kind],
        model_id=request.model_id,
        state=_STATES[lease.state],
        ram_bytes=request.amount.ram,
        vram_bytes=request.amount.vram,
        measured=request.measured,
        reason=lease.reason,
        create_time=time_to_pb(lease.created_at),
        reclaim_after=duration_to_pb(lease.reclaim_after) if lease.reclaim_after is not None else None,
        placement=_placement_to_pb(placement) if placement else None,
        image_model=_model_of(request),
    )


def plan_to_pb(request: LeaseRequest, plan: Plan) -> orchestration_pb2.PlanImageGenerationResponse:
    """What it takes to grant a request, for people and programs."""
    placement = request.placement
    words = [plan.explanation, placement.reason if placement else ""]
    return orchestration_pb2.PlanImageGenerationResponse(
        would_need_offload=any(departure.tenant.kind is TenantKind.LLM for departure in plan.departures),
        possible=plan.possible,
        bottleneck=_MEMORY_KINDS[plan.bottleneck],
        required_bytes=plan.required,
        available_bytes=plan.available,
        total_bytes=plan.total,
        departures=[_departure_to_pb(departure) for departure in plan.departures],
        explanation=" ".join(filter(None, words)),
        suggestion=plan.suggestion,
        placement=_placement_to_pb(placement) if placement and plan.possible else None,
        ram_bytes=request.amount.ram,
        vram_bytes=request.amount.vram,
        measured=request.measured,
        model_id=request.model_id,
        image_model=_model_of(request),
    )


def offloaded_to_pb(llm: OffloadedLlm) -> orchestration_pb2.OffloadedLlm:
    """The LLM that comes back by itself, without its key."""
    return orchestration_pb2.OffloadedLlm(
        model_id=llm.model_id,
        config=config_to_pb(llm.config),
        serving=serving_to_pb(llm.serving),
        was_running=llm.was_running,
        save_time=time_to_pb(llm.saved_at),
        reason=llm.reason,
        phase=_PHASES[llm.phase],
        failed_attempts=llm.failed_attempts,
        last_error=llm.last_error,
        next_attempt_time=time_to_pb(llm.next_attempt_at) if llm.next_attempt_at is not None else None,
        saved_tokens=llm.saved_tokens,
    )


def _placement_to_pb(placement: ImagePlacement) -> orchestration_pb2.ImagePlacement:
    return orchestration_pb2.ImagePlacement(
        offload_to_cpu=placement.offload_to_cpu,
        vae_tiling=placement.vae_tiling,
        max_vram_bytes=placement.max_vram_bytes or None,
        reason=placement.reason,
    )


def _departure_to_pb(departure: Departure) -> orchestration_pb2.Departure:
    tenant = departure.tenant
    return orchestration_pb2.Departure(
        tenant_id=tenant.id,
        kind=_TENANT_KINDS[tenant.kind],
        model_id=tenant.model_id,
        ram_bytes=tenant.amount.ram,
        vram_bytes=tenant.amount.vram,
        reason=departure.reason,
    )
