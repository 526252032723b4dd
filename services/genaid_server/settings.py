"""The one configuration of a process, put together of the sections of all services.

Two documented variables without the prefix are understood as well: IMAGE_RESULT_TTL_MS and IMAGE_CLEANUP_INTERVAL_MS.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import field

from genaid_server.gateway.config import GatewayConfig
from genaid_server.image.config import ImageConfig
from genaid_server.kit.config import LogConfig, read
from genaid_server.kit.settings import Section, directory
from genaid_server.resource.config import DownloadsConfig, LlmConfig, MemoryConfig, ResourceConfig

NOT_SETTINGS: Final = frozenset({"GENAID_LLM_API_KEY"})
"""Variables with the prefix that are for the command line alone."""
DOCUMENTED_ENVIRONMENT: Final = {
    "IMAGE_RESULT_TTL_MS": ("image", "result_ttl_ms"),
    "IMAGE_CLEANUP_INTERVAL_MS": ("image", "cleanup_interval_ms"),
}


class Config(Section, frozen=True, kw_only=True):
    """Everything that can be set."""

    data_dir: Path = field(default_factory=lambda: directory(""))
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
    return read(Config, file, flags, documented=DOCUMENTED_ENVIRONMENT, others=NOT_SETTINGS)
