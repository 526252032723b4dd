"""The one configuration of a process: defaults < TOML file < environment `GENAID_*` < flags; frozen.

A nested key is written with two underscores in the environment: `GENAID_IMAGE__QUEUE_DEPTH=2` is `queue_depth`
of the section `[image]`; a list is written as JSON; an empty variable counts as absent. Two documented names
without the prefix are understood as well: IMAGE_RESULT_TTL_MS and IMAGE_CLEANUP_INTERVAL_MS.
"""

import json
import logging
import os
import reprlib
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
)

from genaid_server.kit.address import Address
from genaid_server.kit.errors import InvalidRequestError

PREFIX: Final = "GENAID_"
NOT_SETTINGS: Final = frozenset({"GENAID_LLM_API_KEY"})
"""Variables with the prefix that are for the command line alone."""
DOCUMENTED_ENVIRONMENT: Final = {
    "IMAGE_RESULT_TTL_MS": "result_ttl_ms",
    "IMAGE_CLEANUP_INTERVAL_MS": "cleanup_interval_ms",
}


def _address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


def _strings(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError("a list is written as JSON in the environment") from error


def _directory(value: object) -> object:
    return user_data_path("genaid", appauthor=False) if value == "" else value


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # ~somebody who is not there
        raise ValueError(str(error)) from error


class LogLevel(StrEnum):
    """How grave a message must be to be logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """What logging calls it."""
        return logging.getLevelNamesMapping()[self.upper()]


# An instance, because pydantic would also build the dataclass from a table, past the checks of `parse`.
type Listen = Annotated[InstanceOf[Address], BeforeValidator(_address), PlainSerializer(str)]
type Strings = Annotated[tuple[str, ...], BeforeValidator(_strings)]
type Directory = Annotated[Path, BeforeValidator(_directory), AfterValidator(_absolute)]


class Section(BaseModel):
    """A table of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LogConfig(Section):
    """What a service says of itself on stderr; on disk it is never less than info."""

    level: LogLevel = LogLevel.INFO
    """How grave a message of ours must be."""
    libraries: LogLevel = LogLevel.WARNING
    """How grave a message of a library must be."""


class GatewayConfig(Section):
    """The REST gateway."""

    listen: Listen = Address("127.0.0.1", 8081)
    max_body_bytes: int = Field(1_048_576, ge=1024, le=67_108_864)
    max_connections: int = Field(512, ge=1, le=65_536)
    allowed_origins: Strings = ()
    """Web origins besides loopback ones that may call, such as `https://app.example`."""
    hold_timeout_seconds: float = Field(120.0, ge=0, le=86_400)
    """How long a request to the LLM engine waits at most while that is being loaded or comes back."""


class ResourceConfig(Section):
    """The resource manager."""

    listen: Listen = Address("127.0.0.1", 8082)


class MemoryConfig(Section):
    """What genaid may plan with, all its engines together."""

    ram_limit_bytes: int = Field(0, ge=0)
    """Main memory; 0 for all that the machine has."""
    vram_limit_bytes: int = Field(0, ge=0)
    """Memory of all GPUs together; 0 for all that they have."""
    release_timeout_seconds: float = Field(5.0, ge=0, le=600)
    """How long the memory of an engine that has left may take to be seen free."""


class DownloadsConfig(Section):
    """How models are fetched."""

    parallel: int = Field(2, ge=1, le=16)
    """How many downloads run at once; the others wait."""
    reserve_bytes: int = Field(1_073_741_824, ge=0)
    """How much of the disk is left free at least."""
    stall_seconds: float = Field(30.0, gt=0)
    """How long nothing may arrive before it is tried again."""
    attempts: int = Field(10, ge=1, le=1000)
    """How often in a row something is tried before the download fails."""
    first_delay_seconds: float = Field(1.0, ge=0)
    """How long to wait before the second try; it doubles with each further one."""
    max_delay_seconds: float = Field(60.0, ge=0)
    """How long to wait at most."""
    hub_endpoint: str = ""
    """Address of the Hugging Face hub or a mirror; empty for HF_ENDPOINT, else the hub itself."""
    hub_token: str = ""
    """Token for private repositories; empty for HF_TOKEN, else the one that huggingface_hub has stored."""


class LlmConfig(Section):
    """The LLM engine, which the resource manager keeps."""

    model: str = ""
    """Id of a language model to start with; empty for none."""
    port: int = Field(8080, ge=0, le=65_535)
    """Port of its HTTP API, where a start asks for none; 0 takes a free one."""
    program: str = ""
    """Path of a llama-server program to run instead of the built-in engine."""
    restart: bool = True
    """Whether it comes back after a crash."""
    max_restarts: int = Field(5, ge=0, le=1000)
    """How often in a row; a life that has served for a minute begins a new row."""
    first_restart_seconds: float = Field(0.2, ge=0, le=3600)
    """How long to wait before the first restart; it doubles with each further one."""
    stable_seconds: float = Field(60.0, ge=0)
    """How long it must have served for the count of restarts to begin anew."""
    health_interval_seconds: float = Field(10.0, gt=0)
    """How often it is asked for its health."""
    health_failures: int = Field(3, ge=1)
    """How many unanswered questions in a row make an engine that does not compute count as hung."""
    drain_timeout_seconds: float = Field(30.0, ge=0, le=3600)
    """How long requests in flight may take to finish when it makes room for another engine."""
    reload_delay_seconds: float = Field(2.0, ge=0, le=3600)
    """How long after the last image it comes back: images that follow each other share one absence."""
    engine_command: Strings = ()
    """Argv of the engine program, for tests and runtimes of one's own; empty for the built-in one."""


class ImageConfig(Section):
    """The image worker."""

    listen: Listen = Address("127.0.0.1", 8083)
    model: str = ""
    """Id of the model to draw with; empty for the only diffusion model that is installed."""
    threads: int = Field(0, ge=0, le=512)
    """Threads to compute with; 0 chooses from the number of cores."""
    queue_depth: int = Field(0, ge=0, le=1000)
    """How many generations may wait while one runs."""
    keep_alive_seconds: float = 300.0
    """How long the model stays loaded without work; 0 unloads after each image, negative never unloads."""
    cancel_grace_seconds: float = Field(2.0, ge=0, le=600)
    """How long a cancelled engine may take to stop before it is killed and started again."""
    result_ttl_ms: int = Field(300_000, ge=0)
    """How long a finished generation is kept."""
    cleanup_interval_ms: int = Field(60_000, ge=1)
    """How often expired generations are looked for."""
    max_results: int = Field(100, ge=1)
    """How many finished generations are kept."""
    max_result_bytes: int = Field(268_435_456, ge=1_048_576)
    """How many bytes of images are kept."""
    engine_command: Strings = ()
    """Argv of the engine program, for tests and runtimes of one's own; empty for the built-in one."""


class Config(Section):
    """Everything that can be set."""

    data_dir: Directory = Field("", validate_default=True)
    """Where models, logs and calibration are kept; empty for the platform's own place."""
    log: LogConfig = LogConfig()
    gateway: GatewayConfig = GatewayConfig()
    resource: ResourceConfig = ResourceConfig()
    memory: MemoryConfig = MemoryConfig()
    downloads: DownloadsConfig = DownloadsConfig()
    llm: LlmConfig = LlmConfig()
    image: ImageConfig = ImageConfig()


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """Read the configuration.

    `flags` are nested like the file, without the keys that the user did not give. Raises InvalidRequestError
    that names the key, its value and what it should be.
    """
    values: dict[str, Any] = {}
    for layer in (_file(file), _documented(os.environ), _environment(os.environ), flags or {}):
        values = _merged(values, layer)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InvalidRequestError(f"The configuration is wrong: {_explain(error)}", field="config") from error


def _file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))  # editors on Windows like to put a mark in front
    except OSError as error:
        raise InvalidRequestError(f"Can't read the configuration {file}: {error.strerror}.", field="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The configuration {file} is not TOML: {error}.", field="config") from error


def _documented(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {key: environment[name] for name, key in DOCUMENTED_ENVIRONMENT.items() if environment.get(name)}
    return {"image": values} if values else {}


def _environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in environment.items():
        if name.startswith(PREFIX) and name not in NOT_SETTINGS and value:
            nested: Any = value
            for key in reversed(name.removeprefix(PREFIX).lower().split("__")):
                nested = {key: nested}
            values = _merged(values, nested)
    return values


def _merged(lower: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables in one; where both have a value, that of the higher."""
    merged = dict(lower)
    for key, value in higher.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            problems.append(f"there is no key {where}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{where} is {reprlib.repr(problem['input'])}: {message}")
    return "; ".join(problems) + "."
