"""Where the facts about a machine are read from: this machine, or a recorded one."""

import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

PROBES: Final = (sys.executable, "-P", "-m", "genaid_server.probes")
MAX_TEXT: Final = 1 << 16  # bytes that are read of a file
MAX_DIGITS: Final = 20  # of 64 bits


@dataclass(frozen=True)
class Machine:
    """A machine to read facts from.

    `platform` is `linux`, `darwin` or `win32`; `architecture` is what platform.machine() says there. Below `root` lie
    /proc, /sys, /dev and /opt. `cores` are the physical and the logical ones, `affinity` is how many of these the
    process may run on, `memory` is the total and what is available, in bytes. The name of a probe is appended to
    `probe_command`, and `probe_env` is the environment of probes and of other programs that are asked; None inherits.
    `program_timeout` is how long such another program may take, in seconds.
    """

    platform: str
    architecture: str
    root: Path
    cores: Callable[[], tuple[int, int]]
    affinity: Callable[[], int]
    memory: Callable[[], tuple[int, int]]
    probe_command: tuple[str, ...] = PROBES
    probe_env: Mapping[str, str] | None = None
    program_timeout: float = 1.0

    def text(self, *parts: str) -> str:
        """The text of a file below the root, its first 64 KiB; empty where it can't be read."""
        try:
            with self.root.joinpath(*parts).open("rb", buffering=0) as file:
                pieces, size = [], 0
                # The kernel hands out a file of /proc a page at a time.
                while size < MAX_TEXT and (piece := file.read(MAX_TEXT - size)):
                    pieces.append(piece)
                    size += len(piece)
        except (OSError, ValueError):  # a name that came from a file may have a zero byte in it
            return ""
        return b"".join(pieces).decode("utf-8", "replace")

    def has(self, *parts: str) -> bool:
        """Whether there is something of this name below the root."""
        return os.path.lexists(self.root.joinpath(*parts))

    def control_groups(self, controller: str) -> list[Path]:
        """The folders below the root where Linux limits this process by `controller` (`cpu`, `memory`): its own
        group first, then those around it. Both versions of control groups are known."""
        lines = [line.split(":", 2) for line in self.text("proc/self/cgroup").splitlines()]
        paths = {names: path for _, names, path in (line for line in lines if len(line) == 3)}
        mounts = Path("sys/fs/cgroup")
        for names, path in paths.items():
            if controller in names.split(","):
                # Controllers that are mounted together have a link for each, which some containers lack.
                mount = mounts / controller
                return self._nested(mount if self.has(str(mount)) else mounts / names, path)
        if "" not in paths:
            return []
        hybrid = mounts / "unified"
        return self._nested(hybrid if self.has(str(hybrid)) else mounts, paths[""])

    def _nested(self, mount: Path, path: str) -> list[Path]:
        group = mount / path.strip("/")
        # In a namespace of its own, a process may be told a path that is seen only from outside.
        if ".." in group.parts or not self.has(str(group)):
            group = mount
        return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def number(text: str) -> int | None:
    """The number that a file of the kernel holds; None where it holds something else."""
    word = text.strip()
    return int(word) if word.isdecimal() and len(word) <= MAX_DIGITS else None


def this_machine() -> Machine:
    """The machine that this program runs on."""
    return Machine(
        platform=sys.platform,
        architecture=platform.machine(),
        root=Path("/"),
        cores=_cores,
        affinity=_affinity,
        memory=_memory,
    )


def _cores() -> tuple[int, int]:
    logical = psutil.cpu_count() or os.cpu_count() or 1
    return psutil.cpu_count(logical=False) or logical, logical


def _affinity() -> int:
    # A process of Windows that runs in several groups of processors has an empty mask; macOS has no masks at all.
    listed: Callable[[], list[int]] | None = getattr(psutil.Process(), "cpu_affinity", None)
    return (len(listed()) if listed else 0) or _cores()[1]


def _memory() -> tuple[int, int]:
    now = psutil.virtual_memory()
    return now.total, now.available
