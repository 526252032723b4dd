"""A child is dead when its block ends, whatever either side does. The children are real."""

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from genaid_server.supervision import child as child_module
from genaid_server.supervision.child import Child, Exit, child

PROGRAM = Path(__file__).parents[2] / "fakes" / "child_program.py"
SHORT, LONG = 0.05, 60.0  # graces in seconds: over at once, and never while a test runs
posix = pytest.mark.skipif(os.name != "posix", reason="signals, sessions and process groups are POSIX's")


class Output:
    """What came through a pipe."""

    def __init__(self) -> None:
        self.data = b""
        self._arrived = asyncio.Event()

    def __call__(self, data: bytes) -> None:
        self.data += data
        self._arrived.set()

    async def until(self, text: bytes) -> None:
        while text not in self.data:
            self._arrived.clear()
            await self._arrived.wait()

    @property
    def grandchild(self) -> int:
        word, number = self.data.splitlines()[0].split()
        assert word == b"grandchild"
        return int(number)


@dataclass(frozen=True)
class Running:
    process: Child
    out: Output
    err: Output


@asynccontextmanager
async def program(*flags: str, grace: float = LONG, env: Mapping[str, str] | None = None) -> AsyncIterator[Running]:
    """Run the fake program; it is ready when the block begins."""
    out, err = Output(), Output()
    async with child([sys.executable, str(PROGRAM), *flags], out, err, env, grace) as process:
        await out.until(b"ready\n")
        yield Running(process, out, err)


def assert_dead(*pids: int) -> None:
    """Whoever was killed may take a moment to die, and where process 1 buries nobody a dead one stays a zombie."""
    deadline = time.monotonic() + 30
    for pid in pids:
        assert pid > 0
        while not is_dead(pid):
            assert time.monotonic() < deadline, f"process {pid} is alive"
            time.sleep(0.005)


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No child, no descriptor and no transport may outlive its test; an unclosed one warns, and warnings fail."""
    this = psutil.Process()
    yield
    gc.collect()
    assert this.children(recursive=True) == []


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit status 0"),
        (3, "exit status 3"),
        (3221225477, "exit status 3221225477"),
        pytest.param(-9, "signal SIGKILL", marks=posix),
        pytest.param(-6, "signal SIGABRT", marks=posix),
        (-200, "signal 200"),
    ],
)
def test_an_exit_is_told_in_words(code: int, text: str) -> None:
    assert str(Exit(code)) == text


async def test_output_arrives_with_the_exit_status() -> None:
    async with program("--to-stderr", "oops", "--no-newline", "last words", "--exit", "3") as running:
        assert await running.process.exited() == Exit(3)
        assert running.out.data == b"ready\nlast words"
        assert running.err.data.strip() == b"oops"
        assert not running.process.alive


async def test_everything_that_a_dead_child_wrote_is_there_as_it_was() -> None:
    async with program("--long-line", "1000000", "--invalid-utf8", "--exit", "0") as running:
        await running.process.exited()
        assert running.out.data == b"x" * 1_000_000 + b"\ncaf\xe9 \xff\xfe\nready\n"


@posix
async def test_a_native_abort_is_told() -> None:
    async with program("--abort") as running:
        assert str(await running.process.exited()) == "signal SIGABRT"


async def test_stdin_reaches_the_child_and_its_end_ends_it() -> None:
    data = os.urandom(1_000_000)
    async with program("--echo-stdin", "--ignore-term") as running:
        running.process.write(data)
        while len(running.out.data) < len(data) + 6:
            await running.out.until(data[-8:])
    assert running.out.data == b"ready\n" + data
    assert await running.process.exited() == Exit(0)


@posix
async def test_a_child_that_reads_no_stdin_is_asked_by_a_signal() -> None:
    async with program("--ignore-eof") as running:
        pass
    assert str(await running.process.exited()) == "signal SIGTERM"


@posix
async def test_a_child_that_ignores_every_request_is_killed() -> None:
    async with program("--ignore-eof", "--ignore-term", grace=SHORT) as running:
        pass
    assert str(await running.process.exited()) == "signal SIGKILL"
    assert_dead(running.process.pid)


@posix
async def test_a_process_that_the_system_can_not_end_holds_nobody_up_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that waits for a disk that is gone: here the system's call does nothing."""
    monkeypatch.setattr(child_module, "DEATH_TIMEOUT", SHORT)
    with monkeypatch.context() as powerless:
        powerless.setattr(os, "killpg", lambda group, number: None)
        async with program("--ignore-eof", "--ignore-term", grace=SHORT) as running:
            process = running.process
    assert process.alive
    assert "is left behind" in caplog.text
    os.killpg(process.pid, signal.SIGKILL)
    await process.exited()


async def test_a_strike_needs_no_grace() -> None:
    async with program("--ignore-eof", "--ignore-term") as running:
        running.process.strike()
        await running.process.exited()
        running.process.strike()
    assert_dead(running.process.pid)


async def test_what_a_dead_child_would_have_got_is_dropped() -> None:
    async with program("--exit", "0") as running:
        await running.process.exited()
        running.process.write(b"x" * 1_000_000)
        await running.process.stop(LONG)
        running.process.write(b"x")


async def test_a_child_that_dies_while_it_is_written_to_harms_nobody() -> None:
    async with program("--ignore-eof") as running:
        running.process.write(b"x" * 10_000_000)
        running.process.strike()
        running.process.write(b"x" * 10_000_000)
        await running.process.exited()


async def test_a_closed_stdout_is_no_end() -> None:
    async with program("--close-stdout", "--to-stderr", "still here") as running:
        await running.err.until(b"still here")
        assert running.process.alive
        assert not is_dead(running.process.pid)
    assert await running.process.exited() in (Exit(0), Exit(-15))


async def test_several_may_wait_for_the_end_and_one_may_leave() -> None:
    async with program() as running:
        waiting = [asyncio.create_task(running.process.exited()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        running.process.strike()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert isinstance(ends[1], Exit)
    assert ends[1] == ends[2]


async def test_an_exception_in_the_block_ends_the_child_and_is_raised() -> None:
    def fail() -> NoReturn:
        raise KeyError(running.process.pid)

    with pytest.raises(KeyError) as raised:
        async with program("--ignore-eof", "--ignore-term", grace=SHORT) as running:
            fail()
    assert_dead(raised.value.args[0])


@pytest.mark.parametrize("times", [1, 3])
async def test_cancellation_in_the_block_and_in_the_cleanup_leaves_nothing(times: int) -> None:
    pids: list[int] = []
    inside = asyncio.Event()

    async def use() -> None:
        async with program("--ignore-eof", "--ignore-term", "--spawn-grandchild", grace=0.2) as running:
            pids.extend((running.process.pid, running.out.grandchild))
            inside.set()
            await asyncio.Event().wait()

    user = asyncio.create_task(use())
    await inside.wait()
    for _ in range(times):
        user.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.wait([user])
    assert user.cancelled()
    assert_dead(*pids)


@pytest.mark.parametrize("turns", range(0, 12, 2))
async def test_cancellation_while_it_starts_leaves_nothing(turns: int) -> None:
    async def use() -> None:
        async with program("--ignore-term", grace=SHORT):
            await asyncio.Event().wait()

    user = asyncio.create_task(use())
    for _ in range(turns):
        await asyncio.sleep(0)
    user.cancel()
    await asyncio.wait([user])
    assert psutil.Process().children(recursive=True) == []


@posix
async def test_a_grandchild_dies_with_a_child_that_is_stopped() -> None:
    async with program("--spawn-grandchild", "--ignore-term", "--ignore-eof", grace=SHORT) as running:
        pass
    assert_dead(running.process.pid, running.out.grandchild)


@posix
async def test_a_grandchild_dies_with_a_child_that_ends_by_itself() -> None:
    async with program("--spawn-grandchild", "--exit", "5") as running:
        assert await running.process.exited() == Exit(5)
        assert_dead(running.out.grandchild)


@posix
async def test_the_end_comes_after_the_last_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "DRAIN_TIMEOUT", LONG)
    async with program("--late", "last words", "--exit", "0") as running:
        assert await running.process.exited() == Exit(0)
        assert running.out.data.split(b"\n", 1)[1].strip() == b"last words"


@posix
async def test_a_detached_grandchild_that_holds_the_pipes_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "DRAIN_TIMEOUT", SHORT)
    this = psutil.Process()
    before = this.num_fds()
    async with program("--detach-grandchild", "--ignore-eof", grace=SHORT) as running:
        grandchild = psutil.Process(running.out.grandchild)
        running.process.write(b"x" * 1_000_000)  # which nobody reads: the pipe stays full and open
        running.process.strike()
        await running.process.exited()
        assert not is_dead(grandchild.pid)
    await asyncio.sleep(0)  # closing takes a turn of the loop
    assert this.num_fds() == before
    grandchild.kill()
    assert_dead(grandchild.pid)


@posix
async def test_a_child_leads_a_group_of_its_own() -> None:
    async with program() as running:
        assert os.getpgid(running.process.pid) == running.process.pid != os.getpgid(0)


async def test_the_environment_is_replaced() -> None:
    env = {**os.environ, "GREETING": "hello"}
    async with program("--print-env", "GREETING", env=env) as running:
        assert running.out.data.split() == [b"hello", b"ready"]
    assert "GREETING" not in os.environ


@pytest.mark.parametrize("name", ["missing", "folder", "not-executable"])
async def test_a_program_that_can_not_be_started_is_an_os_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "not-executable").write_bytes(b"\0")
    with pytest.raises(OSError):
        async with child([str(tmp_path / name)], Output(), Output()):
            pass


@posix
async def test_descriptors_are_given_back() -> None:
    async def use() -> None:
        async with program("--exit", "0") as running:
            await running.process.exited()

    await use()
    before = psutil.Process().num_fds()
    await asyncio.gather(*(use() for _ in range(4)))
    assert psutil.Process().num_fds() == before
