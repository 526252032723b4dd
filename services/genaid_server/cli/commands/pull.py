"""`genaid pull`: download a model. The server does it; this command asks for it and watches."""

from typing import Annotated

import typer

from genaid_client import Client, DownloadSpec, ModelType
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.connect import find_server
from genaid_server.cli.following import how_to_go_on, see_through
from genaid_server.cli.output import INTERRUPTED, print_json, say
from genaid_server.cli.sources import ComponentSource, Source, items, parse_checksum, parse_component, parse_source

app = typer.Typer(rich_markup_mode=None)


@app.command("pull", cls=Command)
def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="hf:OWNER/REPO/FILE[@REVISION], a link to a file on the Hugging Face hub, or any http(s) address. "
            "Of a sharded model, its first file.",
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name for people. Default: the model's own.")] = "",
    kind: Annotated[
        ModelType | None,
        typer.Option("--type", help="What it is for. Default: told from the file.", show_default=False),
    ] = None,
    model_id: Annotated[str, typer.Option("--id", metavar="ID", help="Its id. Default: made from the name.")] = "",
    checksum: Annotated[
        str | None,
        typer.Option(
            parser=parse_checksum,
            metavar="sha256:HEX",
            help="SHA-256 that the file must have. Default: the hub's, where it has one.",
            show_default=False,
        ),
    ] = None,
    component: Annotated[
        list[ComponentSource] | None,
        typer.Option(
            parser=parse_component,
            metavar="ROLE=SOURCE",
            help="A further file of a diffusion model; SOURCE itself is then its diffusion model. "
            "Roles: clip_l, clip_g, t5xxl, llm, vae, tae. Repeat it for each.",
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the download's id and leave at once.")] = False,
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Download a model.

    The server downloads it: Ctrl-C, or closing the terminal, leaves it running. The model's id is printed on stdout.
    """
    spec = DownloadSpec(items(_parse(source), component or [], checksum or ""), name, kind, model_id)
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        try:
            download = client.downloads.create(spec)
        except KeyboardInterrupt:
            say("Interrupted. The server may have accepted the download already; to see it: genaid downloads")
            raise typer.Exit(INTERRUPTED) from None
        if not detach:
            see_through(client, download.id, as_json=as_json)
        elif as_json:
            print_json(download)
        else:
            print(download.id)
            say(f"The server downloads it.\n{how_to_go_on(download.id)}")


def _parse(text: str) -> Source:
    try:
        return parse_source(text)
    except typer.BadParameter as error:
        error.param_hint = "SOURCE"
        raise
