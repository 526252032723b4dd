"""What can be set of the image worker and its engine."""

from pathlib import Path
from typing import Protocol

from genaid_server.kit.address import Address
from genaid_server.kit.config import address
from genaid_server.kit.settings import Section, setting


class ImageConfig(Section):
    """The image worker."""

    listen: Address = setting(default=Address("127.0.0.1", 8083), read=address)
    model: str = ""
    """Id of the model to draw with; empty for the only diffusion model that is installed."""
    threads: int = setting(default=0, ge=0, le=512)
    """Threads to compute with; 0 chooses from the number of cores."""
    queue_depth: int = setting(default=0, ge=0, le=1000)
    """How many generations may wait while one runs."""
    keep_alive_seconds: float = 300.0
    """How long the model stays loaded without work; 0 unloads after each image, negative never unloads."""
    cancel_grace_seconds: float = setting(default=2.0, ge=0, le=600)
    """How long a cancelled engine may take to stop before it is killed and started again."""
    result_ttl_ms: int = setting(default=300_000, ge=0)
    """How long a finished generation is kept."""
    cleanup_interval_ms: int = setting(default=60_000, ge=1)
    """How often expired generations are looked for."""
    max_results: int = setting(default=100, ge=1)
    """How many finished generations are kept."""
    max_result_bytes: int = setting(default=268_435_456, ge=1_048_576)
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
