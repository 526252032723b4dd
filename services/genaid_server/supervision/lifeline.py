"""What every child program does first: take its pipes for itself and tie its life to its parent's."""

import ctypes
import os
import signal
import sys
from typing import BinaryIO, Final

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return private binary streams of stdin and stdout, and point descriptor 1 at stderr.

    Native libraries print progress bars to stdout whenever they like; they must not get between the frames.
    To be called before such a library is imported.
    """
    incoming = os.fdopen(os.dup(0), "rb", buffering=0)
    outgoing = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return incoming, outgoing


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies.

    The end of stdin tells the same on every system, but only once a native call that holds the interpreter
    lock returns, and loading a large model takes minutes.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent or parent == 1:
            os._exit(0)
    if sys.platform != "win32":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
