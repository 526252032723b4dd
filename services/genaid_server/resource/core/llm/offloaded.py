"""The LLM that makes, or has made, room for another engine, as callers see it."""

from dataclasses import dataclass
from enum import Enum, auto

from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.llm.config import Serving


class OffloadPhase(Enum):
    """Where it is on its way; see the contract."""

    OFFLOADING = auto()
    OFFLOADED = auto()
    RELOADING = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class OffloadedLlm:
    """An LLM that comes back by itself.

    `serving.port` is the one that it had. `saved_at` and `next_attempt_at` are in seconds since the epoch, the latter
    None unless it failed to load. `saved_tokens` are those of all slots whose prompt cache was saved.
    """

    model_id: str
    config: LlmOptions
    serving: Serving
    was_running: bool
    saved_at: float
    reason: str
    phase: OffloadPhase
    failed_attempts: int = 0
    last_error: str = ""
    next_attempt_at: float | None = None
    saved_tokens: int = 0
