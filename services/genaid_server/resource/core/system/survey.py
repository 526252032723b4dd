"""What the machine has, cached, and its memory now, measured.

A survey asks everybody who knows something and puts it together: the system's files, the probes, the notes that
services leave about their engines.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, Self

import psutil

from genaid_server.kit.errors import ServerError
from genaid_server.resource.core.system.cpu import read_cpu
from genaid_server.resource.core.system.facts import (
    Cpu,
    EngineMemory,
    Gpu,
    GpuMemory,
    Hardware,
    Memory,
    Ram,
    Vendor,
)
from genaid_server.resource.core.system.machine import Machine
from genaid_server.resource.core.system.probing import TIMEOUT, Detection, FoundGpu, Probes
from genaid_server.resource.core.system.ram import in_container, in_wsl, read_ram
from genaid_server.supervision import notes as engine_notes
from genaid_server.supervision.process_memory import private_bytes

TTL: Final = 60.0  # seconds
NOTHING: Final = FoundGpu("", "", "")
_FIELDS: Final = tuple(field.name for field in fields(FoundGpu))


@dataclass(frozen=True, slots=True)
class _Known:
    """What was detected, when by the clock, and which engines ran then."""

    hardware: Hardware
    at: float
    engines: frozenset[str]


class Survey:
    """The survey of a machine, as an async context manager; its probes have ended when the block ends.

    All methods belong to one event loop. `ttl` is how long hardware is believed, in seconds of `clock`;
    `probe_timeout` is how long a driver may take to answer, in seconds. Whoever waits while the block ends gets a
    ServerError.
    """

    def __init__(
        self,
        machine: Machine,
        data_dir: Path,
        *,
        ttl: float = TTL,
        clock: Callable[[], float] = time.monotonic,
        probe_timeout: float = TIMEOUT,
    ) -> None:
        self._machine, self._data_dir = machine, data_dir
        self._ttl, self._clock = ttl, clock
        self._probes = Probes(machine, timeout=probe_timeout, clock=clock)
        self._known: _Known | None = None
        self._detecting: asyncio.Task[Hardware] | None = None
        self._closed = False
        self.detected_at = 0.0  # seconds since the epoch; 0 before anything was detected

    async def __aenter__(self) -> Self:
        await self._probes.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        await self._probes.__aexit__(*_)
        if self._detecting is not None:
            await asyncio.wait([self._detecting])

    async def hardware(self, refresh: bool = False) -> Hardware:
        """What the machine has: what is known already, where it isn't older than `ttl` and the same engines run;
        else, or with `refresh`, it is detected. Callers at the same time share one detection."""
        if self._closed:
            raise ServerError("The service is shutting down.")
        known = self._known
        if known is not None and not refresh and self._believed(known):
            return known.hardware
        if self._detecting is None or self._detecting.done():
            self._detecting = asyncio.create_task(self._detect())
            # Also says that a failure was seen, where every caller has left.
            self._detecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._detecting)

    async def lasting(self) -> Hardware:
        """What of it lasts while engines come and go: nothing is detected anew, and free memory in it is old."""
        return self._known.hardware if self._known is not None else await self.hardware()

    async def memory(self) -> Memory:
        """All memory now: never cached. GPUs are in the order of the hardware that was detected last."""
        hardware = await self.lasting()
        measured = await self._probes.memory()
        by_id = {gpu.gpu_id: gpu for gpu in measured.memory}
        ram, engines = await asyncio.to_thread(_read_memory, self._machine, self._data_dir, measured.memory)
        gpus = tuple(_now(gpu, by_id.get(gpu.id), ram) for gpu in hardware.gpus)
        return Memory(time.time(), ram, gpus, engines, measured.notes)

    def _believed(self, known: _Known) -> bool:
        return self._clock() - known.at < self._ttl and _engines(self._data_dir) == known.engines

    async def _detect(self) -> Hardware:
        # Engines that start meanwhile make what is found now out of date.
        engines, at = _engines(self._data_dir), self._clock()
        reading = asyncio.to_thread(_read_files, self._machine)
        detection, (cpu, container, wsl) = await asyncio.gather(self._probes.detect(), reading)
        gpus, notes = merge(detection)
        hardware = Hardware(self._machine.platform, cpu, gpus, notes, container, wsl)
        self._known = _Known(hardware, at, engines)
        self.detected_at = time.time()
        return hardware


def merge(detection: Detection) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """The GPUs that the probes found, each once, the most useful first; and notes."""
    notes = list(detection.notes)
    gpus: dict[str, FoundGpu] = {}
    for name in ("nvidia", "drm", "apple"):
        for gpu in detection.gpus.get(name, ()):
            gpus[gpu.id] = _both(gpus[gpu.id], gpu) if gpu.id in gpus else gpu
    others = list(gpus.values())  # two equal GPUs that only Vulkan knows are two
    for gpu in detection.gpus.get("vulkan", ()):
        same = [other.id for other in others if _same(other, gpu)]
        gpus |= {gpu_id: replace(gpus[gpu_id], vulkan=True) for gpu_id in same} or {gpu.id: gpu}
    known = []
    for gpu in gpus.values():
        if gpu.vendor in set(Vendor):
            known.append(_gpu(gpu))
        else:
            notes.append(f"{gpu.name} is a GPU of a vendor that is not known ({gpu.vendor}); it is left out.")
    return tuple(sorted(known, key=_usefulness)), tuple(dict.fromkeys(notes))


def _both(first: FoundGpu, second: FoundGpu) -> FoundGpu:
    """What two probes know of one GPU; the first is believed where both know something."""
    missing = {field: getattr(second, field) for field in _FIELDS if getattr(first, field) == getattr(NOTHING, field)}
    return replace(first, **missing)


def _same(gpu: FoundGpu, other: FoundGpu) -> bool:
    ids = (other.vendor_id, other.device_id)
    return gpu.id == other.id or gpu.name == other.name or (all(ids) and ids == (gpu.vendor_id, gpu.device_id))


def _gpu(found: FoundGpu) -> Gpu:
    known = {name: getattr(found, name) for name in _FIELDS if name not in {"vendor_id", "device_id"}}
    return Gpu(**known | {"vendor": Vendor(found.vendor)})


def _usefulness(gpu: Gpu) -> tuple[bool, int, str]:
    return gpu.integrated or gpu.unified, -(gpu.vram_total or 0), gpu.id


def _engines(data_dir: Path) -> frozenset[str]:
    """What tells one set of running engines from another; costs only a look into a folder."""
    try:
        return frozenset(path.name for path in (data_dir / engine_notes.FOLDER).iterdir() if path.suffix == ".json")
    except OSError:  # nothing has run yet
        return frozenset()


def _read_files(machine: Machine) -> tuple[Cpu, bool, bool]:
    return read_cpu(machine), in_container(machine), in_wsl(machine)


def _read_memory(machine: Machine, data_dir: Path, gpus: Iterable[GpuMemory]) -> tuple[Ram, tuple[EngineMemory, ...]]:
    used = [gpu.processes for gpu in gpus]
    engines = (_engine(note, used) for note in engine_notes.running(data_dir))
    return read_ram(machine), tuple(engine for engine in engines if engine is not None)


def _engine(note: engine_notes.EngineNote, used: Iterable[dict[int, int]]) -> EngineMemory | None:
    """What an engine holds, None where it has ended just now. `used` are bytes by process id, for each GPU."""
    try:
        leader = psutil.Process(note.pid)
        family = [leader, *leader.children(recursive=True)]
        resident = leader.memory_info().rss + sum(_resident(member) for member in family[1:])
        private = private_bytes(leader) + sum(_private(member) for member in family[1:])
    except psutil.Error:
        return None
    vram = [processes[member.pid] for processes in used for member in family if member.pid in processes]
    return EngineMemory(note.kind, note.model_id, note.pid, resident, sum(vram) if vram else None, private)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # a helper that came and went
        return 0


def _private(process: psutil.Process) -> int:
    try:
        return private_bytes(process)
    except psutil.Error:
        return 0


def _now(gpu: Gpu, measured: GpuMemory | None, ram: Ram) -> GpuMemory:
    """The memory of a GPU, by its driver or, where it is a part of main memory, by that."""
    processes = {} if measured is None else measured.processes
    if gpu.unified:
        free = None if gpu.vram_total is None else min(gpu.vram_total, ram.available)
        return GpuMemory(gpu.id, gpu.vram_total, free, processes)
    if measured is None:
        return GpuMemory(gpu.id, gpu.vram_total, None)
    return GpuMemory(gpu.id, gpu.vram_total if measured.total is None else measured.total, measured.free, processes)
