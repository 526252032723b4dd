"""What calls about the LLM engine take and return. Times are aware and in UTC."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from genaid_client.types_common import EngineEvent, HealthState, ServerState, StopReason
from genaid_client.types_system import LlmConfig


@dataclass(frozen=True, slots=True)
class LlmServing:
    """How the LLM engine serves; None and empty text leave it to the server's default.

    `port` 0 takes a free one, `host` is a loopback address. Requests to the engine's HTTP API must carry the `api_key`
    where there is one; it is never sent back. `memory_map` maps the file instead of reading it, `memory_lock` keeps
    the model from being swapped out.
    """

    port: int | None = None
    host: str = ""
    api_key: str = field(default="", repr=False)
    memory_map: bool | None = None
    memory_lock: bool | None = None


@dataclass(frozen=True, slots=True)
class Llm:
    """The LLM engine as it is at one moment.

    `port`, `pid` and `start_time` are None and `host` is empty without a process; `load_seconds` is None before the
    first load; `config` and `serving` are None and `model_id` is empty before the first start. `load_percentage` is 0
    to 100. `last_event` is None where nothing has happened yet, and `stop_reason` while it has a process; both are
    where this client doesn't know them. `generation` counts the lives of the process. `reasons` say why each setting
    that was left open is what it is, by its name in LlmConfig. `separates_reasoning` says whether answers carry it as
    `reasoning_content`. While it is `offloaded` it makes, or has made, room for another engine and comes back by
    itself: requests are better kept back until then, even where it runs.
    """

    state: ServerState
    health: HealthState
    model_id: str
    port: int | None
    host: str
    pid: int | None
    start_time: datetime | None
    load_seconds: float | None
    restarts: int
    last_error: str
    load_percentage: float
    last_event: EngineEvent | None
    config: LlmConfig | None
    serving: LlmServing | None
    separates_reasoning: bool
    variant: str
    generation: int
    reasons: Mapping[str, str]
    offloaded: bool
    stop_reason: StopReason | None = None

    @property
    def base_url(self) -> str | None:
        """Where its HTTP API is, such as `http://127.0.0.1:8080`; None without a process, or while that is unknown."""
        if self.port is None or not self.host:
            return None
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def healthy(self) -> bool:
        """Whether it has answered its health check."""
        return self.health is HealthState.OK
