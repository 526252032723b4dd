"""The one place that knows how the owners are made and called: all of a scene but its doors, over played engines.

Everything else in this folder speaks of `Stage` alone. Where an owner gets another face, this file follows.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self, cast

import pytest

from fakes.scripted_remote import ScriptedRemote
from genaid.image.v1 import generation_pb2
from genaid_server.image.core import process as image_process
from genaid_server.image.core.engine import ImageEngine
from genaid_server.image.core.generation import Generation, Limits
from genaid_server.image.core.generations import Generations
from genaid_server.image.core.lease import EngineNeed, ImagePlacement, ImageSize, Lease, LeaseState, Prospect
from genaid_server.image.core.progress import Calibration
from genaid_server.image.core.settings import WHOLE, ImageModel
from genaid_server.image.core.spec import GenerationSpec
from genaid_server.image.servicers import GenerationServicer
from genaid_server.kit.errors import InsufficientResourcesError, PortInUseError, ServerError
from genaid_server.resource.core.downloads.download import Download, DownloadLimits, DownloadSpec
from genaid_server.resource.core.downloads.manager import Downloads
from genaid_server.resource.core.downloads.remote import Item
from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.fitting.capacity import Budgets
from genaid_server.resource.core.fitting.plan import LlmWishes
from genaid_server.resource.core.leases.images import ImageNeeds
from genaid_server.resource.core.leases.lease import LeaseState as ManagerLeaseState
from genaid_server.resource.core.leases.leases import Leases
from genaid_server.resource.core.leases.measuring import SurveyedMemory
from genaid_server.resource.core.leases.usage import Usage
from genaid_server.resource.core.leases.ways import ImageNeed
from genaid_server.resource.core.llm import process as llm_process
from genaid_server.resource.core.llm.config import LlmRequest, Serving
from genaid_server.resource.core.llm.engine import LlmEngine
from genaid_server.resource.core.llm.info import LlmInfo
from genaid_server.resource.core.llm.life import LlmSettings
from genaid_server.resource.core.llm.saved import FILE
from genaid_server.resource.core.store.model import Model
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.core.system.facts import Cpu, Hardware, Memory, Ram
from genaid_server.resource.core.system.survey import Survey
from genaid_server.supervision.logbook import Logbook
from genaid_server.supervision.supervisor import RestartPolicy
from world.engines import Kind, Nursery

EPOCH: Final = 1_800_000_000.0
LARGE: Final = 64 * 2**30
RELOAD_DELAY: Final = 0.5  # seconds, as are these
KEEP_ALIVE: Final = 3.0
DRAIN_TIMEOUT: Final = 5.0
LIMITS: Final = Limits(queue_depth=2, max_results=1, result_ttl=1e9)
SPEC: Final = GenerationSpec("a cat", width=64, height=64, steps=2, seed=1)


@dataclass(frozen=True)
class LlmView:
    """The LLM engine as callers see it. `saved` says that it is on disk as one that is to come back."""

    state: str
    pid: int | None
    model_id: str
    offloaded: bool
    saved: bool

    @property
    def settled(self) -> bool:
        return self.state in ("RUNNING", "STOPPED", "CRASHED") and not self.offloaded


@dataclass(frozen=True)
class ImageView:
    """The image engine as callers see it."""

    state: str
    model_id: str
    accepting: bool


@dataclass(frozen=True)
class Holder:
    """A lease that is granted."""

    kind: Kind
    ram: int


class SteadyMachine:
    """A machine in place of the survey: a processor, and more memory than anybody needs. It takes a moment to tell."""

    detected_at = 0.0

    async def hardware(self, refresh: bool = False) -> Hardware:
        await asyncio.sleep(0)
        return Hardware("linux", Cpu("any", "x64", 4, 4, 4))

    async def lasting(self) -> Hardware:
        return await self.hardware()

    async def memory(self) -> Memory:
        await asyncio.sleep(0)
        return Memory(0.0, Ram(LARGE, LARGE))


class Manager:
    """The resource manager as the image worker sees it over the contract, without the wire."""

    def __init__(self, needs: ImageNeeds, leases: Leases) -> None:
        self._needs, self._leases = needs, leases

    async def resolve(self, model_id: str, tenant_id: str = "") -> ImageModel:
        await asyncio.sleep(0)
        if tenant_id:
            self._needs.chosen(tenant_id, model_id)
        found = _model(self._needs.model(model_id))
        await asyncio.sleep(0)
        return found

    async def prospect(self, need: EngineNeed) -> Prospect:
        model = await self.resolve(need.model_id)
        asked = await self._needs.next_image(replace(_image_need(need), model_id=model.id))
        plan = await self._leases.plan(asked)
        if not plan.possible:
            raise InsufficientResourcesError(plan.explanation)
        return Prospect(model, has_room=not plan.departures)

    async def hold(self, tenant_id: str, need: EngineNeed, *, resident: bool = False) -> AsyncGenerator[Lease, None]:
        asked = await self._needs.request(tenant_id, _image_need(need), resident=resident)
        async with self._leases.hold(asked) as held:
            async for lease in held.lease.watch():
                placed = lease.request.placement
                placement = ImagePlacement(placed.offload_to_cpu, placed.vae_tiling) if placed else ImagePlacement()
                state = LeaseState[lease.state.name]
                model = _model(asked.model)
                yield Lease(lease.id, state, model, lease.reason, lease.reclaim_after or 0.0, placement)
            held.raise_if_refused()
            if any(lease.id == held.lease.value.id for lease in self._leases.present()):
                raise ServerError("The resource manager is shutting down.")

    async def report_use(self, lease_id: str, size: ImageSize, peak_ram_bytes: int) -> None:
        await asyncio.sleep(0)
        self._leases.used(lease_id)


class Stage:
    """The owners, wired together as the services wire them. Verbs are awaited; all else is a look."""

    def __init__(
        self, data_dir: Path, store: ModelStore, downloads: Downloads, leases: Leases, llm: LlmEngine,
        engine: ImageEngine, generations: Generations,
    ) -> None:  # fmt: skip
        self.data_dir = data_dir
        self._store, self._downloads, self._leases = store, downloads, leases
        self._llm, self._engine, self._generations = llm, engine, generations

    @classmethod
    @asynccontextmanager
    async def open(
        cls, data_dir: Path, nursery: Nursery, remote: ScriptedRemote, *, budget: int, port_taken: bool = False
    ) -> AsyncIterator[Self]:
        """Serve until the block ends. Raises PortInUseError where the port is taken, which shows late."""
        survey, budgets = cast("Survey", SteadyMachine()), Budgets(ram=budget)
        async with AsyncExitStack() as stack:
            logbook = Logbook(data_dir / "logs" / "llm-engine.log")
            stack.callback(logbook.close)
            store = await ModelStore.open(data_dir)
            stack.push_async_callback(store.close)
            limits = DownloadLimits(reserve_bytes=0, attempts=4)
            downloads = await stack.enter_async_context(Downloads(data_dir, store, remote, limits))
            leases = await stack.enter_async_context(Leases(SurveyedMemory(survey, budgets), reload_delay=RELOAD_DELAY))
            usage = Usage(data_dir / "memory-usage.json")
            needs = ImageNeeds(store, survey, budgets, usage)
            settings = LlmSettings(
                data_dir=data_dir,
                policy=RestartPolicy(automatic=True, limit=1000, stable_after=0.0),
                drain_timeout=DRAIN_TIMEOUT,
                settle_delay=RELOAD_DELAY,
            )
            advisor = Advisor(store, survey, budgets)
            llm = await stack.enter_async_context(LlmEngine(store, advisor, logbook, nursery, leases, usage, settings))
            store.in_use = llm.use_of

            def end_watches() -> None:
                llm.closing()
                leases.close()
                downloads.end_watches()

            for _ in range(5):  # the servers are made
                await asyncio.sleep(0)
            if port_taken:
                raise PortInUseError("The address is taken.")
            stack.callback(end_watches)
            llm.recover()
            manager = Manager(needs, leases)
            images = Logbook(data_dir / "logs" / "image-engine.log")
            stack.callback(images.close)
            engine = await stack.enter_async_context(
                ImageEngine(manager, images, keep_alive=KEEP_ALIVE, data_dir=data_dir)
            )
            calibration = Calibration(data_dir / "calibration.json")
            generations = await stack.enter_async_context(Generations(engine, calibration, LIMITS))
            yield cls(data_dir, store, downloads, leases, llm, engine, generations)

    # --- the LLM engine

    async def start(self, model_id: str, context: int, replace_running: bool) -> LlmView:
        wishes = LlmWishes(threads=1, context_size=context, parallel=1)
        request = LlmRequest(model_id, wishes, Serving(port=0))
        return self._llm_view(await self._llm.start(request, replace_running=replace_running))

    async def restart(self) -> LlmView:
        return self._llm_view(await self._llm.restart())

    async def stop(self) -> LlmView:
        return self._llm_view(await self._llm.stop())

    async def forget(self) -> bool:
        return await self._llm.forget()

    @property
    def llm(self) -> LlmView:
        return self._llm_view(self._llm.present())

    def _llm_view(self, info: LlmInfo) -> LlmView:
        life = info.life
        model_id = life.config.model_id if life.config else ""
        return LlmView(life.state.name, life.pid, model_id, info.offloaded, has_saved(self.data_dir))

    # --- images

    async def start_engine(self, model_id: str, replace_running: bool) -> ImageView:
        await self._engine.start(model_id, replace_running=replace_running)
        return self.image

    async def stop_engine(self) -> ImageView:
        await self._generations.stop_engine()
        return self.image

    @property
    def image(self) -> ImageView:
        info = self._engine.info.value
        return ImageView(info.life.state.name, info.life.config.model_id if info.life.config else "", info.accepting)

    async def create(self) -> Generation:
        return await self._generations.create(SPEC)

    async def cancel(self, generation_id: str) -> Generation:
        return await self._generations.cancel(generation_id)

    async def forget_images(self, generation_id: str) -> None:
        await self._generations.delete(generation_id)

    async def generate(self) -> AsyncGenerator[str, None]:
        """The one-call form: the name of each state, then `image` for each piece of one."""
        spec = generation_pb2.GenerationSpec(prompt="a cat", width=64, height=64, steps=2, seed=1)
        request = generation_pb2.GenerateImagesRequest(spec=spec)
        call: Any = GenerationServicer(self._generations).GenerateImages(request, cast("Any", None))
        async with aclosing(call) as responses:
            async for response in responses:
                if response.HasField("generation"):
                    yield generation_pb2.GenerationState.Name(response.generation.state).rpartition("_")[2].lower()
                else:
                    yield "image"

    @property
    def generations(self) -> list[Generation]:
        return self._generations.newest_first()

    # --- models

    async def import_model(self, model_id: str, content: bytes, file_name: str) -> Model:
        (self._store.inbox / file_name).write_bytes(content)
        return await self._store.import_file(file_name, model_id=model_id)

    async def delete_model(self, model_id: str) -> None:
        await self._store.delete(model_id)

    @property
    def models(self) -> dict[str, Model]:
        return {model.id: model for model in self._store.list()}

    # --- downloads

    async def download(self, url: str, checksum: str, model_id: str) -> Download:
        return await self._downloads.create(DownloadSpec((Item(url, checksum=checksum),), model_id=model_id))

    async def cancel_download(self, download_id: str) -> Download:
        return await self._downloads.cancel(download_id)

    async def follow_download(self, download_id: str) -> Download:
        """The download when a watch of it has ended."""
        return [download async for download in self._downloads.watch(download_id)][-1]

    def download_of(self, download_id: str) -> Download:
        return self._downloads.get(download_id)

    @property
    def downloads(self) -> tuple[Download, ...]:
        return self._downloads.newest_first()

    # --- memory

    @property
    def holders(self) -> list[Holder]:
        present = [lease for lease in self._leases.present() if lease.state is not ManagerLeaseState.WAITING]
        return [Holder(Kind(lease.request.kind.value), lease.request.amount.ram) for lease in present]


def saved_file(data_dir: Path) -> Path:
    """Where it is kept what is to run, or to come back."""
    return data_dir / FILE


def has_saved(data_dir: Path) -> bool:
    """Whether an LLM that is to run, or to come back, is on disk."""
    return saved_file(data_dir).exists()


def play(patch: pytest.MonkeyPatch, nursery: Nursery, stuck: set[str], clock: Callable[[], float]) -> None:
    """Put played children in the place of processes, and `clock` in that of the system's.

    Downloads whose id is `stuck` have files that can't be removed.
    """
    patch.setattr(time, "time", lambda: EPOCH + clock())
    patch.setattr(time, "monotonic", clock)
    patch.setattr(llm_process, "child", nursery.starter(Kind.LLM))
    patch.setattr(image_process, "child", nursery.starter(Kind.IMAGE))
    remove = shutil.rmtree

    def rmtree(path: Path | str, *args: Any, **more: Any) -> None:
        if Path(path).parent.name == "downloads" and Path(path).name in stuck:
            raise PermissionError(13, "The process cannot access the file", str(path))
        remove(path, *args, **more)

    patch.setattr(shutil, "rmtree", rmtree)


def _model(model: Model) -> ImageModel:
    return ImageModel(model.id, model.name, ((WHOLE, model.path),))


def _image_need(need: EngineNeed) -> ImageNeed:
    return replace(ImageNeed(need.model_id, need.size.width, need.size.height), variant=need.variant)
