"""What can be set of the image worker and its engine."""

from pathlib import Path
from typing import Annotated, Protocol

from msgspec import Meta

from genaid_server.kit.address import Address
from genaid_server.kit.settings import Section


class ImageConfig(Section, frozen=True, kw_only=True):
    """The image worker."""

    listen: Address = Address("127.0.0.1", 8083)
    model: str = ""
    """Id of the model to draw with; empty for the only diffusion model that is installed."""
    threads: Annotated[int, Meta(ge=0, le=512)] = 0
    """Threads to compute with; 0 chooses from the number of cores."""
    queue_depth: Annotated[int, Meta(ge=0, le=1000)] = 0
    """How many generations may wait while one runs."""
    keep_alive_seconds: float = 300.0
    """How long the model stays loaded without work; 0 unloads after each image, negative never unloads."""
    cancel_grace_seconds: Annotated[float, Meta(ge=0, le=600)] = 2.0
    """How long a cancelled engine may take to stop before it is killed and started again."""
    result_ttl_ms: Annotated[int, Meta(ge=0)] = 300_000
    """How long a finished generation is kept."""
    cleanup_interval_ms: Annotated[int, Meta(ge=1)] = 60_000
    """How often expired generations are looked for."""
    max_results: Annotated[int, Meta(ge=1)] = 100
    """How many finished generations are kept."""
    max_result_bytes: Annotated[int, Meta(ge=1_048_576)] = 268_435_456
    """How many bytes of images are kept."""
    engine_command: tuple[str, ...] = ()
    """Argv of the engine program, for tests and runtimes of one's own; empty for the built-in one."""


class ImageSettings(Protocol):
    """What the image worker needs of a configuration."""

    @property
    def data_dir(self) -> Path:
        """Where logs and calibration are kept."""

    @property
    def image(self) -> ImageConfig:
        """Its section."""
