"""`genaid llm`: start, stop and watch the LLM engine."""

from typing import Annotated

import typer

from genaid_client import AsyncClient, CacheType, Client, Llm, LlmConfig, LlmServing
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.connect import find_server
from genaid_server.cli.llm_loading import load, log_below, read_api_key
from genaid_server.cli.logs import show_log
from genaid_server.cli.output import print_json, say
from genaid_server.cli.views import fit as fit_view
from genaid_server.cli.views.llm import as_object, how_to_use, llm_rows
from genaid_server.cli.views.progress import waiting_bar
from genaid_server.cli.views.tables import print_details, print_table

app = typer.Typer(rich_markup_mode=None)
llm = typer.Typer(
    no_args_is_help=True,
    help="Control the LLM engine.\n\nIt holds one language model, and serves it at a port of its own.",
)
app.add_typer(llm, name="llm")


@llm.command("start", cls=Command)
def start(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id; `genaid models list` shows it.")],
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Port of its HTTP API; 0 takes a free one. Default: 8080.")
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="A loopback address. Default: 127.0.0.1.")] = "",
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Context of each request, in tokens. Default: 4096.")
    ] = None,
    gpu_layers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Layers on the GPU; as many as the model has, or more, are all of it."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="1 to 512. Default: from the number of cores.")
    ] = None,
    parallel: Annotated[int | None, typer.Option(metavar="N", help="Requests at the same time. Default: 4.")] = None,
    flash_attention: Annotated[
        bool | None,
        typer.Option("--flash-attention/--no-flash-attention", help="Less memory, often faster.", show_default=False),
    ] = None,
    cache_type: Annotated[
        CacheType | None, typer.Option(help="How the KV cache is stored.", show_default=False)
    ] = None,
    experts_on_cpu: Annotated[
        bool | None,
        typer.Option(
            "--experts-on-cpu/--no-experts-on-cpu",
            help="Keep the experts of a mixture in main memory.",
            show_default=False,
        ),
    ] = None,
    no_mmap: Annotated[bool, typer.Option("--no-mmap", help="Read the model file instead of mapping it.")] = False,
    mlock: Annotated[bool, typer.Option("--mlock", help="Lock the model into main memory.")] = False,
    api_key_file: options.ApiKeyFile = None,
    replace: Annotated[bool, typer.Option("--replace", help="Stop another model or other options first.")] = False,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Load a language model; returns when it answers.

    What is not given is chosen by what fits into memory. Ctrl-C leaves it loading.
    """
    config = LlmConfig(
        threads=threads,
        gpu_layers=gpu_layers,
        context_size=context,
        parallel_requests=parallel,
        flash_attention=flash_attention,
        cache_type_k=cache_type,
        cache_type_v=cache_type,
        experts_on_cpu=experts_on_cpu,
    )
    key = read_api_key(api_key_file)
    serving = LlmServing(
        port=port,
        host=host,
        api_key=key,
        memory_map=False if no_mmap else None,
        memory_lock=True if mlock else None,
    )
    server = find_server(data_dir, resource=resource)

    async def begin(client: AsyncClient) -> Llm:
        return await client.llm.start(model, config=config, serving=serving, replace=replace)

    with log_below(as_json=as_json):
        started = load(server.resource, begin)
    _print_started(started, with_key=bool(key), as_json=as_json)


@llm.command("stop", cls=Command)
def stop(
    resource: options.ResourceServer = None, data_dir: options.DataDir = None, as_json: options.AsJson = False
) -> None:
    """Stop the engine, and free its memory."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client, waiting_bar("stopping"):
        stopped = client.llm.stop()
    _print_llm(stopped, as_json=as_json)


@llm.command("restart", cls=Command)
def restart(
    resource: options.ResourceServer = None, data_dir: options.DataDir = None, as_json: options.AsJson = False
) -> None:
    """Stop the engine, and start it again with the same model and options."""
    server = find_server(data_dir, resource=resource)
    with log_below(as_json=as_json):
        started = load(server.resource, lambda client: client.llm.restart())
    _print_llm(started, as_json=as_json)


@llm.command("status", cls=Command)
def status(
    resource: options.ResourceServer = None, data_dir: options.DataDir = None, as_json: options.AsJson = False
) -> None:
    """Show what the engine does."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        now = client.llm.get()
    _print_llm(now, as_json=as_json)


@llm.command("logs", cls=Command)
def logs(
    lines: Annotated[
        int | None, typer.Option("-n", "--lines", min=0, metavar="N", help="How many of the newest. Default: 100.")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with each new line until Ctrl-C.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Forget the log instead of showing it.")] = False,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what the engine has printed; with --json an object a line."""
    if clear and (follow or lines is not None):
        raise typer.BadParameter("It shows no lines: leave -n and -f out.", param_hint="--clear")
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        if clear:
            client.llm.clear_logs()
            if not as_json:
                say("The log of the LLM engine is empty now.")
            return
        show_log(client.llm, lines, follow=follow, as_json=as_json)


def _print_started(started: Llm, *, with_key: bool, as_json: bool) -> None:
    _print_llm(started, as_json=as_json)
    if not as_json and started.base_url is not None:
        say(how_to_use(started.base_url, with_key=with_key))


def _print_llm(now: Llm, *, as_json: bool) -> None:
    if as_json:
        print_json(as_object(now))
        return
    print_details(llm_rows(now))
    if now.config is not None and now.pid is not None:
        print()
        print_table(fit_view.SETTING_COLUMNS, fit_view.setting_rows(now.config, now.reasons))
