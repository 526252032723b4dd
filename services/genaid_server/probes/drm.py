"""GPUs of AMD and Intel, from what the kernel of Linux tells about its graphics drivers in sysfs.

Cards of NVIDIA are told by NVIDIA's own library; here they are only a note where they lack its driver. What is not
known is left out of an answer, and a tree that makes no sense is no error.

AMD builds GPUs into processors that have two memories: what the firmware sets aside, often little, and main memory
that the GPU may map (GTT). Engines use either, and such a GPU is told by the larger one: by GTT it is unified, because
that is main memory; else it has a memory of its own, as on boards that set aside most of what they have.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CARDS: Final = Path("sys/class/drm")
AMD, INTEL, NVIDIA = "1002", "8086", "10de"
VENDORS: Final = {AMD: "amd", INTEL: "intel"}
MAX_TEXT: Final = 1 << 16  # bytes that are read of a file
GIB: Final = 1 << 30

PCI_ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
INTEL_CARDS: Final = re.compile(r"56..|e2..|49..|0bd.")  # Arc A and Flex, Arc B, DG1, Data Center Max

PREFETCHABLE: Final = 0x2000  # a flag of a PCI resource
SMALL_BAR: Final = 256 << 20  # bytes; all that a card shows of its memory without Resizable BAR
FIRMWARE_SHARE: Final = 4 * GIB  # more isn't set aside unless somebody asked for it

ROCM_FOLDERS: Final = ("usr/lib", "usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/local/lib", "opt/rocm/lib")

# By device, and by revision where several cards share a device.
AMD_NAMES: Final = {
    "66af": "AMD Radeon VII",
    "67df": "AMD Radeon RX 470/480/570/580",
    "67df:c7": "AMD Radeon RX 480",
    "67df:e7": "AMD Radeon RX 580",
    "687f": "AMD Radeon RX Vega",
    "731f": "AMD Radeon RX 5600/5700",
    "731f:c1": "AMD Radeon RX 5700 XT",
    "7340": "AMD Radeon RX 5500",
    "738c": "AMD Instinct MI100",
    "73bf": "AMD Radeon RX 6800/6900",
    "73bf:c0": "AMD Radeon RX 6900 XT",
    "73bf:c1": "AMD Radeon RX 6800 XT",
    "73bf:c3": "AMD Radeon RX 6800",
    "73df": "AMD Radeon RX 6700",
    "73df:c1": "AMD Radeon RX 6700 XT",
    "73ff": "AMD Radeon RX 6600",
    "73ff:c1": "AMD Radeon RX 6600 XT",
    "73ff:c7": "AMD Radeon RX 6600",
    "740f": "AMD Instinct MI210",
    "7448": "AMD Radeon PRO W7900",
    "744c": "AMD Radeon RX 7900",
    "744c:c8": "AMD Radeon RX 7900 XTX",
    "744c:cc": "AMD Radeon RX 7900 XT",
    "744c:ce": "AMD Radeon RX 7900 GRE",
    "745e": "AMD Radeon PRO W7800",
    "747e": "AMD Radeon RX 7700/7800",
    "747e:c8": "AMD Radeon RX 7800 XT",
    "747e:ff": "AMD Radeon RX 7700 XT",
    "7480": "AMD Radeon RX 7600",
    "74a1": "AMD Instinct MI300X",
    "7550": "AMD Radeon RX 9070",
    "7550:c0": "AMD Radeon RX 9070 XT",
    "7590": "AMD Radeon RX 9060 XT",
}
AMD_INTEGRATED: Final = {
    "1114": "AMD Radeon 840M/860M",
    "13c0": "AMD Radeon Graphics (Granite Ridge)",
    "1435": "AMD Custom GPU (Steam Deck)",
    "1506": "AMD Radeon 610M",
    "150e": "AMD Radeon 880M/890M",
    "1586": "AMD Radeon 8050S/8060S",
    "15bf": "AMD Radeon 780M",
    "15c8": "AMD Radeon 740M",
    "15d8": "AMD Radeon Vega (Picasso)",
    "15dd": "AMD Radeon Vega (Raven Ridge)",
    "15e7": "AMD Radeon Vega (Barcelo)",
    "1636": "AMD Radeon Vega (Renoir)",
    "1638": "AMD Radeon Vega (Cezanne)",
    "163f": "AMD Custom GPU (Steam Deck)",
    "164c": "AMD Radeon Vega (Lucienne)",
    "164e": "AMD Radeon Graphics (Raphael)",
    "1681": "AMD Radeon 660M/680M",
    "1900": "AMD Radeon 780M",
    "1901": "AMD Radeon 740M/760M",
}
INTEL_NAMES: Final = {
    "3e92": "Intel UHD Graphics 630",
    "3ea0": "Intel UHD Graphics 620",
    "4680": "Intel UHD Graphics 770",
    "46a6": "Intel Iris Xe Graphics",
    "46a8": "Intel Iris Xe Graphics",
    "46d1": "Intel UHD Graphics (N100)",
    "4905": "Intel Iris Xe MAX",
    "4c8a": "Intel UHD Graphics 750",
    "5690": "Intel Arc A770M",
    "5691": "Intel Arc A730M",
    "5692": "Intel Arc A550M",
    "5693": "Intel Arc A370M",
    "5694": "Intel Arc A350M",
    "56a0": "Intel Arc A770",
    "56a1": "Intel Arc A750",
    "56a2": "Intel Arc A580",
    "56a5": "Intel Arc A380",
    "56a6": "Intel Arc A310",
    "56b1": "Intel Arc Pro A40/A50",
    "56b3": "Intel Arc Pro A60",
    "56c0": "Intel Data Center GPU Flex 170",
    "56c1": "Intel Data Center GPU Flex 140",
    "5912": "Intel HD Graphics 630",
    "5916": "Intel HD Graphics 620",
    "5917": "Intel UHD Graphics 620",
    "64a0": "Intel Arc 130V/140V",
    "7d51": "Intel Arc 130T/140T",
    "7d55": "Intel Arc Graphics",
    "9a49": "Intel Iris Xe Graphics",
    "9bc5": "Intel UHD Graphics 630",
    "a780": "Intel UHD Graphics 770",
    "a7a0": "Intel Iris Xe Graphics",
    "e20b": "Intel Arc B580",
    "e20c": "Intel Arc B570",
    "e211": "Intel Arc Pro B60",
    "e212": "Intel Arc Pro B50",
}
# A BAR is a power of two, and the memory of these is not.
LESS_THAN_BAR: Final = {
    "5691": 12 * GIB,
    "56a5": 6 * GIB,
    "56b1": 6 * GIB,
    "56b3": 12 * GIB,
    "e20b": 12 * GIB,
    "e20c": 10 * GIB,
    "e211": 24 * GIB,
}


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card in sysfs: `folder` is its own, `device` that of the PCI device; the ids have four hexadecimal
    digits, `driver` is the kernel's and may be empty."""

    folder: Path
    device: Path
    gpu_id: str
    vendor_id: str
    device_id: str
    driver: str

    @property
    def name(self) -> str:
        """What the card says it is, else what is known of its ids, else the ids themselves."""
        told = " ".join(_text(self.device / "product_name").split())
        if told:
            return told if self.vendor_id != AMD or told.startswith("AMD") else f"AMD {told}"
        revision = _text(self.device / "revision").removeprefix("0x")
        if self.vendor_id == INTEL:
            known = INTEL_NAMES.get(self.device_id)
        else:
            exactly = AMD_NAMES.get(f"{self.device_id}:{revision}")
            known = exactly or AMD_NAMES.get(self.device_id) or AMD_INTEGRATED.get(self.device_id)
        maker = {AMD: "AMD", INTEL: "Intel", NVIDIA: "NVIDIA"}[self.vendor_id]
        return known or f"{maker} GPU {self.vendor_id}:{self.device_id}"


@dataclass(frozen=True, slots=True)
class Vram:
    """A GPU's memory in bytes, None where it isn't told; `unified` says that it is a part of main memory."""

    total: int | None
    free: int | None
    integrated: bool
    unified: bool


def detect(root: Path) -> dict[str, Any]:
    """Every GPU of AMD and Intel that a driver of the kernel serves, and notes on what keeps others from being used."""
    rocm = _has_rocm(root)
    gpus, notes = [], []
    for card in _cards(root):
        if card.vendor_id == NVIDIA:
            if card.driver in {"", "nouveau"}:
                notes.append(_without_driver(card))
            continue
        vram = _vram(card)
        if vram.total is None and not vram.integrated:
            notes.append(_without_size(card))
        gpus.append(_gpu(card, vram, rocm=rocm))
    return {"gpus": gpus, "notes": notes}


def memory(root: Path) -> dict[str, Any]:
    """The memory of each GPU whose driver tells how much is free."""
    measured: list[dict[str, Any]] = []
    for card in _cards(root):
        vram = _vram(card) if card.vendor_id in VENDORS else None
        if vram is not None and vram.free is not None:
            measured.append({"gpu_id": card.gpu_id, "total": vram.total, "free": vram.free, "processes": {}})
    return {"memory": measured, "notes": []}


def _gpu(card: Card, vram: Vram, *, rocm: bool) -> dict[str, Any]:
    facts = {
        "id": card.gpu_id,
        "vendor": VENDORS[card.vendor_id],
        "vendor_id": card.vendor_id,
        "device_id": card.device_id,
        "name": card.name,
        "vram_total": vram.total,
        "vram_free": vram.free,
        "integrated": vram.integrated,
        "unified": vram.unified,
        "driver": card.driver,
        # ROCm knows no driver but this one.
        "rocm": rocm and card.driver == "amdgpu",
    }
    return {key: value for key, value in facts.items() if value is not None}


def _without_driver(card: Card) -> str:
    return (
        f"{card.name} at {card.gpu_id} can't be used, because it runs without NVIDIA's own driver "
        f"({card.driver or 'no driver'}). Install NVIDIA's driver to use it."
    )


def _without_size(card: Card) -> str:
    advice = (
        "Update the kernel" if card.vendor_id == AMD else "Update the kernel, or turn on Resizable BAR in the firmware"
    )
    return f"How much memory {card.name} at {card.gpu_id} has is not known: its driver doesn't tell. {advice}."


def _cards(root: Path) -> Iterator[Card]:
    """The cards by number, each PCI device once. Outputs (card0-HDMI-A-1) and render nodes are no cards."""
    try:
        names = [path.name for path in (root / CARDS).iterdir()]
    except OSError:  # no driver, or no Linux
        return
    numbers = sorted(int(name[4:]) for name in names if re.fullmatch(r"card[0-9]{1,6}", name))
    seen = set()
    for number in numbers:
        card = _card(root / CARDS / f"card{number}")
        if card is not None and card.gpu_id not in seen:
            seen.add(card.gpu_id)
            yield card


def _card(folder: Path) -> Card | None:
    """The card in a folder, None where it isn't one of the three vendors."""
    device = folder / "device"
    vendor_id, device_id = (_pci_id(_text(device / name)) for name in ("vendor", "device"))
    if vendor_id not in {AMD, INTEL, NVIDIA} or not device_id:
        return None
    told = (line.partition("=") for line in _text(device / "uevent").splitlines())
    event = {key: value.strip() for key, _, value in told}
    addresses = (event.get("PCI_SLOT_NAME", "").lower(), Path(os.path.realpath(device)).name.lower())
    gpu_id = next((address for address in addresses if PCI_ADDRESS.fullmatch(address)), folder.name)
    return Card(folder, device, gpu_id, vendor_id, device_id, event.get("DRIVER", ""))


def _vram(card: Card) -> Vram:
    return _amd_vram(card) if card.vendor_id == AMD else _intel_vram(card)


def _amd_vram(card: Card) -> Vram:
    own, own_used, shared, shared_used = (
        _number(card.device / f"mem_info_{name}") for name in ("vram_total", "vram_used", "gtt_total", "gtt_used")
    )
    integrated = _is_integrated_amd(card, own, shared)
    if integrated and shared is not None and shared > (own or 0):
        return Vram(shared, _left(shared, shared_used), integrated=True, unified=True)
    return Vram(own or None, _left(own, own_used), integrated, unified=False)


def _is_integrated_amd(card: Card, own: int | None, shared: int | None) -> bool:
    """Whether an AMD GPU is a part of a processor. Nothing in sysfs says so outright.

    Known devices are what they are. Otherwise only boards have memory chips of a maker, a link whose traffic is counted
    and a name in a memory of their own; and what has none of these, but less memory than firmware sets aside and more
    that it may map, is a part of a processor.
    """
    if card.device_id in AMD_INTEGRATED:
        return True
    maker = _text(card.device / "mem_info_vram_vendor")
    board = (maker and maker != "unknown") or any(_has(card.device / name) for name in ("pcie_bw", "product_name"))
    if board or card.device_id in AMD_NAMES or own is None or shared is None:
        return False
    return own < min(shared, FIRMWARE_SHARE)


def _intel_vram(card: Card) -> Vram:
    tiles = [_number(path) for path in sorted(card.device.glob("tile[0-9]*/physical_vram_size_bytes"))]  # xe
    total = sum(size or 0 for size in tiles) or None
    free = None
    if total is None:  # i915
        for folder in (card.folder, card.device):
            total = total or _number(folder / "lmem_total_bytes") or None
            free = _number(folder / "lmem_avail_bytes") if free is None else free
    discrete = total is not None or INTEL_CARDS.fullmatch(card.device_id) is not None
    if total is None and discrete:
        total = _bar(card)
    if total is not None and free is not None:
        free = min(free, total)
    return Vram(total, None if total is None else free, integrated=not discrete, unified=not discrete)


def _bar(card: Card) -> int | None:
    """The memory that a card shows on the bus, in bytes; None where it shows only a window onto it."""
    sizes = [0]
    for line in _text(card.device / "resource").splitlines():
        words = line.split()
        if len(words) == 3 and all(re.fullmatch(r"0x[0-9a-fA-F]{1,16}", word) for word in words):
            start, end, flags = (int(word, 16) for word in words)
            if flags & PREFETCHABLE:
                sizes.append(end - start + 1)
    size = max(sizes)
    return min(size, LESS_THAN_BAR.get(card.device_id, size)) if size > SMALL_BAR else None


def _left(total: int | None, used: int | None) -> int | None:
    return None if not total or used is None else max(0, total - used)


def _has_rocm(root: Path) -> bool:
    """Whether ROCm's driver and its library are there."""
    if not _has(root / "dev/kfd"):
        return False
    if _has(root / "opt/rocm"):
        return True
    return any(next((root / folder).glob("libamdhip64.so*"), None) is not None for folder in ROCM_FOLDERS)


def _text(path: Path) -> str:
    """The text of a file without the space around it; empty where it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    word = _text(path)
    return int(word) if re.fullmatch(r"[0-9]{1,20}", word) else None


def _pci_id(text: str) -> str:
    """The four hexadecimal digits of an id of sysfs (0x1002), empty where it is none."""
    found = re.fullmatch(r"0x([0-9a-f]{4})", text.lower())
    return found[1] if found else ""


def _has(path: Path) -> bool:
    return os.path.lexists(path)
