"""Run a command as in a container without the right to mount.

``python tests/container.py [--user] [--data] -- command``: as root, with the capabilities and the
refusals of Docker's defaults, on a ``/`` that can be written to and is thrown away; with ``--user``
as an ordinary user. There is no ``/data``; with ``--data`` there is one that is somebody's. Needs
root. Exits with the command's exit code, or with 77 and one line that says why
it cannot run at all.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import as_user

from emulator.storage import mounts

#: What Docker leaves root: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
#: net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
LEFT = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
LAST_CAPABILITY = 40
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000
EPERM = 1

#: unshare, mount, umount2, setns, pivot_root, fsopen, fsmount, open_tree, move_mount, fspick.
REFUSED = {
    "x86_64": (272, 165, 166, 308, 155, 430, 432, 428, 429, 433),
    "aarch64": (97, 40, 39, 268, 41, 430, 432, 428, 429, 433),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--user", action="store_true")
    parser.add_argument("--data", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    own = ""
    try:
        if os.geteuid() != 0:
            raise as_user.CannotRunError("only root can put itself into a container")
        if platform.machine() not in REFUSED:
            raise as_user.CannotRunError(f"its system calls are not known on {platform.machine()}")
        own = tempfile.mkdtemp(prefix="container-")
        enter(own)
        if options.data:
            os.mkdir("/data")
            Path("/data/theirs").write_text("not ours")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        more: dict[str, object] = {}
        if options.user:
            uid = as_user.NOBODY
            os.chown(own, uid, uid)
            as_user.uncover([own, *as_user.needed(options.command)], uid)
            environment.update(HOME=own, TMPDIR=own)
            more = {"user": uid, "group": uid, "extra_groups": []}
        command = [*options.command]
        return subprocess.run(
            command, env=environment, preexec_fn=give_up_rights, **more
        ).returncode
    except as_user.CannotRunError as error:
        print(f"container: cannot run: {error}")
        return as_user.CANNOT
    finally:
        if own:
            shutil.rmtree(own, ignore_errors=True)


def enter(scratch: str) -> None:
    """A root directory of our own, which can be written to; everything below it is the host's."""
    directory = os.getcwd()
    mounts.enter_private_namespace()
    root = os.path.join(scratch, "root")
    os.mkdir(root)
    mounts.build_root_with("data", root)
    os.rmdir("/data")
    os.chdir(directory)


def give_up_rights() -> None:
    """Before the command starts: what a container's own init would have done."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(LAST_CAPABILITY + 1):
        if capability not in LEFT:
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    mounts._limit_capabilities(sum(1 << capability for capability in LEFT))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or refuse_calls(libc):
        raise OSError(ctypes.get_errno(), "the kernel does not filter system calls")


def refuse_calls(libc: ctypes.CDLL) -> int:
    """Let the system calls for mounts and namespaces fail with EPERM."""
    numbers = REFUSED[platform.machine()]
    # Load the number; jump to the refusal if it is one of these; else allow.
    program = [struct.pack("HBBI", 0x20, 0, 0, 0)]
    for index, number in enumerate(numbers):
        program.append(struct.pack("HBBI", 0x15, len(numbers) - index, 0, number))
    program.append(struct.pack("HBBI", 0x06, 0, 0, SECCOMP_RET_ALLOW))
    program.append(struct.pack("HBBI", 0x06, 0, 0, SECCOMP_RET_ERRNO | EPERM))
    code = ctypes.create_string_buffer(b"".join(program))
    header = struct.pack("HL", len(program), ctypes.addressof(code))
    buffer = ctypes.create_string_buffer(header)
    return int(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, buffer, 0, 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
