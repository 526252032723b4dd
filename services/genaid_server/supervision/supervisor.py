"""The one state machine for all engines.

A single task owns the state. Everybody else asks it through its inbox (`ensure_ready`, `stop`, `recycle`) and
never reads the state in order to act on it. Every settled transition wakes every waiter.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from enum import Enum, auto
from types import TracebackType
from typing import Any, Protocol, Self, cast

from msgspec import Struct

from genaid_server.kit.backoff import Backoff
from genaid_server.kit.errors import BackendError, DomainError, ServerBusyError, ServerError
from genaid_server.kit.tasks import to_the_end
from genaid_server.kit.watchable import Watchable

log = logging.getLogger(__name__)


class ServerState(Enum):
    """Where an engine is in its life."""

    STOPPED = auto()
    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()
    CRASHED = auto()


class Run(Protocol):
    """One life of an engine."""

    @property
    def pid(self) -> int:
        """Process id."""

    async def ready(self) -> None:
        """Return when the engine serves; raise BackendError where it can't."""

    async def exited(self) -> str:
        """Return, once the process has ended by itself, why."""


class Report(Protocol):
    """Told by a starting engine how far it is."""

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` parts are loaded."""


type Launch[C, R] = Callable[[C, Report], AbstractAsyncContextManager[R]]


@dataclass(frozen=True)
class RestartPolicy:
    """When a crashed engine comes back by itself; times in seconds.

    After `limit` restarts in a row it stays down until somebody asks for it; a life that has served for
    `stable_after` begins a new row. A start that failed, and whose caller was told so, is not tried again.
    """

    automatic: bool = False
    limit: int = 5
    first_delay: float = 0.2
    max_delay: float = 30.0
    stable_after: float = 60.0

    def delay(self, attempt: int) -> float:
        """How long to wait before restart number `attempt`, from 1: doubling, bounded."""
        return Backoff(self.first_delay, self.max_delay).delay(attempt)


@dataclass(frozen=True)
class Snapshot[C]:
    """An engine as it is at one moment. Times are in seconds since the epoch.

    `last_error_reason` is the stable reason of the error that `last_error` tells of, for people.
    """

    state: ServerState = ServerState.STOPPED
    config: C | None = None
    pid: int | None = None
    started_at: float | None = None
    load_seconds: float | None = None
    loaded: int = 0
    to_load: int = 0
    restarts: int = 0
    last_error: str = ""
    last_error_reason: str = ""
    event: str = ""

    def with_config[D](self, config: D | None) -> "Snapshot[D]":
        """The same of an engine that is configured otherwise, for those who see it in their own words."""
        return cast("Snapshot[D]", replace(cast("Snapshot[Any]", self), config=config))


@dataclass(frozen=True)
class _Start[C, R]:
    config: C
    replace: bool
    reply: asyncio.Future[R]


class _Stop(Struct, frozen=True):
    event: str
    reply: asyncio.Future[None]


class _Recycle(Struct, frozen=True):
    reply: asyncio.Future[None]


class _Spawned(Struct, frozen=True):
    life: int
    pid: int


class _Loading(Struct, frozen=True):
    life: int
    done: int
    total: int


@dataclass(frozen=True)
class _Ready[R]:
    life: int
    run: R


class _Ended(Struct, frozen=True):
    life: int
    error: DomainError


class _Restart(Struct, frozen=True):
    life: int


class Supervisor[C, R: Run]:
    """Keeps at most one engine of one kind alive; use it as an async context manager.

    `launch` starts a life: an async context manager that yields a Run and has ended the process when it closes.
    `C` is the configuration of a start, compared with ==.
    """

    def __init__(self, name: str, launch: Launch[C, R], policy: RestartPolicy | None = None) -> None:
        self._name, self._launch, self._policy = name, launch, policy or RestartPolicy()
        self.snapshot: Watchable[Snapshot[C]] = Watchable(Snapshot())
        self._inbox: asyncio.Queue[object] = asyncio.Queue()
        self._owner: asyncio.Task[None] | None = None
        self._life: asyncio.Task[None] | None = None
        self._life_number = 0
        self._run: R | None = None
        self._waiters: list[asyncio.Future[R]] = []
        self._attempts = 0
        self._begun = 0.0  # monotonic, as is the time since when it serves; None before that
        self._serving_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        self._owner = asyncio.create_task(self._serve(), name=f"{self._name} supervisor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ensure_ready(self, config: C, *, replace: bool = False) -> R:
        """Return a life that serves with `config`: the present one, the one that is starting, or a new one.

        Raises BackendError where it does not start; ServerBusyError where an engine with another configuration
        is up and `replace` is not set; ServerError where it is stopped meanwhile.
        """
        reply: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        return await self._ask(_Start(config, replace, reply), reply)

    async def stop(self, event: str = "stopped") -> None:
        """End the engine, whatever it does, and return when it is dead."""
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._ask(_Stop(event, reply), reply)

    async def recycle(self) -> None:
        """End the present life and begin another with the same configuration; returns when the first has ended."""
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._ask(_Recycle(reply), reply)

    async def close(self) -> None:
        """End the engine, refuse every later request and end every watch."""
        if self._owner is not None:
            await to_the_end(self._close(self._owner))

    async def _close(self, owner: "asyncio.Task[None]") -> None:
        if not self._closing:
            self._closing = True
            self._inbox.put_nowait(_Stop("stopped", asyncio.get_running_loop().create_future()))
        await owner
        self.snapshot.close()

    async def _ask[T](self, message: object, reply: "asyncio.Future[T]") -> T:
        if self._closing or self._owner is None:
            raise ServerError(f"The {self._name} is shutting down.")
        self._inbox.put_nowait(message)
        return await reply

    async def _serve(self) -> None:
        """The single writer."""
        while not (self._closing and self._inbox.empty()):
            match await self._inbox.get():
                case _Start() as start:
                    await self._on_start(start)
                case _Stop(event, reply):
                    await self._end_life(event)
                    _resolve(reply, None)
                case _Recycle(reply):
                    await self._on_recycle(reply)
                case _Spawned(life, pid) if life == self._life_number:
                    self._begun = time.monotonic()
                    self._set(pid=pid, started_at=time.time())
                case _Loading(life, done, total) if life == self._life_number:
                    self._set(loaded=done, to_load=total)
                case _Ready(life, run) if life == self._life_number:
                    self._on_ready(run)
                case _Ended(life, error) if life == self._life_number:
                    self._on_ended(error)
                case _Restart(life) if life == self._life_number:
                    self._set(restarts=self.snapshot.value.restarts + 1)
                    self._begin_life("restarting")
                case _:  # a message of a life that is over
                    pass

    async def _on_start(self, start: _Start[C, R]) -> None:
        if start.reply.done():
            return
        now = self.snapshot.value
        up = now.state in (ServerState.STARTING, ServerState.RUNNING)
        if up and now.config != start.config:
            if not start.replace:
                start.reply.set_exception(
                    ServerBusyError(f"The {self._name} already runs with other settings; stop it or set replace.")
                )
                return
            await self._end_life("stopped")
            up = False
        if up and self._run is not None:
            start.reply.set_result(self._run)
            return
        self._waiters.append(start.reply)
        if not up:
            self._attempts = 0
            crashed = now.state is ServerState.CRASHED
            self._set(config=start.config, restarts=now.restarts + 1 if crashed else now.restarts)
            self._begin_life("restarting" if crashed else "started")

    async def _on_recycle(self, reply: "asyncio.Future[None]") -> None:
        if self._life is not None:
            waiters, self._waiters = self._waiters, []
            await self._end_life("stopped")
            self._waiters = waiters
            self._begin_life("restarting")
        _resolve(reply, None)

    def _begin_life(self, event: str) -> None:
        config = self.snapshot.value.config
        assert config is not None  # noqa: S101
        self._cancel_timer()
        self._life_number += 1
        self._serving_since = None
        log.info("the %s starts (%s)", self._name, event)
        self._set(
            state=ServerState.STARTING,
            event=event,
            pid=None,
            started_at=None,
            loaded=0,
            to_load=0,
            load_seconds=None,
        )
        self._life = asyncio.create_task(self._live(self._life_number, config), name=f"{self._name} life")

    async def _live(self, number: int, config: C) -> None:
        """One life, from spawning to the end of the process; reports to the owner only."""

        def report(done: int, total: int) -> None:
            self._inbox.put_nowait(_Loading(number, done, total))

        error: DomainError = BackendError(f"The {self._name} was given up.")
        try:
            async with self._launch(config, report) as run:
                self._inbox.put_nowait(_Spawned(number, run.pid))
                await run.ready()
                self._inbox.put_nowait(_Ready(number, run))
                reason = await run.exited()
            error = BackendError(f"The {self._name} ended unexpectedly: {reason}")
        except DomainError as failure:
            error = failure
        except OSError as failure:
            error = BackendError(f"The {self._name} could not be started: {failure.strerror or failure}")
        except Exception as failure:  # the outermost frame of a life: without a word all would wait for ever
            log.exception("the %s failed unexpectedly", self._name)
            error = BackendError(f"The {self._name} failed unexpectedly ({type(failure).__name__}).")
        finally:
            self._inbox.put_nowait(_Ended(number, error))

    def _on_ready(self, run: R) -> None:
        self._run = run
        self._serving_since = time.monotonic()
        self._set(
            state=ServerState.RUNNING,
            event="ready",
            last_error="",
            last_error_reason="",
            load_seconds=self._serving_since - self._begun,
            loaded=self.snapshot.value.to_load,
        )
        log.info("the %s serves after %.1f s, process %d", self._name, self._serving_since - self._begun, run.pid)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _resolve(waiter, run)

    def _on_ended(self, error: DomainError) -> None:
        since = self._serving_since
        if since is not None and time.monotonic() - since >= self._policy.stable_after:
            self._attempts = 0
        self._life, self._run = None, None
        cause = error.message.partition("\n")[0]  # below are lines of its own log
        if since is None:
            log.warning("the %s did not start: %s", self._name, cause)
        else:
            log.error("the %s crashed: %s", self._name, cause)
        self._set(
            state=ServerState.CRASHED,
            event="crashed",
            pid=None,
            started_at=None,
            last_error=error.message,
            last_error_reason=error.reason,
        )
        told = self._fail_waiters(error) and since is None
        if self._policy.automatic and not told and self._attempts < self._policy.limit:
            self._attempts += 1
            self._timer = asyncio.get_running_loop().call_later(
                self._policy.delay(self._attempts), self._inbox.put_nowait, _Restart(self._life_number)
            )

    async def _end_life(self, event: str) -> None:
        self._cancel_timer()
        self._life_number += 1  # a restart that is on its way already must not follow
        life, self._life, self._run = self._life, None, None
        if life is not None:
            self._set(state=ServerState.STOPPING)
            life.cancel()
            await asyncio.wait([life])
        if self.snapshot.value.state is not ServerState.STOPPED:
            log.info("the %s is stopped (%s)", self._name, event)
            self._set(state=ServerState.STOPPED, event=event, pid=None, started_at=None)
        self._fail_waiters(ServerError(f"The {self._name} was stopped."))

    def _fail_waiters(self, error: DomainError) -> bool:
        """Tell those who wait, and whether there were any."""
        waiters = [waiter for waiter in self._waiters if not waiter.done()]
        self._waiters = []
        for waiter in waiters:
            waiter.set_exception(error)
        return bool(waiters)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, **changes: object) -> None:
        self.snapshot.set(replace(self.snapshot.value, **changes))  # type: ignore[arg-type]


def _resolve[T](future: "asyncio.Future[T]", value: T) -> None:
    if not future.done():
        future.set_result(value)
