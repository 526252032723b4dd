"""What can be set of the gateway."""

from typing import Annotated, Protocol

from msgspec import Meta

from genaid_server.kit.address import Address
from genaid_server.kit.settings import Section


class GatewayConfig(Section, frozen=True, kw_only=True):
    """The REST gateway."""

    listen: Address = Address("127.0.0.1", 8081)
    max_body_bytes: Annotated[int, Meta(ge=1024, le=67_108_864)] = 1_048_576
    max_connections: Annotated[int, Meta(ge=1, le=65_536)] = 512
    allowed_origins: tuple[str, ...] = ()
    """Web origins besides loopback ones that may call, such as `https://app.example`."""
    hold_timeout_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 120.0
    """How long a request to the LLM engine waits at most while that is being loaded or comes back."""


class GatewaySettings(Protocol):
    """What the gateway needs of a configuration."""

    @property
    def gateway(self) -> GatewayConfig:
        """Its section."""
