"""Progress bars on stderr; where that is no terminal, they show nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from genaid_server.cli.views.generations import STAGE_NAMES
from genaid_server.cli.views.units import format_bytes, format_seconds, format_speed

NAME_WIDTH: Final = max(map(len, STAGE_NAMES.values()))  # so that the bar stays in its place

type ShowWork = Callable[[str, float, str], None]


@contextmanager
def work_bar() -> Iterator[ShowWork]:
    """Show work with a known share; yields what to call with a description, a percentage and a detail."""
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), _plain("detail"))
    with _progress(_plain("name"), *columns) as progress:
        task = progress.add_task("", total=100, name="waiting", detail="")

        def show(name: str, percentage: float, detail: str) -> None:
            progress.update(task, completed=percentage, name=name, detail=detail)

        yield show


@contextmanager
def copy_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a copy of `total` bytes; yields what to call with the number of bytes that were copied since."""
    with _progress(_plain("name"), BarColumn(), BytesColumn()) as progress:
        task = progress.add_task("", total=total, name=f"copying {name}")

        def advance(count: int) -> None:
            progress.advance(task, count)

        yield advance


@contextmanager
def bytes_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show work on bytes; yields what to call with how many are done and how many there are."""
    with _progress(_plain("name"), BarColumn(), BytesColumn()) as progress:
        task = progress.add_task("", total=None, name=name)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield show


class BytesColumn(ProgressColumn):
    """How many bytes of how many, how fast, and how long it will take."""

    def render(self, task: Task) -> Text:
        """Draw the column (called by rich)."""
        parts = [format_bytes(task.completed)]
        if task.total is not None:
            parts[0] += f" of {format_bytes(task.total)}"
        if task.speed is not None:
            parts.append(format_speed(task.speed))
        if task.time_remaining is not None:
            parts.append(f"{format_seconds(task.time_remaining)} left")
        return Text(", ".join(parts))


@contextmanager
def waiting_bar(name: str) -> Iterator[None]:
    """Show work that does not say how far it is."""
    with _progress(_plain("name"), BarColumn(), TimeElapsedColumn()) as progress:
        progress.add_task("", total=None, name=name)
        yield


def _plain(field: str) -> TextColumn:
    return TextColumn(f"{{task.fields[{field}]:<{NAME_WIDTH}}}", markup=False)


def _progress(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
