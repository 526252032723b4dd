"""How answers of a language model look: their text as it comes, reasoning dimmed, and at the end how fast it was."""

import sys
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from genaid_server.cli.completions import Part

_KEPT: Final = frozenset("\n\t")
_ESCAPED: Final = frozenset({"Cc", "Cs"})
_TURNS_TEXT: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def escaped(text: str) -> str:
    """Text of a model for a terminal: without what would move the cursor, colour or reorder what is there.

    Unlike `output.printable`, it keeps what natural languages need: newlines, other spaces, joiners.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char.encode("unicode_escape").decode("ascii") if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    return char not in _KEPT and (unicodedata.category(char) in _ESCAPED or char in _TURNS_TEXT)


@dataclass
class ChatAnswer:
    """An answer as far as it has come. Times are of the clock that it was given, in seconds."""

    clock: Callable[[], float] = time.monotonic
    content: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    timings: Mapping[str, Any] = field(default_factory=dict)
    _parts: int = field(default=0, init=False)
    _first: float = field(default=0.0, init=False)
    _last: float = field(default=0.0, init=False)

    def add(self, part: Part) -> None:
        """Take the next part."""
        self.content += part.content
        self.reasoning += part.reasoning
        self.finish_reason = part.finish_reason or self.finish_reason
        self.timings = part.timings or self.timings
        if part.content or part.reasoning:
            self._last = self.clock()
            self._first = self._first if self._parts else self._last
            self._parts += 1

    @property
    def tokens(self) -> int:
        """How many tokens it has: as the engine tells, else the number of its parts."""
        told = self.timings.get("predicted_n")
        return told if isinstance(told, int) else self._parts

    @property
    def tokens_per_second(self) -> float | None:
        """How fast it was written, without the reading of the prompt; None where it is too short to tell."""
        told = self.timings.get("predicted_per_second")
        if isinstance(told, int | float):
            return float(told)
        seconds = self._last - self._first
        return (self._parts - 1) / seconds if self._parts > 1 and seconds > 0 else None

    def summary(self) -> str:
        """In one line how long it is, how fast it was, and whether it was cut short."""
        words = [f"{self.tokens} token{'' if self.tokens == 1 else 's'}"]
        if (speed := self.tokens_per_second) is not None:
            words.append(f"{speed:.1f} tokens/s")
        if self.finish_reason == "length":
            words.append("cut off: it has reached --max-tokens, or the end of the context")
        return ", ".join(words)


class AnswerWriter:
    """Where answers are written as they come: stdout.

    On a terminal reasoning is dimmed. `reasoning` says whether it is shown; None shows it on terminals only.
    """

    def __init__(self, *, reasoning: bool | None) -> None:
        self._console = Console(highlight=False)
        self._dims = self._console.is_terminal
        self._shows_reasoning = self._dims if reasoning is None else reasoning
        self._reasons = False
        self._column = 0

    def write(self, part: Part) -> None:
        """Add a part, and let it be seen."""
        if part.reasoning and self._shows_reasoning:
            self._reasons = True
            self._write(part.reasoning, dim=self._dims)
        if part.content:
            if self._reasons:
                self._reasons = False
                self._write("\n\n", dim=False)
            self._write(part.content, dim=False)

    def end(self) -> None:
        """Begin a new line where the last answer ended within one."""
        self._reasons = False
        if self._column:
            self._write("\n", dim=False)

    def _write(self, text: str, *, dim: bool) -> None:
        shown = escaped(text)
        self._column = 0 if shown.endswith("\n") else 1  # before it is seen: what follows may be cut off by Ctrl-C
        if dim:
            self._console.print(Text(shown, style="dim"), end="", soft_wrap=True)
        else:
            sys.stdout.write(shown)
        sys.stdout.flush()
