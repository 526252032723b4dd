"""A stand-in for the pynvml module of nvidia-ml-py that answers from the JSON file named in GENAID_STUB_NVML.

The file holds null (there is no library), `{"error": CODE}` (the library refuses to start), or a driver and its
devices. `total` of a device is null where there is only main memory; `lost` is a GPU that fell off the bus;
`processes` null is a driver that tells no sizes; `graphics` are processes that draw; `errors` is what functions fail
with, by their names.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NO_PERMISSION = 4
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_FUNCTION_NOT_FOUND = 13
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
nvmlMemory_v2 = 0x02000028  # noqa: N816 (their name)

WORDS = {
    NVML_ERROR_NOT_SUPPORTED: "Not Supported",
    NVML_ERROR_NO_PERMISSION: "Insufficient Permissions",
    NVML_ERROR_DRIVER_NOT_LOADED: "Driver Not Loaded",
    NVML_ERROR_LIBRARY_NOT_FOUND: "NVML Shared Library Not Found",
    NVML_ERROR_FUNCTION_NOT_FOUND: "Function Not Found",
    NVML_ERROR_GPU_IS_LOST: "GPU is lost",
    NVML_ERROR_LIB_RM_VERSION_MISMATCH: "RM has detected an NVML/RM version mismatch.",
}

Device = dict[str, Any]


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(WORDS[value])
        self.value = value


def _recorded() -> dict[str, Any]:
    recorded: dict[str, Any] | None = json.loads(Path(os.environ["GENAID_STUB_NVML"]).read_text("utf-8"))
    if recorded is None:
        raise NVMLError(NVML_ERROR_LIBRARY_NOT_FOUND)
    return recorded


def _check(device: Device, function: str) -> None:
    if function in device.get("errors", {}):
        raise NVMLError(device["errors"][function])


def nvmlInit() -> None:  # noqa: N802
    recorded = _recorded()
    if "error" in recorded:
        raise NVMLError(recorded["error"])


def nvmlSystemGetDriverVersion() -> str:  # noqa: N802
    return str(_recorded()["driver"])


def nvmlDeviceGetCount() -> int:  # noqa: N802
    return len(_recorded()["devices"])


def nvmlDeviceGetHandleByIndex(index: int) -> Device:  # noqa: N802
    device: Device = _recorded()["devices"][index]
    if device.get("lost"):
        raise NVMLError(NVML_ERROR_GPU_IS_LOST)
    return device


def nvmlDeviceGetName(device: Device) -> str:  # noqa: N802
    return str(device["name"])


def nvmlDeviceGetUUID(device: Device) -> str:  # noqa: N802
    return str(device["uuid"])


def nvmlDeviceGetPciInfo(device: Device) -> Any:  # noqa: N802
    _check(device, "nvmlDeviceGetPciInfo")
    domain, _, rest = device["pci"].upper().partition(":")
    number = device["device_id"]
    number = int(number, 16) if isinstance(number, str) else number
    return SimpleNamespace(busId=f"{domain:0>8}:{rest}", pciDeviceId=number << 16 | 0x10DE)


def nvmlDeviceGetMemoryInfo(device: Device, version: int | None = None) -> Any:  # noqa: N802
    _check(device, "nvmlDeviceGetMemoryInfo" + ("_v2" if version else ""))
    if device["total"] is None:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return SimpleNamespace(total=device["total"], free=device["free"], used=device["total"] - device["free"])


def nvmlDeviceGetCudaComputeCapability(device: Device) -> tuple[int, int]:  # noqa: N802
    _check(device, "nvmlDeviceGetCudaComputeCapability")
    major, minor = device["capability"]
    return major, minor


def _processes(device: Device, key: str, function: str) -> list[Any]:
    _check(device, function)
    used: dict[str, int | None] = device.get(key) or {}
    return [SimpleNamespace(pid=int(pid), usedGpuMemory=size) for pid, size in used.items()]


def nvmlDeviceGetComputeRunningProcesses(device: Device) -> list[Any]:  # noqa: N802
    return _processes(device, "processes", "nvmlDeviceGetComputeRunningProcesses")


def nvmlDeviceGetComputeRunningProcesses_v2(device: Device) -> list[Any]:  # noqa: N802
    return _processes(device, "processes", "nvmlDeviceGetComputeRunningProcesses_v2")


def nvmlDeviceGetGraphicsRunningProcesses(device: Device) -> list[Any]:  # noqa: N802
    return _processes(device, "graphics", "nvmlDeviceGetGraphicsRunningProcesses")


def nvmlDeviceGetGraphicsRunningProcesses_v2(device: Device) -> list[Any]:  # noqa: N802
    return _processes(device, "graphics", "nvmlDeviceGetGraphicsRunningProcesses_v2")
