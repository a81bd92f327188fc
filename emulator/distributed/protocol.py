"""The protocol that the kernel speaks on /dev/fuse: numbers, structures and nothing else.

As in the kernel's ``include/uapi/linux/protocol.h``, version 7.31 (Linux 5.4).
"""

from __future__ import annotations

import os
from struct import Struct

MAJOR, MINOR = 7, 31
MAX_WRITE = 1 << 20
#: What one read from /dev/fuse may bring: the data of a write, and what stands before it.
BUFFER_SIZE = MAX_WRITE + 4096
ROOT = 1

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK = 8, 9, 10, 11, 12, 13
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 14, 15, 16, 17, 18, 20
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 25, 26, 27, 28, 29, 30
GETLK, SETLK, SETLKW, CREATE, INTERRUPT, DESTROY = 31, 32, 33, 35, 36, 38
BATCH_FORGET, FALLOCATE, RENAME2 = 42, 43, 45

ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
FLOCK_LOCKS = 1 << 10
AUTO_INVAL_DATA = 1 << 12
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
#: What is asked of the kernel whatever the settings.
FLAGS = ASYNC_READ | ATOMIC_O_TRUNC | BIG_WRITES | AUTO_INVAL_DATA | PARALLEL_DIROPS | MAX_PAGES

SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_HANDLE = 1, 2, 4, 8, 16, 32, 64
SET_ATIME_NOW, SET_MTIME_NOW = 128, 256
GETATTR_HANDLE = 1
LOCK_IS_FLOCK = 1
RENAME_NOREPLACE = 1

HEADER = Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
REPLY = Struct("=IiQ")  # length, minus errno, unique
INIT_IN = Struct("=IIII")
INIT_OUT = Struct("=IIIIHHIIHHI7I")
ENTRY = Struct("=QQQQII")  # node, generation, entry valid, attributes valid, and nanoseconds
ATTRIBUTES = Struct("=QQQQQQIIIIIIIIII")
ATTRIBUTES_VALID = Struct("=QII")
SETATTR_IN = Struct("=IIQQQQQQIIIIIIII")
GETATTR_IN = Struct("=IIQ")
OPEN_IN = Struct("=II")
OPEN_OUT = Struct("=QII")
CREATE_IN = Struct("=IIII")
MKNOD_IN = Struct("=IIII")
MKDIR_IN = Struct("=II")
RENAME_IN = Struct("=Q")
RENAME2_IN = Struct("=QII")
LINK_IN = Struct("=Q")
READ_IN = Struct("=QQIIQII")
WRITE_IN = Struct("=QQIIQII")
WRITE_OUT = Struct("=II")
RELEASE_IN = Struct("=QIIQ")
FLUSH_IN = Struct("=QIIQ")
FSYNC_IN = Struct("=QII")
STATFS_OUT = Struct("=QQQQQIII28x")
LOCK_IN = Struct("=QQQQIIII")  # handle, owner, start, end, type, pid, flags, padding
LOCK_OUT = Struct("=QQII")
INTERRUPT_IN = Struct("=Q")
FORGET_IN = Struct("=Q")
BATCH_FORGET_IN = Struct("=II")
FORGET_ONE = Struct("=QQ")
FALLOCATE_IN = Struct("=QQQII")
ENTRY_IN_LISTING = Struct("=QQII")  # inode, offset of the next, length of the name, type


def attributes(status: os.stat_result) -> bytes:
    """``struct fuse_attr``."""
    atime, mtime, ctime = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
    return ATTRIBUTES.pack(
        status.st_ino,
        status.st_size,
        status.st_blocks,
        _unsigned(atime // 1_000_000_000),
        _unsigned(mtime // 1_000_000_000),
        _unsigned(ctime // 1_000_000_000),
        atime % 1_000_000_000,
        mtime % 1_000_000_000,
        ctime % 1_000_000_000,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        _device(status.st_rdev),
        status.st_blksize,
        0,
    )


def listing(entries: list[tuple[bytes, int, int]], offset: int, size: int) -> bytes:
    """As many ``struct fuse_dirent`` as fit: names, inodes and types from *offset* on."""
    out = bytearray()
    for index in range(offset, len(entries)):
        name, inode, kind = entries[index]
        length = ENTRY_IN_LISTING.size + len(name)
        padded = length + -length % 8
        if len(out) + padded > size:
            break
        out += ENTRY_IN_LISTING.pack(inode or 1, index + 1, len(name), kind)
        out += name + bytes(padded - length)
    return bytes(out)


def names(data: bytes, start: int = 0) -> list[bytes]:
    """The names at the end of a request, each closed by a zero."""
    return data[start:].split(b"\0")[:-1]


def _unsigned(seconds: int) -> int:
    """Seconds before 1970 as the kernel reads them."""
    return seconds & 0xFFFFFFFFFFFFFFFF


def _device(number: int) -> int:
    """A device's number as the kernel packs it into 32 bits."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def device_of(number: int) -> int:
    """The opposite: what ``os.mknod`` takes."""
    return os.makedev((number & 0xFFF00) >> 8, (number & 0xFF) | ((number >> 12) & 0xFFF00))
