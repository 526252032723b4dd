"""Where messages about shared memory become results and arguments become messages; no calls here."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Final

from genaid.resource.v1 import orchestration_pb2
from genaid_client.convert import file_from_pb
from genaid_client.convert_llm import serving_from_pb
from genaid_client.convert_system import llm_config_from_pb
from genaid_client.messages import Names, mirror, request, to_seconds
from genaid_client.types_orchestration import (
    Departure,
    ImageModel,
    ImageNeed,
    ImagePlacement,
    ImagePlan,
    Lease,
    LeaseList,
    LeaseState,
    MemoryKind,
    OffloadedLlm,
    OffloadPhase,
    TenantKind,
)

MEMORY_KINDS: Final = Names(MemoryKind, orchestration_pb2.MemoryKind)
TENANT_KINDS: Final = Names(TenantKind, orchestration_pb2.TenantKind)
LEASE_STATES: Final = Names(LeaseState, orchestration_pb2.LeaseState)
PHASES: Final = Names(OffloadPhase, orchestration_pb2.OffloadedLlm.Phase)


def plan_request(need: ImageNeed) -> orchestration_pb2.PlanImageGenerationRequest:
    """The request of PlanImageGeneration. Raises InvalidRequestError for a value that no message can hold."""
    return orchestration_pb2.PlanImageGenerationRequest(need=need_to_pb(need))


def resolve_request(model_id: str, tenant_id: str) -> orchestration_pb2.ResolveImageModelRequest:
    """The request of ResolveImageModel. Raises InvalidRequestError for a value that no message can hold."""
    return request(orchestration_pb2.ResolveImageModelRequest, model_id=model_id, tenant_id=tenant_id)


def image_model_from_pb(message: orchestration_pb2.ImageModel) -> ImageModel:
    """A diffusion model, as an image engine opens it."""
    return mirror(ImageModel, message, files=tuple(file_from_pb(file) for file in message.files))


def hold_request(tenant_id: str, need: ImageNeed, resident: bool) -> orchestration_pb2.HoldLeaseRequest:
    """The request of HoldLease. Raises InvalidRequestError for a value that no message can hold."""
    return request(orchestration_pb2.HoldLeaseRequest, tenant_id=tenant_id, need=need_to_pb(need), resident=resident)


def need_to_pb(need: ImageNeed) -> orchestration_pb2.ImageNeed:
    """Raises InvalidRequestError for a value that no message can hold."""
    return request(orchestration_pb2.ImageNeed, **asdict(need))


def lease_from_pb(message: orchestration_pb2.Lease) -> Lease:
    """One lease."""
    return mirror(
        Lease,
        message,
        kind=TENANT_KINDS.from_pb(message.kind),
        state=LEASE_STATES.from_pb(message.state) or LeaseState.WAITING,
        reclaim_after_seconds=to_seconds(message.reclaim_after) if message.HasField("reclaim_after") else None,
        placement=_placement_from_pb(message),
        image_model=image_model_from_pb(message.image_model) if message.HasField("image_model") else None,
    )


def held_lease(response: orchestration_pb2.HoldLeaseResponse) -> Iterable[Lease]:
    """What one message of HoldLease carries."""
    return (lease_from_pb(response.lease),)


def leases_from_pb(pages: Sequence[orchestration_pb2.ListLeasesResponse]) -> LeaseList:
    """The leases of all pages, of which there is at least one; what there is to share is as the last one says."""
    return mirror(LeaseList, pages[-1], leases=tuple(lease_from_pb(lease) for page in pages for lease in page.leases))


def plan_from_pb(message: orchestration_pb2.PlanImageGenerationResponse) -> ImagePlan:
    """What making an image would take."""
    return mirror(
        ImagePlan,
        message,
        bottleneck=MEMORY_KINDS.from_pb(message.bottleneck),
        departures=tuple(
            mirror(Departure, departure, kind=TENANT_KINDS.from_pb(departure.kind)) for departure in message.departures
        ),
        placement=_placement_from_pb(message),
        image_model=image_model_from_pb(message.image_model) if message.HasField("image_model") else None,
    )


def offloaded_from_pb(message: orchestration_pb2.GetOffloadedLlmResponse) -> OffloadedLlm | None:
    """The LLM that was offloaded, if there is one."""
    if not message.HasField("offloaded"):
        return None
    return mirror(
        OffloadedLlm,
        message.offloaded,
        config=llm_config_from_pb(message.offloaded.config),
        serving=serving_from_pb(message.offloaded.serving),
        phase=PHASES.from_pb(message.offloaded.phase) or OffloadPhase.OFFLOADED,
    )


def _placement_from_pb(
    message: orchestration_pb2.Lease | orchestration_pb2.PlanImageGenerationResponse,
) -> ImagePlacement | None:
    return mirror(ImagePlacement, message.placement) if message.HasField("placement") else None
