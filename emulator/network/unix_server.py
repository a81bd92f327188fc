"""An HTTP/1.1 server on a socket file, for what the platform offers a runner on its node.

Which runner a client is on is told by its process's mounts, or its environment. Runners in threads
share this process; so their sockets get a name as they connect, in which the runner's number is.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import httpx

from emulator.errors import EmulatorError
from emulator.network import http1
from emulator.network.peer import Peer
from emulator.network.server import Connection, Server

__all__ = ["UnixServer"]

#: What the kernel takes, and what is left to spare.
_LONGEST_PATH = 100
#: Where a socket file goes whose own folder has too long a name: on the host, in no volume.
_SHORT_FOLDERS = ("/var/tmp", "/dev/shm", "/run")
_CREDENTIALS = struct.Struct("3i")
#: macOS's, for which Python has no names.
_SOL_LOCAL, _LOCAL_PEERPID = 0, 2


class UnixServer(Server):
    """The server of one name, on a socket file. Only this user can connect.

    Args:
        handler: answers; called as :class:`Server` says. ``fal_peer`` tells the runner.
        host: the name that all requests are for, whatever their Host header says.
        runner: the number of the runner that the calling thread is on.
        runner_of: the number of the runner that a process is on.
    """

    def __init__(
        self,
        handler: Callable[[httpx.Request], httpx.Response],
        host: str,
        runner: Callable[[], int | None],
        runner_of: Callable[[int], int | None],
    ) -> None:
        super().__init__(handler)
        self.host = host
        self._runner = runner
        self._runner_of = runner_of
        self._numbers = count(1)
        self._process = os.getpid()
        self._prefix = f"\0pytest-fal-client-{self._process}-"
        self._own_folder: str | None = None
        self._is_gone = False
        #: The socket file's path; empty before :meth:`place`.
        self.path = ""

    def place(self, folder: str, name: str) -> None:
        """Say where the socket file shall be; somewhere else if that is too long for a socket."""
        path = os.path.join(folder, name)
        if len(os.fsencode(path)) > _LONGEST_PATH:
            usable = (place for place in _SHORT_FOLDERS if os.access(place, os.W_OK | os.X_OK))
            near = next(usable, None)
            if near is None:
                raise EmulatorError(
                    f"{path} is too long for a socket file, and none of {', '.join(_SHORT_FOLDERS)}"
                    " can be written to. Give pytest a shorter --basetemp."
                )
            self._own_folder = tempfile.mkdtemp(prefix="fal-", dir=near)
            path = os.path.join(self._own_folder, name)
        self.path = path

    @property
    def is_reachable(self) -> bool:
        """Whether its socket file is where clients look for it."""
        return self.is_started and not self._is_gone

    def go(self) -> None:
        """Be as if nobody listened: no socket file, and no connection that was open."""
        if self.is_reachable:
            self._is_gone = True
            os.rename(self.path, self._aside)
        self.close_connections()

    def come_back(self) -> None:
        """Be there again."""
        if self._is_gone:
            os.rename(self._aside, self.path)
            self._is_gone = False

    def remove(self) -> None:
        """Stop, and leave nothing."""
        self.stop()
        if self._own_folder is not None:
            os.rmdir(self._own_folder)
            self._own_folder = None

    def name_client(self, sock: socket.socket, address: Any) -> None:
        """Before a socket of this process connects: let it tell the runner of its thread."""
        if address not in (self.path, os.fsencode(self.path)) or sock.getsockname():
            return
        if sys.platform != "linux":  # names that are no files are Linux's
            return
        # A process that an app forks is told by its mounts, and its names would be ours again.
        number = self._runner() if os.getpid() == self._process else None
        if number is not None:
            sock.bind(f"{self._prefix}{next(self._numbers)}-{number}")

    def stop(self) -> None:
        """Close everything and remove the socket file."""
        if self.is_started:
            self.come_back()
            with suppress(FileNotFoundError):
                os.unlink(self.path)
            super().stop()

    @property
    def _aside(self) -> str:
        return f"{self.path}-"

    def listen(self) -> socket.socket:
        """At the path, anew."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        listener = socket.socket(socket.AF_UNIX)
        os.fchmod(listener.fileno(), 0o600)  # before there is a file that somebody could open
        listener.bind(self.path)
        listener.listen(1024)
        return listener

    def connection(self, sock: socket.socket, address: Any) -> Connection:
        """A client that has connected from this address."""
        return _UnixConnection(self, sock, self._number_of(sock, address))

    def _number_of(self, sock: socket.socket, address: Any) -> int | None:
        process = _process_of(sock)
        if process != self._process:
            return self._runner_of(process)
        name = os.fsdecode(address)
        return int(name.rpartition("-")[2]) if name.startswith(self._prefix) else None


def _process_of(client: socket.socket) -> int:
    """The process at the other end."""
    if sys.platform == "darwin":
        told = client.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, struct.calcsize("i"))
        return int.from_bytes(told, sys.byteorder)
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[0])


class _UnixConnection(Connection):
    """A client that came over the socket file."""

    def __init__(self, server: UnixServer, sock: socket.socket, number: int | None) -> None:
        super().__init__(server, sock)
        self._host = server.host.encode()
        self.peer = Peer(server.path, 0, number)

    def url(self, head: http1.Head) -> httpx.URL:
        """The server's one name, whatever the client calls it."""
        return http1.request_url(head.target, self._host, secure=False)
