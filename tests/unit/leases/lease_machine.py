"""What tests of leases share: time that takes none, and a machine whose memory is what the test says."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self

import pytest

from genaid_server.kit.errors import InsufficientResourcesError
from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.leases.lease import LLM_TENANT, Lease, LeaseRequest, LeaseState
from genaid_server.resource.core.leases.leases import POLL, Leases
from genaid_server.resource.core.leases.measuring import EngineAmount, Measured
from genaid_server.resource.core.leases.plan import TenantKind

DELAY: Final = 2.0
TIMEOUT: Final = 5.0
END_OF_TIME: Final = 36_000.0  # seconds; nothing that is tested takes as long


class _Clockwork(selectors.DefaultSelector):
    """Nothing comes from outside: instead of waiting, the clock is put forward to the next timer."""

    def __init__(self, each_step: Callable[[], None]) -> None:
        super().__init__()
        self.now = 0.0
        self._each_step = each_step

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._each_step()
        assert timeout is not None, "everybody waits, and nothing will ever happen"
        self.now += max(0.0, timeout)
        assert self.now < END_OF_TIME, "this never ends"
        return super().select(0)


class InstantLoop(asyncio.SelectorEventLoop):
    """An event loop in which to wait takes no time. `each_step` is called between any two rounds of callbacks.

    It fails where all wait for each other, or for something that never happens.
    """

    def __init__(self, each_step: Callable[[], None] = lambda: None) -> None:
        self._clockwork = _Clockwork(each_step)
        super().__init__(self._clockwork)

    def time(self) -> float:
        return self._clockwork.now


def instantly[**P](test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in such a loop; it has failed also where it leaves a task behind."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def alone() -> None:
            await test(*args, **kwargs)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        with asyncio.Runner(loop_factory=InstantLoop) as runner:
            runner.run(alone())

    return run


class Machine:
    """A machine's memory, as it is found whenever it is measured."""

    def __init__(self, ram: int = 16, vram: int = 0) -> None:
        self.total = self.free = Amount(ram, vram)
        self.best_gpu: int | None = None  # of `free.vram`; None is all of it
        self.largest_gpu = vram
        self.engines: dict[str, EngineAmount] = {}
        self.broken: Exception | None = None
        self.looking, self.may_look = asyncio.Event(), asyncio.Event()
        self.may_look.set()

    async def __call__(self) -> Measured:
        self.looking.set()
        await self.may_look.wait()
        if self.broken is not None:
            raise self.broken
        best = self.free.vram if self.best_gpu is None else self.best_gpu
        return Measured(self.total, self.free, tuple(self.engines.values()), best, self.largest_gpu)

    def load(self, request: LeaseRequest, amount: Amount | None = None) -> None:
        """The engine of a tenant takes memory: what the lease is for, or so much."""
        self.unload(request)
        taken = request.amount if amount is None else amount
        self.engines[request.tenant_id] = EngineAmount(request.kind, request.model_id, taken)
        self.free = Amount(self.free.ram - taken.ram, self.free.vram - taken.vram)

    def unload(self, request: LeaseRequest) -> None:
        """It is gone, and its memory free."""
        self.free += self.vanish(request)

    def vanish(self, request: LeaseRequest) -> Amount:
        """It is gone, and its memory is not free yet."""
        engine = self.engines.pop(request.tenant_id, None)
        return Amount() if engine is None else engine.amount


def llm(ram: int, vram: int = 0, **more: Any) -> LeaseRequest:
    """What the LLM asks for."""
    return LeaseRequest(LLM_TENANT, TenantKind.LLM, more.pop("model_id", "talker"), Amount(ram, vram), **more)


def image(ram: int, vram: int = 0, *, name: str = "painter", **more: Any) -> LeaseRequest:
    """What an image engine asks for."""
    return LeaseRequest(name, TenantKind.IMAGE, more.pop("model_id", f"{name}'s"), Amount(ram, vram), **more)


async def settle() -> None:
    """Return when all has happened that needs no time to pass."""
    await asyncio.sleep(POLL / 100)


class Holder:
    """A lease and its holder, who leaves with `leave`."""

    def __init__(self, leases: Leases, request: LeaseRequest) -> None:
        self.request, self._hold = request, leases.hold(request)
        self._block = AsyncExitStack()
        self._seen: list[Lease] = []
        self._watching: asyncio.Task[None] | None = None

    async def take(self) -> Self:
        self.held = await self._block.enter_async_context(self._hold)
        self._watching = asyncio.create_task(self._watch())
        return self

    async def leave(self) -> None:
        """The block ends."""
        await self._block.aclose()
        if self._watching is not None:
            await self._watching

    @property
    def now(self) -> Lease:
        return self.held.lease.value

    @property
    def state(self) -> LeaseState:
        return self.now.state

    @property
    def told(self) -> list[tuple[LeaseState, float | None]]:
        """What its watcher was told so far."""
        return [(lease.state, lease.reclaim_after) for lease in self._seen]

    @property
    def over(self) -> bool:
        """Whether the watch has ended."""
        return self._watching is not None and self._watching.done()

    async def _watch(self) -> None:
        async for lease in self.held.lease.watch():
            self._seen.append(lease)


class Scene:
    """Leases over a machine; whoever still has a holder at the end leaves it."""

    def __init__(self, machine: Machine | None = None, **options: Any) -> None:
        self.machine = machine or Machine()
        self.leases = Leases(self.machine, **({"reload_delay": DELAY, "release_timeout": TIMEOUT} | options))
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.leases)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def holder(self, request: LeaseRequest) -> Holder:
        """Ask for a lease, and go on when nothing more happens at once."""
        holder = await Holder(self.leases, request).take()
        self._stack.push_async_callback(holder.leave)
        await settle()
        return holder

    async def tenant(self, request: LeaseRequest) -> Holder:
        """An engine that was granted memory, and has all of it."""
        holder = await self.holder(request)
        assert holder.state is LeaseState.GRANTED
        self.machine.load(request)
        return holder

    def open(self) -> list[str]:
        return [lease.id for lease in self.leases.present()]


def now() -> float:
    """Seconds by the clock of the loop."""
    return asyncio.get_running_loop().time()


async def refusal(holder: Holder) -> InsufficientResourcesError:
    """Why its lease was refused; it is over then."""
    with pytest.raises(InsufficientResourcesError) as caught:
        await holder.held.granted()
    with pytest.raises(InsufficientResourcesError):
        holder.held.raise_if_refused()
    await settle()
    assert holder.over
    return caught.value
