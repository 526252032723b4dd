"""What people are shown of the machine: what it has, and its memory, once or again and again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genaid_client import EngineMemory, Gpu, GpuMemory, MemorySnapshot, Recommendations, SystemCapabilities
from genaid_server.cli.output import print_json_line, printable, say
from genaid_server.cli.views.units import format_bytes

RECOMMENDED_COLUMNS: Final = ("RECOMMENDED", "VALUE", "WHY")
MEMORY_COLUMNS: Final = ("MEMORY", "TOTAL", "USED", "FREE")
ENGINE_COLUMNS: Final = ("ENGINE", "MODEL", "PID", "MAIN MEMORY", "GPU MEMORY")
SIZE_COLUMNS: Final = ("TOTAL", "USED", "FREE", "PID", "MAIN MEMORY", "GPU MEMORY")
MAIN_MEMORY: Final = "main memory"
NOT_KNOWN: Final = "not known"
NO_ENGINE: Final = "No engine runs."
BAR_WIDTH: Final = 30

type Rows = list[tuple[str, object]]
type Row = tuple[str, ...]
type ShowMemory = Callable[[MemorySnapshot], None]


def size(count: int | None) -> str:
    """A size, where it is known."""
    return NOT_KNOWN if count is None else format_bytes(count)


def machine_rows(machine: SystemCapabilities) -> Rows:
    """What the machine has as rows of a label and a value; some values are None or empty."""
    cpu, ram = machine.cpu, machine.memory
    surroundings = [
        machine.platform_key,
        *(["in a container"] if machine.container else []),
        *(["in WSL"] if machine.wsl else []),
    ]
    return [
        ("CPU", cpu.model or NOT_KNOWN),
        ("  cores", f"{cpu.physical_cores} physical, {cpu.logical_cores} logical, {cpu.usable_cores} for genaid"),
        ("  architecture", cpu.architecture),
        ("  features", " ".join(cpu.features)),
        (MAIN_MEMORY, f"{format_bytes(ram.total_bytes)}, {format_bytes(ram.available_bytes)} free"),
        ("  limit", _optional(ram.container_limit_bytes, "{} for this container")),
        ("  budget", _optional(ram.budget_bytes, "{} for genaid at most")),
        *_gpus_rows(machine),
        ("platform", ", ".join(surroundings)),
        ("detected", f"{machine.detect_time.astimezone():%Y-%m-%d %H:%M:%S}"),
        *(("note", note) for note in machine.notes),
    ]


def recommendation_rows(recommended: Recommendations) -> list[Row]:
    """What is recommended for the machine, with the reasons; see RECOMMENDED_COLUMNS."""
    layers = recommended.gpu_layers
    return [
        ("largest models", recommended.max_model_size, recommended.size_reason),
        ("quantizations", ", ".join(recommended.quantizations), ""),
        ("threads", str(recommended.threads), recommended.threads_reason),
        ("GPU layers", "by model" if layers is None else str(layers), recommended.gpu_layers_reason),
    ]


def memory_rows(memory: MemorySnapshot) -> list[Row]:
    """Each kind of memory; see MEMORY_COLUMNS."""
    ram = memory.ram
    main = (MAIN_MEMORY, format_bytes(ram.total_bytes), format_bytes(ram.used_bytes), format_bytes(ram.available_bytes))
    return [
        main,
        *((gpu_label(gpu), size(gpu.total_bytes), size(used(gpu)), size(gpu.free_bytes)) for gpu in memory.gpus),
    ]


def engine_rows(memory: MemorySnapshot) -> list[Row]:
    """What each engine holds; see ENGINE_COLUMNS."""
    return [
        (engine.kind, engine.model_id, str(engine.pid), format_bytes(engine.resident_bytes), size(engine.vram_bytes))
        for engine in memory.engines
    ]


def budget_lines(memory: MemorySnapshot) -> list[str]:
    """What genaid may take at most, where that is configured."""
    budgets = ((MAIN_MEMORY, memory.ram.budget_bytes), ("GPU memory", memory.vram_budget_bytes))
    return [f"genaid takes at most {format_bytes(most)} of {kind}" for kind, most in budgets if most is not None]


def gpu_label(gpu: GpuMemory) -> str:
    """A GPU's name, or what else tells it from others."""
    return gpu.name or gpu.gpu_id


def used(gpu: GpuMemory) -> int | None:
    """What is in use of a GPU's memory, in bytes; None where the driver doesn't tell."""
    if gpu.total_bytes is None or gpu.free_bytes is None:
        return None
    return max(0, gpu.total_bytes - gpu.free_bytes)


@contextmanager
def memory_view(*, as_json: bool) -> Iterator[ShowMemory]:
    """Show memory on stdout; yields what to call with each newer state.

    On a terminal it stays in its place; elsewhere it is a line a state, and as JSON an object a line.
    """
    console = Console()
    if as_json:
        yield print_json_line
    elif not console.is_terminal:
        yield plain_view(lambda line: print(line, flush=True), say)
    else:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda memory: live.update(render(memory), refresh=True)


def plain_view(tell: Callable[[str], None], warn: Callable[[str], None]) -> ShowMemory:
    """A view that tells a line a state, and warns of what can't be measured when that changes."""
    warned: tuple[str, ...] = ()

    def show(memory: MemorySnapshot) -> None:
        nonlocal warned
        if memory.notes != warned:
            warned = memory.notes
            for note in warned:
                warn(f"note: {printable(note)}")
        tell(memory_line(memory))

    return show


def memory_line(memory: MemorySnapshot) -> str:
    """All memory at one moment in one line."""
    ram = memory.ram
    parts = [
        f"{MAIN_MEMORY} {amount(ram.used_bytes, ram.total_bytes)}",
        *(f"{gpu_label(gpu)} {amount(used(gpu), gpu.total_bytes)}" for gpu in memory.gpus),
        *(_engine_part(engine) for engine in memory.engines),
    ]
    return printable(f"{memory.time.astimezone():%H:%M:%S}  {'; '.join(parts)}")


def amount(count: int | None, total: int | None) -> str:
    """How much of how much is in use."""
    if count is None or total is None:
        return NOT_KNOWN if total is None else f"{format_bytes(total)}, use {NOT_KNOWN}"
    return f"{format_bytes(count)} of {format_bytes(total)}"


def render(memory: MemorySnapshot) -> RenderableType:
    """Memory for a terminal: a bar for each kind, what each engine holds, and what could not be measured."""
    bars = Table.grid(padding=(0, 1))
    for label, count, total in [
        (MAIN_MEMORY, memory.ram.used_bytes, memory.ram.total_bytes),
        *((gpu_label(gpu), used(gpu), gpu.total_bytes) for gpu in memory.gpus),
    ]:
        bar = ProgressBar(total=total or 1, completed=count or 0, width=BAR_WIDTH)
        bars.add_row(Text(printable(label)), bar, Text(amount(count, total)))
    lines: list[RenderableType] = [Text(f"{memory.time.astimezone():%H:%M:%S}", style="dim"), bars]
    lines += [Text(line, style="dim") for line in budget_lines(memory)]
    lines.append(_engines_table(memory) if memory.engines else Text(NO_ENGINE, style="dim"))
    lines += [Text(f"note: {printable(note)}", style="yellow") for note in memory.notes]
    return Group(*lines)


def _engines_table(memory: MemorySnapshot) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ENGINE_COLUMNS:
        table.add_column(column, justify="right" if column in SIZE_COLUMNS else "left")
    for row in engine_rows(memory):
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _engine_part(engine: EngineMemory) -> str:
    on_gpu = f" and {format_bytes(engine.vram_bytes)} on GPUs" if engine.vram_bytes else ""
    return f"{engine.kind} engine ({engine.model_id}) {format_bytes(engine.resident_bytes)}{on_gpu}"


def _gpus_rows(machine: SystemCapabilities) -> Rows:
    if not machine.gpus:
        return [("GPU", "none found")]
    rows = [row for gpu in machine.gpus for row in _gpu_rows(gpu)]
    unusable = None if machine.gpu_available else "no engine could use them"
    budget = _optional(machine.vram_budget_bytes, "{} for genaid at most")
    return [*rows, ("GPUs", unusable), ("GPU budget", budget)]


def _gpu_rows(gpu: Gpu) -> Rows:
    kinds = [
        *(["part of the processor"] if gpu.integrated else []),
        *(["shares main memory"] if gpu.unified_memory else []),
    ]
    free = "" if gpu.vram_free_bytes is None else f", {format_bytes(gpu.vram_free_bytes)} free"
    runtimes = {"cuda": gpu.cuda, "metal": gpu.metal, "rocm": gpu.rocm, "vulkan": gpu.vulkan}
    return [
        ("GPU", gpu.name or gpu.id),
        ("  id", gpu.id),
        ("  vendor", gpu.vendor or NOT_KNOWN),
        ("  memory", f"{size(gpu.vram_bytes)}{free}"),
        ("  kind", ", ".join(kinds)),
        ("  driver", gpu.driver),
        ("  compute", gpu.compute_capability),
        ("  runs", " ".join(name for name, usable in runtimes.items() if usable) or "none of the engines' runtimes"),
    ]


def _optional(count: int | None, words: str) -> str | None:
    return None if count is None else words.format(format_bytes(count))
