"""What the probes find. They run as the programs that they are, upon stubs of the libraries."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from genaid_server.probes import vulkan
from support import clean_environment

FAKES = Path(__file__).parents[2] / "fakes"
GIB = 2**30
NOT_SUPPORTED, NO_PERMISSION, NOT_LOADED, NO_FUNCTION, MISMATCH = 3, 4, 9, 13, 18  # NVML's


def ask(name: str, *questions: str, root: Path | None = None, env: Mapping[str, str] | None = None) -> list[Any]:
    """The answers of a probe."""
    argv = [sys.executable, "-P", "-m", "genaid_server.probes", name, *(["--root", str(root)] if root else [])]
    text = "".join(f"{question}\n" for question in questions)
    done = subprocess.run(
        argv, input=text.encode(), capture_output=True, env=clean_environment(env), timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(questions)
    return answers


def nvidia(folder: Path, library: Any, *questions: str) -> list[Any]:
    """The answers of the probe of NVIDIA's driver, where the stub of its library says this."""
    file = folder / "nvml.json"
    file.write_text(json.dumps(library))
    env = {"PYTHONPATH": str(FAKES / "nvml"), "GENAID_STUB_NVML": str(file)}
    return ask("nvidia", *questions, root=folder, env=env)


def card(**other: Any) -> dict[str, Any]:
    return {
        "name": "NVIDIA GeForce RTX 4090",
        "pci": "0000:0a:00.0",
        "device_id": "2684",
        "total": 24 * GIB,
        "free": 20 * GIB,
        "capability": [8, 9],
        "processes": {},
        **other,
    }


def test_an_nvidia_gpu(tmp_path: Path) -> None:
    (answer,) = nvidia(tmp_path, {"driver": "550.54", "devices": [card()]}, "detect")
    expected = {
        "id": "0000:0a:00.0",
        "vendor": "nvidia",
        "vendor_id": "10de",
        "device_id": "2684",
        "name": "NVIDIA GeForce RTX 4090",
        "vram_total": 24 * GIB,
        "vram_free": 20 * GIB,
        "unified": False,
        "integrated": False,
        "driver": "550.54",
        "compute_capability": "8.9",
        "cuda": True,
    }
    assert answer == {"gpus": [expected], "notes": []}


def test_memory_by_process_is_that_of_computing_and_of_drawing(tmp_path: Path) -> None:
    devices = [card(processes={"12": 5, "13": None}, graphics={"12": 5, "14": 2}), card(pci="0001:0b:00.0")]
    _, answer = nvidia(tmp_path, {"driver": "550.54", "devices": devices}, "detect", "memory")
    first, second = answer["memory"]
    assert first == {
        "gpu_id": "0000:0a:00.0",
        "total": 24 * GIB,
        "free": 20 * GIB,
        "processes": {"12": 5, "14": 2},
    }
    assert second["gpu_id"] == "0001:0b:00.0"
    assert second["processes"] == {}


def test_a_lost_gpu_is_a_note_and_the_others_count(tmp_path: Path) -> None:
    devices = [card(lost=True), card(pci="0000:0b:00.0")]
    detected, measured = nvidia(tmp_path, {"driver": "1", "devices": devices}, "detect", "memory")
    assert [gpu["id"] for gpu in detected["gpus"]] == ["0000:0b:00.0"]
    assert [gpu["gpu_id"] for gpu in measured["memory"]] == ["0000:0b:00.0"]
    for answer in (detected, measured):
        (note,) = answer["notes"]
        assert note.startswith("NVIDIA GPU 0 does not answer (GPU is lost)")


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (None, "Install NVIDIA's driver"),
        ({"error": NOT_LOADED}, "modprobe nvidia"),
        ({"error": MISMATCH}, "Restart the machine"),
        ({"error": NO_PERMISSION}, "/dev/nvidiactl"),
        ({"error": NO_FUNCTION}, "nvidia-smi"),
    ],
)
def test_a_driver_that_can_not_be_used_is_a_note_that_says_what_to_do(tmp_path: Path, library: Any, words: str) -> None:
    detected, measured = nvidia(tmp_path, library, "detect", "memory")
    assert detected["gpus"] == []
    assert measured["memory"] == []
    assert [words in note for note in detected["notes"]] == [True]
    assert measured["notes"] == detected["notes"]


def test_windows_subsystem_without_a_driver_is_told_where_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "dxg").touch()
    (answer,) = nvidia(tmp_path, None, "detect")
    assert answer["gpus"] == []
    assert ["in Windows, not in WSL" in note for note in answer["notes"]] == [True]


def test_a_board_with_nothing_but_main_memory(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 60 kB\nPages: 0\n")
    board = card(name="NVIDIA GB10", total=None)
    detected, measured = nvidia(tmp_path, {"driver": "580.95", "devices": [board]}, "detect", "memory")
    (gpu,) = detected["gpus"]
    assert (gpu["vram_total"], gpu["vram_free"]) == (102400, 61440)
    assert gpu["unified"] is gpu["integrated"] is True
    assert measured["memory"][0]["total"] == 102400
    assert measured["memory"][0]["free"] == 61440


@pytest.mark.parametrize("text", ["", "MemTotal:\n", "MemTotal: many kB\n"])
def test_a_board_whose_main_memory_can_not_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(text)
    (answer,) = nvidia(tmp_path, {"driver": "1", "devices": [card(total=None)]}, "detect")
    assert answer["gpus"][0]["unified"] is True
    assert "vram_total" not in answer["gpus"][0]


def test_what_the_driver_does_not_tell_is_left_out(tmp_path: Path) -> None:
    errors = dict.fromkeys(("nvmlDeviceGetPciInfo", "nvmlDeviceGetCudaComputeCapability"), NOT_SUPPORTED)
    errors |= dict.fromkeys(("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"), NO_PERMISSION)
    device = card(uuid="GPU-1", errors=errors)
    detected, measured = nvidia(tmp_path, {"driver": "1", "devices": [device]}, "detect", "memory")
    (gpu,) = detected["gpus"]
    assert gpu["id"] == "GPU-1"
    assert gpu["unified"] is False
    assert not {"vendor_id", "device_id", "vram_total", "vram_free", "compute_capability"} & set(gpu)
    assert measured["memory"] == [{"gpu_id": "GPU-1", "total": None, "free": None, "processes": {}}]


def test_older_and_newer_functions_stand_in_for_each_other(tmp_path: Path) -> None:
    errors = {"nvmlDeviceGetMemoryInfo": NOT_SUPPORTED, "nvmlDeviceGetComputeRunningProcesses": NO_FUNCTION}
    device = card(errors=errors, processes={"7": 9})
    (answer,) = nvidia(tmp_path, {"driver": "470.1", "devices": [device]}, "memory")
    (measured,) = answer["memory"]
    assert measured["total"] == 24 * GIB
    assert measured["processes"] == {"7": 9}


@pytest.mark.skipif(os.name != "posix", reason="the stub of sysctl is started by its first line")
class TestApple:
    @staticmethod
    def ask(folder: Path, commands: Mapping[str, str]) -> Any:
        file = folder / "commands.json"
        file.write_text(json.dumps(commands))
        path = os.pathsep.join((str(FAKES / "bin"), os.environ["PATH"]))
        return ask("apple", "detect", env={"PATH": path, "GENAID_STUB_COMMANDS": str(file)})[0]

    def test_a_chip_of_apples(self, tmp_path: Path) -> None:
        commands = {
            "sysctl -n hw.memsize": "34359738368\n",
            "sysctl -n machdep.cpu.brand_string": "Apple M2 Pro\n",
            "sysctl -n hw.optional.arm64": "1\n",
        }
        expected = {
            "id": "apple-0",
            "vendor": "apple",
            "vendor_id": "106b",
            "name": "Apple M2 Pro",
            "vram_total": 24051816857,
            "unified": True,
            "integrated": True,
            "metal": True,
        }
        assert self.ask(tmp_path, commands) == {"gpus": [expected], "notes": []}

    def test_a_mac_with_a_processor_of_intels(self, tmp_path: Path) -> None:
        answer = self.ask(tmp_path, {"sysctl -n hw.memsize": "34359738368"})
        assert answer["gpus"] == []
        assert ["Intel" in note for note in answer["notes"]] == [True]

    def test_a_size_that_is_no_number(self, tmp_path: Path) -> None:
        answer = self.ask(tmp_path, {"sysctl -n hw.optional.arm64": "1", "sysctl -n hw.memsize": "much"})
        assert "vram_total" not in answer["gpus"][0]
        assert answer["gpus"][0]["name"] == "Apple GPU"
        assert ["hw.memsize" in note for note in answer["notes"]] == [True]


def device(**other: Any) -> vulkan.Device:
    known: dict[str, Any] = {"name": "A", "vendor_id": "1002", "device_id": "744c", "kind": 2, "memory": 24 * GIB}
    return vulkan.Device(**known | other)


def test_a_vulkan_device_is_a_gpu() -> None:
    (gpu,) = vulkan.answer([device(uuid="u")])["gpus"]
    assert gpu["id"] == "u"
    assert gpu["vendor"] == "amd"
    assert gpu["vram_total"] == 24 * GIB
    assert gpu["integrated"] is gpu["unified"] is False


def test_an_integrated_vulkan_device_shares_main_memory() -> None:
    (gpu,) = vulkan.answer([device(kind=vulkan.INTEGRATED_GPU)])["gpus"]
    assert gpu["integrated"] is gpu["unified"] is True


def test_vulkan_on_the_processor_and_unknown_vendors_are_notes() -> None:
    answer = vulkan.answer([device(name="llvmpipe", kind=vulkan.CPU), device(name="V3D", vendor_id="14e4")])
    assert answer["gpus"] == []
    assert [note.split()[0] for note in answer["notes"]] == ["llvmpipe", "V3D"]


def test_two_drivers_of_one_gpu_are_one_and_two_equal_gpus_are_two() -> None:
    assert len(vulkan.answer([device(uuid="u"), device(uuid="u")])["gpus"]) == 1
    assert [gpu["id"] for gpu in vulkan.answer([device(), device()])["gpus"]] == [
        "vulkan-1002-744c-0",
        "vulkan-1002-744c-1",
    ]


@pytest.mark.skipif(sys.maxsize < 2**32, reason="Vulkan's structures are laid out differently in 32 bits")
@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (vulkan.ApplicationInfo, 48),
        (vulkan.InstanceCreateInfo, 64),
        (vulkan.PhysicalDeviceProperties, 824),
        (vulkan.PhysicalDeviceProperties2, 840),
        (vulkan.PhysicalDeviceIdProperties, 64),
        (vulkan.PhysicalDeviceMemoryProperties, 520),
    ],
)
def test_structures_are_laid_out_as_vulkan_has_them(structure: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(structure) == size


@pytest.mark.skipif(vulkan.load() is None, reason="there is no Vulkan loader here")
def test_the_vulkan_of_this_machine() -> None:
    answer, again = ask("vulkan", "detect", "detect")
    assert answer == again
    told = [gpu["name"] for gpu in answer["gpus"]] + answer["notes"]
    assert told
    for gpu in answer["gpus"]:
        assert gpu["vulkan"] is True
        assert gpu["vram_total"] > 0
    for note in answer["notes"]:
        assert note.isprintable()


@pytest.mark.parametrize(
    "argv", [[], ["nvidia", "drm"], ["radeon"], ["--root"], ["--root", "/", "nvidia", "x"], ["nvidia", "--root"]]
)
def test_wrong_arguments_end_it(argv: list[str]) -> None:
    command = [sys.executable, "-P", "-m", "genaid_server.probes", *argv]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"usage:")


def test_the_root_may_come_before_the_name(tmp_path: Path) -> None:
    file = tmp_path / "nvml.json"
    file.write_text("null")
    env = clean_environment({"PYTHONPATH": str(FAKES / "nvml"), "GENAID_STUB_NVML": str(file)})
    command = [sys.executable, "-P", "-m", "genaid_server.probes", "--root", str(tmp_path), "nvidia"]
    done = subprocess.run(command, input=b"detect\n", capture_output=True, env=env, timeout=60, check=True)
    assert json.loads(done.stdout)["gpus"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end of stdin alone tells of the parent's end")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    code = """
import subprocess, sys
probe = subprocess.Popen([sys.executable, "-P", "-m", "genaid_server.probes", "vulkan", "--root", sys.argv[1]])
print(probe.pid, flush=True)
probe.wait()
"""
    reading, writing = os.pipe()  # its stdin stays open
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE) as parent:
        os.close(reading)
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.write(writing, b"detect\n")
        assert b"gpus" in parent.stdout.readline()  # it has done all that it does first
        probe = psutil.Process(pid)
        parent.kill()
    _, alive = psutil.wait_procs([probe], timeout=30)
    os.close(writing)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_probe_imports_neither_the_service_nor_the_other_probes() -> None:
    code = """
import sys
from importlib import import_module
import_module("genaid_server.probes.__main__"); import_module(sys.argv[1])
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("genaid_server", "psutil", "asyncio", "pydantic")))
"""
    command = [sys.executable, "-P", "-c", code, "genaid_server.probes.nvidia"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert done.stdout.decode().split() == [
        "genaid_server",
        "genaid_server.probes",
        "genaid_server.probes.__main__",
        "genaid_server.probes.nvidia",
        "genaid_server.supervision",
        "genaid_server.supervision.lifeline",
    ]
