"""Clients that write their bytes themselves, at each of the emulator's doors."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

__all__ = [
    "DOORS",
    "HOST",
    "SECONDS",
    "answers",
    "connect",
    "reset",
    "settled",
    "status_of",
    "talk",
    "until_end",
    "wire_threads",
]

HOST = "rest.fal.ai"
#: Plain and TLS on the loopback, and the socket file of the node's uploader.
DOORS = ("plain", "tls", "socket file")
#: How long a client waits before it calls something hung.
SECONDS = 30.0


def connect(door: str, host: str = HOST) -> socket.socket:
    """A connected client; the handshake, where there is one, is over."""
    if door == "socket file":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(SECONDS)
        sock.connect(os.environ["FAL_API_SOCKET"])
        return sock
    sock = socket.create_connection((host, 443 if door == "tls" else 80), timeout=SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if door != "tls":
        return sock
    return ssl.create_default_context().wrap_socket(sock, server_hostname=host)


def until_end(sock: socket.socket) -> bytes:
    """All that comes until the server hangs up; a reset is an end, too, and TLS's alert."""
    received = b""
    try:
        while data := sock.recv(65_536):
            received += data
    except (ConnectionResetError, ssl.SSLError):
        pass
    return received


def talk(door: str, sent: bytes, host: str = HOST) -> bytes:
    """What comes back for these bytes, from a client that has no more to say.

    Over TLS it does not say so: half a stream that is cut is none there.
    """
    with connect(door, host) as sock:
        try:
            sock.sendall(sent)
            if door != "tls":
                sock.shutdown(socket.SHUT_WR)
        except OSError:  # hung up on already
            pass
        return until_end(sock)


def answers(door: str) -> bool:
    """Whether a well-formed request on a new connection is answered."""
    asked = f"GET /nothing HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    with connect(door) as sock:
        sock.sendall(asked.encode())
        answer = until_end(sock)
    return status_of(answer) == 404 and answer.endswith(b'{"detail": "Path /nothing not found"}')


def status_of(answer: bytes) -> int | None:
    """The status of an answer; None: there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None


def reset(sock: socket.socket) -> None:
    """Hang up with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wire_threads() -> int:
    """How many threads serve clients, or wait for them."""
    return sum(thread.name.startswith("fal-wire") for thread in threading.enumerate())


def settled(is_so: Callable[[], bool]) -> bool:
    """Whether something comes to be so, now that nothing happens any more."""
    deadline = time.monotonic() + SECONDS
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.002)
    return is_so()
