"""Main memory now, also in a container; and whether this is a container or the Windows Subsystem for Linux.

Everything is read anew each time: a few small files, far below a millisecond.
"""

from pathlib import Path
from typing import Final

from genaid_server.resource.core.system.facts import Ram
from genaid_server.resource.core.system.machine import Machine, number

CONTAINER_MARKS: Final = (
    ".dockerenv",
    "run/.containerenv",  # Podman
    "var/run/secrets/kubernetes.io",
)
NAMESPACE_MARKS: Final = (
    "run/systemd/container",
    "sys/fs/cgroup/cgroup.events",  # only in groups that are not the outermost
)
"""What only a container has on other systems, and the Windows Subsystem for Linux may have as well."""

CONTAINER_GROUPS: Final = (
    "/docker/",
    "/docker-",
    "/kubepods",
    "/lxc/",
    "/lxc.payload",
    "/libpod",
    "/crio-",
    "/machine",
)
CONTAINER_LAYERS: Final = ("/docker/", "/containerd/", "/containers/storage/")

FILE_PAGES: Final = ("inactive_file", "active_file")
"""What control groups call the pages of files; in version 1 those of the groups below are in `total_`."""


def read_ram(machine: Machine) -> Ram:
    """Measure main memory. Of several limits, one within another, the tightest counts, for all memory and for what is
    available each; a limit above what the machine has is none."""
    total, available = machine.memory()
    limit = None
    for group in _groups(machine):
        allowed = _allowed(machine, group)
        if allowed is None or allowed >= total:
            continue
        limit = allowed if limit is None else min(limit, allowed)
        available = min(available, max(0, allowed - _held(machine, group)))
    return Ram(total if limit is None else limit, available if limit is None else min(available, limit), limit)


def in_container(machine: Machine) -> bool:
    """Whether Linux runs in a container, told by the files that container programs leave and by control groups."""
    if machine.platform != "linux":
        return False
    marks = CONTAINER_MARKS if in_wsl(machine) else CONTAINER_MARKS + NAMESPACE_MARKS
    if any(machine.has(mark) for mark in marks):
        return True
    groups = machine.text("proc/self/cgroup")
    return any(name in groups for name in CONTAINER_GROUPS) or _has_container_root(machine)


def in_wsl(machine: Machine) -> bool:
    """Whether this Linux is that of the Windows Subsystem for Linux."""
    if machine.platform != "linux":
        return False
    release = machine.text("proc/sys/kernel/osrelease").lower()
    return "microsoft" in release or machine.has("proc/sys/fs/binfmt_misc/WSLInterop")


def _groups(machine: Machine) -> list[Path]:
    return machine.control_groups("memory") if machine.platform == "linux" else []


def _allowed(machine: Machine, group: Path) -> int | None:
    """The limit of a group in bytes, None where it has none."""
    return number(_first(machine, group, "memory.max", "memory.limit_in_bytes"))


def _held(machine: Machine, group: Path) -> int:
    """What a group holds in bytes, without the pages of files, which it would give back for the asking.

    Those that are in use count as such too, a model's mapped weights for one: the kernel reads them again where it has
    taken them away, and calls them available on a whole machine as well.
    """
    used = number(_first(machine, group, "memory.current", "memory.usage_in_bytes"))
    cache = _numbers(machine.text(str(group / "memory.stat")))
    files = sum(cache.get(f"total_{kind}", cache.get(kind, 0)) for kind in FILE_PAGES)
    return 0 if used is None else max(0, used - files)


def _first(machine: Machine, group: Path, *names: str) -> str:
    """The text of the first of these files that is there."""
    return next((text for name in names if (text := machine.text(str(group / name)))), "")


def _numbers(text: str) -> dict[str, int]:
    pairs = (line.partition(" ") for line in text.splitlines())
    return {name: size for name, _, rest in pairs if (size := number(rest)) is not None}


def _has_container_root(machine: Machine) -> bool:
    """Whether the file system at / is one that a container program has put together."""
    mounts = (line.split() for line in machine.text("proc/self/mountinfo").splitlines())
    roots = [fields for fields in mounts if len(fields) > 4 and fields[4] == "/"]
    return any(layer in field for fields in roots for field in fields for layer in CONTAINER_LAYERS)
