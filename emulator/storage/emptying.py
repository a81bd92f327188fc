"""Emptying a folder from its descriptor, however deep it is.

A path has 4096 bytes at most, a process about a thousand descriptors, and Python's stack has an
end; folders have none of these.
"""

from __future__ import annotations

import os
import secrets

from emulator.storage.beneath import DEEPEST, open_folder

__all__ = ["empty"]


def empty(folder: int) -> None:
    """Remove everything that is in a folder; what is very deep is moved up before.

    Raises:
        OSError: something in it cannot be removed.
    """
    while _empty(folder, folder, 0):
        pass


def _empty(folder: int, top: int, depth: int) -> bool:
    """Remove what is in a folder; whether something of it was moved to the top one instead."""
    moved = False
    with os.scandir(folder) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_folder in entries:
        if not is_folder:
            os.unlink(name, dir_fd=folder)
        elif depth == DEEPEST:
            new = f".fal_remove.tmp.{secrets.token_hex(8)}"
            os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
            moved = True
        else:
            inner = open_folder(folder, name)
            try:
                moved = _empty(inner, top, depth + 1) or moved
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)
    return moved
