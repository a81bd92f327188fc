"""Removing what tests wrote: in the background, whatever its permissions, and never by failing."""

from __future__ import annotations

import errno
import os
import queue
import threading

from emulator.storage.emptying import empty

__all__ = ["Sweeper", "remove_tree"]


class Sweeper:
    """Removes what passing tests wrote, in the background: an rmdir on a disk costs 60 µs.

    What cannot be removed (a program that still runs keeps writing to it) is tried again at the
    end, and then left to pytest, which removes old base directories itself.
    """

    def __init__(self) -> None:
        self._paths: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._left: list[str] = []

    def remove(self, path: str) -> None:
        """Remove a tree soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fal-sweeper", daemon=True)
            self._thread.start()
        self._paths.put(path)

    def close(self) -> None:
        """Wait until everything is removed and end the thread."""
        if self._thread is not None:
            self._paths.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (path := self._paths.get()) is not None:
            self._try(path)
        left, self._left = self._left, []
        for path in left:
            self._try(path)

    def _try(self, path: str) -> None:
        try:
            remove_tree(path)
        except OSError:
            self._left.append(path)


def remove_tree(path: str) -> None:
    """Remove a directory tree, also where an app took away its own permissions.

    Raises:
        OSError: something in it cannot be removed.
    """
    try:
        _remove(path)
    except FileNotFoundError:
        if os.path.lexists(path):  # somebody else removed a part of it meanwhile
            _remove(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _remove_deep(path)
            return
        _allow(path)
        _remove(path)


def _remove(path: str) -> None:
    """As ``shutil.rmtree``, which breaks where another thread's clock replaces ``os.lstat``."""
    ahead, folders = [path], []
    while ahead:
        folders.append(ahead.pop())
        with os.scandir(folders[-1]) as found:
            entries = list(found)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                ahead.append(entry.path)
            else:
                os.unlink(entry.path)
    for folder in reversed(folders):
        os.rmdir(folder)


def _remove_deep(path: str) -> None:
    """Where folders are nested deeper than paths go."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        empty(folder)
    finally:
        os.close(folder)
    os.rmdir(path)


def _allow(path: str) -> None:
    """Give the owner all rights to all folders; ``os.walk`` lists each after this allowed it."""
    os.chmod(path, 0o700)
    for folder, names, _ in os.walk(path):
        for name in names:
            place = os.path.join(folder, name)
            if not os.path.islink(place):
                os.chmod(place, 0o700)
