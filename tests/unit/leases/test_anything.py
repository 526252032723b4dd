"""Whatever engines and other programs do, and when: no memory is granted twice, and nobody waits for ever."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.leases.leases import Leases
from unit.leases.lease_actors import Painter, Talker, World
from unit.leases.lease_machine import InstantLoop

RAM = 16
PATIENCE = 1000  # half seconds in which cooperative tenants have made room for everybody


@dataclass
class Cast:
    """Who takes part."""

    world: World
    talker: Talker
    painters: list[Painter]


@dataclass(frozen=True)
class Act:
    """Something happens, to an image worker or the LLM; then so many seconds pass.

    0 seconds are a round of the event loop, less is nothing at all.
    """

    what: str
    who: int
    ram: int
    vram: int
    pause: float

    def perform(self, cast: Cast) -> None:
        ACTS[self.what](cast, cast.painters[self.who], self.ram, min(self.vram, cast.world.total.vram))


ACTS: dict[str, Callable[[Cast, Painter, int, int], None]] = {
    "an image": lambda cast, painter, ram, vram: painter.draw(min(ram, 8), vram),
    "a large image": lambda cast, painter, ram, vram: painter.draw(ram, vram),
    "an image with another model": lambda cast, painter, ram, vram: painter.draw(ram, vram, other_model=True),
    "the image is done": lambda cast, painter, ram, vram: painter.finish(),
    "the image is cancelled": lambda cast, painter, ram, vram: painter.cancel(),
    "the worker stops": lambda cast, painter, ram, vram: painter.end(),
    "the worker crashes": lambda cast, painter, ram, vram: painter.crash(),
    "the stream breaks off": lambda cast, painter, ram, vram: painter.lose_the_stream(),
    "the LLM starts": lambda cast, painter, ram, vram: cast.talker.start(min(ram, 9), vram),
    "the LLM stops": lambda cast, painter, ram, vram: cast.talker.stop(),
    "the LLM crashes": lambda cast, painter, ram, vram: cast.talker.crash(),
    "the LLM is forgotten": lambda cast, painter, ram, vram: cast.talker.cancel(),
    "other programs": lambda cast, painter, ram, vram: cast.world.other_programs(Amount(ram - 1, vram)),
}
OFTEN = [*["an image"] * 4, *["the image is done"] * 5, *["the LLM starts"] * 3, "a large image"]

acts = st.builds(
    Act,
    what=st.sampled_from([*OFTEN, *ACTS]),
    who=st.integers(0, 2),
    ram=st.integers(1, RAM + 1),
    vram=st.sampled_from([0, 0, 1, 2, 3, 5, 8]),
    pause=st.sampled_from([0.03, 0.0, 0.0, 0.0, -1.0, 0.001, 0.5, 2.5]),
)


async def play(world: World, script: list[Act], *, abruptly: bool) -> None:
    cast = Cast(world, Talker(world), [Painter(world, name) for name in "abc"])
    async with Leases(world, reload_delay=2.0, release_timeout=5.0) as world.leases:
        for each in script:
            each.perform(cast)
            if each.pause >= 0:
                await asyncio.sleep(each.pause)
        if not abruptly:
            await everybody_is_served(cast)
            await everybody_leaves(cast)
        world.stop()
        tasks = [task for actor in (cast.talker, *cast.painters) for task in actor.tasks]
        await asyncio.wait([*tasks, asyncio.create_task(asyncio.sleep(0))])
        for task in tasks:
            assert task.cancelled() or task.exception() is None
        assert world.leases.present() == []
    await asyncio.sleep(world.lag + 1)  # the dead are gone
    world.others = Amount()
    assert (world.engines, world.free) == ([], world.physical)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def everybody_is_served(cast: Cast) -> None:
    """Other programs and those that work come to an end: all who wait are granted or refused."""
    cast.world.other_programs(Amount())
    await soon(lambda: not cast.world.waiting(), cast)


async def everybody_leaves(cast: Cast) -> None:
    for painter in cast.painters:
        painter.end()
    cast.talker.stop()
    await soon(lambda: not cast.world.leases.present(), cast)


async def soon(condition: Callable[[], bool], cast: Cast) -> None:
    """Return when it holds; meanwhile all work that is begun is done."""
    for _ in range(PATIENCE):
        if condition():
            return
        for painter in cast.painters:
            painter.finish()
        await asyncio.sleep(0.5)
    raise AssertionError("it has not come to an end")


scenes = given(
    script=st.lists(acts, min_size=10, max_size=40),
    has_gpu=st.booleans(),
    spare=st.sampled_from([0, 0, RAM]),
    lag=st.sampled_from([0.0, 0.0, 0.2, 3.0, 7.0]),
    drain=st.sampled_from([1.0, 0.0, 0.1]),
    abruptly=st.sampled_from([False, False, True]),
)


def check_scene(script: list[Act], has_gpu: bool, spare: int, lag: float, drain: float, abruptly: bool) -> None:
    world = World(Amount(RAM, 8 if has_gpu else 0), spare=spare, lag=lag, drain=drain)

    def check() -> None:
        if hasattr(world, "leases"):
            world.check()

    with asyncio.Runner(loop_factory=lambda: InstantLoop(check)) as runner:
        runner.run(play(world, script, abruptly=abruptly))
    for outcome in sorted(set(world.outcomes)):
        event(outcome)


test_no_memory_is_granted_twice_and_nobody_waits_for_ever = settings(deadline=None, max_examples=100)(
    scenes(check_scene)
)
test_that_in_a_long_search = pytest.mark.long(settings(deadline=None, max_examples=2000)(scenes(check_scene)))
