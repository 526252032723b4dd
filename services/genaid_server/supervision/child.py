"""One child process, alive no longer than its block.

The child leads a process group of its own, so that Ctrl-C in a terminal reaches only the service, and so that
whatever the child starts dies with it. Windows has no such groups: there the child's descendants are looked up when
it is killed, and those of a child that ended by itself are not found any more.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import psutil

from genaid_server.kit.tasks import to_the_end

log = logging.getLogger(__name__)

DEATH_TIMEOUT: Final = 30.0
"""Seconds that a killed process may take to be gone. One that waits for a broken disk or driver may never be."""
DRAIN_TIMEOUT: Final = 1.0  # seconds to wait for a dead child's last output; a grandchild may hold the pipes


@dataclass(frozen=True)
class Exit:
    """How a process ended. `code` is its exit status, or minus the signal that ended it."""

    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exit status {self.code}"
        try:
            return f"signal {signal.Signals(-self.code).name}"
        except ValueError:
            return f"signal {-self.code}"


class Child(asyncio.SubprocessProtocol):
    """A running process; made by `child` below."""

    def __init__(self, on_stdout: Callable[[bytes], None], on_stderr: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        self._outputs = {1: on_stdout, 2: on_stderr}
        self._open = {1, 2}
        self._drained: asyncio.Future[None] = loop.create_future()
        self._exited: asyncio.Future[Exit] = loop.create_future()
        self._transport: asyncio.SubprocessTransport | None = None
        self.pid = 0

    async def exited(self) -> Exit:
        """Wait for the end of the process and for the output that it left."""
        status = await asyncio.shield(self._exited)
        await asyncio.wait([self._drained], timeout=DRAIN_TIMEOUT)
        return status

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return not self._exited.done()

    def write(self, data: bytes) -> None:
        """Send bytes to the child's stdin. What a dead child would have got is dropped."""
        pipe = self._stdin()
        if pipe is not None and self.alive and not pipe.is_closing():
            pipe.write(data)

    async def stop(self, grace: float) -> None:
        """Ask the process to end, wait `grace` seconds, then end its whole group.

        It is asked by the end of its stdin and, except on Windows, which can only kill, by SIGTERM.
        """
        if self.alive:
            pipe = self._stdin()
            if pipe is not None:
                pipe.close()
            if os.name == "posix":
                self._signal_group(signal.SIGTERM)
            await asyncio.wait([self._exited], timeout=grace)
        await self.kill()

    def strike(self) -> None:
        """End the whole group at once, without waiting."""
        if self.alive:
            self._signal_group(getattr(signal, "SIGKILL", signal.SIGTERM))

    async def kill(self) -> None:
        """End the whole group at once and wait for it, DEATH_TIMEOUT at most."""
        self.strike()
        await asyncio.wait([self._exited], timeout=DEATH_TIMEOUT)
        if self.alive:
            log.error("process %d was killed, and is not gone after %g s; it is left behind", self.pid, DEATH_TIMEOUT)
        else:
            await self.exited()
        pipe = self._stdin()
        if pipe is not None and pipe.get_write_buffer_size():
            pipe.abort()  # what nobody read would keep it open for as long as a grandchild holds the other end
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process has started (called by asyncio)."""
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """The process wrote something (called by asyncio)."""
        self._outputs[fd](data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """The process closed a pipe (called by asyncio)."""
        self._open.discard(fd)
        if not self._open and not self._drained.done():
            self._drained.set_result(None)

    def process_exited(self) -> None:
        """The process ended (called by asyncio)."""
        assert self._transport is not None  # noqa: S101
        # Only here may the rest of the group be killed: later the group's id may belong to somebody else.
        if os.name == "posix":
            self._signal_group(signal.SIGKILL)
        code = self._transport.get_returncode()
        if not self._exited.done():
            self._exited.set_result(Exit(0 if code is None else code))

    def _stdin(self) -> asyncio.WriteTransport | None:
        if self._transport is None:
            return None
        return cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))

    def _signal_group(self, number: int) -> None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
            return
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(self.pid)
            for process in [*leader.children(recursive=True), leader]:
                with contextlib.suppress(psutil.Error):  # one that may not be killed must not save the others
                    process.kill()


@asynccontextmanager
async def child(
    argv: Sequence[str],
    on_stdout: Callable[[bytes], None],
    on_stderr: Callable[[bytes], None],
    env: Mapping[str, str] | None = None,
    grace: float = 5.0,
) -> AsyncIterator[Child]:
    """Run `argv`; the process and all of its group are dead when the block ends.

    Output goes to the two functions as it comes, in the event loop. `env` replaces the environment.
    `grace` is the time in seconds between asking and killing. Raises OSError where the program does not start.
    """
    loop = asyncio.get_running_loop()
    separate: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        separate = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    _, process = await loop.subprocess_exec(lambda: Child(on_stdout, on_stderr), *argv, env=env, **separate)
    try:
        yield process
    finally:
        await to_the_end(process.stop(grace))
