"""The process that answers the kernel for the runners' /data.

A process of its own: a thread of the app's process could be kept from answering by the very read
that waits for it. One loop, nothing in it waits; what has to wait is a request that is answered
later. It ends with the program that started it, and the kernel then fails what is still waiting.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from emulator.distributed import protocol
from emulator.distributed.files import FileOperations, NotYetError
from emulator.distributed.locks import WouldBlockError
from emulator.distributed.nodes import Request
from emulator.distributed.tree import Tree
from emulator.distributed.visibility import Delays, Place

__all__ = ["main"]

#: What is called again to see whether somebody outside gave a lock back: seconds.
_LOCK_POLL = 0.02
#: Requests of one runner that are answered before the others have their turn.
_TURN = 64
#: The requests that a metadata service answers: one for each name looked up, listing, change.
_METADATA = frozenset(
    {
        protocol.LOOKUP,
        protocol.OPENDIR,
        protocol.CREATE,
        protocol.MKNOD,
        protocol.MKDIR,
        protocol.SYMLINK,
        protocol.LINK,
        protocol.UNLINK,
        protocol.RMDIR,
        protocol.RENAME,
        protocol.RENAME2,
        protocol.SETATTR,
    }
)


@dataclass
class VirtualClock:
    """The emulator's clock, as it was told last."""

    virtual: int = 0
    real: int = 0
    ticking: bool = True

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        return self.virtual + (time.time_ns() - self.real if self.ticking else 0)


@dataclass(eq=False)
class Mount:
    """The /data of one runner."""

    descriptor: int
    place: Place
    operations: FileOperations
    #: What its mount asks of the kernel besides.
    flags: int = 0


@dataclass(eq=False)
class Waiting:
    """A request that is answered later."""

    mount: Mount
    request: Request
    #: ``"content"``, ``"cold"``, ``"metadata"`` or ``"lock"``.
    why: str
    #: The moment of the virtual clock; None: whenever somebody gives a lock back.
    until: int | None
    path: str = ""
    since: float = field(default_factory=time.monotonic)


class Server:
    """Answers the kernel, and the emulator on a socket.

    Args:
        control: requests of the emulator's, each answered.
        events: what happens meanwhile, for the emulator.
        parent: the process that started this one.
    """

    def __init__(self, control: socket.socket, events: socket.socket, parent: int) -> None:
        self._control, self._events, self._parent = control, events, parent
        self._clock = VirtualClock()
        self._mounts: dict[int, Mount] = {}
        self._waiting: list[Waiting] = []
        self._warm: dict[tuple[str, str], set[object]] = {}
        self._buffer = bytearray(protocol.BUFFER_SIZE)
        self._poll = select.poll()
        self._event_count = 0
        self._settled = 0.0
        self._alive = True
        self._tree: Tree
        self._options: dict[str, Any] = {}

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the emulator is gone."""
        watched = os.pidfd_open(self._parent)
        self._poll.register(self._control, select.POLLIN)
        self._poll.register(watched, select.POLLIN)
        while self._alive and os.getppid() == self._parent:
            for descriptor, _ in self._poll.poll(self._patience()):
                if descriptor == self._control.fileno():
                    self._serve_control()
                elif descriptor == watched:
                    self._alive = False
                elif descriptor in self._mounts:
                    self._serve_mount(self._mounts[descriptor])
            self._go_on()

    def _patience(self) -> float | None:
        """Milliseconds until something that waits has to be looked at."""
        if not self._waiting:
            return None
        moments, now = [60.0], self._clock.now()
        for waiting in self._waiting:
            if waiting.until is None:
                moments.append(_LOCK_POLL)
            elif self._clock.ticking:
                moments.append(max(0, waiting.until - now) / 1e9)
        moments += [self._gives_up_at(one) - time.monotonic() for one in self._waiting]
        return max(0.0, min(moments)) * 1000 + 0.1

    def _gives_up_at(self, waiting: Waiting) -> float:
        if waiting.why == "lock":
            return float("inf")
        if waiting.why != "content" and self._clock.ticking:
            return float("inf")
        which = "patience" if waiting.why == "content" else "move_patience"
        return waiting.since + float(self._options[which])

    def _serve_mount(self, mount: Mount) -> None:
        for _ in range(_TURN):
            try:
                length = os.readv(mount.descriptor, [self._buffer])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):  # taken back meanwhile
                    continue
                if error.errno != errno.EAGAIN:  # ENODEV: unmounted
                    self._end(mount)
                return
            header = protocol.HEADER.unpack_from(self._buffer)
            _, code, unique, node, uid, gid, pid, _, _ = header
            data = memoryview(self._buffer)[protocol.HEADER.size : length]
            self._serve(mount, Request(code, unique, node, uid, gid, pid, data))
            if mount.descriptor not in self._mounts:
                return

    # --- the kernel's requests -------------------------------------------------------------------

    def _serve(self, mount: Mount, request: Request) -> None:
        if request.code == protocol.INIT:
            self._reply(mount, request, _greeting(request, mount.flags))
        elif request.code in (protocol.FORGET, protocol.BATCH_FORGET):
            _forget(mount, request)
        elif request.code == protocol.INTERRUPT:
            self._interrupt(mount, *protocol.INTERRUPT_IN.unpack_from(request.data))
        elif request.code in _METADATA and self._options["metadata_latency"] and not request.paid:
            request.paid = True
            until = self._clock.now() + self._options["metadata_latency"]
            self._wait(Waiting(mount, request, "metadata", until))
        else:
            self._answer(mount, request)

    def _answer(self, mount: Mount, request: Request) -> None:
        handler = mount.operations.handlers.get(request.code)
        try:
            if handler is None:
                raise OSError(errno.ENOSYS, "")
            self._reply(mount, request, handler(request))
        except NotYetError as error:
            path = os.fsdecode(error.path)
            self._wait(Waiting(mount, request, error.why, error.until, path))
        except WouldBlockError:
            self._wait(Waiting(mount, request, "lock", None))
        except OSError as error:
            self._refuse(mount, request, error.errno or errno.EIO)
        except Exception:
            self._tell("error", text=traceback.format_exc())
            self._refuse(mount, request, errno.EIO)

    def _reply(self, mount: Mount, request: Request, data: bytes) -> None:
        header = protocol.REPLY.pack(protocol.REPLY.size + len(data), 0, request.unique)
        _write(mount, [header, data] if data else [header])

    def _refuse(self, mount: Mount, request: Request, number: int) -> None:
        _write(mount, [protocol.REPLY.pack(protocol.REPLY.size, -number, request.unique)])

    def _interrupt(self, mount: Mount, unique: int) -> None:
        """The caller got a signal: it waits no longer."""
        for waiting in self._waiting:
            if waiting.mount is mount and waiting.request.unique == unique:
                self._waiting.remove(waiting)
                self._refuse(mount, waiting.request, errno.EINTR)
                return

    # --- what waits ------------------------------------------------------------------------------

    def _wait(self, waiting: Waiting) -> None:
        waiting.request.data = bytes(waiting.request.data)
        self._waiting.append(waiting)
        runner = waiting.mount.place.runner
        if waiting.why == "content":
            self._tell("blocked", runner=runner, path=waiting.path, until=waiting.until)
        elif waiting.until is not None and not self._clock.ticking:
            self._tell("move", until=waiting.until)

    def _go_on(self) -> None:
        """Answer what need not wait any longer."""
        if self._clock.ticking and time.monotonic() - self._settled > 1 and self._mounts:
            self._settled = time.monotonic()
            self._tree.settle()
        if not self._waiting:
            return
        now, real = self._clock.now(), time.monotonic()
        for waiting in list(self._waiting):
            if waiting not in self._waiting:
                continue
            arrived = waiting.until is None or waiting.until <= now
            given_up = self._gives_up_at(waiting) <= real
            if arrived or given_up:
                self._waiting.remove(waiting)
                self._resume(waiting, arrived)

    def _resume(self, waiting: Waiting, arrived: bool) -> None:
        runner = waiting.mount.place.runner
        if waiting.why == "content":
            what = "released" if arrived else "gave_up"
            self._tell(what, runner=runner, path=waiting.path, until=waiting.until)
            if not arrived:
                self._refuse(waiting.mount, waiting.request, errno.EIO)
                return
        self._answer(waiting.mount, waiting.request)

    # --- the emulator's requests -----------------------------------------------------------------

    def _serve_control(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
        except OSError:
            message = b""
        if not message:
            self._alive = False
            return
        request = json.loads(message)
        try:
            answer = getattr(self, f"_do_{request.pop('do')}")(*descriptors, **request) or {}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answer["events"] = self._event_count
        self._control.send(json.dumps(answer).encode())

    def _do_start(self, **options: Any) -> None:
        self._options = options
        delays = Delays(*options["delays"]) if options["delays"] is not None else None
        root, now = os.fsencode(options["root"]), lambda: self._clock.now()
        self._tree = Tree(root, options["scratch"], delays, now)

    def _do_mount(
        self, descriptor: int, runner: str, server: str, datacenter: str
    ) -> dict[str, Any]:
        place = Place(runner, server, datacenter)
        warm = self._warm.setdefault((datacenter, server), set())
        operations = FileOperations(self._tree, place, warm, self._options["cold_latency"])
        shared = self._options["locks"] == "shared"
        flags = protocol.POSIX_LOCKS | protocol.FLOCK_LOCKS if shared else 0
        os.set_blocking(descriptor, False)
        self._mounts[descriptor] = Mount(descriptor, place, operations, flags)
        self._poll.register(descriptor, select.POLLIN)
        return {}

    def _do_end(self, runner: str) -> None:
        for mount in list(self._mounts.values()):
            if mount.place.runner == runner:
                self._end(mount)

    def _do_clock(self, virtual: int, real: int, ticking: bool) -> None:
        before = self._clock.now()
        self._clock = VirtualClock(virtual, real, ticking)
        if virtual < before:
            self._shift(virtual - before)
        self._tree.settle()
        for waiting in self._waiting:
            waiting.since = time.monotonic()
        self._go_on()

    def _shift(self, span: int) -> None:
        """The clock was moved back: everything that is on its way takes as long as before."""
        self._tree.shift(span)
        for waiting in self._waiting:
            if waiting.until is not None:
                waiting.until += span

    def _do_arrival(self, path: str, server: str, datacenter: str) -> dict[str, Any]:
        place = Place("", server, datacenter)
        return {"moments": self._tree.arrival(os.fsencode(path), place)}

    def _end(self, mount: Mount) -> None:
        """Close a mount: the kernel fails everything that is done there from now on."""
        if self._mounts.pop(mount.descriptor, None) is None:
            return
        self._poll.unregister(mount.descriptor)
        os.close(mount.descriptor)
        self._waiting = [one for one in self._waiting if one.mount is not mount]
        mount.operations.end()

    def _tell(self, event: str, **what: Any) -> None:
        self._event_count += 1
        message = json.dumps({"event": event, **what}).encode()
        try:
            self._events.send(message)
        except OSError:
            self._alive = False


def _write(mount: Mount, parts: list[bytes]) -> None:
    try:
        os.writev(mount.descriptor, parts)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EBADF):
            raise


def _greeting(request: Request, flags: int) -> bytes:
    _, _, readahead, offered = protocol.INIT_IN.unpack_from(request.data)
    agreed = (protocol.FLAGS | flags) & offered
    pages = protocol.MAX_WRITE // os.sysconf("SC_PAGE_SIZE")
    numbers = (64, 48, protocol.MAX_WRITE, 1, pages, 0, 0)
    return protocol.INIT_OUT.pack(
        protocol.MAJOR, protocol.MINOR, readahead, agreed, *numbers, *[0] * 7
    )


def _forget(mount: Mount, request: Request) -> None:
    nodes = mount.operations.nodes
    if request.code == protocol.FORGET:
        nodes.forget(request.node, *protocol.FORGET_IN.unpack_from(request.data))
        return
    count, _ = protocol.BATCH_FORGET_IN.unpack_from(request.data)
    for index in range(count):
        start = protocol.BATCH_FORGET_IN.size + index * protocol.FORGET_ONE.size
        nodes.forget(*protocol.FORGET_ONE.unpack_from(request.data, start))


def main() -> None:
    """Serve: the arguments are the two sockets' descriptors and the starting process's number."""
    control, events, parent = map(int, sys.argv[1:])
    os.umask(0)
    os.chdir("/")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Server(socket.socket(fileno=control), socket.socket(fileno=events), parent).run()
