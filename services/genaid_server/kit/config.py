"""The one configuration of a process: defaults < TOML file < environment `GENAID_*` < flags; frozen.

A nested key is written with two underscores in the environment: `GENAID_IMAGE__QUEUE_DEPTH=2` is `queue_depth`
of the section `[image]`. Two documented names without the prefix are understood as well: IMAGE_RESULT_TTL_MS and
IMAGE_CLEANUP_INTERVAL_MS.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

from platformdirs import user_data_path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from genaid_server.kit.address import Address
from genaid_server.kit.errors import InvalidRequestError

DOCUMENTED_ENVIRONMENT: Final = {
    "IMAGE_RESULT_TTL_MS": "result_ttl_ms",
    "IMAGE_CLEANUP_INTERVAL_MS": "cleanup_interval_ms",
}


def _address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


type Listen = Annotated[Address, BeforeValidator(_address), PlainSerializer(str)]


class Section(BaseModel):
    """A table of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class GatewayConfig(Section):
    """The REST gateway."""

    listen: Listen = Address("127.0.0.1", 8081)
    max_body_bytes: int = Field(1_048_576, ge=1024, le=67_108_864)
    max_connections: int = Field(512, ge=1, le=65_536)
    allowed_origins: tuple[str, ...] = ()
    """Web origins besides loopback ones that may call, such as `https://app.example`."""


class ResourceConfig(Section):
    """The resource manager."""

    listen: Listen = Address("127.0.0.1", 8082)


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
    engine_command: tuple[str, ...] = ()
    """Argv of the engine program, for tests and runtimes of one's own; empty for the built-in one."""


class Config(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="GENAID_",
        env_nested_delimiter="__",
        arbitrary_types_allowed=True,
    )

    data_dir: Path = Field(default_factory=lambda: user_data_path("genaid", appauthor=False))
    gateway: GatewayConfig = GatewayConfig()
    resource: ResourceConfig = ResourceConfig()
    image: ImageConfig = ImageConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then the environment; `load` slips the file in below them."""
        return init_settings, env_settings, _Documented(settings_cls), _File(settings_cls)


class _Documented(PydanticBaseSettingsSource):
    """The documented environment names that have no prefix."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {key: os.environ[name] for name, key in DOCUMENTED_ENVIRONMENT.items() if name in os.environ}
        return {"image": values} if values else {}


class _File(PydanticBaseSettingsSource):
    """The TOML file that is being loaded."""

    content: dict[str, Any] = {}  # noqa: RUF012 - set by `load` for the time of one construction

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return self.content


def load(file: Path | None = None, flags: dict[str, Any] | None = None) -> Config:
    """Read the configuration.

    `flags` are nested like the file, without the keys that the user did not give. Raises InvalidRequestError
    that names the key, its value and what it should be.
    """
    _File.content = _read(file) if file is not None else {}
    try:
        config = Config(**(flags or {}))
    except ValidationError as error:
        raise InvalidRequestError(f"The configuration is wrong: {_explain(error)}", field="config") from error
    finally:
        _File.content = {}
    return config.model_copy(update={"data_dir": config.data_dir.expanduser().absolute()})


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequestError(f"Can't read the configuration {file}: {error.strerror}.", field="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The configuration {file} is not TOML: {error}.", field="config") from error


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{where}: {message}")
    return "; ".join(problems) + "."
