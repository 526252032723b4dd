"""The image worker, wired together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from genaid.image.v1 import engine_pb2, engine_pb2_grpc, generation_pb2, generation_pb2_grpc
from genaid_client import AsyncClient
from genaid_server.image.config import ImageConfig, ImageSettings
from genaid_server.image.core.engine import ImageEngine
from genaid_server.image.core.generation import Limits
from genaid_server.image.core.generations import Generations
from genaid_server.image.core.progress import Calibration
from genaid_server.image.manager import ResourceManager
from genaid_server.image.servicers import EngineServicer, GenerationServicer
from genaid_server.kit import rpc
from genaid_server.kit.address import Address
from genaid_server.supervision.logbook import Logbook


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
            ImageEngine(
                ResourceManager(manager),
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
