"""The directory of a test that wrote nothing, which the next test can have as it is.

Most tests use one volume or none, and to make, mount, unmount and remove the others took longer
than all the rest. Nothing is ever rolled back: one change to a volume, and it is thrown away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from emulator.storage.sweeper import Sweeper
from emulator.storage.visible import Visible

__all__ = ["Spare"]

KINDS = ("data", "tmp")


class Spare:
    """At most one directory, and how its volumes looked when they were made."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._test = ""
        self._thrown_away = 0
        self._visible: object = None
        self._folders: dict[str, list[str]] = {"data": ["data"]}
        self._stamps: dict[str, list[object]] = {}
        self._contents: dict[str, list[object]] = {}

    @property
    def given(self) -> set[str]:
        """The volumes of the test's directory that are the last test's."""
        return set(self._stamps)

    def give(self, test: str, visible: Visible, sweeper: Sweeper) -> None:
        """Make the directory of a test, from the spare one if there is one."""
        if self._path is None:
            self._stamps.clear()
            os.mkdir(test)
        else:
            os.rename(self._path, test)
            self._path = None
        self._test = test
        if self._visible != visible.identity:
            self._visible = visible.identity
            self._folders["tmp"] = ["tmp", *visible.folders_in("tmp")]
            self._contents.pop("tmp", None)
            if self._stamps.pop("tmp", None):
                self._throw_away("tmp", sweeper)

    def remember(self) -> None:
        """Take down how the fresh directories look, now that they have all mount points."""
        for kind, folders in self._folders.items():
            if kind not in self._stamps:
                self._stamps[kind] = _stamps(self._test, folders)
            if kind not in self._contents:  # always the same in fresh ones
                self._contents[kind] = _contents(self._test, folders)

    def untouched(self) -> set[str]:
        """The volumes in which nothing was changed since; none after runners or limits."""
        if not set(os.listdir(self._test)) <= set(KINDS):
            return set()
        return {kind for kind in self._stamps if self._is_as_made(kind)}

    def take(self, kinds: set[str], sweeper: Sweeper) -> None:
        """Keep these volumes of the test for the next one, and remove everything else of it."""
        if not kinds:
            self._stamps.clear()
            sweeper.remove(self._test)
            return
        for kind in set(KINDS) - kinds:
            self._stamps.pop(kind, None)
            self._throw_away(kind, sweeper)
        self._path = self._test

    def keep(self) -> None:
        """Leave the test's directory alone from now on."""
        self._stamps.clear()

    def discard(self, sweeper: Sweeper) -> None:
        """Remove the spare directory."""
        path, self._path = self._path, None
        self._stamps.clear()
        if path is not None:
            sweeper.remove(path)

    def _is_as_made(self, kind: str) -> bool:
        folders = self._folders[kind]
        try:
            return (
                _stamps(self._test, folders) == self._stamps[kind]
                and _contents(self._test, folders) == self._contents[kind]
            )
        except OSError:  # something is gone, or closed
            return False

    def _throw_away(self, kind: str, sweeper: Sweeper) -> None:
        place = f"{self._test}/{kind}"
        if os.path.isdir(place):
            self._thrown_away += 1
            trash = f"{self._test}-{kind}-{self._thrown_away}"
            os.chmod(place, 0o700)  # only a directory that one may write to changes its parent
            os.rename(place, trash)
            sweeper.remove(trash)


def _stamps(folder: str, names: Iterable[str]) -> list[object]:
    """What is not the same some milliseconds after anybody changed one of these."""
    stamps: list[object] = []
    for name in names:
        status = os.lstat(f"{folder}/{name}")
        stamps.append((status.st_ctime_ns, status.st_mode, status.st_uid, status.st_gid))
    return stamps


def _contents(folder: str, names: Iterable[str]) -> list[object]:
    """What may have changed within these milliseconds: older kernels' stamps are that coarse."""
    contents: list[object] = []
    for name in names:
        place = f"{folder}/{name}"
        if os.path.isdir(place) and not os.path.islink(place):
            contents.append((sorted(os.listdir(place)), os.listxattr(place)))
    return contents
