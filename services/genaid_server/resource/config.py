"""What can be set of the resource manager, and of what it keeps: memory, downloads and the LLM engine."""

from pathlib import Path
from typing import Annotated, Protocol

from msgspec import Meta

from genaid_server.kit.address import Address
from genaid_server.kit.settings import Section


class ResourceConfig(Section, frozen=True, kw_only=True):
    """The resource manager."""

    listen: Address = Address("127.0.0.1", 8082)


class MemoryConfig(Section, frozen=True, kw_only=True):
    """What genaid may plan with, all its engines together."""

    ram_limit_bytes: Annotated[int, Meta(ge=0)] = 0
    """Main memory; 0 for all that the machine has."""
    vram_limit_bytes: Annotated[int, Meta(ge=0)] = 0
    """Memory of all GPUs together; 0 for all that they have."""
    release_timeout_seconds: Annotated[float, Meta(ge=0, le=600)] = 5.0
    """How long the memory of an engine that has left may take to be seen free."""


class DownloadsConfig(Section, frozen=True, kw_only=True):
    """How models are fetched."""

    parallel: Annotated[int, Meta(ge=1, le=16)] = 2
    """How many downloads run at once; the others wait."""
    reserve_bytes: Annotated[int, Meta(ge=0)] = 1_073_741_824
    """How much of the disk is left free at least."""
    stall_seconds: Annotated[float, Meta(gt=0)] = 30.0
    """How long nothing may arrive before it is tried again."""
    attempts: Annotated[int, Meta(ge=1, le=1000)] = 10
    """How often in a row something is tried before the download fails."""
    first_delay_seconds: Annotated[float, Meta(ge=0)] = 1.0
    """How long to wait before the second try; it doubles with each further one."""
    max_delay_seconds: Annotated[float, Meta(ge=0)] = 60.0
    """How long to wait at most."""
    hub_endpoint: str = ""
    """Address of the Hugging Face hub or a mirror; empty for HF_ENDPOINT, else the hub itself."""
    hub_token: str = ""
    """Token for private repositories; empty for HF_TOKEN, else the one that huggingface_hub has stored."""


class LlmConfig(Section, frozen=True, kw_only=True):
    """The LLM engine, which the resource manager keeps."""

    model: str = ""
    """Id of a language model to start with; empty for none."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    """Port of its HTTP API, where a start asks for none; 0 takes a free one."""
    program: str = ""
    """Path of a llama-server program to run instead of the built-in engine."""
    restart: bool = True
    """Whether it comes back after a crash."""
    max_restarts: Annotated[int, Meta(ge=0, le=1000)] = 5
    """How often in a row; a life that has served for a minute begins a new row."""
    first_restart_seconds: Annotated[float, Meta(ge=0, le=3600)] = 0.2
    """How long to wait before the first restart; it doubles with each further one."""
    stable_seconds: Annotated[float, Meta(ge=0)] = 60.0
    """How long it must have served for the count of restarts to begin anew."""
    health_interval_seconds: Annotated[float, Meta(gt=0)] = 10.0
    """How often it is asked for its health."""
    health_failures: Annotated[int, Meta(ge=1)] = 3
    """How many unanswered questions in a row make an engine that does not compute count as hung."""
    drain_timeout_seconds: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    """How long requests in flight may take to finish when it makes room for another engine."""
    reload_delay_seconds: Annotated[float, Meta(ge=0, le=3600)] = 2.0
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
