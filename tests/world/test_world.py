"""Commands against commands: any of them, in any order and at any await, over the real owners and played engines."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from world.world_machine import WorldMachine

STEPS = 50
SHORT = settings(
    deadline=None,
    max_examples=60,
    stateful_step_count=STEPS,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(SHORT, max_examples=200, derandomize=False, database=None)


def test_a_short_world() -> None:
    run_state_machine_as_test(WorldMachine, settings=SHORT)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ten_thousand_steps() -> None:
    run_state_machine_as_test(WorldMachine, settings=LONG)


PHASES = (Phase.explicit, Phase.generate)
