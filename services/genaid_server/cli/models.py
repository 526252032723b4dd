"""`genaid models`: import, list, show, remove."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from genaid_client import Model, ModelType, ResourceClient
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.connect import find_server
from genaid_server.cli.inbox import placed
from genaid_server.cli.output import print_json, say
from genaid_server.cli.progress import copy_bar, waiting_bar

WIDE = 10_000  # columns; ids are there to be copied, so a long row is folded by the terminal, if at all

app = typer.Typer(rich_markup_mode=None)
models = typer.Typer(no_args_is_help=True, help="Import, list and remove models.")
app.add_typer(models, name="models")

ModelId = Annotated[str, typer.Argument(metavar="ID", help="The model's id; `genaid models list` shows it.")]


@models.command("import", cls=Command)
def import_model(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="A .gguf file; for images .safetensors, too.",
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name for people. Default: the model's own.")] = "",
    kind: Annotated[
        ModelType | None,
        typer.Option("--type", help="What it is for. Default: told from the file.", show_default=False),
    ] = None,
    model_id: Annotated[str, typer.Option("--id", metavar="ID", help="Its id. Default: made from the name.")] = "",
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Install a model file.

    The file stays where it is; on the same file system, both share their room on the disk.
    """
    server = find_server(data_dir, resource=resource)
    with ResourceClient(server.resource) as client:
        client.list_models()  # before gigabytes are copied: does anybody answer?
        with placed(file, server.data_dir, copy_bar) as bare_name, waiting_bar(f"checking {file.name}"):
            model = client.import_model(bare_name, name=name, type=kind, model_id=model_id)
    if as_json:
        print_json(model)
        return
    print(model.id)
    say(f"Imported {model.name}: {_type_name(model)}, {decimal(model.size_bytes)}.")
    if model.type is ModelType.DIFFUSION:
        say(f'Make an image with it: genaid generate --model {model.id} "a prompt"')


@models.command("list", cls=Command)
def list_models(
    kind: Annotated[ModelType | None, typer.Option("--type", help="Only models for this.", show_default=False)] = None,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List the installed models."""
    with ResourceClient(find_server(data_dir, resource=resource).resource) as client:
        found = client.list_models(kind)
    if as_json:
        print_json(found)
    elif not found:
        say("No models yet. Import one with: genaid models import FILE")
    else:
        Console(width=WIDE).print(_table(found))


@models.command("show", cls=Command)
def show_model(
    model_id: ModelId,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show one model."""
    with ResourceClient(find_server(data_dir, resource=resource).resource) as client:
        model = client.get_model(model_id)
    if as_json:
        print_json(model)
    else:
        Console(width=WIDE).print(_details(model))


@models.command("rm", cls=Command)
def remove_model(
    model_id: ModelId,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Remove a model and its file from the store."""
    with ResourceClient(find_server(data_dir, resource=resource).resource) as client:
        client.delete_model(model_id)
    if as_json:
        print_json({"id": model_id})
    else:
        say(f"Removed {model_id}.")


def _type_name(model: Model) -> str:
    return model.type.value if model.type else "unknown"


def _table(found: list[Model]) -> Table:
    table = Table("ID", "NAME", "TYPE", "ARCHITECTURE", box=None, pad_edge=False, header_style="bold")
    table.add_column("SIZE", justify="right")
    table.add_column("ADDED")
    for model in found:
        cells = (
            model.id,
            model.name,
            _type_name(model),
            model.metadata.architecture if model.metadata else "",
            decimal(model.size_bytes),
            f"{model.create_time.astimezone():%Y-%m-%d}",
        )
        table.add_row(*map(Text, cells))
    return table


def _details(model: Model) -> Table:
    rows: dict[str, object] = {
        "id": model.id,
        "name": model.name,
        "type": _type_name(model),
        "format": model.format,
        "size": f"{decimal(model.size_bytes)} ({model.size_bytes:,} bytes)",
        "added": f"{model.create_time.astimezone():%Y-%m-%d %H:%M}",
        "file": model.path,
        "checksum": model.checksum,
    }
    if model.metadata is not None:
        rows |= {
            "architecture": model.metadata.architecture,
            "layers": model.metadata.block_count,
            "context": model.metadata.context_length,
            "vocabulary": model.metadata.vocab_size,
            "tensors": model.metadata.tensor_count,
        }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for label, value in rows.items():
        if value not in (None, ""):
            table.add_row(label, Text(str(value)))
    return table
