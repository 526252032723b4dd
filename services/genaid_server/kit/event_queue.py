"""The queue of an owner of state: its events one after the other, each whole before the next."""

from collections import deque
from collections.abc import Callable


class EventQueue[E]:
    """Hands events to `take`, which awaits nothing. An event that is posted while another is taken comes after it.

    `emptied` is called whenever all events have been taken.
    """

    def __init__(self, take: Callable[[E], None], emptied: Callable[[], None]) -> None:
        self._take, self._emptied = take, emptied
        self._events: deque[E] = deque()
        self._taking = False

    def post(self, event: E) -> None:
        """Have an event taken: now, or after those that came before it."""
        self._events.append(event)
        if self._taking:
            return
        self._taking = True
        try:
            while self._events:
                self._take(self._events.popleft())
        finally:
            self._taking = False
        self._emptied()
