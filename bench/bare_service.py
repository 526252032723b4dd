"""The least that `genaid up` could be: imports gRPC and aiohttp, and serves an empty /health on a free port.

Prints the address once it listens, and ends when stdin ends.
"""

import asyncio
import sys

import grpc.aio  # noqa: F401 - every service of this kind needs it, and pays for it
from aiohttp import web


async def health(_request: web.Request) -> web.Response:
    """Answer with nothing."""
    return web.Response()


async def serve() -> None:
    """Serve until stdin ends."""
    app = web.Application()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
