"""What the wire does to sockets beyond reading and writing them."""

from __future__ import annotations

import gc
import select
import socket
import sys
from contextlib import suppress
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import cast

__all__ = ["hasten_socket", "let_arrive", "receive_raw", "shut_down", "socket_of_port"]

_NO_TIME = 0.001

_ARRIVAL_STEPS = 200


def shut_down(sock: socket.socket, how: int) -> None:
    """Shut a socket down, whatever has become of it."""
    with suppress(OSError):
        # Not SSLSocket's own, which takes the TLS state away from the thread that uses it.
        socket.socket.shutdown(sock, how)


def let_arrive(sock: socket.socket) -> None:
    """Wait until the client's side has what was sent: a reset throws away what has not arrived."""
    if sys.platform == "linux":
        with suppress(OSError):
            for _ in range(_ARRIVAL_STEPS):
                if not int.from_bytes(ioctl(sock, TIOCOUTQ, bytes(4)), sys.byteorder):
                    break
                select.select([], [], [], 0.001)


def socket_of_port(port: int) -> socket.socket | None:
    """This process's socket with that local port.

    Looked for among all objects: wrapping a connected socket in TLS makes another of it.
    """
    for thing in gc.get_objects():
        if issubclass(type(thing), socket.socket) and thing.fileno() != -1:
            with suppress(OSError):
                if thing.getsockname()[1:2] == (port,):
                    return cast("socket.socket", thing)
    return None


def hasten_socket(port: int) -> bool:
    """Let reads of this process's socket with that local port time out at once.

    But for one that has begun. Only for a blocking socket that has a time-out; whether it is one.
    """
    client = socket_of_port(port)
    if client is None or not client.gettimeout():
        return False
    with suppress(OSError):  # it has hung up meanwhile
        client.settimeout(_NO_TIME)
    return True


def receive_raw(sock: socket.socket, size: int) -> bytes:
    """Read past the TLS layer."""
    return socket.socket.recv(sock, size)
