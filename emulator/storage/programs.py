"""Programs that one runner has and others do not: a directory on ``PATH`` that it sees filled.

The emulator's root has the directory, empty. A runner with programs mounts a file system in memory
over it, in its own namespace, so any number of runners see each their own at one path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from emulator.storage import mounts

__all__ = ["DIRECTORY", "install", "is_first", "put_first", "write"]

DIRECTORY = "/.fal-emulator/bin"
_SIZE = 1 << 20


def install(programs: Mapping[str, str]) -> None:
    """Give the calling thread, in a namespace of its own, these scripts, by name."""
    if not programs:
        return
    mounts.mount_tmpfs(DIRECTORY, _SIZE)
    for name, text in programs.items():
        write(f"{DIRECTORY}/{name}", text)


def write(path: str, text: str) -> None:
    """Make a script that can be started."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)


def put_first(path: str | None) -> str:
    """``PATH`` with the directory before everything else; None is what is in force without one."""
    path = os.defpath if path is None else path
    return path if is_first(path) else f"{DIRECTORY}{os.pathsep}{path}"


def is_first(path: str | None) -> bool:
    """Whether this ``PATH`` has the directory before everything else."""
    return path is not None and path.split(os.pathsep)[0] == DIRECTORY
