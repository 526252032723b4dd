"""`genaid system`: what the machine has, its memory, and which models fit into it."""

from contextlib import closing
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from genaid_client import CacheType, Client, ConnectionFailedError, LlmConfig
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.connect import find_server
from genaid_server.cli.output import INTERRUPTED, print_json
from genaid_server.cli.views import fit as fit_view
from genaid_server.cli.views import system as system_view
from genaid_server.cli.views.tables import print_details, print_table


class ShowsByDefault(TyperGroup):
    """A group whose `show` may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments (called by typer)."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(rich_markup_mode=None)
system = typer.Typer(
    cls=ShowsByDefault,
    help="Show the machine, its memory, and what fits into it.\n\nWithout a command, show what the machine has.",
)
app.add_typer(system, name="system")

ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id; `genaid models list` shows it.")]
Context = Annotated[int | None, typer.Option(metavar="N", help="Context of each request, in tokens.")]
GpuLayers = Annotated[
    int | None, typer.Option(metavar="N", help="Layers on the GPU; as many as the model has, or more, are all of it.")
]
Parallel = Annotated[int | None, typer.Option(metavar="N", help="Requests at the same time.")]


@system.command("show", cls=Command)
def show(
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Detect anew what is otherwise kept for a minute.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show memory again and again until Ctrl-C.")] = False,
    interval: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="With --watch: time between two measurements, 0.1 to 3600. Default: 1."),
    ] = None,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what the machine has, what is recommended for it, and its memory.

    With --watch only memory; with --json an object a line then.
    """
    if watch and refresh:
        raise typer.BadParameter("--watch measures anew each time; leave --refresh out.", param_hint="--refresh")
    if interval is not None and not watch:
        raise typer.BadParameter("It needs --watch.", param_hint="--interval")
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        if watch:
            _watch(client, interval, as_json=as_json)
        else:
            _show(client, refresh=refresh, as_json=as_json)


@system.command("check", cls=Command)
def check(
    model: ModelId,
    total: Annotated[
        bool, typer.Option("--total", help="Compare with all memory instead of with what is free now.")
    ] = False,
    context: Context = None,
    gpu_layers: GpuLayers = None,
    parallel: Parallel = None,
    cache_type: Annotated[
        CacheType | None, typer.Option(help="How the KV cache is stored.", show_default=False)
    ] = None,
    width: Annotated[int | None, typer.Option(metavar="PIXELS", help="Width of the images. Default: 512.")] = None,
    height: Annotated[int | None, typer.Option(metavar="PIXELS", help="Height of the images. Default: 512.")] = None,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell whether a model can run.

    The exit status is 1 where it can't. --width and --height are for image models, the other settings for language
    models; what is not given is chosen.
    """
    config = LlmConfig(
        context_size=context,
        gpu_layers=gpu_layers,
        parallel_requests=parallel,
        cache_type_k=cache_type,
        cache_type_v=cache_type,
    )
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        found = client.system.check_model(
            model,
            check_total_memory=total,
            llm_config=_unless_empty(config),
            width=width,
            height=height,
        )
    if as_json:
        print_json(found)
    else:
        print_details(fit_view.check_rows(found))
        print()
        print_table(fit_view.NEED_COLUMNS, fit_view.need_rows(found.need), right=fit_view.NEED_COLUMNS[1:])
    if not found.possible:
        raise typer.Exit(1)


@system.command("recommend", cls=Command)
def recommend(
    model: ModelId,
    context: Context = None,
    gpu_layers: GpuLayers = None,
    parallel: Parallel = None,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell how best to run a language model now.

    What is given is kept, and the rest chosen around it.
    """
    wishes = LlmConfig(context_size=context, gpu_layers=gpu_layers, parallel_requests=parallel)
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        found = client.system.recommend_llm_config(model, _unless_empty(wishes))
    if as_json:
        print_json(found)
        return
    print_table(fit_view.SETTING_COLUMNS, fit_view.setting_rows(found.config, found.reasons))
    print()
    print_details(fit_view.recommendation_rows(found))
    print()
    print_table(fit_view.NEED_COLUMNS, fit_view.need_rows(found.need), right=fit_view.NEED_COLUMNS[1:])


def _unless_empty(config: LlmConfig) -> LlmConfig | None:
    return None if config == LlmConfig() else config


def _show(client: Client, *, refresh: bool, as_json: bool) -> None:
    machine = client.system.get_capabilities(refresh)
    memory = client.system.get_memory()
    if as_json:
        print_json({"capabilities": machine, "memory": memory})
        return
    print_details(system_view.machine_rows(machine))
    print()
    print_table(system_view.RECOMMENDED_COLUMNS, system_view.recommendation_rows(machine.recommendations))
    print()
    print_table(system_view.MEMORY_COLUMNS, system_view.memory_rows(memory), right=system_view.SIZE_COLUMNS)
    print()
    if memory.engines:
        print_table(system_view.ENGINE_COLUMNS, system_view.engine_rows(memory), right=system_view.SIZE_COLUMNS)
    else:
        print(system_view.NO_ENGINE)
    print_details(("note", note) for note in memory.notes if note not in machine.notes)


def _watch(client: Client, interval: float | None, *, as_json: bool) -> None:
    try:
        with (
            system_view.memory_view(as_json=as_json) as show_memory,
            closing(client.system.watch_memory(interval)) as states,
        ):
            for memory in states:
                show_memory(memory)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    raise ConnectionFailedError("The genaid service went away. Start it again with `genaid up`, then watch again.")
