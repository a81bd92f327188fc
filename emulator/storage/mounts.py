"""Private Linux mount namespaces: the one place that calls mount(2), unshare(2) and their kin.

The main thread enters a namespace of its own, once, when the first volume is asked for; a runner's
thread enters another. Nothing is ever mounted where the host can see it. An ordinary user needs
a user namespace around that, which only a single-threaded process may enter: so early.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import Any

from emulator.errors import NamespaceRefusedError

__all__ = [
    "bind",
    "build_root_with",
    "current_namespace",
    "enter_private_namespace",
    "enter_user_namespace",
    "has_mount_capability",
    "mount_tmpfs",
    "move",
    "raise_ambient_capabilities",
    "set_propagation",
    "unmount",
]

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

CAP_SYS_CHROOT = 18
CAP_SYS_ADMIN = 21
_PROPAGATION = {
    "shared": MS_SHARED,
    "slave": MS_SLAVE,
    "private": MS_PRIVATE,
    "unbindable": MS_UNBINDABLE,
}
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2

_HOW_TO_ALLOW = (
    "Run the tests as root with CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN), or as an ordinary "
    "user where user namespaces are allowed (sysctl -w kernel.unprivileged_userns_clone=1 or "
    "kernel.apparmor_restrict_unprivileged_userns=0; in Docker also "
    "--security-opt seccomp=unconfined)."
)

_libc: Any = None


def _call(name: str, *arguments: object) -> None:
    """Call a libc function that returns -1 and sets errno, as an ``OSError``."""
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    if getattr(_libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _path(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    _call(
        "mount",
        _path(source),
        _path(target),
        _path(kind),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )


def _refused(what: str, error: OSError) -> NamespaceRefusedError:
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    return NamespaceRefusedError(
        f"pytest-fal needs a private mount namespace for /data and /tmp, and the kernel refused "
        f"{what} ({code}: {os.strerror(error.errno or 0)}). {_HOW_TO_ALLOW}"
    )


def supported() -> bool:
    """Whether this system has mount namespaces at all (Linux)."""
    return sys.platform == "linux"


def has_mount_capability() -> bool:
    """Whether this process may mount: CAP_SYS_ADMIN in its effective set."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"CapEff:"):
                    return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    except OSError:
        pass
    return False


def current_namespace() -> int:
    """The number of the calling thread's mount namespace (2 µs); it names the runner it is on."""
    return os.stat("/proc/thread-self/ns/mnt").st_ino


def enter_user_namespace() -> None:
    """Put this single-threaded process into a user namespace in which it may mount.

    The user and group stay the same and nothing is mounted. setuid programs (``sudo``, ``ping``)
    stop working in it and in its children.

    Raises:
        NamespaceRefusedError: the kernel does not allow it, or threads are running already.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        _call("unshare", CLONE_NEWUSER)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise NamespaceRefusedError(
                "pytest-fal must enter a user namespace before any thread starts, and threads are "
                "running already. Load it early: do not start threads or import numpy from "
                "another plugin, from sitecustomize or from a .pth file; or run the tests as root."
            ) from error
        raise _refused("a user namespace, unshare(CLONE_NEWUSER)", error) from error
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    except OSError as error:
        raise _refused("the user map of a user namespace", error) from error


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def raise_ambient_capabilities() -> None:
    """Let the programs started from here keep the right to mount (pytest-xdist's workers need it).

    A worker has a thread before pytest can act, so it cannot enter a user namespace itself; it
    inherits this one, and ambient capabilities survive its exec.
    """
    wanted = 1 << CAP_SYS_ADMIN | 1 << CAP_SYS_CHROOT
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    _call("capget", header, sets)
    sets[2] |= wanted
    _call("capset", header, sets)
    for capability in (CAP_SYS_ADMIN, CAP_SYS_CHROOT):
        number = ctypes.c_ulong(capability)
        zero = ctypes.c_ulong(0)
        _call("prctl", _PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_RAISE), number, zero, zero)


def enter_private_namespace() -> None:
    """Give the calling thread, and all it starts from now on, mounts of its own.

    Raises:
        NamespaceRefusedError: the kernel does not allow it.
    """
    try:
        _call("unshare", CLONE_FS | CLONE_NEWNS)
    except OSError as error:
        raise _refused("a mount namespace, unshare(CLONE_NEWNS)", error) from error
    try:
        _mount(None, "/", None, MS_REC | MS_PRIVATE)
    except OSError as error:
        raise _refused("to make the mounts of the new namespace private", error) from error


def copy_namespace() -> None:
    """Give the calling thread a copy of the mounts it has, propagation included."""
    try:
        _call("unshare", CLONE_FS | CLONE_NEWNS)
    except OSError as error:
        raise _refused("a runner's mount namespace, unshare(CLONE_NEWNS)", error) from error


def build_root_with(name: str, scratch: str) -> None:
    """Give this namespace a root directory that has ``/name``, without touching the host's.

    A tmpfs becomes the root; every top-level entry of the old root is bound into it at its place.
    *scratch* is an existing directory to build it on.

    Raises:
        NamespaceRefusedError: the kernel does not allow it.
    """
    directory = os.getcwd()
    try:
        _mount("pytest-fal", scratch, "tmpfs", 0, "mode=755,size=64m")
        # Without this, binding /tmp recursively would bind the half-built root into itself.
        _mount(None, scratch, None, MS_UNBINDABLE)
        for entry in os.listdir("/"):
            if entry != name:
                _bind_top_level(entry, scratch)
        os.chdir(scratch)
        _change_root()
    except OSError as error:
        raise _refused("a root directory of its own for the tests", error) from error
    finally:
        os.chdir(directory)
    _mount(None, "/", None, MS_PRIVATE)


def _bind_top_level(entry: str, root: str) -> None:
    source, target = f"/{entry}", f"{root}/{entry}"
    mode = os.lstat(source).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISDIR(mode):
        os.mkdir(target, stat.S_IMODE(mode))
        _mount(source, target, None, MS_BIND | MS_REC)
    elif stat.S_ISREG(mode):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(source, target, None, MS_BIND)


def _change_root() -> None:
    """Make the current directory the root; pivot_root, as chroot would forbid user namespaces."""
    try:
        _call("pivot_root", b".", b".")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.chroot(".")  # the old root is the kernel's initial one, which cannot be pivoted
        return
    _call("umount2", b".", MNT_DETACH)


def bind(source: str, target: str, *, recursive: bool = False, read_only: bool = False) -> None:
    """Show *source* at *target* as well. Both exist and are both directories or both files."""
    _mount(source, target, None, MS_BIND | (MS_REC if recursive else 0))
    if read_only:
        _mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | _locked_flags(target))


def _locked_flags(target: str) -> int:
    """Flags that a user namespace may not clear when it remounts."""
    flags = os.statvfs(target).f_flag
    return flags & (MS_NOSUID | MS_NODEV)


def mount_tmpfs(target: str, size: int) -> None:
    """Mount a file system in memory that holds at most *size* bytes."""
    _mount("pytest-fal", target, "tmpfs", 0, f"size={size},mode=1777")


def move(source: str, target: str) -> None:
    """Move the mount at *source*, with all that is mounted below it, to *target*."""
    _mount(source, target, None, MS_MOVE)


def set_propagation(target: str, kind: str) -> None:
    """Make the mount at *target* ``"shared"``, ``"slave"``, ``"private"`` or ``"unbindable"``."""
    _mount(None, target, None, _PROPAGATION[kind])


def unmount(target: str) -> None:
    """Take away the topmost mount at *target*; programs that still use it keep it to their end."""
    _call("umount2", _path(target), MNT_DETACH)


def is_real_directory(path: str) -> bool:
    """Whether *path* is a directory and no symbolic link (a link would resolve elsewhere)."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def attempt(action: Callable[[], None]) -> OSError | None:
    """Run *action*; the ``OSError`` it raised, or None."""
    try:
        action()
    except OSError as error:
        return error
    return None
