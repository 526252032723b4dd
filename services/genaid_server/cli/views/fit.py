"""What people are shown of how a model fits into memory, and of how to run it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from genaid_client import LlmConfig, LlmRecommendation, MemoryNeed, ModelCheck, Placement
from genaid_server.cli.views.units import format_bytes

NEED_COLUMNS: Final = ("NEEDS", "MAIN MEMORY", "GPU MEMORY")
SETTING_COLUMNS: Final = ("SETTING", "VALUE", "WHY")
ESTIMATED: Final = "the size of its files times 1.2, because its header does not tell"

PLACEMENT_NAMES: Final = {
    Placement.FULL: "all on the GPU",
    Placement.EXPERTS_ON_CPU: "on the GPU, but for its experts, which stay in main memory",
    Placement.PARTIAL: "partly on the GPU, the rest in main memory",
    Placement.CPU: "all in main memory",
}
SETTING_NAMES: Final = {
    "threads": "threads",
    "gpu_layers": "GPU layers",
    "context_size": "context",
    "parallel_requests": "parallel requests",
    "flash_attention": "flash attention",
    "cache_type_k": "K cache",
    "cache_type_v": "V cache",
    "experts_on_cpu": "experts on the CPU",
}

type Rows = list[tuple[str, object]]
type Row = tuple[str, ...]


def check_rows(check: ModelCheck) -> Rows:
    """Whether a model can run as rows of a label and a value; some values are None or empty."""
    return [
        ("possible", "yes" if check.possible else "no"),
        ("warning" if check.possible else "reason", check.reason),
        ("suggestion", check.suggestion),
        ("needs", f"{format_bytes(check.required_bytes)}, available: {format_bytes(check.available_bytes)}"),
        ("estimate", None if check.need.exact else ESTIMATED),
        ("run with", describe_config(check.llm_config) if check.llm_config is not None else None),
    ]


def recommendation_rows(found: LlmRecommendation) -> Rows:
    """What comes of a recommended config as rows of a label and a value; some values are None or empty."""
    need = format_bytes(found.need.ram.total_bytes + found.need.vram.total_bytes)
    return [
        ("fits", "yes" if found.fits else "no, not even the smallest config, which is this one"),
        ("layers", PLACEMENT_NAMES[found.placement] if found.placement else "not known"),
        ("needs", need),
        ("estimate", None if found.need.exact else ESTIMATED),
        ("context", "smaller than asked for" if found.context_reduced else None),
    ]


def need_rows(need: MemoryNeed) -> list[Row]:
    """What a model takes, part by part; see NEED_COLUMNS."""
    ram, vram = need.ram, need.vram
    parts = [
        ("weights", ram.weights_bytes, vram.weights_bytes),
        ("KV cache", ram.kv_cache_bytes, vram.kv_cache_bytes),
        ("computing", ram.compute_bytes, vram.compute_bytes),
        ("engine", ram.overhead_bytes, vram.overhead_bytes),
        ("total", ram.total_bytes, vram.total_bytes),
    ]
    return [(name, format_bytes(in_ram), format_bytes(in_vram)) for name, in_ram, in_vram in parts]


def setting_rows(config: LlmConfig, reasons: Mapping[str, str]) -> list[Row]:
    """Each setting with its reason, those that this version doesn't know at the end; see SETTING_COLUMNS."""
    known = [(SETTING_NAMES[name], value, reasons.get(name, "")) for name, value in _settings(config).items()]
    return [*known, *((name, "", reason) for name, reason in sorted(reasons.items()) if name not in SETTING_NAMES)]


def describe_config(config: LlmConfig) -> str:
    """A config in one line."""
    return ", ".join(f"{SETTING_NAMES[name]} {value}" for name, value in _settings(config).items() if value)


def _settings(config: LlmConfig) -> dict[str, str]:
    return {name: _plain(value) for name, value in asdict(config).items()}


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)
