"""What can be set of the gateway."""

from typing import Protocol

from pydantic import Field

from genaid_server.kit.address import Address
from genaid_server.kit.config import Listen, Section, Strings


class GatewayConfig(Section):
    """The REST gateway."""

    listen: Listen = Address("127.0.0.1", 8081)
    max_body_bytes: int = Field(1_048_576, ge=1024, le=67_108_864)
    max_connections: int = Field(512, ge=1, le=65_536)
    allowed_origins: Strings = ()
    """Web origins besides loopback ones that may call, such as `https://app.example`."""
    hold_timeout_seconds: float = Field(120.0, ge=0, le=86_400)
    """How long a request to the LLM engine waits at most while that is being loaded or comes back."""


class GatewaySettings(Protocol):
    """What the gateway needs of a configuration."""

    @property
    def gateway(self) -> GatewayConfig:
        """Its section."""
