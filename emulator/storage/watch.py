"""Files that appear and grow below a directory, told as they do: Linux's inotify."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Watch"]

_CREATE, _MODIFY, _MOVED_TO = 0x100, 0x2, 0x80
_IS_DIRECTORY, _ONLY_DIRECTORIES, _OVERFLOW = 0x40000000, 0x01000000, 0x4000
_EVENT = struct.Struct("iIII")
_BUFFER = 65_536


class Watch:
    """Calls back for every file below a directory that is made, written to or moved there.

    Args:
        root: the directory; its folders of now and later are watched.
        changed: called with a path, in the watch's own thread, without delay.
    """

    def __init__(self, root: str, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._folders: dict[int, str] = {}
        libc = ctypes.CDLL(None, use_errno=True)
        self._add_watch = libc.inotify_add_watch
        self._inotify: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._inotify < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"inotify_init1: {os.strerror(number)}")
        self._end, self._begin_end = os.pipe()
        self._root = root
        self._watch(root)
        self._thread = threading.Thread(target=self._run, name="fal-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. May be called by the callback."""
        with suppress(OSError):
            os.close(self._begin_end)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # --- inside ----------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._inotify, select.POLLIN)
        poller.register(self._end, select.POLLHUP)
        try:
            while self._end not in {descriptor for descriptor, _ in poller.poll()}:
                self._read()
        finally:
            os.close(self._inotify)
            os.close(self._end)

    def _read(self) -> None:
        try:
            data = os.read(self._inotify, _BUFFER)
        except BlockingIOError:
            return
        place = 0
        while place < len(data):
            watch, mask, _, size = _EVENT.unpack_from(data, place)
            name = data[place + _EVENT.size : place + _EVENT.size + size].rstrip(b"\0")
            place += _EVENT.size + size
            if mask & _OVERFLOW:
                self._watch(self._root)
            elif watch in self._folders:
                path = os.path.join(self._folders[watch], os.fsdecode(name))
                if mask & _IS_DIRECTORY:
                    self._watch(path)
                else:
                    self._changed(path)

    def _watch(self, folder: str) -> None:
        """Watch a folder, and tell what came into it before that."""
        number = self._add_watch(
            self._inotify,
            os.fsencode(folder),
            ctypes.c_uint32(_CREATE | _MODIFY | _MOVED_TO | _ONLY_DIRECTORIES),
        )
        if number < 0:
            return  # it is gone already
        self._folders[number] = folder
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self._watch(entry.path)
                else:
                    self._changed(entry.path)
