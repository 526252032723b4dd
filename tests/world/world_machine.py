"""The world in the hands of hypothesis."""

from collections.abc import Callable
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from world.engines import Kind, Manners
from world.world import PAINTERS, TALKERS, World

places = st.integers(0, 5)
newest = st.sampled_from([0, 0, 0, 1, 2])
pauses = st.one_of(st.integers(0, 12), st.integers(0, 40), st.sampled_from([0.01, 0.1, 0.3, 1.0, 4.0, 10.0]))
"""Between two commands: rounds of the event loop, or seconds."""
MANNERS = st.sampled_from(
    [
        Manners(loading=None),
        Manners(loading=3.0),
        Manners(loading=0.0),
        Manners(fails=True),
        Manners(stubborn=True),
        Manners(loading=None, stubborn=True),
        Manners(drawing=None),
        Manners(drawing=20.0),
    ]
)


def command(**arguments: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule, after which a pause is made that hypothesis chooses."""

    def decorated(act: Callable[..., None]) -> Callable[..., None]:
        def with_pause(self: "WorldMachine", pause: int | float, **chosen: Any) -> None:
            act(self, **chosen)
            self.world.pause(pause)

        with_pause.__name__ = act.__name__
        make_rule: Callable[..., Any] = rule
        return cast("Callable[..., None]", make_rule(pause=pauses, **arguments)(with_pause))

    return decorated


class WorldMachine(RuleBasedStateMachine):
    """Any command at any await."""

    world: World

    @initialize(seed=st.integers(0, 2**16), scarce=st.sampled_from([True, True, True, False]))
    def open(self, seed: int, scarce: bool) -> None:
        self.world = World(seed, scarce=scarce)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()

    @rule()
    def come_to_rest(self) -> None:
        self.world.come_to_rest()

    # --- the LLM engine

    @command(model=st.sampled_from(TALKERS), context=st.sampled_from([256, 256, 128]), replace=st.booleans())
    def start(self, model: str, context: int, replace: bool) -> None:
        self.world.start(model, context, replace_running=replace)

    @command()
    def replace(self) -> None:
        self.world.start("talker", 128, replace_running=True)

    @command()
    def restart(self) -> None:
        self.world.restart()

    @command()
    def stop(self) -> None:
        self.world.stop()

    @command()
    def forget(self) -> None:
        self.world.forget()

    # --- images

    @command(slow=st.booleans())
    def generate(self, slow: bool) -> None:
        self.world.generate(slow=slow)

    @precondition(lambda self: self.world.streams)
    @command(place=places)
    def read(self, place: int) -> None:
        self.world.read(place)

    @command()
    def create(self) -> None:
        self.world.create()

    @command(place=places)
    def cancel(self, place: int) -> None:
        self.world.cancel(place)

    @command(place=places)
    def forget_images(self, place: int) -> None:
        self.world.forget_images(place)

    @command(model=st.sampled_from(PAINTERS))
    def start_engine(self, model: str) -> None:
        self.world.start_engine(model)

    @command()
    def stop_engine(self) -> None:
        self.world.stop_engine()

    # --- models and downloads

    @command(model=st.sampled_from(TALKERS + PAINTERS), variant=places)
    def import_model(self, model: str, variant: int) -> None:
        self.world.import_model(model, variant)

    @command(model=st.sampled_from(TALKERS + PAINTERS))
    def delete_model(self, model: str) -> None:
        self.world.delete_model(model)

    @command(place=places)
    def download(self, place: int) -> None:
        self.world.download(place)

    @command(model=st.sampled_from(TALKERS + PAINTERS))
    def download_again(self, model: str) -> None:
        self.world.download_again(model)

    @command(place=newest)
    def cancel_download(self, place: int) -> None:
        self.world.cancel_download(place)

    @command(place=places, after=st.sampled_from([0, 100, 300]))
    def source_holds(self, place: int, after: int) -> None:
        self.world.source_holds(place, after)

    # --- misfortune

    @precondition(lambda self: self.world.commands.pending)
    @command(place=places)
    def leave(self, place: int) -> None:
        self.world.leave(place)

    @command(kind=st.sampled_from(Kind))
    def crash(self, kind: Kind) -> None:
        self.world.crash(kind)

    @command(kind=st.sampled_from(Kind), manners=MANNERS)
    def next_life(self, kind: Kind, manners: Manners) -> None:
        self.world.next_life(kind, manners)

    @command(place=places)
    def leave_partial_folder(self, place: int) -> None:
        self.world.leave_partial_folder(place)

    @command(killed=st.booleans(), port_taken=st.booleans())
    def reopen(self, killed: bool, port_taken: bool) -> None:
        self.world.reopen(killed=killed, port_taken=port_taken)
