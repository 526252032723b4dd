"""What tests of whole processes share."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

START_TIMEOUT: Final = 60.0  # seconds; bounds for a machine that is busy, not expectations
STOP_TIMEOUT: Final = 30.0
TICK: Final = 0.02

ONE_THREAD: Final = {"GENAID_IMAGE__THREADS": "1"}
"""For engines of tests: more of them than cores would spend their time waiting for each other."""

GENAID: Final = (sys.executable, "-m", "genaid_server.cli")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without settings of genaid, and with `extra`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GENAID_", "IMAGE_"))}
    return own | {"PYTHONUTF8": "1"} | dict(extra or {})


@dataclass(frozen=True)
class RunningGenaid:
    """A `genaid up` of its own process. `ready` is what its ready file says."""

    process: "subprocess.Popen[bytes]"
    ready: dict[str, Any]
    ready_file: Path
    data_dir: Path
    log: Path

    def output(self) -> str:
        """What it has printed for people so far."""
        return self.log.read_text("utf-8", "replace")

    def descendants(self) -> list[psutil.Process]:
        """The processes that it has started and that are alive."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> int:
        """Ask it to end, as a service manager does, and return its exit status."""
        if self.process.poll() is None:
            if sys.platform == "win32":
                assert self.process.stdin is not None
                self.process.stdin.close()
            else:
                self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT)


@contextmanager
def running_genaid(
    data_dir: Path, *args: str, env: Mapping[str, str] | None = None, command: Sequence[str] = GENAID
) -> Iterator[RunningGenaid]:
    """Run `genaid up` on free ports with a data directory of its own; it has ended when the block ends.

    `args` are further options, and win over those that are set here; `env` is added to the environment; `command` is
    the `genaid` to run.
    """
    with tempfile.TemporaryDirectory(prefix="genaid-test-", ignore_cleanup_errors=True) as folder:
        ready_file, log = Path(folder) / "ready.json", Path(folder) / "stderr.log"
        with start_up(data_dir, ready_file, log, args, env, command) as process:
            wait_until(ready_file.exists, process, log)
            ready = json.loads(ready_file.read_bytes())
            running = RunningGenaid(process, ready, ready_file, data_dir, log)
            yield running
            running.stop()


@contextmanager
def start_up(
    data_dir: Path,
    ready_file: Path,
    log: Path,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    command: Sequence[str] = GENAID,
) -> "Iterator[subprocess.Popen[bytes]]":
    """Start `genaid up` on free ports, without waiting for it; whatever is left of it is killed after the block.

    Its stdin is a pipe, and it ends when that is closed: so it can't outlive the tests.
    """
    argv = [*command, "up", "--data-dir", str(data_dir), "--ready-file", str(ready_file), "--exit-with-parent"]
    for service in ("--http", "--resource", "--image"):
        argv += [service, "127.0.0.1:0"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*argv, *args],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=clean_environment({**ONE_THREAD, **(env or {})}),
        ) as process,
    ):
        try:
            yield process
        finally:
            kill_tree(process)


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when the condition holds; fail where the process ends first, or with START_TIMEOUT."""
    deadline = time.monotonic() + START_TIMEOUT
    while not condition():
        try:
            process.wait(TICK)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline, f"it took too long:\n{log.read_text('utf-8', 'replace')}"
        else:
            raise AssertionError(f"it ended with {process.returncode}:\n{log.read_text('utf-8', 'replace')}")


def kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it started, at once."""
    try:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    except psutil.NoSuchProcess:
        family = []
    if process.stdin is not None:
        process.stdin.close()
    process.kill()
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(STOP_TIMEOUT)


def genaid(
    *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a `genaid` command to its end; what it prints is text."""
    done = subprocess.run(
        [*GENAID, *args],
        input=stdin,
        capture_output=True,
        env=clean_environment(env),
        cwd=cwd,
        timeout=100,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    )
