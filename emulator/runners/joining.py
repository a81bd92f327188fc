"""Processes that a runner's process forks: they join the emulation by a socket of their own.

A worker of ``multiprocessing``, or of a data loader, has its parent's patches but not its threads,
so it cannot share its parent's channel.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from emulator.runners.channel import Channel, ChannelClosedError, Handler

__all__ = ["Doorkeeper", "join"]

_NUMBER = struct.Struct("<q")
_CREDENTIALS = struct.Struct("3i")


class Doorkeeper:
    """Lets forked processes of runners in.

    Args:
        handlers: what a process of the runner with this number may ask for; None where there is no
            such runner.
    """

    def __init__(self, handlers: Callable[[int], dict[str, Handler] | None]) -> None:
        self._handlers = handlers
        #: Only this machine's network namespace, and nobody who was not told.
        self.address = f"\0pytest-fal-{os.getpid()}-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        self._lock = threading.Lock()
        self._channels: list[Channel] = []
        self._thread = threading.Thread(target=self._accept, name="fal-forkserver-door")
        self._thread.daemon = True
        self._thread.start()

    def tell_all(self, name: str, *arguments: object) -> None:
        """Have a handler of every process called that has joined, and wait for it."""
        with self._lock:
            channels = list(self._channels)
        for channel in channels:
            with suppress(ChannelClosedError):
                channel.ask(name, *arguments)

    def close(self) -> None:
        """Let nobody in any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            guest = threading.Thread(
                target=self._serve, args=(connection,), name="fal-guest", daemon=True
            )
            guest.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            credentials = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
            )
            if _CREDENTIALS.unpack(credentials)[1] != os.geteuid():
                return  # before it is listened to: it may never say anything
            number = connection.recv(_NUMBER.size)
            if len(number) < _NUMBER.size:
                return
            handlers = self._handlers(_NUMBER.unpack(number)[0])
            if handlers is None:
                return
            channel = Channel(connection.detach(), handlers, frozenset(handlers))
        with self._lock:
            self._channels.append(channel)
        try:
            channel.serve()
        finally:
            with self._lock:
                self._channels.remove(channel)
            channel.close()


def join(address: str, number: int) -> int:
    """Join as a process of a runner; the descriptor of a channel."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        connection.sendall(_NUMBER.pack(number))
    except BaseException:
        connection.close()
        raise
    return connection.detach()
