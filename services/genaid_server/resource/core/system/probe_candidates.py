"""Which probes a machine has a use for, judged by files alone."""

import os
from collections.abc import Iterator
from pathlib import Path

from genaid_server.resource.core.system.machine import Machine


def candidates(machine: Machine) -> list[str]:
    """The probes that make sense: a machine without a GPU starts none of them."""
    vendors = _card_vendors(machine.root) if machine.platform == "linux" else set()
    sensible = {
        "nvidia": _has_nvidia(machine, vendors),
        "drm": bool(vendors & {"0x1002", "0x8086", "0x10de"}),
        "vulkan": _has_vulkan(machine),
        "apple": machine.platform == "darwin",
    }
    return [name for name, makes_sense in sensible.items() if makes_sense]


def _card_vendors(root: Path) -> set[str]:
    vendors = set()
    for file in (root / "sys" / "class" / "drm").glob("card[0-9]*/device/vendor"):
        try:
            vendors.add(file.read_text("ascii", "replace").strip().lower())
        except OSError:  # it was unplugged just now
            continue
    return vendors


def _has_nvidia(machine: Machine, vendors: set[str]) -> bool:
    if machine.platform == "win32":
        return (_system32(machine.root) / "nvml.dll").exists()
    signs = ("dev/nvidiactl", "dev/dxg", "proc/driver/nvidia/version")
    return machine.platform == "linux" and (
        "0x10de" in vendors or any((machine.root / sign).exists() for sign in signs)
    )


def _has_vulkan(machine: Machine) -> bool:
    return any(_exists(path) for path in _vulkan_loaders(machine)) or (
        machine.platform == "linux" and _in_linker_cache(machine.root, b"libvulkan.so.1")
    )


def _vulkan_loaders(machine: Machine) -> Iterator[Path]:
    """Where a Vulkan loader usually lies."""
    root = machine.root
    if machine.platform == "win32":
        yield _system32(root) / "vulkan-1.dll"
    elif machine.platform == "darwin":
        for folder in ("usr/local/lib", "opt/homebrew/lib"):
            yield root / folder / "libvulkan.dylib"
    else:
        for folder in ("usr/lib64", "usr/lib", "usr/local/lib", "lib64", "lib"):
            yield root / folder / "libvulkan.so.1"
        yield from (root / "usr" / "lib").glob("*-linux-gnu*/libvulkan.so.1")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that may not be looked into
        return False


def _in_linker_cache(root: Path, library: bytes) -> bool:
    try:
        return library in (root / "etc" / "ld.so.cache").read_bytes()
    except OSError:
        return False


def _system32(root: Path) -> Path:
    """Windows' folder of libraries; it need not be on the drive that `/` means."""
    if root == Path("/"):
        return Path(os.environ.get("SYSTEMROOT", "/Windows"), "System32")
    return root / "Windows" / "System32"
