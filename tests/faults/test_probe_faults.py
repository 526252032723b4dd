"""Libraries hang, crash and talk nonsense: each costs a note, never the service, and leaves no process behind."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from genaid_server.kit.errors import ServerError
from genaid_server.resource.core.system import probing
from genaid_server.resource.core.system.machine import Machine
from genaid_server.resource.core.system.probing import Detection, Probes
from genaid_server.resource.core.system.survey import Survey
from support import clean_environment

FAKES = Path(__file__).parents[1] / "fakes"
SECRET = "the driver's secret last words"
GIB = 2**30
SHORT, LONG = 0.5, 60.0  # timeouts in seconds: of a probe that hangs, and for those that answer on a busy machine
TICK = 0.01
CARD = {"name": "RTX", "pci": "0000:01:00.0", "device_id": "2684", "total": 24 * GIB, "free": 20 * GIB}
ARC = {"name": "Arc", "vendor_id": "8086", "device_id": "56a0", "type": "discrete", "memory": 16 * GIB}

posix = pytest.mark.skipif(os.name != "posix", reason="Windows ends processes at once, whatever they do")


class Recorded:
    """A machine with an NVIDIA GPU, and a Vulkan that knows another one if asked to; `env` is its probes'."""

    def __init__(self, folder: Path, fault: str = "", *, vulkan: bool = False) -> None:
        self.starts = folder / "starts"
        (folder / "dev").mkdir()
        (folder / "dev" / "nvidiactl").touch()
        if vulkan:
            (folder / "usr" / "lib").mkdir(parents=True)
            (folder / "usr" / "lib" / "libvulkan.so.1").touch()
        library = {"driver": "550.54", "devices": [{**CARD, "capability": [8, 9], "processes": {}}]}
        (folder / "nvml.json").write_text(json.dumps(library))
        (folder / "vulkan.json").write_text(json.dumps([ARC]))
        self.env = clean_environment(
            {
                "PYTHONPATH": str(FAKES / "nvml"),
                "GENAID_STUB_NVML": str(folder / "nvml.json"),
                "GENAID_STUB_VULKAN": str(folder / "vulkan.json"),
                "GENAID_PROBE_STARTS": str(self.starts),
                "GENAID_PROBE_FAULT": fault,
            }
        )
        command = (sys.executable, "-P", str(FAKES / "probe.py"), "--root", str(folder))
        memory = (8 * GIB, 4 * GIB)
        self.machine = Machine("linux", "x86_64", folder, lambda: (4, 8), lambda: 8, lambda: memory, command, self.env)

    def heal(self) -> None:
        """Have the next probe that starts behave."""
        self.env["GENAID_PROBE_FAULT"] = ""

    def started(self) -> list[str]:
        """The names of all probes that have started."""
        return self.starts.read_text().split() if self.starts.exists() else []


class Clock:
    """A clock that stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def children() -> list[int]:
    return [process.pid for process in psutil.Process().children(recursive=True)]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (what happens in another process tells nobody)
            await asyncio.sleep(TICK)


def names(detection: Detection) -> dict[str, list[str]]:
    return {probe: [gpu.name for gpu in gpus] for probe, gpus in detection.gpus.items()}


@pytest.mark.parametrize(
    ("fault", "timeout", "words"),
    [
        ("sleep", SHORT, "did not answer within 0.5 s"),
        ("crash", LONG, "ended without an answer ("),
        ("exit", LONG, "ended without an answer (exit status 0)"),
        ("half", LONG, "ended without an answer (exit status 3)"),
        ("garbage", LONG, "gave an answer that makes no sense"),
        ("flood", LONG, "gave more than one answer"),
    ],
)
async def test_each_fault_is_a_note_and_the_next_time_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, timeout: float, words: str
) -> None:
    recorded = Recorded(tmp_path, f"nvidia={fault}")
    async with Probes(recorded.machine, timeout=timeout) as probes:
        detection = await probes.detect()
        (note,) = detection.notes
        assert names(detection) == {}
        assert note.startswith(f"The NVIDIA driver {words}")
        assert "; its GPUs are left out. See whether nvidia-smi answers" in note
        assert SECRET not in note
        assert [record.levelname for record in caplog.records if words in record.getMessage()] == ["WARNING"]
        await until(lambda: not children())
    recorded.heal()
    async with Probes(recorded.machine, timeout=LONG) as probes:
        assert names(await probes.detect()) == {"nvidia": ["RTX"]}
    assert children() == []


async def test_the_same_probes_work_again_once_the_driver_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = Recorded(tmp_path, "nvidia=crash")
    async with Probes(recorded.machine, timeout=LONG) as probes:
        assert (await probes.detect()).notes != ()
        recorded.heal()
        detection = await probes.detect()
        assert names(detection) == {"nvidia": ["RTX"]}
        assert detection.notes == ()
        assert (await probes.memory()).notes == ()
    assert SECRET in caplog.text


async def test_a_probe_that_does_not_start_is_a_note(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    machine = Machine(
        "linux", "x86_64", tmp_path, lambda: (1, 1), lambda: 1, lambda: (1, 1), (str(tmp_path / "missing"),)
    )
    async with Probes(machine) as probes:
        (note,) = (await probes.detect()).notes
    assert "does not start" in note
    assert recorded.started() == []


async def test_one_that_hangs_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "nvidia=sleep", vulkan=True)
    async with Probes(recorded.machine, timeout=3) as probes:
        detection = await probes.detect()
    assert names(detection) == {"vulkan": ["Arc"]}
    assert [note.split(" did")[0] for note in detection.notes] == ["The NVIDIA driver"]


async def test_a_vulkan_that_crashes_leaves_the_gpus_of_the_others(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "vulkan=crash", vulkan=True)
    async with Probes(recorded.machine, timeout=LONG) as probes:
        detection = await probes.detect()
    assert names(detection) == {"nvidia": ["RTX"]}
    assert ["which GPUs it could use is not known. See whether vulkaninfo" in note for note in detection.notes] == [
        True
    ]


async def test_a_driver_that_hangs_when_it_measures_has_a_rest(tmp_path: Path) -> None:
    recorded, clock = Recorded(tmp_path, "nvidia=sleep@memory"), Clock()
    async with Probes(recorded.machine, timeout=3, retry=30, clock=clock) as probes:
        assert names(await probes.detect()) == {"nvidia": ["RTX"]}
        first = await probes.memory()
        recorded.heal()
        clock.now += 29
        second = await probes.memory()
        assert recorded.started() == ["nvidia"]
        clock.now += 1
        third = await probes.memory()
        assert recorded.started() == ["nvidia", "nvidia"]
    assert first.memory == second.memory == ()
    assert first.notes == second.notes
    assert ["the free memory of its GPUs is not known" in note for note in first.notes] == [True]
    assert [gpu.free for gpu in third.memory] == [20 * GIB]
    assert third.notes == ()


async def test_a_driver_that_hung_at_detection_is_not_asked_for_memory(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "nvidia=sleep")
    async with Probes(recorded.machine, timeout=SHORT, clock=Clock()) as probes:
        await probes.detect()
        measured = await probes.memory()
        assert recorded.started() == ["nvidia"]
    assert ["did not answer" in note for note in measured.notes] == [True]


async def test_whoever_waits_behind_a_fault_shares_it(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "nvidia=sleep")
    async with Probes(recorded.machine, timeout=1.5) as probes:
        detections = await asyncio.gather(probes.detect(), probes.detect())
        assert recorded.started() == ["nvidia"]
    assert detections[0] == detections[1]
    assert detections[0].notes != ()


async def test_a_kept_probe_that_dies_is_started_again(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    async with Probes(recorded.machine, timeout=LONG) as probes:
        await probes.detect()
        (pid,) = children()
        psutil.Process(pid).kill()
        await until(lambda: pid not in children())
        assert [gpu.free for gpu in (await probes.memory()).memory] == [20 * GIB]
        assert recorded.started() == ["nvidia", "nvidia"]


async def test_a_caller_that_leaves_takes_the_hanging_probe_along(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "nvidia=sleep")
    async with Probes(recorded.machine, timeout=LONG) as probes:
        call = asyncio.create_task(probes.detect())
        await until(recorded.started)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: not children())
        recorded.heal()
        assert names(await probes.detect()) == {"nvidia": ["RTX"]}


async def test_closing_in_the_middle_of_a_call_ends_everything(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "nvidia=sleep")
    async with Probes(recorded.machine, timeout=LONG) as probes:
        calls = [asyncio.create_task(probes.detect()) for _ in range(2)]
        await until(recorded.started)
    assert children() == []
    assert [type(result) for result in await asyncio.gather(*calls, return_exceptions=True)] == [ServerError] * 2
    with pytest.raises(ServerError):
        await probes.detect()


@posix
async def test_one_that_can_not_be_killed_neither_piles_up_nor_holds_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A process in the depths of a kernel driver stays, whatever signals it gets. Here no signal gets there.
    monkeypatch.setattr(probing, "CLOSE_TIMEOUT", SHORT)
    monkeypatch.setattr(os, "killpg", lambda group, number: None)
    recorded = Recorded(tmp_path, "nvidia=sleep")
    async with Probes(recorded.machine, timeout=SHORT) as probes:
        first = await probes.detect()
        second = await probes.detect()
        (pid,) = children()
    assert first == second
    assert recorded.started() == ["nvidia"]
    assert caplog.messages[-1].startswith("The probe nvidia was killed and has not ended")
    monkeypatch.undo()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not children())
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def survey(recorded: Recorded, folder: Path, timeout: float) -> Any:
    async with Survey(recorded.machine, folder / "data", probe_timeout=timeout) as machine:
        return await machine.hardware(), await machine.memory()


async def test_a_machine_with_a_hanging_driver_still_answers(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "nvidia=sleep")
    hardware, memory = await survey(recorded, tmp_path, SHORT)
    assert hardware.gpus == ()
    assert hardware.cpu.logical_cores == 8
    assert [note.split(" did")[0] for note in hardware.notes] == ["The NVIDIA driver"]
    assert memory.ram.total == 8 * GIB
    assert recorded.started() == ["nvidia"]
    assert children() == []


async def test_gpus_of_a_driver_that_hangs_later_are_still_listed(tmp_path: Path) -> None:
    hardware, memory = await survey(Recorded(tmp_path, "nvidia=sleep@memory"), tmp_path, 3)
    assert [gpu.vram_free for gpu in hardware.gpus] == [20 * GIB]
    assert [(gpu.total, gpu.free) for gpu in memory.gpus] == [(24 * GIB, None)]
    assert ["did not answer" in note for note in memory.notes] == [True]


async def test_a_survey_closes_in_the_middle_of_a_detection(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "nvidia=sleep")
    async with Survey(recorded.machine, tmp_path / "data", probe_timeout=LONG) as machine:
        calls = [asyncio.create_task(machine.hardware()), asyncio.create_task(machine.memory())]
        await until(recorded.started)
    assert children() == []
    assert [type(result) for result in await asyncio.gather(*calls, return_exceptions=True)] == [ServerError] * 2
    with pytest.raises(ServerError):
        await machine.hardware()


async def test_logs_tell_the_last_words_of_a_crash_and_notes_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        hardware, _ = await survey(Recorded(tmp_path, "nvidia=crash"), tmp_path, LONG)
    assert SECRET in caplog.text
    assert "a line before" not in caplog.text
    assert SECRET not in "".join(hardware.notes)
