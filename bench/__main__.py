"""Measure everything, or the groups named in argv, print the table, and fail where a promise is broken.

A run of everything also writes results.json and the README's table, so that no number there is older than its run.
"""

import compileall
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import downloads, gateway_llm, headers, images, llm, polling, sharing, startup, system, together
from bench.rows import Row

GROUPS = {
    "startup": startup,
    "system": system,
    "headers": headers,
    "downloads": downloads,
    "images": images,
    "llm": llm,
    "gateway_llm": gateway_llm,
    "sharing": sharing,
    "together": together,
    "polling": polling,
}
RESULTS = Path(__file__).parent / "results.json"
SOURCES = [Path(__file__).parents[1] / folder for folder in ("services", "clients/python", "bench")]
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- bench -->\n", "<!-- /bench -->"


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    result = Table("what", "value", "unit", "must be", "")
    for row in rows:
        result.add_row(row.name, f"{row.value:.3f}", row.unit, row.target, "holds" if row.holds else "BROKEN")
    return result


def markdown(rows: list[dict[str, object]]) -> str:
    """The rows of results.json for the README."""
    lines = ["| what | measured | must be |", "| --- | --- | --- |"]
    lines += [f"| {row['name']} | {float(str(row['value'])):.4g} {row['unit']} | {row['target']} |" for row in rows]
    return "\n".join(lines) + "\n"


def keep(rows: list[dict[str, object]]) -> None:
    """Write results.json and the README's table."""
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + markdown(rows) + END + after, "utf-8")


def main() -> None:
    """Run the groups."""
    console = Console()
    chosen = sys.argv[1:] or list(GROUPS)
    if unknown := [name for name in chosen if name not in GROUPS]:
        sys.exit(f"no such group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    for source in SOURCES:  # as pip does with what it installs: an interpreter may be told to keep no byte code
        compileall.compile_dir(source, quiet=1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            for row in GROUPS[name].rows(Path(folder)):
                console.print(f"{row.name}: {row.value:.3f} {row.unit}", highlight=False)
                rows.append(row)
    console.print(table(rows))
    if chosen == list(GROUPS):
        keep([row.as_json() for row in rows])
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
