"""The world in the hands of hypothesis."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from world.engines import Kind, Manners
from world.world import PAINTERS, TALKERS, World

places = st.integers(0, 5)
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


class WorldMachine(RuleBasedStateMachine):
    """Any command at any await."""

    world: World

    @initialize(seed=st.integers(0, 2**16), scarce=st.sampled_from([True, True, True, False]))
    def open(self, seed: int, scarce: bool) -> None:
        self.world = World(seed, scarce=scarce)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()

    # --- time; N rounds between two commands

    @rule(rounds=st.integers(1, 40))
    def turn(self, rounds: int) -> None:
        self.world.turn(rounds)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 3.0, 30.0]))
    def advance(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def come_to_rest(self) -> None:
        self.world.come_to_rest()

    # --- the LLM engine

    @rule(model=st.sampled_from(TALKERS), context=st.sampled_from([256, 256, 128]), replace=st.booleans())
    def start(self, model: str, context: int, replace: bool) -> None:
        self.world.start(model, context, replace_running=replace)

    @rule()
    def replace(self) -> None:
        self.world.start("talker", 128, replace_running=True)

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @rule()
    def stop(self) -> None:
        self.world.stop()

    @rule()
    def forget(self) -> None:
        self.world.forget()

    # --- images

    @rule(slow=st.booleans())
    def generate(self, slow: bool) -> None:
        self.world.generate(slow=slow)

    @precondition(lambda self: self.world.streams)
    @rule(place=places)
    def read(self, place: int) -> None:
        self.world.read(place)

    @rule()
    def create(self) -> None:
        self.world.create()

    @rule(place=places)
    def cancel(self, place: int) -> None:
        self.world.cancel(place)

    @rule(place=places)
    def forget_images(self, place: int) -> None:
        self.world.forget_images(place)

    @rule(model=st.sampled_from(PAINTERS))
    def start_engine(self, model: str) -> None:
        self.world.start_engine(model)

    @rule()
    def stop_engine(self) -> None:
        self.world.stop_engine()

    # --- models and downloads

    @rule(model=st.sampled_from(TALKERS + PAINTERS), variant=places)
    def import_model(self, model: str, variant: int) -> None:
        self.world.import_model(model, variant)

    @rule(model=st.sampled_from(TALKERS + PAINTERS))
    def delete_model(self, model: str) -> None:
        self.world.delete_model(model)

    @rule(place=places)
    def download(self, place: int) -> None:
        self.world.download(place)

    @rule(place=places)
    def cancel_download(self, place: int) -> None:
        self.world.cancel_download(place)

    @rule(place=places, after=st.sampled_from([0, 100, 300]))
    def source_holds(self, place: int, after: int) -> None:
        self.world.source_holds(place, after)

    # --- misfortune

    @precondition(lambda self: self.world.commands.pending)
    @rule(place=places)
    def leave(self, place: int) -> None:
        self.world.leave(place)

    @rule(kind=st.sampled_from(Kind))
    def crash(self, kind: Kind) -> None:
        self.world.crash(kind)

    @rule(kind=st.sampled_from(Kind), manners=MANNERS)
    def next_life(self, kind: Kind, manners: Manners) -> None:
        self.world.next_life(kind, manners)

    @rule(place=places)
    def leave_partial_folder(self, place: int) -> None:
        self.world.leave_partial_folder(place)

    @rule(killed=st.booleans(), port_taken=st.booleans())
    def reopen(self, killed: bool, port_taken: bool) -> None:
        self.world.reopen(killed=killed, port_taken=port_taken)
