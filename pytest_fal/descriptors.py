"""Open file descriptors: which there are, what they are, who opened them."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import os
import re
import selectors
import socket
import stat
import sys
import warnings
from typing import Any, NamedTuple

from pytest_fal.openers import Place, Recorder, live_sockets

__all__ = [
    "Descriptor",
    "describe",
    "descriptors",
    "is_folder",
    "is_of_native_code",
    "of_the_current_loop",
    "opener",
    "path_of",
]

_DELETED = " (deleted)"
_SQLITE = ("-journal", "-wal", "-shm")
#: What the kernel calls a file without a name, as tempfile makes them.
_NUMBERED = re.compile(r"/#\d+ \(deleted\)$")
_NAMESPACE = re.compile(r"(\w+):\[\d+\]")


class _Real:
    """Functions that a test's clock must not replace here."""

    fstat = staticmethod(os.fstat)


class Descriptor(NamedTuple):
    """What a descriptor leads to."""

    #: The kernel's name of it; that of a file changes with the mount that it was opened in.
    target: str
    device: int
    inode: int

    def is_same(self, other: Descriptor | None) -> bool:
        """Whether the other one leads there too."""
        return other is not None and self[1:] == other[1:]


def descriptors() -> dict[int, Descriptor]:
    """Those that are open, by number; none where the kernel does not tell."""
    global _last
    found: dict[int, Descriptor] = {}
    try:
        entries = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for entry in entries:
        number = int(entry)
        try:
            status = _Real.fstat(number)
            known = _last.get(number)
            if known is None or known[1:] != (status.st_dev, status.st_ino):
                target = os.readlink(f"/proc/self/fd/{entry}")
                known = Descriptor(target, status.st_dev, status.st_ino)
        except OSError:
            continue  # the one that listed the directory
        found[number] = known
    # What has no name has one inode for all: whether it is the same cannot be told.
    _last = {n: one for n, one in found.items() if not one.target.startswith("anon_inode:")}
    return found


#: As they were last time: to ask for the name takes three times as long as all the rest.
_last: dict[int, Descriptor] = {}


def describe(number: int, target: str) -> str:
    """What a descriptor is, for a person: ``TCP socket 127.0.0.1:80 -> 127.0.0.1:4040``."""
    if target.startswith("socket:"):
        return _socket(number)
    if target.startswith("pipe:"):
        return f"a pipe, its end for {'writing' if _writes(number) else 'reading'}"
    if _NUMBERED.search(target):
        return "a file without a name"
    if target.startswith("anon_inode:"):
        return target.removeprefix("anon_inode:").strip("[]")
    return target


def is_folder(number: int) -> bool:
    """Whether it is a folder; not when it is closed."""
    try:
        return stat.S_ISDIR(os.fstat(number).st_mode)
    except OSError:
        return False


def of_the_current_loop() -> set[int]:
    """The descriptors of the event loop that asyncio has set for this thread: one for all tests."""
    if sys.version_info < (3, 14):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            policy: Any = asyncio.get_event_loop_policy()
    else:
        policy = asyncio.events._get_event_loop_policy()  # type: ignore[attr-defined]
    return _of_loop(getattr(getattr(policy, "_local", None), "_loop", None))


def path_of(number: int, target: str, recorder: Recorder) -> str | None:
    """The path that a file was opened by; None where that was not seen, and for what has none.

    The kernel's own name of it may be another: it knows nothing of mounts that are gone.
    """
    if target.startswith("/memfd:") or _NUMBERED.search(target):
        return None
    namespace = _NAMESPACE.fullmatch(target)
    if namespace:
        return next((path for path in recorder.files if path.endswith(f"/ns/{namespace[1]}")), None)
    return _path(number, target.removesuffix(_DELETED), recorder) if target[:1] == "/" else None


def opener(number: int, target: str, recorder: Recorder) -> Place | None:
    """Where a descriptor that is no file's was opened; None where that was not seen."""
    if target.startswith("socket:"):
        return _opener_of_socket(number, recorder) or _opener_of_loop(number, recorder)
    if _NUMBERED.search(target):
        return _opener_of_nameless(target, recorder)
    if target.startswith("anon_inode:[event"):
        return _opener_of_loop(number, recorder) or recorder.numbers.get(number)
    return recorder.numbers.get(number)


def is_of_native_code(number: int, target: str) -> bool:
    """Whether nothing of Python's waits with it: gRPC and others keep some for themselves."""
    if target not in ("anon_inode:[eventpoll]", "anon_inode:[eventfd]"):
        return False
    return not any(number in _of_selector(one) for one in _all(selectors.BaseSelector))


# --- sockets -------------------------------------------------------------------------------------


def _socket(number: int) -> str:
    try:
        sock = socket.socket(fileno=os.dup(number))
    except OSError:
        return "socket"
    with sock:
        kind = {socket.SOCK_STREAM: "TCP", socket.SOCK_DGRAM: "UDP"}.get(sock.type, "")
        if sock.family == getattr(socket, "AF_UNIX", None):
            kind = "Unix"
        name, peer = _address(sock, "getsockname"), _address(sock, "getpeername")
        if peer:
            return f"{kind} socket {name or 'without a name'} -> {peer}"
        if kind == "Unix" and not name:
            return "Unix socket, one of a pair"
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        state = "listening at" if listening else "at"
        return f"{kind} socket {state} {name}" if name else f"{kind} socket, not connected"


def _address(sock: socket.socket, which: str) -> str:
    try:
        address = getattr(sock, which)()
    except OSError:
        return ""
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}" if address[1] else ""
    if isinstance(address, bytes):
        return "@" + os.fsdecode(address[1:])
    return str(address)


def _opener_of_socket(number: int, recorder: Recorder) -> Place | None:
    for sock, place in live_sockets(recorder):
        if sock.fileno() == number:
            return place
    return recorder.numbers.get(number)


# --- event loops ---------------------------------------------------------------------------------


def _of_loop(loop: Any) -> set[int]:
    """An event loop's descriptors: what it waits with, and the pair that wakes it."""
    found = set()
    for name in ("_selector", "_ssock", "_csock"):
        part = getattr(loop, name, None)
        try:
            found.add(part.fileno())  # type: ignore[union-attr]
        except (AttributeError, OSError, ValueError):
            continue
    return found - {-1}


def _of_selector(selector: Any) -> set[int]:
    try:
        return {selector.fileno()}
    except (AttributeError, OSError, ValueError):  # it has none, or is closed
        return set()


def _opener_of_loop(number: int, recorder: Recorder) -> Place | None:
    """Where the event loop was made that waits with this descriptor: with its pair of sockets."""
    for one in _all(asyncio.AbstractEventLoop):
        numbers = _of_loop(one)
        if number in numbers:
            places = (_opener_of_socket(other, recorder) for other in numbers - {number})
            return next((place for place in places if place is not None), None)
    return None


# --- files ---------------------------------------------------------------------------------------


def _path(number: int, path: str, recorder: Recorder) -> str | None:
    """By the name that it was opened with, or by the kernel's, which another mount may change."""
    known = recorder.files
    for one in _all(io.FileIO):
        if not one.closed and one.fileno() == number and isinstance(one.name, (str, bytes)):
            name = os.path.abspath(os.fsdecode(one.name))
            if name in known:
                return name
    for suffix in ("", *_SQLITE):
        if path.removesuffix(suffix) in known:
            return path.removesuffix(suffix)
    name = os.path.basename(path)
    same = [other for other in known if os.path.basename(other) == name]
    return max(same, key=lambda other: _common_end(other, path), default=None)


def _opener_of_nameless(target: str, recorder: Recorder) -> Place | None:
    """The last one in this folder; or in any, as another mount calls the folder otherwise."""
    folder = os.path.dirname(target)
    found = [place for name, place in recorder.nameless if name == folder]
    found = found or [place for _, place in recorder.nameless]
    return found[-1] if found else None


def _common_end(one: str, other: str) -> int:
    """How many names at their ends are the same."""
    pairs = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _writes(number: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_WRONLY)


def _all(kind: type) -> list[Any]:
    """Every object of a class that there is. Takes some ten milliseconds."""
    return [one for one in gc.get_objects() if issubclass(type(one), kind)]
