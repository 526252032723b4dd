"""Measure everything (or the groups named in argv), print the table, write results.json, fail on a broken promise."""

import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import headers, images, polling, startup
from bench.rows import Row

GROUPS = {"startup": startup, "headers": headers, "images": images, "polling": polling}
RESULTS = Path(__file__).parent / "results.json"


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    result = Table("what", "value", "unit", "must be", "")
    for row in rows:
        result.add_row(row.name, f"{row.value:.3f}", row.unit, row.target, "holds" if row.holds else "BROKEN")
    return result


def main() -> None:
    """Run the groups."""
    console = Console()
    chosen = sys.argv[1:] or list(GROUPS)
    if unknown := [name for name in chosen if name not in GROUPS]:
        sys.exit(f"no such group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            for row in GROUPS[name].rows(Path(folder)):
                console.print(f"{row.name}: {row.value:.3f} {row.unit}", highlight=False)
                rows.append(row)
    console.print(table(rows))
    if chosen == list(GROUPS):
        RESULTS.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
