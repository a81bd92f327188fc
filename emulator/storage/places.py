"""Who is where on the rungs without namespaces: which thread is on which runner, what paths mean.

A :class:`Place` is what a mount namespace is on the best rung. Threads inherit the place of the
thread that starts them, as the kernel hands down a namespace; programs are told theirs by two
environment variables.

Imports next to nothing: a Python that the app starts needs it before anything else.
"""

from __future__ import annotations

import json
import os
import posixpath
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = [
    "FIRST_NUMBER",
    "NUMBER",
    "PLACE",
    "Place",
    "default",
    "follow_threads",
    "here",
    "leave_threads",
    "move_to",
    "number_of_process",
    "outside",
    "package_home",
    "set_default",
]

#: Environment variables of programs: the number of the place and what tells it from those of other
#: sessions; and all of the place.
NUMBER, PLACE = "FAL_EMULATOR_RUNNER", "FAL_EMULATOR_PLACE"
#: Numbers look like those of mount namespaces, of which Node's preload knows the range.
FIRST_NUMBER = 0xF0000002
_START = "_fal_emulator_start"


@dataclass(frozen=True)
class Place:
    """What the paths of a runner, or of the test itself, mean.

    Attributes:
        number: names it, as the number of a mount namespace would.
        areas: a path as an app writes it, and where it really is; the most usual one first.
        kept: paths inside of these that stay the host's.
        guarded: areas that the host has, too, and nobody may reach
            (:mod:`emulator.storage.guard`).
        trusted: programs that are started even so.
    """

    number: int
    areas: tuple[tuple[str, str], ...]
    kept: tuple[str, ...] = ()
    guarded: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """Names it among those of all sessions on this machine."""
        return f"{self.number}@{self.areas[0][1]}"

    def real(self, path: str) -> str | None:
        """Where an absolute path really is; None where it is the host's."""
        usual = _normal(path)
        for area, backing in self.areas:
            if usual == area or usual.startswith(f"{area}/"):
                if self._is_kept(usual):
                    return None
                rest = usual[len(area) :]
                if path.startswith(f"{area}/") and _stays_below(path[len(area) :]):
                    rest = path[len(area) :]  # through links, ".." is the kernel's matter
                elif path.endswith("/") and not rest.endswith("/"):
                    rest += "/"
                return backing + rest
        return None

    def shown(self, path: str) -> str | None:
        """What an app calls a real path; None where it is the same."""
        for area, backing in self.areas:
            if path == backing or path.startswith(f"{backing}/"):
                return area + path[len(backing) :]
        return None

    def area(self, path: str) -> str:
        """What would be a file system of its own: where an absolute path is; "" for the host."""
        usual = _normal(path)
        for area, backing in self.areas:
            if usual == area or usual.startswith(f"{area}/"):
                return "" if self._is_kept(usual) else backing
        return ""

    def variables(self, home: str) -> dict[str, str]:
        """What tells a program that it is here.

        Args:
            home: the directory from which this package can be imported.
        """
        return {NUMBER: self.tag, PLACE: json.dumps({**vars(self), "home": home})}

    @classmethod
    def told(cls, text: str) -> Place:
        """The place of :data:`PLACE`."""
        told: dict[str, Any] = json.loads(text)
        areas = tuple((area, backing) for area, backing in told["areas"])
        others = {name: tuple(told[name]) for name in ("kept", "guarded", "trusted")}
        return cls(told["number"], areas, **others)

    def _is_kept(self, path: str) -> bool:
        return any(path == kept or path.startswith(f"{kept}/") for kept in self.kept)


def _normal(path: str) -> str:
    if "/." in path or "//" in path:
        return "/" + posixpath.normpath(path).lstrip("/")  # two slashes at the start are kept
    return path.rstrip("/") or "/"


def _stays_below(rest: str) -> bool:
    """Whether a path, gone step by step, never leaves where it began."""
    depth = 0
    for step in rest.split("/"):
        if step == "..":
            depth -= 1
        elif step not in ("", "."):
            depth += 1
        if depth < 0:
            return False
    return True


class _Here(threading.local):
    place: Place | None = None
    outside = 0


_here = _Here()
_default: Place | None = None


def here() -> Place | None:
    """The place of the calling thread; None: its paths are the host's."""
    if _default is None or _here.outside:
        return None
    return _here.place or _default


def set_default(place: Place | None) -> None:
    """The place of all threads that have none of their own; None: nothing is rewritten."""
    global _default
    _default = place


def default() -> Place | None:
    """The place of :func:`set_default`."""
    return _default


def move_to(place: Place | None) -> None:
    """Put the calling thread, and those it starts from now on, into a place."""
    _here.place = place


@contextmanager
def outside() -> Iterator[None]:
    """In this block the calling thread's paths are the host's."""
    _here.outside += 1
    try:
        yield
    finally:
        _here.outside -= 1


def number_of_process(process: int) -> int | None:
    """The number of the place of a program, where the system shows its environment."""
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return None
    prefix = f"{NUMBER}=".encode()
    tags = [entry[len(prefix) :] for entry in variables if entry.startswith(prefix)]
    return int(tags[-1].partition(b"@")[0]) if tags else None


def follow_threads() -> None:
    """Have every thread that is started inherit the place of its starter."""
    start: Callable[[threading.Thread], None] = threading.Thread.start

    def start_here(self: threading.Thread) -> None:
        place = _here.place
        if place is not None:
            _run_in(self, place)
        start(self)

    start_here.__doc__ = start.__doc__
    setattr(start_here, _START, start)
    setattr(threading.Thread, "start", start_here)  # noqa: B010 - a method, to the type checker


def leave_threads() -> None:
    """Undo :func:`follow_threads`."""
    start = getattr(threading.Thread.start, _START, None)
    if start is not None:
        setattr(threading.Thread, "start", start)  # noqa: B010 - a method, to the type checker


def _run_in(thread: threading.Thread, place: Place) -> None:
    run = thread.run

    def run_here() -> None:
        del thread.run
        move_to(place)
        run()

    thread.run = run_here  # type: ignore[method-assign]


def package_home() -> str:
    """The directory from which this package can be imported."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
