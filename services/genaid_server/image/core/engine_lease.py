"""The memory that one life of the engine holds, as a lease of the resource manager.

A lease is a stream: it lasts for as long as the stream does, and tells when it is being reclaimed. It is for the
largest image that this life was asked for; nothing is asked of the manager for an image that it covers. Where its
stream breaks off, the engine stays, and the lease is asked for again.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from genaid_server.image.core.lease import (
    NO_IMAGE,
    EngineNeed,
    ImageSize,
    Lease,
    LeaseClient,
    LeaseState,
    ManagerAwayError,
)
from genaid_server.image.core.settings import EngineOptions, ImageModel
from genaid_server.kit.backoff import Backoff
from genaid_server.kit.errors import DomainError, ServerError
from genaid_server.kit.tasks import to_the_end

log = logging.getLogger(__name__)

RETRY = Backoff(0.1, 0.25)
"""Before a lease whose stream broke off is asked for again. A resource manager that was started again waits a moment
for it before it brings the LLM back."""
REPORT_PATIENCE: Final = 1.0
"""Seconds for which the end of a lease waits for the report of its last use."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a life was granted: the memory for this model, when it computes with these options."""

    model: ImageModel
    options: EngineOptions


class _Stream:
    """One stream of a lease, followed by a task of its own. `told` is called after each change."""

    def __init__(
        self, size: ImageSize, updates: AsyncGenerator[Lease, None], told: "Callable[[_Stream], None]"
    ) -> None:
        self.size = size
        self.lease: Lease | None = None
        self.over = False
        self.error: DomainError | None = None
        self._told = told
        self._task = asyncio.create_task(self._follow(updates), name="image lease")

    @property
    def granted(self) -> bool:
        return self.lease is not None and self.lease.state is not LeaseState.WAITING

    @property
    def decided(self) -> bool:
        return self.granted or self.over

    @property
    def leave_after(self) -> float | None:
        """In RECLAIM: for how many seconds an idle engine may stay."""
        if self.over or self.lease is None or self.lease.state is not LeaseState.RECLAIM:
            return None
        return self.lease.reclaim_after

    @property
    def refusal(self) -> DomainError:
        """Why it was over before it was granted."""
        return self.error or ServerError("The resource manager ended the request for memory.")

    async def end(self) -> None:
        """Give the memory back."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def _follow(self, updates: AsyncGenerator[Lease, None]) -> None:
        try:
            async with aclosing(updates):
                async for lease in updates:
                    self.lease = lease
                    self._told(self)
        except DomainError as error:
            self.error = error
        finally:
            self.over = True
            self._told(self)


class EngineLease:
    """The leases of one life of the engine, one after the other.

    `note` is called with each state of them, `changed` when `leave_after` may be another.
    """

    def __init__(
        self,
        client: LeaseClient,
        tenant_id: str,
        need: EngineNeed,
        note: Callable[[Lease], None],
        changed: Callable[[], None],
    ) -> None:
        self._client, self._tenant_id, self._need = client, tenant_id, need
        self._note, self._changed = note, changed
        self._options = need.options
        self._refused = self._growing = self._ending = False
        self._largest = NO_IMAGE
        self._news = asyncio.Event()
        self._present = self._open(need.options, need.size)
        self._keeper: asyncio.Task[None] | None = None

    @property
    def lease_id(self) -> str:
        """Which lease is held; empty where none is."""
        held = self._present.lease if self._present.granted and not self._present.over else None
        return held.id if held else ""

    @property
    def leave_after(self) -> float | None:
        """For how many seconds the engine may stay without work; None where it may stay."""
        return 0.0 if self._refused else self._present.leave_after

    async def granted(self) -> Grant:
        """Return once the memory may be used, and for what. Raises DomainError where it may not."""
        await self._until(lambda: self._present.decided)
        lease = self._present.lease
        if lease is None or not self._present.granted:
            raise self._present.refusal
        self._options = lease.placement.applied_to(self._need.options)
        self._need = replace(self._need, model_id=lease.model.id)  # from here on it is the model that is in memory
        self._keeper = asyncio.create_task(self._keep(), name="image lease keeper")
        self._changed()
        return Grant(lease.model, self._options)

    async def make_room(self, size: ImageSize) -> bool:
        """Have the lease cover images of a size. False: the engine has to leave and come back for that.

        An engine that is over, or whose lease is lost, needs nothing. Raises DomainError where it is refused.
        """
        first = self._present
        if first.size.covers(size) or self._ending:
            return True
        if first.over:
            first.size = size  # the lease that takes its place is asked for with that
            return True
        return first.leave_after is None and await self._grow(first, size)

    async def _grow(self, first: _Stream, size: ImageSize) -> bool:
        other = self._open(self._need.options, size)
        self._growing = True
        try:
            await self._until(lambda: other.decided or first.leave_after is not None or self._ending)
            if self._ending:
                return True
            if other.granted and other.lease is not None:
                placement = other.lease.placement
                self._present, other = other, first
                return placement.applied_to(self._need.options) == self._options
            if first.leave_after is not None:  # to wait for each other would be for ever
                return False
            if isinstance(other.error, ManagerAwayError):  # then the present lease is lost as well
                return True
            raise other.refusal
        finally:
            self._growing = False
            await to_the_end(other.end())
            self._tell()

    def peak_of(self, size: ImageSize, peak_ram_bytes: int) -> int:
        """The peak where it is that of an image of this size: a life that has made a larger one does not tell."""
        if not size.covers(self._largest):
            return 0
        self._largest = size
        return peak_ram_bytes

    async def end(self) -> None:
        """Give the memory back."""
        self._ending = True
        self._tell()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            if not self._keeper.cancelled():
                self._keeper.result()
        await self._present.end()

    async def _keep(self) -> None:
        """Ask for the lease again where its stream broke off, until it is refused."""
        failures = 0
        while not self._refused:
            await self._until(lambda: self._present.over and not self._growing)
            await asyncio.sleep(RETRY.delay(failures + 1))
            failures = 0 if await self._regained() else failures + 1

    async def _regained(self) -> bool:
        """Ask once for the lease that was lost."""
        other = self._open(self._options, self._present.size, resident=True)
        try:
            await self._until(lambda: other.decided)
            if other.granted:
                self._present, other = other, self._present
                return True
            self._refused = not isinstance(other.refusal, ServerError)
            return False
        finally:
            await to_the_end(other.end())
            self._tell()

    def _open(self, options: EngineOptions, size: ImageSize, *, resident: bool = False) -> _Stream:
        need = replace(self._need, options=options, size=size)
        return _Stream(size, self._client.hold(self._tenant_id, need, resident=resident), self._on_update)

    def _on_update(self, stream: _Stream) -> None:
        if stream.lease is not None and not stream.over:
            self._note(stream.lease)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._changed()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()


class UseReports:
    """Tells the manager of uses, one after the other; of those that wait, only the latest."""

    def __init__(self, client: LeaseClient) -> None:
        self._client = client
        self._next: tuple[str, ImageSize, int] | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, lease: EngineLease, size: ImageSize, peak_ram_bytes: int) -> None:
        """A use of the engine is over; nobody waits for its report."""
        if not lease.lease_id:
            return
        self._next = (lease.lease_id, size, lease.peak_of(size, peak_ram_bytes))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="image lease reports")

    async def sent(self) -> None:
        """Wait a moment until nothing is left to tell."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=REPORT_PATIENCE)

    async def close(self) -> None:
        """Tell no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()

    async def _send(self) -> None:
        while self._next is not None:
            use, self._next = self._next, None
            try:
                await self._client.report_use(*use)
            except DomainError as error:  # it is only a hint: the manager does without
                log.debug("the use of the engine could not be reported: %s", error.message)
