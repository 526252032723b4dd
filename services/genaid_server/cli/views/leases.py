"""What people are shown of shared memory: who holds it, what is offloaded, and what an image would take."""

from dataclasses import asdict
from typing import Any, Final

from genaid_client import (
    Departure,
    ImagePlacement,
    ImagePlan,
    Lease,
    LeaseList,
    LeaseState,
    MemoryKind,
    OffloadedLlm,
    OffloadPhase,
    TenantKind,
)
from genaid_server.cli.views.units import format_bytes, format_seconds

LEASE_COLUMNS: Final = ("TENANT", "ENGINE", "MODEL", "STATE", "MAIN MEMORY", "GPU MEMORY", "SIZE", "WHY")
SIZE_COLUMNS: Final = ("MAIN MEMORY", "GPU MEMORY")
NO_LEASE: Final = "No engine holds memory."
NO_OFFLOADED: Final = "No LLM is offloaded."

KIND_NAMES: Final = {TenantKind.IMAGE: "image", TenantKind.LLM: "LLM", None: "not known"}
MEMORY_NAMES: Final = {MemoryKind.RAM: "main memory", MemoryKind.VRAM: "GPU memory", None: "memory"}
PHASE_NAMES: Final = {
    OffloadPhase.OFFLOADING: "makes room: its requests finish, and its prompt caches are saved",
    OffloadPhase.OFFLOADED: "stopped, and comes back as soon as memory allows",
    OffloadPhase.RELOADING: "on its way back",
    OffloadPhase.FAILED: "could not be loaded, and is tried again",
}

type Rows = list[tuple[str, object]]
type Row = tuple[str, ...]


def budget_rows(leases: LeaseList) -> Rows:
    """How much of what there is to share is granted; some values are None."""
    on_gpus = _share(leases.granted_vram_bytes, leases.total_vram_bytes) if leases.total_vram_bytes else None
    return [("memory granted", _share(leases.granted_ram_bytes, leases.total_ram_bytes)), ("  on GPUs", on_gpus)]


def lease_rows(leases: LeaseList) -> list[Row]:
    """Each lease; see LEASE_COLUMNS."""
    return [
        (
            lease.tenant_id,
            KIND_NAMES[lease.kind],
            lease.model_id,
            state_in_words(lease),
            format_bytes(lease.ram_bytes),
            format_bytes(lease.vram_bytes),
            _measured(lease.measured),
            lease.reason,
        )
        for lease in leases.leases
    ]


def status_rows(leases: LeaseList, offloaded: OffloadedLlm | None) -> Rows:
    """Shared memory among other things that run, a row a lease; some values are None or empty."""
    held = [("lease", lease_line(lease)) for lease in leases.leases]
    return [*budget_rows(leases), *held, *(offloaded_rows(offloaded) if offloaded is not None else [])]


def lease_line(lease: Lease) -> str:
    """One lease in one line."""
    size = memory_in_words(lease.ram_bytes, lease.vram_bytes)
    told = f"{lease.tenant_id}: {KIND_NAMES[lease.kind]} engine ({lease.model_id}), {state_in_words(lease)}, {size}"
    why = f": {lease.reason}" if lease.reason else ""
    return f"{told}, {_measured(lease.measured)}{why}"


def state_in_words(lease: Lease) -> str:
    """Where a lease is in its life."""
    if lease.state is not LeaseState.RECLAIM:
        return str(lease.state)
    idle = lease.reclaim_after_seconds
    return "to be given back" + (f" after {format_seconds(idle)} without work" if idle else "")


def offloaded_rows(now: OffloadedLlm) -> Rows:
    """The LLM that was offloaded as rows of a label and a value; some values are None or empty."""
    return [
        ("offloaded LLM", f"{now.model_id}, since {now.save_time.astimezone():%Y-%m-%d %H:%M:%S}"),
        ("  it is", PHASE_NAMES[now.phase]),
        ("  for", now.reason),
        ("  tokens saved", now.saved_tokens),
        ("  failed attempts", now.failed_attempts or None),
        ("  last error", now.last_error.partition("\n")[0]),
        ("  next attempt", f"{now.next_attempt_time.astimezone():%H:%M:%S}" if now.next_attempt_time else None),
    ]


def offloaded_as_object(now: OffloadedLlm | None) -> dict[str, Any] | None:
    """The LLM that was offloaded as JSON has it, without a place for its key, which is never told."""
    if now is None:
        return None
    told = asdict(now)
    del told["serving"]["api_key"]
    return told


def plan_rows(plan: ImagePlan) -> Rows:
    """What an image would take as rows of a label and a value; some values are None or empty."""
    needs, free, total = (format_bytes(size) for size in (plan.required_bytes, plan.available_bytes, plan.total_bytes))
    return [
        ("possible", "yes" if plan.possible else "no"),
        ("model", plan.model_id),
        ("needs", f"{needs} of {MEMORY_NAMES[plan.bottleneck]}; {free} of {total} are free"),
        ("explanation", plan.explanation),
        *(("would leave", departure_line(departure)) for departure in plan.departures),
        ("suggestion", plan.suggestion),
        ("placement", _placement_in_words(plan.placement) if plan.placement is not None else None),
        ("lease", _size_in_words(plan) if plan.possible else None),
    ]


def departure_line(departure: Departure) -> str:
    """Who would leave; the explanation of the plan says why."""
    size = memory_in_words(departure.ram_bytes, departure.vram_bytes)
    return f"{departure.tenant_id}: {KIND_NAMES[departure.kind]} engine ({departure.model_id}), {size}"


def memory_in_words(ram_bytes: int, vram_bytes: int) -> str:
    """Main memory and, where there is some, memory of GPUs."""
    return format_bytes(ram_bytes) + (f" and {format_bytes(vram_bytes)} on GPUs" if vram_bytes else "")


def _size_in_words(plan: ImagePlan) -> str:
    return f"{memory_in_words(plan.ram_bytes, plan.vram_bytes)}, {_measured(plan.measured)}"


def _placement_in_words(placement: ImagePlacement) -> str:
    ways = [
        *(["weights in main memory"] if placement.offload_to_cpu else []),
        *(["decoded in tiles"] if placement.vae_tiling else []),
        *([] if placement.max_vram_bytes is None else [f"at most {format_bytes(placement.max_vram_bytes)} on GPUs"]),
    ]
    return ": ".join(part for part in (", ".join(ways), placement.reason) if part)


def _measured(measured: bool) -> str:
    return "measured" if measured else "estimated"


def _share(granted: int, total: int) -> str:
    return f"{format_bytes(granted)} of {format_bytes(total)}"
