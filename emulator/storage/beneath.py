"""Paths that cannot leave a directory, whatever links are in it and who changes them meanwhile.

Each step is taken from the descriptor of the folder before it, and none follows a link by itself:
links are read and followed here, inside the directory only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

__all__ = ["DEEPEST", "PATH_ONLY", "OutsideError", "Spot", "find", "open_folder"]

#: As the kernel: a chain of more links is a circle.
_MOST_LINKS = 40
#: So many folders on the way, each of which takes a descriptor.
DEEPEST = 128
#: Linux's descriptors of anything, which needs no right to read it; 0: there are none.
PATH_ONLY: int = getattr(os, "O_PATH", 0)
_STEP = PATH_ONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class OutsideError(Exception):
    """A link leads out of the directory."""


@dataclass(frozen=True)
class Spot:
    """A name in a folder, whether there is something or not.

    ``folder`` is a descriptor of the folder, valid as long as the ``with`` block of :func:`find`.
    """

    folder: int
    #: ``"."`` for the directory itself.
    name: str
    #: Where it really is, below the directory.
    path: tuple[str, ...]
    #: What is there, links not followed; None: nothing.
    status: os.stat_result | None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)


@contextmanager
def find(
    root: int, names: Sequence[str], *, mount: str, follow: bool = True, make: bool = False
) -> Iterator[Spot]:
    """Go to a name below a directory.

    Args:
        root: a descriptor of the directory.
        names: the path; no name of it is empty, ``.`` or ``..``.
        mount: where the directory is to those who made links in it: ``/data``.
        follow: whether a link in the last place is followed.
        make: make folders that are missing on the way.

    Raises:
        OutsideError: a link on the way leaves the directory.
        OSError: as the kernel says it (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, EACCES, ...).
    """
    walk = _Walk(root, mount, make)
    try:
        yield walk.go(names, follow)
    finally:
        walk.end()


def open_folder(folder: int, name: str = ".") -> int:
    """A descriptor that can be listed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=folder)


def _open(name: str, folder: int) -> int:
    """A descriptor of what has this name, of a link itself if it is one."""
    if PATH_ONLY:
        return os.open(name, _STEP, dir_fd=folder)
    symbolic = getattr(os, "O_SYMLINK", 0)  # macOS's
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (symbolic or os.O_NOFOLLOW)
    return os.open(name, flags, dir_fd=folder)


class _Walk:
    def __init__(self, root: int, mount: str, make: bool) -> None:
        self._mount = mount
        self._make = make
        self._folders = [root]
        self._path: list[str] = []
        self._links = 0

    def end(self) -> None:
        """Close what was opened."""
        while len(self._folders) > 1:
            os.close(self._folders.pop())

    def go(self, names: Sequence[str], follow: bool) -> Spot:
        if len(names) > DEEPEST:  # before a part of it is made
            raise _too_deep(names[-1])
        ahead = list(reversed(names))
        while ahead:
            name = ahead.pop()
            if name == "..":
                self._go_up()
                continue
            step = self._step(name, last=not ahead)
            if step is None:
                return Spot(self._folders[-1], name, (*self._path, name), None)
            status = os.fstat(step)
            if stat.S_ISLNK(status.st_mode) and (ahead or follow):
                ahead += reversed(self._target(step, name))
            elif ahead:
                if len(self._folders) > DEEPEST:
                    os.close(step)
                    raise _too_deep(name)
                # What is no folder fails at the next step, as the kernel would.
                self._folders.append(step)
                self._path.append(name)
            else:
                os.close(step)
                return Spot(self._folders[-1], name, (*self._path, name), status)
        # The directory itself, or a link to a folder on the way here.
        return Spot(self._folders[-1], ".", tuple(self._path), os.fstat(self._folders[-1]))

    def _step(self, name: str, last: bool) -> int | None:
        folder = self._folders[-1]
        try:
            return _open(name, folder)
        except FileNotFoundError:
            if last:
                return None
            if not self._make:
                raise
        with suppress(FileExistsError):  # made by another just now
            os.mkdir(name, 0o777, dir_fd=folder)
        return _open(name, folder)

    def _target(self, link: int, name: str) -> list[str]:
        """The names that a link, whose descriptor is closed, leads to."""
        try:
            if PATH_ONLY:
                target = os.readlink("", dir_fd=link)
            else:
                target = os.readlink(name, dir_fd=self._folders[-1])
        finally:
            os.close(link)
        self._links += 1
        if self._links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        names = [part for part in target.split("/") if part not in ("", ".")]
        if not target.startswith("/"):
            return names
        mount = [part for part in self._mount.split("/") if part]
        if names[: len(mount)] != mount:
            raise self._outside()
        self.end()
        self._path.clear()
        return names[len(mount) :]

    def _go_up(self) -> None:
        if len(self._folders) == 1:
            raise self._outside()
        os.close(self._folders.pop())
        self._path.pop()

    def _outside(self) -> OutsideError:
        return OutsideError(f"a link in {'/'.join((self._mount, *self._path))} leads out of it")


def _too_deep(name: str) -> OSError:
    return OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
