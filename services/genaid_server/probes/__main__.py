"""One probe: `python -P -m genaid_server.probes NAME [--root DIR]`.

Each line on stdin, `detect` or `memory`, is answered with one line of JSON on stdout, until stdin ends. Nothing is
imported before it is known to be needed: starting is most of what a probe does.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Final

from genaid_server.supervision.lifeline import die_with_parent, take_pipes

NAMES: Final = ("nvidia", "drm", "vulkan", "apple")
USAGE: Final = f"usage: python -P -m genaid_server.probes [--root DIR] {{{','.join(NAMES)}}}"


def parse(argv: list[str]) -> tuple[str, Path]:
    """The probe's name and the folder below which /proc, /sys and /dev lie. Ends the program where they are wrong."""
    rest, root = list(argv), "/"
    if "--root" in rest[:-1]:
        at = rest.index("--root")
        root = rest[at + 1]
        del rest[at : at + 2]
    if len(rest) != 1 or rest[0] not in NAMES:
        sys.exit(USAGE)
    return rest[0], Path(root)


def main() -> None:
    """Answer until stdin ends."""
    name, root = parse(sys.argv[1:])
    questions, answers = take_pipes()
    die_with_parent()
    import json

    probe = import_module(f"genaid_server.probes.{name}")
    asked = {b"detect": probe.detect}
    if hasattr(probe, "memory"):
        asked[b"memory"] = probe.memory
    for line in questions:
        answers.write(json.dumps(asked[line.strip()](root)).encode() + b"\n")


if __name__ == "__main__":
    main()
