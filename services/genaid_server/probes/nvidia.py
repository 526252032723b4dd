"""NVIDIA GPUs, from NVML, the library of NVIDIA's driver."""

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

nvml: Final = import_module("pynvml")  # its functions have no types

NOT_TOLD: Final = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NO_PERMISSION)
"""What a driver says that is well, but doesn't tell this."""

ADVICE: Final = {
    nvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "Its library is missing. Install NVIDIA's driver; start a container with access to the GPUs (--gpus all)."
    ),
    nvml.NVML_ERROR_DRIVER_NOT_LOADED: "It is not loaded. Load it (modprobe nvidia), or reinstall it.",
    nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "It was updated while it ran. Restart the machine.",
    nvml.NVML_ERROR_NO_PERMISSION: "This user may not use it. Give the user access to /dev/nvidiactl.",
}


def detect(root: Path) -> dict[str, Any]:
    """Every GPU that answers. Main memory, for boards that have no other, is read below `root`."""
    gpus, notes = _each(lambda handle: _gpu(handle, root), root)
    return {"gpus": gpus, "notes": notes}


def memory(root: Path) -> dict[str, Any]:
    """The memory of every GPU that answers, in bytes, and how much of it each process has."""
    found, notes = _each(lambda handle: _measured(handle, root), root)
    return {"memory": found, "notes": notes}


def address(bus_id: str) -> str:
    """A PCI address as Linux writes it: NVML's domains have four digits more, and its letters are large."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


@cache
def _start() -> None:
    nvml.nvmlInit()  # and it stays open for as long as this process lives


def _each(look: Callable[[Any], dict[str, Any]], root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What `look` says of each GPU, and notes about those that failed."""
    try:
        _start()
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return [], [_unusable(error, root)]
    found, notes = [], []
    for index in range(count):
        try:
            found.append(look(nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError as error:
            notes.append(
                f"NVIDIA GPU {index} does not answer ({error}); it is left out. Restart the machine to get it back."
            )
    return found, notes


def _unusable(error: Any, root: Path) -> str:
    """A note about a driver that does not work at all."""
    if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND and (root / "dev" / "dxg").exists():
        return "WSL shows no NVIDIA driver. If there is an NVIDIA GPU, install its driver in Windows, not in WSL."
    advice = ADVICE.get(error.value, "Run nvidia-smi to see more; where that fails as well, reinstall the driver.")
    return f"The NVIDIA driver can't be used ({error}); its GPUs are left out. {advice}"


def _gpu(handle: Any, root: Path) -> dict[str, Any]:
    total, free, unified = _sizes(handle, root)
    gpu = {
        "id": _id(handle),
        "vendor": "nvidia",
        "name": nvml.nvmlDeviceGetName(handle),
        "vram_total": total,
        "vram_free": free,
        "unified": unified,
        "integrated": unified,
        "driver": _told(nvml.nvmlSystemGetDriverVersion),
        "cuda": True,
    }
    pci = _told(nvml.nvmlDeviceGetPciInfo, handle)
    if pci is not None:
        gpu["vendor_id"] = f"{pci.pciDeviceId & 0xFFFF:04x}"
        gpu["device_id"] = f"{pci.pciDeviceId >> 16:04x}"
    capability = _told(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    if capability is not None:
        gpu["compute_capability"] = ".".join(str(part) for part in capability)
    return {key: value for key, value in gpu.items() if value is not None}


def _measured(handle: Any, root: Path) -> dict[str, Any]:
    total, free, _ = _sizes(handle, root)
    return {"gpu_id": _id(handle), "total": total, "free": free, "processes": _processes(handle)}


def _id(handle: Any) -> str:
    """The PCI address; the UUID of a GPU that sits on no bus."""
    pci = _told(nvml.nvmlDeviceGetPciInfo, handle)
    return address(pci.busId) if pci is not None else str(nvml.nvmlDeviceGetUUID(handle))


def _sizes(handle: Any, root: Path) -> tuple[int | None, int | None, bool]:
    """Total and free memory in bytes, None where they aren't told, and whether it is a part of main memory."""
    try:
        seen = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        seen = _told(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        if seen is None and error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
            # Jetson, GB10: there is nothing but main memory, and the library has no numbers for that.
            return *_main_memory(root), True
        if seen is None:
            return None, None, False
    return seen.total, seen.free, False


def _main_memory(root: Path) -> tuple[int | None, int | None]:
    """Total and available bytes of main memory, None where they can't be read."""
    try:
        lines = (root / "proc" / "meminfo").read_text("ascii", "replace").splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    except (OSError, ValueError, IndexError):
        return None, None
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


def _processes(handle: Any) -> dict[str, int]:
    """Bytes by process id. Under Windows and WSL the driver tells no sizes, and those processes are left out."""
    used: dict[str, int] = {}
    for process in _running(handle):
        if process.usedGpuMemory is not None:
            # One that computes and draws is in both lists, with all that it has in each.
            used[str(process.pid)] = max(process.usedGpuMemory, used.get(str(process.pid), 0))
    return used


def _running(handle: Any) -> Iterator[Any]:
    for kind in ("Compute", "Graphics"):
        name = f"nvmlDeviceGet{kind}RunningProcesses"
        try:
            yield from getattr(nvml, name)(handle)
        except nvml.NVMLError as error:
            if error.value not in NOT_TOLD:
                raise
            yield from _told(getattr(nvml, f"{name}_v2"), handle) or ()  # a driver older than 510


def _told(ask: Callable[..., Any], *args: Any) -> Any:
    """What the library says, None where it doesn't tell; raises NVMLError where the GPU failed."""
    try:
        return ask(*args)
    except nvml.NVMLError as error:
        if error.value in NOT_TOLD:
            return None
        raise
