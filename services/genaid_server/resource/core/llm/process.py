"""One life of the LLM engine: the built-in program, which speaks frames, or a llama-server of the user's own."""

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import psutil

from genaid_server.kit.address import Address, port_in_use
from genaid_server.kit.errors import BinaryError, DomainError, ServerError
from genaid_server.kit.tasks import to_the_end
from genaid_server.resource.core.llm.config import LlmEngineConfig, own_argv
from genaid_server.resource.core.llm.logs import cause_first, level_of, port_taken
from genaid_server.supervision import frames
from genaid_server.supervision.child import Child, child
from genaid_server.supervision.logbook import LineSplitter, Logbook
from genaid_server.supervision.process import engine_environment, with_last_lines
from genaid_server.supervision.supervisor import Report

BUILT_IN: Final = (sys.executable, "-P", "-m", "genaid_server.engines.llm")
OWN: Final = (sys.executable, "-P", "-m", "genaid_server.engines.own_llm")
STOP_GRACE: Final = 10.0  # seconds, as documented
HEALTH_TIMEOUT: Final = 5.0
FIRST_POLL: Final = 0.05
LONGEST_POLL: Final = 0.5
PROGRESS_INTERVAL: Final = 0.2
LAST_LINES: Final = 20


class HealthProbe(Protocol):
    """Asks an engine for its health."""

    async def __call__(self, host: str, port: int, timeout: float) -> bool:
        """Whether it says within `timeout` seconds that its model is loaded. Never raises."""


def load_timeout(size_bytes: int) -> float:
    """Seconds that a model of so many bytes may take to load: two minutes, and half a minute for each GiB, which a slow
    disk needs."""
    return 120.0 + 30.0 * size_bytes / 2**30


class LlmProcess:
    """A running engine. Until it is `ready` it loads; `port` is where it then serves."""

    def __init__(self, config: LlmEngineConfig, report: Report, logbook: Logbook, health: HealthProbe) -> None:
        self._config, self._report, self._logbook, self._health = config, report, logbook, health
        self._frames, self._output = frames.FrameReader(), LineSplitter()
        self._said: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._child: Child | None = None
        self._condemned = ""
        self.port = config.serving.port
        self.loaded = False

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return self._config.serving.host

    async def ready(self) -> None:
        """Wait until the model answers.

        Raises ServerError where it does not load, in time or at all; PortInUseError; BinaryError for a program that
        does not run.
        """
        seconds = load_timeout(self._config.size_bytes)
        async with asyncio.TaskGroup() as tasks:
            progress = tasks.create_task(self._tell_progress())
            end = tasks.create_task(self._process.exited())
            answer = tasks.create_task(self._until_it_answers())
            done, _ = await asyncio.wait((answer, end), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in (progress, end, answer):
                task.cancel()
        if answer in done:
            self.loaded = True
        elif end in done:
            raise self._failure(self._condemned or str(end.result()))
        else:
            raise self._failure(f"it did not answer within {seconds:.0f} s")

    async def exited(self) -> str:
        """Wait for the child's end and tell why, with its last lines."""
        end = await self._process.exited()
        self._say(self._output.flush())
        return self._reason(self._condemned or str(end))

    async def healthy(self, timeout: float = HEALTH_TIMEOUT) -> bool:
        """Whether it answers its health check now."""
        return self._process.alive and await self._health(self.host, self.port, timeout)

    def cpu_seconds(self) -> float:
        """The processor time that it has taken so far; 0 where it is gone."""
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self.pid).cpu_times()
            return times.user + times.system
        return 0.0

    def condemn(self, reason: str) -> None:
        """Kill it for a reason, which then is the one that it ended for."""
        self._condemned = reason
        self._process.strike()

    def attach(self, process: Child, command: dict[str, Any] | None) -> None:
        """Take the started child, and tell the built-in one what to load."""
        self._child = process
        if command is not None:
            process.write(frames.encode(command))

    def on_frames(self, data: bytes) -> None:
        """Take what the built-in engine answers; one that doesn't speak the protocol is killed."""
        if self._condemned:
            return
        try:
            for frame in self._frames.feed(data):
                if frame.header["event"] == "ready" and not self._said.done():
                    self._said.set_result(int(frame.header["port"]))
        except (frames.FrameError, KeyError, TypeError, ValueError) as error:
            self.condemn(f"it doesn't speak the engine protocol ({error})")

    def on_output(self, data: bytes) -> None:
        """Take what it prints."""
        self._say(self._output.feed(data))

    async def _until_it_answers(self) -> None:
        if not self._config.program:
            self.port = await self._said
        delay = FIRST_POLL
        while not (await self.healthy() and self._serves_port()):
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, LONGEST_POLL)

    def _serves_port(self) -> bool:
        """Whether it is our child who listens on the port; the built-in engine has told itself where it does."""
        if not self._config.program:
            return True
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            ours = [process, *process.children(recursive=True)]
            found = [each.laddr.port for one in ours for each in one.net_connections("tcp") if each.status == "LISTEN"]
            return self.port in found
        return False

    async def _tell_progress(self) -> None:
        """Report how much of the model is in memory: the library itself is silent while it loads."""
        size = max(1, self._config.size_bytes)
        try:
            process = psutil.Process(self.pid)
            base = process.memory_info().rss
            while True:
                await asyncio.sleep(PROGRESS_INTERVAL)
                grown = max(0, process.memory_info().rss - base)
                self._report(min(grown, size * 99 // 100), size)
        except psutil.Error:  # it is gone, and somebody else tells why
            return

    @property
    def _process(self) -> Child:
        assert self._child is not None  # noqa: S101 - set before anybody gets this object
        return self._child

    def _say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._logbook.append(level_of(line), line)
            self._last.append(line)

    def _failure(self, end: str) -> DomainError:
        self._say(self._output.flush())
        if port_taken(list(self._last)):
            return port_in_use(Address(self.host, self._config.serving.port))
        if self._config.program and end == "exit status 127":
            return BinaryError(self._reason(f"The program {self._config.program} can't be run"))
        return ServerError(self._reason(f"The model {self._config.model_id} could not be loaded: {end}"))

    def _reason(self, end: str) -> str:
        return with_last_lines(end, cause_first(list(self._last)))


@asynccontextmanager
async def llm_process(
    config: LlmEngineConfig, report: Report, logbook: Logbook, health: HealthProbe, command: Sequence[str] = ()
) -> AsyncIterator[LlmProcess]:
    """Start an engine that loads its model; it is dead when the block ends, killed at once where it still loads.

    `command` is the argv of another program that speaks the protocol of the built-in one.
    """
    engine = LlmProcess(config, report, logbook, health)
    config.slot_save_path.mkdir(mode=0o700, parents=True, exist_ok=True)  # conversations are saved there
    if config.program:
        engine.port = config.serving.port or free_port(config.serving.host)
        argv = [*OWN, *own_argv(config, engine.port)]
        on_stdout, first = engine.on_output, None
    else:
        argv, on_stdout, first = list(command or BUILT_IN), engine.on_frames, load_command(config)
    async with child(argv, on_stdout, engine.on_output, environment(config), grace=STOP_GRACE) as process:
        engine.attach(process, first)
        try:
            yield engine
        finally:
            if not engine.loaded:  # nothing to finish, and the library hears nothing while it loads
                await to_the_end(process.kill())


def load_command(config: LlmEngineConfig) -> dict[str, Any]:
    """What the built-in engine is told."""
    llm, serving = config.llm, config.serving
    return {
        "op": "load",
        "model": str(config.model_path),
        "alias": config.model_id,
        "host": serving.host,
        "port": serving.port,
        "parallel": llm.parallel,
        "context_size": llm.context_size,
        "threads": llm.threads,
        "gpu_layers": llm.gpu_layers,
        "experts_on_cpu": llm.experts_on_cpu,
        "flash_attention": llm.flash_attention,
        "cache_type_k": llm.cache_type_k.value,
        "cache_type_v": llm.cache_type_v.value,
        "memory_map": serving.memory_map,
        "memory_lock": serving.memory_lock,
        "slot_save_path": f"{config.slot_save_path}{os.sep}",  # the library puts names right behind it
        "api_key": serving.api_key,
        "separates_reasoning": config.separates_reasoning,
        "embeddings": config.embeddings,
        "batch": config.batch,
    }


def environment(config: LlmEngineConfig) -> dict[str, str]:
    """The child's environment, without what would add to its arguments; a program of the user's gets its key there."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
    key = {"LLAMA_API_KEY": config.serving.api_key} if config.program and config.serving.api_key else {}
    return engine_environment(inherited | key)


def free_port(host: str) -> int:
    """A port that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
