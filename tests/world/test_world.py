"""Commands against commands: any of them, in any order and at any await, over the real owners and played engines."""

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from world.world_machine import WorldMachine

# What fails here fails in the long run as well, which looks for the shortest way to it.
SHORT = settings(
    phases=(Phase.explicit, Phase.generate),
    deadline=None,
    max_examples=120,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(SHORT, max_examples=70, derandomize=False, phases=(Phase.explicit, Phase.generate, Phase.shrink))
"""An example has about 36 steps."""


def test_a_short_world() -> None:
    run_state_machine_as_test(WorldMachine, settings=SHORT)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_ten_thousand_steps(number: int) -> None:
    run_state_machine_as_test(seed(number)(type("Seeded", (WorldMachine,), {})), settings=LONG)
