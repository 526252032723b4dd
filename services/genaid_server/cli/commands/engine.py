"""`genaid engine` and `genaid status`."""

from contextlib import AbstractContextManager
from typing import Annotated

import typer

from genaid_client import (
    AsyncClient,
    Client,
    Engine,
    EngineOptions,
    Generation,
    GenerationState,
)
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.connect import Server, find_server
from genaid_server.cli.logs import show_log
from genaid_server.cli.output import print_json, printable
from genaid_server.cli.views import leases as lease_view
from genaid_server.cli.views.generations import describe, percentage
from genaid_server.cli.views.llm import as_object, status_rows

app = typer.Typer(rich_markup_mode=None)
engine = typer.Typer(
    no_args_is_help=True, help="Control the image engine.\n\nIt is the process that holds the model and computes."
)
app.add_typer(engine, name="engine")

MIB = 1024 * 1024


@engine.command("start", cls=Command)
def start(
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Model to load. Default: the one that was selected last.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="1 to 512. Default: from the number of cores.")
    ] = None,
    keep_alive: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Unload after so long without work; 0 at once, -1 never. Default: 300."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Stop an engine with other settings first.")] = False,
    flash_attention: Annotated[bool, typer.Option("--flash-attention", help="Less memory, often faster.")] = False,
    offload_to_cpu: Annotated[
        bool, typer.Option("--offload-to-cpu", help="Keep weights in main memory, move them to the GPU as needed.")
    ] = False,
    clip_on_cpu: Annotated[bool, typer.Option("--clip-on-cpu", help="Text encoders on the CPU.")] = False,
    vae_on_cpu: Annotated[bool, typer.Option("--vae-on-cpu", help="VAE on the CPU.")] = False,
    vae_tiling: Annotated[bool, typer.Option("--vae-tiling", help="Decode in tiles: less memory.")] = False,
    memory_map: Annotated[bool, typer.Option("--memory-map", help="Map the model file instead of reading it.")] = False,
    max_vram: Annotated[int | None, typer.Option(metavar="MIB", help="GPU memory that it may use, in MiB.")] = None,
    image: options.ImageServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Load a model; returns when it is loaded."""
    with Client(image=find_server(data_dir, image=image).image) as client:
        chosen = model or client.engine.get().model_id
        with _waiting_bar(f"loading {chosen or 'the default model'}"):
            started = client.engine.start(
                chosen,
                threads=threads,
                options=EngineOptions(
                    flash_attention=flash_attention,
                    offload_to_cpu=offload_to_cpu,
                    clip_on_cpu=clip_on_cpu,
                    vae_on_cpu=vae_on_cpu,
                    vae_tiling=vae_tiling,
                    memory_map=memory_map,
                    max_vram_bytes=max_vram * MIB if max_vram is not None else None,
                ),
                keep_alive_seconds=keep_alive,
                replace=replace,
            )
    _print_engine(started, as_json=as_json)


@engine.command("stop", cls=Command)
def stop(image: options.ImageServer = None, data_dir: options.DataDir = None, as_json: options.AsJson = False) -> None:
    """Cancel what it does, free its memory, and refuse images until it is started again."""
    with Client(image=find_server(data_dir, image=image).image) as client:
        stopped = client.engine.stop()
    _print_engine(stopped, as_json=as_json)


@engine.command("status", cls=Command)
def engine_status(
    image: options.ImageServer = None, data_dir: options.DataDir = None, as_json: options.AsJson = False
) -> None:
    """Show what the engine does."""
    with Client(image=find_server(data_dir, image=image).image) as client:
        now = client.engine.get()
    _print_engine(now, as_json=as_json)


@engine.command("logs", cls=Command)
def logs(
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, metavar="N", help="How many of the newest.")] = 100,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with each new line until Ctrl-C.")] = False,
    image: options.ImageServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what the engine has printed; with --json an object a line."""
    with Client(image=find_server(data_dir, image=image).image) as client:
        show_log(client.engine, lines, follow=follow, as_json=as_json)


@app.command("status", cls=Command)
def status(
    image: options.ImageServer = None,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what runs.

    That is: where the services listen, what the engines do, how they share memory, and the images that are being made.
    """
    server = find_server(data_dir, image=image, resource=resource)
    with Client(image=server.image) as client:
        now = client.engine.get()
        unfinished = [
            *client.images.list(GenerationState.IN_PROGRESS),
            *client.images.list(GenerationState.PENDING),
        ]
    with Client(resource=server.resource) as manager:
        llm = manager.llm.get()
        leases, offloaded = manager.orchestration.list_leases(), manager.orchestration.get_offloaded_llm()
    if as_json:
        told = {"server": server, "engine": now, "llm": as_object(llm), "generations": unfinished, "leases": leases}
        print_json({**told, "offloaded": lease_view.offloaded_as_object(offloaded)})
        return
    _print_server(server)
    _print_engine(now, as_json=False)
    for label, value in [*status_rows(llm), *lease_view.status_rows(leases, offloaded)]:
        if value not in (None, ""):
            _print_row(label, printable(str(value)))
    for generation in unfinished:
        _print_generation(generation)


async def start_with_model(client: AsyncClient, model_id: str) -> None:
    """Select a model to draw with; one that is selected already keeps its settings."""
    now = await client.engine.get()
    if now.model_id == model_id and now.model_chosen and now.accepting:
        return
    with _waiting_bar(f"loading {model_id}"):
        await client.engine.start(model_id, replace=True)


def _waiting_bar(name: str) -> AbstractContextManager[None]:
    from genaid_server.cli.views.progress import waiting_bar  # it draws with rich, which `genaid status` needs not

    return waiting_bar(name)


def _print_server(server: Server) -> None:
    rows = {
        "REST": server.http,
        "image worker": server.image,
        "resource manager": server.resource,
        "process": server.pid,
    }
    for label, value in rows.items():
        if value is not None:
            _print_row(label, value)


def _print_engine(now: Engine, *, as_json: bool) -> None:
    if as_json:
        print_json(now)
        return
    doing = ", busy" if now.busy else "" if now.accepting else ", refuses images until it is started"
    loaded = f" ({now.load_percentage:.0f}% loaded)" if now.state == "starting" else ""
    if now.state == "stopped" and now.accepting and now.model_id:
        loaded = ", the next image loads it"
    rows: dict[str, object] = {
        "engine": f"{now.state}{loaded}{doing}",
        "model": now.model_id or "none selected yet",
        "pid": now.pid,
        "threads": now.threads or None,
        "variant": now.variant or None,
        "loaded in": f"{now.load_seconds:.1f} s" if now.load_seconds is not None else None,
        "last error": now.last_error or None,
    }
    for label, value in rows.items():
        if value is not None:
            _print_row(label, value)


def _print_generation(generation: Generation) -> None:
    _print_row("generation", f"{generation.id}: {describe(generation)}, {percentage(generation):.0f}%")


def _print_row(label: str, value: object) -> None:
    print(f"{label:<17} {value}")
