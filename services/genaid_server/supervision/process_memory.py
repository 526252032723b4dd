"""What a process takes of main memory, apart from pages that files on disk back: those the system takes away itself."""

import sys
from pathlib import Path

import psutil


def private_bytes(process: psutil.Process) -> int:
    """What it holds now, and gives back when it ends. Raises psutil.Error where it is gone."""
    memory = process.memory_info()
    return max(0, int(memory.rss) - int(getattr(memory, "shared", 0)))


def peak_private_bytes(pid: int) -> int:
    """The most that it has held so far; on macOS, which does not tell, what it holds now. 0 where it is gone."""
    try:
        process = psutil.Process(pid)
        memory = process.memory_info()
        peak = max(int(memory.rss), _peak(pid), int(getattr(memory, "peak_wset", 0)))
    except psutil.Error:
        return 0
    return max(0, peak - int(getattr(memory, "shared", 0)))


def _peak(pid: int) -> int:
    """The peak of the resident set as Linux has it; 0 elsewhere."""
    if sys.platform != "linux":
        return 0
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
