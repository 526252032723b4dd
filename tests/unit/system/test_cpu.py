"""The processor is told from whatever files and programs say, and from nothing at all."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genaid_server.resource.core.system.cpu import FEATURES, read_cpu
from genaid_server.resource.core.system.machine import Machine, this_machine
from recorded_machines import write

AVX512 = "avx512f avx512dq avx512cd avx512bw avx512vl"


def machine(root: Path, files: dict[str, str] | None = None, **facts: Any) -> Machine:
    """A machine of 8 cores with 16 threads that has these files."""
    for path, content in (files or {}).items():
        write(root / path, content)
    defaults: dict[str, Any] = {"platform": "linux", "architecture": "x86_64"}
    defaults |= {"cores": lambda: (8, 16), "affinity": lambda: 16, "memory": lambda: (0, 0)}
    return Machine(root=root, **defaults | facts)


def x86(flags: str, name: str = "Some Processor") -> str:
    return f"processor\t: 0\nmodel\t\t: 85\nmodel name\t: {name}\nflags\t\t: {flags}\nbugs\t\t: none\n\n"


def arm(*parts: str, features: str = "fp asimd", implementer: str = "0x41") -> str:
    """A processor with one core of each of these parts."""
    return "\n".join(
        f"processor\t: {n}\nFeatures\t: {features}\nCPU implementer\t: {implementer}\nCPU part\t: {part}\n"
        for n, part in enumerate(parts)
    )


@pytest.mark.parametrize(
    ("flags", "features"),
    [
        ("fpu sse2 ssse3", []),
        ("fpu sse2 avx avx2 f16c fma", ["avx", "avx2", "f16c", "fma"]),
        ("fma f16c avx2 avx_vnni avx", ["avx", "avx2", "avx_vnni", "f16c", "fma"]),
        (f"avx {AVX512} avx512_vnni avx512_bf16", ["avx", "avx512", "avx512_vnni", "avx512_bf16"]),
        ("avx avx512f avx512cd avx512er avx512pf", ["avx"]),
        ("amx_tile amx_int8 amx_bf16", ["amx_int8", "amx_bf16"]),
        ("amx_int8 amx_bf16", []),
        ("xavx avx2x", []),
    ],
)
def test_instruction_sets_are_told_from_the_flags(tmp_path: Path, flags: str, features: list[str]) -> None:
    assert list(read_cpu(machine(tmp_path, {"proc/cpuinfo": x86(flags)})).features) == features


@pytest.mark.parametrize(
    ("told", "features"),
    [
        ("fp asimd evtstrm crc32", ["neon"]),
        ("fp asimd asimdhp asimddp i8mm sve", ["neon", "dotprod", "i8mm", "sve"]),
        ("half thumb fastmult vfp edsp neon vfpv3", ["neon"]),
    ],
)
def test_instruction_sets_of_arm_have_other_names(tmp_path: Path, told: str, features: list[str]) -> None:
    cpuinfo = arm("0xd0b", features=told)
    cpu = read_cpu(machine(tmp_path, {"proc/cpuinfo": cpuinfo}, architecture="aarch64"))
    assert (list(cpu.features), cpu.architecture) == (features, "arm64")


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/cpuinfo": x86("", "  Intel(R)  Xeon(R)\tCPU ")}, "Intel(R) Xeon(R) CPU"),
        ({"proc/cpuinfo": arm("0xd0b", "0xd0b")}, "ARM Cortex-A76"),
        ({"proc/cpuinfo": arm("0xd05", "0xd05", "0xd41")}, "ARM Cortex-A55 + ARM Cortex-A78"),
        ({"proc/cpuinfo": arm("0x022", implementer="0x61")}, "Apple M1"),
        ({"proc/cpuinfo": arm("0xfff"), "proc/device-tree/model": "A Board Rev 1.2\0"}, "A Board Rev 1.2"),
        ({"proc/cpuinfo": arm("0xd05", "0xfff")}, "CPU implementer 0x41, part 0xd05"),
        ({"proc/cpuinfo": arm("zero")}, "CPU implementer 0x41, part zero"),
        ({"proc/cpuinfo": "processor\t: 0\ncpu\t\t: POWER9, altivec supported\n"}, "POWER9, altivec supported"),
        ({"proc/device-tree/model": "\0"}, "x64 processor"),
        ({"proc/cpuinfo": "processor : 0\nmodel : 85\nmodel name :\n"}, "x64 processor"),
        ({}, "x64 processor"),
    ],
)
def test_the_name_is_the_best_that_there_is(tmp_path: Path, files: dict[str, str], name: str) -> None:
    assert read_cpu(machine(tmp_path, files)).model == name


@pytest.mark.parametrize(
    ("told", "architecture"),
    [
        ("x86_64", "x64"),
        ("AMD64", "x64"),
        ("aarch64", "arm64"),
        ("arm64", "arm64"),
        ("ARM64", "arm64"),
        ("riscv64",) * 2,
    ],
)
def test_architectures_have_the_names_of_node(tmp_path: Path, told: str, architecture: str) -> None:
    assert read_cpu(machine(tmp_path, architecture=told)).architecture == architecture


APPLE_M4 = """machdep.cpu.brand_string: Apple M4
hw.optional.neon: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 0"""

QUOTAS: dict[str, tuple[dict[str, str], int]] = {
    "no control groups": ({}, 16),
    "no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
    "half a core": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    "one and a half": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
    "more than there are": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 16),
    "the tightest is inside": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
        },
        3,
    ),
    "the tightest is outside": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        },
        2,
    ),
    "a path seen from outside": (
        {"proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/cpu.max": "500000 100000\n"},
        5,
    ),
    "a path that leaves the mount": (
        {
            "proc/self/cgroup": "0::/../../other\n",
            "sys/other/cpu.max": "100000 100000\n",
            "sys/fs/cgroup/cpu.max": "700000 100000\n",
        },
        7,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/pod\n1:name=systemd:/pod\n",
            "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "version 1 without a limit": (
        {
            "proc/self/cgroup": "3:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        16,
    ),
    "both versions, the limit is of the first": (
        {
            "proc/self/cgroup": "3:cpu:/\n0::/x\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/unified/x/cpu.max": "100000 100000\n",
        },
        4,
    ),
    "both versions, the limit is of the second": (
        {"proc/self/cgroup": "3:pids:/\n0::/x\n", "sys/fs/cgroup/unified/x/cpu.max": "600000 100000\n"},
        6,
    ),
    "nonsense": ({"proc/self/cgroup": "0::/\nwhat\n::\n", "sys/fs/cgroup/cpu.max": "many 0 of\n"}, 16),
    "a zero byte": ({"proc/self/cgroup": "1:cpu,\0:/\n"}, 16),
    "a period of nothing": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, 16),
    "endless digits": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9" * 9999 + " 1\n"}, 16),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_the_tightest_limit_of_the_control_groups_counts(tmp_path: Path, case: str) -> None:
    files, usable = QUOTAS[case]
    cpu = read_cpu(machine(tmp_path, files))
    assert (cpu.usable_cores, cpu.logical_cores, cpu.physical_cores) == (usable, 16, 8)


@pytest.mark.parametrize(("affinity", "usable"), [(1, 1), (5, 5), (0, 1), (64, 16)])
def test_affinity_counts_as_well(tmp_path: Path, affinity: int, usable: int) -> None:
    assert read_cpu(machine(tmp_path, affinity=lambda: affinity)).usable_cores == usable


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    cpuinfo=st.binary(max_size=300),
    cgroup=st.one_of(st.binary(max_size=60), st.text("/.:0ab\0\n", max_size=30).map(str.encode)),
    quota=st.binary(max_size=40),
)
def test_nonsense_in_files_is_never_an_error(tmp_path: Path, cpuinfo: bytes, cgroup: bytes, quota: bytes) -> None:
    for path, content in (("proc/cpuinfo", cpuinfo), ("proc/self/cgroup", cgroup), ("sys/fs/cgroup/cpu.max", quota)):
        write(tmp_path / path, "")
        (tmp_path / path).write_bytes(content)
    cpu = read_cpu(machine(tmp_path))
    assert 1 <= cpu.usable_cores <= 16
    assert cpu.model
    assert set(cpu.features) <= set(FEATURES)


def test_folders_in_place_of_files_are_no_error(tmp_path: Path) -> None:
    for path in ("proc/cpuinfo", "proc/self/cgroup", "proc/device-tree/model"):
        (tmp_path / path).mkdir(parents=True)
    assert read_cpu(machine(tmp_path)).model == "x64 processor"


@pytest.fixture
def sysctl(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment in which sysctl is this program."""
    if sys.platform == "win32":
        pytest.skip("there is no sysctl where a script is no program")

    def install(script: str) -> dict[str, str]:
        program = tmp_path / "bin" / "sysctl"
        write(program, f"#!{sys.executable}\n{script}")
        program.chmod(0o755)
        return dict(os.environ) | {"PATH": str(program.parent)}

    return install


@pytest.mark.parametrize(
    ("script", "name", "features"),
    [
        (
            f"print({APPLE_M4!r})",
            "Apple M4",
            ["neon", "dotprod"],
        ),
        ("import sys; print('machdep.cpu.brand_string: Apple M1'); sys.exit('unknown oid')", "Apple M1", []),
        ("print('hw.optional.AdvSIMD: 1')", "arm64 processor", ["neon"]),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)))", "arm64 processor", []),
        ("import sys; sys.exit(1)", "arm64 processor", []),
    ],
)
def test_macos_is_asked_by_sysctl(
    tmp_path: Path, sysctl: Callable[[str], dict[str, str]], script: str, name: str, features: list[str]
) -> None:
    cpu = read_cpu(
        machine(tmp_path, platform="darwin", architecture="arm64", probe_env=sysctl(script), program_timeout=60.0)
    )
    assert (cpu.model, list(cpu.features), cpu.usable_cores) == (name, features, 16)


def test_a_sysctl_that_hangs_is_given_up(tmp_path: Path, sysctl: Callable[[str], dict[str, str]]) -> None:
    environment = sysctl("import time; print('machdep.cpu.brand_string: Late', flush=True); time.sleep(600)")
    cpu = read_cpu(machine(tmp_path, platform="darwin", architecture="arm64", probe_env=environment))
    assert (cpu.model, cpu.features) == ("arm64 processor", ())


def test_this_machine_has_a_processor() -> None:
    cpu = read_cpu(this_machine())
    assert cpu.model
    assert 1 <= cpu.usable_cores <= cpu.logical_cores
    assert 1 <= cpu.physical_cores <= cpu.logical_cores
