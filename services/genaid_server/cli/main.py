"""The `genaid` command: what there is, and where it lives.

Only the module of the command that is called is imported: `genaid up` has no use for progress bars and tables.
"""

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from genaid_server.cli.output import flush_stdout, prepare_streams

COMMANDS: Final = {
    "up": ("up", "Run everything in one process."),
    "generate": ("generate", "Make images from a prompt."),
    "pull": ("pull", "Download a model."),
    "downloads": ("downloads", "Show, watch and cancel downloads."),
    "models": ("models", "List, show, import, verify and remove models."),
    "system": ("system", "Show the machine, its memory, and what fits into it."),
    "memory": ("memory", "Show how the engines share memory."),
    "engine": ("engine", "Control the image engine."),
    "llm": ("llm", "Control the LLM engine."),
    "chat": ("chat", "Talk to the LLM."),
    "status": ("engine", "Show what runs."),
    "demo-models": ("demo_models", "Write small models with random weights."),
    "resource-manager": ("up", "Run only the resource manager."),
    "image-worker": ("up", "Run only the image worker."),
    "gateway": ("up", "Run only the REST gateway."),
}


class LazyGroup(TyperGroup):
    """Lists every command and imports one only to run it.

    Each module has an `app` with the commands that COMMANDS says it has.
    """

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, (_, summary) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments name (called by typer)."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest


def load_command(name: str) -> Any:
    """Import the module of a command and return the command."""
    with _importing():
        module = importlib.import_module(f"genaid_server.cli.commands.{COMMANDS[name][0]}")
    return typer.main.get_group(module.app).commands[name]


@contextmanager
def _importing() -> Iterator[None]:
    """Import without what takes a fifth of the time and serves nobody (decision 0021).

    Garbage is not looked for among what modules define, which stays, now or later. And aiohttp would read the system's
    certificates, twice, for a default that none of our clients uses: who speaks TLS reads them when it is needed.
    """
    variables = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(dict.fromkeys(variables, os.devnull))
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"genaid {version('genaid')}")
        raise typer.Exit


@app.callback()
def genaid(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Generative AI on this machine, for other programs."""


def run() -> None:
    """Run the command line of this process, and leave with its exit status."""
    prepare_streams()
    try:
        # Typer would expand * and ~ in a prompt on Windows, as a shell does with file names.
        app(prog_name="genaid", windows_expand_args=False)
    finally:
        flush_stdout()
