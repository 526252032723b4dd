"""Wires the gateway together."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, cast

from aiohttp import web

from genaid_client import AsyncImageClient
from genaid_server.gateway import app, connection
from genaid_server.gateway.mirror import Mirror
from genaid_server.kit.address import Address, listening_socket
from genaid_server.kit.config import Config

STOP_GRACE: Final = 0.5  # seconds for requests in flight once the event streams have ended, and again to be cancelled


@asynccontextmanager
async def serve(
    config: Config,
    image: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    heartbeat: float = app.HEARTBEAT_SECONDS,
) -> AsyncIterator[Address]:
    """Serve REST until the block ends; yields the address with the real port.

    `image` is the image worker's `host:port`; it need not be there yet. `clock` and `heartbeat` are in seconds.
    Raises PortInUseError.
    """
    settings = config.gateway
    listener = listening_socket(settings.listen)
    try:
        address = settings.listen.with_port(listener.getsockname()[1])
        async with AsyncImageClient(image) as client, Mirror(client, clock=clock) as mirror:
            runner = web.AppRunner(
                app.build(mirror, settings, heartbeat),
                handler_cancellation=True,  # who leaves an event stream ends its handler at once
                shutdown_timeout=STOP_GRACE,
            )
            await runner.setup()
            try:
                accept = connection.factory(cast("web.Server", runner.server), settings.max_connections)
                server = await asyncio.get_running_loop().create_server(accept, sock=listener)
                try:
                    yield address
                finally:
                    server.close()
            finally:
                await runner.cleanup()
    finally:
        listener.close()
