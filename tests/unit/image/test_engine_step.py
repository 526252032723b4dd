"""The step of the image engine's owner, without processes, clocks and sleeps: ten thousand random events, and the
courses of events that once went wrong."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from genaid_server.image.core.engine_state import (
    Died,
    Ended,
    LeaseChanged,
    LeaseGranted,
    ProspectCame,
    Ready,
    RoomCame,
    TimeUp,
)
from genaid_server.image.core.lease import ImageSize, Prospect
from genaid_server.image.core.settings import EngineOptions, Settings
from genaid_server.kit.errors import DomainError
from genaid_server.supervision.stop_reason import StopReason
from genaid_server.supervision.supervisor import ServerState
from unit.image.engine_world import BROKEN, CHOICES, MODELS, NO_ROOM, SIZES, World

choices, sizes, models = st.sampled_from(CHOICES), st.sampled_from(SIZES), st.sampled_from(MODELS)
room = st.sampled_from([True, True, False, NO_ROOM])


class EngineMachine(RuleBasedStateMachine):
    """Commands, answers, lives and the time, in any order."""

    @initialize(running=st.booleans())
    def begin(self, running: bool) -> None:
        self.world = World()
        if running:
            self.world.start(CHOICES[1], replace_running=False)
            self.world.settle()

    @rule(choice=choices, replace=st.booleans())
    def start(self, choice: Settings, replace: bool) -> None:
        self.world.start(choice, replace)

    @rule()
    def stop(self) -> None:
        self.world.stop()

    @precondition(lambda self: self.world.users == 0)
    @rule()
    def use(self) -> None:
        self.world.use()

    @precondition(lambda self: self.world.users > 0)
    @rule()
    def rest(self) -> None:
        self.world.rest()

    @rule(size=sizes, model=st.one_of(st.none(), models))
    def load(self, size: ImageSize, model: object) -> None:
        self.world.load(size, model)  # type: ignore[arg-type]

    @precondition(lambda self: self.world.loads)
    @rule(which=st.integers(0, 5))
    def leave(self, which: int) -> None:
        loads = [ticket for ticket in self.world.loads if ticket not in self.world.gone]
        if loads:
            self.world.leave(loads[which % len(loads)])

    @precondition(lambda self: self.world.process is not None and self.world.process.ready)
    @rule()
    def stick(self) -> None:
        self.world.stick(self.world.state.lives)

    @precondition(lambda self: self.world.prospects)
    @rule(answer=room, model=models)
    def prospect(self, answer: bool | DomainError, model: object) -> None:
        self.world.prospect(answer, model)  # type: ignore[arg-type]

    @precondition(lambda self: self.world.models)
    @rule(answer=st.one_of(models, st.none(), st.just(NO_ROOM)))
    def model(self, answer: object) -> None:
        self.world.model(answer)  # type: ignore[arg-type]

    @precondition(lambda self: self.world.rooms)
    @rule(answer=room)
    def make_room(self, answer: bool | DomainError) -> None:
        self.world.room(answer)

    @precondition(lambda self: self.world.process is not None)
    @rule(model=models)
    def go_on(self, model: object) -> None:
        self.world.go_on(model)  # type: ignore[arg-type]

    @precondition(lambda self: self.world.process is not None and not self.world.process.told_to_end)
    @rule(error=st.sampled_from([BROKEN, NO_ROOM]))
    def end(self, error: DomainError) -> None:
        self.world.end(error)

    @precondition(lambda self: self.world.process is not None)
    @rule()
    def die(self) -> None:
        self.world.die()

    @precondition(lambda self: self.world.process is not None)
    @rule(leave_after=st.sampled_from([None, 0.0, 5.0]))
    def want_back(self, leave_after: float | None) -> None:
        self.world.want_back(leave_after)

    @precondition(lambda self: self.world.timer is not None)
    @rule()
    def time_passes(self) -> None:
        self.world.time_passes()
        assert self.world.process is not None
        assert self.world.process.told_to_end

    @rule(number=st.integers(0, 3))
    def what_is_over_says_something(self, number: int) -> None:
        life = self.world.state.lives - 1 - number
        before = self.world.state
        for event in (
            LeaseGranted(life, MODELS[1], EngineOptions(vae_tiling=True)),
            LeaseChanged(life, 0.0),
            Ready(life, 9.0),
            Died(life),
            Ended(life, BROKEN),
            RoomCame(10**6, life, answer=True),
            ProspectCame(10**6, Prospect(MODELS[0], has_room=True)),
            TimeUp(-1.0),
        ):
            assert self.world.happen(event) == ()
        assert self.world.state == before

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.settle()
        assert not self.world.waiting, "somebody waits for ever"
        self.world.start(CHOICES[1], replace_running=True)
        self.world.stop()
        self.world.settle()
        assert not self.world.waiting, "somebody waits for ever"
        assert self.world.process is None
        assert self.world.state.stop_reason is StopReason.STOPPED
        assert self.world.state.shown.state is ServerState.STOPPED


TestTenThousandEvents = EngineMachine.TestCase
TestTenThousandEvents.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- what is rare in a random world


def running(choice: Settings = CHOICES[1]) -> World:
    """A world with an engine that runs and is idle."""
    world = World()
    world.start(choice, replace_running=False)
    world.settle()
    assert world.state.shown.state is ServerState.RUNNING
    return world


def test_a_stop_wins_over_a_start_that_still_asks() -> None:
    world = World()
    world.start(CHOICES[1], replace_running=False)
    world.stop()
    assert not world.waiting
    world.prospect(answer=True, model=MODELS[0])
    assert (world.process, world.state.accepting) == (None, False)


def test_a_start_wins_over_a_stop_that_still_waits() -> None:
    world = running()
    world.stop()
    world.start(CHOICES[2], replace_running=False)
    world.settle()
    assert not world.waiting
    assert world.process is not None
    assert (world.process.settings, world.process.ready) == (CHOICES[2], True)


def test_a_later_start_wins_over_an_earlier_one_that_still_asks() -> None:
    world = World()
    world.start(CHOICES[1], replace_running=True)
    world.start(CHOICES[2], replace_running=True)
    world.prospects.reverse()
    world.prospect(answer=True, model=MODELS[1])
    world.prospect(answer=True, model=MODELS[0])
    world.settle()
    assert world.process is not None
    assert world.process.settings == CHOICES[2]
    assert world.state.settings == CHOICES[2]


def test_a_start_of_the_default_does_not_interrupt_an_image_because_the_default_is_another_now() -> None:
    world = running(CHOICES[0])
    world.use()
    world.start(CHOICES[0], replace_running=True)
    world.prospect(answer=True, model=MODELS[1])
    assert world.process is not None
    assert not world.process.told_to_end
    world.rest()
    world.start(CHOICES[0], replace_running=False)
    world.prospect(answer=True, model=MODELS[1])
    assert world.process.told_to_end


def test_who_waits_for_a_larger_lease_of_a_life_that_dies_gets_the_next_life() -> None:
    world = running()
    world.use()
    world.load(SIZES[2], MODELS[0])
    assert len(world.rooms) == 1
    world.die()
    world.room(answer=True)
    assert world.waiting
    world.end(BROKEN)
    world.settle()
    assert not world.waiting
    assert world.state.lives == 2


def test_a_load_that_was_left_ends_its_life_unless_a_start_waits_for_it() -> None:
    for started in (False, True):
        world = World()
        world.load(SIZES[0], MODELS[0])
        if started:
            world.start(CHOICES[0], replace_running=False)
            world.prospect(answer=True, model=MODELS[0])
        world.leave(world.loads[0])
        assert world.process is not None
        assert world.process.told_to_end is not started
        world.settle()
        assert not world.waiting


@pytest.mark.parametrize(
    ("course", "state", "reason"),
    [
        ("nothing", ServerState.STOPPED, StopReason.NEVER_STARTED),
        ("stop", ServerState.STOPPED, StopReason.STOPPED),
        ("idle", ServerState.STOPPED, StopReason.UNLOADED_WHEN_IDLE),
        ("reclaimed", ServerState.STOPPED, StopReason.OFFLOADED),
        ("refused", ServerState.STOPPED, StopReason.REFUSED_FOR_MEMORY),
        ("no room", ServerState.STOPPED, StopReason.NEVER_STARTED),
        ("no room, after a stop", ServerState.STOPPED, StopReason.UNLOADED_WHEN_IDLE),
        ("crash", ServerState.CRASHED, StopReason.CRASHED),
        ("crash, then stop", ServerState.STOPPED, StopReason.STOPPED),
        ("manager away", ServerState.STOPPED, StopReason.UNLOADED_WHEN_IDLE),
    ],
)
def test_why_it_does_not_run_is_known(course: str, state: ServerState, reason: StopReason) -> None:
    world = World() if course in ("nothing", "refused", "no room") else running()
    match course:
        case "stop":
            world.stop()
        case "idle":
            world.time_passes()
        case "reclaimed":
            world.want_back(0.0)
            world.time_passes()
        case "refused":
            world.load(SIZES[0], MODELS[0])
            world.end(NO_ROOM)
            assert world.state.shown.last_error == NO_ROOM.message
        case "no room" | "no room, after a stop":
            if course != "no room":
                world.stop()
                world.settle()
            world.start(CHOICES[1], replace_running=False)
            world.prospect(answer=False, model=MODELS[0])
        case "manager away":
            world.time_passes()
            world.settle()
            world.load(SIZES[0], MODELS[0])
            world.end(BROKEN)
        case "crash" | "crash, then stop":
            world.die()
            world.end(BROKEN)
            if course != "crash":
                world.stop()
        case _:
            pass
    world.settle()
    assert not world.waiting
    assert (world.state.shown.state, world.state.stop_reason) == (state, reason)
