"""Run pytest as on a system without what is Linux's own: ``python tests/like_macos.py arguments``.

No /proc, no namespaces, none of the calls and constants that macOS lacks, and ``sys.platform`` says
``darwin``. It is no Mac: the kernel, the file system and the loopback stay Linux's. Needs root.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - what asks for the system as it is imported is imported before
import ctypes
import ctypes.util
import multiprocessing.util
import os
import platform
import select
import signal
import socket
import sys
import sysconfig
import tempfile
import types
import uuid  # noqa: F401

CANNOT = 77
CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 0x4000 | 1 << 18
LACKING = {
    os: "O_PATH memfd_create pidfd_open waitid listxattr getxattr setxattr removexattr "
    "sched_getaffinity eventfd splice posix_fadvise copy_file_range setns unshare",
    select: "epoll POLLRDHUP",
    signal: "pidfd_send_signal",
    socket: "TCP_QUICKACK SOCK_CLOEXEC SOCK_NONBLOCK AF_NETLINK AF_VSOCK AF_PACKET",
}


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0:
        print("like_macos: cannot run: only root can hide /proc")
        return CANNOT
    hide_proc()
    for ask in (platform.system, platform.machine, platform.libc_ver, sysconfig.get_config_vars):
        ask()
    for module, names in LACKING.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    tempfile._O_TMPFILE_WORKS = False
    assert multiprocessing.util
    # urllib asks macOS for proxies by it.
    proxies = types.ModuleType("_scproxy")
    proxies._get_proxy_settings = proxies._get_proxies = dict  # type: ignore[attr-defined]
    sys.modules["_scproxy"] = proxies
    sys.platform = "darwin"
    import pytest

    return pytest.main(["-p", "no:cacheprovider", "--fal-filesystem=rewrite", *arguments])


def hide_proc() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC_PRIVATE), None)
        or libc.mount(b"like-macos", b"/proc", b"tmpfs", ctypes.c_ulong(0), None)
    ):
        print(f"like_macos: cannot run: {os.strerror(ctypes.get_errno())}")
        sys.exit(CANNOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
