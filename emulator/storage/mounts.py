"""Private Linux mount namespaces: the one place that calls mount(2), unshare(2) and their kin.

The test's thread goes into a namespace of the emulator while a test needs volumes and comes back
after it (:class:`View`, 2 µs each way); a runner's thread stays in another. Nothing is ever mounted
where the host can see it. An ordinary user needs a user namespace around that, which only a
single-threaded process may enter: so early.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from emulator.errors import NamespaceRefusedError, ThreadsRunningError

__all__ = [
    "View",
    "bind",
    "build_root_with",
    "clear_ambient_capabilities",
    "current_namespace",
    "die_with_parent",
    "enter_private_namespace",
    "enter_user_namespace",
    "explain_refusals",
    "has_mount_capability",
    "home_view",
    "mount_fuse",
    "mount_tmpfs",
    "move",
    "namespace_of",
    "raise_ambient_capabilities",
    "refusal",
    "set_propagation",
    "unmount",
    "unmount_unused",
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
_OURS = 1 << CAP_SYS_ADMIN | 1 << CAP_SYS_CHROOT
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_PR_SET_PDEATHSIG = 1

_HOW_TO_ALLOW = (
    "Run the tests as root with CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN), or as an ordinary "
    "user where user namespaces are allowed (sysctl -w kernel.unprivileged_userns_clone=1 or "
    "kernel.apparmor_restrict_unprivileged_userns=0; in Docker also "
    "--security-opt seccomp=unconfined)."
)
_HOW_TO_RAISE_LIMITS = (
    "There are as many as it allows: sysctl user.max_user_namespaces user.max_mnt_namespaces shows "
    "how many that is, and sysctl -w user.max_mnt_namespaces=10000, for example, allows more."
)

_libc: Any = None
# Why this process was not given the right to mount; told when it is refused to mount.
_explanation = ""


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


def explain_refusals(why: str) -> None:
    """Say this instead of the kernel's EPERM from now on; empty: nothing is known."""
    global _explanation
    _explanation = why


def _refused(what: str, error: OSError) -> NamespaceRefusedError:
    if error.errno == errno.EPERM and _explanation:
        return NamespaceRefusedError(_explanation)
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    remedy = _HOW_TO_RAISE_LIMITS if error.errno == errno.ENOSPC else _HOW_TO_ALLOW
    return NamespaceRefusedError(
        f"the kernel refused {what} ({code}: {os.strerror(error.errno or 0)}), without which /data "
        f"and /tmp cannot be real mounts. {remedy}"
    )


def has_mount_capability() -> bool:
    """Whether this process may mount: CAP_SYS_ADMIN in its effective set."""
    try:
        return bool(int(_status("CapEff"), 16) >> CAP_SYS_ADMIN & 1)
    except (OSError, ValueError):
        return False


def _status(name: str) -> str:
    """A field of ``/proc/thread-self/status``; empty: the kernel does not have it, or no /proc."""
    with suppress(FileNotFoundError), open("/proc/thread-self/status") as status:
        for line in status:
            if line.startswith(f"{name}:"):
                return line.split()[1]
    return ""


def current_namespace() -> int:
    """The number of the calling thread's mount namespace (2 µs); it names the runner it is on."""
    return os.stat("/proc/thread-self/ns/mnt").st_ino


def namespace_of(process: int) -> int | None:
    """The number of a process's mount namespace; None when it has ended, or is somebody else's."""
    try:
        return os.stat(f"/proc/{process}/ns/mnt").st_ino
    except OSError:
        return None


def enter_user_namespace() -> None:
    """Put this single-threaded process into a user namespace in which it may mount.

    The user, the group and what they may do to files stay the same, and nothing is mounted. setuid
    programs (``sudo``, ``ping``) stop working in it and in its children.

    Raises:
        ThreadsRunningError: threads are running already.
        NamespaceRefusedError: the kernel does not allow it.
    """
    uid, gid = os.geteuid(), os.getegid()
    capabilities = int(_status("CapEff") or "0", 16)
    try:
        _call("unshare", CLONE_NEWUSER)
    except OSError as error:
        if error.errno == errno.EINVAL and int(_status("Threads") or "0") > 1:
            raise ThreadsRunningError(
                "pytest-fal must enter a user namespace before any thread starts, and threads are "
                "running already. Where a plugin starts them, add -p pytest_fal.namespace to "
                "addopts, which loads before other plugins. Where a debugger, sitecustomize, a "
                ".pth file or a program that calls pytest.main() does, start all of it in such a "
                "namespace: unshare --map-current-user --keep-caps python -m pytest; or run the "
                "tests as root."
            ) from error
        raise _refused("a user namespace, unshare(CLONE_NEWUSER)", error) from error
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    except OSError as error:
        raise _refused("the user map of a user namespace", error) from error
    # A new namespace gives all capabilities, also to read files of mode 000: not as it was before.
    _limit_capabilities(capabilities | _OURS)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def raise_ambient_capabilities() -> None:
    """Let the programs started from here keep the right to mount (pytest-xdist's workers need it).

    A worker has a thread before pytest can act, so it cannot enter a user namespace itself; it
    inherits this one, and ambient capabilities survive its exec.
    """
    header, sets = _capabilities()
    sets[2] |= _OURS
    _call("capset", header, sets)
    for capability in (CAP_SYS_ADMIN, CAP_SYS_CHROOT):
        number = ctypes.c_ulong(capability)
        zero = ctypes.c_ulong(0)
        _call("prctl", _PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_RAISE), number, zero, zero)


def clear_ambient_capabilities() -> None:
    """Start programs from here without the right to mount; this thread keeps its own."""
    zero = ctypes.c_ulong(0)
    number = ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL)
    _call("prctl", _PR_CAP_AMBIENT, number, zero, zero, zero)


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as the one that started it has ended."""
    _call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def _capabilities() -> tuple[Any, Any]:
    """Header and sets for capset(2): effective, permitted, inheritable, and the same from 32 up."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    _call("capget", header, sets)
    return header, sets


def _limit_capabilities(wanted: int) -> None:
    header, sets = _capabilities()
    for index, word in enumerate((wanted & 0xFFFFFFFF, wanted >> 32)):
        sets[3 * index] &= word
        sets[3 * index + 1] &= word
    _call("capset", header, sets)


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
        raise _refused("a mount namespace, unshare(CLONE_NEWNS)", error) from error


class View:
    """The mounts that the calling thread sees now, to come back to.

    It holds two descriptors, until :meth:`close`.
    """

    def __init__(self, descriptors: tuple[int, int] | None = None) -> None:
        if descriptors is None:
            self._namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
            # A namespace's root is not the process's where somebody called chroot.
            self._root = os.open("/", os.O_PATH)
        else:
            self._namespace, self._root = descriptors
        self.number = os.fstat(self._namespace).st_ino

    @property
    def descriptors(self) -> tuple[int, int]:
        """What another process needs to make the same view of: ``View(descriptors)``."""
        return self._namespace, self._root

    @property
    def place(self) -> None:
        """Nothing is rewritten: the mounts are all there is to know."""

    def enter(self) -> None:
        """Show these mounts to the calling thread, and to all it starts. Its directory is "/" then.

        Raises:
            NamespaceRefusedError: the kernel does not allow it.
        """
        try:
            # setns(2) wants the root and working directory to be this thread's alone.
            _call("unshare", CLONE_FS)
            _call("setns", self._namespace, CLONE_NEWNS)
            os.fchdir(self._root)
            os.chroot(".")
        except OSError as error:
            raise _refused("to change between mount namespaces, setns", error) from error

    def close(self) -> None:
        """Give up the descriptors. The mounts go when nothing is left that sees them."""
        os.close(self._namespace)
        os.close(self._root)


def home_view() -> View:
    """Where the calling thread is, as a view to which it may come back.

    As an ordinary user it is moved to an exact copy first: the host's mounts belong to the host,
    and who leaves them may not return.
    """
    home = View()
    if _can_return_to(home):
        return home
    home.close()
    copy_namespace()
    return View()


def _can_return_to(view: View) -> bool:
    """Whether the calling thread, which is there, may come back."""
    directory = os.open(".", os.O_PATH)
    try:
        view.enter()
        os.fchdir(directory)
    except NamespaceRefusedError:
        return False
    finally:
        os.close(directory)
    return True


def refusal() -> str | None:
    """What the kernel answers to a mount in a private namespace, tried in a thread that ends."""
    answers: list[str | None] = [None]

    def attempt_it() -> None:
        try:
            enter_private_namespace()
            view = View()
            try:
                view.enter()
            finally:
                view.close()
            mount_tmpfs("/tmp", 4096)
        except NamespaceRefusedError as error:
            answers[0] = str(error)
        except OSError as error:
            answers[0] = str(_refused("to mount a file system", error))

    thread = threading.Thread(target=attempt_it, name="fal-refusal")
    thread.start()
    thread.join()
    return answers[0]


def build_root_with(name: str, scratch: str, also: str = "") -> None:
    """Give this namespace a root that has an empty ``/name`` of its own, whatever the host has.

    A tmpfs becomes the root; every other top-level entry of the old root is bound into it at its
    place. *scratch* is an existing directory to build it on; *also* is the path of another empty
    directory to make. The working directory is "/" then.

    Raises:
        NamespaceRefusedError: the kernel does not allow it.
    """
    own = {name, also.split("/")[0]}
    try:
        _mount("pytest-fal", scratch, "tmpfs", 0, "mode=755,size=64m")
        # Without this, binding /tmp recursively would bind the half-built root into itself.
        _mount(None, scratch, None, MS_UNBINDABLE)
        for entry in os.listdir("/"):
            if entry not in own:
                _bind_top_level(entry, scratch)
        os.mkdir(f"{scratch}/{name}")
        os.makedirs(f"{scratch}/{also}", exist_ok=True)
        os.chdir(scratch)
        _change_root()
    except OSError as error:
        raise _refused("a root directory of its own for the tests", error) from error
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
        # The old root is the kernel's initial one or a chroot, which cannot be pivoted.
        _mount(".", "/", None, MS_MOVE)
        os.chroot(".")
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


def mount_fuse(target: str) -> int:
    """Mount a file system that a program answers for at *target*.

    Returns:
        The descriptor on which the kernel asks it; to be closed once the program has its own.

    Raises:
        NamespaceRefusedError: the kernel does not allow it.
    """
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceRefusedError(_no_fuse(error)) from error
    try:
        options = (
            f"fd={descriptor},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},"
            "default_permissions,allow_other"
        )
        _mount("fal-data", target, "fuse", MS_NOSUID | MS_NODEV, options)
    except OSError as error:
        os.close(descriptor)
        raise NamespaceRefusedError(_no_fuse(error)) from error
    return descriptor


def _no_fuse(error: OSError) -> str:
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    return (
        f"A /data that differs between runners is a FUSE file system, and the kernel refused one "
        f"({code}: {os.strerror(error.errno or 0)}). Load its module (modprobe fuse), let this "
        f"user open /dev/fuse (chmod 666 /dev/fuse; in Docker --device /dev/fuse), or leave out "
        f"the settings data_visibility, data_locks, data_metadata_latency and "
        f"data_cold_read_latency."
    )


def move(source: str, target: str) -> None:
    """Move the mount at *source*, with all that is mounted below it, to *target*."""
    _mount(source, target, None, MS_MOVE)


def set_propagation(target: str, kind: str) -> None:
    """Make the mount at *target* ``"shared"``, ``"slave"``, ``"private"`` or ``"unbindable"``."""
    _mount(None, target, None, _PROPAGATION[kind])


def unmount(target: str) -> None:
    """Take away the topmost mount at *target*; programs that still use it keep it to their end."""
    _call("umount2", _path(target), MNT_DETACH)


def unmount_unused(target: str) -> bool:
    """Take away the mount at *target* unless something still uses it; whether that was so."""
    return attempt(lambda: _call("umount2", _path(target), 0)) is None


def attempt(action: Callable[[], None]) -> OSError | None:
    """Run *action*; the ``OSError`` it raised, or None."""
    try:
        action()
    except OSError as error:
        return error
    return None
