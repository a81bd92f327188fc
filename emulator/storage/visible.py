"""What this process itself needs below ``/tmp``: it stays visible where a volume is mounted over.

The project, the virtual environment, pytest's base directory and every ``sys.path`` entry, if they
lie there. Without them a lazy import inside a test fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

__all__ = ["TMP", "Visible", "make_mount_points", "remove_mount_points", "working_directory"]

TMP = "/tmp"


class Visible:
    """The paths to keep visible, as the host has them.

    Args:
        root: the session's own directory.
    """

    def __init__(self, root: str) -> None:
        #: Path to what a symbolic link there says, or to None where a directory or file is bound.
        self.places: dict[str, str | None] = {}
        #: The same paths, relative to ``/tmp``.
        self.relative: tuple[str, ...] = ()
        #: Differs where other paths, or other things at these paths, have to be bound.
        self.identity: object = None
        self._root = root
        self._added: tuple[str, ...] = ()
        self._looked_for: object = None

    def add(self, paths: Iterable[str]) -> None:
        """Keep these visible too, from the next :meth:`look` on."""
        self._added = tuple(paths)
        self._looked_for = None

    def look(self) -> None:
        """Find out what there is.

        Only while nothing is mounted over ``/tmp``: later, what a test put into its own ``/tmp``
        would pass for the host's.
        """
        wanted = (tuple(sys.path), self._added, working_directory())
        if wanted == self._looked_for and _identity(self.places) == self.identity:
            return
        process = (sys.prefix, sys.base_prefix, sys.exec_prefix, wanted[2], self._root)
        self.places = _outermost([*wanted[0], *wanted[1], *process])
        self.identity = _identity(self.places)
        self._looked_for = wanted
        real = os.path.realpath(TMP)
        self.relative = tuple(path.removeprefix(f"{real}/") for path in self.places)

    def folders_in(self, volume: str) -> list[str]:
        """What :func:`make_mount_points` makes in a volume, parents included."""
        found: set[str] = set()
        for rel in self.relative:
            parts = rel.split("/")
            found.update("/".join((volume, *parts[:end])) for end in range(1, len(parts) + 1))
        return sorted(found)


def _identity(places: Iterable[str]) -> list[tuple[str, int, int] | None]:
    """Which files these are; None where there is none any more."""
    found: list[tuple[str, int, int] | None] = []
    for place in places:
        try:
            status = os.lstat(place)
            found.append((place, status.st_dev, status.st_ino))
        except OSError:
            found.append(None)
    return found


def _outermost(paths: Iterable[str]) -> dict[str, str | None]:
    """The existing paths below ``/tmp``, without those inside another of them."""
    tmp = os.path.realpath(TMP)
    found: dict[str, str | None] = {}
    for path in paths:
        # Not abspath(): the working directory may be gone.
        whole = os.path.normpath(os.path.join(working_directory(), path))
        for place in _on_the_way(whole, tmp):
            if place == tmp:
                found.update((file, None) for file in _python_files_in(tmp))
            elif os.path.lexists(place):
                found[place] = os.readlink(place) if os.path.islink(place) else None
    outer = {place for place, link in found.items() if link is None}
    return {
        place: found[place]
        for place in sorted(found)
        if not any(place.startswith(f"{other}/") for other in outer)
    }


def _on_the_way(path: str, tmp: str) -> Iterator[str]:
    """Where a path leads, and each symbolic link below ``/tmp`` that it takes."""
    for _ in range(40):  # as many links as the kernel follows
        link = _first_link(path)
        if link is None:
            break
        if link.startswith(f"{tmp}/"):
            yield link
        target = os.path.join(os.path.dirname(link), os.readlink(link))
        path = os.path.normpath(target + path.removeprefix(link))
    if path == tmp or path.startswith(f"{tmp}/"):
        yield path


def _first_link(path: str) -> str | None:
    place = ""
    for part in path.strip("/").split("/"):
        place = f"{place}/{part}"
        if os.path.islink(place):
            return place
    return None


def _python_files_in(folder: str) -> list[str]:
    """What can be imported from *folder*, and its cache: somebody works in ``/tmp`` itself."""
    return [
        entry.path
        for entry in os.scandir(folder)
        if entry.name.endswith((".py", ".ini", ".toml", ".cfg"))
        or entry.name == "__pycache__"
        or os.path.exists(os.path.join(entry.path, "__init__.py"))
    ]


def make_mount_points(volume: str, visible: Visible) -> list[tuple[str, str]]:
    """Make a place in a volume for each path; links at once. Returns what to bind where."""
    pairs = []
    for (path, link), rel in zip(visible.places.items(), visible.relative, strict=True):
        target = f"{volume}/{rel}"
        if link is None:
            _make_mount_point(path, target)
            pairs.append((path, target))
        elif not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(link, target)
    return pairs


def _make_mount_point(source: str, target: str) -> None:
    if os.path.exists(target):
        return
    if os.path.isdir(source):
        os.makedirs(target)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))


def remove_mount_points(volume: str, visible: Visible) -> None:
    """Remove the empty places that were made in a volume, which is not mounted any more."""
    for place in reversed(visible.folders_in(volume)):
        is_folder = os.path.isdir(place) and not os.path.islink(place)
        try:
            os.rmdir(place) if is_folder else os.unlink(place)
        except OSError:
            continue  # not empty: the app's own


def working_directory() -> str:
    """The working directory; the root where it was removed meanwhile."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"
