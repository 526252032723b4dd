"""`genaid demo-models`: small models with random weights."""

from pathlib import Path
from typing import Annotated

import typer

from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.output import print_json, say
from genaid_server.cli.views.units import format_bytes
from genaid_server.demo.models import write_all

app = typer.Typer(rich_markup_mode=None)


@app.command("demo-models", cls=Command)
def demo_models(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", file_okay=False, help="Where to write them; made if need be.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Write small models with random weights.

    They let you try genaid without a real model: all of it works, but images are coloured noise and text is gibberish.
    """
    files = write_all(folder)
    if as_json:
        print_json({"files": [str(file) for file in files]})
        return
    for file in files:
        print(file)
        say(f"  {format_bytes(file.stat().st_size)}")
    image_model = next(file for file in files if "diffusion" in file.name)
    say("Their weights are random: images are coloured noise, text is gibberish.")
    say(f'Start genaid in another terminal (genaid up), then import it: genaid models import "{image_model}"')
