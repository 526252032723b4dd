"""`genaid up`, and each service in a process of its own."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import typer

from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.connect import settings
from genaid_server.cli.host import Hosting, host
from genaid_server.cli.output import printable
from genaid_server.cli.runfile import Endpoints
from genaid_server.gateway import main as gateway_service
from genaid_server.image import main as image_service
from genaid_server.kit.address import Address
from genaid_server.resource import main as resource_service
from genaid_server.resource.config import LlmConfig
from genaid_server.settings import Config, load

app = typer.Typer(rich_markup_mode=None)

RESOURCE_LOCK = "resource-manager.lock"
IMAGE_LOCK = "image-worker.lock"


@app.command("up", cls=Command)
def up(
    data_dir: options.DataDir = None,
    http: options.HttpListen = None,
    resource: options.ResourceListen = None,
    image: options.ImageListen = None,
    image_model: options.ImageModel = None,
    llm_model: options.LlmModel = None,
    llm_port: options.LlmPort = None,
    config_file: options.ConfigFile = None,
    ready_file: options.ReadyFile = None,
    exit_with_parent: options.ExitWithParent = False,
    log_level: options.LogLevelOption = None,
) -> None:
    """Run everything in one process.

    That is the REST gateway, the image worker and the resource manager; the engines are children. Ctrl-C or SIGTERM
    stops all of it.
    """
    flags = settings(
        data_dir=data_dir,
        http=http,
        resource=resource,
        image=image,
        image_model=image_model,
        llm_model=llm_model,
        llm_port=llm_port,
        log_level=log_level,
    )
    config = load(config_file, flags)

    async def start(services: AsyncExitStack) -> Endpoints:
        manager = await services.enter_async_context(resource_service.serve(config))
        worker = await services.enter_async_context(image_service.serve(config, str(manager)))
        gateway = await services.enter_async_context(gateway_service.serve(config, str(worker), resource=str(manager)))
        manager.announce("image", str(worker))
        manager.announce("gateway", f"http://{gateway}")
        services.callback(manager.settle)  # the first thing to be done when all of it ends
        return Endpoints(http=f"http://{gateway}", resource=str(manager), image=str(worker))

    host(
        Hosting(
            start=start,
            listens=(config.gateway.listen, config.resource.listen, config.image.listen),
            data_dir=config.data_dir,
            announcement=llm_announcement(config.llm),
            locks=(RESOURCE_LOCK, IMAGE_LOCK),
            findable=True,
            ready_file=ready_file,
            exit_with_parent=exit_with_parent,
            log=config.log,
            log_name="genaid",
            access_log=True,
        )
    )


def llm_announcement(config: LlmConfig) -> str:
    """Where the LLM engine will serve, or how to start it."""
    port = Address("127.0.0.1", config.port)
    place = f"serves on http://{port}" if config.port else "serves on a free port, which `genaid llm status` tells,"
    if config.model:
        return f"The LLM engine {place} once {printable(config.model)} is loaded."
    return f"The LLM engine {place} once it is started: genaid llm start MODEL"


@app.command("resource-manager", cls=Command)
def resource_manager(
    data_dir: options.DataDir = None,
    resource: options.ResourceListen = None,
    llm_model: options.LlmModel = None,
    llm_port: options.LlmPort = None,
    config_file: options.ConfigFile = None,
    ready_file: options.ReadyFile = None,
    exit_with_parent: options.ExitWithParent = False,
    log_level: options.LogLevelOption = None,
) -> None:
    """Run only the resource manager."""
    flags = settings(data_dir=data_dir, resource=resource, llm_model=llm_model, llm_port=llm_port, log_level=log_level)
    config = load(config_file, flags)

    async def start(services: AsyncExitStack) -> Endpoints:
        manager = await services.enter_async_context(resource_service.serve(config))
        return Endpoints(resource=str(manager))

    service = HostedService("resource-manager", config.resource.listen, (RESOURCE_LOCK,), llm_announcement(config.llm))
    host(_alone(service, start, config, ready_file, exit_with_parent))


@app.command("image-worker", cls=Command)
def image_worker(
    data_dir: options.DataDir = None,
    image: options.ImageListen = None,
    resource: options.ResourcePeer = None,
    image_model: options.ImageModel = None,
    config_file: options.ConfigFile = None,
    ready_file: options.ReadyFile = None,
    exit_with_parent: options.ExitWithParent = False,
    log_level: options.LogLevelOption = None,
) -> None:
    """Run only the image worker.

    It asks the resource manager at --resource for models.
    """
    flags = settings(data_dir=data_dir, image=image, resource=resource, image_model=image_model, log_level=log_level)
    config = load(config_file, flags)

    async def start(services: AsyncExitStack) -> Endpoints:
        worker = await services.enter_async_context(image_service.serve(config, str(config.resource.listen)))
        return Endpoints(image=str(worker))

    service = HostedService("image-worker", config.image.listen, (IMAGE_LOCK,))
    host(_alone(service, start, config, ready_file, exit_with_parent))


@app.command("gateway", cls=Command)
def gateway(
    data_dir: options.DataDir = None,
    http: options.HttpListen = None,
    resource: options.ResourcePeer = None,
    image: options.ImagePeer = None,
    config_file: options.ConfigFile = None,
    ready_file: options.ReadyFile = None,
    exit_with_parent: options.ExitWithParent = False,
    log_level: options.LogLevelOption = None,
) -> None:
    """Run only the REST gateway.

    It passes requests for images to the image worker at --image, and asks the resource manager at --resource where the
    LLM engine is. Its log is below the data directory.
    """
    config = load(
        config_file, settings(data_dir=data_dir, http=http, resource=resource, image=image, log_level=log_level)
    )

    async def start(services: AsyncExitStack) -> Endpoints:
        peers = str(config.image.listen), str(config.resource.listen)
        address = await services.enter_async_context(gateway_service.serve(config, peers[0], resource=peers[1]))
        return Endpoints(http=f"http://{address}")

    service = HostedService("gateway", config.gateway.listen, access_log=True)
    host(_alone(service, start, config, ready_file, exit_with_parent))


@dataclass(frozen=True)
class HostedService:
    """A service that a process of its own serves: its name, that of its log; its address; and as in `Hosting`."""

    name: str
    listen: Address
    locks: tuple[str, ...] = ()
    announcement: str = ""
    access_log: bool = False


def _alone(
    service: HostedService,
    start: Callable[[AsyncExitStack], Awaitable[Endpoints]],
    config: Config,
    ready_file: Path | None,
    exit_with_parent: bool,
) -> Hosting:
    return Hosting(
        start=start,
        listens=(service.listen,),
        data_dir=config.data_dir,
        announcement=service.announcement,
        locks=service.locks,
        findable=False,
        ready_file=ready_file,
        exit_with_parent=exit_with_parent,
        log=config.log,
        log_name=service.name,
        access_log=service.access_log,
    )
