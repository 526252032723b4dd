"""Main memory is the machine's or that of the tightest container around; and containers are told from machines."""

from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genaid_server.resource.core.system.facts import Ram
from genaid_server.resource.core.system.machine import Machine, this_machine
from genaid_server.resource.core.system.ram import in_container, in_wsl, read_ram
from recorded_machines import write

GIB = 1 << 30
TOTAL, AVAILABLE = 16 * GIB, 10 * GIB
WHOLE = Ram(TOTAL, AVAILABLE)
NO_LIMIT = 9223372036854771712  # what version 1 of control groups says

Files = dict[str, str]


def machine(root: Path, files: Files, platform: str = "linux") -> Machine:
    """A machine of 16 GiB, of which 10 are available, that has these files."""
    for path, content in files.items():
        write(root / path, content)
    return Machine(platform, "x86_64", root, lambda: (8, 16), lambda: 16, lambda: (TOTAL, AVAILABLE))


def v2(path: str, limit: int | str, used: int = 0, cache: int = 0, active: int = 0) -> Files:
    """A group of version 2; `cache` is what it has of files that are not in use, `active` of those that are."""
    group = f"sys/fs/cgroup{path}"
    return {
        f"{group}/memory.max": f"{limit}\n",
        f"{group}/memory.current": f"{used}\n",
        f"{group}/memory.stat": (
            f"anon 1\nfile {cache + active}\ninactive_file {cache}\nactive_file {active}\nunevictable 7\n"
        ),
    }


def v1(path: str, limit: int, used: int = 0, cache: int = 0, active: int = 0) -> Files:
    """A group of version 1; its own cache is less than that of the groups below it."""
    group = f"sys/fs/cgroup/memory{path}"
    return {
        f"{group}/memory.limit_in_bytes": f"{limit}\n",
        f"{group}/memory.usage_in_bytes": f"{used}\n",
        f"{group}/memory.stat": (
            f"inactive_file {cache // 2}\nactive_file {active // 2}\n"
            f"total_inactive_file {cache}\ntotal_active_file {active}\n"
        ),
    }


def at(path: str) -> Files:
    return {"proc/self/cgroup": f"0::{path}\n"}


def at_v1(path: str) -> Files:
    return {"proc/self/cgroup": f"12:pids:{path}\n7:memory:{path}\n1:name=systemd:{path}\n0::/\n"}


CASES: dict[str, tuple[Files, Ram]] = {
    "no control groups": ({}, WHOLE),
    "no limit": (at("/a") | v2("/a", "max", GIB), WHOLE),
    "a limit": (at("/") | v2("", 4 * GIB, 3 * GIB), Ram(4 * GIB, GIB, 4 * GIB)),
    "cache is given back": (at("/") | v2("", 4 * GIB, 3 * GIB, 2 * GIB), Ram(4 * GIB, 3 * GIB, 4 * GIB)),
    "so are mapped files": (at("/") | v2("", 4 * GIB, 3 * GIB, GIB // 2, 2 * GIB), Ram(4 * GIB, 7 * GIB // 2, 4 * GIB)),
    "the machine has less": (at("/") | v2("", 14 * GIB, GIB), Ram(14 * GIB, AVAILABLE, 14 * GIB)),
    "a limit above the machine's memory": (at("/") | v2("", TOTAL + 1, 3 * GIB), WHOLE),
    "all is used up": (at("/") | v2("", 2 * GIB, 2 * GIB + 4096), Ram(2 * GIB, 0, 2 * GIB)),
    "more cache than usage": (at("/") | v2("", 2 * GIB, GIB, 2 * GIB), Ram(2 * GIB, 2 * GIB, 2 * GIB)),
    "the tightest is inside": (
        at("/a/b") | v2("/a", 8 * GIB, GIB) | v2("/a/b", 2 * GIB, GIB),
        Ram(2 * GIB, GIB, 2 * GIB),
    ),
    "the tightest is outside, and full": (
        at("/a/b") | v2("/a", 3 * GIB, 3 * GIB) | v2("/a/b", 8 * GIB, GIB),
        Ram(3 * GIB, 0, 3 * GIB),
    ),
    "a wider group is fuller": (
        at("/a/b") | v2("/a", 8 * GIB, 8 * GIB - 7) | v2("/a/b", 2 * GIB, GIB),
        Ram(2 * GIB, 7, 2 * GIB),
    ),
    "a path seen from outside": (at("/docker/0123") | v2("", GIB, 0), Ram(GIB, GIB, GIB)),
    "a path that leaves the mount": (
        at("/../../x") | v2("", 2 * GIB, 0) | {"sys/x/memory.max": "4096\n"},
        Ram(2 * GIB, 2 * GIB, 2 * GIB),
    ),
    "usage isn't told": (at("/") | {"sys/fs/cgroup/memory.max": f"{GIB}\n"}, Ram(GIB, GIB, GIB)),
    "version 1": (at_v1("/a") | v1("/a", 4 * GIB, 3 * GIB, GIB), Ram(4 * GIB, 2 * GIB, 4 * GIB)),
    "version 1, mapped files": (at_v1("/a") | v1("/a", 4 * GIB, 3 * GIB, GIB, GIB), Ram(4 * GIB, 3 * GIB, 4 * GIB)),
    "version 1, no limit": (at_v1("/a") | v1("/a", NO_LIMIT, GIB), WHOLE),
    "version 1, nested": (
        at_v1("/a/b") | v1("", NO_LIMIT) | v1("/a", 2 * GIB, GIB) | v1("/a/b", NO_LIMIT, GIB),
        Ram(2 * GIB, GIB, 2 * GIB),
    ),
    "version 1, a path seen from outside": (
        at_v1("/docker/0123") | v1("", 2 * GIB, GIB),
        Ram(2 * GIB, GIB, 2 * GIB),
    ),
    "nonsense": (
        at("/") | {"sys/fs/cgroup/memory.max": "much\n", "sys/fs/cgroup/memory.current": "-1\n"},
        WHOLE,
    ),
    "nonsense beside a limit": (
        at("/")
        | {
            "sys/fs/cgroup/memory.max": f" {GIB} \n",
            "sys/fs/cgroup/memory.current": "0x10\n",
            "sys/fs/cgroup/memory.stat": "inactive_file\ninactive_file many\n\n7\n",
        },
        Ram(GIB, GIB, GIB),
    ),
    "endless digits": (at("/") | {"sys/fs/cgroup/memory.max": "1" * 9999}, WHOLE),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_is_left_within_all_limits(tmp_path: Path, case: str) -> None:
    files, ram = CASES[case]
    assert read_ram(machine(tmp_path, files)) == ram


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_only_linux_has_control_groups(tmp_path: Path, platform: str) -> None:
    files, _ = CASES["a limit"]
    assert read_ram(machine(tmp_path, files | {".dockerenv": ""}, platform)) == WHOLE
    assert not in_container(machine(tmp_path, {}, platform))


def test_memory_is_measured_anew_each_time(tmp_path: Path) -> None:
    files = at("/")
    here = machine(tmp_path, files | v2("", 4 * GIB, GIB))
    assert read_ram(here).available == 3 * GIB
    write(tmp_path / "sys/fs/cgroup/memory.current", f"{2 * GIB}\n")
    assert read_ram(here).available == 2 * GIB


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    cgroup=st.one_of(st.binary(max_size=60), st.text("/.:0ab\0\n", max_size=30).map(str.encode)),
    limit=st.binary(max_size=30),
    stat=st.binary(max_size=60),
)
def test_nonsense_in_files_is_never_an_error(tmp_path: Path, cgroup: bytes, limit: bytes, stat: bytes) -> None:
    here = machine(tmp_path, at("/") | v2("", GIB))
    for name, content in (("proc/self/cgroup", cgroup), ("memory.max", limit), ("memory.stat", stat)):
        path = tmp_path / (name if "/" in name else f"sys/fs/cgroup/{name}")
        path.write_bytes(content)
    ram = read_ram(here)
    assert 0 <= ram.available <= ram.total <= TOTAL
    in_container(here)
    in_wsl(here)


LAYERS = "lowerdir=/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs"
CONTAINERS: dict[str, tuple[Files, bool]] = {
    "a machine": (at("/user.slice/user-1000.slice/session-1.scope"), False),
    "a machine that has Docker": (at("/system.slice/docker.service"), False),
    "Docker": ({".dockerenv": ""}, True),
    "Podman": ({"run/.containerenv": ""}, True),
    "Kubernetes": ({"var/run/secrets/kubernetes.io/serviceaccount/token": "x"}, True),
    "a container with systemd": ({"run/systemd/container": "lxc\n"}, True),
    "a namespace of control groups": ({"sys/fs/cgroup/cgroup.events": "populated 1\n"}, True),
    "a group of Docker's": (at("/docker/0123"), True),
    "a scope of Docker's": (at("/system.slice/docker-0123.scope"), True),
    "a pod": (at_v1("/kubepods/besteffort/pod1/2"), True),
    "layers": ({"proc/self/mountinfo": f"20 1 0:1 / / rw - overlay overlay rw,{LAYERS}\n"}, True),
    "layers elsewhere": ({"proc/self/mountinfo": f"20 1 0:1 / /mnt rw - overlay overlay rw,{LAYERS}\n21 /\n"}, False),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_containers_are_told_from_machines(tmp_path: Path, case: str) -> None:
    files, expected = CONTAINERS[case]
    assert in_container(machine(tmp_path, files)) is expected


RELEASE = "proc/sys/kernel/osrelease"
WSL_RELEASE = {RELEASE: "5.15.167.4-microsoft-standard-WSL2\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (WSL_RELEASE, True),
        ({RELEASE: "4.4.0-19041-Microsoft\n"}, True),
        ({RELEASE: "6.6.0-mine\n", "proc/sys/fs/binfmt_misc/WSLInterop": "enabled\n"}, True),
        ({RELEASE: "6.8.0-48-generic\n"}, False),
        ({}, False),
    ],
)
def test_windows_subsystem_for_linux_is_told_from_linux(tmp_path: Path, files: Files, expected: bool) -> None:
    assert in_wsl(machine(tmp_path, files)) is expected
    assert not in_wsl(machine(tmp_path, files, "win32"))


def test_windows_subsystem_for_linux_is_no_container_by_itself(tmp_path: Path) -> None:
    files = WSL_RELEASE | {"run/systemd/container": "wsl\n", "sys/fs/cgroup/cgroup.events": "populated 1\n"}
    assert not in_container(machine(tmp_path, files))
    assert in_container(machine(tmp_path, {".dockerenv": ""}))


def test_this_machine_has_memory() -> None:
    here = this_machine()
    ram = read_ram(here)
    assert 0 <= ram.available <= ram.total <= psutil.virtual_memory().total
    assert ram.used == ram.total - ram.available
    assert here.affinity() >= 1
