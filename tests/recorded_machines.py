"""Machines that were recorded: what their files, libraries and programs say, and what is to be made of it.

Each is a file in golden/machines: `platform`, `architecture`, `cores` (physical, logical), `affinity`, `memory` (total,
available), `files` below the root (a path with its text, or with `{"link": TARGET}`), `nvml`, `vulkan` and `commands`
for the stand-ins in fakes/, and `expected`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from genaid_server.resource.core.system.machine import Machine

TESTS: Final = Path(__file__).parent
MACHINES: Final = TESTS / "golden" / "machines"
FAKES: Final = TESTS / "fakes"
PATIENCE: Final = 60.0  # seconds; for a machine that is busy


def names() -> list[str]:
    """All recorded machines."""
    return sorted(path.stem for path in MACHINES.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    """The record of a machine."""
    record: dict[str, Any] = json.loads((MACHINES / f"{name}.json").read_text("utf-8"))
    return record


def materialize(name: str, folder: Path) -> Machine:
    """Write a machine's files into an empty folder, and return the machine to read them from."""
    record = load(name)
    root = folder / "root"
    root.mkdir()
    for path, content in record["files"].items():
        write(root / path, content)
    return Machine(
        platform=record["platform"],
        architecture=record["architecture"],
        root=root,
        cores=lambda: (record["cores"][0], record["cores"][1]),
        affinity=lambda: int(record["affinity"]),
        memory=lambda: (record["memory"][0], record["memory"][1]),
        probe_command=(sys.executable, "-P", str(FAKES / "probe.py"), "--root", str(root)),
        probe_env=_environment(record, folder),
        program_timeout=PATIENCE,
    )


def write(path: Path, content: str | dict[str, str]) -> None:
    """Write a file or a link of a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, "utf-8", newline="\n")
    else:
        path.symlink_to(content["link"])


def _environment(record: dict[str, Any], folder: Path) -> dict[str, str]:
    """What makes the stand-ins answer from this record."""
    answers = {}
    for key in ("nvml", "vulkan", "commands"):
        path = folder / f"{key}.json"
        path.write_text(json.dumps(record[key]), "utf-8")
        answers[f"GENAID_STUB_{key.upper()}"] = str(path)
    others = {name: value for name, value in os.environ.items() if not name.startswith("GENAID_")}
    return others | answers | {"PYTHONPATH": _before("PYTHONPATH", "nvml"), "PATH": _before("PATH", "bin")}


def _before(variable: str, fakes: str) -> str:
    """The variable with a folder of stand-ins in front."""
    return os.pathsep.join(filter(None, (str(FAKES / fakes), os.environ.get(variable))))
