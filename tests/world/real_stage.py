"""The one place that knows how services with real engines are served and called over gRPC: what `stage` is in small."""

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import psutil

from conftest import DemoModels
from fakes.hub_server import HubServer
from genaid_client import DownloadItem, DownloadSpec, Generation, GenerationSpec, LlmConfig
from sharing import DIFFUSION, LLM, House, house
from world.engines import Kind
from world.stage import LlmView, has_saved

CONFIGS: Final = (
    LlmConfig(threads=1, context_size=256, parallel_requests=1),
    LlmConfig(threads=1, context_size=512, parallel_requests=2),
)
IMAGE: Final = GenerationSpec("a tiny cat", width=64, height=64, steps=2, seed=1, cfg_scale=1)
SOURCE: Final = "other.gguf"
SETTINGS: Final = {"stable_seconds": 0.0, "first_restart_seconds": 0.05, "drain_timeout_seconds": 5.0}
IMAGE_SETTINGS: Final = {"queue_depth": 2, "max_results": 2, "keep_alive_seconds": 1.0}


class RealStage:
    """The services of one house and the verbs of their clients."""

    def __init__(self, services: House, models: Mapping[str, Path], source: str) -> None:
        self.services, self._models, self._source = services, models, source
        self._imported = 0

    # --- the LLM engine

    async def start(self, place: int) -> LlmView:
        await self.services.client.llm.start(LLM, config=CONFIGS[place % len(CONFIGS)], replace=True)
        return await self.llm()

    async def restart(self) -> LlmView:
        await self.services.client.llm.restart()
        return await self.llm()

    async def stop(self) -> LlmView:
        await self.services.client.llm.stop()
        return await self.llm()

    async def forget(self) -> bool:
        return await self.services.client.orchestration.forget_offloaded_llm()

    async def llm(self) -> LlmView:
        llm = await self.services.client.llm.get()
        return LlmView(llm.state.name, llm.pid, llm.model_id, llm.offloaded, has_saved(self.services.llm.data_dir))

    async def llm_is(self, condition: Callable[[str, bool], bool]) -> None:
        """Return once the condition holds of its state and of whether it is offloaded."""
        await self.services.llm.until(lambda llm: condition(llm.state.name, llm.offloaded))

    # --- images

    async def start_engine(self) -> None:
        await self.services.client.engine.start(DIFFUSION, replace=True)

    async def stop_engine(self) -> None:
        await self.services.client.engine.stop()

    async def create(self) -> str:
        return (await self.services.client.images.create(IMAGE)).id

    async def cancel(self, generation_id: str) -> None:
        await self.services.client.images.cancel(generation_id)

    async def finished(self, generation_id: str) -> None:
        await self.services.finished(generation_id)

    async def generate(self) -> AsyncGenerator[str, None]:
        """The one-call form: the name of each state, then `image` for each."""
        async with aclosing(self.services.client.images.stream(IMAGE)) as responses:
            async for response in responses:
                yield response.state.value if isinstance(response, Generation) else "image"

    # --- models and downloads

    async def delete_model(self, model_id: str) -> None:
        await self.services.client.models.delete(model_id)

    async def import_model(self, model_id: str) -> None:
        """Import it again, from a file of another name."""
        self._imported += 1
        name = f"{model_id}-{self._imported}.gguf"
        (self.services.llm.data_dir / "inbox" / name).hardlink_to(self._models[model_id])
        await self.services.client.models.import_(name, name=model_id, model_id=model_id)

    async def models(self) -> set[str]:
        return {model.id for model in await self.services.client.models.list()}

    async def download(self) -> str:
        spec = DownloadSpec((DownloadItem(self._source),), model_id="other")
        return (await self.services.client.downloads.create(spec)).id

    async def cancel_download(self, download_id: str) -> None:
        await self.services.client.downloads.cancel(download_id)

    async def follow_download(self, download_id: str) -> None:
        async with aclosing(self.services.client.downloads.watch(download_id)) as downloads:
            async for _ in downloads:
                pass

    # --- misfortune

    async def crash(self, kind: Kind) -> None:
        engine = self.services.client.llm.get() if kind is Kind.LLM else self.services.client.engine.get()
        pid = (await engine).pid
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid is not None and (process := psutil.Process(pid)).ppid() == os.getpid():
                process.kill()


@asynccontextmanager
async def real_stage(folder: Path, demo: DemoModels, memory: Mapping[str, int]) -> AsyncIterator[RealStage]:
    """Serve until the block ends; one engine fits into `memory` at a time."""
    models = {LLM: demo.llm, DIFFUSION: demo.diffusion}
    async with (
        HubServer().serving() as hub,
        house(
            folder, demo.llm, demo.diffusion, memory=memory, llm=SETTINGS, image_settings=IMAGE_SETTINGS,
            downloads={"reserve_bytes": 0, "first_delay_seconds": 0.01},
        ) as services,
    ):  # fmt: skip
        hub.add_file(SOURCE, demo.llm.read_bytes())
        yield RealStage(services, models, hub.file_url(SOURCE))
