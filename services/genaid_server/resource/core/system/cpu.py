"""The processor: its name, its cores, and the instruction sets that matter to ggml."""

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import ceil
from pathlib import Path
from shutil import which
from typing import Final

from genaid_server.resource.core.system.facts import Cpu
from genaid_server.resource.core.system.machine import Machine, number

ARCHITECTURES: Final = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}

FEATURES: Final = (
    "avx",
    "avx2",
    "avx_vnni",
    "avx512",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "f16c",
    "fma",
    "neon",
    "dotprod",
    "i8mm",
    "sve",
)

# What each feature is called, where that isn't its own name; all of the names have to be there. ggml's code for
# AVX-512 uses five parts of it, and AMX computes on tiles.
IN_CPUINFO: Final[Mapping[str, tuple[str, ...]]] = {
    "avx512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "amx_int8": ("amx_tile", "amx_int8"),
    "amx_bf16": ("amx_tile", "amx_bf16"),
    "dotprod": ("asimddp",),
}
IN_SYSCTL: Final[Mapping[str, tuple[str, ...]]] = {
    "avx": ("avx1_0",),
    "avx2": ("avx2_0",),
    "avx512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "avx512_vnni": ("avx512vnni",),
    "dotprod": ("arm.feat_dotprod",),
    "i8mm": ("arm.feat_i8mm",),
    "sve": ("arm.feat_sve",),
}

# Numbers of features for IsProcessorFeaturePresent. Windows tells neither F16C nor FMA: every processor with AVX2 has
# both. Nor does it tell apart the parts of AVX-512.
IN_WINDOWS: Final[Mapping[str, int]] = {
    "avx": 39,
    "avx2": 40,
    "avx512": 41,
    "f16c": 40,
    "fma": 40,
    "neon": 19,
    "dotprod": 43,
    "i8mm": 66,
    "sve": 46,
}

# Linux has no names for processors with ARM's instructions: CPU implementer and CPU part.
ARM_PARTS: Final = {
    (0x41, 0xD03): "ARM Cortex-A53",
    (0x41, 0xD05): "ARM Cortex-A55",
    (0x41, 0xD07): "ARM Cortex-A57",
    (0x41, 0xD08): "ARM Cortex-A72",
    (0x41, 0xD09): "ARM Cortex-A73",
    (0x41, 0xD0A): "ARM Cortex-A75",
    (0x41, 0xD0B): "ARM Cortex-A76",
    (0x41, 0xD0C): "ARM Neoverse-N1",
    (0x41, 0xD40): "ARM Neoverse-V1",
    (0x41, 0xD41): "ARM Cortex-A78",
    (0x41, 0xD42): "ARM Cortex-A78AE",
    (0x41, 0xD44): "ARM Cortex-X1",
    (0x41, 0xD46): "ARM Cortex-A510",
    (0x41, 0xD47): "ARM Cortex-A710",
    (0x41, 0xD48): "ARM Cortex-X2",
    (0x41, 0xD49): "ARM Neoverse-N2",
    (0x41, 0xD4D): "ARM Cortex-A715",
    (0x41, 0xD4E): "ARM Cortex-X3",
    (0x41, 0xD4F): "ARM Neoverse-V2",
    (0x41, 0xD80): "ARM Cortex-A520",
    (0x41, 0xD81): "ARM Cortex-A720",
    (0x41, 0xD82): "ARM Cortex-X4",
    (0x41, 0xD85): "ARM Cortex-X925",
    (0x41, 0xD87): "ARM Cortex-A725",
    (0x46, 0x001): "Fujitsu A64FX",
    (0x48, 0xD01): "HiSilicon Kunpeng 920",
    (0x4E, 0x004): "NVIDIA Carmel",
    (0x51, 0x001): "Qualcomm Oryon",
    (0x61, 0x022): "Apple M1",
    (0x61, 0x023): "Apple M1",
    (0x61, 0x024): "Apple M1 Pro",
    (0x61, 0x025): "Apple M1 Pro",
    (0x61, 0x028): "Apple M1 Max",
    (0x61, 0x029): "Apple M1 Max",
    (0x61, 0x032): "Apple M2",
    (0x61, 0x033): "Apple M2",
    (0xC0, 0xAC3): "Ampere-1",
    (0xC0, 0xAC4): "Ampere-1a",
}


def read_cpu(machine: Machine) -> Cpu:
    """Tell what the processor is. What can't be found out is left out; the name is then that of the architecture.
    On macOS this starts a program and may take a second."""
    name, features = _named(machine)
    architecture = ARCHITECTURES.get(machine.architecture.lower(), machine.architecture)
    physical, logical = machine.cores()
    return Cpu(
        model=" ".join(name.replace("\0", " ").split()) or f"{architecture} processor",
        architecture=architecture,
        physical_cores=physical,
        logical_cores=logical,
        usable_cores=_usable(machine, logical),
        features=tuple(feature for feature in FEATURES if feature in features),
    )


def _named(machine: Machine) -> tuple[str, set[str]]:
    """The name, perhaps empty, and the features."""
    if machine.platform == "linux":
        return _linux(machine)
    if machine.platform == "darwin":
        return _darwin(machine)
    return _windows()


def _usable(machine: Machine, logical: int) -> int:
    quotas = [_quota(machine, group) for group in _groups(machine)]
    allowed = [logical, machine.affinity(), *(ceil(quota) for quota in quotas if quota is not None)]
    return max(1, min(allowed))


def _groups(machine: Machine) -> list[Path]:
    return machine.control_groups("cpu") if machine.platform == "linux" else []


def _quota(machine: Machine, group: Path) -> float | None:
    """How many processors a group may use, None where there is no limit."""
    told = machine.text(str(group / "cpu.max")).split()
    if not told:
        told = [machine.text(str(group / f"cpu.cfs_{name}_us")).strip() for name in ("quota", "period")]
    # Without a limit the quota is "max" or -1.
    quota, period = (number(word) for word in [*told, "", ""][:2])
    return quota / period if quota and period else None


def _linux(machine: Machine) -> tuple[str, set[str]]:
    fields = _fields(machine.text("proc/cpuinfo"))
    flags = {flag for line in (fields.get("flags") or fields.get("features") or [])[:1] for flag in line.split()}
    if "asimd" in flags:
        flags.add("neon")  # as it is called in 64-bit mode
    return _linux_name(machine, fields), _features(flags, IN_CPUINFO)


def _linux_name(machine: Machine, fields: Mapping[str, list[str]]) -> str:
    """The processor's name, else that of its cores, its family (POWER) or the board (ARM); else the numbers of its
    maker and part; else nothing."""
    parts = list(zip(fields.get("cpu implementer", ()), fields.get("cpu part", ()), strict=False))
    names = fields.get("model name") or _arm_cores(parts)
    board = machine.text("proc/device-tree/model").strip("\0 \n")
    numbers = [f"CPU implementer {implementer}, part {part}" for implementer, part in parts[:1]]
    candidates = (" + ".join(dict.fromkeys(names)), *fields.get("cpu", ()), board, *numbers)
    return next((name for name in candidates if name), "")


def _fields(cpuinfo: str) -> dict[str, list[str]]:
    """The values by key in lower case, in the order of the processors."""
    fields: dict[str, list[str]] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            fields.setdefault(key.strip().lower(), []).append(value.strip())
    return fields


def _arm_cores(parts: Iterable[tuple[str, str]]) -> list[str]:
    """The names of cores by implementer and part, none where one of them isn't known."""
    names = [ARM_PARTS.get((_hexadecimal(implementer), _hexadecimal(part)), "") for implementer, part in parts]
    return names if all(names) else []


def _hexadecimal(text: str) -> int:
    return int(text, 16) if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text) else -1


def _features(flags: Iterable[str], names: Mapping[str, tuple[str, ...]]) -> set[str]:
    there = set(flags)
    return {feature for feature in FEATURES if there.issuperset(names.get(feature, (feature,)))}


def _darwin(machine: Machine) -> tuple[str, set[str]]:
    fields = _fields(_sysctl(machine, "machdep.cpu", "hw.optional"))
    there = {key.removeprefix("hw.optional.") for key, values in fields.items() if values == ["1"]}
    # Macs of Intel's name what came later only here.
    for key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
        there |= {word.lower() for line in fields.get(key, ()) for word in line.split()}
    if "advsimd" in there:
        there.add("neon")
    return " ".join(fields.get("machdep.cpu.brand_string", ())), _features(there, IN_SYSCTL)


def _sysctl(machine: Machine, *names: str) -> str:
    """What the kernel of macOS tells about these names, a line each; of names that it doesn't know, nothing."""
    path = None if machine.probe_env is None else machine.probe_env.get("PATH")
    argv = [which("sysctl", path=path) or "/usr/sbin/sysctl", *names]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=machine.program_timeout,
            env=machine.probe_env,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _windows() -> tuple[str, set[str]]:
    name, features = "", set[str]()
    if sys.platform == "win32":  # else the machine is only recorded
        import ctypes
        import winreg

        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        features = {feature for feature, flag in IN_WINDOWS.items() if present(flag)}
        path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
            name = str(winreg.QueryValueEx(key, "ProcessorNameString")[0])
    return name, features
