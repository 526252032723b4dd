"""How soon `genaid up` answers, and what it takes of the memory."""

import statistics
from collections.abc import Iterator
from pathlib import Path

from bench.rows import Row
from bench.serving import serving

REPEATS = 7


def rows(_folder: Path) -> Iterator[Row]:
    """The table's rows about starting."""
    times, sizes = [], []
    for _ in range(REPEATS):
        with serving() as server:
            times.append(server.started)
            sizes.append(server.process.memory_info().rss / 1e6)
    yield Row("genaid up to /health 200", statistics.median(times), "s", 1.2)
    yield Row("resident memory of genaid up, no engine", statistics.median(sizes), "MB", 100)
