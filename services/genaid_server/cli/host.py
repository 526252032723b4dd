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
from pathlib import Path

from filelock import FileLock, Timeout

from genaid_server.cli.output import say
from genaid_server.cli.runfile import RUN_FILE, Endpoints, published, read_run_file
from genaid_server.kit.address import Address, require_free
from genaid_server.kit.errors import ServerBusyError


@dataclass(frozen=True)
class Hosting:
    """What a process serves, and how it behaves towards its surroundings.

    `start` enters the services, the last one first to leave; `listens` are the addresses that they will take and
    `locks` the files in `data_dir` that stand for what only one process may have.
    """

    start: Callable[[AsyncExitStack], Awaitable[Endpoints]]
    listens: tuple[Address, ...]
    data_dir: Path
    locks: tuple[str, ...]
    findable: bool
    ready_file: Path | None
    exit_with_parent: bool
    log_level: str

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
    logging.basicConfig(level=hosting.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it tells of every request at INFO
    with ExitStack() as locks:
        for name in hosting.locks:
            locks.enter_context(_locked(hosting.data_dir, name))
        for note in hosting.notes:  # left by a process that was killed
            note.unlink(missing_ok=True)
        asyncio.run(_serve(hosting))


async def _serve(hosting: Hosting) -> None:
    stop = _StopRequest()
    stop.on_signals()
    if hosting.exit_with_parent:
        stop.on_end_of_stdin()
    async with AsyncExitStack() as services:
        endpoints = await hosting.start(services)
        with ExitStack() as notes:
            for path in hosting.notes:
                notes.enter_context(published(path, endpoints))
            _announce(hosting, endpoints)
            await stop.wait()
        say("Stopping ...")
    say("Stopped.")


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


def _announce(hosting: Hosting, endpoints: Endpoints) -> None:
    say("genaid is ready:")
    for service, place in (
        ("REST", endpoints.http),
        ("image worker", endpoints.image),
        ("resource manager", endpoints.resource),
    ):
        if place is not None:
            say(f"  {service:<17} {place}{'' if place.startswith('http') else ' (gRPC)'}")
    say(f"  {'data directory':<17} {hosting.data_dir}")
    say("Ctrl-C stops it.")
