"""Putting together what the machine has, and keeping it for as long as it is true."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import psutil
import pytest

from genaid_server.resource.core.fitting.capacity import Budgets
from genaid_server.resource.core.fitting.footprint import MemoryKind
from genaid_server.resource.core.leases.measuring import SurveyedMemory
from genaid_server.resource.core.leases.plan import TenantKind
from genaid_server.resource.core.system.facts import Gpu, GpuMemory, Vendor
from genaid_server.resource.core.system.machine import Machine
from genaid_server.resource.core.system.probe_candidates import candidates
from genaid_server.resource.core.system.probing import Detection, FoundGpu, Probes
from genaid_server.resource.core.system.survey import Survey, merge
from genaid_server.supervision.notes import noted
from genaid_server.supervision.process_memory import private_bytes
from support import clean_environment

FAKES = Path(__file__).parents[2] / "fakes"
GIB = 2**30
TIMEOUT = 60.0  # seconds; the machine may be busy
DRM = "sys/class/drm/card0/device/vendor"


class Recorded:
    """A recorded machine without a GPU, below a folder; `available` bytes of its 8 GiB are free."""

    def __init__(self, folder: Path, platform: str = "linux") -> None:
        self.root, self.data_dir = folder / "root", folder / "data"
        self.library, self.starts = folder / "nvml.json", folder / "starts"
        self.available = 6 * GIB
        env = {
            "PYTHONPATH": str(FAKES / "nvml"),
            "PATH": os.pathsep.join((str(FAKES / "bin"), os.environ["PATH"])),
            "GENAID_STUB_NVML": str(self.library),
            "GENAID_STUB_COMMANDS": str(folder / "commands.json"),
            "GENAID_STUB_VULKAN": str(folder / "vulkan.json"),
            "GENAID_PROBE_STARTS": str(self.starts),
        }
        self.machine = Machine(
            platform=platform,
            architecture="x86_64",
            root=self.root,
            cores=lambda: (4, 8),
            affinity=lambda: 8,
            memory=lambda: (8 * GIB, self.available),
            probe_command=(sys.executable, "-P", str(FAKES / "probe.py"), "--root", str(self.root)),
            probe_env=clean_environment(env),
        )

    def add(self, *paths: str, text: str = "") -> None:
        for path in paths:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)

    def cards(self, *devices: Mapping[str, Any]) -> None:
        """Have NVIDIA's driver and these GPUs."""
        self.add("dev/nvidiactl")
        self.library.write_text(json.dumps({"driver": "550.54", "devices": devices}))

    def survey(self, **options: Any) -> Survey:
        return Survey(self.machine, self.data_dir, probe_timeout=TIMEOUT, **options)

    def started(self) -> list[str]:
        """The names of all probes that have started."""
        return sorted(self.starts.read_text().split()) if self.starts.exists() else []


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def card(slot: int = 1, *, free: int = 10, **processes: int) -> dict[str, Any]:
    return {
        "name": "NVIDIA GeForce RTX 3060",
        "pci": f"0000:{slot:02x}:00.0",
        "device_id": "2503",
        "total": 12 * GIB,
        "free": free * GIB,
        "capability": [8, 6],
        "processes": {pid.removeprefix("p"): size for pid, size in processes.items()},
    }


@contextmanager
def family() -> Iterator[tuple[int, int]]:
    """A process with a child, and their ids."""
    code = """
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", "input()"], stdin=sys.stdin) as child:
    print(child.pid, flush=True)
"""
    with Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE) as parent:
        assert parent.stdout is not None
        yield parent.pid, int(parent.stdout.readline())
        parent.communicate(b"\n")


# Which probes make sense.


@pytest.mark.parametrize(
    ("platform", "files", "expected"),
    [
        ("linux", {}, []),
        ("linux", {"dev/nvidiactl": ""}, ["nvidia"]),
        ("linux", {"dev/dxg": ""}, ["nvidia"]),
        ("linux", {"proc/driver/nvidia/version": ""}, ["nvidia"]),
        ("linux", {DRM: "0x10de\n"}, ["nvidia", "drm"]),
        ("linux", {DRM: "0x1002\n"}, ["drm"]),
        ("linux", {DRM: "0x8086\n"}, ["drm"]),
        ("linux", {DRM: "0x1af4\n"}, []),
        ("linux", {"usr/lib/x86_64-linux-gnu/libvulkan.so.1": ""}, ["vulkan"]),
        ("linux", {"usr/lib64/libvulkan.so.1": ""}, ["vulkan"]),
        ("linux", {"etc/ld.so.cache": "glibc-ld.so.cache1.1 libvulkan.so.1\0/opt/libvulkan.so.1\0"}, ["vulkan"]),
        ("linux", {"etc/ld.so.cache": "libc.so.6\0"}, []),
        ("darwin", {}, ["apple"]),
        ("darwin", {"opt/homebrew/lib/libvulkan.dylib": "", "dev/nvidiactl": ""}, ["vulkan", "apple"]),
        ("win32", {}, []),
        ("win32", {"Windows/System32/nvml.dll": "", "Windows/System32/vulkan-1.dll": ""}, ["nvidia", "vulkan"]),
    ],
)
def test_a_probe_makes_sense_where_its_driver_has_left_a_sign(
    tmp_path: Path, platform: str, files: dict[str, str], expected: list[str]
) -> None:
    recorded = Recorded(tmp_path, platform)
    for path, text in files.items():
        recorded.add(path, text=text)
    assert candidates(recorded.machine) == expected


async def test_a_machine_without_a_gpu_starts_no_probe(recorded: Recorded) -> None:
    async with recorded.survey() as survey:
        hardware = await survey.hardware()
        memory = await survey.memory()
    assert recorded.started() == []
    assert hardware.gpus == ()
    assert memory.gpus == ()
    assert hardware.notes == memory.notes == ()
    assert hardware.platform == "linux"
    assert hardware.cpu.physical_cores == 4


async def test_memory_of_probes_that_have_detected_nothing_yet(recorded: Recorded) -> None:
    recorded.cards(card())
    async with Probes(recorded.machine, timeout=TIMEOUT) as probes:
        measured = await probes.memory()
    assert [gpu.free for gpu in measured.memory] == [10 * GIB]
    assert recorded.started() == ["nvidia"]


# How long a probe lives.


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (what happens in another process tells nobody)
            await asyncio.sleep(0.01)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def test_a_probe_that_found_gpus_is_kept_and_asked_again(recorded: Recorded) -> None:
    recorded.cards(card())
    async with Probes(recorded.machine, timeout=TIMEOUT, idle=TIMEOUT) as probes:
        await probes.detect()
        first = await probes.memory()
        recorded.cards(card(free=3))
        second = await probes.memory()
        assert len(children()) == 1
    assert children() == []
    assert [gpu.free for gpu in (*first.memory, *second.memory)] == [10 * GIB, 3 * GIB]
    assert recorded.started() == ["nvidia"]


async def test_a_probe_that_nobody_asks_ends(recorded: Recorded) -> None:
    recorded.cards(card())
    async with Probes(recorded.machine, timeout=TIMEOUT, idle=0.05) as probes:
        await probes.detect()
        await until(lambda: not children())
        assert [gpu.free for gpu in (await probes.memory()).memory] == [10 * GIB]
    assert recorded.started() == ["nvidia", "nvidia"]


async def test_a_probe_that_found_nothing_ends_at_once_and_is_not_asked_for_memory(recorded: Recorded) -> None:
    recorded.cards()
    async with Probes(recorded.machine, timeout=TIMEOUT, idle=TIMEOUT) as probes:
        await probes.detect()
        await until(lambda: not children())
        assert (await probes.memory()).memory == ()
    assert recorded.started() == ["nvidia"]


# The cache.


async def test_hardware_is_known_for_a_while(recorded: Recorded) -> None:
    recorded.cards(card())
    clock = Clock()
    async with recorded.survey(ttl=60, clock=clock) as survey:
        assert survey.detected_at == 0
        first = await survey.hardware()
        detected_at = survey.detected_at
        assert detected_at > 0
        recorded.cards(card(), card(2))
        clock.now += 59.9
        assert await survey.hardware() is first
        assert survey.detected_at == detected_at
        survey.detected_at = 1
        clock.now += 0.1
        assert len((await survey.hardware()).gpus) == 2
        assert survey.detected_at >= detected_at


async def test_hardware_is_detected_anew_on_request(recorded: Recorded) -> None:
    recorded.cards(card())
    async with recorded.survey(clock=Clock()) as survey:
        await survey.hardware()
        recorded.cards(card(), card(2))
        assert len((await survey.hardware()).gpus) == 1
        assert len((await survey.hardware(refresh=True)).gpus) == 2
        assert len((await survey.hardware()).gpus) == 2


async def test_an_engine_that_starts_or_stops_makes_it_forget(recorded: Recorded) -> None:
    recorded.cards(card(free=10))
    async with recorded.survey(clock=Clock()) as survey:
        before = await survey.hardware()
        recorded.cards(card(free=4))
        with noted(recorded.data_dir, "llm", "m", os.getpid()):
            during = await survey.hardware()
            assert await survey.hardware() is during
            recorded.cards(card(free=9))
        after = await survey.hardware()
        assert await survey.hardware() is after
    free = [gpu.vram_free for hardware in (before, during, after) for gpu in hardware.gpus]
    assert free == [10 * GIB, 4 * GIB, 9 * GIB]


async def test_callers_at_the_same_time_share_one_detection(recorded: Recorded) -> None:
    recorded.add("usr/lib/libvulkan.so.1")  # a probe that isn't kept, so that each detection starts one
    Path(recorded.data_dir.parent / "vulkan.json").write_text("[]")
    async with recorded.survey() as survey:
        results = await asyncio.gather(*(survey.hardware(refresh=True) for _ in range(5)))
    assert all(result is results[0] for result in results)
    assert recorded.started() == ["vulkan"]


async def test_a_caller_that_leaves_does_not_end_the_detection_of_the_others(recorded: Recorded) -> None:
    recorded.cards(card())
    async with recorded.survey() as survey:
        first, second = (asyncio.create_task(survey.hardware()) for _ in range(2))
        await asyncio.sleep(0)  # both have begun to wait, and nothing can have been found yet
        first.cancel()
        assert len((await second).gpus) == 1
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await survey.hardware() is second.result()
    assert recorded.started() == ["nvidia"]


async def test_a_detection_that_failed_is_tried_again(recorded: Recorded) -> None:
    recorded.cards(card())
    failures = [FileNotFoundError("no cores")]

    def cores() -> tuple[int, int]:
        if failures:
            raise failures.pop()
        return 4, 8

    recorded.machine = replace(recorded.machine, cores=cores)
    async with recorded.survey() as survey:
        with pytest.raises(FileNotFoundError):
            await survey.hardware()
        assert len((await survey.hardware()).gpus) == 1


# Memory.


async def test_two_gpus_with_memory_by_process(recorded: Recorded) -> None:
    with family() as (parent, child):
        processes = {f"p{parent}": GIB, f"p{child}": 2 * GIB, "p1": 5 * GIB}
        recorded.cards(card(1, free=4, **processes), card(2, free=11, **{f"p{parent}": 3 * GIB}))
        with (
            noted(recorded.data_dir, "llm", "some-model", parent),
            noted(recorded.data_dir, "image", "sd", os.getpid()),
        ):
            async with recorded.survey() as survey:
                memory = await survey.memory()
            parts = [psutil.Process(pid).memory_info().rss for pid in (parent, child)]
            own = [private_bytes(psutil.Process(pid)) for pid in (parent, child)]
    assert [(gpu.gpu_id, gpu.total, gpu.free) for gpu in memory.gpus] == [
        ("0000:01:00.0", 12 * GIB, 4 * GIB),
        ("0000:02:00.0", 12 * GIB, 11 * GIB),
    ]
    image, llm = memory.engines
    assert (llm.kind, llm.model_id, llm.pid, llm.vram) == ("llm", "some-model", parent, 6 * GIB)
    assert llm.resident > max(parts)
    assert max(own) < llm.private <= llm.resident
    assert (image.kind, image.model_id, image.pid) == ("image", "sd", os.getpid())
    assert memory.notes == ()
    assert memory.time > 0


async def test_an_engine_whose_gpu_memory_nobody_tells(recorded: Recorded) -> None:
    with noted(recorded.data_dir, "llm", "m", os.getpid()):
        async with recorded.survey() as survey:
            (engine,) = (await survey.memory()).engines
    assert engine.vram is None
    assert 0 < engine.private <= engine.resident


async def test_memory_is_never_cached_and_hardware_is(recorded: Recorded) -> None:
    recorded.cards(card(free=10))
    clock = Clock()
    async with recorded.survey(clock=clock) as survey:
        first = await survey.memory()
        recorded.cards(card(free=2), card(2))
        recorded.available = GIB
        clock.now += 3600
        second = await survey.memory()
    assert [gpu.free for gpu in first.gpus] == [10 * GIB]
    assert [gpu.free for gpu in second.gpus] == [2 * GIB]
    assert (first.ram.available, second.ram.available) == (6 * GIB, GIB)


@pytest.mark.skipif(os.name != "posix", reason="the stub of sysctl is started by its first line")
async def test_unified_memory_is_what_is_free_of_main_memory(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "darwin")
    commands = {
        "sysctl -n hw.memsize": str(8 * GIB),
        "sysctl -n machdep.cpu.brand_string": "Apple M1",
        "sysctl -n hw.optional.arm64": "1",
    }
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    share = int(8 * GIB * 0.7)
    async with recorded.survey() as survey:
        (gpu,) = (await survey.hardware()).gpus
        assert (gpu.id, gpu.vendor, gpu.name, gpu.vram_total) == ("apple-0", Vendor.APPLE, "Apple M1", share)
        assert gpu.unified is gpu.integrated is gpu.metal is True
        assert (await survey.memory()).gpus == (GpuMemory("apple-0", share, share),)
        recorded.available = GIB
        assert (await survey.memory()).gpus == (GpuMemory("apple-0", share, GIB),)


# Putting together.


NVIDIA = FoundGpu(
    "0000:01:00.0",
    "nvidia",
    "NVIDIA RTX",
    "10de",
    "2684",
    vram_total=24 * GIB,
    vram_free=20 * GIB,
    driver="550",
    cuda=True,
)
RADEON = FoundGpu("0000:03:00.0", "amd", "AMD GPU 1002:744c", "1002", "744c", vram_total=20 * GIB, driver="amdgpu")
IRIS = FoundGpu("0000:00:02.0", "intel", "Iris Xe", "8086", "a7a0", integrated=True, unified=True)


def gpus(**found: tuple[FoundGpu, ...]) -> tuple[Gpu, ...]:
    return merge(Detection(found, ()))[0]


def test_those_with_memory_of_their_own_come_first_and_the_most_memory_first() -> None:
    apu = replace(RADEON, id="0000:05:00.0", integrated=True, vram_total=64 * GIB)
    silent = replace(RADEON, id="0000:06:00.0", vram_total=None)
    found = gpus(nvidia=(NVIDIA,), drm=(IRIS, apu, silent, RADEON))
    assert [gpu.id for gpu in found] == [NVIDIA.id, RADEON.id, silent.id, apu.id, IRIS.id]


def test_a_gpu_that_two_probes_know_is_one() -> None:
    bus = FoundGpu(
        NVIDIA.id, "nvidia", "GPU 10de:2684", "10de", "2684", vram_total=1, driver="nvidia", integrated=False
    )
    (gpu,) = gpus(nvidia=(replace(NVIDIA, vram_free=None),), drm=(replace(bus, vram_free=7),))
    assert (gpu.name, gpu.vram_total, gpu.vram_free, gpu.driver) == ("NVIDIA RTX", 24 * GIB, 7, "550")


@pytest.mark.parametrize(
    "device",
    [
        FoundGpu("uuid", "amd", "Radeon RX 7900 XTX (RADV NAVI31)", "1002", "744c", vram_total=24 * GIB, vulkan=True),
        FoundGpu("uuid", "amd", RADEON.name, vulkan=True),
        FoundGpu(RADEON.id, "amd", "Radeon", vulkan=True),
    ],
)
def test_vulkan_marks_the_gpus_that_it_can_use(device: FoundGpu) -> None:
    found = gpus(nvidia=(NVIDIA,), drm=(RADEON,), vulkan=(device,))
    assert [(gpu.id, gpu.vulkan, gpu.vram_total) for gpu in found] == [
        (NVIDIA.id, False, 24 * GIB),
        (RADEON.id, True, 20 * GIB),
    ]


def test_two_equal_gpus_are_both_marked() -> None:
    twins = (RADEON, replace(RADEON, id="0000:04:00.0"))
    device = FoundGpu("uuid", "amd", "Radeon", "1002", "744c", vram_total=24 * GIB, vulkan=True)
    found = gpus(drm=twins, vulkan=(device, replace(device, id="uuid2")))
    assert [gpu.vulkan for gpu in found] == [True, True]


def test_ids_that_are_not_known_are_not_the_same() -> None:
    found = gpus(drm=(FoundGpu("a", "amd", "One"),), vulkan=(FoundGpu("b", "amd", "Two", vulkan=True),))
    assert [gpu.vulkan for gpu in found] == [False, True]


def test_a_gpu_that_only_vulkan_knows_counts() -> None:
    arc = FoundGpu("uuid", "intel", "Intel Arc A770", "8086", "56a0", vram_total=16 * GIB, vulkan=True)
    assert gpus(vulkan=(arc,)) == (Gpu("uuid", Vendor.INTEL, "Intel Arc A770", vram_total=16 * GIB, vulkan=True),)


def test_two_equal_gpus_that_only_vulkan_knows_are_two() -> None:
    radeon = FoundGpu("uuid", "amd", "Radeon", "1002", "744c", vram_total=24 * GIB, vulkan=True)
    assert [gpu.id for gpu in gpus(vulkan=(radeon, replace(radeon, id="uuid2")))] == ["uuid", "uuid2"]


def test_a_vendor_that_is_not_known_is_a_note_and_notes_are_said_once() -> None:
    stranger = FoundGpu("x", "matrox", "G400")
    found, notes = merge(Detection({"drm": (stranger,), "nvidia": ()}, ("same", "other", "same")))
    assert found == ()
    assert [note.split()[0] for note in notes] == ["same", "other", "G400"]


async def test_a_vulkan_gpu_is_found_through_its_probe(recorded: Recorded) -> None:
    recorded.cards(card())
    recorded.add("usr/lib64/libvulkan.so.1")
    devices = [
        {"name": "NVIDIA RTX", "vendor_id": "10de", "device_id": "2503", "type": "discrete", "memory": 12 * GIB},
        {"name": "llvmpipe", "vendor_id": "10005", "device_id": "0000", "type": "cpu", "memory": GIB},
    ]
    (recorded.data_dir.parent / "vulkan.json").write_text(json.dumps(devices))
    async with recorded.survey() as survey:
        hardware = await survey.hardware()
    (gpu,) = hardware.gpus
    assert gpu.vulkan is gpu.cuda is True
    assert gpu.id == "0000:01:00.0"
    assert [note.split()[0] for note in hardware.notes] == ["llvmpipe"]


# What there is to share.


async def test_several_gpus_are_shared_by_an_llm_and_one_is_for_an_image(recorded: Recorded) -> None:
    recorded.cards(card(free=10), card(2, free=4))
    async with recorded.survey(clock=Clock()) as survey:
        measured = await SurveyedMemory(survey, Budgets(vram=20 * GIB))()
    vram = MemoryKind.VRAM
    most = {kind: measured.available_for(kind, measured.free_for(kind)).most(vram) for kind in TenantKind}
    assert most == {TenantKind.LLM: 20 * GIB, TenantKind.IMAGE: 12 * GIB}
    assert {kind: measured.free_for(kind).vram for kind in TenantKind} == {
        TenantKind.LLM: 14 * GIB,
        TenantKind.IMAGE: 10 * GIB,
    }
