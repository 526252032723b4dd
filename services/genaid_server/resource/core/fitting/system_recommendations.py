"""What is recommended for a machine, before anybody has chosen a model."""

from dataclasses import dataclass
from typing import Final

from genaid_server.resource.core.fitting import capacity
from genaid_server.resource.core.fitting.capacity import Budgets
from genaid_server.resource.core.fitting.sizes import words
from genaid_server.resource.core.system.facts import Cpu, Hardware, Ram
from genaid_server.supervision.threads import default_threads

BALANCED: Final = ("Q5_K_M", "Q4_K_M")
COMPACT: Final = ("Q4_K_M", "Q4_K_S", "Q3_K_M")

_GIB: Final = 2**30

# From so many GiB on, models of this size with these quantizations run well.
_BY_VRAM: Final[tuple[tuple[int, str, tuple[str, ...]], ...]] = ((24, "70B", BALANCED), (16, "34B", BALANCED))
_BY_RAM: Final[tuple[tuple[int, str, tuple[str, ...]], ...]] = (
    (32, "34B", COMPACT),
    (16, "13B", BALANCED),
    (8, "7B", BALANCED),
)


@dataclass(frozen=True, slots=True)
class Advice:
    """What suits a machine, each with its reason in words.

    `max_model_size` is the largest class of language models that runs well, by parameters: `7B`, `13B`, `34B`, `70B`;
    `quantizations` are the best first. `gpu_layers` is 0 without a GPU and None with one, because it then depends on
    the model.
    """

    max_model_size: str
    quantizations: tuple[str, ...]
    threads: int
    gpu_layers: int | None
    size_reason: str
    threads_reason: str
    gpu_layers_reason: str


def recommend(hardware: Hardware, ram_total: int, budgets: Budgets) -> Advice:
    """What suits the machine with all of its memory, within the budgets; `ram_total` is in bytes."""
    room = capacity.total(hardware, Ram(ram_total, ram_total), budgets)
    size, quantizations, size_reason = _size(room.ram, room.vram_sum)
    gpu_layers, gpu_layers_reason = _gpu_layers(hardware, room.vram_sum)
    cores = usable_cores(hardware.cpu)
    return Advice(
        max_model_size=size,
        quantizations=quantizations,
        threads=default_threads(cores),
        gpu_layers=gpu_layers,
        size_reason=size_reason,
        threads_reason=threads_reason(cores),
        gpu_layers_reason=gpu_layers_reason,
    )


def usable_cores(cpu: Cpu) -> int:
    """Cores to compute with: a second thread of one core would only wait for the first."""
    return min(cpu.physical_cores, cpu.usable_cores)


def threads_reason(cores: int) -> str:
    """Why so many threads."""
    count = default_threads(cores)
    if count >= cores:
        return "One thread for the one core." if count == 1 else f"All {count} cores: there are too few to leave one."
    return f"{count} of {cores} cores: the others stay free for the rest of the machine."


def _size(ram: int, vram: int) -> tuple[str, tuple[str, ...], str]:
    for least, size, quantizations in _BY_VRAM:
        if vram >= least * _GIB:
            return size, quantizations, f"There are {words(vram)} of GPU memory, and {size} models want {least} GiB."
    gpu = f", and {words(vram)} of GPU memory are too little for a larger class" if vram else ""
    for least, size, quantizations in _BY_RAM:
        if ram >= least * _GIB:
            reason = f"There are {words(ram)} of main memory, and {size} models want {least} GiB{gpu}."
            return size, quantizations, reason
    return "7B", COMPACT, f"There are {words(ram)} of main memory: enough for small models, strongly compressed{gpu}."


def _gpu_layers(hardware: Hardware, vram: int) -> tuple[int | None, str]:
    if not hardware.gpus:
        return 0, "There is no GPU to place layers on."
    if not vram:
        return (
            None,
            "There is a GPU, but its driver doesn't tell how much memory it has, so it depends on what a model takes.",
        )
    return None, f"It depends on the model how many layers fit into {words(vram)} of GPU memory."
