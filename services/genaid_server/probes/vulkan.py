"""GPUs that Vulkan can use, from the Vulkan loader of the system, by ctypes."""

import ctypes
import sys
from collections import Counter
from collections.abc import Iterable
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VENDORS: Final = {"10de": "nvidia", "1002": "amd", "8086": "intel", "106b": "apple"}

VERSION_1_0: Final = 1 << 22
VERSION_1_1: Final = 1 << 22 | 1 << 12
SUCCESS: Final = 0
INCOMPLETE: Final = 5  # there are more devices than the list has room for
APPLICATION_INFO: Final = 0  # values of VkStructureType
INSTANCE_CREATE_INFO: Final = 1
PHYSICAL_DEVICE_PROPERTIES_2: Final = 1000059001
PHYSICAL_DEVICE_ID_PROPERTIES: Final = 1000071004
INTEGRATED_GPU: Final = 1  # values of VkPhysicalDeviceType
CPU: Final = 4
DEVICE_LOCAL: Final = 1  # a flag of a heap
ENUMERATE_PORTABILITY: Final = 1  # a flag of instances: also list drivers that implement Vulkan upon Metal
PORTABILITY: Final = b"VK_KHR_portability_enumeration"


class ApplicationInfo(Structure):
    """VkApplicationInfo."""

    _fields_ = (
        ("structure_type", c_int32),
        ("next", c_void_p),
        ("application_name", c_char_p),
        ("application_version", c_uint32),
        ("engine_name", c_char_p),
        ("engine_version", c_uint32),
        ("api_version", c_uint32),
    )


class InstanceCreateInfo(Structure):
    """VkInstanceCreateInfo."""

    _fields_ = (
        ("structure_type", c_int32),
        ("next", c_void_p),
        ("flags", c_uint32),
        ("application_info", POINTER(ApplicationInfo)),
        ("layer_count", c_uint32),
        ("layer_names", POINTER(c_char_p)),
        ("extension_count", c_uint32),
        ("extension_names", POINTER(c_char_p)),
    )


class PhysicalDeviceProperties(Structure):
    """VkPhysicalDeviceProperties. The limits aren't looked into; they are 504 bytes, aligned as 64-bit numbers."""

    _fields_ = (
        ("api_version", c_uint32),
        ("driver_version", c_uint32),
        ("vendor_id", c_uint32),
        ("device_id", c_uint32),
        ("device_type", c_int32),
        ("device_name", c_char * 256),
        ("pipeline_cache_uuid", c_uint8 * 16),
        ("limits", c_uint64 * 63),
        ("sparse_properties", c_uint32 * 5),
    )


class PhysicalDeviceProperties2(Structure):
    """VkPhysicalDeviceProperties2."""

    _fields_ = (("structure_type", c_int32), ("next", c_void_p), ("properties", PhysicalDeviceProperties))


class PhysicalDeviceIdProperties(Structure):
    """VkPhysicalDeviceIDProperties."""

    _fields_ = (
        ("structure_type", c_int32),
        ("next", c_void_p),
        ("device_uuid", c_uint8 * 16),
        ("driver_uuid", c_uint8 * 16),
        ("device_luid", c_uint8 * 8),
        ("device_node_mask", c_uint32),
        ("device_luid_valid", c_uint32),
    )


class MemoryType(Structure):
    """VkMemoryType."""

    _fields_ = (("property_flags", c_uint32), ("heap_index", c_uint32))


class MemoryHeap(Structure):
    """VkMemoryHeap."""

    _fields_ = (("size", c_uint64), ("flags", c_uint32))


class PhysicalDeviceMemoryProperties(Structure):
    """VkPhysicalDeviceMemoryProperties."""

    _fields_ = (
        ("type_count", c_uint32),
        ("types", MemoryType * 32),
        ("heap_count", c_uint32),
        ("heaps", MemoryHeap * 16),
    )


class VulkanError(Exception):
    """A call failed; the message says which, and with what result."""


@dataclass(frozen=True, slots=True)
class Device:
    """What Vulkan says of a device. Ids have four hexadecimal digits; `kind` is a value of VkPhysicalDeviceType;
    `memory` is its own, in bytes; `uuid` is empty where the driver is older than Vulkan 1.1."""

    name: str
    vendor_id: str
    device_id: str
    kind: int
    memory: int
    uuid: str = ""


def detect(root: Path) -> dict[str, Any]:
    """Every device that is a GPU of a known vendor; notes say what the others are."""
    library = load()
    if library is None:
        return {"gpus": [], "notes": ["The Vulkan loader can't be loaded. Reinstall it to use GPUs through Vulkan."]}
    try:
        return answer(_devices(library))
    except VulkanError as error:
        note = f"No driver for Vulkan can be used ({error}). Install the Vulkan driver of the GPU to use it so."
        return {"gpus": [], "notes": [note]}


def answer(devices: Iterable[Device]) -> dict[str, Any]:
    """What is told of these devices."""
    gpus: dict[str, dict[str, Any]] = {}
    notes = []
    seen: Counter[str] = Counter()
    for device in devices:
        if device.kind == CPU:
            notes.append(f"{device.name} computes Vulkan on the processor; it does not count as a GPU.")
        elif device.vendor_id not in VENDORS:
            notes.append(f"{device.name} is a GPU of a vendor that is not known ({device.vendor_id}); it is left out.")
        else:
            hardware = f"vulkan-{device.vendor_id}-{device.device_id}"
            gpu_id = device.uuid or f"{hardware}-{seen[hardware]}"
            seen[hardware] += 1
            gpus.setdefault(gpu_id, _gpu(gpu_id, device))  # two drivers may serve one GPU
    return {"gpus": list(gpus.values()), "notes": notes}


def _gpu(gpu_id: str, device: Device) -> dict[str, Any]:
    integrated = device.kind == INTEGRATED_GPU
    return {
        "id": gpu_id,
        "vendor": VENDORS[device.vendor_id],
        "vendor_id": device.vendor_id,
        "device_id": device.device_id,
        "name": device.name,
        "vram_total": device.memory,
        "integrated": integrated,
        "unified": integrated,
        "vulkan": True,
    }


def load() -> Any:
    """The loader's library, None where it isn't there or is broken."""
    if sys.platform == "win32":
        names = ["vulkan-1.dll"]
    elif sys.platform == "darwin":
        # Homebrew's folder is not searched by itself.
        names = ["libvulkan.dylib", "libvulkan.1.dylib", "/opt/homebrew/lib/libvulkan.dylib"]
    else:
        names = ["libvulkan.so.1"]
    for name in names:
        try:
            return ctypes.CDLL(name)  # on 64-bit Windows there is but one calling convention
        except OSError:
            continue
    return None


def _devices(library: Any) -> list[Device]:
    """All devices of all drivers; raises VulkanError."""
    instance = _create_instance(library)
    try:
        return [_device(library, handle) for handle in _handles(library, instance)]
    finally:
        library.vkDestroyInstance.argtypes = (c_void_p, c_void_p)
        library.vkDestroyInstance.restype = None
        library.vkDestroyInstance(instance, None)


def _create_instance(library: Any) -> c_void_p:
    modern = hasattr(library, "vkEnumerateInstanceVersion")  # a loader of 1.0 refuses a higher version
    application = ApplicationInfo(APPLICATION_INFO, api_version=VERSION_1_1 if modern else VERSION_1_0)
    info = InstanceCreateInfo(INSTANCE_CREATE_INFO, application_info=ctypes.pointer(application))
    if sys.platform == "darwin":
        info.flags = ENUMERATE_PORTABILITY
        info.extension_count = 1
        info.extension_names = (c_char_p * 1)(PORTABILITY)
    instance = c_void_p()
    library.vkCreateInstance.argtypes = (POINTER(InstanceCreateInfo), c_void_p, POINTER(c_void_p))
    result = library.vkCreateInstance(byref(info), None, byref(instance))
    if result != SUCCESS:
        raise VulkanError(f"vkCreateInstance: {result}")
    return instance


def _handles(library: Any, instance: c_void_p) -> list[c_void_p]:
    enumerate_devices = library.vkEnumeratePhysicalDevices
    enumerate_devices.argtypes = (c_void_p, POINTER(c_uint32), POINTER(c_void_p))
    count = c_uint32()
    result = enumerate_devices(instance, byref(count), None)
    handles = (c_void_p * count.value)()
    if result == SUCCESS:
        result = enumerate_devices(instance, byref(count), handles)
    if result not in {SUCCESS, INCOMPLETE}:
        raise VulkanError(f"vkEnumeratePhysicalDevices: {result}")
    return [c_void_p(handle) for handle in handles[: count.value]]


def _device(library: Any, handle: c_void_p) -> Device:
    properties = PhysicalDeviceProperties()
    library.vkGetPhysicalDeviceProperties.argtypes = (c_void_p, POINTER(PhysicalDeviceProperties))
    library.vkGetPhysicalDeviceProperties.restype = None
    library.vkGetPhysicalDeviceProperties(handle, byref(properties))
    return Device(
        name=properties.device_name.decode("utf-8", "replace"),
        vendor_id=f"{properties.vendor_id:04x}",
        device_id=f"{properties.device_id:04x}",
        kind=properties.device_type,
        memory=_memory(library, handle),
        uuid=_uuid(library, handle) if properties.api_version >= VERSION_1_1 else "",
    )


def _memory(library: Any, handle: c_void_p) -> int:
    """The bytes of its own heaps."""
    memory = PhysicalDeviceMemoryProperties()
    library.vkGetPhysicalDeviceMemoryProperties.argtypes = (c_void_p, POINTER(PhysicalDeviceMemoryProperties))
    library.vkGetPhysicalDeviceMemoryProperties.restype = None
    library.vkGetPhysicalDeviceMemoryProperties(handle, byref(memory))
    return sum(heap.size for heap in memory.heaps[: memory.heap_count] if heap.flags & DEVICE_LOCAL)


def _uuid(library: Any, handle: c_void_p) -> str:
    """The device's UUID, the same for each driver that serves it; empty where the loader can't be asked."""
    ask = getattr(library, "vkGetPhysicalDeviceProperties2", None)
    if ask is None:
        return ""
    identity = PhysicalDeviceIdProperties(PHYSICAL_DEVICE_ID_PROPERTIES)
    properties = PhysicalDeviceProperties2(PHYSICAL_DEVICE_PROPERTIES_2, ctypes.addressof(identity))
    ask.argtypes = (c_void_p, POINTER(PhysicalDeviceProperties2))
    ask.restype = None
    ask(handle, byref(properties))
    digits = bytes(identity.device_uuid).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
