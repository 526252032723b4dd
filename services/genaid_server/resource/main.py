"""The resource manager, wired together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from genaid.resource.v1 import models_pb2, models_pb2_grpc
from genaid_server.kit import rpc
from genaid_server.kit.address import Address
from genaid_server.kit.config import Config
from genaid_server.resource.core.models import ModelStore
from genaid_server.resource.servicers import ModelServicer


@asynccontextmanager
async def serve(config: Config) -> AsyncIterator[Address]:
    """Run the resource manager until the block ends; yields its address. Raises PortInUseError, FileSystemError."""
    store = await ModelStore.open(config.data_dir)
    services = [
        rpc.Service(
            models_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
            lambda server: models_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(store), server),
        )
    ]
    try:
        async with rpc.serve(config.resource.listen, services, end_watches=lambda: None) as address:
            yield address
    finally:
        await store.close()
