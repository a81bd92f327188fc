"""What nobody rewrites is refused: the interpreter announces what is opened, by its audit events.

On the rungs without namespaces an extension module, or a function that another module kept from
before, would reach the host's own ``/data``. Where it goes through Python's own C code, Python says
so beforehand, and this hook raises. Code that calls the C library itself is not announced.

Imports next to nothing: a Python that the app starts needs it before anything else.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from emulator.errors import HostPathError
from emulator.storage.places import here

__all__ = ["ONLY_PYTHON", "REAL_MOUNTS", "begin", "end", "passing", "refusal"]

#: Why something is refused, and the way out, for the messages that say so.
ONLY_PYTHON = "here only Python's own path calls are led to the emulated /data and /tmp."
REAL_MOUNTS = (
    "this test where they are real mounts (as root with CAP_SYS_ADMIN, or where user namespaces "
    "are allowed; docs/rungs.md says how), and write "
    '@pytest.mark.fal(filesystem="namespace") above it, to have it skipped elsewhere.'
)

#: Events whose first argument is a path, and those that have it, or another one, elsewhere.
_EVENTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            *("open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rmdir", "os.chdir"),
            *("os.truncate", "os.utime", "os.chmod", "os.chown", "os.getxattr", "os.setxattr"),
            *("os.listxattr", "os.removexattr", "os.exec", "os.posix_spawn"),
            *("sqlite3.connect", "ctypes.dlopen"),
        ),
        (0,),
    ),
    **dict.fromkeys(("os.rename", "os.link"), (0, 1)),
    **dict.fromkeys(("os.symlink", "import", "socket.bind", "socket.connect"), (1,)),
}


class _Passing(threading.local):
    depth = 0


_passing = _Passing()
_is_hooked = False
_is_on = False


def begin() -> None:
    """Refuse from now on."""
    global _is_hooked, _is_on
    _is_on = True
    if not _is_hooked:  # nobody can take one back
        _is_hooked = True
        sys.addaudithook(_hook)


def end() -> None:
    """Refuse nothing any more."""
    global _is_on
    _is_on = False


@contextmanager
def passing() -> Iterator[None]:
    """In this block the calling thread names paths that are led elsewhere."""
    _passing.depth += 1
    try:
        yield
    finally:
        _passing.depth -= 1


def refusal(what: str, path: str) -> HostPathError:
    """The error for something that would reach the host's path."""
    return HostPathError(
        f"{what} would reach the host's own {path}: {ONLY_PYTHON} Run {REAL_MOUNTS}"
    )


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _is_on or event not in _EVENTS or _passing.depth:
        return
    place = here()
    if place is None:
        return
    for position in _EVENTS[event]:
        path = args[position] if position < len(args) else None
        if not isinstance(path, (str, bytes, os.PathLike)):
            continue
        text = os.fsdecode(path)
        if text.startswith("/") and place.real(text) is not None:
            raise refusal(f"{_NAMES.get(event, event)}({text!r})", text)


#: How a reader knows the function, where the event is called otherwise.
_NAMES = {"ctypes.dlopen": "ctypes.CDLL", "import": "importing"}
