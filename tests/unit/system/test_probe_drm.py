"""GPUs of AMD and Intel are told from sysfs, also where that is old, torn or nonsense."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genaid_server.probes import drm
from recorded_machines import write

MIB, GIB = 1 << 20, 1 << 30
NO_RESOURCE = f"{0:#018x} {0:#018x} {0:#018x}\n"

Files = dict[str, str]


def card(
    vendor: str, device: str, *, number: int = 0, driver: str = "amdgpu", address: str = "0000:03:00.0", **files: Any
) -> Files:
    """The files of a card; those in `files` are the device's."""
    folder = f"sys/class/drm/card{number}/device"
    names = {"vendor": f"0x{vendor}", "device": f"0x{device}"}
    names["uevent"] = f"DRIVER={driver}\nPCI_ID={vendor.upper()}:{device.upper()}\nPCI_SLOT_NAME={address}\n"
    return {f"{folder}/{name}": f"{content}\n" for name, content in (names | files).items()}


def amd(device: str, own: int, shared: int, used: int = 0, **files: Any) -> Files:
    """A GPU of AMD's with its own memory and what it may map of main memory; it uses as much of both."""
    sizes = {"vram_total": own, "vram_used": used, "gtt_total": shared, "gtt_used": used}
    return card("1002", device, **{f"mem_info_{name}": size for name, size in sizes.items()} | files)


def bar(size: int, flags: int = 0x14220C) -> str:
    """A line of `resource` for memory of this size."""
    start = 0x4000000000
    return f"{start:#018x} {start + size - 1:#018x} {flags:#018x}\n"


def intel(device: str, driver: str = "i915", **files: Any) -> Files:
    return card("8086", device, driver=driver, **files)


def lay(root: Path, *parts: Files) -> Path:
    for part in parts:
        for path, content in part.items():
            write(root / path, content)
    return root


def only(root: Path) -> dict[str, Any]:
    """The one GPU that is found, without a note."""
    told = drm.detect(root)
    assert told["notes"] == []
    [gpu] = told["gpus"]
    assert isinstance(gpu, dict)
    return gpu


def test_an_amd_card_is_told_with_its_memory(tmp_path: Path) -> None:
    lay(tmp_path, amd("744c", 24 * GIB, 16 * GIB, GIB, revision="0xc8", mem_info_vram_vendor="samsung"))
    assert only(tmp_path) == {
        "id": "0000:03:00.0",
        "vendor": "amd",
        "vendor_id": "1002",
        "device_id": "744c",
        "name": "AMD Radeon RX 7900 XTX",
        "vram_total": 24 * GIB,
        "vram_free": 23 * GIB,
        "integrated": False,
        "unified": False,
        "driver": "amdgpu",
        "rocm": False,
    }
    assert drm.memory(tmp_path) == {
        "memory": [{"gpu_id": "0000:03:00.0", "total": 24 * GIB, "free": 23 * GIB, "processes": {}}],
        "notes": [],
    }


@pytest.mark.parametrize(
    ("device", "own", "shared", "files", "kind"),
    [
        ("15bf", 512 * MIB, 15 * GIB, {}, "integrated, main memory"),
        ("1586", 96 * GIB, 15 * GIB, {}, "integrated, own memory"),
        ("15bf", 8 * GIB, 7 * GIB, {"pcie_bw": "0 0 256"}, "integrated, own memory"),
        ("744c", 2 * GIB, 60 * GIB, {}, "a card"),  # a device that is known
        ("ffff", 512 * MIB, 15 * GIB, {}, "integrated, main memory"),
        ("ffff", 512 * MIB, 15 * GIB, {"mem_info_vram_vendor": "unknown"}, "integrated, main memory"),
        ("ffff", 2 * GIB, 15 * GIB, {"mem_info_vram_vendor": "hynix"}, "a card"),
        ("ffff", 2 * GIB, 15 * GIB, {"pcie_bw": "0 0 256"}, "a card"),
        ("ffff", 2 * GIB, 15 * GIB, {"product_name": "Instinct"}, "a card"),
        ("ffff", 8 * GIB, 60 * GIB, {}, "a card"),  # more than firmware sets aside
        ("ffff", 2 * GIB, GIB, {}, "a card"),
    ],
)
def test_integrated_gpus_of_amd_are_told_from_cards(
    tmp_path: Path, device: str, own: int, shared: int, files: Files, kind: str
) -> None:
    gpu = only(lay(tmp_path, amd(device, own, shared, MIB, **files)))
    total = shared if kind == "integrated, main memory" else own
    assert (gpu["vram_total"], gpu["vram_free"]) == (total, total - MIB)
    assert gpu["integrated"] is (kind != "a card")
    assert gpu["unified"] is (kind == "integrated, main memory")
    [measured] = drm.memory(tmp_path)["memory"]
    assert (measured["total"], measured["free"]) == (total, total - MIB)


@pytest.mark.parametrize(
    ("vendor", "device", "files", "name"),
    [
        ("1002", "744c", {"revision": "0xcc"}, "AMD Radeon RX 7900 XT"),
        ("1002", "744c", {"revision": "0x01"}, "AMD Radeon RX 7900"),
        ("1002", "744c", {}, "AMD Radeon RX 7900"),
        ("1002", "15bf", {"revision": "0xc8"}, "AMD Radeon 780M"),
        ("1002", "abcd", {}, "AMD GPU 1002:abcd"),
        ("1002", "740f", {"product_name": "AMD INSTINCT  MI210"}, "AMD INSTINCT MI210"),
        ("1002", "740f", {"product_name": "Instinct MI210"}, "AMD Instinct MI210"),
        ("1002", "740f", {"product_name": " "}, "AMD Instinct MI210"),
        ("8086", "e20b", {}, "Intel Arc B580"),
        ("8086", "abcd", {}, "Intel GPU 8086:abcd"),
    ],
)
def test_a_gpu_has_a_name(tmp_path: Path, vendor: str, device: str, files: dict[str, Any], name: str) -> None:
    [gpu] = drm.detect(lay(tmp_path, card(vendor, device, **files)))["gpus"]
    assert gpu["name"] == name


@pytest.mark.parametrize(
    ("device", "files", "total", "free"),
    [
        ("e20b", {"tile0/physical_vram_size_bytes": 12 * GIB}, 12 * GIB, None),
        ("0bd5", {f"tile{n}/physical_vram_size_bytes": 64 * GIB for n in (0, 1)}, 128 * GIB, None),
        ("56a0", {"lmem_total_bytes": 16 * GIB, "lmem_avail_bytes": 15 * GIB}, 16 * GIB, 15 * GIB),
        ("56a0", {"../lmem_total_bytes": 16 * GIB, "../lmem_avail_bytes": 15 * GIB}, 16 * GIB, 15 * GIB),
        ("56a0", {"lmem_total_bytes": 16 * GIB, "lmem_avail_bytes": 17 * GIB}, 16 * GIB, 16 * GIB),
        ("56a0", {"resource": bar(16 * MIB, 0x140204) + NO_RESOURCE + bar(16 * GIB)}, 16 * GIB, None),
        ("56a1", {"resource": bar(8 * GIB) + bar(32 * GIB, 0x140204)}, 8 * GIB, None),
        ("56a5", {"resource": bar(8 * GIB)}, 6 * GIB, None),  # a BAR is a power of two
        ("e20c", {"resource": bar(16 * GIB)}, 10 * GIB, None),
        ("4905", {"resource": bar(4 * GIB)}, 4 * GIB, None),
    ],
)
def test_cards_of_intel_tell_their_memory_in_several_ways(
    tmp_path: Path, device: str, files: Files, total: int, free: int | None
) -> None:
    gpu = only(lay(tmp_path, intel(device, **files)))
    assert (gpu["vram_total"], gpu.get("vram_free")) == (total, free)
    assert (gpu["integrated"], gpu["unified"]) == (False, False)
    measured = [(entry["total"], entry["free"]) for entry in drm.memory(tmp_path)["memory"]]
    assert measured == ([] if free is None else [(total, free)])


@pytest.mark.parametrize("driver", ["i915", "xe"])
def test_an_integrated_gpu_of_intel_has_no_memory(tmp_path: Path, driver: str) -> None:
    files = {"resource": bar(16 * MIB, 0x140204) + bar(512 * MIB), "tile0/gt0/id": "0"}
    gpu = only(lay(tmp_path, intel("9a49", driver, address="0000:00:02.0", **files)))
    assert (gpu["integrated"], gpu["unified"], gpu["driver"]) == (True, True, driver)
    assert not {"vram_total", "vram_free"} & set(gpu)
    assert drm.memory(tmp_path)["memory"] == []


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (intel("56a0", resource=bar(256 * MIB)), "Resizable BAR"),
        (intel("56a0"), "Resizable BAR"),
        (card("1002", "67df", driver="radeon"), "Update the kernel."),
    ],
)
def test_a_card_of_unknown_size_is_a_gpu_and_a_note(tmp_path: Path, files: Files, advice: str) -> None:
    told = drm.detect(lay(tmp_path, files))
    [gpu] = told["gpus"]
    [note] = told["notes"]
    assert "vram_total" not in gpu
    assert gpu["name"] in note
    assert "0000:03:00.0" in note
    assert advice in note


@pytest.mark.parametrize(("driver", "notes"), [("nouveau", 1), ("", 1), ("nvidia", 0), ("vfio-pci", 0)])
def test_a_card_of_nvidia_is_a_note_where_its_driver_lacks(tmp_path: Path, driver: str, notes: int) -> None:
    told = drm.detect(lay(tmp_path, card("10de", "2684", driver=driver)))
    assert told["gpus"] == []
    assert len(told["notes"]) == notes
    assert all("Install NVIDIA's driver" in note and "10de:2684" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("files", "rocm"),
    [
        ({}, False),
        ({"dev/kfd": ""}, False),
        ({"opt/rocm/.info/version": "6.2"}, False),
        ({"dev/kfd": "", "opt/rocm/.info/version": "6.2"}, True),
        ({"dev/kfd": "", "usr/lib/x86_64-linux-gnu/libamdhip64.so.5": ""}, True),
        ({"dev/kfd": "", "usr/lib64/libamdhip64.so": ""}, True),
        ({"dev/kfd": "", "usr/lib64/libamdhip32.so": ""}, False),
    ],
)
def test_rocm_is_its_driver_and_its_library(tmp_path: Path, files: Files, rocm: bool) -> None:
    assert only(lay(tmp_path, amd("744c", 24 * GIB, GIB), files))["rocm"] is rocm


def test_rocm_knows_no_other_gpus(tmp_path: Path) -> None:
    files = {"dev/kfd": "", "opt/rocm/.info/version": "6.2"}
    assert only(lay(tmp_path, intel("9a49"), files))["rocm"] is False


def test_cards_are_in_order_and_each_counts_once(tmp_path: Path) -> None:
    lay(
        tmp_path,
        amd("744c", GIB, GIB, number=10, address="0000:0A:00.0"),
        amd("744c", GIB, GIB, number=2, address="0000:02:00.0"),
        amd("744c", GIB, GIB, number=3, address="0000:02:00.0"),
    )
    for other in ("card2-HDMI-A-1", "renderD128", "controlD64", "version", "card", "cardX"):
        write(tmp_path / f"sys/class/drm/{other}/device/vendor", "0x1002\n")
        write(tmp_path / f"sys/class/drm/{other}/device/device", "0x744c\n")
    assert [gpu["id"] for gpu in drm.detect(tmp_path)["gpus"]] == ["0000:02:00.0", "0000:0a:00.0"]
    assert [entry["gpu_id"] for entry in drm.memory(tmp_path)["memory"]] == ["0000:02:00.0", "0000:0a:00.0"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't have the names of files of sysfs")
def test_the_address_is_also_that_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "sys/devices/pci0000:00/0000:04:00.0/vendor", "0x1002\n")
    write(tmp_path / "sys/devices/pci0000:00/0000:04:00.0/device", "0x744c\n")
    write(tmp_path / "sys/class/drm/card0/device", {"link": "../../../devices/pci0000:00/0000:04:00.0"})
    [gpu] = drm.detect(tmp_path)["gpus"]
    assert (gpu["id"], gpu["driver"]) == ("0000:04:00.0", "")


def test_without_an_address_the_card_stands_for_itself(tmp_path: Path) -> None:
    [gpu] = drm.detect(lay(tmp_path, amd("744c", GIB, GIB, address="")))["gpus"]
    assert gpu["id"] == "card0"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"sys/class/drm": "a file"},
        {"sys/class/drm/version": "drm 1.1.0 20060810\n"},
        {"sys/class/drm/card0/dev": "226:0\n"},
        {"sys/class/drm/card0/device": "a file"},
        {"sys/class/drm/card0/device/uevent": "DRIVER=v3d\nOF_NAME=v3d\n"},
        {"sys/class/drm/card0/device/vendor/name": "a folder"},
        card("1af4", "1050", driver="virtio-pci"),
        card("1002", ""),
        card("1002", "744"),
    ],
)
def test_what_is_no_gpu_of_theirs_is_passed_over(tmp_path: Path, files: Files) -> None:
    lay(tmp_path, files)
    assert drm.detect(tmp_path) == {"gpus": [], "notes": []}
    assert drm.memory(tmp_path) == {"memory": [], "notes": []}


NAMES = ("uevent", "revision", "resource", "product_name", "mem_info_vram_total", "mem_info_vram_used")
MORE = ("mem_info_gtt_total", "mem_info_vram_vendor", "lmem_total_bytes", "tile0/physical_vram_size_bytes")
EMPTY: dict[str, Any] = dict.fromkeys(NAMES + MORE, "")
NONSENSE = st.one_of(
    st.binary(max_size=60),
    st.text("0123456789abcdefx \n-", max_size=60).map(str.encode),
    st.just(b"9" * 9999),
    st.just(b"0xffffffffffffffff 0x0000000000000000 0x2000\n"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    vendor=st.sampled_from(["1002", "8086", "10de"]),
    device=st.sampled_from(["744c", "15bf", "56a0", "9a49", "ffff"]),
    contents=st.dictionaries(st.sampled_from(NAMES + MORE), NONSENSE),
)
def test_nonsense_in_files_is_never_an_error(
    tmp_path: Path, vendor: str, device: str, contents: dict[str, bytes]
) -> None:
    lay(tmp_path, card(vendor, device, **EMPTY))
    for name, content in contents.items():
        (tmp_path / "sys/class/drm/card0/device" / name).write_bytes(content)
    told = drm.detect(tmp_path)
    assert len(told["gpus"]) == (vendor != "10de")
    for entry in (*told["gpus"], *drm.memory(tmp_path)["memory"]):
        assert all(size >= 0 for size in entry.values() if isinstance(size, int))
    json.dumps(told).encode("utf-8")
