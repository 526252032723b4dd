"""What the README claims."""

import json
from pathlib import Path

from bench.__main__ import BEGIN, END, README, RESULTS, markdown

ROOT = Path(__file__).parent.parent.parent.parent


def test_the_measured_table_is_that_of_the_last_run() -> None:
    text = README.read_text("utf-8")
    table = text.split(BEGIN)[1].split(END)[0]
    assert table == markdown(json.loads(RESULTS.read_text("utf-8")))


def test_every_promise_was_kept_in_that_run() -> None:
    rows = json.loads(RESULTS.read_text("utf-8"))
    assert rows
    assert [row["name"] for row in rows if not row["holds"]] == []


def test_links_lead_somewhere() -> None:
    for target in ("genaid.example.toml", "protos/genaid", "docs/decisions"):
        assert f"({target})" in README.read_text("utf-8")
        assert (ROOT / target).exists()
