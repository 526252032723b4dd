"""A small world for leases: a machine with memory, an LLM and image engines that take it and give it back.

Everybody is cooperative: engines take no more than they were granted, and leave when they are asked to, in their time.
"""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Final

from genaid_server.kit.errors import DomainError, NotFoundError
from genaid_server.resource.core.fitting.footprint import Amount, MemoryKind
from genaid_server.resource.core.leases.lease import Lease, LeaseRequest, LeaseState
from genaid_server.resource.core.leases.leases import HeldLease, Leases
from genaid_server.resource.core.leases.measuring import EngineAmount, Measured
from unit.leases.lease_machine import image, llm

DYING: Final = 0.04
"""Seconds that a killed engine goes on holding memory."""
RECONNECTING: Final = 0.5
"""Seconds until a worker whose stream broke off asks again."""
KINDS: Final = tuple(MemoryKind)


@dataclass(eq=False)
class Engine:
    """An engine's process. `released` is set once its memory is free."""

    request: LeaseRequest
    taken: Amount = field(default_factory=Amount)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    dying: bool = False


class World:
    """The machine, who is in it, and what must hold at every step.

    Engines may take `budget`, and the machine has `spare` more of either kind. `lag` is for how many seconds memory
    isn't seen to be free after its process is gone, `drain` how many an LLM that was asked to leave goes on.
    """

    leases: Leases

    def __init__(self, budget: Amount, *, spare: int, lag: float, drain: float) -> None:
        self.total, self.lag, self.drain = budget, lag, drain
        self.physical = Amount(budget.ram + spare, budget.vram + spare if budget.vram else 0)
        self.others = Amount()  # what other programs have
        self.lingering = Amount()  # of processes that are gone
        self.engines: list[Engine] = []
        self.closing = False
        self.outcomes: list[str] = []
        self._arrivals: dict[str, int] = {}
        self._granted: set[str] = set()
        self._hurried: set[str] = set()  # who waited in the foreground a step ago

    # --- memory

    async def __call__(self) -> Measured:
        await asyncio.sleep(0)
        self.check()
        free = self.free
        engines = tuple(EngineAmount(each.request.kind, each.request.model_id, each.taken) for each in self.engines)
        return Measured(self.total, free, engines, free.vram, self.total.vram)

    @property
    def free(self) -> Amount:
        used = total([self.others, self.lingering, *(engine.taken for engine in self.engines)])
        return minus(self.physical, used)

    def promised(self, granted: list[Lease]) -> Amount:
        """What was granted and is not taken yet."""
        gaps = [minus(lease.request.amount, self._taken_by(lease)) for lease in granted]
        return total([Amount(max(0, gap.ram), max(0, gap.vram)) for gap in gaps])

    def _taken_by(self, lease: Lease) -> Amount:
        """By its engine, and by one that is dying: nothing tells them apart; the next is loaded when that is gone."""
        return total([each.taken for each in self.engines if each.request.tenant_id == lease.request.tenant_id])

    def other_programs(self, wanted: Amount) -> None:
        """They take or give back memory; what was promised they leave alone, or else the fault is theirs."""
        room = minus(self.free, self.promised(self.granted()))
        most = total([self.others, room])
        self.others = Amount(max(0, min(wanted.ram, most.ram)), max(0, min(wanted.vram, most.vram)))

    def started(self, request: LeaseRequest) -> Engine:
        engine = Engine(request)
        self.engines.append(engine)
        return engine

    def load(self, engine: Engine, amount: Amount) -> None:
        """It takes memory up to an amount."""
        engine.taken = Amount(max(engine.taken.ram, amount.ram), max(engine.taken.vram, amount.vram))

    def end(self, engine: Engine) -> None:
        """Its process is gone; its memory is seen to be free after the lag."""
        self.engines.remove(engine)
        self.lingering += engine.taken
        if self.lag:
            asyncio.get_running_loop().call_later(self.lag, self._release, engine)
        else:
            self._release(engine)

    def kill(self, engine: Engine) -> None:
        """It dies, which takes a moment."""
        if not engine.dying:
            engine.dying = True
            asyncio.get_running_loop().call_later(DYING, self.end, engine)

    def _release(self, engine: Engine) -> None:
        self.lingering = minus(self.lingering, engine.taken)
        engine.released.set()

    # --- what must hold

    def arrived(self, held: HeldLease) -> None:
        self._arrivals[held.lease.value.id] = len(self._arrivals)

    def granted(self) -> list[Lease]:
        return [lease for lease in self.leases.present() if lease.state is not LeaseState.WAITING]

    def waiting(self) -> list[Lease]:
        return [lease for lease in self.leases.present() if lease.state is LeaseState.WAITING]

    def stop(self) -> None:
        """The service stops: nothing is granted any more."""
        self._granted |= {lease.id for lease in self.granted()}
        self.closing = True
        self.leases.close()

    def check(self) -> None:
        """What holds at every step."""
        present = self.leases.present()
        granted = [lease for lease in present if lease.state is not LeaseState.WAITING]
        waiting = [lease for lease in present if lease.state is LeaseState.WAITING]
        together = total([lease.request.amount for lease in granted])
        assert_within(together, self.total, "granted in all")
        assert_within(Amount(), self.free, "physical memory")
        tenants = [lease.request.tenant_id for lease in granted]
        assert len(set(tenants)) == len(tenants), "a tenant has two leases"
        if not waiting:
            assert all(lease.state is LeaseState.GRANTED for lease in granted), "nobody wants it, and it is reclaimed"
        for lease in granted:
            if lease.id not in self._granted:
                self._check_grant(lease, granted, waiting)
        self._granted = {lease.id for lease in granted}
        self._hurried = {lease.id for lease in waiting if not lease.request.background}

    def _check_grant(self, lease: Lease, granted: list[Lease], waiting: list[Lease]) -> None:
        """What holds when a lease has just been granted."""
        request = lease.request
        self.outcomes.append("resident" if request.resident else "background" if request.background else "granted")
        assert not self.closing, "granted by a service that stops"
        if request.resident:
            return
        for other in waiting:
            if request.background:
                assert other.id not in self._hurried, "the background was served before others"
            elif not other.request.background and self._arrivals[lease.id] > self._arrivals[other.id]:
                raise AssertionError("who came later was served first")
        decides = MemoryKind.VRAM if request.amount.vram and self.total.vram else MemoryKind.RAM
        beside = sum(other.request.amount.of(decides) for other in granted if other is not lease)
        if beside and request.amount.of(decides):
            assert 4 * (beside + request.amount.of(decides)) <= 3 * self.total.of(decides), "too much together"
        left = minus(self.free, self.promised(granted))
        for kind in KINDS:
            assert not request.amount.of(kind) or left.of(kind) >= 0, f"{kind} was promised that nobody has"


def total(amounts: list[Amount]) -> Amount:
    return sum(amounts, Amount())


def minus(one: Amount, other: Amount) -> Amount:
    return Amount(one.ram - other.ram, one.vram - other.vram)


def is_within(request: LeaseRequest, lease: LeaseRequest) -> bool:
    """Whether an engine can do what is asked for in a lease that it has."""
    left = minus(lease.amount, request.amount)
    return lease.model_id == request.model_id and left.ram >= 0 and left.vram >= 0


def assert_within(amount: Amount, most: Amount, what: str) -> None:
    assert amount.ram <= most.ram, f"{what}: {amount} of {most}"
    assert amount.vram <= most.vram, f"{what}: {amount} of {most}"


class Session:
    """One lease of a tenant, from asking for it to its end, in a task of its own."""

    held: HeldLease
    task: asyncio.Task[None]

    def __init__(self, request: LeaseRequest) -> None:
        self.request = request
        self.changed = asyncio.Event()
        self.over = self.stopping = self.broken = False

    async def follow(self) -> None:
        """Notice what becomes of the lease."""
        async for _ in self.held.lease.watch():
            self.changed.set()
        self.over = True
        self.changed.set()

    @property
    def lease(self) -> Lease:
        return self.held.lease.value


class Actor(ABC):
    """Somebody who runs an engine."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.engine: Engine | None = None
        self.session: Session | None = None  # the lease that is held
        self.asking: Session | None = None  # the one that is waited for
        self.tasks: list[asyncio.Task[None]] = []
        self._past: list[Engine] = []

    def ask(self, request: LeaseRequest) -> None:
        """Ask for a lease in the place of the one that is held, if any."""
        session = self.asking = Session(request)
        session.task = asyncio.create_task(self._hold(session), name=f"session of {request.tenant_id}")
        session.task.add_done_callback(lambda _: self.ended(session))
        self.tasks.append(session.task)

    def cancel(self) -> None:
        """Ask no more."""
        if self.asking is not None:
            self.asking.task.cancel()

    def crash(self) -> None:
        """The process that holds the leases is killed, and its engine dies with it."""
        self.cancel()
        if self.session is not None:
            self.session.task.cancel()

    def end(self) -> None:
        """Leave when the work is done that is under way."""
        self.cancel()
        if self.session is not None:
            self.session.stopping = True
            self.session.changed.set()

    def kill_engine(self) -> None:
        if self.engine is not None:
            self.world.kill(self.engine)
            self._past.append(self.engine)
            self.engine = None

    async def _hold(self, session: Session) -> None:
        if session.request.resident:
            await asyncio.sleep(RECONNECTING)
        try:
            async with self.world.leases.hold(session.request) as session.held:
                self.world.arrived(session.held)
                try:
                    await self._with_lease(session)
                finally:
                    if self._holds(session) and not session.broken:
                        self.kill_engine()
        except DomainError as error:
            self.world.outcomes.append(error.reason)

    async def _with_lease(self, session: Session) -> None:
        await session.held.granted()
        self.session, self.asking = session, None if self.asking is session else self.asking
        await self._load(session)
        following = asyncio.create_task(session.follow(), name="follow")
        try:
            await self.stay(session)
        finally:
            following.cancel()
            await asyncio.wait([following])
        if self._holds(session):
            self._unload()

    def _holds(self, session: Session) -> bool:
        return any(lease.id == session.lease.id for lease in self.world.granted())

    def ended(self, session: Session) -> None:
        """Its task is done, or has never begun."""
        if self.session is session:
            self.session = None
        if self.asking is session:
            self.asking = None
            if session.request.resident:
                self.kill_engine()  # which has no lease

    async def _load(self, session: Session) -> None:
        """Load the engine bit by bit, for as long as no other lease takes the place of this one."""
        request = session.request
        if self.engine is not None and self.engine.request.model_id != request.model_id:
            self._unload()
        for engine in self._past:
            await engine.released.wait()
        for amount in (Amount(request.amount.ram // 2, request.amount.vram // 2), request.amount):
            if self._holds(session):
                self._past = []
                self.engine = self.engine or self.world.started(request)
                self.engine.request = request
                self.world.load(self.engine, amount)
            await asyncio.sleep(0)

    def _unload(self) -> None:
        if self.engine is not None:
            self.world.end(self.engine)
            self._past.append(self.engine)
            self.engine = None

    @abstractmethod
    async def stay(self, session: Session) -> None:
        """Return when the lease is over or is to be given back."""


class Painter(Actor):
    """An image worker."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world)
        self.name = name
        self.working = False

    def draw(self, ram: int, vram: int, *, other_model: bool = False) -> None:
        """Make an image, in the lease that there is or a larger one."""
        model = f"{self.name}'s second" if other_model else f"{self.name}'s first"
        request = image(ram, vram, name=self.name, model_id=model)
        if self.asking is not None or self.working:
            return
        held = self.session
        if held is not None and self._holds(held) and not held.stopping and is_within(request, held.request):
            self.working = True
            held.changed.set()
        else:
            self.ask(request)

    def finish(self) -> None:
        """The work is done."""
        if self.session is not None and self.working:
            self.working = False
            try:
                self.world.leases.used(self.session.lease.id)
            except NotFoundError:
                self.world.outcomes.append("used too late")
            self.session.changed.set()

    def lose_the_stream(self) -> None:
        """The stream of the lease breaks off, and the engine stays."""
        held, engine = self.session, self.engine
        if held is None or engine is None or self.asking is not None or engine.taken != held.request.amount:
            return
        if self._holds(held) and engine.request == held.request:
            held.broken, self.working = True, False
            held.task.cancel()
            self.ask(replace(held.request, resident=True))

    async def stay(self, session: Session) -> None:
        self.working = not session.request.resident
        try:
            while not session.over and not (session.stopping and not self.working):
                session.changed.clear()
                patience = None
                if session.lease.state is LeaseState.RECLAIM and not self.working:
                    patience = max(session.lease.reclaim_after or 0.0, 0.001)
                try:
                    await asyncio.wait_for(session.changed.wait(), patience)
                except TimeoutError:
                    return
        finally:
            if self.session is session:
                self.working = False


class Talker(Actor):
    """An LLM, which comes back by itself after it has made room."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._request = llm(1)
        self._comes_back = False

    def start(self, ram: int, vram: int) -> None:
        """Somebody starts it, or again with another size."""
        if self.asking is not None:
            self.cancel()
        self._request = llm(ram, vram)
        self.ask(self._request)

    def stop(self) -> None:
        """Somebody stops it, or gives up on it."""
        self._comes_back = False
        self.end()

    def ended(self, session: Session) -> None:
        super().ended(session)
        if self._comes_back and session.stopping and self.asking is None and not self.world.closing:
            self._comes_back = False
            self.ask(replace(self._request, background=True))

    async def stay(self, session: Session) -> None:
        while not session.over and not session.stopping:
            session.changed.clear()
            if session.lease.state is not LeaseState.RECLAIM:
                await session.changed.wait()
            elif await self._makes_room(session):
                self._comes_back = session.stopping = True

    async def _makes_room(self, session: Session) -> bool:
        """Finish what is under way; False where something else comes first."""
        self.world.outcomes.append("asked to leave")
        try:
            await asyncio.wait_for(session.changed.wait(), self.world.drain)
        except TimeoutError:
            return True
        if session.lease.state is LeaseState.GRANTED:
            self.world.outcomes.append("stays")
        return False
