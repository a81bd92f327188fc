"""Websockets: one end of one, and a client's wish for one.

Framing is the ``websockets`` package's (seen: 12 to 17), without its I/O: an end belongs to one
thread, as a TLS socket has to. It is imported with the first websocket.
"""

from __future__ import annotations

import abc
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx

from emulator.network.sockets import shut_down

if TYPE_CHECKING:
    from websockets.protocol import Protocol

__all__ = ["ABNORMAL", "NO_CODE", "End", "Handshake", "SocketEnd", "poll", "wants"]

#: The codes of a connection that ended without saying so, and of one that gave no code.
ABNORMAL, NO_CODE = 1006, 1005

#: How long the other side may take to answer that it closes, too; as long as uvicorn waits.
CLOSE_SECONDS = 10.0
#: What comes is never longer; apps have a limit of their own, below this.
MESSAGE_LIMIT = 64 * 1024 * 1024

_RECEIVE_SIZE = 65_536
#: So much waits to be sent, or so many messages to be taken, before no more is read.
_ROOM, _MESSAGES = 1024 * 1024, 16
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class End(abc.ABC):
    """One end of a websocket, for one thread: what the other end sends comes out of ``receive``.

    Attributes:
        subprotocol: the one that was agreed on.
        code: how it ended: `ABNORMAL` where nobody said so; None while it is open.
        reason: why, if somebody said that.
        closed_here: whether this side ended it.
    """

    subprotocol: str | None = None

    def __init__(self) -> None:
        self.code: int | None = None
        self.reason = ""
        self.closed_here = False
        self._at_end: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._is_polled = self._is_abandoned = False

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and no message is left to be taken."""
        return self.code is not None and not self.has_messages

    @property
    @abc.abstractmethod
    def has_messages(self) -> bool:
        """Whether there is a message to be taken."""

    @property
    def has_room(self) -> bool:
        """Whether what is sent is not held up."""
        return True

    @abc.abstractmethod
    def fileno(self) -> int:
        """A descriptor to poll for ``events``; then call ``step``."""

    @abc.abstractmethod
    def events(self) -> int:
        """What to poll for; 0: nothing now."""

    @abc.abstractmethod
    def step(self) -> None:
        """Send and receive what can be without waiting."""

    @abc.abstractmethod
    def take(self) -> str | bytes | None:
        """The next message that has come; None: there is none now."""

    @abc.abstractmethod
    def send(self, message: str | bytes) -> None:
        """Send a message, or have it sent as soon as that can be; nothing once it has ended."""

    @abc.abstractmethod
    def close(self, code: int = 1000, reason: str = "") -> None:
        """End it, and give everything back; with `ABNORMAL`, without a word."""

    @abc.abstractmethod
    def release(self) -> None:
        """Give everything back; again: nothing."""

    def hang_up(self) -> None:
        """End it without a word; from any thread."""
        self._break()
        with self._lock:
            self._is_abandoned = True
            is_free = not self._is_polled
        if is_free:
            self.release()

    @abc.abstractmethod
    def _break(self) -> None:
        """End it without a word, and wake whoever polls it; from any thread."""

    def begin_poll(self) -> bool:
        """Keep what is polled from being given back meanwhile; False: it has been."""
        with self._lock:
            self._is_polled = not self._is_abandoned
            return self._is_polled

    def end_poll(self) -> None:
        """Let it be given back again."""
        with self._lock:
            self._is_polled = False
            is_abandoned = self._is_abandoned
        if is_abandoned:
            self.release()

    def call_at_end(self, callback: Callable[[], None]) -> None:
        """Have something called once, when it ends: at once, if it has ended."""
        with self._lock:
            has_ended = self.code is not None
            if not has_ended:
                self._at_end.append(callback)
        if has_ended:
            callback()

    def _end(self, code: int, reason: str) -> None:
        with self._lock:
            self.code, self.reason = code, reason
            callbacks, self._at_end = self._at_end, []
        for callback in callbacks:
            callback()

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Wait for the next message; None: it has ended, ``code`` says how.

        Raises:
            TimeoutError: nothing has come in *timeout* seconds of real time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self.step()
            message = self.take()
            if message is not None or self.is_over:
                return message
            if not poll(deadline, self):
                raise TimeoutError(f"no message has come within {timeout:g} s")


def poll(deadline: float | None, *ends: End) -> bool:
    """Wait until one of them has something to do; False: time is over."""
    poller = select.poll()
    polled = [end for end in ends if end.begin_poll()]
    try:
        if len(polled) < len(ends):
            return True  # somebody has hung up
        for end in polled:
            if events := end.events():
                poller.register(end.fileno(), events)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        return bool(poller.poll(left))
    finally:
        for end in polled:
            end.end_poll()


class SocketEnd(End):
    """An end on a socket.

    Args:
        sock: connected; the handshake is over.
        protocol: of the ``websockets`` package; open.
        received: what has come over the socket already, behind the handshake.
        frames: what the protocol has made of more of that.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: Protocol,
        received: bytes = b"",
        frames: Iterable[Any] = (),
    ) -> None:
        super().__init__()
        sock.settimeout(0)
        self._socket = sock
        self._protocol = protocol
        self._outgoing = bytearray()
        self._messages: deque[str | bytes] = deque()
        self._parts: list[bytes] = []
        self._is_text = False
        self._look_at(frames)
        if received:
            self._parse(received)

    @property
    def has_messages(self) -> bool:
        """Whether there is a message to be taken."""
        return bool(self._messages)

    @property
    def has_room(self) -> bool:
        """Whether what is sent is not held up by a slow reader."""
        return len(self._outgoing) < _ROOM

    def fileno(self) -> int:
        """The socket's."""
        return self._socket.fileno()

    def events(self) -> int:
        """What to poll for."""
        return (select.POLLIN if self._reads else 0) | (select.POLLOUT if self._outgoing else 0)

    @property
    def _reads(self) -> bool:
        """Whether it takes more; not of one that asks (pings) and does not read the answers."""
        return self.code is None and len(self._messages) < _MESSAGES and self.has_room

    def step(self) -> None:
        """Send and receive what can be without waiting."""
        self._flush()
        while self._reads:
            try:
                data = self._socket.recv(_RECEIVE_SIZE)
            except _WOULD_BLOCK:
                return
            except OSError:  # reset, cut, or TLS was torn
                data = b""
            self._parse(data)

    def take(self) -> str | bytes | None:
        """The next message that has come."""
        return self._messages.popleft() if self._messages else None

    def send(self, message: str | bytes) -> None:
        """Send a message, in pieces as the other side takes them."""
        if self.code is not None:
            return
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End it, and wait a while for the other side to say so, too."""
        if self.code is None:
            self.closed_here = True
            if code != ABNORMAL:
                self._say_goodbye(code, reason)
            self._end(code, reason)
        self._flush_all(time.monotonic() + CLOSE_SECONDS)
        self.release()

    def release(self) -> None:
        """Give the socket back to whom it belongs."""
        with suppress(OSError):
            self._socket.settimeout(None)

    def _break(self) -> None:
        shut_down(self._socket, socket.SHUT_RDWR)

    def _say_goodbye(self, code: int, reason: str) -> None:
        if code == NO_CODE:
            self._protocol.send_close()
        else:
            self._protocol.send_close(code, reason)
        deadline = time.monotonic() + CLOSE_SECONDS
        while self.code is None:
            self.step()
            self._messages.clear()  # as a browser does with what comes after its close()
            if self.code is None and not poll(deadline, self):
                break

    def _parse(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._look_at(self._protocol.events_received())
        if self.code is None and not data:
            self._end(ABNORMAL, "")

    def _look_at(self, frames: Iterable[Any]) -> None:
        """Take in what has come, and see whether that is the end."""
        protocol = self._protocol
        for frame in frames:
            self._take_in(frame)
        if self.code is None and protocol.close_rcvd is not None:
            self._end(protocol.close_rcvd.code, protocol.close_rcvd.reason)
        elif self.code is None and protocol.parser_exc is not None and protocol.close_sent:
            self.closed_here = True  # what came was no websocket's
            self._end(protocol.close_sent.code, protocol.close_sent.reason)
        self._collect()

    def _take_in(self, frame: Any) -> None:
        from websockets.frames import Opcode

        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._is_text = frame.opcode is Opcode.TEXT
            self._parts = []
        elif frame.opcode is not Opcode.CONT:
            return  # the protocol answers pings and closing by itself
        self._parts.append(bytes(frame.data))
        if frame.fin:
            whole = b"".join(self._parts)
            try:
                self._messages.append(whole.decode() if self._is_text else whole)
            except UnicodeDecodeError:
                self._protocol.fail(1007, "invalid UTF-8")
                self.closed_here = True
                self._end(1007, "invalid UTF-8")

    # --- sending ---------------------------------------------------------------------------------

    def _collect(self) -> None:
        # An empty part asks for the end of the stream; that comes when the socket is given back.
        for part in self._protocol.data_to_send():
            self._outgoing += part

    def _flush(self) -> None:
        self._collect()
        while self._outgoing:
            try:
                # Released before an error is looked at: TLS's traceback would hold on to it.
                with memoryview(self._outgoing) as whole, whole[:_RECEIVE_SIZE] as part:
                    sent = self._socket.send(part)
            except _WOULD_BLOCK:
                return
            except OSError:
                self._outgoing.clear()
                if self.code is None:
                    self._end(ABNORMAL, "")
                return
            del self._outgoing[:sent]

    def _flush_all(self, deadline: float) -> None:
        self._flush()
        poller = select.poll()
        while self._outgoing:
            poller.register(self._socket, select.POLLOUT)
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return
            self._flush()


# --- a client's wish -----------------------------------------------------------------------------


def wants(request: httpx.Request) -> bool:
    """Whether a request asks for a websocket."""
    upgrade: str = request.headers.get("upgrade", "")
    return upgrade.lower() == "websocket"


class Handshake:
    """A client's request for a websocket, on the wire.

    Args:
        request: one that :func:`wants` a websocket.
    """

    def __init__(self, request: httpx.Request) -> None:
        from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
        from websockets.server import ServerProtocol

        compression = ServerPerMessageDeflateFactory(
            server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
        )
        self._protocol = ServerProtocol(extensions=[compression], max_size=MESSAGE_LIMIT)
        self._protocol.receive_data(_head(request))
        understood = self._protocol.events_received()
        self._response: Any = (
            self._protocol.accept(understood[0])  # type: ignore[arg-type]
            if understood
            else self._protocol.reject(400, f"{self._protocol.handshake_exc}\n")
        )

    @property
    def refusal(self) -> httpx.Response | None:
        """The answer to a handshake that is malformed; None: it is not."""
        if self._response.status_code == 101:
            return None
        headers = list(self._response.headers.raw_items())
        return httpx.Response(
            self._response.status_code, headers=headers, content=bytes(self._response.body or b"")
        )

    def accept(
        self,
        serve: Callable[[SocketEnd], None],
        subprotocol: str | None = None,
        headers: list[tuple[str, str]] | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> httpx.Response:
        """The answer by which it is opened.

        Args:
            serve: called with the websocket, in the thread of its connection, which ends with it.
            give_up: called instead if the client is gone before it has the answer, or that is
                dropped; maybe again.
            subprotocol: of those that the client offers.
            headers: further ones.
        """
        response = self._response
        pairs = [*response.headers.raw_items(), *(headers or [])]
        if subprotocol is not None:
            pairs.append(("Sec-WebSocket-Protocol", subprotocol))
        self._protocol.send_response(response)
        self._protocol.data_to_send()  # the wire sends it, from what is returned here
        stream = _Unopened(give_up)

        def upgrade(sock: socket.socket, received: bytes) -> None:
            end = SocketEnd(sock, self._protocol, received)
            end.subprotocol = subprotocol
            stream.is_open = True
            serve(end)

        extensions = {"fal_upgrade": upgrade}
        return httpx.Response(101, headers=pairs, stream=stream, extensions=extensions)


class _Unopened(httpx.SyncByteStream):
    """The empty body of an answer that opens a websocket, closed with it; until then it may not."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        self.is_open = False
        self._give_up = give_up

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        if not self.is_open:
            self._give_up()


def _head(request: httpx.Request) -> bytes:
    """The part of a request that matters; the rest may be longer than the package likes it."""
    lines = [b"GET / HTTP/1.1"]
    for name, value in request.headers.raw:
        lower = name.lower()
        if lower in (b"connection", b"upgrade") or lower.startswith(b"sec-websocket-"):
            lines.append(name + b": " + value)
    return b"\r\n".join(lines) + b"\r\n\r\n"
