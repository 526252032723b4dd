"""The rows of the table, and how several measurements become one."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One promise: `value` must be at most (or at least) `bound`."""

    name: str
    value: float
    unit: str
    bound: float
    at_least: bool = False

    @property
    def target(self) -> str:
        """The promise in words."""
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def as_json(self) -> dict[str, object]:
        """The row as it is written to results.json."""
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "target": self.target,
            "holds": self.holds,
        }


def ratio(ours: Callable[[], float], theirs: Callable[[], float], times: int) -> float:
    """The median of ours divided by the median of theirs, measured in turn so that both see the same machine."""
    our_times: list[float] = []
    their_times: list[float] = []
    for turn in range(times):
        pair = [(ours, our_times), (theirs, their_times)]
        for measure, results in pair if turn % 2 else reversed(pair):
            results.append(measure())
    return statistics.median(our_times) / statistics.median(their_times)


def paired(ours: Callable[[], float], theirs: Callable[[], float], times: int) -> float:
    """The median of the ratios of neighbours: each pair sees the same machine, however that changes meanwhile."""
    ratios = []
    for turn in range(times):
        if turn % 2:
            our_value, their_value = ours(), theirs()
        else:
            their_value, our_value = theirs(), ours()
        ratios.append(our_value / their_value)
    return statistics.median(ratios)
