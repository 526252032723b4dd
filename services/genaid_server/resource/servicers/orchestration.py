"""OrchestrationService."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from genaid.resource.v1 import orchestration_pb2, orchestration_pb2_grpc
from genaid_server.kit.errors import InvalidRequestError, ServerError
from genaid_server.kit.paging import page
from genaid_server.resource.convert import orchestration as convert
from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.fitting.wishes import check_size
from genaid_server.resource.core.leases.images import ImageNeeds
from genaid_server.resource.core.leases.lease import Lease, LeaseRequest, LeaseState
from genaid_server.resource.core.leases.leases import Leases
from genaid_server.resource.core.leases.plan import TenantKind
from genaid_server.resource.core.llm.engine import LlmEngine
from genaid_server.resource.servicers.context import Context
from genaid_server.resource.servicers.llm_engines import engine_meant


class OrchestrationServicer(orchestration_pb2_grpc.OrchestrationServiceServicer):
    """OrchestrationService."""

    def __init__(self, leases: Leases, needs: ImageNeeds, llm: LlmEngine) -> None:
        self._leases, self._needs, self._llm = leases, needs, llm

    async def ResolveImageModel(  # noqa: N802
        self, request: orchestration_pb2.ResolveImageModelRequest, context: Context
    ) -> orchestration_pb2.ResolveImageModelResponse:
        """Which model is meant."""
        if request.tenant_id:
            self._needs.chosen(request.tenant_id, request.model_id)
        model = self._needs.model(request.model_id)
        return orchestration_pb2.ResolveImageModelResponse(model=convert.image_model_to_pb(model))

    async def PlanImageGeneration(  # noqa: N802
        self, request: orchestration_pb2.PlanImageGenerationRequest, context: Context
    ) -> orchestration_pb2.PlanImageGenerationResponse:
        """What an image would take."""
        asked = await self._needs.next_image(convert.need_from_pb(request.need))
        asked = replace(asked, tenant_id=_holder(self._leases.present(), asked))
        return convert.plan_to_pb(asked, await self._leases.plan(asked))

    async def GetOffloadedLlm(  # noqa: N802
        self, request: orchestration_pb2.GetOffloadedLlmRequest, context: Context
    ) -> orchestration_pb2.GetOffloadedLlmResponse:
        """The LLM that comes back."""
        offloaded = engine_meant(self._llm, request).offloaded
        return orchestration_pb2.GetOffloadedLlmResponse(
            offloaded=convert.offloaded_to_pb(offloaded) if offloaded else None
        )

    async def ForgetOffloadedLlm(  # noqa: N802
        self, request: orchestration_pb2.ForgetOffloadedLlmRequest, context: Context
    ) -> orchestration_pb2.ForgetOffloadedLlmResponse:
        """Give up on it."""
        return orchestration_pb2.ForgetOffloadedLlmResponse(forgotten=await engine_meant(self._llm, request).forget())

    async def HoldLease(  # noqa: N802
        self, request: orchestration_pb2.HoldLeaseRequest, context: Context
    ) -> AsyncIterator[orchestration_pb2.HoldLeaseResponse]:
        """A lease, for as long as the stream lasts."""
        need = convert.need_from_pb(request.need)
        asked = await self._needs.request(request.tenant_id, need, resident=request.resident)
        async with self._leases.hold(asked) as held:
            async for lease in held.lease.watch():
                yield orchestration_pb2.HoldLeaseResponse(lease=convert.lease_to_pb(lease))
            held.raise_if_refused()
            if _is_there(self._leases.present(), held.lease.value.id):  # and no other has taken its place
                raise ServerError("The resource manager is shutting down.")

    async def ReportLeaseUse(  # noqa: N802
        self, request: orchestration_pb2.ReportLeaseUseRequest, context: Context
    ) -> orchestration_pb2.ReportLeaseUseResponse:
        """What a piece of work took."""
        if request.width or request.height:
            check_size(request.width, request.height)
        if request.peak_ram_bytes < 0:
            raise InvalidRequestError("peak_ram_bytes must not be negative", field="peak_ram_bytes")
        lease = self._leases.used(request.lease_id)
        self._needs.learn(lease, request.width, request.height, request.peak_ram_bytes)
        return orchestration_pb2.ReportLeaseUseResponse()

    async def ListLeases(  # noqa: N802
        self, request: orchestration_pb2.ListLeasesRequest, context: Context
    ) -> orchestration_pb2.ListLeasesResponse:
        """A page of leases."""
        total = (await self._leases.available()).total
        messages: dict[str, orchestration_pb2.Lease] = {}

        def weigh(lease: Lease) -> int:
            messages[lease.id] = convert.lease_to_pb(lease)
            return messages[lease.id].ByteSize()

        present = sorted(self._leases.present(), key=_order)
        some = page(present, _order, request.page_size, request.page_token, weigh)
        granted = _granted(present)
        return orchestration_pb2.ListLeasesResponse(
            leases=[messages[lease.id] for lease in some.items],
            next_page_token=some.next_token,
            total_ram_bytes=total.ram,
            total_vram_bytes=total.vram,
            granted_ram_bytes=granted.ram,
            granted_vram_bytes=granted.vram,
        )


def _holder(leases: Iterable[Lease], asked: LeaseRequest) -> str:
    """The engine that would make the image: it need not make room for itself."""
    images = [lease.request for lease in leases if lease.request.kind is TenantKind.IMAGE]
    with_model = [request for request in images if request.model_id == asked.model_id]
    return next((request.tenant_id for request in (*with_model, *images)), asked.tenant_id)


def _is_there(leases: Iterable[Lease], lease_id: str) -> bool:
    return any(lease.id == lease_id for lease in leases)


def _granted(leases: Iterable[Lease]) -> Amount:
    return sum((lease.request.amount for lease in leases if lease.state is not LeaseState.WAITING), Amount())


def _order(lease: Lease) -> str:
    return f"{lease.created_at:020.6f} {len(lease.id):06} {lease.id}"
