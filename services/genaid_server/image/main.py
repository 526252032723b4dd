"""The image worker, wired together."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

from genaid.image.v1 import engine_pb2, engine_pb2_grpc, generation_pb2, generation_pb2_grpc
from genaid_client import AsyncClient, ImageNeed, Model, ModelType
from genaid_client import Lease as ClientLease
from genaid_client import LeaseState as ClientLeaseState
from genaid_client import errors as client_errors
from genaid_server.image.config import ImageConfig, ImageSettings
from genaid_server.image.core.engine import Engine, InstalledModel
from genaid_server.image.core.generations import Generations, Limits
from genaid_server.image.core.process import WHOLE
from genaid_server.image.core.progress import Calibration
from genaid_server.image.core.tenancy import LandlordAwayError, Lease, LeaseState, Need, Placement, Size
from genaid_server.image.servicers import EngineServicer, GenerationServicer
from genaid_server.kit import errors, rpc
from genaid_server.kit.address import Address
from genaid_server.supervision.logbook import Logbook

_LEASE_STATES: Final = {
    ClientLeaseState.WAITING: LeaseState.WAITING,
    ClientLeaseState.GRANTED: LeaseState.GRANTED,
    ClientLeaseState.RECLAIM: LeaseState.RECLAIM,
}
_REFUSALS: Final[dict[type[client_errors.GenaidError], type[errors.DomainError]]] = {
    client_errors.InsufficientResourcesError: errors.InsufficientResourcesError,
    client_errors.ModelNotFoundError: errors.ModelNotFoundError,
    client_errors.InvalidRequestError: errors.InvalidRequestError,
    client_errors.FileSystemError: errors.FileSystemError,
}
_AWAY: Final = (client_errors.ConnectionFailedError, client_errors.DeadlineError)


class ModelsOfManager:
    """The model store, asked over its contract."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def find(self, model_id: str) -> InstalledModel:
        """Return a model. Raises ModelNotFoundError; ServerError where the resource manager is away."""
        try:
            return _installed(await self._client.models.get(model_id))
        except client_errors.GenaidError as error:
            raise _translated(error) from error

    async def diffusion_models(self) -> Sequence[InstalledModel]:
        """Return every diffusion model. Raises ServerError where the resource manager is away."""
        try:
            return [_installed(model) for model in await self._client.models.list(ModelType.DIFFUSION)]
        except client_errors.GenaidError as error:
            raise _translated(error) from error


def _installed(model: Model) -> InstalledModel:
    files = tuple((file.component.value if file.component else WHOLE, Path(file.path)) for file in model.files)
    return InstalledModel(model.id, model.name, files, model.type is ModelType.DIFFUSION)


def _translated(error: client_errors.GenaidError) -> errors.DomainError:
    if isinstance(error, client_errors.ModelNotFoundError):
        return errors.ModelNotFoundError(error.message, **error.metadata)
    return errors.ServerError(f"The resource manager could not be asked for the model: {error.message}")


class LandlordOfManager:
    """The resource manager as the one who grants memory, asked over its contract."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def has_room(self, need: Need) -> bool:
        """Whether it would be granted without anybody having to leave. Raises what `hold` raises."""
        try:
            plan = await self._client.orchestration.plan_image_generation(_image_need(need))
        except client_errors.GenaidError as error:
            raise _refused(error) from error
        if not plan.possible:
            raise errors.InsufficientResourcesError(
                f"{plan.explanation} {plan.suggestion}".strip(),
                required=str(plan.required_bytes),
                available=str(plan.available_bytes),
                suggestion=plan.suggestion,
            )
        return not plan.departures

    async def hold(self, tenant_id: str, need: Need, *, resident: bool = False) -> AsyncGenerator[Lease, None]:
        """A lease and its changes.

        Raises InsufficientResourcesError, ModelNotFoundError, InvalidRequestError, FileSystemError; ServerError where
        the resource manager failed, as its LandlordAwayError where it does not answer.
        """
        try:
            async with aclosing(
                self._client.orchestration.hold_lease(tenant_id, _image_need(need), resident=resident)
            ) as leases:
                async for lease in leases:
                    yield _lease(lease)
        except client_errors.GenaidError as error:
            raise _refused(error) from error

    async def report_use(self, lease_id: str, size: Size, peak_ram_bytes: int) -> None:
        """Tell that a use of the engine has ended. Raises what `hold` raises."""
        try:
            await self._client.orchestration.report_lease_use(
                lease_id, width=size.width, height=size.height, peak_ram_bytes=peak_ram_bytes
            )
        except client_errors.GenaidError as error:
            raise _refused(error) from error


def _image_need(need: Need) -> ImageNeed:
    options = need.options
    return ImageNeed(
        model_id=need.model_id,
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


def _lease(lease: ClientLease) -> Lease:
    placement = Placement()
    if lease.placement is not None:
        placement = Placement(
            lease.placement.offload_to_cpu,
            lease.placement.vae_tiling,
            lease.placement.max_vram_bytes or 0,
            lease.placement.reason,
        )
    return Lease(lease.id, _LEASE_STATES[lease.state], lease.reason, lease.reclaim_after_seconds or 0.0, placement)


def _refused(error: client_errors.GenaidError) -> errors.DomainError:
    if refusal := _REFUSALS.get(type(error)):
        return refusal(error.message, **error.metadata)
    kind = LandlordAwayError if isinstance(error, _AWAY) else errors.ServerError
    return kind(f"The resource manager could not be asked for memory: {error.message}")


@asynccontextmanager
async def serve(config: ImageSettings, resource: str) -> AsyncIterator[Address]:
    """Run the image worker until the block ends; yields its address.

    `resource` is the resource manager's address. Raises PortInUseError.
    """
    settings = config.image
    logbook = Logbook(config.data_dir / "logs" / "image-engine.log")
    calibration = Calibration(config.data_dir / "calibration.json")
    try:
        async with (
            AsyncClient(resource=resource) as manager,
            Engine(
                ModelsOfManager(manager),
                LandlordOfManager(manager),
                logbook,
                default_model=settings.model,
                threads=settings.threads,
                keep_alive=settings.keep_alive_seconds,
                command=settings.engine_command,
                data_dir=config.data_dir,
            ) as engine,
            Generations(engine, calibration, _limits(settings)) as generations,
        ):

            def end_watches() -> None:
                generations.end_watches()
                engine.info.close()
                logbook.end_watches()

            services = [
                rpc.Service(
                    engine_pb2.DESCRIPTOR.services_by_name["EngineService"].full_name,
                    lambda server: engine_pb2_grpc.add_EngineServiceServicer_to_server(
                        EngineServicer(engine, generations, logbook), server
                    ),
                ),
                rpc.Service(
                    generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
                    lambda server: generation_pb2_grpc.add_GenerationServiceServicer_to_server(
                        GenerationServicer(generations), server
                    ),
                ),
            ]
            async with rpc.serve(settings.listen, services, end_watches) as address:
                yield address
    finally:
        logbook.close()


def _limits(settings: ImageConfig) -> Limits:
    return Limits(
        queue_depth=settings.queue_depth,
        result_ttl=settings.result_ttl_ms / 1000,
        cleanup_interval=settings.cleanup_interval_ms / 1000,
        max_results=settings.max_results,
        max_result_bytes=settings.max_result_bytes,
        cancel_grace=settings.cancel_grace_seconds,
    )
