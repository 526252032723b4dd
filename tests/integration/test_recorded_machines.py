"""What is made of machines that were recorded: their hardware, their memory and what is recommended for them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import recorded_machines
from genaid_server.resource.core.fitting import system_recommendations as advice
from genaid_server.resource.core.fitting.capacity import Budgets
from genaid_server.resource.core.system.facts import Cpu, Gpu, Hardware, Ram, Vendor
from genaid_server.resource.core.system.ram import read_ram
from genaid_server.resource.core.system.survey import Survey

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows can't have the names of files of sysfs")

KINDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "two cores": lambda record: record["cores"][0] == 2,
    "eight cores": lambda record: record["cores"][0] == 8,
    "32 cores": lambda record: record["cores"][0] == 32,
    "128 cores": lambda record: record["cores"][0] == 128,
    "two GPUs": lambda record: len(record["expected"]["hardware"]["gpus"]) == 2,
    "NVIDIA": lambda record: "nvidia" in _vendors(record),
    "AMD": lambda record: "amd" in _vendors(record),
    "Intel": lambda record: "intel" in _vendors(record),
    "Apple": lambda record: "apple" in _vendors(record),
    "ARM": lambda record: record["architecture"] == "aarch64",
    "a container": lambda record: record["expected"]["hardware"]["container"],
    "WSL": lambda record: record["expected"]["hardware"]["wsl"],
}


def _vendors(record: dict[str, Any]) -> set[str]:
    return {gpu["vendor"] for gpu in record["expected"]["hardware"]["gpus"]}


def expected_hardware(record: dict[str, Any]) -> Hardware:
    """What a record expects; what it doesn't name is as by default."""
    told = record["expected"]["hardware"]
    cpu = Cpu(**told["cpu"] | {"features": tuple(told["cpu"]["features"])})
    gpus = tuple(Gpu(**gpu | {"vendor": Vendor(gpu["vendor"])}) for gpu in told["gpus"])
    return Hardware(told["platform"], cpu, gpus, tuple(told["notes"]), told["container"], told["wsl"])


@pytest.mark.parametrize("name", recorded_machines.names())
async def test_a_machine_is_what_it_was(tmp_path: Path, name: str) -> None:
    record = recorded_machines.load(name)
    machine = recorded_machines.materialize(name, tmp_path)
    async with Survey(machine, tmp_path / "data", probe_timeout=recorded_machines.PATIENCE) as survey:
        hardware = await survey.hardware()
        memory = await survey.memory()
    assert hardware == expected_hardware(record)
    assert memory.ram == Ram(**record["expected"]["ram"])
    assert [[gpu.gpu_id, gpu.total, gpu.free] for gpu in memory.gpus] == record["expected"]["gpu_memory"]


@pytest.mark.parametrize("name", recorded_machines.names())
def test_what_is_recommended_follows_from_what_there_is(tmp_path: Path, name: str) -> None:
    record = recorded_machines.load(name)
    ram = read_ram(recorded_machines.materialize(name, tmp_path))
    told = advice.recommend(expected_hardware(record), ram.total, Budgets())
    assert {
        "max_model_size": told.max_model_size,
        "quantizations": list(told.quantizations),
        "threads": told.threads,
        "gpu_layers": told.gpu_layers,
    } == record["expected"]["recommendations"]
    assert told.size_reason
    assert told.threads_reason
    assert told.gpu_layers_reason


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_machine_was_recorded(kind: str) -> None:
    assert [name for name in recorded_machines.names() if KINDS[kind](recorded_machines.load(name))]
