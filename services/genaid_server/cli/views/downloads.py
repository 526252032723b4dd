"""How a download looks while it runs: a line a file on a terminal, elsewhere a plain line now and then."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genaid_client import Download, DownloadPhase, FileProgress
from genaid_server.cli.output import printable, say
from genaid_server.cli.views.units import format_bytes, format_seconds, format_speed

PHASE_NAMES: Final = {
    DownloadPhase.QUEUED: "waiting for its turn",
    DownloadPhase.CHECKING: "checking the source",
    DownloadPhase.DOWNLOADING: "downloading",
    DownloadPhase.VERIFYING: "verifying",
    DownloadPhase.INSTALLED: "installed",
    DownloadPhase.FAILED: "failed",
    DownloadPhase.CANCELLED: "cancelled",
}
SAY_EVERY: Final = 10.0  # seconds between two plain lines while nothing but the number of bytes changes
BAR_WIDTH: Final = 20
BESIDE_THE_NAME: Final = 54  # columns for bar, percentage and sizes
BELOW_THE_FILES: Final = 4  # lines

type ShowDownload = Callable[[Download], None]


@contextmanager
def download_view(*, quiet: bool) -> Iterator[ShowDownload]:
    """Show a download on stderr; yields what to call with each newer state. `quiet` says nothing but on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _ignore if quiet else plain_view(say, time.monotonic)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(download: Download) -> None:
            live.update(render(download, console.width, console.height), refresh=True)

        yield show


def plain_view(tell: Callable[[str], None], clock: Callable[[], float]) -> ShowDownload:
    """A view that tells each change of phase or problem at once, and progress every SAY_EVERY seconds of `clock`."""
    told: tuple[DownloadPhase, str] | None = None
    told_at = 0.0

    def show(download: Download) -> None:
        nonlocal told, told_at
        news, now = (download.phase, download.problem), clock()
        if told is None:
            tell(f"download {download.id}")
        if news != told or now - told_at >= SAY_EVERY:
            told, told_at = news, now
            tell(f"  {summary(download)}")

    return show


def summary(download: Download) -> str:
    """In one line how far a download is."""
    parts = [PHASE_NAMES[download.phase]]
    if download.bytes_done or download.bytes_total is not None:
        parts.append(amount(download.bytes_done, download.bytes_total))
    return ", ".join([*parts, *pace(download), *trouble(download)])


def amount(done: int, total: int | None) -> str:
    """How much of how much is there."""
    if total is None:
        return format_bytes(done)
    return f"{format_bytes(done)} of {format_bytes(total)} ({percent(done, total)}%)"


def percent(done: int, total: int) -> int:
    """The share in percent; 100 only when all is there."""
    return min(100, done * 100 // total) if total > 0 else 100


def pace(download: Download) -> list[str]:
    """How fast it is, and how long it will take, as far as that is known and not over."""
    if download.phase.terminal:
        return []
    speed = [format_speed(download.bytes_per_second)] if download.bytes_per_second > 0 else []
    left = download.remaining_seconds
    return [*speed, *([f"{format_seconds(left)} left"] if left is not None else [])]


def trouble(download: Download) -> list[str]:
    """What is being tried again, if anything."""
    if download.phase.terminal or not download.problem:
        return []
    return [f"trying again ({download.retries} so far): {printable(download.problem)}"]


def file_label(file: FileProgress) -> str:
    """A file's name, with what it is to a model of several."""
    name = printable(file.name)
    return f"{file.component}: {name}" if file.component else name


def visible(files: Sequence[FileProgress], room: int) -> list[FileProgress]:
    """The files that fit into `room` lines, in order; where not all do, those that are under way come first."""
    if len(files) <= room:
        return list(files)
    by_interest = sorted(range(len(files)), key=lambda at: _interest(files[at]))
    return [files[at] for at in sorted(by_interest[:room])]


def render(download: Download, width: int, height: int) -> RenderableType:
    """A download for a terminal of this many columns and lines: its files, then the whole, then what is wrong."""
    files = visible(download.files, max(1, height - BELOW_THE_FILES))
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(10, width - BESIDE_THE_NAME))
    for _ in range(2):
        table.add_column(no_wrap=True)
    for file in files:
        bar = ProgressBar(total=file.bytes_total, completed=file.bytes_done, width=BAR_WIDTH)
        table.add_row(Text(file_label(file)), bar, Text(amount(file.bytes_done, file.bytes_total)))
    lines: list[RenderableType] = [table] if files else []
    if hidden := len(download.files) - len(files):
        lines.append(Text(f"and {hidden} more files", style="dim"))
    several = len(download.files) > 1 and download.bytes_total is not None
    total = [amount(download.bytes_done, download.bytes_total)] if several else []
    lines.append(Text(", ".join([PHASE_NAMES[download.phase], *total, *pace(download)])))
    lines += [Text(line, style="yellow") for line in trouble(download)]
    return Group(*lines)


def _interest(file: FileProgress) -> int:
    if file.bytes_total is not None and file.bytes_done >= file.bytes_total:
        return 2
    return 0 if file.bytes_done else 1


def _ignore(_: Download) -> None:
    """Show nothing."""
