"""A resource manager in the test's own event loop, served on a free port, with LLM engines real and fake.

Image engines are played by those who hold a lease for one.
"""

import asyncio
import contextlib
import json
import shlex
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from fakes import llama_server
from genaid_client import AsyncClient, ImageNeed, Lease, LeaseState, Llm, LogEntry, ServerState
from genaid_server import settings as configuration
from genaid_server.resource import main as resource
from worker import children

PATIENCE = 100.0  # seconds; a bound for a machine that is busy, not an expectation
EVERYTHING = 100_000
"""More lines than any log keeps."""
IMAGE = ImageNeed("diffusion", 64, 64)


@dataclass(frozen=True)
class LlmService:
    """The service and its client."""

    client: AsyncClient
    address: str
    data_dir: Path

    async def install(self, file: Path, name: str) -> Path:
        """Import a copy of a model, which a test may damage; returns where it lies."""
        inbox = self.data_dir / "inbox"
        inbox.mkdir(parents=True, exist_ok=True)
        (inbox / file.name).write_bytes(file.read_bytes())
        return Path((await self.client.models.import_(file.name, name=name)).path)

    async def until(self, condition: Callable[[Llm], bool]) -> Llm:
        """The first state of the engine, from now on, for which the condition holds."""
        async with asyncio.timeout(PATIENCE), aclosing(self.client.llm.watch()) as states:
            async for llm in states:
                if condition(llm):
                    return llm
        raise AssertionError("the watch ended")

    async def serving(self, *, generation: int) -> Llm:
        """The engine once this life of it, or a later one, serves."""
        return await self.until(lambda llm: llm.state is ServerState.RUNNING and llm.generation >= generation)

    async def back(self, *, generation: int) -> Llm:
        """The engine once this life of it, or a later one, serves and makes no room any more."""
        return await self.until(
            lambda llm: llm.state is ServerState.RUNNING and not llm.offloaded and llm.generation >= generation
        )

    async def loading(self) -> Llm:
        """The engine once its process is there, before it serves."""
        return await self.until(lambda llm: llm.state is ServerState.STARTING and llm.pid is not None)

    @asynccontextmanager
    async def image_engine(self, name: str = "painter") -> "AsyncIterator[ImageEngine]":
        """Ask for a lease for an image engine, which ends with the block."""
        engine = ImageEngine(self.client.orchestration.hold_lease(name, IMAGE))
        try:
            yield engine
        finally:
            await engine.end()

    async def make_room(self) -> Lease:
        """Make an image, and be gone."""
        async with self.image_engine() as engine:
            return await engine.until(LeaseState.GRANTED)

    async def log(self) -> list[LogEntry]:
        """All that is kept of the engine's log."""
        return await self.client.llm.list_logs(EVERYTHING)

    async def logged(self, words: str) -> LogEntry:
        """The first line, from the beginning of the log, that has the words."""
        async with asyncio.timeout(PATIENCE), aclosing(self.client.llm.tail_logs(1)) as entries:
            async for entry in entries:
                if words in entry.message:
                    return entry
        raise AssertionError("the watch ended")


@dataclass(frozen=True)
class ImageEngine:
    """Nothing but its lease."""

    leases: AsyncGenerator[Lease, None]

    async def until(self, state: LeaseState, *, reclaim_after: float | None = None) -> Lease:
        """The lease once it is in a state, and to be given back after so many seconds where that is told."""
        async with asyncio.timeout(PATIENCE):
            async for lease in self.leases:
                if lease.state is state and reclaim_after in (None, lease.reclaim_after_seconds):
                    return lease
        raise AssertionError("the lease ended")

    async def end(self) -> None:
        """Give it back, or ask for it no more."""
        await self.leases.aclose()


async def scarce_memory(data_dir: Path, llm: Path, image: Path) -> dict[str, int]:
    """The settings of a memory in which either engine fits, and not both: `IMAGE` is a need of the second model."""
    async with llm_service(data_dir, llm, image) as service:
        of_image = (await service.client.orchestration.plan_image_generation(IMAGE)).ram_bytes
        of_llm = (await service.client.system.check_model(llm.stem)).required_bytes
    return {"ram_limit_bytes": int(1.1 * max(of_image, of_llm))}


@asynccontextmanager
async def llm_service(
    data_dir: Path, *models: Path, memory: Mapping[str, int] | None = None, **settings: object
) -> AsyncIterator[LlmService]:
    """Serve until the block ends, with these models under the names of their files.

    `settings` are those of the configuration's section `llm`; a start takes a free port unless it asks for one, and an
    LLM that was offloaded comes back soon.
    """
    config = configuration.load(
        flags={
            "data_dir": data_dir,
            "resource": {"listen": "127.0.0.1:0"},
            "memory": dict(memory or {}),
            "llm": {"port": 0, "reload_delay_seconds": 0.05, **settings},
        }
    )
    async with resource.serve(config) as address, AsyncClient(resource=str(address), timeout=PATIENCE) as client:
        service = LlmService(client, str(address), data_dir)
        for model in models:
            await service.install(model, model.stem)
        yield service


async def ask(llm: Llm, method: str, path: str, body: object = None, *, key: str = "") -> tuple[int, Any]:
    """Send a request to the engine's own HTTP API; returns the status and the JSON."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(PATIENCE)) as session,
        session.request(method, f"{llm.base_url}{path}", json=body, headers=headers) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


async def chat(llm: Llm, tokens: int = 4, *, content: str = "hello", key: str = "") -> tuple[int, Any]:
    """Have the engine say something."""
    message = {"role": "user", "content": content}
    body = {"model": llm.model_id, "messages": [message], "max_tokens": tokens, "seed": 1}
    return await ask(llm, "POST", "/v1/chat/completions", body, key=key)


@dataclass(frozen=True)
class FakeProgram:
    """A llama-server that misbehaves as planned; see fakes/llama_server.py."""

    path: Path

    @property
    def name(self) -> str:
        """Its path, as the configuration takes it."""
        return str(self.path)

    def plan(self, **plan: object) -> None:
        """What the lives that begin from now on do."""
        environment = f"GENAID_FAKE_LLAMA={shlex.quote(json.dumps(plan))}"
        command = shlex.join([sys.executable, "-S", "-E", llama_server.__file__])
        replacement = self.path.with_suffix(".new")
        replacement.write_text(f'#!/bin/sh\n{environment} exec {command} "$@"\n')
        replacement.chmod(0o755)
        replacement.replace(self.path)  # a shell may be reading the old one


def fake_program(folder: Path, **plan: object) -> FakeProgram:
    """Make one below `folder`."""
    program = FakeProgram(folder / "llama-server")
    program.plan(**plan)
    return program


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def engines() -> list[int]:
    """The process ids of the living engines that this process has started; it starts probes of the hardware as well.

    A process that is just being started has the command line of its parent, and one that is ending has none.
    """
    ours, found = psutil.Process().cmdline(), []
    for child in children():
        with contextlib.suppress(psutil.NoSuchProcess):
            argv = child.cmdline()
            if argv and argv != ours and "genaid_server.probes" not in argv:
                found.append(child.pid)
    return found


def alive(pid: int | None) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
