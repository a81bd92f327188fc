"""A loopback HTTP/1.1 server, plain and TLS on one port, in front of a function.

Whatever client is neither httpx nor urllib ends here, over real TCP and real TLS: the wire reads a
request, hands it to the handler as an ``httpx.Request`` and writes its ``httpx.Response``.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from emulator.errors import EmulatorError
from emulator.network import http1
from emulator.network.http1 import ClientGoneError
from emulator.network.nodejs_entrance import namespace_of
from emulator.network.peer import Peer
from emulator.network.server import Abort, Connection, Server, Stall
from emulator.network.sockets import hasten_socket
from emulator.network.trust import Authority, FlawedHandshake, ServerSide, name_asked_for

__all__ = ["Abort", "ClientGoneError", "Peer", "Stall", "Wire"]

#: How long a request that names no host waits to be told which connection it came over.
PEER_SECONDS = 0.25

_TLS_HANDSHAKE = b"\x16"
_HELLO_SIZE = 16_384
#: TLS's fatal alert of that name.
_UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"
#: Where a server speaks only the one, and only the other.
_PLAIN_PORT, _TLS_PORT = 80, 443


class Wire(Server):
    """The server of all names; how its handler is called says :class:`Server`."""

    def __init__(
        self, handler: Callable[[httpx.Request], httpx.Response], authority: Authority
    ) -> None:
        """Set up the wire; ``start`` opens it."""
        super().__init__(handler)
        #: Asked before each handshake for the flaw that it is to have.
        self.flaw_of: Callable[[str, Peer | None], str | None] = lambda _name, _peer: None
        #: Asked to hasten a client in another process; whether it is in one, and was hastened.
        self.hasten_elsewhere: Callable[[Peer, int], bool] = lambda _peer, _port: False
        self._tls = authority.listener_context(self._choose_name)
        self._peers: dict[int, Peer] = {}
        self._announced = threading.Condition()
        self._handshakes: dict[int, _WireConnection] = {}

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, for HTTP and HTTPS alike; EmulatorError unless it is started."""
        if self._crew is None:
            raise EmulatorError("The wire has no address until it is started: wire.start()")
        address: tuple[str, int] = self._crew.address
        return address

    def expect(self, local_port: int, peer: Peer) -> None:
        """Say what the client whose own port is ``local_port`` thinks it is connected to.

        To be called before that client sends anything: before it connects or right after.
        """
        with self._announced:
            self._peers[local_port] = peer
            self._announced.notify_all()

    def stop(self) -> None:
        """Close everything; no thread and no descriptor stays."""
        if self._crew is not None:
            super().stop()
            self._peers.clear()

    def listen(self) -> socket.socket:
        """On a free port of 127.0.0.1."""
        return socket.create_server(("127.0.0.1", 0), backlog=1024)

    def knock(self) -> None:
        """Connect once."""
        socket.create_connection(self.address).close()

    def connection(self, sock: socket.socket, address: Any) -> Connection:
        """A client that has connected from this address."""
        return _WireConnection(self, sock, address)

    def _claim_peer(self, local_port: int, seconds: float = 0) -> Peer | None:
        if seconds and local_port not in self._peers:
            with self._announced:
                self._announced.wait_for(lambda: local_port in self._peers, seconds)
        return self._peers.pop(local_port, None)

    def _choose_name(self, side: ServerSide, asked: str | None) -> str | None:
        assert isinstance(side, ssl.SSLSocket)
        connection = self._handshakes[side.fileno()]
        connection.server_name = asked
        peer = self._peers.get(connection.port, connection.unannounced)
        name = asked or (peer and peer.address) or "127.0.0.1"
        flaw = self.flaw_of(name, peer)
        if flaw is not None:
            raise FlawedHandshake(name, flaw)
        return name


class _WireConnection(Connection):
    """A client that came over TCP, maybe with TLS."""

    def __init__(self, wire: Wire, sock: socket.socket, address: tuple[str, int]) -> None:
        super().__init__(wire, sock)
        self.port = address[1]
        namespace = namespace_of(address[0])
        #: Who it is if nobody says so: a program in Node, which cannot.
        self.unannounced = None if namespace is None else Peer(None, 0, namespace)
        self.server_name: str | None = None
        self._wire = wire

    def hasten(self) -> bool:
        """Let the client's reads time out at once, but for one that has begun.

        Only for a blocking socket that has a time-out, of this process or a runner's; whether it
        is one.
        """
        if self.peer is not None and self._wire.hasten_elsewhere(self.peer, self.port):
            return True
        return hasten_socket(self.port)

    def open(self) -> bool:
        """Shake hands, if it is TLS; whether the client has anything to say."""
        self._socket.settimeout(None)  # whatever socket.setdefaulttimeout() says
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first = self._socket.recv(_HELLO_SIZE, socket.MSG_PEEK)
        if first.startswith(_TLS_HANDSHAKE) and not self._is_meant_for(_PLAIN_PORT):
            name = name_asked_for(first)
            if name is not None and not name.isascii():
                # The ssl module would print a traceback and go on.
                self._socket.sendall(_UNRECOGNIZED_NAME)
                return False
            self._shake_hands()
        return super().open() and bool(first)

    def _is_meant_for(self, port: int) -> bool:
        """Whether it is known that the client believes to be connected to this port."""
        peer = self.known_peer()
        return peer is not None and peer.port == port

    def known_peer(self) -> Peer | None:
        """Who the client is, as far as that is known before a request of its is."""
        return self.peer or self._wire._peers.get(self.port, self.unannounced)

    def _shake_hands(self) -> None:
        with self._lock:
            secure = self._wire._tls.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False
            )
            self._socket = secure
        descriptor = secure.fileno()
        self._wire._handshakes[descriptor] = self
        try:
            secure.do_handshake()
        finally:
            del self._wire._handshakes[descriptor]
        # Without session tickets nothing answers the client's last message: a client that has
        # not set TCP_NODELAY would wait for a delayed ACK, 40 ms, to send its request.
        if sys.platform == "linux":
            secure.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def url(self, head: http1.Head) -> httpx.URL:
        """As the client's connection and its Host header say."""
        authority = head.fields.get(b"host")
        if self.peer is None:
            seconds = 0 if authority else PEER_SECONDS
            self.peer = self._wire._claim_peer(self.port, seconds) or self.unannounced
        secure = isinstance(self._socket, ssl.SSLSocket)
        if not secure and self._is_meant_for(_TLS_PORT):
            raise http1.RefusedError(400, "port 443 speaks TLS, and this is plain HTTP")
        return http1.request_url(head.target, authority or self._authority(), secure)

    def _authority(self) -> bytes:
        """Host and port of a request that names none."""
        host = self.server_name or (self.peer.address if self.peer else None)
        if host is None:
            raise http1.RefusedError(400, "there is no Host header")
        host = f"[{host}]" if ":" in host else host
        return (f"{host}:{self.peer.port}" if self.peer and self.peer.port else host).encode()

    def end_stream(self) -> None:
        """Send TLS's own goodbye."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(0)  # the client's own goodbye is not waited for
            with suppress(OSError):
                self._socket.unwrap()
            self._socket.settimeout(None)

    def close(self, reset: bool) -> None:
        """Give the socket back."""
        if self.peer is None:
            self._wire._claim_peer(self.port)
        super().close(reset)
