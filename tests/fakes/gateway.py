"""A gateway over real HTTP in front of an image worker that does what a test tells it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from fakes.image_worker import ANYWHERE, ImageWorker
from genaid_server.gateway import main
from genaid_server.gateway.config import GatewayConfig
from genaid_server.kit.address import Address
from genaid_server.settings import Config


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@dataclass
class Rig:
    """Everything that a test of the gateway holds in its hands."""

    worker: ImageWorker
    worker_address: Address
    address: Address
    http: aiohttp.ClientSession
    clock: Clock
    worker_life: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def stop_worker(self) -> None:
        """Let the worker go away, and the gateway find out."""
        await self.worker_life.aclose()
        await until(lambda: self.health_is(503))
        await until(lambda: not running("_follow"))

    async def start_worker(self) -> None:
        """Let it come back to the same address."""
        await self.worker_life.enter_async_context(self.worker.serve(self.worker_address))

    async def health_is(self, status: int) -> bool:
        """Whether that is what it answers to a health check."""
        async with self.http.get("/health") as answer:
            return answer.status == status

    async def post(self, **fields: Any) -> str:
        """Ask for a generation; returns its id."""
        async with self.http.post("/v1/images/generations", json={"prompt": "a tree", **fields}) as answer:
            assert answer.status == 201, await answer.text()
            generation_id: str = (await answer.json())["id"]
            return generation_id

    async def poll(self, generation_id: str) -> tuple[int, dict[str, Any]]:
        """Status and document of a generation."""
        async with self.http.get(f"/v1/images/generations/{generation_id}") as answer:
            return answer.status, await answer.json()

    async def poll_until(self, generation_id: str, status: str) -> dict[str, Any]:
        """Poll until the generation is there."""
        while True:
            _, document = await self.poll(generation_id)
            if document.get("status") == status:
                return document

    async def settled(self, generation_id: str) -> None:
        """Wait until the gateway knows that a finished generation is finished."""
        async with self.http.get(f"/v1/images/generations/{generation_id}/events") as answer:
            await answer.read()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection of a test's own."""
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes as they are and read one answer."""
        async with self.connection() as (reader, writer):
            writer.write(request)
            return await read_answer(reader)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of one HTTP answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {}
    for line in head[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers, body


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Let the event loop work until the condition holds; the test's timeout is the limit."""
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        await asyncio.sleep(0)


def running(name: str) -> int:
    """How many tasks run the coroutine function of that name."""
    return sum(getattr(task.get_coro(), "__name__", "") == name for task in asyncio.all_tasks())


@asynccontextmanager
async def gateway(
    worker_address: Address,
    *,
    clock: Clock | None = None,
    heartbeat: float = 3600.0,
    listen: Address = ANYWHERE,
    **settings: Any,
) -> AsyncIterator[Address]:
    """A gateway alone, in front of any worker."""
    config = Config(gateway=GatewayConfig(listen=listen, **settings))
    async with main.serve(config, str(worker_address), clock=clock or Clock(), heartbeat=heartbeat) as address:
        yield address


@asynccontextmanager
async def rig(*, heartbeat: float = 3600.0, capacity: int = 1, **settings: Any) -> AsyncIterator[Rig]:
    """Worker, gateway and HTTP client; `settings` are those of the section `[gateway]`."""
    worker = ImageWorker(capacity)
    clock = Clock()
    async with AsyncExitStack() as worker_life:
        worker_address = await worker_life.enter_async_context(worker.serve())
        async with (
            gateway(worker_address, clock=clock, heartbeat=heartbeat, **settings) as address,
            aiohttp.ClientSession(f"http://{address}") as http,
        ):
            yield Rig(worker, worker_address, address, http, clock, worker_life)
