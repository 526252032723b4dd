"""A child that misbehaves as it is told.

Without flags it prints `ready`, waits for the end of its stdin and leaves with status 0. What it starts tells its
process id in a line `grandchild PID`. The line `ready` is printed after everything else but the misdeeds of the end
(`--exit`, `--abort`).
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from typing import BinaryIO


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ignore-term", action="store_true", help="go on after SIGTERM")
    parser.add_argument("--ignore-eof", action="store_true", help="go on after the end of stdin, without reading it")
    parser.add_argument("--spawn-grandchild", action="store_true", help="start a process that holds the same pipes")
    parser.add_argument("--detach-grandchild", action="store_true", help="the same, in a session of its own")
    parser.add_argument("--late", default="", metavar="TEXT", help="have a grandchild print this after one's own end")
    parser.add_argument("--echo-stdin", action="store_true", help="write to stdout what comes on stdin")
    parser.add_argument("--print-env", metavar="NAME", help="print a variable of the environment")
    parser.add_argument("--long-line", type=int, default=0, metavar="N", help="print a line of N characters")
    parser.add_argument("--invalid-utf8", action="store_true", help="print bytes that are no text")
    parser.add_argument("--to-stderr", default="", metavar="TEXT", help="print a line to stderr")
    parser.add_argument("--close-stdout", action="store_true", help="close stdout once ready")
    parser.add_argument("--no-newline", default="", metavar="TEXT", help="print a last line that does not end")
    parser.add_argument("--exit", type=int, metavar="CODE", help="leave by itself with this status")
    parser.add_argument("--abort", action="store_true", help="die as a native library does")
    return parser.parse_args()


def say(data: bytes) -> None:
    stream: BinaryIO = sys.stdout.buffer
    stream.write(data)
    stream.flush()


def spawn(*, detached: bool) -> None:
    code = "import time; time.sleep(600)"
    grandchild = subprocess.Popen([sys.executable, "-c", code], start_new_session=detached)
    say(f"grandchild {grandchild.pid}\n".encode())


def spawn_late(text: str) -> None:
    reading, _ = os.pipe()  # the other end closes when this process has ended
    code = "import sys; sys.stdin.read(); print(sys.argv[1])"
    subprocess.Popen([sys.executable, "-c", code, text], stdin=reading, start_new_session=True)


def misbehave(options: argparse.Namespace) -> None:
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.spawn_grandchild or options.detach_grandchild:
        spawn(detached=options.detach_grandchild)
    if options.late:
        spawn_late(options.late)
    if options.print_env:
        say(f"{os.environ.get(options.print_env)}\n".encode())
    if options.long_line:
        say(b"x" * options.long_line + b"\n")
    if options.invalid_utf8:
        say(b"caf\xe9 \xff\xfe\n")
    if options.to_stderr:
        print(options.to_stderr, file=sys.stderr, flush=True)


def wait_for_the_end(options: argparse.Namespace) -> None:
    if options.ignore_eof:
        time.sleep(600)
    while data := os.read(0, 65536):
        if options.echo_stdin:
            say(data)


def main() -> int:
    options = parse()
    misbehave(options)
    say(b"ready\n")
    if options.no_newline:
        say(options.no_newline.encode())
    if options.close_stdout:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
    if options.abort:
        os.abort()
    if options.exit is None:
        wait_for_the_end(options)
    return options.exit or 0


if __name__ == "__main__":
    sys.exit(main())
