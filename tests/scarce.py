"""An LLM in a memory that holds it or an image engine, and not both: real engines unless a test brings its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

from conftest import DemoModels
from genaid_client import LeaseState, Llm, LlmConfig, OffloadedLlm
from genaid_server.demo.models import write_llm
from genaid_server.resource.core.llm.saved import SavedFile, SavedLlm
from llm_service import PATIENCE, ImageEngine, LlmService, chat, llm_service, scarce_memory
from worker import children

WISHES = LlmConfig(threads=1, context_size=16_384, parallel_requests=1)
TWO = LlmConfig(threads=1, context_size=2048, parallel_requests=2)
ENDLESS = 16_000
"""Tokens that take several seconds."""
STORIES = ("once upon a time " * 30, "ZEBRAS ARE NOT IT " * 30)
CUT_OFF = (aiohttp.ClientError, ConnectionError)


@dataclass(frozen=True)
class Place:
    """What a service with little memory is made of. The model `talker` has a long context."""

    data_dir: Path
    llm: Path
    image: Path
    memory: dict[str, int]

    @classmethod
    async def make(cls, folder: Path, models: DemoModels) -> Self:
        """Find out what little memory is; `data_dir` is for a test to choose."""
        talker = write_llm(folder / "talker.gguf", context_length=32_768)
        return cls(folder, talker, models.diffusion, await scarce_memory(folder / "ample", talker, models.diffusion))

    @asynccontextmanager
    async def open(self, **settings: object) -> AsyncIterator[LlmService]:
        """Serve for the first time; nothing is left running."""
        async with llm_service(self.data_dir, self.llm, self.image, memory=self.memory, **settings) as service:
            yield service
        assert children() == []

    @asynccontextmanager
    async def open_again(self, **settings: object) -> AsyncIterator[LlmService]:
        """Serve with what is there."""
        async with llm_service(self.data_dir, memory=self.memory, **settings) as service:
            yield service
        assert children() == []

    @property
    def saved(self) -> SavedLlm | None:
        """What is to run, as it is on disk."""
        return SavedFile(self.data_dir).read()

    @property
    def conversations(self) -> list[str]:
        """The files of prompt caches."""
        return sorted(path.name for path in (self.data_dir / "slots").rglob("*") if path.is_file())


async def talk(llm: Llm, tokens: int, begun: asyncio.Event) -> int:
    """Have the engine say so much, piece by piece; returns how many pieces came."""
    body = {"prompt": "hello " * 5, "n_predict": tokens, "ignore_eos": True, "stream": True, "seed": 1}
    pieces = 0
    async with (
        aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(PATIENCE)) as session,
        session.post(f"{llm.base_url}/completion", json=body) as answer,
    ):
        async for line in answer.content:
            if line.startswith(b"data: ") and b'"stop":false' in line:
                pieces += 1
                begun.set()
    return pieces


@asynccontextmanager
async def talking(llm: Llm, tokens: int = ENDLESS) -> AsyncIterator["asyncio.Task[int]"]:
    """A request in flight, which ends with the block."""
    begun = asyncio.Event()
    request = asyncio.create_task(talk(llm, tokens, begun))
    try:
        async with asyncio.timeout(PATIENCE):
            await begun.wait()
        yield request
    finally:
        request.cancel()
        await asyncio.wait([request])
        if not request.cancelled():
            request.exception()  # it may have been cut off


@asynccontextmanager
async def draining(service: LlmService, llm: Llm) -> AsyncIterator[tuple[ImageEngine, "asyncio.Task[int]"]]:
    """An image engine waits for the LLM, and that for the end of a request."""
    async with talking(llm) as request, service.image_engine() as engine:
        await engine.until(LeaseState.WAITING)
        await service.until(lambda llm: llm.offloaded)
        assert not request.done()
        yield engine, request


@asynccontextmanager
async def made_room(service: LlmService, llm: Llm) -> AsyncIterator[None]:
    async with service.image_engine() as engine:
        await engine.until(LeaseState.GRANTED)
        yield


async def evaluated(llm: Llm, story: str, **more: Any) -> int:
    """How many tokens of a story the engine has to read."""
    status, answer = await chat(llm, content=story, **more)
    assert status == 200
    return int(answer["timings"]["prompt_n"])


async def offloaded(service: LlmService) -> OffloadedLlm:
    found = await service.client.orchestration.get_offloaded_llm()
    assert found is not None
    return found


async def messages(service: LlmService) -> list[str]:
    """What the service itself has logged: the library's lines begin with a time."""
    return [entry.message for entry in await service.log() if not entry.message[:1].isdigit()]
