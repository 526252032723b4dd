"""What the LLM engine does next: its owner's step in a world of commands, effects and processes, all of it pure."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaid_server.kit.errors import DomainError, InsufficientResourcesError, ServerBusyError, ServerError
from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.llm import events as on
from genaid_server.resource.core.llm.config import LlmEngineConfig, LlmRequest, Serving
from genaid_server.resource.core.llm.deciding import Decision
from genaid_server.resource.core.llm.events import Effect, Event, LlmStage, LlmState
from genaid_server.resource.core.llm.saved import SavedLlm
from genaid_server.resource.core.llm.slots import EngineEndpoint
from genaid_server.resource.core.llm.transitions import outdated, step

TOO_LITTLE, BROKEN = InsufficientResourcesError("too little"), ServerError("could not be loaded")
A, B = LlmRequest("a", serving=Serving(port=0)), LlmRequest("b", serving=Serving(port=0))


def decided(request: LlmRequest) -> Decision:
    config = LlmEngineConfig(
        model_id=request.model_id,
        model_path=Path(f"{request.model_id}.gguf"),
        size_bytes=1,
        llm=LlmOptions(threads=1, gpu_layers=0, context_size=256),
        serving=request.serving,
        separates_reasoning=False,
        slot_save_path=Path("slots"),
    )
    return Decision(request, config, MappingProxyType({}), "stamp")


class World:
    """The owner, what it has begun, the one process that there can be, and the memory."""

    def __init__(self) -> None:
        self.state = LlmState()
        self.pending: list[Effect] = []
        self.late: list[Effect] = []  # of directions that are over
        self.caches: set[str] = set()
        self.revivable = 0  # a life that crashed, and that the supervisor may begin again by itself
        self.disk: SavedLlm | None = None
        self.life = 0  # the launch whose process serves
        self.waits: dict[int, str] = {}
        self.answers: dict[int, DomainError | None] = {}
        self.asked = 0
        self.reclaimed = False
        self.now = 0.0
        self.said: list[str] = []

    @property
    def stage(self) -> LlmStage:
        return self.state.stage

    def at(self, stage: LlmStage) -> bool:
        return self.state.stage is stage

    # --- the shell

    def tell(self, event: Event) -> None:
        self.now += 1
        self.state, effects = step(self.state, event, self.now)
        self.late += [each for each in self.pending if outdated(each, self.state)]
        self.pending = [each for each in self.pending if not outdated(each, self.state)]
        for effect in effects:
            self._act(effect)
        assert self.disk == self.state.saved, "what is to come back is on disk, and what is on disk is to come back"
        assert self.life in (0, self.state.launch), "a life runs that nobody wants"
        if self.state.stage is LlmStage.RUNNING and not self.state.crashed:
            assert self.life == self.state.launch, "it is taken to serve, and does not"

    def _act(self, effect: Effect) -> None:
        match effect:
            case on.Keep(saved):
                self.disk = saved
            case on.TellWaiter(waiter, error):
                assert waiter in self.waits, "told twice, or nobody"
                del self.waits[waiter]
                self.answers[waiter] = error
            case on.Say(_, message):
                self.said.append(message)
            case on.DiscardCaches(model_id):
                self.caches = self.caches - {model_id} if model_id else set()
            case on.Launch():
                self.life = self.revivable = 0  # an earlier one ends first
                self.reclaimed = False
                self.pending.append(effect)
            case on.Halt():
                self.life = self.revivable = 0
                self.reclaimed = False
                self.pending.append(effect)
            case _:
                self.pending.append(effect)

    # --- commands

    def command(self, make: Callable[[int], Event], kind: str) -> int:
        self.asked += 1
        self.waits[self.asked] = kind
        self.tell(make(self.asked))
        return self.asked

    def start(self, request: LlmRequest = A, *, replace_running: bool = False) -> int:
        return self.command(lambda waiter: on.Start(request, replace_running, waiter), "start")

    def restart(self) -> int:
        return self.command(on.Restart, "restart")

    def stop(self) -> int:
        return self.command(on.Stop, "stop")

    def forget(self) -> int:
        return self.command(lambda waiter: on.Stop(waiter, offloaded_only=True), "forget")

    # --- what effects come to

    def finish(self, effect: Effect, *, well: bool = True) -> None:
        """An effect comes to its end."""
        self.pending.remove(effect)
        match effect:
            case on.Launch(number) if well:
                self.tell(on.Granted(number))
                self.life = number
            case on.SaveCaches(_, _, model_id) if well:
                self.caches.add(model_id)
        self.tell(outcome(effect, well=well))

    def finish_late(self, effect: Effect, *, well: bool = True) -> None:
        """What comes back for a direction that is over is not followed."""
        self.late.remove(effect)
        before = self.state
        self.tell(outcome(effect, well=well))
        assert self.state == before

    def reclaim(self) -> None:
        if self.state.launch and not self.reclaimed:
            self.reclaimed = True
            self.tell(on.Reclaimed(self.state.launch, "an image needs it"))

    def let_stay(self) -> None:
        if self.reclaimed:
            self.reclaimed = False
            self.tell(on.LetStay(self.state.launch))

    def crash(self) -> None:
        if self.life:
            life, self.life, self.reclaimed = self.life, 0, False
            self.revivable = life
            self.tell(on.Crashed(life, "it crashed"))

    def restarted_by_itself(self) -> None:
        """What the supervisor does with a life that has crashed."""
        if self.revivable:
            self.life, self.revivable = self.revivable, 0
            self.tell(on.Serves(self.life, EngineEndpoint("127.0.0.1", 10)))

    def settle(self) -> None:
        """Everything that is under way ends well."""
        self.let_stay()
        for _ in range(100):
            if not self.pending:
                break
            self.finish(self.pending[0])
        assert self.pending == [], "it never comes to rest"

    def check_rest(self) -> None:
        assert self.waits == {}, f"somebody waits for ever: {self.waits}"
        assert self.caches == set(), "conversations are left on disk"
        if self.state.stage is LlmStage.DOWN:
            assert (self.life, self.disk) == (0, None)
        else:
            assert self.state.stage is LlmStage.RUNNING
            assert self.state.crashed or self.life == self.state.launch
            assert self.disk is not None
            assert (self.disk.offloaded_at, self.disk.slots) == (None, {})


def outcome(effect: Effect, *, well: bool) -> Event:
    match effect:
        case on.Decide(number, request, _):
            return on.Decided(number, decided(request)) if well else on.Refused(number, TOO_LITTLE)
        case on.Launch(number):
            return on.Serves(number, EngineEndpoint("127.0.0.1", 9)) if well else on.Failed(number, BROKEN)
        case on.Halt(number):
            return on.Halted(number)
        case on.SaveCaches(plan):
            return on.CachesSaved(plan, {0: 5} if well else {})
        case on.RestoreCaches(plan):
            return on.CachesRestored(plan)
        case on.Wait(plan):
            return on.Due(plan)
        case _:
            raise AssertionError(effect)


def running(request: LlmRequest = A) -> World:
    world = World()
    world.start(request)
    world.settle()
    assert world.answers == {1: None}
    assert world.life == world.state.launch
    return world


# --- commands against commands


def test_a_stop_wins_over_a_start_at_each_of_its_steps() -> None:
    for steps in range(3):
        world = World()
        start = world.start()
        for _ in range(steps):
            world.finish(world.pending[0])
        stop = world.stop()
        world.settle()
        world.check_rest()
        assert (world.stage, world.answers[stop]) == (LlmStage.DOWN, None)
        assert steps == 2 or isinstance(world.answers[start], ServerError)


@pytest.mark.parametrize("again", ["restart", "replace"])
def test_a_stop_wins_over_what_begins_again(again: str) -> None:
    for steps in range(3):
        world = running()
        later = world.restart() if again == "restart" else world.start(B, replace_running=True)
        for _ in range(min(steps, len(world.pending))):
            world.finish(world.pending[0])
        world.stop()
        world.settle()
        world.check_rest()
        assert world.at(LlmStage.DOWN)
        assert steps == 2 or isinstance(world.answers[later], ServerError)


def test_a_start_after_a_stop_wins_over_it() -> None:
    world = running()
    stop = world.stop()
    start = world.start(B)
    world.settle()
    world.check_rest()
    assert (world.answers[stop], world.answers[start]) == (None, None)
    assert world.disk is not None
    assert world.disk.request == B


def test_what_runs_goes_on_until_the_way_is_clear_for_another() -> None:
    world = running()
    other = world.start(B, replace_running=True)
    assert (world.stage, world.life) == (LlmStage.RUNNING, world.state.launch)
    world.finish(world.pending[0], well=False)
    assert isinstance(world.answers[other], InsufficientResourcesError)
    assert world.disk is not None
    assert (world.disk.request, world.state.wanted) == (A, A)


def test_another_start_is_refused_unless_it_replaces() -> None:
    world = running()
    assert isinstance(world.answers[world.start(B)], ServerBusyError)
    pending = World()
    pending.start(A)
    assert isinstance(pending.answers[pending.start(B)], ServerBusyError)


def test_equal_starts_are_one() -> None:
    world = World()
    first, second = world.start(), world.start()
    assert len(world.pending) == 1
    world.settle()
    assert (world.answers[first], world.answers[second], world.answers[world.start()]) == (None, None, None)


def test_a_restart_before_a_first_start_says_what_to_do() -> None:
    world = World()
    error = world.answers[world.restart()]
    assert error is not None
    assert "genaid llm start" in error.message


# --- out of memory, and back


def test_it_makes_room_and_comes_back_as_it_was() -> None:
    world = running()
    port = world.state.last_port
    world.reclaim()
    assert (world.stage, world.state.offloaded) == (LlmStage.LEAVING, True)
    world.finish(world.pending[0])
    assert world.disk is not None
    assert (world.disk.slots, world.disk.reason) == ({0: 5}, "an image needs it")
    world.finish(world.pending[0])
    assert world.at(LlmStage.AWAY)
    launch = world.pending[0]
    assert isinstance(launch, on.Launch)
    assert (launch.background, launch.port) == (True, port)
    world.finish(launch)
    assert world.at(LlmStage.RESTORING)
    world.settle()
    world.check_rest()
    assert "it is back" in world.said


def test_it_stays_where_no_room_is_needed_any_more() -> None:
    world = running()
    life = world.life
    world.reclaim()
    world.let_stay()
    world.settle()
    world.check_rest()
    assert (world.life, world.state.stage) == (life, LlmStage.RUNNING)


def test_whoever_waits_for_it_is_told_before_it_leaves() -> None:
    world = World()
    start = world.start()
    world.finish(world.pending[0])
    world.reclaim()
    assert start in world.waits
    world.finish(world.pending[0])
    assert (world.answers[start], world.state.stage) == (None, LlmStage.LEAVING)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_restart_wins_over_an_offload_at_each_of_its_steps(steps: int) -> None:
    world = running()
    world.reclaim()
    for _ in range(steps):
        world.finish(world.pending[0])
    restart = world.restart()
    decide = next(each for each in world.pending if isinstance(each, on.Decide))
    world.finish(decide)
    assert (world.state.offloaded, world.caches) == (False, set())
    world.settle()
    world.check_rest()
    assert (world.answers[restart], world.state.stage) == (None, LlmStage.RUNNING)


def test_the_end_of_an_earlier_process_is_not_that_of_the_one_that_leaves() -> None:
    world = running()
    world.stop()
    first = world.pending[0]
    world.start()
    while not world.at(LlmStage.RUNNING):
        world.finish(world.pending[-1])
    world.reclaim()
    world.finish(world.pending[-1])
    assert world.at(LlmStage.GOING)
    world.finish(first)
    assert world.at(LlmStage.GOING)
    world.settle()
    world.check_rest()


def test_one_that_comes_back_makes_way_for_another_image() -> None:
    world = running()
    world.reclaim()
    while not world.at(LlmStage.AWAY):
        world.finish(world.pending[0])
    launch = world.state.launch
    world.tell(on.Granted(launch))
    world.reclaim()
    assert (world.stage, world.life) == (LlmStage.GOING, 0)
    world.settle()
    world.check_rest()
    assert world.at(LlmStage.RUNNING)


def test_a_start_does_not_wait_in_the_background() -> None:
    world = running()
    world.reclaim()
    while not world.at(LlmStage.AWAY):
        world.finish(world.pending[0])
    start = world.start()
    launch = world.pending[-1]
    assert isinstance(launch, on.Launch)
    assert not launch.background
    world.settle()
    assert world.answers[start] is None


def test_whoever_starts_one_that_comes_back_is_told_before_it_makes_way() -> None:
    world = running()
    world.reclaim()
    while not world.at(LlmStage.AWAY):
        world.finish(world.pending[0])
    start = world.start()
    world.reclaim()
    world.settle()
    assert world.answers[start] is None


def test_what_can_not_be_brought_back_is_tried_again_later_and_later() -> None:
    world = running()
    world.reclaim()
    while not world.at(LlmStage.AWAY):
        world.finish(world.pending[0])
    waits = []
    for _ in range(8):
        world.finish(world.pending[0], well=False)
        wait = world.pending[0]
        assert isinstance(wait, on.Wait)
        waits.append(wait.seconds)
        world.finish(wait)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    world.settle()
    world.check_rest()


def test_giving_up_on_it_is_a_stop_only_where_it_is_offloaded() -> None:
    world = running()
    world.forget()
    assert world.at(LlmStage.RUNNING)
    world.reclaim()
    world.forget()
    world.settle()
    world.check_rest()
    assert world.at(LlmStage.DOWN)


# --- crashes


def test_one_that_dies_while_its_requests_finish_has_left() -> None:
    world = running()
    world.reclaim()
    world.crash()
    assert world.at(LlmStage.AWAY)
    world.settle()
    world.check_rest()


def test_one_that_dies_while_its_caches_are_read_is_brought_back() -> None:
    world = running()
    world.reclaim()
    while not world.at(LlmStage.RESTORING):
        world.finish(world.pending[0])
    world.crash()
    assert world.state.failure is not None
    world.restarted_by_itself()  # which it must not be: that is for its owner to say
    assert world.life == 0
    world.settle()
    world.check_rest()
    assert world.at(LlmStage.RUNNING)


def test_a_life_that_the_supervisor_began_again_is_known_where_it_serves_now() -> None:
    world = running()
    world.crash()
    assert world.state.wanted is None
    world.restarted_by_itself()
    assert world.state.endpoint == EngineEndpoint("127.0.0.1", 10)
    world.check_rest()


def test_one_that_is_loaded_again_after_a_crash_leaves_for_who_asked_meanwhile() -> None:
    world = running()
    world.crash()
    world.tell(on.Reclaimed(world.state.launch, "an image needs it"))
    world.restarted_by_itself()
    assert world.at(LlmStage.LEAVING)
    world.settle()
    world.check_rest()


def test_an_equal_start_is_joined_where_the_life_came_back_by_itself() -> None:
    world = running()
    world.crash()
    start = world.start()
    world.restarted_by_itself()
    world.finish(world.pending[0])
    assert world.answers[start] is None
    world.settle()
    world.check_rest()


def test_a_start_that_replaces_and_is_joined_still_replaces() -> None:
    world = running()
    world.crash()
    world.start(B)
    second = world.start(B, replace_running=True)
    world.restarted_by_itself()
    world.settle()
    world.check_rest()
    assert world.answers[second] is None
    assert world.state.wanted == B


# --- the service begins and ends


def test_what_ran_before_is_brought_back() -> None:
    world = World()
    saved = SavedLlm(A, decided(A).config.llm, {}, decided(A).config.amount, 9, slots={0: 3}, offloaded_at=5.0)
    world.tell(on.Recover(saved, decided(A), 0.0, None))
    assert world.state.offloaded
    world.settle()
    world.check_rest()
    assert world.at(LlmStage.RUNNING)


@pytest.mark.parametrize("model", [A, B])
def test_what_is_configured_takes_the_place_of_another_that_ran_before(model: LlmRequest) -> None:
    world = World()
    saved = SavedLlm(A, decided(A).config.llm, {}, decided(A).config.amount, 9)
    world.tell(on.Recover(saved, decided(A), 0.0, model))
    world.settle()
    assert world.state.wanted == model


def test_a_command_comes_before_what_ran_before() -> None:
    world = World()
    world.start(B)
    saved = replace(SavedLlm(A, decided(A).config.llm, {}, decided(A).config.amount, 9))
    world.tell(on.Recover(saved, decided(A), 0.0, None))
    world.settle()
    assert world.state.wanted == B


def test_whoever_waits_is_told_when_the_service_ends() -> None:
    world = World()
    start = world.start()
    world.tell(on.Close())
    assert isinstance(world.answers[start], ServerError)
    assert isinstance(world.answers[world.start()], ServerError)
    stop = world.stop()
    world.tell(on.Halted(world.state.newest))
    assert world.answers[stop] is None


# --- anything


def anything(choose: Callable[[int], int], moves: int) -> None:
    world = World()
    for _ in range(moves):
        act(world, choose)
    last = choose(4)
    if last == 0:
        world.stop()
    world.settle()
    world.check_rest()
    if last == 0:
        assert world.at(LlmStage.DOWN)


def act(world: World, choose: Callable[[int], int]) -> None:
    moves: list[Callable[[], object]] = [
        lambda: world.start(A),
        lambda: world.start(A, replace_running=True),
        lambda: world.start(B, replace_running=True),
        world.restart,
        world.stop,
        world.forget,
        world.reclaim,
        world.reclaim,
        world.let_stay,
        world.crash,
        world.restarted_by_itself,
        lambda: leave(world, choose),
    ]
    for effect in world.late:
        moves += [partial(world.finish_late, effect), partial(world.finish_late, effect, well=False)]
    for effect in world.pending:
        moves += [*[partial(world.finish, effect)] * 3, partial(world.finish, effect, well=False)]
    moves[choose(len(moves))]()


def leave(world: World, choose: Callable[[int], int]) -> None:
    if world.waits:
        waiter = sorted(world.waits)[choose(len(world.waits))]
        del world.waits[waiter]
        world.tell(on.Left(waiter))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=60))
def test_whatever_happens_it_comes_to_rest_where_the_last_command_wants_it(choices: list[int]) -> None:
    rest = iter(choices)
    anything(lambda number: next(rest, 0) % number, len(choices) // 2)


@pytest.mark.parametrize("seed", range(20))
def test_ten_thousand_events(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(10):
        anything(dice.randrange, 50)
