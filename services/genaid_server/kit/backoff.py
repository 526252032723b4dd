"""How long to wait before something is tried again."""

from dataclasses import dataclass
from typing import Final

_MOST_DOUBLINGS: Final = 60
"""Beyond that no float holds the product."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double from `first` up to `longest`, both in seconds."""

    first: float
    longest: float

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, counted from 1."""
        return min(self.first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), self.longest)
