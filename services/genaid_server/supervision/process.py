"""What the processes of all engines have in common: their environment, and how their end is told."""

from collections.abc import Iterable, Mapping
from typing import Final

MAX_REASON: Final = 4000  # characters
SPINS: Final = "1000"
"""How often a waiting thread looks again before it sleeps: GNU OpenMP, which the engines' wheels for Linux load. The
wheels for Windows and macOS have nothing of the kind to be set."""


def engine_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: what the user has set, and what suits an engine that shares the machine.

    Threads that wait for each other soon sleep instead of spinning on: as soon as another program wants a core, and be
    it the other engine, spinning ones steal it from the one that they wait for (decision 0009). Whoever has said how
    threads wait is obeyed. An abort must not start a debugger for a stack trace, as ggml does.
    """
    waiting = {} if "OMP_WAIT_POLICY" in base else {"GOMP_SPINCOUNT": SPINS}
    return {**waiting, "GGML_NO_BACKTRACE": "1", "PYTHONUNBUFFERED": "1", **base}


def with_last_lines(end: str, lines: Iterable[str]) -> str:
    """Why a process ended, with the last lines of its log; at most MAX_REASON characters."""
    log = "\n".join(lines)
    return f"{end}. Last lines of its log:\n{log}"[:MAX_REASON] if log else end
