"""The queue of an owner of state."""

import pytest

from genaid_server.kit.event_queue import EventQueue


def test_an_event_of_a_turn_comes_after_that_turn() -> None:
    told: list[str] = []

    def take(event: int) -> None:
        told.append(f"begin {event}")
        if event < 3:
            queue.post(event + 1)
        told.append(f"end {event}")

    queue: EventQueue[int] = EventQueue(take, lambda: told.append("emptied"))
    queue.post(1)
    assert told == ["begin 1", "end 1", "begin 2", "end 2", "begin 3", "end 3", "emptied"]


def test_a_turn_that_fails_does_not_stop_the_next() -> None:
    taken: list[int] = []

    def take(event: int) -> None:
        if event == 1:
            raise ValueError("a mistake in a step")
        taken.append(event)

    queue: EventQueue[int] = EventQueue(take, lambda: None)
    with pytest.raises(ValueError, match="a mistake"):
        queue.post(1)
    queue.post(2)
    assert taken == [2]
