import math

import pytest

from genaid_server.kit.backoff import Backoff


def test_waits_double_up_to_the_longest() -> None:
    backoff = Backoff(first=0.5, longest=3.0)
    assert [backoff.delay(failures) for failures in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize("failures", [1000, 10**9])
def test_however_often_it_failed_the_wait_is_a_number(failures: int) -> None:
    assert Backoff(0.1, 60.0).delay(failures) == 60.0
    assert math.isfinite(Backoff(0.1, 1e300).delay(failures))


def test_no_first_wait_means_none_at_all() -> None:
    assert Backoff(0.0, 60.0).delay(7) == 0.0
