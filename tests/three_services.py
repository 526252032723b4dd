"""The three services as processes of their own, which a test kills and starts again, where memory is scarce.

The limit is such that the LLM and the image engine fit one at a time: each image offloads the LLM. Its cache is so
large that both together are more than the limit, and not only more than may be planned with.
"""

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiohttp
import psutil

from conftest import DemoModels
from genaid_client import (
    AsyncClient,
    ConnectionFailedError,
    Engine,
    Generation,
    GenerationSpec,
    Llm,
    LlmConfig,
    ServerState,
)
from genaid_server.demo.models import write_llm
from llm_service import PATIENCE, free_port
from sharing import DIFFUSION, LLM, scarce
from support import GENAID, ONE_THREAD, STOP_TIMEOUT, clean_environment, wait_until

RELOAD_DELAY: Final = 0.5
"""Seconds: long enough that a test finds the image engine idle."""
DRAIN_TIMEOUT: Final = 5.0  # seconds
DATA: Final = "data"  # the folder of the data directory
CONTEXT: Final = 24_576
LLM_CONFIG: Final = LlmConfig(threads=1, context_size=CONTEXT, parallel_requests=1)
SHORT: Final = GenerationSpec("a tiny cat", width=64, height=64, steps=1, seed=1, cfg_scale=1)
LONG: Final = GenerationSpec("a long cat", width=64, height=64, steps=40, seed=1, cfg_scale=1)
CHAT: Final = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 500, "ignore_eos": True, "seed": 1}
"""It takes about a second."""


class Part(StrEnum):
    """A service."""

    MANAGER = "resource-manager"
    WORKER = "image-worker"
    GATEWAY = "gateway"


class Service:
    """One process, started any number of times with the same arguments. Its files lie in `folder`."""

    def __init__(self, folder: Path, part: Part, *args: str) -> None:
        self._ready_file, self._log = folder / f"{part}.json", folder / f"{part}.log"
        self._argv = [*GENAID, part, *args, "--ready-file", str(self._ready_file), "--exit-with-parent"]
        self._lives: list[subprocess.Popen[bytes]] = []

    @property
    def output(self) -> str:
        """What all its lives have printed."""
        return self._log.read_text("utf-8", "replace")

    @property
    def children(self) -> list[psutil.Process]:
        """The processes that it has started and that are alive, engines among them."""
        return psutil.Process(self._life.pid).children(recursive=True)

    def begin(self) -> None:
        """Start a life, without waiting for it."""
        with self._log.open("ab") as output:
            self._lives.append(
                subprocess.Popen(
                    self._argv, stdin=subprocess.PIPE, stdout=output, stderr=output, env=clean_environment(ONE_THREAD)
                )
            )

    def wait_ready(self) -> None:
        """Return when it serves."""
        wait_until(lambda: self._ready_pid() == self._life.pid, self._life, self._log)

    def end(self, number: signal.Signals) -> int:
        """Send it a signal that ends it, and return its exit status when it is gone."""
        with self._life as process:
            process.send_signal(number)
            return process.wait(STOP_TIMEOUT)

    def discard(self) -> None:
        """Make sure that it is gone, whatever state a test has left it in."""
        if self._life.poll() is None:
            self.end(signal.SIGKILL)

    @property
    def _life(self) -> "subprocess.Popen[bytes]":
        return self._lives[-1]

    def _ready_pid(self) -> int:
        try:
            return int(json.loads(self._ready_file.read_bytes())["pid"])
        except FileNotFoundError:
            return 0


@dataclass(frozen=True)
class ThreeServices:
    """The services and their client; `http` talks to the gateway. `seen` are the processes that they have started, as
    far as they were looked at."""

    parts: Mapping[Part, Service]
    client: AsyncClient
    http: aiohttp.ClientSession
    seen: set[psutil.Process] = field(default_factory=set)

    async def start_llm(self) -> Llm:
        """Load the LLM."""
        return await self.client.llm.start(LLM, config=LLM_CONFIG)

    async def chat(self, **fields: object) -> tuple[int, Any]:
        """Status and JSON of what the LLM says to a caller of the gateway; (0, None) where that goes away."""
        try:
            async with self.http.post("/openai/v1/chat/completions", json=CHAT | fields) as answer:
                return answer.status, await answer.json(content_type=None)
        except aiohttp.ClientConnectionError:
            return 0, None

    async def draw(self, spec: GenerationSpec = SHORT) -> Generation:
        """A generation at its end."""
        return await self.finished((await self.client.images.create(spec)).id)

    async def finished(self, generation_id: str) -> Generation:
        """A generation at its end. Raises NotFoundError where the worker does not know it."""
        return await self.generation(generation_id, lambda now: now.state.terminal)

    async def generation(self, generation_id: str, condition: Callable[[Generation], bool]) -> Generation:
        """The first state of a generation, from now on, for which the condition holds. Raises NotFoundError."""
        return await _first(lambda: self.client.images.watch(generation_id), condition)

    async def llm(self, condition: Callable[[Llm], bool]) -> Llm:
        """The same of the LLM engine, of this manager or the next."""
        return await _first(self.client.llm.watch, condition)

    async def engine(self, condition: Callable[[Engine], bool]) -> Engine:
        """The same of the image engine."""
        return await _first(self.client.engine.watch, condition)

    async def back(self, killed: int | None = None) -> Llm:
        """The LLM once it serves and is not about to leave, and the image engine is out of memory.

        `killed` is a process that it had, whose end may not be known yet.
        """
        await self.engine(lambda now: now.pid is None)
        return await self.llm(lambda now: now.state is ServerState.RUNNING and not now.offloaded and now.pid != killed)

    async def kill(self, part: Part) -> None:
        """End a service with SIGKILL, and have it started again at the same address, as a service manager does."""
        self.seen.update(self.parts[part].children)
        await asyncio.to_thread(self.parts[part].end, signal.SIGKILL)
        self.parts[part].begin()

    async def ready(self, part: Part) -> None:
        """Return when a service that was started again serves."""
        await asyncio.to_thread(self.parts[part].wait_ready)

    async def stop(self, part: Part) -> None:
        """End a service in order."""
        self.seen.update(self.parts[part].children)
        assert await asyncio.to_thread(self.parts[part].end, signal.SIGTERM) == 0, self.parts[part].output


async def gone(processes: Collection[psutil.Process]) -> None:
    """See that the processes end."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, PATIENCE)
    assert alive == []


async def _first[T](watch: Callable[[], AsyncGenerator[T, None]], condition: Callable[[T], bool]) -> T:
    """The first item for which the condition holds; a service that goes away is asked again once it is back."""
    last: T | None = None
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    async with aclosing(watch()) as items:
                        async for last in items:
                            if condition(last):
                                return last
                except ConnectionFailedError:
                    await asyncio.sleep(0.02)  # nothing tells when it answers again
    except TimeoutError as error:
        raise AssertionError(f"it did not come to that; the last was {last}") from error


@asynccontextmanager
async def three_services(folder: Path, models: DemoModels) -> AsyncIterator[ThreeServices]:
    """Run the services with the demo models until the block ends; nothing is left of them then."""
    addresses = {part: f"127.0.0.1:{free_port()}" for part in Part}
    parts = _parts(folder, addresses, await scarce(folder, models))
    with ExitStack() as ends:
        for service in parts.values():
            ends.callback(service.discard)
            service.begin()
        async with clients(
            image=addresses[Part.WORKER],
            resource=addresses[Part.MANAGER],
            http=f"http://{addresses[Part.GATEWAY]}",
            parts=parts,
        ) as services:
            for part in Part:
                await services.ready(part)
            await install(services.client, folder / DATA, models)
            yield services
            for part in (Part.GATEWAY, Part.WORKER, Part.MANAGER):
                await services.stop(part)
            await gone(services.seen)


@asynccontextmanager
async def clients(
    image: str, resource: str, http: str, parts: Mapping[Part, Service] = MappingProxyType({})
) -> AsyncIterator[ThreeServices]:
    """The clients of services that are there already, at these addresses."""
    async with (
        AsyncClient(resource=resource, image=image, timeout=PATIENCE) as client,
        aiohttp.ClientSession(
            http,
            timeout=aiohttp.ClientTimeout(PATIENCE),
            connector=aiohttp.TCPConnector(force_close=True),
            trust_env=False,
        ) as session,
    ):
        yield ThreeServices(parts, client, session)


async def install(manager: AsyncClient, data_dir: Path, models: DemoModels) -> None:
    """Import an LLM with a large cache, and the diffusion model."""
    inbox = data_dir / "inbox"
    inbox.mkdir(exist_ok=True)
    write_llm(inbox / "llm.gguf", layers=8, context_length=CONTEXT)
    (inbox / "diffusion.gguf").hardlink_to(models.diffusion)
    for name in (LLM, DIFFUSION):
        await manager.models.import_(f"{name}.gguf", name=name)


def _parts(folder: Path, addresses: Mapping[Part, str], memory: Mapping[str, int]) -> dict[Part, Service]:
    config = folder / "genaid.toml"
    config.write_text(
        f"data_dir = {json.dumps(str(folder / DATA))}\n"
        f"[memory]\nram_limit_bytes = {memory['ram_limit_bytes']}\n"
        f"[llm]\nport = 0\nreload_delay_seconds = {RELOAD_DELAY}\ndrain_timeout_seconds = {DRAIN_TIMEOUT}\n"
        f"[resource]\nlisten = '{addresses[Part.MANAGER]}'\n"
        f"[image]\nlisten = '{addresses[Part.WORKER]}'\n"
        f"[gateway]\nlisten = '{addresses[Part.GATEWAY]}'\n"
    )
    return {part: Service(folder, part, "--config", str(config)) for part in Part}
