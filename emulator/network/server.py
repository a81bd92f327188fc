"""An HTTP/1.1 server in front of a function: a listening socket, its threads, their connections.

What it listens on is said by its subclasses: :mod:`emulator.network.wire` on a TCP port, with TLS,
:mod:`emulator.network.unix_server` on a socket file. Bodies are streams both ways; neither is ever
held in memory.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any, cast

import httpx

from emulator.errors import EmulatorError
from emulator.ledger import masked
from emulator.network import http1
from emulator.network.http1 import ClientGoneError
from emulator.network.peer import Peer
from emulator.network.sockets import let_arrive, receive_raw, shut_down

__all__ = ["Abort", "ClientGoneError", "Connection", "Server", "Stall"]

#: How many threads wait for clients to come.
WAITING_THREADS = 3
#: How long a client may take to notice that its time is out.
STALL_SECONDS = 0.5
#: How long a handler may go on after its connection was cut.
JOIN_SECONDS = 5.0
#: How long a client that was hung up on may take to come and read why.
LINGER_SECONDS = 2.0

_JOINED_SEND = 65_536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_HANG_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Abort(Exception):  # noqa: N818 - an order, not an error
    """Raised by a handler, or by a response's stream: end the connection here and now.

    With ``reset`` the client sees ECONNRESET, without it the end of the stream.
    """

    def __init__(self, reset: bool = False) -> None:
        """Take down how the connection is to end."""
        super().__init__("reset" if reset else "close")
        self.reset = reset


class Stall(Exception):  # noqa: N818 - an order, not an error
    """Raised by a handler, or by a response's stream: nothing comes any more, and the client's
    time-out is to strike now."""


class Server:
    """The server. Not started by being made.

    The handler is called in a thread of the connection, with these ``request.extensions``:
    ``fal_client`` is ``"wire"``; ``fal_peer`` is a `Peer` or None; ``fal_wait(seconds)`` sleeps,
    raising `ClientGoneError` as soon as the client is gone; ``fal_wait_for(descriptor)`` does so
    until that can be read; ``fal_hasten()`` makes the client's next read time out at once;
    ``fal_arrived()`` waits until its side has all that was sent. It has to read the request's body
    before it returns. With status 101 its response has ``fal_upgrade(socket, received)`` among its
    extensions, which has the connection after the head, until it returns. An exception's
    ``fal_response``, if it has one, is its answer; any other but `Abort` and `Stall` is
    answered with a 500 and kept in ``errors``.
    """

    def __init__(self, handler: Callable[[httpx.Request], httpx.Response]) -> None:
        """Set up the server; ``start`` opens it."""
        self.errors: list[BaseException] = []
        #: Told each time that HTTP rules out what a client sent: who it is, if known, and why.
        self.on_refusal: Callable[[Peer | None, str], None] = lambda _peer, _why: None
        self.handler = handler
        self._crew: _Crew | None = None

    @property
    def is_started(self) -> bool:
        """Whether it listens."""
        return self._crew is not None

    def start(self) -> None:
        """Listen; a second call does nothing."""
        if self._crew is None:
            self._crew = _Crew(self, self.listen())

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

    # --- said by subclasses ----------------------------------------------------------------------

    def listen(self) -> socket.socket:
        """A new listening socket."""
        raise NotImplementedError

    def knock(self) -> None:
        """Connect once, for a thread that waits for a client to wake up."""

    def connection(self, sock: socket.socket, address: Any) -> Connection:
        """A client that has connected from this address."""
        raise NotImplementedError


class _Crew:
    """The listening socket and its threads.

    A thread that has accepted a client serves it itself, and another one waits in its place: a
    connection costs no hand-over, and mostly no new thread.
    """

    def __init__(self, server: Server, listener: socket.socket) -> None:
        self._server = server
        self._listener = listener
        self._listener.settimeout(None)  # whatever socket.setdefaulttimeout() says
        self.address: Any = self._listener.getsockname()
        self.connections: set[Connection] = set()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._waiting = 0
        self._numbers = count(1)
        self._stopping = False
        with self._changed:
            for _ in range(WAITING_THREADS):
                self._add_thread()

    def cut_all(self) -> list[Connection]:
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
        shut_down(self._listener, socket.SHUT_RDWR)
        for _ in self._threads:  # what wakes accept() where shutdown() does not
            with suppress(Exception):
                self._server.knock()
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
                sock, address = self._listener.accept()
            except OSError:  # the client has gone already, or stop() was called
                continue
            try:
                connection = self._server.connection(sock, address)
            except Exception as error:  # this thread serves others, too
                self._server.errors.append(error)
                sock.close()
                continue
            self._begin(connection)
            connection.serve()
            if not self._end(connection):
                break

    def _begin(self, connection: Connection) -> None:
        with self._changed:
            self.connections.add(connection)
            self._waiting -= 1
            if self._stopping:
                connection.cut()
            elif not self._waiting:
                self._add_thread()

    def _end(self, connection: Connection) -> bool:
        """Whether the thread may wait for another client."""
        with self._changed:
            self.connections.discard(connection)
            self._changed.notify_all()
            enough = self._waiting >= WAITING_THREADS
            self._waiting += not enough
            return not enough


class Connection:
    """One client's connection, served by the thread that makes this object."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.thread = threading.get_ident()
        #: Who the client is and what it thinks it is connected to, as far as that is known.
        self.peer: Peer | None = None
        self._server = server
        self._socket = sock
        self._lock = threading.Lock()  # cut() must not meet a descriptor that is used anew
        self._request: httpx.Request | None = None
        self._unread = False
        self._begun = False

    def serve(self) -> None:
        """Answer its requests until one side has enough; never raises."""
        reset = False
        try:
            if self.open():
                while self._exchange():
                    pass
                self._say_goodbye()
        except Abort as abort:
            reset = abort.reset
        except Stall:
            reset = not self._stall()
        except OSError:
            pass  # the client is gone, does not trust us, or was cut
        except BaseException as error:
            self._server.errors.append(error)
        finally:
            self.close(reset)

    def cut(self) -> None:
        """End it from another thread: whoever reads or writes it, at either end, is woken."""
        with self._lock:
            shut_down(self._socket, socket.SHUT_RDWR)

    def still_busy(self) -> EmulatorError:
        """What to say when its handler does not end."""
        request = self._request
        what = f"{request.method} {masked(str(request.url))}" if request else "a request"
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

    def wait_for(self, descriptor: int) -> None:
        """Wait until that can be read; ClientGoneError as soon as the client hangs up."""
        poller = select.poll()
        poller.register(self._socket, _HANG_UP)
        poller.register(descriptor, select.POLLIN)
        if self._socket.fileno() in (ready for ready, _ in poller.poll()):
            raise ClientGoneError("The client hung up before it had all of the answer.")

    def hasten(self) -> bool:
        """Let the client's reads time out at once, but for one that has begun; whether they do."""
        return False

    def arrived(self) -> None:
        """Wait until the client's side has all that was sent."""
        let_arrive(self._socket)

    def _stall(self) -> bool:
        """Keep quiet until the client hangs up; whether it did."""
        try:
            if self.hasten() and not self._begun:
                # Who waits for an answer goes on waiting after this, with a new time-out.
                self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.wait(STALL_SECONDS)
        except OSError:  # gone, as it should; or cut at the end of the test
            return True
        return False

    def open(self) -> bool:
        """Make ready to receive; whether the client has anything to say."""
        self._socket.settimeout(None)  # whatever socket.setdefaulttimeout() says
        self._inbound = http1.Inbound(self._socket)
        return True

    def url(self, head: http1.Head) -> httpx.URL:
        """What a request asks for; `RefusedError` when that cannot be told."""
        raise NotImplementedError

    def known_peer(self) -> Peer | None:
        """Who the client is, as far as that is known before a request of its is."""
        return self.peer

    def _exchange(self) -> bool:
        """Answer one request; whether another may follow."""
        try:
            head = http1.parse_head(self._inbound.head())
            body = self._body(head)
            self._request = request = self._new_request(head, body)
        except http1.RefusedError as refused:
            self._unread = True
            self._server.on_refusal(self.known_peer(), str(refused.response.text).strip())
            return self._respond(http1.NO_HEAD, refused.response)
        response = self._answer(request)
        try:
            self._unread = not body.finish()
            keep = self._respond(head, response)
            upgrade = response.extensions.get("fal_upgrade")
            if upgrade is not None:
                upgrade(self._socket, self._inbound.rest())
            return keep
        finally:
            self._request = None
            self._close_response(response)

    def _body(self, head: http1.Head) -> http1.RequestBody:
        length = http1.body_length(head)
        expectation = head.fields.get(b"expect")
        if expectation is not None and expectation.lower() != b"100-continue":
            raise http1.RefusedError(417, "nothing but 100-continue can be expected")
        waits = expectation is not None and head.version == b"1.1" and not self._inbound.buffered
        return http1.RequestBody(self._inbound, length, self._go_ahead if waits else None)

    def _go_ahead(self) -> None:
        self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _new_request(self, head: http1.Head, body: http1.RequestBody) -> httpx.Request:
        url = self.url(head)
        extensions: dict[str, Any] = {
            "fal_client": "wire",
            "fal_peer": self.peer,
            "fal_wait": self.wait,
            "fal_wait_for": self.wait_for,
            "fal_hasten": self.hasten,
            "fal_arrived": self.arrived,
        }
        if url.raw_path != head.target:
            extensions["target"] = head.target  # for an exact forward, and "OPTIONS *"
        return httpx.Request(
            head.method, url, headers=head.headers, stream=body, extensions=extensions
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        try:
            return http1.checked(self._server.handler(request))
        except (Abort, ClientGoneError, Stall):
            raise
        except http1.RefusedError as refused:  # by the body, which the handler was reading
            self._server.on_refusal(self.peer, str(refused.response.text).strip())
            return refused.response
        except BaseException as error:  # pytest's own failures are no Exceptions
            response = getattr(error, "fal_response", None)
            if isinstance(response, httpx.Response):
                return response
            self._server.errors.append(error)
            return http1.failed(request, error)

    def _respond(self, head: http1.Head, response: httpx.Response) -> bool:
        frame = http1.frame(head, response, not self._unread)
        self._begun = True
        stream = cast("httpx.SyncByteStream", response.stream)
        try:
            if frame.bodiless:
                self._send(frame.head)
            elif frame.length is None:
                self._send_uncounted(frame, stream)
            else:
                self._send_counted(frame.head, stream, frame.length)
        except (Abort, ClientGoneError, Stall):
            raise
        except BaseException as error:
            self._server.errors.append(error)
            raise Abort from error
        self._begun = False
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

    def _send_uncounted(self, frame: http1.Frame, stream: Iterable[bytes]) -> None:
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
            self._server.errors.append(error)

    def _say_goodbye(self) -> None:
        """End the stream in order; let a client that is still sending come to read the answer."""
        self.end_stream()
        if self._unread:
            shut_down(self._socket, socket.SHUT_WR)
            spared, end = 0, time.monotonic() + LINGER_SECONDS
            # Past any TLS layer: nobody wants to know what it says.
            size = http1.RECEIVE_SIZE
            while spared <= http1.DRAIN_LIMIT and self._may_be_read(end - time.monotonic()):
                data = receive_raw(self._socket, size)
                if not data:
                    break
                spared += len(data)

    def _may_be_read(self, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(max(seconds, 0) * 1000))

    def end_stream(self) -> None:
        """Say in the protocol's own way that nothing follows."""

    def close(self, reset: bool) -> None:
        """Give the socket back."""
        if reset:
            let_arrive(self._socket)
        with self._lock, suppress(OSError):
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            else:  # a child that was forked meanwhile may hold the descriptor open
                shut_down(self._socket, socket.SHUT_RDWR)
        with self._lock:
            self._socket.close()
