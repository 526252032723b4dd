"""Staying with a download until it ends, or until Ctrl-C; it is the server's, and goes on without us."""

import typer

from genaid_client import (
    Client,
    ConnectionFailedError,
    Download,
    DownloadError,
    DownloadPhase,
    Model,
    ModelType,
    raise_for_failure,
)
from genaid_server.cli.output import INTERRUPTED, print_json, printable, say
from genaid_server.cli.views.downloads import ShowDownload, download_view
from genaid_server.cli.views.units import format_bytes


def see_through(client: Client, download_id: str, *, as_json: bool) -> None:
    """Show a download until it ends, and what came of it; Ctrl-C leaves it running.

    Raises what it failed with, DownloadError where somebody cancelled it, ConnectionFailedError where the server goes.
    """
    try:
        with download_view(quiet=as_json) as show:
            download = follow(client, download_id, show)
    except KeyboardInterrupt:
        say(f"The download goes on without you.\n{how_to_go_on(download_id)}")
        raise typer.Exit(INTERRUPTED) from None
    raise_for_failure(download)
    if download.phase is DownloadPhase.CANCELLED:
        raise DownloadError(f"Download {download_id} was cancelled.")
    tell_result(download, as_json=as_json)


def follow(client: Client, download_id: str, show: ShowDownload) -> Download:
    """Watch a download to its end. Raises NotFoundError, and ConnectionFailedError where the server goes first."""
    gone = ConnectionFailedError(
        "The genaid service went away. The download goes on when it runs again (genaid up); "
        f"to watch it then: genaid downloads watch {download_id}"
    )
    download: Download | None = None
    try:
        for download in client.downloads.watch(download_id):
            show(download)
    except ConnectionFailedError as error:
        if download is None:
            raise
        raise gone from error
    if download is None or not download.phase.terminal:
        raise gone
    return download


def tell_result(download: Download, *, as_json: bool) -> None:
    """Print what an installed download has brought: the model's id on stdout, the rest for people."""
    if as_json:
        print_json(download)
        return
    model = download.model
    if model is None:  # deleted since
        say(f"Download {download.id} was installed; its model has been removed since.")
        return
    print(model.id)
    kind = f"{model.type}, " if model.type else ""
    say(f"Installed {printable(model.name)}: {kind}{format_bytes(model.size_bytes)}.\n{what_next(model)}")


def what_next(model: Model) -> str:
    """A command that goes on from an installed model."""
    if model.type is ModelType.DIFFUSION:
        return f'Make an image with it: genaid generate --model {model.id} "a prompt"'
    return f"Talk to it: genaid chat --model {model.id}"


def how_to_go_on(download_id: str) -> str:
    """The commands for a download that runs without being watched."""
    return (
        f"  watch it:   genaid downloads watch {download_id}\n"
        f"  cancel it:  genaid downloads cancel {download_id}\n"
        "  list all:   genaid downloads"
    )
