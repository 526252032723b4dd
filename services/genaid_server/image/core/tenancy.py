"""The right to occupy memory: every life of the engine holds a lease of the resource manager, its landlord.

A lease is a stream: it lasts for as long as the stream does, and tells when the memory is wanted back. It is for the
largest image that this life was asked for; nothing is asked of the landlord for an image that it covers. Where its
stream breaks off, the engine stays, and the lease is asked for again.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Protocol

from genaid_server.image.core.process import EngineConfig, EngineOptions
from genaid_server.kit.errors import DomainError, ServerError
from genaid_server.kit.tasks import to_the_end
from genaid_server.supervision.logbook import Level, Logbook

log = logging.getLogger(__name__)

FIRST_RETRY: Final = 0.1
LAST_RETRY: Final = 0.25
"""Seconds before a lease whose stream broke off is asked for again: at first, and at most. A resource manager that was
started again waits a moment for it before it brings the LLM back."""
REPORT_PATIENCE: Final = 1.0
"""Seconds for which the end of a lease waits for the report of its last use."""


class LandlordAwayError(ServerError):
    """The resource manager does not answer, so it has neither granted nor refused anything."""


class LeaseState(Enum):
    """Where a lease is in its life; see the contract."""

    WAITING = auto()
    GRANTED = auto()
    RECLAIM = auto()


@dataclass(frozen=True, slots=True)
class Size:
    """The size of an image in pixels. Both 0: no image."""

    width: int
    height: int

    def covers(self, other: "Size") -> bool:
        """Whether the memory for an image of this size does for the other: it follows from the number of pixels."""
        return other.width * other.height <= self.width * self.height


SMALLEST: Final = Size(64, 64)
"""What a model is loaded for that nobody wants an image of yet."""
NO_IMAGE: Final = Size(0, 0)


@dataclass(frozen=True, slots=True)
class Need:
    """What the engine is to do: images up to a size, with a model."""

    model_id: str
    variant: str
    options: EngineOptions
    size: Size


@dataclass(frozen=True, slots=True)
class Placement:
    """How the engine is to use its memory. `max_vram_bytes` 0 is no limit; `reason` is empty where it is the fastest
    way."""

    offload_to_cpu: bool = False
    vae_tiling: bool = False
    max_vram_bytes: int = 0
    reason: str = ""

    def applied_to(self, options: EngineOptions) -> EngineOptions:
        """What the engine computes with, of which callers asked for `options`."""
        return replace(
            options,
            offload_to_cpu=options.offload_to_cpu or self.offload_to_cpu,
            vae_tiling=options.vae_tiling or self.vae_tiling,
            max_vram_bytes=self.max_vram_bytes or options.max_vram_bytes,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease at one moment. `reclaim_after` counts in RECLAIM: seconds for which an idle engine may stay."""

    id: str
    state: LeaseState
    reason: str = ""
    reclaim_after: float = 0.0
    placement: Placement = Placement()


class Landlord(Protocol):
    """Who grants memory."""

    async def has_room(self, need: Need) -> bool:
        """Whether it would be granted without anybody having to leave.

        Raises InsufficientResourcesError where it never could be, and other DomainErrors where that can't be told.
        """

    def hold(self, tenant_id: str, need: Need, *, resident: bool = False) -> AsyncGenerator[Lease, None]:
        """A lease as it is, then after each change, for as long as it is iterated.

        `resident` says that the engine has the memory already. It ends when another lease of the same tenant takes
        its place. Raises LandlordAwayError; InsufficientResourcesError and other DomainErrors where it is refused.
        """

    async def report_use(self, lease_id: str, size: Size, peak_ram_bytes: int) -> None:
        """Tell that a use of the engine has ended just now, what was made, and what it took; 0 where unknown.

        Raises DomainError.
        """


class _Stream:
    """One stream of a lease, followed by a task of its own. `told` is called after each change."""

    def __init__(self, size: Size, updates: AsyncGenerator[Lease, None], told: "Callable[[_Stream], None]") -> None:
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


class _Stay:
    """The leases of one life of the engine, one after the other. `changed` is called after each change."""

    def __init__(
        self,
        ask: Callable[[Need, bool], AsyncGenerator[Lease, None]],
        need: Need,
        note: Callable[[Lease], None],
        changed: Callable[[], None],
    ) -> None:
        self._ask, self._need, self._note, self._changed = ask, need, note, changed
        self.options = need.options
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

    async def granted(self) -> EngineOptions:
        """Return once the memory may be used, and how. Raises DomainError where it may not."""
        await self._until(lambda: self._present.decided)
        lease = self._present.lease
        if lease is None or not self._present.granted:
            raise self._present.refusal
        self.options = lease.placement.applied_to(self._need.options)
        self._keeper = asyncio.create_task(self._keep(), name="image lease keeper")
        self._changed()
        return self.options

    async def make_room(self, size: Size) -> bool:
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

    async def _grow(self, first: _Stream, size: Size) -> bool:
        other = self._open(self._need.options, size)
        self._growing = True
        try:
            await self._until(lambda: other.decided or first.leave_after is not None or self._ending)
            if self._ending:
                return True
            if other.granted and other.lease is not None:
                placement = other.lease.placement
                self._present, other = other, first
                return placement.applied_to(self._need.options) == self.options
            if first.leave_after is not None:  # to wait for each other would be for ever
                return False
            if isinstance(other.error, LandlordAwayError):  # then the present lease is lost as well
                return True
            raise other.refusal
        finally:
            self._growing = False
            await to_the_end(other.end())
            self._tell()

    def peak_of(self, size: Size, peak_ram_bytes: int) -> int:
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
        delay = FIRST_RETRY
        while not self._refused:
            await self._until(lambda: self._present.over and not self._growing)
            await asyncio.sleep(delay)
            delay = FIRST_RETRY if await self._regained() else min(2 * delay, LAST_RETRY)

    async def _regained(self) -> bool:
        """Ask once for the lease that was lost."""
        other = self._open(self.options, self._present.size, resident=True)
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

    def _open(self, options: EngineOptions, size: Size, *, resident: bool = False) -> _Stream:
        need = replace(self._need, options=options, size=size)
        return _Stream(size, self._ask(need, resident), self._on_update)

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


class _Reports:
    """Tells the landlord of uses, one after the other; of those that wait, only the latest."""

    def __init__(self, landlord: Landlord) -> None:
        self._landlord = landlord
        self._next: tuple[str, Size, int] | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, lease_id: str, size: Size, peak_ram_bytes: int) -> None:
        self._next = (lease_id, size, peak_ram_bytes)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="image lease reports")

    async def sent(self, timeout: float) -> None:
        """Wait up to `timeout` seconds until nothing is left to tell."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()

    async def _send(self) -> None:
        while self._next is not None:
            use, self._next = self._next, None
            try:
                await self._landlord.report_use(*use)
            except DomainError as error:  # it is only a hint: the landlord does without
                log.debug("the use of the engine could not be reported: %s", error.message)


class Tenancy:
    """What the engine is to its landlord, life after life. `changed` is called when `leave_after` may be another.

    `wanted` is the size of the newest image that was asked for: the next life begins with a lease for it.
    """

    def __init__(self, landlord: Landlord, logbook: Logbook, changed: Callable[[], None]) -> None:
        self.tenant_id = f"image-worker-{secrets.token_hex(8)}"
        self.wanted = SMALLEST
        self._landlord, self._logbook, self._changed = landlord, logbook, changed
        self._reports = _Reports(landlord)
        self._stay: _Stay | None = None
        self._said = ""

    @property
    def options(self) -> EngineOptions | None:
        """What the present life computes with; None between two lives."""
        return self._stay.options if self._stay else None

    @property
    def leave_after(self) -> float | None:
        """For how many seconds the engine may stay without work; None where it may stay."""
        return self._stay.leave_after if self._stay else None

    async def has_room(self, config: EngineConfig) -> bool:
        """Whether the engine can be loaded without another having to leave.

        Raises InsufficientResourcesError where it can't be loaded at all; otherwise what `hold` raises.
        """
        return await self._landlord.has_room(Need(config.model_id, config.variant, config.options, SMALLEST))

    @asynccontextmanager
    async def hold(self, config: EngineConfig) -> AsyncIterator[EngineOptions]:
        """Hold a lease for the length of the block, in which the engine is loaded with the options that are yielded.

        Raises InsufficientResourcesError where there is too little memory; ModelNotFoundError, InvalidRequestError;
        ServerError where the resource manager does not answer.
        """
        need = Need(config.model_id, config.variant, config.options, self.wanted)
        stay = self._stay = _Stay(self._ask, need, self._note, self._changed)
        try:
            yield await stay.granted()
        finally:
            await to_the_end(self._leave(stay))

    async def make_room(self, size: Size) -> bool:
        """Have the lease cover images of a size. False: the engine has to be stopped and started again for that.

        Raises InsufficientResourcesError, ServerError and others where it is refused; the present lease stays.
        """
        return await self._stay.make_room(size) if self._stay else True

    def report(self, size: Size, peak_ram_bytes: int) -> None:
        """A use of the engine has ended: tell the landlord, which nobody waits for."""
        if self._stay is not None and (lease_id := self._stay.lease_id):
            self._reports.add(lease_id, size, self._stay.peak_of(size, peak_ram_bytes))

    async def close(self) -> None:
        """Tell no more."""
        await self._reports.close()

    async def _leave(self, stay: _Stay) -> None:
        await self._reports.sent(REPORT_PATIENCE)  # with the lease, what was learned from it would be lost
        await stay.end()
        self._stay = None

    def _ask(self, need: Need, resident: bool) -> AsyncGenerator[Lease, None]:
        return self._landlord.hold(self.tenant_id, need, resident=resident)

    def _note(self, lease: Lease) -> None:
        """Say in the log why it is as it is, once."""
        match lease.state:
            case LeaseState.WAITING:
                said = f"waiting for memory: {lease.reason}" if lease.reason else ""
            case LeaseState.GRANTED:
                said = lease.placement.reason
            case LeaseState.RECLAIM:
                said = f"the memory is wanted back: {lease.reason}"
        if said and said != self._said:
            self._logbook.append(Level.INFO, said)
        self._said = said
