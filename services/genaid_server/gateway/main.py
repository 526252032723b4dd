"""Wires the gateway together."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, cast

from aiohttp import web

from genaid_client import AsyncClient
from genaid_server.gateway.config import GatewaySettings
from genaid_server.gateway.http import app, connection
from genaid_server.gateway.images.mirror import Mirror
from genaid_server.gateway.llm import openai
from genaid_server.gateway.llm.mirror import LlmMirror
from genaid_server.kit.address import Address, listening_socket

STOP_GRACE: Final = 0.5  # seconds for requests in flight once the event streams have ended, and again to be cancelled


@asynccontextmanager
async def serve(
    config: GatewaySettings,
    image: str,
    *,
    resource: str = "",
    clock: Callable[[], float] = time.monotonic,
    heartbeat: float = app.HEARTBEAT_SECONDS,
) -> AsyncIterator[Address]:
    """Serve REST until the block ends; yields the address with the real port.

    `image` is the image worker's `host:port`, `resource` the resource manager's, empty for none: then requests to
    language models are refused. They need not be there yet. `clock` and `heartbeat` are in seconds.
    Raises PortInUseError.
    """
    settings = config.gateway
    listener = listening_socket(settings.listen)
    try:
        address = settings.listen.with_port(listener.getsockname()[1])
        async with AsyncExitStack() as peers:
            client = await peers.enter_async_context(AsyncClient(image=image))
            mirror = await peers.enter_async_context(Mirror(client, clock=clock))
            relay = await _llm_relay(peers, resource, settings.hold_timeout_seconds) if resource else None
            runner = web.AppRunner(
                app.build(mirror, relay, settings, heartbeat),
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


async def _llm_relay(peers: AsyncExitStack, resource: str, hold_seconds: float) -> openai.LlmRelay:
    client = await peers.enter_async_context(AsyncClient(resource=resource))
    llm = await peers.enter_async_context(LlmMirror(client))
    session = await peers.enter_async_context(openai.open_session())
    return openai.LlmRelay(llm, session, hold_seconds)
