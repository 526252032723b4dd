"""One process that serves until it is told to stop."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from genaid_server.cli.runfile import RUN_FILE, Endpoints, published, read_run_file
from genaid_server.kit.address import Address, require_free
from genaid_server.kit.config import LogConfig
from genaid_server.kit.errors import ServerBusyError
from genaid_server.kit.log import ServiceLog

log = logging.getLogger(__name__)

ANNOUNCED_WITHIN: Final = 5.0
"""Seconds that people's lines may take to be printed before programs are told that everything serves."""


@dataclass(frozen=True)
class Hosting:
    """What a process serves, and how it behaves towards its surroundings.

    `start` enters the services, the last one first to leave; `listens` are the addresses that they will take and
    `locks` the files in `data_dir` that stand for what only one process may have. `log_name` is the name of the file of
    its log, and `access_log` says that requests are logged there as well; `announcement` is said before the addresses.
    """

    start: Callable[[AsyncExitStack], Awaitable[Endpoints]]
    listens: tuple[Address, ...]
    data_dir: Path
    locks: tuple[str, ...]
    findable: bool
    ready_file: Path | None
    exit_with_parent: bool
    log: LogConfig
    log_name: str
    access_log: bool = False
    announcement: str = ""

    def open_log(self) -> ServiceLog:
        """What takes the process's log, to be entered."""
        logs = self.data_dir / "logs"
        return ServiceLog(
            self.log.level.number,
            self.log.libraries.number,
            logs / f"{self.log_name}.log",
            logs / "access.log" if self.access_log else None,
        )

    @property
    def notes(self) -> list[Path]:
        """The files that say where the services listen."""
        run_file = [self.data_dir / RUN_FILE] if self.findable else []
        return run_file + ([self.ready_file] if self.ready_file is not None else [])


def host(hosting: Hosting) -> None:
    """Serve until a signal or the parent's end says stop.

    Raises PortInUseError or ServerBusyError, before anything is started, where a port or the data directory is
    taken; otherwise what the services raise while they start.
    """
    require_free([address for address in hosting.listens if address.port])
    with ExitStack() as locks:
        for name in hosting.locks:
            locks.enter_context(_locked(hosting.data_dir, name))
        for note in hosting.notes:  # left by a process that was killed
            note.unlink(missing_ok=True)
        with hosting.open_log() as service_log:
            log.info("genaid %s starts: %s, process %d", version("genaid"), hosting.log_name, os.getpid())
            try:
                asyncio.run(_serve(hosting, service_log))
            except BaseException as error:
                log.error("genaid ends because of %s: %s", type(error).__name__, str(error).partition("\n")[0])
                raise
            log.info("genaid has stopped")


async def _serve(hosting: Hosting, service_log: ServiceLog) -> None:
    stop = _StopRequest()
    stop.on_signals()
    if hosting.exit_with_parent:
        stop.on_end_of_stdin()
    async with AsyncExitStack() as services:
        endpoints = await hosting.start(services)
        for line in _announcement(hosting, endpoints):
            service_log.say(line)
        await asyncio.to_thread(service_log.said, ANNOUNCED_WITHIN)
        with ExitStack() as notes:
            for path in hosting.notes:
                notes.enter_context(published(path, endpoints))
            await stop.wait()
        service_log.say("Stopping ...")
    service_log.say("Stopped.")


class _StopRequest:
    """Made any number of times, by signals or other threads, until the process has ended."""

    def __init__(self) -> None:
        self._made = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def wait(self) -> None:
        """Return once somebody has asked."""
        await self._made.wait()

    def make(self, *_: object) -> None:
        """Ask; from a signal handler or another thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended already, and the process will in a moment
            self._loop.call_soon_threadsafe(self._made.set)

    def on_signals(self) -> None:
        """Ask on Ctrl-C, SIGTERM and their like, for good: a second Ctrl-C must not cut the end short."""
        for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):  # nohup
                continue
            signal.signal(number, self.make)

    def on_end_of_stdin(self) -> None:
        """Ask when the other end of stdin is closed; what arrives on it is thrown away."""

        def drain() -> None:
            with contextlib.suppress(OSError):
                while os.read(0, 65536):
                    pass
            self.make()

        threading.Thread(target=drain, name="parent watch", daemon=True).start()


@contextmanager
def _locked(data_dir: Path, name: str) -> Iterator[None]:
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(data_dir / name, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        other = read_run_file(data_dir)
        who = f"Another genaid (process {other.pid})" if other else "Another genaid"
        raise ServerBusyError(
            f"{who} uses the data directory {data_dir}. Stop it, or choose another directory with --data-dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _announcement(hosting: Hosting, endpoints: Endpoints) -> Iterator[str]:
    """What is said to people once everything serves, line by line."""
    if hosting.announcement:
        yield hosting.announcement
    yield "genaid is ready:"
    for service, place in (
        ("REST", endpoints.http),
        ("image worker", endpoints.image),
        ("resource manager", endpoints.resource),
    ):
        if place is not None:
            yield f"  {service:<17} {place}{'' if place.startswith('http') else ' (gRPC)'}"
    yield f"  {'data directory':<17} {hosting.data_dir}"
    yield "Ctrl-C stops it."
