"""What an LLM engine is started with: what a caller asks for, and what that becomes."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.fitting.footprint import NO_MEMORY, Amount
from genaid_server.resource.core.fitting.llm_memory import batch
from genaid_server.resource.core.fitting.model_shape import Pooling
from genaid_server.resource.core.fitting.plan import LlmOptions, LlmWishes

MAX_KEY: Final = 256
DEFAULT_PORT: Final = 8080


@dataclass(frozen=True, slots=True)
class Serving:
    """How an engine serves. `port` 0 takes a free one; `host` is a loopback address."""

    port: int = DEFAULT_PORT
    host: str = "127.0.0.1"
    api_key: str = field(default="", repr=False)
    memory_map: bool = True
    memory_lock: bool = False


@dataclass(frozen=True, slots=True)
class LlmRequest:
    """What a caller asks for: two equal requests are the same start."""

    model_id: str
    wishes: LlmWishes = field(default_factory=LlmWishes)
    serving: Serving = field(default_factory=Serving)


@dataclass(frozen=True, slots=True)
class LlmEngineConfig:
    """What a life of the engine needs to know. `model_path` is the first file; `program` the user's own llama-server,
    empty for the built-in one; `amount` is what it is estimated to take; `pooling` is that of an embedding model."""

    model_id: str
    model_path: Path
    size_bytes: int
    llm: LlmOptions
    serving: Serving
    separates_reasoning: bool
    slot_save_path: Path
    program: str = ""
    amount: Amount = field(default=NO_MEMORY, compare=False)
    pooling: Pooling | None = None

    @property
    def embeddings(self) -> bool:
        """Whether it makes vectors of texts, which would make a chat slower: every token then has a result."""
        return self.pooling is not None

    @property
    def batch(self) -> int:
        """How many tokens of a text it computes at once."""
        return batch(self.pooling, self.llm.context_size)

    @property
    def mapped_bytes(self) -> int:
        """How much of the model's files it maps into memory: with layers on GPUs nobody tells."""
        return self.size_bytes if self.serving.memory_map and not self.llm.gpu_layers else 0

    @property
    def variant(self) -> str:
        """The variant of the runtime that computes."""
        return "own" if self.program else "cpu"


def check_serving(serving: Serving) -> None:
    """Raises InvalidRequestError for a port, host or key that can't be."""
    if not 0 <= serving.port <= 65535:
        raise InvalidRequestError(f"port must be between 0 and 65535, not {serving.port}", field="port")
    try:
        loopback = ipaddress.ip_address(serving.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidRequestError(
            f"host must be a loopback address such as 127.0.0.1 or ::1, not {serving.host[:80]!r}", field="host"
        )
    key = serving.api_key
    if len(key) > MAX_KEY or not key.isascii() or any(char <= " " or char == "\x7f" for char in key):
        raise InvalidRequestError(
            f"api_key must be at most {MAX_KEY} printable ASCII characters without spaces", field="api_key"
        )


def own_argv(config: LlmEngineConfig, port: int) -> list[str]:
    """The arguments of a llama-server program for what the built-in engine gets as parameters; the key is not among
    them, because everybody can read a process's arguments."""
    llm, serving = config.llm, config.serving
    argv = [
        *(config.program, "-m", str(config.model_path), "--alias", config.model_id),
        *("--host", serving.host, "--port", str(port)),
        *("-c", str(llm.context_size * llm.parallel), "-np", str(llm.parallel), "-t", str(llm.threads)),
        *("-ngl", str(llm.gpu_layers), "-fa", "on" if llm.flash_attention else "off"),
        *("--cache-type-k", llm.cache_type_k.value, "--cache-type-v", llm.cache_type_v.value),
        *("--cache-ram", "0", "--slot-save-path", str(config.slot_save_path), "--no-webui", "--jinja"),
        *("--reasoning-format", "deepseek" if config.separates_reasoning else "none"),
    ]
    if config.embeddings:
        argv += ["--embeddings", "--batch-size", str(config.batch), "--ubatch-size", str(config.batch)]
    if llm.experts_on_cpu:
        argv.append("--cpu-moe")
    if not serving.memory_map:
        argv.append("--no-mmap")
    if serving.memory_lock:
        argv.append("--mlock")
    return argv
