"""The note that says where a running genaid listens: `run.json` in its data directory, and the ready file."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import psutil

from genaid_server.kit.files import write_atomic

RUN_FILE: Final = "run.json"


@dataclass(frozen=True)
class Endpoints:
    """Where the services of one process listen; None for those that run elsewhere.

    `http` is a URL, the others are host:port.
    """

    http: str | None = None
    resource: str | None = None
    image: str | None = None
    pid: int = field(default_factory=os.getpid)

    def encode(self) -> bytes:
        """As JSON, without what is None."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(known).encode() + b"\n"


def read_run_file(data_dir: Path) -> Endpoints | None:
    """Return where the genaid of a data directory listens; None where none is alive."""
    try:
        content = json.loads((data_dir / RUN_FILE).read_bytes())
        endpoints = Endpoints(**content)
        alive = psutil.pid_exists(endpoints.pid)
    except (OSError, ValueError, TypeError):
        return None
    return endpoints if alive else None


@contextmanager
def published(path: Path, endpoints: Endpoints) -> Iterator[None]:
    """Keep the note at `path` while the block runs. Raises OSError where it can't be written."""
    content = endpoints.encode()
    write_atomic(path, content)
    try:
        yield
    finally:
        # A successor may have put its own note there already.
        with contextlib.suppress(OSError):
            if path.read_bytes() == content:
                path.unlink()
