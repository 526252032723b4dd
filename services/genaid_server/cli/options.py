"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from genaid_server.kit.address import Address
from genaid_server.kit.config import LogLevel


def address(text: str) -> Address:
    """Read `host:port`, loopback only; anything else is wrong usage."""
    try:
        return Address.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def service_address(text: str) -> Address:
    """Read the address of a service that runs already, which therefore has a port."""
    place = address(text)
    if place.port == 0:
        raise typer.BadParameter(f"{text!r} has port 0: give the port on which the service listens")
    return place


def _listen(flag: str, service: str, default: int) -> object:
    return typer.Option(
        flag,
        parser=address,
        metavar="HOST:PORT",
        help=f"Where the {service} listens; port 0 takes a free one. Default: 127.0.0.1:{default}.",
        show_default=False,
    )


def _connect(flag: str, service: str) -> object:
    return typer.Option(
        flag,
        parser=service_address,
        metavar="HOST:PORT",
        help=f"Where to reach the {service}. Default: the running genaid of the data directory.",
        show_default=False,
    )


def _peer(flag: str, service: str, default: int) -> object:
    return typer.Option(
        flag,
        parser=service_address,
        metavar="HOST:PORT",
        help=f"Where the {service}, a process of its own, listens: this command connects to it. "
        f"Default: 127.0.0.1:{default}.",
        show_default=False,
    )


HttpListen = Annotated[Address | None, _listen("--http", "REST gateway", 8081)]
ResourceListen = Annotated[Address | None, _listen("--resource", "resource manager", 8082)]
ImageListen = Annotated[Address | None, _listen("--image", "image worker", 8083)]

ResourcePeer = Annotated[Address | None, _peer("--resource", "resource manager", 8082)]
ImagePeer = Annotated[Address | None, _peer("--image", "image worker", 8083)]

ResourceServer = Annotated[Address | None, _connect("--resource", "resource manager")]
ImageServer = Annotated[Address | None, _connect("--image", "image worker")]

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where models and state are kept. Default: the user's data folder."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="TOML file with settings; environment variables and options override it."
    ),
]
ImageModel = Annotated[
    str | None,
    typer.Option("--image-model", metavar="ID", help="Model to draw with. Default: the only one for images."),
]
LlmModel = Annotated[
    str | None,
    typer.Option("--llm-model", metavar="ID", help="Language model to load at the start. Default: none."),
]
LlmPort = Annotated[
    int | None,
    typer.Option(
        "--llm-port",
        metavar="PORT",
        min=0,
        max=65535,
        help="Where the LLM engine serves if a start names no port; 0 takes a free one. Default: 8080.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="File with the key of the engine's HTTP API. Default: the variable GENAID_LLM_API_KEY, else no key.",
    ),
]
ReadyFile = Annotated[
    Path | None,
    typer.Option(
        "--ready-file",
        metavar="PATH",
        help="JSON file to write the addresses and the process id to; it exists while everything is served.",
    ),
]
ExitWithParent = Annotated[
    bool, typer.Option("--exit-with-parent", help="Stop when stdin closes, as it does when the parent ends.")
]
LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option("--log-level", help="Least severe messages that stderr shows. Default: info."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: results on stdout, an error on stderr.")]
