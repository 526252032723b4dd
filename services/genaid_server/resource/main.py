"""The resource manager, wired together."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import grpc.aio

from genaid.resource.v1 import (
    downloads_pb2,
    downloads_pb2_grpc,
    llm_pb2,
    llm_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    orchestration_pb2,
    orchestration_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)
from genaid_server.kit import rpc
from genaid_server.kit.address import Address
from genaid_server.resource.config import DownloadsConfig, LlmConfig, MemoryConfig, ResourceSettings
from genaid_server.resource.core.downloads.download import DownloadLimits
from genaid_server.resource.core.downloads.manager import Downloads
from genaid_server.resource.core.downloads.source_header import SourceHeaders
from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.fitting.capacity import Budgets
from genaid_server.resource.core.leases.images import ImageNeeds
from genaid_server.resource.core.leases.leases import Leases
from genaid_server.resource.core.leases.measuring import SurveyedMemory
from genaid_server.resource.core.leases.usage import Usage
from genaid_server.resource.core.llm.config import LlmRequest, Serving
from genaid_server.resource.core.llm.engine import LlmEngine
from genaid_server.resource.core.llm.life import LlmSettings
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.core.system.machine import this_machine
from genaid_server.resource.core.system.survey import Survey
from genaid_server.resource.core.system.watching import MemoryWatches
from genaid_server.resource.llm_http import EngineHttp
from genaid_server.resource.log_lines import llm_logged
from genaid_server.resource.remote.sources import open_remote
from genaid_server.resource.servicers.downloads import DownloadServicer
from genaid_server.resource.servicers.llm import LlmServicer
from genaid_server.resource.servicers.models import ModelServicer
from genaid_server.resource.servicers.orchestration import OrchestrationServicer
from genaid_server.resource.servicers.system import Place, SystemServicer
from genaid_server.supervision.logbook import Logbook
from genaid_server.supervision.supervisor import RestartPolicy

SETTLE_SECONDS: Final = 2.5
"""Within which image workers find a manager that was started again, and tell it of the engines that they have."""


@dataclass(frozen=True, slots=True)
class Manager:
    """A resource manager that runs, where it listens.

    Once `settle` is called it starts no engine any more: for whoever is about to end the services that hold leases,
    which would make room for the LLM to come back. `announce` tells it where a service listens that runs beside it, by
    the names that GetVersion has for them.
    """

    address: Address
    settle: Callable[[], None]
    announce: Callable[[str, str], None]

    def __str__(self) -> str:
        return str(self.address)


@asynccontextmanager
async def serve(config: ResourceSettings) -> AsyncIterator[Manager]:
    """Run the resource manager until the block ends. Raises PortInUseError, FileSystemError."""
    store = await ModelStore.open(config.data_dir)
    logbook = Logbook(config.data_dir / "logs" / "llm-engine.log")
    try:
        async with (
            open_remote(config.downloads) as remote,
            Downloads(config.data_dir, store, remote, _limits(config.downloads)) as downloads,
            Survey(this_machine(), config.data_dir) as survey,
            EngineHttp() as engines,
            _leases(config, survey) as leases,
        ):
            budgets = _budgets(config.memory)
            advisor = Advisor(store, survey, budgets)
            usage = Usage(config.data_dir / "memory-usage.json")
            needs = ImageNeeds(store, survey, budgets, usage, config.image.model)
            watches = MemoryWatches(survey.memory)
            headers = SourceHeaders(remote, config.downloads.stall_seconds)
            async with (
                LlmEngine(store, advisor, logbook, engines, leases, usage, _llm_settings(config)) as llm,
                llm_logged(llm.info),
            ):
                store.in_use = llm.use_of

                def end_watches() -> None:
                    llm.closing()
                    leases.close()
                    downloads.end_watches()
                    store.end_verifications()
                    watches.end()
                    logbook.end_watches()

                listening = {"resource": str(config.resource.listen)}  # its port is the one asked for, unless that is 0
                place = Place(config.data_dir.absolute(), store.inbox, lambda: listening | _address_of(llm))
                services = [
                    _service(
                        models_pb2,
                        "ModelService",
                        models_pb2_grpc.add_ModelServiceServicer_to_server,
                        ModelServicer(store, headers.read),
                    ),
                    _service(
                        downloads_pb2,
                        "DownloadService",
                        downloads_pb2_grpc.add_DownloadServiceServicer_to_server,
                        DownloadServicer(downloads, store),
                    ),
                    _service(
                        system_pb2,
                        "SystemService",
                        system_pb2_grpc.add_SystemServiceServicer_to_server,
                        SystemServicer(advisor, survey, watches, place),
                    ),
                    _service(
                        orchestration_pb2,
                        "OrchestrationService",
                        orchestration_pb2_grpc.add_OrchestrationServiceServicer_to_server,
                        OrchestrationServicer(leases, needs, llm),
                    ),
                    _service(
                        llm_pb2,
                        "LlmService",
                        llm_pb2_grpc.add_LlmServiceServicer_to_server,
                        LlmServicer(llm, logbook, config.llm.port),
                    ),
                ]
                async with rpc.serve(config.resource.listen, services, end_watches) as address:
                    listening["resource"] = str(address)
                    llm.recover(_configured(config.llm))
                    yield Manager(address, leases.close, listening.__setitem__)
    finally:
        await store.close()
        logbook.close()


def _configured(settings: LlmConfig) -> LlmRequest | None:
    """What is to be loaded at the start, None for nothing."""
    return LlmRequest(settings.model, serving=Serving(port=settings.port)) if settings.model else None


def _address_of(llm: LlmEngine) -> dict[str, str]:
    """Where the LLM engine listens, by its name, while that is known."""
    info = llm.present()
    if info.life.config is None or not info.port:
        return {}
    return {"llm": f"http://{Address(info.life.config.serving.host, info.port)}"}


def _leases(config: ResourceSettings, survey: Survey) -> Leases:
    return Leases(
        SurveyedMemory(survey, _budgets(config.memory)),
        reload_delay=config.llm.reload_delay_seconds,
        release_timeout=config.memory.release_timeout_seconds,
    )


def _service(
    messages: ModuleType, name: str, add: Callable[[Any, grpc.aio.Server], None], servicer: object
) -> rpc.Service:
    full_name = messages.DESCRIPTOR.services_by_name[name].full_name
    return rpc.Service(full_name, lambda server: add(servicer, server))


def _llm_settings(config: ResourceSettings) -> LlmSettings:
    settings = config.llm
    return LlmSettings(
        data_dir=config.data_dir,
        program=settings.program,
        command=settings.engine_command,
        policy=RestartPolicy(
            automatic=settings.restart,
            limit=settings.max_restarts,
            first_delay=settings.first_restart_seconds,
            stable_after=settings.stable_seconds,
        ),
        health_interval=settings.health_interval_seconds,
        health_failures=settings.health_failures,
        drain_timeout=settings.drain_timeout_seconds,
        settle_delay=max(settings.reload_delay_seconds, SETTLE_SECONDS),
    )


def _limits(settings: DownloadsConfig) -> DownloadLimits:
    return DownloadLimits(
        parallel=settings.parallel,
        reserve_bytes=settings.reserve_bytes,
        stall_seconds=settings.stall_seconds,
        attempts=settings.attempts,
        first_delay=settings.first_delay_seconds,
        max_delay=settings.max_delay_seconds,
    )


def _budgets(settings: MemoryConfig) -> Budgets:
    return Budgets(ram=settings.ram_limit_bytes, vram=settings.vram_limit_bytes)
