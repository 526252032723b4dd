"""`genaid downloads`: list, show, watch, cancel."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from genaid_client import Client, Download
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.connect import find_server
from genaid_server.cli.following import see_through
from genaid_server.cli.output import print_json, say
from genaid_server.cli.sources import describe_source
from genaid_server.cli.views.downloads import PHASE_NAMES, amount, file_label, pace, summary, trouble
from genaid_server.cli.views.tables import print_details, print_table


class ListsByDefault(TyperGroup):
    """A group whose `list` may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments (called by typer)."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(rich_markup_mode=None)
downloads = typer.Typer(
    cls=ListsByDefault,
    help="Show, watch and cancel downloads.\n\nWithout a command, list those that are under way.",
)
app.add_typer(downloads, name="downloads")

DownloadId = Annotated[str, typer.Argument(metavar="ID", help="The download's id; `genaid downloads` shows it.")]


@downloads.command("list", cls=Command)
def list_downloads(
    everything: Annotated[bool, typer.Option("--all", help="Also show those that ended in the last week.")] = False,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """List the downloads that are under way, the newest first."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        found = client.downloads.list(active_only=not everything)
    if as_json:
        print_json(found)
    elif found:
        print_table(("ID", "WHAT", "STATE", "PROGRESS", "SPEED AND TIME LEFT"), map(_row, found))
    elif everything:
        say("No downloads in the last week. Start one with: genaid pull hf:OWNER/REPO/FILE")
    else:
        say("No downloads under way. Those that ended: genaid downloads --all")


@downloads.command("show", cls=Command)
def show_download(
    download_id: DownloadId,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Show one download."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        download = client.downloads.get(download_id)
    if as_json:
        print_json(download)
    else:
        print_details(_details(download))


@downloads.command("watch", cls=Command)
def watch_download(
    download_id: DownloadId,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Watch a download until it ends.

    Ctrl-C leaves it running. It ends like `genaid pull`: with the model's id, or with what went wrong.
    """
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        see_through(client, download_id, as_json=as_json)


@downloads.command("cancel", cls=Command)
def cancel_download(
    download_id: DownloadId,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """End a download and remove what it has fetched."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        download = client.downloads.cancel(download_id)
    if as_json:
        print_json(download)
    else:
        say(f"Cancelled {download.id}; what it had fetched is removed.")


def title(download: Download) -> str:
    """What a download is of, in a few words."""
    if download.model is not None:
        return download.model.id
    if download.spec.name:
        return download.spec.name
    if download.files:
        return download.files[0].name
    return describe_source(download.spec.items[0].source) if download.spec.items else ""


def _row(download: Download) -> tuple[str, ...]:
    return (
        download.id,
        title(download),
        PHASE_NAMES[download.phase],
        amount(download.bytes_done, download.bytes_total),
        ", ".join([*pace(download), *trouble(download)]),
    )


def _details(download: Download) -> list[tuple[str, object]]:
    error = download.error
    return [
        ("id", download.id),
        ("state", summary(download)),
        *(("source", describe_source(item.source)) for item in download.spec.items),
        *(("file", f"{file_label(file)}: {amount(file.bytes_done, file.bytes_total)}") for file in download.files),
        ("name", download.spec.name),
        ("started", f"{download.create_time.astimezone():%Y-%m-%d %H:%M:%S}"),
        ("changed", f"{download.update_time.astimezone():%Y-%m-%d %H:%M:%S}"),
        ("retries", download.retries or None),
        ("model", download.model.id if download.model else None),
        ("error", f"{error.message} [{error.code}]" if error else None),
    ]
