"""Sizes, speeds and times as people read them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.cli.views.units import UNITS, format_bytes, format_seconds, format_speed


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (1024**2, "1.00 MiB"),
        (4368769024, "4.07 GiB"),  # the documented example
        (1024**3 - 1, "1.00 GiB"),
        (1024**4, "1.00 TiB"),
        (1024**6, "1024.00 PiB"),
        (0.4, "0 B"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 2**60))
def test_a_size_is_never_far_from_the_truth(count: int) -> None:
    match = re.fullmatch(r"(\d{1,4}(?:\.\d\d)?) (B|KiB|MiB|GiB|TiB|PiB)", format_bytes(count))
    assert match is not None
    number, unit = float(match[1]), match[2]
    assert number < 1024 or unit == "PiB"
    step = 1024 ** ("B", *UNITS).index(unit)
    assert abs(number * step - count) <= step * 0.006


def test_speeds() -> None:
    assert format_speed(89_233_818.6) == "85.10 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (125, "2m 05s"),
        (3599.6, "1h 00m"),
        (11_240, "3h 07m"),
        (86_400, "1d 00h"),
        (183_700, "2d 03h"),
        (-1, "0s"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
