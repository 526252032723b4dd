"""A llama-server that misbehaves as told: takes the real one's arguments, answers /health and /slots, and has no model
at all.

GENAID_FAKE_LLAMA holds JSON: `say`, raw text (latin-1) to print while it loads, `times` times; `lines`, a number of
numbered lines to print as fast as they go; `die` ("signal:NAME" or "exit:CODE"), how it ends instead of loading;
`deaf`, that it never listens; `never_ready`, that it listens and loads for ever; `ignore_term`; `slots`, the status
of all that is asked of its slots, 200 unless told; `forgets`, that it takes for ever to restore them; `scribbles`, to
save them.

Each slot has TOKENS tokens, which it saves to a file, and restores if they are there.

Once it listens, POST /die/signal/NAME or /die/exit/CODE ends it, POST /say/N prints N numbered lines, POST
/health/STATUS decides how it answers /health from then on, and POST /spin/SECONDS has it compute for so long. Its
arguments are at GET /argv, its environment's LLAMA_API_KEY at GET /key, and how many tokens it has restored at GET
/restored.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKENS = 100


def die(how: str, what: str) -> None:
    """End this process by a signal or with a status."""
    if how == "signal":
        os.kill(os.getpid(), getattr(signal, what))
        signal.pause()
    os._exit(int(what))


def say(lines: int) -> None:
    """Print numbered lines as llama.cpp does, as fast as they go."""
    block = 1000
    for start in range(0, lines, block):
        numbers = range(start, min(start + block, lines))
        write("".join(f"0.00.000.{n % 1000:03} I slot line {n} of {lines}\n" for n in numbers).encode())


def write(data: bytes) -> None:
    """Print all of it, whatever a pipe takes at once."""
    while data:
        data = data[os.write(2, data) :]


def spin(seconds: float) -> None:
    """Compute, and nothing else."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


class Handler(BaseHTTPRequestHandler):
    """Answers the few requests."""

    health = 503
    slots = 200
    forgets = False
    scribbles = False
    restored = 0

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Health, slots, arguments, key."""
        if self.path == "/health":
            self.answer({"status": Handler.health}, Handler.health)
        elif self.path == "/slots":
            number = int(argument("-np"))
            self.answer([{"id": n, "is_processing": False} for n in range(number)], Handler.slots)
        elif self.path == "/restored":
            self.answer(Handler.restored)
        elif self.path == "/argv":
            self.answer(sys.argv[1:])
        elif self.path == "/key":
            self.answer(os.environ.get("LLAMA_API_KEY", ""))
        else:
            self.answer({}, 404)

    def do_POST(self) -> None:
        """Do what the path says."""
        verb, *rest = self.path.strip("/").split("/")
        if verb == "slots":
            self.cache(rest[0])
            return
        if verb == "die":
            die(*rest)
        elif verb == "say":
            say(int(rest[0]))
        elif verb == "health":
            Handler.health = int(rest[0])
        elif verb == "spin":
            threading.Thread(target=spin, args=(float(rest[0]),), daemon=True).start()
        self.answer({})

    def cache(self, action: str) -> None:
        """Save the prompt cache of a slot, or restore it."""
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["filename"]
        path = Path(argument("--slot-save-path")) / name
        if Handler.slots != 200:
            self.answer({}, Handler.slots)
        elif action.endswith("?action=save"):
            if Handler.scribbles:
                path.write_text("1")
                threading.Event().wait()
            path.write_text(str(TOKENS))
            self.answer({"n_saved": TOKENS})
        else:
            if Handler.forgets:
                threading.Event().wait()
            Handler.restored += int(path.read_text())
            self.answer({"n_restored": TOKENS})

    def answer(self, value: Any, status: int = 200) -> None:
        """Send JSON."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def argument(name: str) -> str:
    """What follows an argument."""
    return sys.argv[sys.argv.index(name) + 1]


class Server(ThreadingHTTPServer):
    """Shares its port with nobody."""

    allow_reuse_port = False
    daemon_threads = True


def listen(port: int) -> None:
    """Answer requests from now on, or end as the real one does where the port is taken."""
    try:
        server = Server(("127.0.0.1", port), Handler)
    except OSError:
        print(f"0.00.000.001 E srv start: couldn't bind HTTP server socket, port: {port}", file=sys.stderr)
        sys.exit(1)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    """Serve as told."""
    plan = json.loads(os.environ.get("GENAID_FAKE_LLAMA", "{}"))
    if plan.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not plan.get("deaf"):
        Handler.slots, Handler.forgets = plan.get("slots", 200), plan.get("forgets", False)
        Handler.scribbles = plan.get("scribbles", False)
        listen(int(argument("--port")))
    for _ in range(plan.get("times", 1)):
        write(plan.get("say", "").encode("latin-1"))
    say(plan.get("lines", 0))
    if "die" in plan:
        die(*plan["die"].split(":"))
    if not plan.get("never_ready"):
        Handler.health = 200
    threading.Event().wait()


if __name__ == "__main__":
    main()
