"""`genaid models`: import, list, show, verify, refresh, remove."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from genaid_client import Client, MetadataStrategy, ModelType, ServerError, Verification, VerifyProgress
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.connect import find_server
from genaid_server.cli.following import what_next
from genaid_server.cli.inbox import placed
from genaid_server.cli.output import print_json, printable, say
from genaid_server.cli.views.models import model_details, model_row, raw_rows, type_name
from genaid_server.cli.views.progress import bytes_bar, copy_bar, waiting_bar
from genaid_server.cli.views.tables import print_details, print_table
from genaid_server.cli.views.units import format_bytes

app = typer.Typer(rich_markup_mode=None)
models = typer.Typer(no_args_is_help=True, help="List, show, import, verify and remove models.")
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
    with Client(resource=server.resource) as client:
        client.models.list()  # before gigabytes are copied: does anybody answer?
        with placed(file, server.data_dir, copy_bar) as bare_name, waiting_bar(f"checking {file.name}"):
            model = client.models.import_(bare_name, name=name, type=kind, model_id=model_id)
    if as_json:
        print_json(model)
        return
    print(model.id)
    say(f"Imported {printable(model.name)}: {type_name(model)}, {format_bytes(model.size_bytes)}.\n{what_next(model)}")


@models.command("list", cls=Command)
def list_models(
    kind: Annotated[ModelType | None, typer.Option("--type", help="Only models for this.", show_default=False)] = None,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List the installed models."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        found = client.models.list(kind)
    if as_json:
        print_json(found)
    elif not found:
        say("No models yet. Get one with: genaid pull hf:OWNER/REPO/FILE, or: genaid models import FILE")
    else:
        columns = ("ID", "NAME", "TYPE", "ARCHITECTURE", "LAYERS", "CONTEXT", "SIZE", "ADDED")
        print_table(columns, map(model_row, found), right=("LAYERS", "CONTEXT", "SIZE"))


@models.command("show", cls=Command)
def show_model(
    model_id: ModelId,
    raw: Annotated[bool, typer.Option("--raw", help="Everything that the file's header says, too.")] = False,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show one model."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        model = client.models.get(model_id)
        header = client.models.get_raw_metadata(model_id) if raw else {}
    if as_json:
        print_json({**asdict(model), "raw_metadata": header} if raw else model)
        return
    print_details(model_details(model))
    if raw:
        print()
        print_details(raw_rows(header))


@models.command("verify", cls=Command)
def verify_model(
    model_id: ModelId,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Check that a model's files are what was installed.

    The exit status is 1 where one is not. It reads all of them: about a second a gigabyte.
    """
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        found = _verify(client, model_id)
    if as_json:
        print_json({"id": model_id, "result": found.result, "files": found.files})
    else:
        _tell_verification(model_id, found)
    if found.result is Verification.INVALID:
        raise typer.Exit(1)


@models.command("refresh", cls=Command)
def refresh_model(
    model_id: ModelId,
    source: Annotated[
        MetadataStrategy,
        typer.Option("--source", help="Where to read: the file here, its source, or one where the other fails."),
    ] = MetadataStrategy.LOCAL_REMOTE,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Read the header of a model's file anew."""
    server = find_server(data_dir, resource=resource)
    with Client(resource=server.resource) as client, waiting_bar(f"reading the header of {model_id}"):
        model = client.models.refresh_metadata(model_id, source)
    if as_json:
        print_json(model)
    else:
        print_details(model_details(model))


@models.command("rm", cls=Command)
def remove_model(
    model_id: ModelId,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Remove a model and its files from the store."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        client.models.delete(model_id)
    if as_json:
        print_json({"id": model_id})
    else:
        say(f"Removed {model_id}.")


def _verify(client: Client, model_id: str) -> VerifyProgress:
    found: VerifyProgress | None = None
    with bytes_bar(f"verifying {model_id}") as show:
        for found in client.models.verify(model_id):
            show(found.bytes_done, found.bytes_total)
    if found is None or found.result is None:
        raise ServerError("The server stopped verifying before it was done; try again.")
    return found


def _tell_verification(model_id: str, found: VerifyProgress) -> None:
    for file in found.files:
        print(f"{file.result or 'unknown':<12} {printable(file.name)}")
        if file.result is Verification.INVALID:
            print(f"  expected {file.expected}\n  found    {file.actual or 'no file'}")
    match found.result:
        case Verification.VALID:
            say(f"{model_id} is what was installed.")
        case Verification.INVALID:
            say(f"{model_id} is damaged. Remove it with: genaid models rm {model_id}, and get it again.")
        case _:
            say(f"{model_id} can't be verified: there is no checksum to compare with.")
