"""One request to a server on this machine, whose answer is read while it is sent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import h11
import httpx

from emulator.network.http1 import ClientGoneError
from emulator.network.sockets import shut_down

__all__ = ["HttpAnswer"]

_RECEIVE_SIZE = 65_536
#: As httpcore has it.
_HEAD_LIMIT = 100 * 1024
_OF_THE_BODY = (b"content-length", b"transfer-encoding")


class HttpAnswer(httpx.SyncByteStream):
    """The answer of a server on 127.0.0.1, over a connection of its own.

    Args:
        port: where it listens.
        cut_short: makes the error for a body that ends before it is whole.

    Raises:
        OSError: nobody listens.
    """

    def __init__(self, port: int, cut_short: Callable[[], BaseException]) -> None:
        self._cut_short = cut_short
        self._lock = threading.Lock()
        self._closed = self._is_read = False
        self._protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_LIMIT)
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.settimeout(None)  # whatever socket.setdefaulttimeout() says
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        #: Waits until a descriptor can be read, for a reader that has something else to look at.
        self.wait_with: Callable[[int], None] | None = None

    def ask(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and wait for the head of its answer.

        Raises:
            OSError: the connection ended before.
        """
        try:
            self._send(request)
            event = self._event()
            while isinstance(event, h11.InformationalResponse):
                event = self._event()
        except h11.RemoteProtocolError as error:
            self.close()
            raise ConnectionError(str(error)) from error
        except BaseException:
            self.close()
            raise
        assert isinstance(event, h11.Response)
        return httpx.Response(event.status_code, headers=event.headers.raw_items(), stream=self)

    def __iter__(self) -> Iterator[bytes]:
        with self._lock:
            self._is_read = True
        try:
            while isinstance(event := self._event(), h11.Data):
                yield bytes(event.data)
        except (TimeoutError, ClientGoneError):  # of the reader, who waited in its own way
            raise
        except (OSError, h11.RemoteProtocolError):
            raise self._cut_short() from None
        finally:
            with self._lock:
                self._is_read = False
            self.close()

    def close(self) -> None:
        """Hang up; from any thread."""
        with self._lock:
            self._closed = True
            shut_down(self._socket, socket.SHUT_RDWR)
            if not self._is_read:  # else its reader, who is woken by that, comes to close it
                self._socket.close()

    def _send(self, request: httpx.Request) -> None:
        body = request.read()
        pairs = [pair for pair in request.headers.raw if pair[0].lower() not in _OF_THE_BODY]
        if body or request.method in ("POST", "PUT", "PATCH"):
            pairs.append((b"Content-Length", b"%d" % len(body)))
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=pairs)
        parts = [self._protocol.send(head)]
        if body:
            parts.append(self._protocol.send(h11.Data(data=body)))
        parts.append(self._protocol.send(h11.EndOfMessage()))
        self._socket.sendall(b"".join(part for part in parts if part))

    def _event(self) -> object:
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            if self.wait_with is not None:
                self.wait_with(self._socket.fileno())
            data = self._socket.recv(_RECEIVE_SIZE)
            if self._closed:
                raise ConnectionError("closed here")
            self._protocol.receive_data(data)
        return event
