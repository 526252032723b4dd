"""The resource manager, wired together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from genaid.resource.v1 import downloads_pb2, downloads_pb2_grpc, models_pb2, models_pb2_grpc
from genaid_server.kit import rpc
from genaid_server.kit.address import Address
from genaid_server.kit.config import Config, DownloadsConfig
from genaid_server.resource.core.download import DownloadLimits
from genaid_server.resource.core.downloads import Downloads
from genaid_server.resource.core.models import ModelStore
from genaid_server.resource.core.source_header import SourceHeaders
from genaid_server.resource.remote import open_remote
from genaid_server.resource.servicers import DownloadServicer, ModelServicer


@asynccontextmanager
async def serve(config: Config) -> AsyncIterator[Address]:
    """Run the resource manager until the block ends; yields its address. Raises PortInUseError, FileSystemError."""
    settings = config.downloads
    store = await ModelStore.open(config.data_dir)
    try:
        async with (
            open_remote(settings) as remote,
            Downloads(config.data_dir, store, remote, _limits(settings)) as downloads,
        ):
            headers = SourceHeaders(remote, settings.stall_seconds)

            def end_watches() -> None:
                downloads.end_watches()
                store.end_verifications()

            services = [
                rpc.Service(
                    models_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
                    lambda server: models_pb2_grpc.add_ModelServiceServicer_to_server(
                        ModelServicer(store, headers.read), server
                    ),
                ),
                rpc.Service(
                    downloads_pb2.DESCRIPTOR.services_by_name["DownloadService"].full_name,
                    lambda server: downloads_pb2_grpc.add_DownloadServiceServicer_to_server(
                        DownloadServicer(downloads, store), server
                    ),
                ),
            ]
            async with rpc.serve(config.resource.listen, services, end_watches) as address:
                yield address
    finally:
        await store.close()


def _limits(settings: DownloadsConfig) -> DownloadLimits:
    return DownloadLimits(
        parallel=settings.parallel,
        reserve_bytes=settings.reserve_bytes,
        stall_seconds=settings.stall_seconds,
        attempts=settings.attempts,
        first_delay=settings.first_delay_seconds,
        max_delay=settings.max_delay_seconds,
    )
