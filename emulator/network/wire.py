"""A loopback HTTP/1.1 server, plain and TLS on one port, in front of a function.

Whatever client is neither httpx nor urllib ends here, over real TCP and real TLS: the wire reads a
request, hands it to the handler as an ``httpx.Request`` and writes its ``httpx.Response``. Bodies
are streams both ways; neither is ever held in memory.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from itertools import count
from typing import Any, NamedTuple, cast

import httpx

from emulator.errors import EmulatorError
from emulator.network.trust import Authority, ServerSide

__all__ = ["Abort", "ClientGoneError", "Peer", "Wire"]

HEAD_LIMIT = 65_536
LINE_LIMIT = 4_096
RECEIVE_SIZE = 262_144
#: How much of a body that the handler left unread is taken off the client, before it is hung up on.
DRAIN_LIMIT = 64 * 1024 * 1024
#: How many threads wait for clients to come.
WAITING_THREADS = 3
#: How long a request that names no host waits to be told which connection it came over.
PEER_SECONDS = 0.25
#: How long a handler may go on after its connection was cut.
JOIN_SECONDS = 5.0

_TLS_HANDSHAKE = b"\x16"
_JOINED_SEND = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_HANG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21\x22\x24-\x7e]+) HTTP/(\d\.\d)")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*)")
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::(\d{0,5}))?")
_LENGTH = re.compile(rb"\d{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?")


@dataclass(frozen=True)
class Peer:
    """What a client thought it was connecting to, and the runner it connected from."""

    address: str
    port: int
    runner: int | None = None


class Abort(Exception):  # noqa: N818 - an order, not an error
    """Raised by a handler, or by a response's stream: end the connection here and now.

    With ``reset`` the client sees ECONNRESET, without it the end of the stream.
    """

    def __init__(self, reset: bool = False) -> None:
        """Take down how the connection is to end."""
        super().__init__("reset" if reset else "close")
        self.reset = reset


class ClientGoneError(ConnectionError):
    """The client hung up, or was cut off at the end of its test, in the middle of an exchange."""


class Wire:
    """The server. Not started by being made.

    The handler is called in a thread of the connection, with these ``request.extensions``:
    ``fal_client`` is ``"wire"``; ``fal_peer`` is a `Peer` or None; ``fal_wait(seconds)`` sleeps,
    raising `ClientGoneError` as soon as the client is gone. It has to read the request's body
    before it returns. An exception's ``fal_response``, if it has one, is its answer; any other
    but `Abort` is answered with a 500 and kept in ``errors``.
    """

    def __init__(
        self, handler: Callable[[httpx.Request], httpx.Response], authority: Authority
    ) -> None:
        """Set up the wire; ``start`` opens it."""
        self.errors: list[BaseException] = []
        self.handler = handler
        self._tls = authority.listener_context(self._choose_name)
        self._peers: dict[int, Peer] = {}
        self._announced = threading.Condition()
        self._handshakes: dict[int, _Connection] = {}
        self._crew: _Crew | None = None

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        if self._crew is None:
            self._crew = _Crew(self)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, for HTTP and HTTPS alike; EmulatorError unless it is started."""
        if self._crew is None:
            raise EmulatorError("The wire has no address until it is started: wire.start()")
        return self._crew.address

    def expect(self, local_port: int, peer: Peer) -> None:
        """Say what the client whose own port is ``local_port`` thinks it is connected to.

        To be called before that client sends anything: before it connects or right after.
        """
        with self._announced:
            self._peers[local_port] = peer
            self._announced.notify_all()

    def close_connections(self) -> None:
        """Cut all open connections and wait for their threads to be done with them.

        A handler that is still busy `JOIN_SECONDS` later is put into ``errors``.
        """
        if self._crew is not None and self._crew.connections:
            self.errors += [connection.still_busy() for connection in self._crew.cut_all()]

    def stop(self) -> None:
        """Close everything; no thread and no descriptor stays."""
        if self._crew is not None:
            self._crew.stop()
            self.close_connections()
            self._crew.join()
            self._crew = None
            self._peers.clear()

    def _claim_peer(self, local_port: int, seconds: float = 0) -> Peer | None:
        if seconds and local_port not in self._peers:
            with self._announced:
                self._announced.wait_for(lambda: local_port in self._peers, seconds)
        return self._peers.pop(local_port, None)

    def _choose_name(self, side: ServerSide, asked: str | None) -> str | None:
        assert isinstance(side, ssl.SSLSocket)
        connection = self._handshakes[side.fileno()]
        connection.server_name = asked
        if asked is not None:
            return asked
        peer = self._peers.get(connection.port)
        return peer.address if peer else "127.0.0.1"


class _Crew:
    """The listening socket and its threads.

    A thread that has accepted a client serves it itself, and another one waits in its place: a
    connection costs no hand-over, and mostly no new thread.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.settimeout(None)  # whatever socket.setdefaulttimeout() says
        self.address: tuple[str, int] = self._listener.getsockname()
        self.connections: set[_Connection] = set()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._waiting = 0
        self._numbers = count(1)
        self._stopping = False
        with self._changed:
            for _ in range(WAITING_THREADS):
                self._add_thread()

    def cut_all(self) -> list[_Connection]:
        """Cut all connections and wait for their threads; those that do not end."""
        with self._changed:
            here = threading.get_ident()  # a handler may call this, and cannot end itself
            cut = {connection for connection in self.connections if connection.thread != here}
            for connection in cut:
                connection.cut()
            self._changed.wait_for(lambda: cut.isdisjoint(self.connections), JOIN_SECONDS)
            stuck = cut & self.connections
            self.connections -= stuck  # said once
            return list(stuck)

    def stop(self) -> None:
        """End the threads that wait, and close the listening socket."""
        self._stopping = True
        _shut_down(self._listener, socket.SHUT_RDWR)
        for _ in self._threads:  # what wakes accept() where shutdown() does not
            with suppress(Exception):
                socket.create_connection(self.address).close()
        self._listener.close()

    def join(self) -> None:
        """Wait for the threads, after ``stop``."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_SECONDS)

    def _add_thread(self) -> None:
        thread = threading.Thread(
            target=self._work, name=f"fal-wire-{next(self._numbers)}", daemon=True
        )
        self._threads = [other for other in self._threads if other.is_alive()]
        self._threads.append(thread)
        self._waiting += 1
        thread.start()

    def _work(self) -> None:
        while not self._stopping:
            try:
                sock, (_, port) = self._listener.accept()
            except OSError:  # the client has gone already, or stop() was called
                continue
            connection = _Connection(self._wire, sock, port)
            self._begin(connection)
            connection.serve()
            if not self._end(connection):
                break

    def _begin(self, connection: _Connection) -> None:
        with self._changed:
            self.connections.add(connection)
            self._waiting -= 1
            if self._stopping:
                connection.cut()
            elif not self._waiting:
                self._add_thread()

    def _end(self, connection: _Connection) -> bool:
        """Whether the thread may wait for another client."""
        with self._changed:
            self.connections.discard(connection)
            self._changed.notify_all()
            enough = self._waiting >= WAITING_THREADS
            self._waiting += not enough
            return not enough


class _Connection:
    """One client's connection, served by the thread that makes this object."""

    def __init__(self, wire: Wire, sock: socket.socket, port: int) -> None:
        self.port = port
        self.server_name: str | None = None
        self.thread = threading.get_ident()
        self._wire = wire
        self._socket = sock
        self._lock = threading.Lock()  # cut() must not meet a descriptor that is used anew
        self._peer: Peer | None = None
        self._request: httpx.Request | None = None
        self._unread = False

    def serve(self) -> None:
        """Answer its requests until one side has enough; never raises."""
        reset = False
        try:
            if self._open():
                while self._exchange():
                    pass
                self._say_goodbye()
        except Abort as abort:
            reset = abort.reset
        except OSError:
            pass  # the client is gone, does not trust us, or was cut
        except BaseException as error:
            self._wire.errors.append(error)
        finally:
            self._close(reset)

    def cut(self) -> None:
        """End it from another thread: whoever reads or writes it, at either end, is woken."""
        with self._lock:
            _shut_down(self._socket, socket.SHUT_RDWR)

    def still_busy(self) -> EmulatorError:
        """What to say when its handler does not end."""
        request = self._request
        what = f"{request.method} {request.url}" if request else "a request"
        return EmulatorError(
            f"The handler of {what} still ran {JOIN_SECONDS} s after its connection was cut. Let "
            'it wait with request.extensions["fal_wait"](seconds), which ends with the connection.'
        )

    def wait(self, seconds: float | None = None) -> None:
        """Sleep, forever with None; ClientGoneError as soon as the client hangs up."""
        poller = select.poll()
        poller.register(self._socket, _HANG_UP)
        if poller.poll(None if seconds is None else seconds * 1000):
            raise ClientGoneError("The client hung up while it was let wait.")

    def _open(self) -> bool:
        self._socket.settimeout(None)  # whatever socket.setdefaulttimeout() says
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first = self._socket.recv(1, socket.MSG_PEEK)
        if first == _TLS_HANDSHAKE:
            self._shake_hands()
        self._inbound = _Inbound(self._socket)
        return bool(first)

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

    def _exchange(self) -> bool:
        """Answer one request; whether another may follow."""
        try:
            head = _parse_head(self._inbound.head())
            body = self._body(head)
            self._request = request = self._new_request(head, body)
        except _RefusedError as refused:
            self._unread = True
            return self._respond(_NO_HEAD, refused.response)
        response = self._answer(request)
        try:
            self._unread = not body.finish()
            return self._respond(head, response)
        finally:
            self._request = None
            self._close_response(response)

    def _body(self, head: _Head) -> _RequestBody:
        length = _body_length(head)
        expectation = head.fields.get(b"expect")
        if expectation is not None and expectation.lower() != b"100-continue":
            raise _RefusedError(417, f"only 100-continue can be expected, not {expectation!r}")
        waits = expectation is not None and head.version == b"1.1" and not self._inbound.buffered
        return _RequestBody(self._inbound, length, self._go_ahead if waits else None)

    def _go_ahead(self) -> None:
        self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _new_request(self, head: _Head, body: _RequestBody) -> httpx.Request:
        authority = head.fields.get(b"host")
        if self._peer is None:
            self._peer = self._wire._claim_peer(self.port, 0 if authority else PEER_SECONDS)
        url = self._url(head.target, authority or self._authority())
        extensions: dict[str, Any] = {
            "fal_client": "wire",
            "fal_peer": self._peer,
            "fal_wait": self.wait,
        }
        if url.raw_path != head.target:
            extensions["target"] = head.target  # for an exact forward, and "OPTIONS *"
        return httpx.Request(
            head.method, url, headers=head.headers, stream=body, extensions=extensions
        )

    def _authority(self) -> bytes:
        """Host and port of a request that names none."""
        host = self.server_name or (self._peer.address if self._peer else None)
        if host is None:
            raise _RefusedError(400, "there is no Host header")
        host = f"[{host}]" if ":" in host else host
        return (f"{host}:{self._peer.port}" if self._peer else host).encode()

    def _url(self, target: bytes, authority: bytes) -> httpx.URL:
        if _HOST.fullmatch(authority) is None:
            raise _RefusedError(400, f"this is no Host: {authority[:200]!r}")
        scheme = b"https" if isinstance(self._socket, ssl.SSLSocket) else b"http"
        if target.startswith(b"/"):
            text = scheme + b"://" + authority + target
        elif target == b"*":
            text = scheme + b"://" + authority + b"/"
        elif target.startswith((b"http://", b"https://")):
            text = target
        else:
            raise _RefusedError(400, f"this is no target of a request: {target[:200]!r}")
        try:
            return httpx.URL(text.decode("ascii"))
        except httpx.InvalidURL as error:
            raise _RefusedError(400, str(error)) from error

    def _answer(self, request: httpx.Request) -> httpx.Response:
        try:
            return _checked(self._wire.handler(request))
        except (Abort, ClientGoneError):
            raise
        except _RefusedError as refused:  # by the body, which the handler was reading
            return refused.response
        except BaseException as error:  # pytest's own failures are no Exceptions
            response = getattr(error, "fal_response", None)
            if isinstance(response, httpx.Response):
                return response
            self._wire.errors.append(error)
            return _failed(request, error)

    def _respond(self, head: _Head, response: httpx.Response) -> bool:
        frame = _frame(head, response, not self._unread)
        stream = cast("httpx.SyncByteStream", response.stream)
        try:
            if frame.bodiless:
                self._send(frame.head)
            elif frame.length is None:
                self._send_uncounted(frame, stream)
            else:
                self._send_counted(frame.head, stream, frame.length)
        except (Abort, ClientGoneError):
            raise
        except BaseException as error:
            self._wire.errors.append(error)
            raise Abort from error
        return frame.keep

    def _send_counted(self, head: bytes, stream: Iterable[bytes], remaining: int) -> None:
        """Send as much as the Content-Length says; the head goes with the first chunk."""
        try:
            for chunk in filter(None, stream):
                if not remaining:
                    break
                part = chunk if len(chunk) <= remaining else chunk[:remaining]
                remaining -= len(part)
                unsent, head = head, b""
                self._send(unsent, part)
        finally:
            if head:
                self._send(head)
        if remaining:
            raise Abort

    def _send_uncounted(self, frame: _Frame, stream: Iterable[bytes]) -> None:
        self._send(frame.head)
        for chunk in filter(None, stream):
            if frame.chunked:
                self._send(b"%x\r\n" % len(chunk), chunk, b"\r\n")
            else:
                self._send(chunk)
        if frame.chunked:
            self._send(b"0\r\n\r\n")

    def _send(self, *parts: bytes) -> None:
        try:
            if sum(map(len, parts)) <= _JOINED_SEND:
                self._socket.sendall(b"".join(parts))
            else:
                for part in filter(None, parts):
                    self._socket.sendall(part)
        except OSError as error:
            raise ClientGoneError(str(error)) from error

    def _close_response(self, response: httpx.Response) -> None:
        try:
            response.close()
        except BaseException as error:
            self._wire.errors.append(error)

    def _say_goodbye(self) -> None:
        """End the stream in order; let a client that is still sending come to read the answer."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(0)  # the client's own goodbye is not waited for
            with suppress(OSError):
                self._socket.unwrap()
            self._socket.settimeout(None)
        if self._unread:
            _shut_down(self._socket, socket.SHUT_WR)
            spared = 0
            # Past the TLS layer: nobody wants to know what it says.
            while spared <= DRAIN_LIMIT and (data := _receive_raw(self._socket, RECEIVE_SIZE)):
                spared += len(data)

    def _close(self, reset: bool) -> None:
        if self._peer is None:
            self._wire._claim_peer(self.port)
        with self._lock, suppress(OSError):
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            else:  # a child that was forked meanwhile may hold the descriptor open
                _shut_down(self._socket, socket.SHUT_RDWR)
        with self._lock:
            self._socket.close()


class _Head(NamedTuple):
    """A request's head: ``fields`` has lower-case names, and repeated ones joined by commas."""

    method: str
    target: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    fields: dict[bytes, bytes]

    @property
    def stays(self) -> bool:
        """Whether the client wants to send more requests over the connection."""
        words = [word.strip() for word in self.fields.get(b"connection", b"").lower().split(b",")]
        return b"keep-alive" in words if self.version == b"1.0" else b"close" not in words


_NO_HEAD = _Head("GET", b"/", b"1.0", [], {})


class _RefusedError(Exception):
    """A request that HTTP or this server rules out; the connection ends with the answer."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.response = httpx.Response(status, text=f"{status}: {why}\n")


def _parse_head(data: bytes) -> _Head:
    lines = data.split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(lines[0])
    if request_line is None:
        raise _RefusedError(400, f"this is no HTTP/1.1 request line: {lines[0][:200]!r}")
    method, target, version = request_line.groups()
    if version not in (b"1.1", b"1.0"):
        raise _RefusedError(505, f"only HTTP/1.1 and 1.0 are spoken here, not {version.decode()}")
    if method == b"CONNECT":
        raise _RefusedError(501, "this is no proxy: CONNECT is not done here")
    headers: list[tuple[bytes, bytes]] = []
    fields: dict[bytes, bytes] = {}
    for line in lines[1:]:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise _RefusedError(400, f"this is no header line: {line[:200]!r}")
        name, value = match[1], match[2].rstrip(b" \t")
        headers.append((name, value))
        lower = name.lower()
        fields[lower] = fields[lower] + b", " + value if lower in fields else value
    return _Head(method.decode(), target, version, headers, fields)


def _body_length(head: _Head) -> int | None:
    """How long the request's body is; None when it is chunked."""
    length = head.fields.get(b"content-length")
    coding = head.fields.get(b"transfer-encoding")
    if coding is None:
        if length is None:
            return 0
        if _LENGTH.fullmatch(length) is None:
            raise _RefusedError(400, f"this is no Content-Length: {length!r}")
        return int(length)
    if length is not None:
        raise _RefusedError(400, "Content-Length and Transfer-Encoding exclude each other")
    if head.version == b"1.0":
        raise _RefusedError(400, "HTTP/1.0 has no Transfer-Encoding")
    if coding.lower() != b"chunked":
        raise _RefusedError(501, f"Transfer-Encoding can only be chunked, not {coding!r}")
    return None


class _Inbound:
    """The bytes that come in, buffered only as far as finding a head or a line needs it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""
        self._start = 0
        self._scratch: memoryview | None = None

    @property
    def buffered(self) -> bool:
        """Whether bytes are here already."""
        return self._start < len(self._buffer)

    def head(self) -> bytes:
        """A request's head without its blank line."""
        while True:
            while self._buffer.startswith(b"\r\n", self._start):  # RFC 9112, 2.2
                self._start += 2
            end = self._buffer.find(b"\r\n\r\n", self._start)
            if end >= 0:
                head = self._buffer[self._start : end]
                self._start = end + 4
                if len(head) > HEAD_LIMIT:
                    raise _RefusedError(431, f"the head is larger than {HEAD_LIMIT} bytes")
                return head
            self._check_unfinished_head(self._buffer[self._start :])
            if not self._more():
                raise ClientGoneError("The client left.")

    def line(self) -> bytes:
        """A line, without its end."""
        while (end := self._buffer.find(b"\r\n", self._start)) < 0:
            if len(self._buffer) - self._start > LINE_LIMIT:
                raise _RefusedError(400, f"a line of the body is over {LINE_LIMIT} bytes")
            if not self._more():
                raise ClientGoneError("The client left in the middle of a chunked body.")
        line = self._buffer[self._start : end]
        self._start = end + 2
        return line

    def some(self, limit: int) -> bytes:
        """At least one byte, at most so many."""
        if self.buffered:
            data = self._buffer[self._start : self._start + limit]
            self._start += len(data)
        else:
            data = self._receive(min(limit, RECEIVE_SIZE))
        if not data:
            raise ClientGoneError("The client left in the middle of a request's body.")
        return data

    def _check_unfinished_head(self, data: bytes) -> None:
        if len(data) > HEAD_LIMIT:
            raise _RefusedError(431, f"the head is larger than {HEAD_LIMIT} bytes")
        if data.count(b"\n") != data.count(b"\r\n"):  # its end would never be found
            raise _RefusedError(400, "lines end in CR LF")

    def _more(self) -> bool:
        data = self._receive(HEAD_LIMIT)
        self._buffer = self._buffer[self._start :] + data
        self._start = 0
        return bool(data)

    def _receive(self, limit: int) -> bytes:
        try:
            if isinstance(self._socket, ssl.SSLSocket) and limit > 16_384:
                return self._receive_records(self._socket, limit)
            return self._socket.recv(limit)
        except OSError as error:
            raise ClientGoneError(str(error)) from error

    def _receive_records(self, sock: ssl.SSLSocket, limit: int) -> bytes:
        # A TLS read gives one record, 16 kB; take all that have come.
        if self._scratch is None:
            self._scratch = memoryview(bytearray(RECEIVE_SIZE))
        view = self._scratch[:limit]
        filled = more = sock.recv_into(view)
        sock.settimeout(0)
        with suppress(ssl.SSLWantReadError):
            while more and filled < limit:
                more = sock.recv_into(view[filled:])
                filled += more
        sock.settimeout(None)
        return bytes(view[:filled])


class _RequestBody(httpx.SyncByteStream):
    """A request's body, read off the socket as it is iterated: once, and before the answer."""

    def __init__(
        self, inbound: _Inbound, length: int | None, go_ahead: Callable[[], None] | None
    ) -> None:
        self._inbound = inbound
        self._remaining = length
        self._go_ahead = go_ahead
        self._chunks = self._chunked() if length is None else self._counted()
        self._begun = False
        self._closed = False
        self._complete = length == 0

    def __iter__(self) -> Iterator[bytes]:
        if self._begun:
            raise httpx.StreamConsumed
        self._begun = True
        return self._read()

    def finish(self) -> bool:
        """Take off the client what the handler left; whether nothing of it is still to come."""
        if self._complete:
            return True
        self._closed = True
        if self._go_ahead or (self._remaining is not None and self._remaining > DRAIN_LIMIT):
            return False
        spared = 0
        with suppress(_RefusedError):  # what cannot be read is still to come
            while spared <= DRAIN_LIMIT and (chunk := next(self._chunks, b"")):
                spared += len(chunk)
        return self._complete

    def _read(self) -> Iterator[bytes]:
        if self._closed:
            raise httpx.StreamClosed
        if self._go_ahead is not None:
            go_ahead, self._go_ahead = self._go_ahead, None
            go_ahead()
        for chunk in self._chunks:
            yield chunk
            if self._closed:
                raise httpx.StreamClosed

    def _counted(self) -> Iterator[bytes]:
        while self._remaining:
            chunk = self._inbound.some(self._remaining)
            self._remaining -= len(chunk)
            self._complete = not self._remaining
            yield chunk

    def _chunked(self) -> Iterator[bytes]:
        while size := _chunk_size(self._inbound.line()):
            while size:
                chunk = self._inbound.some(size)
                size -= len(chunk)
                yield chunk
            if self._inbound.line():
                raise _RefusedError(400, "a chunk of the body is longer than it says")
        trailers = 0
        while line := self._inbound.line():
            trailers += len(line)
            if trailers > HEAD_LIMIT:
                raise _RefusedError(431, f"the trailers are larger than {HEAD_LIMIT} bytes")
        self._complete = True


def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise _RefusedError(400, f"this is no size of a chunk: {line[:200]!r}")
    return int(match[1], 16)


class _Frame(NamedTuple):
    """How a response goes out; ``length`` is None for a body that ends otherwise."""

    head: bytes
    length: int | None
    chunked: bool
    bodiless: bool
    keep: bool


def _frame(head: _Head, response: httpx.Response, intact: bool) -> _Frame:
    raw = response.headers.raw
    fields = {name.lower(): value for name, value in raw}
    bodiless = head.method == "HEAD" or response.status_code in (204, 304)
    declared = fields.get(b"content-length", b"")
    length = int(declared) if _LENGTH.fullmatch(declared) else None
    chunked = not bodiless and length is None and head.version == b"1.1"
    keep = (
        intact
        and head.stays
        and (bodiless or chunked or length is not None)
        and b"close" not in fields.get(b"connection", b"").lower()
    )
    lines = [_status_line(response)]
    # These two are the wire's to say.
    lines += [
        b"%b: %b" % pair
        for pair in raw
        if pair[0].lower() not in (b"transfer-encoding", b"connection")
    ]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if not keep:
        lines.append(b"Connection: close")
    elif head.version == b"1.0":
        lines.append(b"Connection: keep-alive")
    return _Frame(b"\r\n".join(lines) + b"\r\n\r\n", length, chunked, bodiless, keep)


def _status_line(response: httpx.Response) -> bytes:
    reason = response.extensions.get("reason_phrase")
    if not isinstance(reason, bytes):
        reason = _usual_reason(response.status_code)
    return b"HTTP/1.1 %d %b" % (response.status_code, reason)


@lru_cache
def _usual_reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def _checked(response: httpx.Response) -> httpx.Response:
    if isinstance(response, httpx.Response) and isinstance(response.stream, httpx.SyncByteStream):
        return response
    got = response.stream if isinstance(response, httpx.Response) else response
    raise TypeError(
        f"The wire cannot send a {type(got).__name__}: a handler returns an httpx.Response whose "
        "stream is a httpx.SyncByteStream. Write def __iter__(self), not async def __aiter__(self)."
    )


def _failed(request: httpx.Request, error: BaseException) -> httpx.Response:
    last_line = traceback.format_exception_only(error)[-1].strip()
    return httpx.Response(
        500,
        text=f"The emulator's handler failed at {request.method} {request.url}: {last_line}\n",
    )


def _shut_down(sock: socket.socket, how: int) -> None:
    with suppress(OSError):
        # Not SSLSocket's own, which takes the TLS state away from the thread that uses it.
        socket.socket.shutdown(sock, how)


def _receive_raw(sock: socket.socket, limit: int) -> bytes:
    return socket.socket.recv(sock, limit)
