"""What can be set of the resource manager, and of what it keeps: memory, downloads and the LLM engine."""

from pathlib import Path
from typing import Protocol

from genaid_server.kit.address import Address
from genaid_server.kit.config import address
from genaid_server.kit.settings import Section, setting


class ResourceConfig(Section):
    """The resource manager."""

    listen: Address = setting(default=Address("127.0.0.1", 8082), read=address)


class MemoryConfig(Section):
    """What genaid may plan with, all its engines together."""

    ram_limit_bytes: int = setting(default=0, ge=0)
    """Main memory; 0 for all that the machine has."""
    vram_limit_bytes: int = setting(default=0, ge=0)
    """Memory of all GPUs together; 0 for all that they have."""
    release_timeout_seconds: float = setting(default=5.0, ge=0, le=600)
    """How long the memory of an engine that has left may take to be seen free."""


class DownloadsConfig(Section):
    """How models are fetched."""

    parallel: int = setting(default=2, ge=1, le=16)
    """How many downloads run at once; the others wait."""
    reserve_bytes: int = setting(default=1_073_741_824, ge=0)
    """How much of the disk is left free at least."""
    stall_seconds: float = setting(default=30.0, gt=0)
    """How long nothing may arrive before it is tried again."""
    attempts: int = setting(default=10, ge=1, le=1000)
    """How often in a row something is tried before the download fails."""
    first_delay_seconds: float = setting(default=1.0, ge=0)
    """How long to wait before the second try; it doubles with each further one."""
    max_delay_seconds: float = setting(default=60.0, ge=0)
    """How long to wait at most."""
    hub_endpoint: str = ""
    """Address of the Hugging Face hub or a mirror; empty for HF_ENDPOINT, else the hub itself."""
    hub_token: str = ""
    """Token for private repositories; empty for HF_TOKEN, else the one that huggingface_hub has stored."""


class LlmConfig(Section):
    """The LLM engine, which the resource manager keeps."""

    model: str = ""
    """Id of a language model to start with; empty for none."""
    port: int = setting(default=8080, ge=0, le=65_535)
    """Port of its HTTP API, where a start asks for none; 0 takes a free one."""
    program: str = ""
    """Path of a llama-server program to run instead of the built-in engine."""
    restart: bool = True
    """Whether it comes back after a crash."""
    max_restarts: int = setting(default=5, ge=0, le=1000)
    """How often in a row; a life that has served for a minute begins a new row."""
    first_restart_seconds: float = setting(default=0.2, ge=0, le=3600)
    """How long to wait before the first restart; it doubles with each further one."""
    stable_seconds: float = setting(default=60.0, ge=0)
    """How long it must have served for the count of restarts to begin anew."""
    health_interval_seconds: float = setting(default=10.0, gt=0)
    """How often it is asked for its health."""
    health_failures: int = setting(default=3, ge=1)
    """How many unanswered questions in a row make an engine that does not compute count as hung."""
    drain_timeout_seconds: float = setting(default=30.0, ge=0, le=3600)
    """How long requests in flight may take to finish when it makes room for another engine."""
    reload_delay_seconds: float = setting(default=2.0, ge=0, le=3600)
    """How long after the last image it comes back: images that follow each other share one absence."""
    engine_command: tuple[str, ...] = ()
    """Argv of the engine program, for tests and runtimes of one's own; empty for the built-in one."""


class ImageChoice(Protocol):
    """What the resource manager has to know of the image worker's section."""

    @property
    def model(self) -> str:
        """Id of the model to draw with; empty for none."""


class ResourceSettings(Protocol):
    """What the resource manager needs of a configuration."""

    @property
    def data_dir(self) -> Path:
        """Where models and state are kept."""

    @property
    def resource(self) -> ResourceConfig:
        """Its own section."""

    @property
    def memory(self) -> MemoryConfig:
        """What it may plan with."""

    @property
    def downloads(self) -> DownloadsConfig:
        """How models are fetched."""

    @property
    def llm(self) -> LlmConfig:
        """The LLM engine."""

    @property
    def image(self) -> ImageChoice:
        """What image workers draw with."""
