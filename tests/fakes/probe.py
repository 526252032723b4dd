"""A stand-in for `python -m genaid_server.probes` that can be made to misbehave: `probe.py [--root DIR] NAME`.

`vulkan` answers from the JSON file named in GENAID_STUB_VULKAN: devices with `name`, `vendor_id`, `device_id` (four
hexadecimal digits), `type` (`other`, `integrated`, `discrete`, `virtual`, `cpu`), `memory` (bytes) and perhaps `uuid`.
Every other name is handed to the real program.

GENAID_PROBE_FAULT="NAME=FAULT" makes the probe of that name misbehave when it is asked, "NAME=FAULT@memory" only when
it is asked for memory; several are separated by commas. Each probe that starts adds its name, a line, to the file named
in GENAID_PROBE_STARTS.
"""

import json
import os
import runpy
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from genaid_server.probes.__main__ import parse
from genaid_server.supervision.lifeline import die_with_parent, take_pipes

TYPES = ("other", "integrated", "discrete", "virtual", "cpu")  # the place is the value of VkPhysicalDeviceType
LAST_WORDS = "the driver's secret last words"


def misbehave(fault: str, answers: BinaryIO) -> None:
    """Do as a bad library does, and never return."""
    print("a line before", LAST_WORDS, sep="\n", file=sys.stderr, flush=True)
    if fault == "sleep":
        if sys.platform != "win32":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    elif fault == "garbage":
        answers.write(b'{"gpus": "none"}\n')
        time.sleep(600)
    elif fault == "flood":
        while True:
            answers.write(b"x" * 65536)
    elif fault == "half":
        answers.write(b'{"gpus": [{"id": "0000:0')
    elif fault == "crash":
        os.abort()
    else:
        sys.exit({"exit": 0}[fault])
    sys.exit(3)


def faults() -> dict[str, str]:
    """The faults by the names of the probes."""
    told = os.environ.get("GENAID_PROBE_FAULT", "")
    return dict(part.split("=") for part in told.split(",") if part)


def recorded(root: Path) -> dict[str, Any]:
    """What Vulkan finds on the recorded machine."""
    vulkan = import_module("genaid_server.probes.vulkan")
    devices = json.loads(Path(os.environ["GENAID_STUB_VULKAN"]).read_text("utf-8")) or ()
    answer: dict[str, Any] = vulkan.answer(
        vulkan.Device(
            name=device["name"],
            vendor_id=device["vendor_id"],
            device_id=device["device_id"],
            kind=TYPES.index(device["type"]),
            memory=device["memory"],
            uuid=device.get("uuid", ""),
        )
        for device in devices
    )
    return answer


def main() -> None:
    name, root = parse(sys.argv[1:])
    if "GENAID_PROBE_STARTS" in os.environ:
        with Path(os.environ["GENAID_PROBE_STARTS"]).open("a") as starts:
            starts.write(f"{name}\n")
    fault, _, question = faults().get(name, "").partition("@")
    stubbed = name == "vulkan" and "GENAID_STUB_VULKAN" in os.environ
    if not fault and not stubbed:
        runpy.run_module("genaid_server.probes", run_name="__main__")
        return
    questions, answers = take_pipes()
    die_with_parent()
    for line in questions:
        asked = line.decode().strip()
        if fault and question in {"", asked}:
            misbehave(fault, answers)
        ask = recorded if stubbed else getattr(import_module(f"genaid_server.probes.{name}"), asked)
        answers.write(json.dumps(ask(root)).encode() + b"\n")


main()
