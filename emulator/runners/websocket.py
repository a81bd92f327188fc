"""A websocket on an app: the end that a client has of it, of an app in a thread or a process."""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any

import httpx

from emulator.network.sockets import shut_down
from emulator.network.websocket import ABNORMAL, NO_CODE, End, SocketEnd
from emulator.runners.asgi import ASGIApp, connection_scope
from emulator.runners.conduit import Conduit

__all__ = ["AppWebSocket", "SocketWebSocket", "ThreadWebSocket", "subprotocols_of"]

_RECEIVE_SIZE = 65_536
#: A larger message ends the connection, as uvicorn has it (``ws_max_size``).
_MESSAGE_LIMIT = 16 * 1024 * 1024
_TOO_BIG = 1009
#: So many messages, and so many bytes, wait for the app before no more is read of its client.
_WAITING_MESSAGES, _WAITING_BYTES = 32, 1024 * 1024
Message = MutableMapping[str, Any]
#: What is of the handshake, not of the request.
_OF_THE_HANDSHAKE = frozenset(
    {b"host", b"connection", b"upgrade", b"content-length", b"transfer-encoding"}
)


class AppWebSocket(End):
    """The client's end of a websocket that an app has accepted; for one thread.

    Attributes:
        headers: those that the app added when it accepted.
        is_released: whether it has given everything back.
    """

    headers: list[tuple[str, str]]
    is_released = False

    def runner_ended(self) -> None:
        """The app's runner has ended; from any thread."""
        self.hang_up()

    @property
    def closed_by(self) -> str | None:
        """Who ended it: ``"client"`` or ``"app"``; None: it is open."""
        if self.code is None:
            return None
        return "client" if self.closed_here else "app"


def subprotocols_of(request: httpx.Request) -> list[str]:
    """Those that a client offers."""
    offered = request.headers.get("sec-websocket-protocol", "").split(",")
    return [name.strip() for name in offered if name.strip()]


class _ClientGoneError(OSError):
    """What an app gets that sends to a client that is gone, as from uvicorn."""


class ThreadWebSocket(AppWebSocket):
    """Of an app on an event loop, which is spoken to as uvicorn does.

    Args:
        app: the ASGI app.
        request: what opens it.
        loop: the loop that the app runs on.
        ended: called on the loop once the app's call has returned.
    """

    def __init__(
        self,
        app: ASGIApp,
        request: httpx.Request,
        loop: asyncio.AbstractEventLoop,
        ended: Callable[[ThreadWebSocket], None],
    ) -> None:
        super().__init__()
        self._app = app
        self._request = request
        self._loop = loop
        self._has_ended = ended
        self._conduit: Conduit[str | bytes] = Conduit(loop)
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._waiting: deque[int] = deque()  # the sizes of messages that the app has not received
        self._answered = self._done = self._gone = False
        self._denial: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
        self.headers = []
        #: What the app raised.
        self.error: BaseException | None = None
        #: Its answer, where it did not accept.
        self.refusal: httpx.Response | None = None

    def begin(self) -> None:
        """Ask the app, and wait until it has accepted or refused, or has ended."""
        self._loop.call_soon_threadsafe(self._start)
        with self._conduit.changed:
            self._conduit.changed.wait_for(lambda: self._answered or self._done)
        if not self._answered:
            self.refusal = httpx.Response(500, text="Internal Server Error")

    # --- in the client's thread ------------------------------------------------------------------

    @property
    def has_messages(self) -> bool:
        """Whether there is a message to be taken."""
        return bool(self._conduit)

    def fileno(self) -> int:
        """One that can be read when the app has done something."""
        return self._conduit.fileno()

    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN

    def step(self) -> None:
        """Look at all that has happened so far."""
        self._conduit.settle()

    def take(self) -> str | bytes | None:
        """The next message of the app's."""
        return self._conduit.take()

    def send(self, message: str | bytes) -> None:
        """Send a message to the app."""
        if self.code is not None:
            return
        kind, size = "bytes", len(message)
        if isinstance(message, str):
            kind, size = "text", len(message.encode())
        if size > _MESSAGE_LIMIT:
            self._refuse_message(size)
            return
        with self._conduit.changed:
            self._waiting.append(size)
        self._tell_app({"type": "websocket.receive", kind: message})

    @property
    def has_room(self) -> bool:
        """Whether the app keeps up with what it is sent."""
        with self._conduit.changed:
            few = len(self._waiting) < _WAITING_MESSAGES
            return few and sum(self._waiting) < _WAITING_BYTES

    def _refuse_message(self, size: int) -> None:
        reason = f"frame with {size} bytes exceeds limit of {_MESSAGE_LIMIT} bytes"
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._disconnect, _TOO_BIG, reason)
        self._ends_by_app(_TOO_BIG, reason)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End it."""
        self._leave(code, reason, closed_here=True)
        self.release()

    def release(self) -> None:
        """Give the descriptor back."""
        self.is_released = True
        self._conduit.close()

    def _break(self) -> None:
        self._leave(ABNORMAL, "", closed_here=False)

    def _leave(self, code: int, reason: str, closed_here: bool) -> None:
        with self._conduit.changed:
            if self.code is not None:
                return
            self.closed_here = closed_here
            self._end(code, reason)
            self._conduit.tell()
        with suppress(RuntimeError):  # the loop is closed: nobody is there
            # uvicorn has no other code for a connection that just ends.
            told = NO_CODE if code == ABNORMAL else code
            self._loop.call_soon_threadsafe(self._disconnect, told, reason)

    def _tell_app(self, message: Message) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._to_app.put_nowait, message)

    # --- on the loop -----------------------------------------------------------------------------

    def shut_down(self) -> None:
        """The server ends: what uvicorn does with its websockets then."""
        self._ends_by_app(1012, "")
        self._disconnect(1012, "")

    def _start(self) -> None:
        self._to_app.put_nowait({"type": "websocket.connect"})
        call = self._app(self._scope(), self._receive, self._send)
        task = self._loop.create_task(call, name=f"websocket {self._request.url.path}")
        task.add_done_callback(self._ended)

    def _scope(self) -> dict[str, Any]:
        return {
            **connection_scope(self._request),
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "scheme": "ws",
            "subprotocols": subprotocols_of(self._request),
            "extensions": {"websocket.http.response": {}},
        }

    async def _receive(self) -> Message:
        message = await self._to_app.get()
        if message["type"] == "websocket.receive":
            with self._conduit.changed:
                self._waiting.popleft()
                self._conduit.tell()  # who waits for room
        return message

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if self._gone:
            raise _ClientGoneError
        if self._denial is not None and kind == "websocket.http.response.body":
            self._deny(message.get("body", b""), message.get("more_body", False))
        elif not self._answered:
            self._answer(kind, message)
        elif self.code is not None or self.refusal is not None:
            raise RuntimeError(
                f"Unexpected ASGI message '{kind}', after sending 'websocket.close'."
            )
        elif kind == "websocket.close":
            self._close(message.get("code", 1000), message.get("reason", "") or "")
        elif kind == "websocket.send":
            data = message.get("bytes")
            await self._conduit.put(message["text"] if data is None else bytes(data))
        else:
            raise RuntimeError(
                "Expected ASGI message 'websocket.send' or 'websocket.close', "
                f"but got '{message['type']}'."
            )

    def _answer(self, kind: str, message: Message) -> None:
        if kind == "websocket.accept":
            self.subprotocol = message.get("subprotocol")
            self.headers = [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in message.get("headers", [])
            ]
            self._settle_handshake(None)
        elif kind == "websocket.close":
            # The websockets package's own clients, in version 12, wait for a length.
            self._settle_handshake(httpx.Response(403, headers={"content-length": "0"}))
        elif kind == "websocket.http.response.start" and self._denial is None:
            self._denial = message["status"], list(message.get("headers", [])), b""
        else:
            raise RuntimeError(
                "Expected ASGI message 'websocket.accept', 'websocket.close' "
                f"or 'websocket.http.response.start' but got '{kind}'."
            )

    def _deny(self, body: bytes, more: bool) -> None:
        assert self._denial is not None
        status, headers, sent = self._denial
        self._denial = status, headers, sent + body
        if not more:
            self._settle_handshake(httpx.Response(status, headers=headers, content=sent + body))

    def _settle_handshake(self, refusal: httpx.Response | None) -> None:
        with self._conduit.changed:
            self.refusal = refusal
            self._answered = True
            self._conduit.tell()
        if refusal is not None:
            self._disconnect(ABNORMAL, "", gone=False)

    def _close(self, code: int, reason: str) -> None:
        from websockets.frames import Close, Frame, Opcode

        # What cannot be sent is an error of the app's, as it is with uvicorn.
        Frame(Opcode.CLOSE, Close(code, reason).serialize()).check()
        self._disconnect(code, reason, gone=False)
        self._ends_by_app(code, reason)

    def _disconnect(self, code: int, reason: str, gone: bool = True) -> None:
        self._gone = self._gone or gone
        self._conduit.release()
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    def _ends_by_app(self, code: int, reason: str) -> None:
        with self._conduit.changed:
            if self.code is None:
                self._end(code, reason)
            self._conduit.tell()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.error = asyncio.CancelledError() if task.cancelled() else task.exception()
        with self._conduit.changed:
            self._done = True
        self._ends_by_app(ABNORMAL, "")
        self._has_ended(self)


class SocketWebSocket(SocketEnd, AppWebSocket):
    """Of an app behind a server on this machine."""

    def release(self) -> None:
        """Hang up."""
        self.is_released = True
        self._socket.close()

    def runner_ended(self) -> None:
        """What its server said last has yet to be read."""

    @classmethod
    def connect(cls, port: int, request: httpx.Request) -> SocketWebSocket | httpx.Response:
        """Open one at a port of 127.0.0.1; the answer, if the app refuses.

        Raises:
            OSError: the connection ended before there was an answer.
        """
        from websockets.client import ClientProtocol
        from websockets.uri import parse_uri

        target = request.url.raw_path.decode("ascii")
        uri = parse_uri(f"ws://127.0.0.1:{port}{target}")
        offered: Any = subprotocols_of(request) or None
        protocol = ClientProtocol(uri, subprotocols=offered, max_size=None)
        sock = socket.create_connection(("127.0.0.1", port))
        try:
            sock.settimeout(None)  # whatever socket.setdefaulttimeout() says
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer, *frames = _shake_hands(sock, protocol, request)
            if answer.status_code != 101:
                sock.close()
                return _as_httpx(answer)
            found = cls(sock, protocol, frames=frames)
        except BaseException:
            shut_down(sock, socket.SHUT_RDWR)
            sock.close()
            raise
        found.subprotocol = protocol.subprotocol
        found.headers = _added(answer.headers.raw_items())
        return found


def _shake_hands(sock: socket.socket, protocol: Any, request: httpx.Request) -> list[Any]:
    handshake = protocol.connect()
    del handshake.headers["Host"]
    handshake.headers["host"] = request.headers["host"]
    for name, value in request.headers.raw:
        lower = name.lower()
        if lower not in _OF_THE_HANDSHAKE and not lower.startswith(b"sec-websocket-"):
            handshake.headers[lower.decode("latin-1")] = value.decode("latin-1")
    protocol.send_request(handshake)
    sock.sendall(b"".join(protocol.data_to_send()))
    while True:
        data = sock.recv(_RECEIVE_SIZE)
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        if events := protocol.events_received():
            return list(events)
        if not data:
            raise ConnectionError("closed before it answered the handshake")


def _as_httpx(answer: Any) -> httpx.Response:
    headers = list(answer.headers.raw_items())
    return httpx.Response(answer.status_code, headers=headers, content=bytes(answer.body or b""))


def _added(headers: Any) -> list[tuple[str, str]]:
    """What an app added to the head that the server sends."""
    known = ("date", "server", "upgrade", "connection")
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in known and not name.lower().startswith("sec-websocket-")
    ]
