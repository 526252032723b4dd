"""What can be set of the gateway."""

from typing import Protocol

from genaid_server.kit.address import Address
from genaid_server.kit.config import address
from genaid_server.kit.settings import Section, setting


class GatewayConfig(Section):
    """The REST gateway."""

    listen: Address = setting(default=Address("127.0.0.1", 8081), read=address)
    max_body_bytes: int = setting(default=1_048_576, ge=1024, le=67_108_864)
    max_connections: int = setting(default=512, ge=1, le=65_536)
    allowed_origins: tuple[str, ...] = ()
    """Web origins besides loopback ones that may call, such as `https://app.example`."""
    hold_timeout_seconds: float = setting(default=120.0, ge=0, le=86_400)
    """How long a request to the LLM engine waits at most while that is being loaded or comes back."""


class GatewaySettings(Protocol):
    """What the gateway needs of a configuration."""

    @property
    def gateway(self) -> GatewayConfig:
        """Its section."""
