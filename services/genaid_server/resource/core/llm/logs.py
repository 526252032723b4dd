"""What llama.cpp says of its lines: how grave they are, and what they mean for a start that failed."""

import re
from typing import Final

from genaid_server.supervision.logbook import Level, guess_level

# `0.00.012.345 W srv load_model: ...`: minutes, seconds, milli- and microseconds since the start, then the level.
_PREFIX: Final = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} ([DIWE]) ")
_LEVELS: Final = {"D": Level.DEBUG, "I": Level.INFO, "W": Level.WARN, "E": Level.ERROR}
_PORT_TAKEN: Final = re.compile(r"couldn't bind|address already in use", re.IGNORECASE)


def level_of(line: str) -> Level:
    """The level that the line's prefix says; of a line without one, told from its words."""
    found = _PREFIX.match(line)
    return _LEVELS[found[1]] if found else guess_level(line)


def port_taken(lines: list[str]) -> bool:
    """Whether the engine complains that something else listens on its port."""
    return any(_PORT_TAKEN.search(line) for line in lines)


def cause_first(lines: list[str]) -> list[str]:
    """The lines that say what went wrong before the others: a cause is often followed by a page of consequences."""
    causes = [line for line in lines if level_of(line) is Level.ERROR]
    return [*causes, *(line for line in lines if line not in causes)]
