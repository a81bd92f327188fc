"""The program of the fork server: imports what every runner needs, then forks on demand.

It has one thread, at all times: only so is a fork a clean copy. Nothing of the user's is imported
here.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import select
import selectors
import signal
import socket
import struct
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from emulator.storage.places import NUMBER, Place

__all__ = ["EXITED", "FORKED", "REPORT", "Boot", "main"]

FORKED, EXITED = 0, 1
#: What the server reports: kind, ticket, and a process id or an exit code.
REPORT = struct.Struct("<bqq")

_HEADER = struct.Struct("<q")
_DESCRIPTORS = 8
#: How long a process that was sent SIGKILL may take to end; longer only where the kernel is stuck.
_DYING_MILLISECONDS = 1000
#: What every runner imports anyway.
_IMPORTS = (
    "fal.app",
    "fal_client",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "starlette_exporter",
    "cloudpickle",
    "tblib.pickling_support",
    "emulator.runners.child",
)
#: What a runner may need, imported while nothing is asked for: freezegun, and what has to be
#: imported before time is frozen.
_FURTHER_IMPORTS = ("pydantic.v1", "msgpack", "freezegun.api", "fal.toolkit")


@dataclass(frozen=True)
class _Child:
    ticket: int
    pid: int
    #: What is in its namespace, or has its place's tag, was started by the app.
    namespace: int
    tag: str | None


Children = dict[int, _Child]  # by pidfd


@dataclass
class Boot:
    """What a runner's process is to do.

    The descriptors that come with it: its channel, its output, the clock's memory, and, where it
    has mounts of its own, their namespace and root.
    """

    ticket: int
    #: The number of its mount namespace, or of its place.
    namespace: int
    #: Where its paths lead, where it has no mounts of its own.
    place: Place | None
    environment: dict[str, str]
    path: list[str]
    directory: str
    #: Pickled by the SDK's means, or the module and qualified name to import.
    app: bytes | tuple[str, str]
    wire: tuple[str, int]
    #: Where processes that it forks join.
    door: str
    #: Arguments of ``coverage.Coverage``; None: nothing is measured.
    coverage: dict[str, Any] | None = None
    #: Ports of the app and its metrics, as the SDK binds them.
    ports: tuple[int, ...] = field(default=(8080, 9090))


def main(descriptor: int) -> None:
    """Serve until the other end of this socket is closed."""
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import(_IMPORTS)
    children: Children = {}
    is_ready = False
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            events = selector.select(None if is_ready or not children else 0)
            if not events:
                _import(_FURTHER_IMPORTS)
                is_ready = True
            for key, _ in events:
                if key.fileobj is control:
                    if not _fork(control, selector, children):
                        _kill(children)
                        return
                else:
                    _report_exit(key.fd, control, selector, children)


def _import(names: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with suppress(ImportError):
                importlib.import_module(name)
        from emulator.sdk_apps import warm_package_list

        warm_package_list()
    gc.collect()
    gc.freeze()  # what is collected later looks at nothing that is shared


def _fork(
    control: socket.socket,
    selector: selectors.BaseSelector,
    children: Children,
) -> bool:
    """Read an order and carry it out; False when there will be no more."""
    try:
        header, descriptors, _, _ = socket.recv_fds(control, _HEADER.size, _DESCRIPTORS)
        boot = pickle.loads(_read(control, _HEADER.unpack(header)[0])) if header else None
    except (OSError, EOFError):
        return False
    if boot is None:
        return False
    pid = os.fork()
    if pid == 0:
        _become(boot, descriptors, control, selector, children)
    for descriptor in descriptors:
        os.close(descriptor)
    pidfd = os.pidfd_open(pid)
    children[pidfd] = _Child(
        boot.ticket, pid, boot.namespace, None if boot.place is None else boot.place.tag
    )
    selector.register(pidfd, selectors.EVENT_READ)
    with suppress(OSError):
        control.sendall(REPORT.pack(FORKED, boot.ticket, pid))
    return True


def _become(
    boot: Boot,
    descriptors: list[int],
    control: socket.socket,
    selector: selectors.BaseSelector,
    children: Children,
) -> None:
    """In the child: be the runner, and never return."""
    code = 1
    try:
        selector.close()
        control.close()
        for pidfd in children:
            os.close(pidfd)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from emulator.runners.child import run

        code = run(boot, descriptors)
    except SystemExit as ended:  # uvicorn's, where the app could not be started; it has said why
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _report_exit(
    pidfd: int,
    control: socket.socket,
    selector: selectors.BaseSelector,
    children: Children,
) -> None:
    selector.unregister(pidfd)
    os.close(pidfd)
    child = children.pop(pidfd)
    _, status = os.waitpid(child.pid, 0)
    _kill_all_of(child)
    with suppress(OSError):
        control.sendall(REPORT.pack(EXITED, child.ticket, os.waitstatus_to_exitcode(status)))


def _kill(children: Children) -> None:
    for pidfd, child in children.items():
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(child.pid, 0)
        _kill_all_of(child)


def _kill_all_of(child: _Child) -> None:
    """End what the app has started: it ends with its runner, as with its container."""
    killed = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                if _is_of(child, entry):
                    pidfd = os.pidfd_open(int(entry))
                    killed.append(pidfd)
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pidfd in killed:  # a signal is sent sooner than it is obeyed
        dying = select.poll()
        dying.register(pidfd, select.POLLIN)
        dying.poll(_DYING_MILLISECONDS)
        os.close(pidfd)


def _is_of(child: _Child, process: str) -> bool:
    if child.tag is None:
        return os.readlink(f"/proc/{process}/ns/mnt") == f"mnt:[{child.namespace}]"
    if os.getsid(int(process)) == child.pid:  # what it forked; the rest was told
        return True
    with open(f"/proc/{process}/environ", "rb") as file:
        return f"{NUMBER}={child.tag}".encode() in file.read().split(b"\0")


def _read(control: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        chunk = control.recv(min(size - len(found), 1 << 20))
        if not chunk:
            raise EOFError
        found += chunk
    return bytes(found)
