"""How fast bytes arrive, smoothed over the last seconds."""

from collections import deque
from typing import Final

WINDOW: Final = 5.0
"""Seconds that the speed is an average of."""


class Speedometer:
    """Counts bytes; all times are in seconds, of one clock that never goes back."""

    def __init__(self, now: float) -> None:
        self._count = 0
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def add(self, count: int) -> None:
        """So many bytes have arrived."""
        self._count += count

    def measure(self, now: float) -> float:
        """Bytes a second, lately; to be asked a few times a second. 0 where nothing came for WINDOW seconds."""
        samples = self._samples
        if now > samples[-1][0]:
            samples.append((now, self._count))
        while len(samples) > 2 and samples[1][0] <= now - WINDOW:
            samples.popleft()
        (begin, first), (end, last) = samples[0], samples[-1]
        return (last - first) / (end - begin) if end > begin else 0.0
