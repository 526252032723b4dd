"""What a process holds of main memory, while it takes memory and gives it back."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import psutil
import pytest

from genaid_server.supervision.process_memory import peak_private_bytes, private_bytes

MIB = 2**20
SIZE = 64 * MIB
SLACK = 8 * MIB
"""What an interpreter takes and gives back by the way."""

PROGRAM = """
import mmap, sys
held = None
for line in sys.stdin:
    what, value = line.split()
    if what == "take":
        held = b"x" * int(value)
    elif what == "free":
        held = None
    elif what == "map":
        with open(value, "rb") as file:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sum(held[::4096])
    print(what, flush=True)
"""

type Do = Callable[[str, object], None]


@pytest.fixture
def child() -> Iterator[tuple[psutil.Process, Do]]:
    """A process that takes memory, maps files and frees either when told; it has done so when it answers."""
    with Popen([sys.executable, "-S", "-c", PROGRAM], stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        orders, answers = running.stdin, running.stdout

        def do(what: str, value: object) -> None:
            orders.write(f"{what} {value}\n")
            assert answers.readline().strip() == what

        do("free", "nothing")
        yield psutil.Process(running.pid), do
        orders.close()


def test_memory_is_counted_until_it_is_given_back(child: tuple[psutil.Process, Do]) -> None:
    process, do = child
    before = private_bytes(process)
    assert 0 < before < SLACK * 4
    do("take", SIZE)
    assert private_bytes(process) == pytest.approx(before + SIZE, abs=SLACK)
    assert peak_private_bytes(process.pid) == pytest.approx(before + SIZE, abs=SLACK)


@pytest.mark.skipif(sys.platform == "darwin", reason="freed memory may stay with the process, and no peak is told")
def test_the_peak_is_remembered(child: tuple[psutil.Process, Do]) -> None:
    process, do = child
    before = private_bytes(process)
    do("take", SIZE)
    do("free", "it")
    assert private_bytes(process) == pytest.approx(before, abs=SLACK)
    assert peak_private_bytes(process.pid) == pytest.approx(before + SIZE, abs=SLACK)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells pages of files apart")
def test_a_mapped_file_is_not_the_process_s_own(child: tuple[psutil.Process, Do], tmp_path: Path) -> None:
    process, do = child
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * (SIZE // 256))
    before, resident = private_bytes(process), process.memory_info().rss
    do("map", file)
    assert process.memory_info().rss == pytest.approx(resident + SIZE, abs=SLACK)
    assert private_bytes(process) == pytest.approx(before, abs=SLACK)
    assert peak_private_bytes(process.pid) == pytest.approx(before, abs=SLACK)


def test_a_process_that_is_gone_holds_nothing() -> None:
    with Popen([sys.executable, "-S", "-c", ""]) as running:
        process = psutil.Process(running.pid)
    assert peak_private_bytes(running.pid) == 0
    with pytest.raises(psutil.NoSuchProcess):
        private_bytes(process)
