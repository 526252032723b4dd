"""What people are shown of the LLM engine, and how to use it."""

import json
import shlex
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from genaid_client import Llm, ServerState

type Rows = list[tuple[str, object]]


def llm_rows(now: Llm) -> Rows:
    """The engine as rows of a label and a value; some values are None or empty."""
    return [
        ("LLM engine", state_in_words(now)),
        ("model", now.model_id or "none started yet"),
        ("address", now.base_url),
        ("health", now.health if now.pid is not None else None),
        ("pid", now.pid),
        ("variant", now.variant),
        ("loaded in", f"{now.load_seconds:.1f} s" if now.load_seconds is not None else None),
        ("restarts", now.restarts or None),
        ("last error", last_error(now)),
    ]


def status_rows(now: Llm) -> Rows:
    """The engine among other things that run: fewer rows, whose labels name it."""
    return [
        ("LLM engine", state_in_words(now)),
        ("LLM model", now.model_id or "none started yet"),
        ("LLM address", now.base_url),
        ("LLM health", now.health if now.pid is not None else None),
        ("LLM last error", last_error(now)),
    ]


def state_in_words(now: Llm) -> str:
    """Where it is in its life, how far it has loaded, and whether it makes room for another engine."""
    loaded = f" ({now.load_percentage:.0f}% loaded)" if now.state is ServerState.STARTING else ""
    return f"{now.state}{loaded}{', offloaded: it comes back by itself' if now.offloaded else ''}"


def last_error(now: Llm) -> str:
    """Why it crashed or failed to load last, without the lines of its log, which `genaid llm logs` shows as well."""
    first, more, _ = now.last_error.partition("\n")
    return f"{first} genaid llm logs" if more else first


def as_object(now: Llm) -> dict[str, Any]:
    """The engine as JSON has it: what the contract says, and what follows from it. Without the key, which is secret."""
    told = asdict(now) | {"base_url": now.base_url, "healthy": now.healthy}
    if told["serving"] is not None:
        del told["serving"]["api_key"]
    return told


def how_to_use(base_url: str, *, with_key: bool) -> str:
    """Commands that ask a running engine something."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]})
    argv = ["curl", f"{base_url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    if with_key:
        argv += ["-H", "Authorization: Bearer KEY"]
    argv += ["-d", body]
    curl = subprocess.list2cmdline(argv) if sys.platform == "win32" else shlex.join(argv)
    return f"Talk to it:\n  genaid chat\n  {curl}"
