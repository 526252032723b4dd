"""`genaid generate`: images from a prompt, with a progress bar; Ctrl-C cancels on the server."""

import asyncio
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import typer

from genaid_client import (
    AlreadyTerminalError,
    AsyncClient,
    BackendError,
    GenaidError,
    Generation,
    GenerationSpec,
    GenerationState,
    Image,
    NotFoundError,
    Sampler,
    ServerError,
)
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.commands.engine import start_with_model
from genaid_server.cli.connect import find_server
from genaid_server.cli.output import INTERRUPTED, print_json, say
from genaid_server.cli.views.generations import describe, detail, percentage
from genaid_server.cli.views.progress import work_bar
from genaid_server.kit.files import write_atomic

app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True)
class SizeOption:
    """Width and height in pixels."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `512x512`; anything else is wrong usage."""
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip().lower(), re.ASCII)
        if match is None:
            raise typer.BadParameter(f"{text!r} is not WIDTHxHEIGHT in pixels, such as 512x512")
        return cls(int(match[1]), int(match[2]))


def _sampler(text: str) -> Sampler:
    try:
        return Sampler(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(Sampler)}") from None


@dataclass(frozen=True)
class Drawn:
    """A complete generation and its images."""

    generation: Generation
    images: list[Image]


@app.command("generate", cls=Command)
def generate(
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help="What to draw; - reads it from stdin; put -- before one that begins with a dash."
        ),
    ],
    negative: Annotated[str, typer.Option("--negative", metavar="TEXT", help="What to avoid.")] = "",
    size: Annotated[
        SizeOption | None,
        typer.Option(
            parser=SizeOption.parse, metavar="WxH", help="Pixels: 64 to 4096, multiples of 8. Default: 512x512."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Sampling steps: 1 to 200. Default: 20.")] = None,
    cfg_scale: Annotated[
        float | None, typer.Option(metavar="X", help="How closely to follow the prompt: 0 to 100. Default: 7.5.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Same seed, same image. Default: a random one.")] = None,
    sampler: Annotated[
        Sampler | None,
        typer.Option(
            parser=_sampler,
            metavar="NAME",
            help="euler_a (the default), euler, heun, dpm++2m, lcm, ...; a wrong name lists all.",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="How many images: 1 to 5. Default: 1.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="Where to save; several images get -1, -2, ... Default: genaid-SEED.png.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Draw with this model; replaces the one that is loaded.")
    ] = None,
    image: options.ImageServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Make images from a prompt.

    The names of the files are printed on stdout. Ctrl-C cancels on the server, too.
    """
    _check_folder(out)
    spec = GenerationSpec(
        prompt=_read_prompt(prompt),
        negative_prompt=negative,
        width=size.width if size else None,
        height=size.height if size else None,
        steps=steps,
        cfg_scale=cfg_scale,
        seed=seed,
        sampler=sampler,
        count=count,
    )
    server = find_server(data_dir, image=image)
    try:
        drawn = asyncio.run(_generate(server.image, spec, model))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    _save(drawn, file_names(out, [info.seed for info in drawn.generation.images]), as_json=as_json)


def file_names(out: Path | None, seeds: Sequence[int]) -> list[Path]:
    """Name the file of each image: after its seed where `out` names none, numbered from 1 where it names one."""
    if out is None or out.is_dir():
        return [(out or Path()) / f"genaid-{seed}.png" for seed in seeds]
    if len(seeds) == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number, _ in enumerate(seeds, start=1)]


def _read_prompt(argument: str) -> str:
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise typer.BadParameter("The prompt on stdin is not UTF-8 text.") from None


def _check_folder(out: Path | None) -> None:
    if out is not None and not out.parent.is_dir():
        raise typer.BadParameter(f"There is no folder {out.parent} to save in.", param_hint="-o")


async def _generate(address: str, spec: GenerationSpec, model: str | None) -> Drawn:
    async with AsyncClient(image=address) as client:
        if model is not None:
            await start_with_model(client, model)
        with work_bar() as show:
            return await draw(client, spec, lambda now: show(describe(now), percentage(now), detail(now)))


async def draw(client: AsyncClient, spec: GenerationSpec, show: Callable[[Generation], None]) -> Drawn:
    """Make images, telling `show` of each change. Being cancelled cancels the generation first.

    Raises BackendError where the generation failed or somebody else cancelled it, and ServerError where the image
    worker is stopped.
    """
    generation: Generation | None = None
    images: list[Image] = []
    try:
        async with aclosing(client.images.stream(spec)) as parts:
            async for part in parts:
                if isinstance(part, Image):
                    images.append(part)
                else:
                    generation = part
                    show(part)
    except asyncio.CancelledError:
        await _cancel(client, generation)
        raise
    if generation is None:
        raise ServerError("The server accepted the generation, but sent no state of it. Try again.")
    if generation.error is not None:
        raise BackendError(f"{generation.error.code}: {generation.error.message}")
    if generation.state is not GenerationState.COMPLETE:
        raise ServerError("The image worker was stopped in the middle of the generation.")
    return Drawn(generation, images)


async def _cancel(client: AsyncClient, generation: Generation | None) -> None:
    """Return when nothing computes any more; the server cancels by itself as well, because the stream has ended."""
    if generation is None:  # its id is not known yet, so there is nothing to wait for
        say("Cancelled.")
        return
    try:
        await client.images.cancel(generation.id)
    except (NotFoundError, AlreadyTerminalError):  # it has ended, and may be forgotten already
        pass
    except GenaidError as error:
        say(f"Interrupted; the server could not be told: {error.message}")
        return
    say("Cancelled; the server has stopped working on it.")


def _save(drawn: Drawn, files: list[Path], *, as_json: bool) -> None:
    for file, image in zip(files, drawn.images, strict=True):
        write_atomic(file, image.data)
    generation = drawn.generation
    if as_json:
        images = [
            {"file": str(file), "seed": info.seed, "width": info.width, "height": info.height, "sha256": info.sha256}
            for file, info in zip(files, generation.images, strict=True)
        ]
        print_json({"model_id": generation.model_id, "duration_seconds": generation.duration_seconds, "images": images})
        return
    for file, info in zip(files, generation.images, strict=True):
        print(file)
        say(f"  {info.width}x{info.height}, seed {info.seed}, {generation.spec.steps} steps, {generation.model_id}")
