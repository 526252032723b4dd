"""A resource manager in the test's own event loop, served on a free port, and a hub beside it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from fakes.hub_server import HubServer
from genaid.resource.v1 import downloads_pb2_grpc, models_pb2_grpc
from genaid_client import AsyncClient
from genaid_server import settings as configuration
from genaid_server.resource import main as resource


@dataclass(frozen=True)
class Resource:
    """The service, by its client and by the bare contracts."""

    client: AsyncClient
    models: "models_pb2_grpc.ModelServiceAsyncStub"
    downloads: "downloads_pb2_grpc.DownloadServiceAsyncStub"
    data_dir: Path
    address: str


@asynccontextmanager
async def resource_service(data_dir: Path, hub: HubServer, **downloads: object) -> AsyncIterator[Resource]:
    """Serve until the block ends; `downloads` are settings of that section of the configuration."""
    patience = {"first_delay_seconds": 0.01, "max_delay_seconds": 0.05, "reserve_bytes": 0}
    config = configuration.load(
        flags={
            "data_dir": data_dir,
            "resource": {"listen": "127.0.0.1:0"},
            "downloads": {"hub_endpoint": hub.url, "hub_token": "hf_right", **patience, **downloads},
        }
    )
    async with (
        resource.serve(config) as address,
        AsyncClient(resource=str(address)) as client,
        grpc.aio.insecure_channel(str(address), options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        yield Resource(
            client,
            models_pb2_grpc.ModelServiceStub(channel),
            downloads_pb2_grpc.DownloadServiceStub(channel),
            data_dir,
            str(address),
        )
