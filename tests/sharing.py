"""A resource manager, an image worker and a gateway in the test's own event loop, whose engines share memory.

Also a machine with a GPU that is not there: its driver is the stand-in in fakes/nvml, which says that the LLM engine
holds its VRAM for as long as its process lives.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from conftest import DemoModels
from genaid_client import (
    AsyncClient,
    Generation,
    GenerationSpec,
    ImageNeed,
    Lease,
    LeaseState,
    Llm,
    LlmConfig,
    ServerState,
)
from genaid_server import settings as configuration
from genaid_server.gateway import main as gateway
from genaid_server.image import main as image
from genaid_server.resource import main as resource
from genaid_server.resource.core.system.machine import Machine
from llm_service import PATIENCE, LlmService
from support import clean_environment

FAKES: Final = Path(__file__).parent / "fakes"
GIB: Final = 2**30
ANYWHERE: Final = "127.0.0.1:0"
RELOAD_DELAY: Final = 0.2
LASTING: Final = 3600.0
"""A `reload_delay_seconds` that no test waits for."""

LLM: Final = "llm"
DIFFUSION: Final = "diffusion"
SMALL: Final = LlmConfig(context_size=1024, parallel_requests=2, threads=1)
IMAGE: Final = ImageNeed(DIFFUSION, 64, 64)
TINY: Final = GenerationSpec("a tiny cat", width=64, height=64, steps=2, seed=1)

SCARCE: Final = 1.25
"""By how much all memory exceeds what the image engine needs: by more than that was seen to take beyond its estimate,
and by less than a third, so that nothing fits beside it."""


@dataclass(frozen=True)
class House:
    """The services and their client; `http` talks to the gateway."""

    llm: LlmService
    image_address: str
    http: aiohttp.ClientSession

    @property
    def client(self) -> AsyncClient:
        """The client of both services."""
        return self.llm.client

    async def start_llm(self, model_id: str = LLM, config: LlmConfig = SMALL) -> Llm:
        """Load the LLM."""
        return await self.client.llm.start(model_id, config=config)

    async def away(self) -> Llm:
        """The LLM once it has made room: its process is gone."""
        return await self.llm.until(lambda llm: llm.offloaded and llm.state is ServerState.STOPPED)

    async def back(self, before: Llm, *, lives: int = 1) -> Llm:
        """The LLM once it serves again, as it did `before`, so many lives later."""
        llm = await self.llm.until(
            lambda llm: llm.state is ServerState.RUNNING and not llm.offloaded and llm.generation > before.generation
        )
        assert llm.generation == before.generation + lives
        assert (llm.model_id, llm.port, llm.config, llm.serving) == (
            before.model_id,
            before.port,
            before.config,
            before.serving,
        )
        assert await self.client.orchestration.get_offloaded_llm() is None
        return llm

    async def untouched(self, before: Llm) -> None:
        """Nothing has happened to the LLM since."""
        assert await self.client.llm.get() == before
        assert await self.client.orchestration.get_offloaded_llm() is None

    async def draw(self, spec: GenerationSpec = TINY) -> Generation:
        """A generation at its end."""
        created = await self.client.images.create(spec)
        return await self.finished(created.id)

    async def finished(self, generation_id: str) -> Generation:
        """A generation at its end."""
        return await self.reached(generation_id, lambda generation: generation.state.terminal)

    async def reached(self, generation_id: str, condition: Callable[[Generation], bool]) -> Generation:
        """The first state of a generation, from now on, for which the condition holds."""
        async with asyncio.timeout(PATIENCE), aclosing(self.client.images.watch(generation_id)) as states:
            async for generation in states:
                if condition(generation):
                    return generation
        raise AssertionError("the watch ended")

    @asynccontextmanager
    async def tenant(self, need: ImageNeed = IMAGE) -> "AsyncIterator[Tenant]":
        """A lease in the hands of the test, for the time of the block, once it is granted."""
        async with (
            asyncio.timeout(PATIENCE),
            aclosing(self.client.orchestration.hold_lease("the test", need)) as leases,
        ):
            seen = []
            async for lease in leases:
                seen.append(lease)
                if lease.state is LeaseState.GRANTED:
                    break
            yield Tenant(tuple(seen), leases)


@dataclass(frozen=True)
class Tenant:
    """A lease, as it was told up to when it was granted; further changes come with `leases`."""

    seen: tuple[Lease, ...]
    leases: AsyncGenerator[Lease, None]

    @property
    def granted(self) -> Lease:
        """The lease when it was granted."""
        return self.seen[-1]

    async def wanted_back(self) -> Lease:
        """The lease once it is to be given back."""
        async for lease in self.leases:
            if lease.state is LeaseState.RECLAIM:
                return lease
        raise AssertionError("it ended")


@asynccontextmanager
async def house(
    data_dir: Path,
    *models: Path,
    memory: Mapping[str, int] | None = None,
    llm: Mapping[str, object] | None = None,
    image_settings: Mapping[str, object] | None = None,
    gateway_settings: Mapping[str, object] | None = None,
    downloads: Mapping[str, object] | None = None,
) -> AsyncIterator[House]:
    """Serve until the block ends, with these models under the names of their files.

    The mappings are settings of the sections of the configuration.
    """
    config = configuration.load(
        flags={
            "data_dir": data_dir,
            "resource": {"listen": ANYWHERE},
            "memory": dict(memory or {}),
            "llm": {"port": 0, "reload_delay_seconds": RELOAD_DELAY, **(llm or {})},
            "image": {"listen": ANYWHERE, "threads": 1, **(image_settings or {})},
            "gateway": {"listen": ANYWHERE, **(gateway_settings or {})},
            "downloads": dict(downloads or {}),
        }
    )
    async with (
        resource.serve(config) as manager,
        image.serve(config, str(manager)) as worker,
        gateway.serve(config, str(worker), resource=str(manager)) as address,
        AsyncClient(resource=str(manager), image=str(worker), timeout=PATIENCE) as client,
        aiohttp.ClientSession(f"http://{address}", timeout=aiohttp.ClientTimeout(PATIENCE)) as http,
    ):
        (data_dir / "inbox").mkdir(parents=True, exist_ok=True)
        for model in models:
            (data_dir / "inbox" / model.name).hardlink_to(model)
            await client.models.import_(model.name, name=model.stem)
        yield House(LlmService(client, str(manager), data_dir), str(worker), http)
        manager.settle()


_needed: dict[tuple[Path, ImageNeed], int] = {}


async def needed(folder: Path, model: Path, need: ImageNeed = IMAGE) -> int:
    """Bytes of main memory that the image engine is planned with; `folder` is for a store that is asked once."""
    if (model, need) not in _needed:
        async with house(folder, model) as services:
            _needed[model, need] = (await services.client.orchestration.plan_image_generation(need)).ram_bytes
    return _needed[model, need]


async def scarce(tmp_path: Path, models: DemoModels, need: ImageNeed = IMAGE) -> dict[str, int]:
    """A limit that leaves no room for the LLM beside an image engine."""
    return {"ram_limit_bytes": int(await needed(tmp_path / "needs", models.diffusion, need) * SCARCE)}


# --- a GPU


_GPU_ENGINE: Final = """
import runpy, sys
if sys.argv[1:] == ["devices"]:
    print('{"gpus": 1}')
else:
    runpy.run_module("genaid_server.engines.llm", run_name="__main__")
"""
GPU_ENGINE: Final = (sys.executable, "-P", "-c", _GPU_ENGINE)
"""The real LLM engine, which says that it can use a GPU; the layers that it is told to put there it computes here."""


class Card:
    """A GPU with `total` bytes that belongs to a machine, all of which lies below an empty folder."""

    def __init__(self, folder: Path, total: int) -> None:
        self._file, self._total = folder / "nvml.json", total
        (folder / "root" / "dev").mkdir(parents=True)
        (folder / "root" / "dev" / "nvidiactl").touch()
        self.holds({})
        self.machine = Machine(
            platform="linux",
            architecture="x86_64",
            root=folder / "root",
            cores=lambda: (4, 8),
            affinity=lambda: 8,
            memory=lambda: (64 * GIB, 48 * GIB),
            probe_command=(sys.executable, "-P", str(FAKES / "probe.py"), "--root", str(folder / "root")),
            probe_env=clean_environment({"PYTHONPATH": str(FAKES / "nvml"), "GENAID_STUB_NVML": str(self._file)}),
        )

    def holds(self, processes: Mapping[int, int]) -> None:
        """What its driver says from now on: bytes by process id."""
        device = {
            "name": "NVIDIA GeForce RTX 3060",
            "uuid": "GPU-1",
            "pci": "0000:01:00.0",
            "device_id": "2503",
            "total": self._total,
            "free": self._total - sum(processes.values()),
            "capability": [8, 6],
            "processes": {str(pid): size for pid, size in processes.items()},
        }
        written = self._file.with_suffix(".new")
        written.write_text(json.dumps({"driver": "550.54", "devices": [device]}))
        written.replace(self._file)

    async def follow(self, manager: AsyncClient, size: int) -> None:
        """Have the LLM engine hold so many bytes for as long as it has a process; ends when it is cancelled."""
        async with aclosing(manager.llm.watch()) as states:
            async for llm in states:
                self.holds({llm.pid: size} if llm.pid else {})


def on_gpu(need: ImageNeed = IMAGE, **changes: Any) -> ImageNeed:
    """The same on the GPU."""
    return replace(need, variant="cuda12", **changes)
