"""Where this process makes temporary directories, so that no emulated ``/tmp`` has to show them."""

from __future__ import annotations

import os
import tempfile

from emulator.storage.visible import TMP

__all__ = ["is_in_tmp", "room_outside_tmp"]

_ELSEWHERE = "/var/tmp"  # where Python makes them, too, if there is no /tmp
_NOEXEC = getattr(os, "ST_NOEXEC", 0)  # not on macOS


def is_in_tmp(path: str) -> bool:
    """Whether a path leads to ``/tmp`` or to something in it."""
    real, tmp = os.path.realpath(path), os.path.realpath(TMP)
    return real == tmp or real.startswith(f"{tmp}/")


def room_outside_tmp() -> str | None:
    """Where to make them, if Python would do so in ``/tmp``; None: Python's choice is good.

    What this process has in ``/tmp`` is shown to apps in theirs: those that look through their
    ``/tmp`` find it, and those that clear it delete it. Also None where ``TMPDIR`` says that it
    shall be so, and where there is no other place, or one from which no program may be started.
    """
    if any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")):
        return None
    if tempfile.tempdir not in (None, TMP) or is_in_tmp(_ELSEWHERE):
        return None
    if not (os.path.isdir(_ELSEWHERE) and os.access(_ELSEWHERE, os.R_OK | os.W_OK | os.X_OK)):
        return None
    return None if os.statvfs(_ELSEWHERE).f_flag & _NOEXEC else _ELSEWHERE
