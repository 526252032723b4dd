# Generated from ../aio/orchestration.py by scripts/generate_sync.py; edit that file, then run `make sync`.
"""The memory that engines share: plans, leases, and the LLM that makes room for images."""

from collections.abc import Generator

from genaid.resource.v1 import orchestration_pb2
from genaid.resource.v1.orchestration_pb2_grpc import OrchestrationServiceStub
from genaid_client import convert_orchestration
from genaid_client.messages import request
from genaid_client.sync.connection import Connection
from genaid_client.types_orchestration import ImageModel, ImageNeed, ImagePlan, Lease, LeaseList, OffloadedLlm


class OrchestrationCalls:
    """The memory that engines share: plans, leases, and the LLM that makes room for images."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = OrchestrationServiceStub(connection.channel)

    def resolve_image_model(self, model_id: str = "", *, tenant_id: str = "") -> ImageModel:
        """Which diffusion model is meant by an id; where it is empty, by none.

        `tenant_id` is of an image worker that will draw with it from now on. Raises ModelNotFoundError, also where no
        model is named and there is none or more than one; InvalidRequestError.
        """
        message = convert_orchestration.resolve_request(model_id, tenant_id)
        response = self._connection.call(self._stub.ResolveImageModel, message)
        return convert_orchestration.image_model_from_pb(response.model)

    def plan_image_generation(self, need: ImageNeed = ImageNeed()) -> ImagePlan:  # noqa: B008 - frozen
        """What making an image would take: whether the LLM would have to be offloaded for it, and why.

        Nothing is changed. That it can't be made is no error: see `possible`. Raises ModelNotFoundError, also where no
        model is named and there is none or more than one; InvalidRequestError and FileSystemError.
        """
        message = convert_orchestration.plan_request(need)
        return convert_orchestration.plan_from_pb(self._connection.call(self._stub.PlanImageGeneration, message))

    def get_offloaded_llm(self, model_id: str | None = None) -> OffloadedLlm | None:
        """The LLM that was offloaded and is to come back, or None."""
        message = request(orchestration_pb2.GetOffloadedLlmRequest, model_id=model_id)
        return convert_orchestration.offloaded_from_pb(self._connection.call(self._stub.GetOffloadedLlm, message))

    def forget_offloaded_llm(self, model_id: str | None = None, *, timeout: float = 60) -> bool:
        """Give up on the LLM that was offloaded: it stays stopped. Returns whether there was one."""
        message = request(orchestration_pb2.ForgetOffloadedLlmRequest, model_id=model_id)
        return (self._connection.call(self._stub.ForgetOffloadedLlm, message, timeout)).forgotten

    def hold_lease(self, tenant_id: str, need: ImageNeed, *, resident: bool = False) -> Generator[Lease, None, None]:
        """Ask for the memory of an image engine, and hold it: the lease as it is now, then after each change.

        To leave the iterator is to give the memory back; do so once the engine's process is gone. `tenant_id` is the
        same for all leases of one engine: a second one asks for another size, and takes the place of the first once it
        is granted. The iterator of the first ends then. `resident` says that the engine is in memory already, and that
        its lease broke off.
        Raises, when it is iterated, InsufficientResourcesError where it can't fit, ServerError where the server stops,
        and what `plan_image_generation` raises.
        """
        message = convert_orchestration.hold_request(tenant_id, need, resident)
        return self._connection.stream(self._stub.HoldLease, message, convert_orchestration.held_lease)

    def report_lease_use(self, lease_id: str, *, width: int = 0, height: int = 0, peak_ram_bytes: int = 0) -> None:
        """Tell that a piece of work on a lease has ended, and what it took at most.

        `width` and `height` are those of the images in pixels, 0 where none were made; `peak_ram_bytes` is 0 where it
        is not known. Raises NotFoundError for a lease that is over, and InvalidRequestError.
        """
        message = request(
            orchestration_pb2.ReportLeaseUseRequest,
            lease_id=lease_id,
            width=width,
            height=height,
            peak_ram_bytes=peak_ram_bytes,
        )
        self._connection.call(self._stub.ReportLeaseUse, message)

    def list_leases(self) -> LeaseList:
        """All leases, the oldest first, and what there is to share."""
        pages = self._connection.pages(self._stub.ListLeases, orchestration_pb2.ListLeasesRequest())
        return convert_orchestration.leases_from_pb(pages)
