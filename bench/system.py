"""How quickly a machine is detected: cold, with a probe's child process, and from the cache."""

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.rows import Row
from genaid_server.resource.core.system.machine import Machine, this_machine
from genaid_server.resource.core.system.survey import Survey

COLD, CACHED = 9, 1000
CARD = {
    "vendor": "0x1002\n",
    "device": "0x744c\n",
    "uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\n",
    "mem_info_vram_total": "25753026560\n",
    "mem_info_vram_used": "1073741824\n",
    "mem_info_gtt_total": "16777216000\n",
}


def rows(folder: Path) -> Iterator[Row]:
    """The table's rows about detection."""
    root = folder / "machine with a card"
    device = root / "sys" / "class" / "drm" / "card0" / "device"
    device.mkdir(parents=True)
    for name, text in CARD.items():
        (device / name).write_text(text)
    here = this_machine()
    recorded = replace(here, root=root, probe_command=(*here.probe_command, "--root", str(root)))
    cold, cached = asyncio.run(_measure(recorded, folder))
    yield Row("detection, cold, a GPU asked in a child", cold * 1000, "ms", 300)
    yield Row("detection, cached", cached * 1000, "ms", 1)
    hanging = replace(recorded, probe_command=(sys.executable, "-c", "import time; time.sleep(600)"))
    yield Row("detection with a driver that hangs", asyncio.run(_hung(hanging, folder)), "s", 3)


async def _hung(machine: Machine, folder: Path) -> float:
    async with Survey(machine, folder) as survey:
        began = time.perf_counter()
        hardware = await survey.hardware()
        took = time.perf_counter() - began
    assert not hardware.gpus
    assert hardware.notes
    return took


async def _measure(machine: Machine, folder: Path) -> tuple[float, float]:
    cold, cached = [], []
    for _ in range(COLD):
        async with Survey(machine, folder) as survey:
            began = time.perf_counter()
            hardware = await survey.hardware()
            cold.append(time.perf_counter() - began)
            assert len(hardware.gpus) == 1, hardware
            for _ in range(CACHED // COLD):
                began = time.perf_counter()
                await survey.hardware()
                cached.append(time.perf_counter() - began)
    return statistics.median(cold), statistics.median(cached)
