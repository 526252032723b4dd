"""How quickly a GGUF header with a large vocabulary is read."""

import time
from collections.abc import Iterator
from pathlib import Path

import gguf

from bench.rows import Row, ratio
from genaid_server.demo.models import write_llm
from genaid_server.resource.core.formats.gguf import read_header

VOCABULARY = 152_000


def rows(folder: Path) -> Iterator[Row]:
    """The table's row about headers."""
    file = write_llm(folder / "vocabulary.gguf", vocab=VOCABULARY)

    def theirs() -> float:
        began = time.perf_counter()
        gguf.GGUFReader(file)
        return time.perf_counter() - began

    def ours() -> float:
        began = time.perf_counter()
        read_header(file)
        return time.perf_counter() - began

    ours()
    yield Row("GGUF header of 152k tokens: gguf.GGUFReader / ours", ratio(theirs, ours, 3), "ratio", 50, at_least=True)
