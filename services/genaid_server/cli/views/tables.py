"""Tables on stdout."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from genaid_server.cli.output import printable

WIDE: Final = 10_000  # columns; ids are there to be copied, so a long row is folded by the terminal, if at all


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()) -> None:
    """Print a row a thing; the columns in `right` are flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=WIDE).print(table)


def print_details(rows: Iterable[tuple[str, object]]) -> None:
    """Print a row a fact of one thing, without those that are None or empty."""
    told = [(printable(label), printable(str(value))) for label, value in rows if value not in (None, "")]
    width = max((len(label) for label, _ in told), default=0)
    console = Console(width=WIDE)
    for label, value in told:
        console.print(Text.assemble((label.ljust(width), "bold"), " ", value), soft_wrap=True)
