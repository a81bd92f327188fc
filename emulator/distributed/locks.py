"""Locks between runners: real ones, on the backing files, so that the test's own count as well."""

from __future__ import annotations

import errno
import fcntl
import os
from struct import Struct

from emulator.distributed import protocol
from emulator.distributed.nodes import Handle, Request
from emulator.distributed.tree import Descriptor, File, failure

__all__ = ["Locks", "WouldBlockError"]

#: Locks that belong to an open file, not to the process: each owner has one of its own.
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_FLOCK = Struct("@hhqqi4x")
_END = (1 << 63) - 1


class WouldBlockError(Exception):
    """Somebody else has it; to be tried again."""


class Locks:
    """The record locks (fcntl) and whole-file locks (flock) of one runner."""

    def __init__(self) -> None:
        self._owners: dict[tuple[File, int], Descriptor] = {}

    def set(self, request: Request, handle: Handle) -> None:
        """Take or give back a lock.

        Raises:
            WouldBlockError: the caller wants to wait for it.
            OSError: somebody else has it, and the caller does not want to wait.
        """
        _, owner, start, end, kind, _, flags, _ = protocol.LOCK_IN.unpack_from(request.data)
        try:
            if flags & protocol.LOCK_IS_FLOCK:
                fcntl.flock(handle.number, _whole_file(kind) | fcntl.LOCK_NB)
            else:
                self._set_record(handle, owner, start, end, kind)
        except (BlockingIOError, PermissionError) as error:
            if request.code == protocol.SETLKW:
                raise WouldBlockError from error
            raise failure(errno.EAGAIN) from error

    def get(self, request: Request, handle: Handle) -> bytes:
        """Which lock is in the way of one, as the kernel's answer."""
        _, owner, start, end, kind, _, _, _ = protocol.LOCK_IN.unpack_from(request.data)
        descriptor = self._of(handle, owner)
        wanted = _record(start, end, kind)
        found = fcntl.fcntl(descriptor.number, _F_OFD_GETLK, wanted)
        kind, _, start, length, _ = _FLOCK.unpack(found)
        return protocol.LOCK_OUT.pack(start, start + length - 1 if length else _END, kind, 0)

    def release(self, file: File, owner: int) -> None:
        """A process closed the file: its record locks are gone, as ever."""
        self._owners.pop((file, owner), None)

    def _set_record(self, handle: Handle, owner: int, start: int, end: int, kind: int) -> None:
        if kind == fcntl.F_UNLCK and (handle.node.file, owner) not in self._owners:
            return
        descriptor = self._of(handle, owner)
        fcntl.fcntl(descriptor.number, _F_OFD_SETLK, _record(start, end, kind))

    def _of(self, handle: Handle, owner: int) -> Descriptor:
        """A descriptor that stands for one process's locks of one file."""
        key = handle.node.file, owner
        known = self._owners.get(key)
        if known is None or not _may_lock(known, handle):
            # The first one's locks, of reading, would be lost: open for both at once if possible.
            path = b"/proc/self/fd/%d" % handle.number
            try:
                known = Descriptor(os.open(path, os.O_RDWR))
            except OSError:
                known = Descriptor(os.open(path, handle.flags & os.O_ACCMODE))
            self._owners[key] = known
        return known


def _may_lock(known: Descriptor, handle: Handle) -> bool:
    mode = fcntl.fcntl(known.number, fcntl.F_GETFL) & os.O_ACCMODE
    return mode in (os.O_RDWR, handle.flags & os.O_ACCMODE)


def _whole_file(kind: int) -> int:
    return {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX}.get(kind, fcntl.LOCK_UN)


def _record(start: int, end: int, kind: int) -> bytes:
    length = 0 if end >= _END else end - start + 1
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
