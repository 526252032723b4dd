"""The leases: one task grants them, one request at a time.

Whoever needs memory `hold`s a lease for as long as a block lasts. Requests are served in the order in which they come;
those in the background are served after all others. An engine that has to leave is asked to by the state RECLAIM of its
lease, and may stay once that is GRANTED again. Memory is granted once the engines that left are gone and it is seen to
be free.
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Self

from genaid_server.kit.errors import DomainError, InsufficientResourcesError, NotFoundError, ServerError
from genaid_server.kit.watchable import Watchable
from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.leases.lease import Lease, LeaseRequest, LeaseState
from genaid_server.resource.core.leases.measuring import EngineAmount, Measure, Measured
from genaid_server.resource.core.leases.plan import ENDLESS, AvailableMemory, Departure, Plan, Tenant, TenantKind, plan

log = logging.getLogger(__name__)

POLL: Final = 0.05
"""Seconds between two looks for memory that is to come free."""
BACKGROUND_POLL: Final = 1.0
"""The same, for a request in the background that nothing else will wake."""
MAX_WAITING: Final = 100


@dataclass(eq=False)
class _LeaseEntry:
    """A lease, granted or waited for, with what its holder and others wait on; only `Leases` touches it."""

    request: LeaseRequest
    lease: Watchable[Lease]
    admitted: asyncio.Future[None]
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    reclaimed_for: "_LeaseEntry | None" = None

    @property
    def now(self) -> Lease:
        return self.lease.value


class HeldLease:
    """A lease in the hands of its holder."""

    def __init__(self, entry: _LeaseEntry) -> None:
        self._entry = entry

    @property
    def lease(self) -> Watchable[Lease]:
        """The lease; a watch of it ends when another of the same tenant takes its place, or it is refused."""
        return self._entry.lease

    async def granted(self) -> Lease:
        """Return once it is granted.

        Raises InsufficientResourcesError where it can't be, ServerError where the service stops.
        """
        await asyncio.shield(self._entry.admitted)
        return self._entry.now

    def raise_if_refused(self) -> None:
        """Raises what `granted` raises, where that is decided."""
        admitted = self._entry.admitted
        if admitted.done() and not admitted.cancelled() and (error := admitted.exception()):
            raise error


class Leases:
    """The owner of all leases; use it as an async context manager.

    `reload_delay` is how long after the last use of an image engine a request in the background waits, as more images
    may come; `release_timeout` how long the memory of an engine that is gone may take to be seen free. Both are in
    seconds.
    """

    def __init__(self, measure: Measure, *, reload_delay: float = 2.0, release_timeout: float = 5.0) -> None:
        self._measure, self._reload_delay, self._release_timeout = measure, reload_delay, release_timeout
        self._tenants: list[_LeaseEntry] = []
        self._queue: list[_LeaseEntry] = []
        self._wake = asyncio.Event()
        self._turn: asyncio.Task[None] | None = None
        self._admitting: _LeaseEntry | None = None
        self._scheduler: asyncio.Task[None] | None = None
        self._used_at = float("-inf")  # when an image engine worked last, by the loop's clock
        self._left_at = float("-inf")  # when a tenant left last
        self._total = Amount()
        self._idle: set[_LeaseEntry] = set()
        self._closing = False
        self._numbers = itertools.count(1)
        self._salt = secrets.token_hex(3)  # ids of an earlier process must not be taken for ours

    async def __aenter__(self) -> Self:
        self._scheduler = asyncio.create_task(self._serve(), name="lease scheduler")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._scheduler is not None:
            await self._scheduler

    def close(self) -> None:
        """Grant nothing any more, refuse who waits, and end every watch."""
        self._closing = True
        for entry in list(self._queue):
            self._refuse(entry, _shutting_down())
        for entry in self._tenants:
            entry.lease.close()
        if self._turn is not None:
            self._turn.cancel()
        self._wake.set()

    @asynccontextmanager
    async def hold(self, request: LeaseRequest) -> AsyncIterator[HeldLease]:
        """Ask for a lease, and give it back when the block ends.

        A tenant that holds one already asks for another size: its old lease ends when the new one is granted.
        Raises ServerError where the service stops.
        """
        if self._closing or len(self._queue) >= MAX_WAITING:
            raise _shutting_down() if self._closing else ServerError("Too many engines wait for memory already.")
        lease = Lease(f"lease-{self._salt}-{next(self._numbers)}", request, time.time())
        entry = _LeaseEntry(request, Watchable(lease), asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._wake.set()
        try:
            yield HeldLease(entry)
        finally:
            self._end(entry)

    async def plan(self, request: LeaseRequest) -> Plan:
        """What it would take to grant a request now. Changes nothing."""
        return self._planned(request, await self._measured())

    @property
    def total(self) -> Amount:
        """All that engines may take together, as it was measured last; nothing before that."""
        return self._total

    async def _measured(self) -> Measured:
        measured = await self._measure()
        self._total = measured.total
        return measured

    async def available(self) -> AvailableMemory:
        """What there is to share, and what is free now beyond what is granted."""
        measured = await self._measured()
        return AvailableMemory(measured.total, _shared(list(measured.engines), measured.free, self._tenants)[1])

    def present(self) -> list[Lease]:
        """All leases, the oldest first."""
        entries = [*self._tenants, *self._queue]
        return sorted((entry.now for entry in entries), key=lambda lease: (lease.created_at, len(lease.id), lease.id))

    def used(self, lease_id: str) -> Lease:
        """Take note that an image engine has ended a piece of work just now. Raises NotFoundError."""
        for entry in self._tenants:
            if entry.now.id == lease_id and entry.request.kind is TenantKind.IMAGE:
                self._idle.add(entry)
                self._used_at = _now()
                return entry.now
        raise NotFoundError("There is no such lease, or it has ended.", leaseId=lease_id[:100])

    # --- the end of a lease

    def _end(self, entry: _LeaseEntry) -> None:
        """Its holder is gone, and its memory with it."""
        if entry in self._queue:
            self._queue.remove(entry)
        if entry is self._admitting and self._turn is not None:
            self._turn.cancel()
        if entry in self._tenants:
            self._tenants.remove(entry)
            self._left_at = _now()
            if entry.request.kind is TenantKind.IMAGE and entry not in self._idle:
                self._used_at = _now()
        self._idle.discard(entry)
        entry.gone.set()
        entry.lease.close()
        if not entry.admitted.done():
            entry.admitted.cancel()
        self._let_stay(entry)
        self._wake.set()

    def _let_stay(self, requester: _LeaseEntry, but: Sequence[_LeaseEntry] = ()) -> None:
        """Who was to leave for a request that no longer asks for it may stay."""
        for tenant in self._tenants:
            if tenant.reclaimed_for is requester and tenant not in but:
                tenant.reclaimed_for = None
                tenant.lease.set(replace(tenant.now, state=LeaseState.GRANTED, reason="", reclaim_after=None))

    def _refuse(self, entry: _LeaseEntry, error: DomainError) -> None:
        if entry in self._queue:
            self._queue.remove(entry)
        if not entry.admitted.done():
            entry.admitted.set_exception(error)
            entry.admitted.exception()  # whoever asked may not look
        entry.lease.close()
        self._let_stay(entry)

    # --- the scheduler

    async def _serve(self) -> None:
        """Serve one request after the other."""
        while not self._closing:
            self._wake.clear()
            entry = self._next()
            if entry is None:
                await self._wake.wait()
            elif entry.request.background:
                await self._take_turn(entry, self._admit_in_background(entry))
            else:
                await self._take_turn(entry, self._admit(entry))

    def _next(self) -> _LeaseEntry | None:
        """Who is in memory already comes before all others, who is in the background after them."""
        order = sorted(self._queue, key=lambda entry: (not entry.request.resident, entry.request.background))
        return order[0] if order else None

    async def _take_turn(self, entry: _LeaseEntry, admission: Coroutine[Any, Any, None]) -> None:
        self._admitting = entry
        turn = self._turn = asyncio.create_task(admission, name=f"lease for {entry.request.tenant_id}")
        await asyncio.wait([turn])
        self._turn = self._admitting = None
        if turn.cancelled():
            if entry in self._queue and not self._closing:  # its holder is still there
                self._refuse(entry, ServerError("The request for memory was interrupted."))
        elif (error := turn.exception()) is not None:
            if not isinstance(error, DomainError):
                log.error("granting memory failed unexpectedly", exc_info=error)
                error = ServerError("Internal error while memory was being granted.")
            self._refuse(entry, error)

    async def _admit(self, entry: _LeaseEntry) -> None:
        """Make room and grant. Raises InsufficientResourcesError."""
        cleared = False
        while True:
            measured = await self._measured()
            found = self._planned(entry.request, measured)
            if found.possible and not found.departures:
                self._grant(entry)
                return
            if entry.request.resident:
                self._require_room_beside(entry, measured.total)
                self._grant(entry)
                return
            if (cleared or not found.possible) and self._may_come_free(found):
                await asyncio.sleep(POLL)  # until what was given back is seen to be free
                continue
            found.require_possible()
            self._explain(entry, found)
            await self._clear(entry, found.departures)
            cleared = True

    def _may_come_free(self, found: Plan) -> bool:
        """Whether memory that was given back just now, and is not seen to be free yet, may do."""
        return found.required <= found.total and _now() < self._left_at + self._release_timeout

    def _planned(self, request: LeaseRequest, measured: Measured) -> Plan:
        engines = list(measured.engines)
        tenants, free = _shared(engines, measured.free_for(request.kind), self._others(request))
        held = [tenant.request for tenant in self._tenants if tenant.request.tenant_id == request.tenant_id]
        for own in held or ([request] if request.resident else []):
            free += _take(engines, own) or Amount()  # it has that already
        return plan(request.amount, tenants, measured.available_for(request.kind, free))

    def _require_room_beside(self, entry: _LeaseEntry, total: Amount) -> None:
        """A resident engine has taken its memory already: what counts is whether it may stay beside the others. Raises
        InsufficientResourcesError."""
        request = entry.request
        tenants, _ = _shared([], total, self._others(request))
        found = plan(request.amount, tenants, AvailableMemory(total, Amount(ENDLESS, ENDLESS)))
        if not found.possible or found.departures:
            raise InsufficientResourcesError(
                "There is no longer enough memory for the image engine beside the others.",
                required=str(found.required),
                available=str(found.available),
                suggestion="It is unloaded, and loaded again for the next image.",
            )

    def _others(self, request: LeaseRequest) -> list[_LeaseEntry]:
        return [tenant for tenant in self._tenants if tenant.request.tenant_id != request.tenant_id]

    async def _admit_in_background(self, entry: _LeaseEntry) -> None:
        """Grant if nobody has to leave; else ask who is in the way, in no hurry, and wait for something to change."""
        found = await self.plan(entry.request)
        if self._next() is not entry:  # somebody came meanwhile
            return
        if not found.possible and not self._may_come_free(found):
            found.require_possible()
        due = self._used_at + self._reload_delay
        if found.possible and not found.departures and _now() >= due:
            self._grant(entry)
            return
        self._explain(entry, found)
        in_the_way = self._leaving(found.departures)
        if found.possible:
            self._let_stay(entry, but=in_the_way)
        for tenant in in_the_way:
            if tenant.request.kind is TenantKind.IMAGE and tenant.reclaimed_for is None:
                self._reclaim(tenant, entry, found.explanation, self._reload_delay)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._patience(found, due))

    def _patience(self, found: Plan, due: float) -> float:
        """Seconds until a request in the background is looked at again, if nothing changes before."""
        if not found.possible:
            return POLL
        return BACKGROUND_POLL if found.departures else max(0.0, due - _now())

    async def _clear(self, entry: _LeaseEntry, departures: Sequence[Departure]) -> None:
        """Have tenants leave, and return when they are gone."""
        leaving = self._leaving(departures)
        for tenant, departure in zip(leaving, departures, strict=True):
            self._reclaim(tenant, entry, departure.reason, 0.0)
        for tenant in leaving:
            await tenant.gone.wait()

    def _leaving(self, departures: Sequence[Departure]) -> list[_LeaseEntry]:
        by_id = {tenant.request.tenant_id: tenant for tenant in self._tenants}
        return [by_id[departure.tenant.id] for departure in departures]

    def _reclaim(self, tenant: _LeaseEntry, requester: _LeaseEntry, reason: str, after: float) -> None:
        tenant.reclaimed_for = requester
        tenant.lease.set(replace(tenant.now, state=LeaseState.RECLAIM, reason=reason, reclaim_after=after))

    def _explain(self, entry: _LeaseEntry, found: Plan) -> None:
        if entry.now.reason != found.explanation:
            entry.lease.set(replace(entry.now, reason=found.explanation))

    def _grant(self, entry: _LeaseEntry) -> None:
        """The one place where memory is granted."""
        for old in [each for each in self._tenants if each.request.tenant_id == entry.request.tenant_id]:
            self._tenants.remove(old)
            self._idle.discard(old)
            old.gone.set()
            old.lease.close()
        self._queue.remove(entry)
        self._tenants.append(entry)
        entry.lease.set(replace(entry.now, state=LeaseState.GRANTED, reason=""))
        if not entry.admitted.done():
            entry.admitted.set_result(None)
        self._let_stay(entry)


def _shared(engines: list[EngineAmount], free: Amount, entries: Sequence[_LeaseEntry]) -> tuple[list[Tenant], Amount]:
    """The tenants with what comes free when each leaves, and what is free beyond what is granted to them.

    What a tenant was granted and has not taken yet is not free, though nobody holds it. The engines of the tenants are
    taken out of the list.
    """
    tenants = []
    for request in (entry.request for entry in entries):
        taken = _take(engines, request) or Amount()
        held = Amount(max(taken.ram, request.amount.ram), max(taken.vram, request.amount.vram))
        free = Amount(free.ram + taken.ram - held.ram, free.vram + taken.vram - held.vram)
        tenants.append(Tenant(request.tenant_id, request.kind, request.model_id, request.amount, held))
    return tenants, free


def _take(engines: list[EngineAmount], request: LeaseRequest) -> Amount | None:
    """What the engine of a tenant holds; it is taken out of the list, as no two tenants have the same."""
    for engine in engines:
        # There is but one LLM engine, also while its model is being replaced.
        if engine.kind is request.kind and (engine.kind is TenantKind.LLM or engine.model_id == request.model_id):
            engines.remove(engine)
            return engine.amount
    return None


def _now() -> float:
    return asyncio.get_running_loop().time()


def _shutting_down() -> ServerError:
    return ServerError("The resource manager is shutting down.")
