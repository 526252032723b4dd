"""The resource manager, asked over its contract: which model draws, and the memory for it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import genaid_client
from genaid_client import AsyncClient, ImageNeed
from genaid_client import errors as client_errors
from genaid_server.image.core.lease import (
    EngineNeed,
    ImagePlacement,
    ImageSize,
    Lease,
    LeaseState,
    ManagerAwayError,
    Prospect,
)
from genaid_server.image.core.settings import WHOLE, ImageModel
from genaid_server.kit import errors

_LEASE_STATES: Final = {
    genaid_client.LeaseState.WAITING: LeaseState.WAITING,
    genaid_client.LeaseState.GRANTED: LeaseState.GRANTED,
    genaid_client.LeaseState.RECLAIM: LeaseState.RECLAIM,
}
_REFUSALS: Final[dict[type[client_errors.GenaidError], type[errors.DomainError]]] = {
    client_errors.InsufficientResourcesError: errors.InsufficientResourcesError,
    client_errors.ModelNotFoundError: errors.ModelNotFoundError,
    client_errors.InvalidRequestError: errors.InvalidRequestError,
    client_errors.FileSystemError: errors.FileSystemError,
}
_AWAY: Final = (client_errors.ConnectionFailedError, client_errors.DeadlineError)


class ResourceManager:
    """The lease client of the image worker.

    Each call raises InsufficientResourcesError, ModelNotFoundError, InvalidRequestError and FileSystemError as the
    manager does; ServerError where it failed, as its ManagerAwayError where it does not answer.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def resolve(self, model_id: str, tenant_id: str = "") -> ImageModel:
        """The model of an id, or the default one; with a `tenant_id`, that this is what that worker draws with."""
        try:
            return _model(await self._client.orchestration.resolve_image_model(model_id, tenant_id=tenant_id))
        except client_errors.GenaidError as error:
            raise _refused(error, "for the model") from error

    async def prospect(self, need: EngineNeed) -> Prospect:
        """What would happen if a lease were asked for now."""
        model = await self.resolve(need.model_id)  # a plan without a model is for the one that was chosen before
        try:
            plan = await self._client.orchestration.plan_image_generation(_image_need(need, model.id))
        except client_errors.GenaidError as error:
            raise _refused(error) from error
        if not plan.possible:
            raise errors.InsufficientResourcesError(
                f"{plan.explanation} {plan.suggestion}".strip(),
                required=str(plan.required_bytes),
                available=str(plan.available_bytes),
                suggestion=plan.suggestion,
            )
        return Prospect(model, has_room=not plan.departures)

    async def hold(self, tenant_id: str, need: EngineNeed, *, resident: bool = False) -> AsyncGenerator[Lease, None]:
        """A lease and its changes."""
        asked = _image_need(need, need.model_id)
        try:
            async with aclosing(self._client.orchestration.hold_lease(tenant_id, asked, resident=resident)) as leases:
                async for lease in leases:
                    yield _lease(lease)
        except client_errors.GenaidError as error:
            raise _refused(error) from error

    async def report_use(self, lease_id: str, size: ImageSize, peak_ram_bytes: int) -> None:
        """Tell that a use of the engine has ended."""
        try:
            await self._client.orchestration.report_lease_use(
                lease_id, width=size.width, height=size.height, peak_ram_bytes=peak_ram_bytes
            )
        except client_errors.GenaidError as error:
            raise _refused(error) from error


def _model(model: genaid_client.ImageModel) -> ImageModel:
    files = tuple((file.component.value if file.component else WHOLE, Path(file.path)) for file in model.files)
    return ImageModel(model.id, model.name, files)


def _image_need(need: EngineNeed, model_id: str) -> ImageNeed:
    options = need.options
    return ImageNeed(
        model_id=model_id,
        width=need.size.width,
        height=need.size.height,
        variant=need.variant,
        flash_attention=options.flash_attention,
        vae_tiling=options.vae_tiling,
        offload_to_cpu=options.offload_to_cpu,
        clip_on_cpu=options.clip_on_cpu,
        vae_on_cpu=options.vae_on_cpu,
        max_vram_bytes=options.max_vram_bytes or None,
    )


def _lease(lease: genaid_client.Lease) -> Lease:
    if lease.image_model is None:
        raise errors.ServerError("The resource manager does not say which model its lease is for; is it an older one?")
    placement = ImagePlacement()
    if lease.placement is not None:
        placement = ImagePlacement(
            lease.placement.offload_to_cpu,
            lease.placement.vae_tiling,
            lease.placement.max_vram_bytes or 0,
            lease.placement.reason,
        )
    return Lease(
        lease.id,
        _LEASE_STATES[lease.state],
        _model(lease.image_model),
        lease.reason,
        lease.reclaim_after_seconds or 0.0,
        placement,
    )


def _refused(error: client_errors.GenaidError, about: str = "for memory") -> errors.DomainError:
    if refusal := _REFUSALS.get(type(error)):
        return refusal(error.message, **error.metadata)
    kind = ManagerAwayError if isinstance(error, _AWAY) else errors.ServerError
    return kind(f"The resource manager could not be asked {about}: {error.message}")
