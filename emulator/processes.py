"""Child processes of the emulators' own, as against what tests have started.

One for the whole process: an emulator's servers are no leftovers of another emulator's test.
"""

from __future__ import annotations

import os

__all__ = ["has_others", "servers"]

#: The ids of servers that use no volume: they fork runners.
servers: set[int] = set()


def has_others() -> bool:
    """Whether a program that was started from here, but for the servers, may still be running."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return not servers or _children() != servers


def _children() -> set[int] | None:
    """The ids of the processes that were started from here, where the kernel tells them."""
    found = set()
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children") as file:
                found |= {int(number) for number in file.read().split()}
    except OSError:
        return None
    return found
