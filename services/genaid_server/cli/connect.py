"""Finding the server: options, then the environment, then the running genaid of the data directory, then defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from genaid_server.cli.runfile import read_run_file
from genaid_server.kit.address import Address
from genaid_server.kit.config import LogLevel
from genaid_server.settings import Config, load

API_KEY: Final = "GENAID_LLM_API_KEY"
"""The environment variable with the key of the LLM engine's HTTP API."""


@dataclass(frozen=True)
class Server:
    """Where the services should be. `pid` and `http` are known only of a genaid that left a note."""

    data_dir: Path
    resource: str
    image: str
    http: str | None
    pid: int | None


def find_server(data_dir: Path | None, *, resource: Address | None = None, image: Address | None = None) -> Server:
    """Work out where the services listen; whether they do shows when they are called.

    Raises InvalidRequestError where the environment is wrong.
    """
    config = load(flags=settings(data_dir=data_dir, resource=resource, image=image))
    note = read_run_file(config.data_dir)
    return Server(
        data_dir=config.data_dir,
        resource=_choose(config, "resource", note.resource if note else None),
        image=_choose(config, "image", note.image if note else None),
        http=note.http if note else None,
        pid=note.pid if note else None,
    )


def settings(
    *,
    data_dir: Path | None = None,
    http: Address | None = None,
    resource: Address | None = None,
    image: Address | None = None,
    image_model: str | None = None,
    llm_model: str | None = None,
    llm_port: int | None = None,
    log_level: LogLevel | None = None,
) -> dict[str, Any]:
    """Nest the options that were given as the configuration nests them."""
    flags: dict[str, Any] = {
        "log": {"level": log_level},
        "gateway": {"listen": http},
        "resource": {"listen": resource},
        "image": {"listen": image, "model": image_model},
        "llm": {"model": llm_model, "port": llm_port},
    }
    given = {name: _without_none(section) for name, section in flags.items()}
    return _without_none({"data_dir": data_dir, **{name: section or None for name, section in given.items()}})


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def _choose(config: Config, service: str, noted: str | None) -> str:
    section = getattr(config, service)
    address: Address = section.listen
    said = "listen" in section.given and address.port != 0
    return str(address) if said or noted is None else noted
