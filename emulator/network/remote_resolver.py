"""Names, connections and ports in a runner's own process.

What a name is and where a connection goes is asked of the test's process, which answers as for
its own clients; then the connection is a real one, to the wire. A runner has its own network, as
its container has: the SDK's server binds port 8080 of all addresses in every one of them, which
is a free port of the loopback here and still 8080 to the app.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

from emulator.network.peer import Peer
from emulator.network.resolver import Resolver, is_local

__all__ = ["RemoteResolver"]

_ANYWHERE = frozenset({"0.0.0.0", "::", ""})


class RemoteResolver(Resolver):
    """Replaces name resolution, connecting, binding and listening in Python's ``socket``.

    Args:
        ask: asks the test's process: ``lookup``, ``connect``, ``expect``.
        wire: where emulated connections really go.
        runner: the number of the runner that this process is.
        ports: those that are a free one here.
        tell: tells the test's process: ``listening``, with the port and the real one.
    """

    def __init__(
        self,
        ask: Callable[..., Any],
        wire: tuple[str, int],
        runner: int,
        ports: Iterable[int],
        tell: Callable[..., None],
    ) -> None:
        super().__init__(_Line(wire, ask), lambda _: True, is_local, lambda _: None, lambda: runner)
        self._ask = ask
        self._tell = tell
        self._mapped = frozenset(ports)
        self._real_ports: dict[int, int] = {}

    def install(self) -> None:
        """Take over."""
        super().install()
        bind, listen = socket.socket.bind, socket.socket.listen
        waiting: dict[int, int] = {}

        def patched_bind(sock: socket.socket, address: Any) -> None:
            port = self._bind(bind, sock, address)
            if port is not None:
                waiting[sock.fileno()] = port

        def patched_listen(sock: socket.socket, *backlog: int) -> None:
            listen(sock, *backlog)
            port = waiting.pop(sock.fileno(), None)
            if port is not None:
                self._real_ports[port] = real = sock.getsockname()[1]
                self._tell("listening", port, real)

        socket.socket.bind = patched_bind  # type: ignore[method-assign,assignment]
        socket.socket.listen = patched_listen  # type: ignore[method-assign,assignment]

    def _bind(self, real: Callable[..., Any], sock: socket.socket, address: Any) -> int | None:
        """The port that it was asked for, where that is one of the runner's own."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or address[0] not in _ANYWHERE:
            real(sock, address)
            return None
        loopback = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
        mapped = address[1] in self._mapped
        real(sock, (loopback, 0 if mapped else address[1], *address[2:]))
        return int(address[1]) if mapped else None

    def lookup(self, name: str) -> tuple[str, ...] | None:
        """As the test's process says."""
        if not self._installed or is_local(name):
            return None
        found: tuple[str, ...] | None = self._ask("lookup", name)
        return found

    def admits(self, host: str, port: int, kind: int) -> bool:
        """As the test's process says."""
        return bool(self._ask("connect", host, port, kind))

    def _connect_for_real(
        self, real: Callable[[Any, Any], Any], sock: socket.socket, address: Any
    ) -> Any:
        if is_local(address[0]) and address[1] in self._real_ports:
            address = (address[0], self._real_ports[address[1]], *address[2:])
        return real(sock, address)


class _Line:
    """The wire, seen from another process."""

    def __init__(self, address: tuple[str, int], ask: Callable[..., Any]) -> None:
        self.address = address
        self._ask = ask

    def expect(self, local_port: int, peer: Peer) -> None:
        """Say where a connection that arrives at the wire was meant to go."""
        self._ask("expect", local_port, peer.address, peer.port)
