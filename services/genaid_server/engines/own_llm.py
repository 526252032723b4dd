"""Runs a llama-server program of the user's, so that it can't outlive its parent: `own_llm.py PROGRAM ARGUMENT...`.

On Linux this process becomes the program, and the kernel sees to its death with the parent. Elsewhere it stays beside
the program and ends it when stdin ends.
"""

import os
import platform
import subprocess
import sys
import threading
from typing import Final

from genaid_server.supervision.lifeline import die_with_parent

CANT_RUN: Final = 127
"""Exit status where the program can't be run, as a shell's."""


def main() -> None:
    """Run the program of argv, and end as it ends."""
    argv = sys.argv[1:]
    die_with_parent()
    if platform.system() == "Linux":
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.execv(argv[0], argv)  # noqa: S606 - there is no shell to be avoided
    program = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    threading.Thread(target=end_with_stdin, args=(program,), daemon=True).start()
    sys.exit(program.wait())


def end_with_stdin(program: "subprocess.Popen[bytes]") -> None:
    """Kill the program when stdin ends."""
    while os.read(0, 65536):
        pass
    program.kill()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"{sys.argv[1]}: {error.strerror or error}", file=sys.stderr, flush=True)
        sys.exit(CANT_RUN)
