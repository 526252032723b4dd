"""A resource manager and an image worker in the test's own event loop, served on free ports, with the real engine."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from genaid_client import AsyncClient, GenerationSpec, Model, ModelType
from genaid_server import settings as configuration
from genaid_server.image import main as image
from genaid_server.resource import main as resource

TINY = GenerationSpec("a tiny cat", width=64, height=64, steps=2, seed=1)
"""About a quarter of a second."""

LONG = GenerationSpec("a long cat", width=64, height=64, steps=200, seed=1)
"""Several seconds of diffusion; never meant to finish."""


@dataclass(frozen=True)
class Worker:
    """The services and their client."""

    client: AsyncClient
    image_address: str
    resource_address: str
    data_dir: Path


@asynccontextmanager
async def image_worker(
    data_dir: Path, *, memory: Mapping[str, int] | None = None, **settings: object
) -> AsyncIterator[Worker]:
    """Serve both until the block ends; `settings` are those of the configuration's section `image`."""
    config = configuration.load(
        flags={
            "data_dir": data_dir,
            "resource": {"listen": "127.0.0.1:0"},
            "memory": dict(memory or {}),
            "image": {"listen": "127.0.0.1:0", "threads": 1, **settings},
        }
    )
    async with (
        resource.serve(config) as resource_address,
        image.serve(config, str(resource_address)) as image_address,
        AsyncClient(resource=str(resource_address), image=str(image_address)) as client,
    ):
        yield Worker(client, str(image_address), str(resource_address), data_dir)


async def install(worker: Worker, file: Path, *, name: str = "", type: ModelType | None = None) -> Model:  # noqa: A002
    """Put a link to a file into the inbox and import it."""
    inbox = worker.data_dir / "inbox"
    inbox.mkdir(parents=True, exist_ok=True)
    (inbox / file.name).hardlink_to(file)
    return await worker.client.models.import_(file.name, name=name, type=type)


def children() -> list[psutil.Process]:
    """The living children of this process, engines among them."""
    alive = psutil.Process(os.getpid()).children(recursive=True)
    return [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
