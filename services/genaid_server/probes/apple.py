"""The GPU of Apple silicon, from sysctl."""

import subprocess
from pathlib import Path
from shutil import which
from typing import Any, Final

GPU_SHARE: Final = 0.7  # of main memory, which the system lets the GPU take


def detect(root: Path) -> dict[str, Any]:
    """The one GPU that a chip of Apple's has; none on a Mac with a processor of Intel's."""
    if _sysctl("hw.optional.arm64") != "1":
        return {"gpus": [], "notes": ["GPUs of Macs with an Intel processor are not used."]}
    size = _sysctl("hw.memsize")
    gpu = {
        "id": "apple-0",
        "vendor": "apple",
        "vendor_id": "106b",
        "name": _sysctl("machdep.cpu.brand_string") or "Apple GPU",
        "unified": True,
        "integrated": True,
        "metal": True,
    }
    if not size.isdecimal():
        return {"gpus": [gpu], "notes": ["The size of main memory is not known: sysctl hw.memsize gave no number."]}
    return {"gpus": [gpu | {"vram_total": int(int(size) * GPU_SHARE)}], "notes": []}


def _sysctl(name: str) -> str:
    """A value, empty where there is none of this name. Whoever asks the probe kills both where they take too long."""
    program = which("sysctl") or "/usr/sbin/sysctl"
    done = subprocess.run([program, "-n", name], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.stdout.decode("utf-8", "replace").strip()
