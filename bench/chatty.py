"""A llama-server that holds no model, and prints numbered log lines at a steady pace when told: argv as the real one's.

POST /say/LINES/PER_SECOND answers when all of them are printed.
"""

import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BURSTS = 100  # a second


class Handler(BaseHTTPRequestHandler):
    """Answers /health and /say."""

    def log_message(self, *_: object) -> None:
        """Say nothing but what was asked for."""

    def do_GET(self) -> None:
        """It is always healthy."""
        self.answer()

    def do_POST(self) -> None:
        """Print."""
        _, lines, pace = self.path.strip("/").split("/")
        say(int(lines), int(pace))
        self.answer()

    def answer(self) -> None:
        """200, with nothing."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def say(lines: int, pace: int) -> None:
    """Print lines like those of llama.cpp, `pace` of them a second."""
    burst = pace // BURSTS
    due = time.monotonic()
    for start in range(0, lines, burst):
        text = "".join(
            f"0.12.345.{number % 1000:03} I slot update_slots: id 0 | task 17 | prompt processing, number {number}\n"
            for number in range(start, min(start + burst, lines))
        )
        os.write(2, text.encode())
        due += 1 / BURSTS
        time.sleep(max(0, due - time.monotonic()))


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Event().wait()
