"""HTTP/1.1 as a server speaks it: requests taken apart, their bodies read, responses laid out.

What RFC 9112 rules out is refused with a reason, never guessed at. Threads, TLS handshakes and the
calls of the handler are the wire's (:mod:`emulator.network.wire`).
"""

from __future__ import annotations

import re
import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

import httpx

from emulator.ledger import masked

__all__ = [
    "DRAIN_LIMIT",
    "DRAIN_SECONDS",
    "HEAD_LIMIT",
    "LINE_LIMIT",
    "NO_HEAD",
    "RECEIVE_SIZE",
    "ClientGoneError",
    "Frame",
    "Head",
    "Inbound",
    "RefusedError",
    "RequestBody",
    "body_length",
    "checked",
    "failed",
    "frame",
    "parse_head",
    "request_url",
]

HEAD_LIMIT = 65_536
LINE_LIMIT = 4_096
RECEIVE_SIZE = 262_144
#: How much of a body that the handler left unread is taken off the client, before it is hung up on.
DRAIN_LIMIT = 64 * 1024 * 1024
#: How long nothing of it may come, before the client is answered without it.
DRAIN_SECONDS = 1.0

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21\x22\x24-\x7e]+) HTTP/(\d\.\d)")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\0\r\n]*)")
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::(\d{0,5}))?")
_LENGTH = re.compile(rb"\d{1,18}")
_LINE_ENDS = re.compile(rb"[\r\n\0]")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?")


class ClientGoneError(ConnectionError):
    """The client hung up, or was cut off at the end of its test, in the middle of an exchange."""


class QuietError(Exception):
    """Nothing has come for a while."""


class RefusedError(Exception):
    """A request that HTTP or this server rules out; the connection ends with the answer.

    What it quotes goes into the ledger, too, so credentials are left out.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.response = httpx.Response(status, text=f"{status}: {why}\n")


class Head(NamedTuple):
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


#: Stands in for the head of a request that could not be read.
NO_HEAD = Head("GET", b"/", b"1.0", [], {})


def parse_head(data: bytes) -> Head:
    """Read a request's head; RefusedError when it is malformed or none for this server."""
    lines = data.split(b"\r\n")
    request_line = _REQUEST_LINE.fullmatch(lines[0])
    if request_line is None:
        raise _no_request_line(lines[0])
    method, target, version = request_line.groups()
    if method != method.upper():
        raise RefusedError(400, f"methods are written in capitals, and not {_quoted(method)}")
    if version not in (b"1.1", b"1.0"):
        raise RefusedError(505, f"only HTTP/1.1 and 1.0 are spoken here, not {version.decode()}")
    if method == b"CONNECT":
        raise RefusedError(501, "this is no proxy: CONNECT is not done here")
    headers: list[tuple[bytes, bytes]] = []
    fields: dict[bytes, bytes] = {}
    for line in lines[1:]:
        match = _HEADER.fullmatch(line)
        if match is None:
            name, colon, _ = line.partition(b":")
            shown = _quoted(name) + (" and a value" if colon else "")
            raise RefusedError(400, f"this is no header line: {shown}")
        name, value = match[1], match[2].rstrip(b" \t")
        headers.append((name, value))
        lower = name.lower()
        fields[lower] = fields[lower] + b", " + value if lower in fields else value
    return Head(method.decode(), target, version, headers, fields)


def request_url(target: bytes, authority: bytes, secure: bool) -> httpx.URL:
    """Put together what a request line and a Host name; RefusedError when either is malformed."""
    if _HOST.fullmatch(authority) is None:
        raise RefusedError(400, f"this is no Host: {_quoted(authority.rpartition(b'@')[2])}")
    scheme = b"https" if secure else b"http"
    if target.startswith(b"/"):
        text = scheme + b"://" + authority + target
    elif target == b"*":
        text = scheme + b"://" + authority + b"/"
    elif target.startswith((b"http://", b"https://")):
        text = target
    else:
        raise RefusedError(400, f"this is no target of a request: {_quoted(target)}")
    try:
        url = httpx.URL(text.decode("ascii"))
        host = url.host  # decodes an international name
    except (httpx.InvalidURL, UnicodeError) as error:
        raise RefusedError(400, f"this is no URL: {error}") from error
    if not host:
        raise RefusedError(400, f"the target of the request names no host: {_quoted(target)}")
    return url


def body_length(head: Head) -> int | None:
    """How long the request's body is; None when it is chunked, RefusedError when unclear."""
    length = head.fields.get(b"content-length")
    coding = head.fields.get(b"transfer-encoding")
    if coding is None:
        if length is None:
            return 0
        if _LENGTH.fullmatch(length) is None:
            raise RefusedError(400, f"this is no Content-Length: {_quoted(length)}")
        return int(length)
    if length is not None:
        raise RefusedError(400, "Content-Length and Transfer-Encoding exclude each other")
    if head.version == b"1.0":
        raise RefusedError(400, "HTTP/1.0 has no Transfer-Encoding")
    if coding.lower() != b"chunked":
        raise RefusedError(501, f"Transfer-Encoding can only be chunked, not {_quoted(coding)}")
    return None


class Inbound:
    """The bytes that come in, buffered only as far as finding a head or a line needs it.

    Raises ClientGoneError at their end, RefusedError for a head or a line without one.

    Attributes:
        patience: seconds in which something has to come, or `QuietError` is raised; None: any.
    """

    patience: float | None = None

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
        blank = 0
        while True:
            while self._buffer.startswith(b"\r\n", self._start):  # RFC 9112, 2.2
                self._start += 2
                blank += 2
            if blank > LINE_LIMIT:
                raise RefusedError(400, "nothing but blank lines came")
            end = self._buffer.find(b"\r\n\r\n", self._start)
            if end >= 0:
                head = self._buffer[self._start : end]
                self._start = end + 4
                if len(head) > HEAD_LIMIT:
                    raise RefusedError(431, f"the head is larger than {HEAD_LIMIT} bytes")
                return head
            self._check_unfinished_head(self._buffer[self._start :])
            if not self._more():
                raise ClientGoneError("The client left.")

    def rest(self) -> bytes:
        """What is here already, of a connection that speaks something else from here on."""
        data, self._buffer = self._buffer[self._start :], b""
        self._start = 0
        return data

    def line(self) -> bytes:
        """A line, without its end."""
        while (end := self._buffer.find(b"\r\n", self._start)) < 0:
            if len(self._buffer) - self._start > LINE_LIMIT:
                raise RefusedError(400, f"a line of the body is over {LINE_LIMIT} bytes")
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
            raise RefusedError(431, f"the head is larger than {HEAD_LIMIT} bytes")
        ends = data.count(b"\r\n")
        if data.count(b"\n") != ends or data.count(b"\r", 0, -1) > ends:
            # Its end would never be found.
            raise RefusedError(400, "lines end in CR LF")
        line, end, _ = data.partition(b"\r\n")
        if end and _REQUEST_LINE.fullmatch(line) is None:  # HTTP/0.9, and whatever else greets so
            raise _no_request_line(line)

    def _more(self) -> bool:
        data = self._receive(HEAD_LIMIT)
        self._buffer = self._buffer[self._start :] + data
        self._start = 0
        return bool(data)

    def _receive(self, limit: int) -> bytes:
        try:
            if self.patience is not None:
                self._socket.settimeout(self.patience)
            if isinstance(self._socket, ssl.SSLSocket) and limit > 16_384:
                return self._receive_records(self._socket, limit)
            return self._socket.recv(limit)
        except TimeoutError as error:
            raise QuietError from error
        except OSError as error:
            raise ClientGoneError(str(error)) from error
        finally:
            if self.patience is not None:
                self._socket.settimeout(None)

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


class RequestBody(httpx.SyncByteStream):
    """A request's body, read off the socket as it is iterated: once, and before the answer."""

    def __init__(
        self, inbound: Inbound, length: int | None, go_ahead: Callable[[], None] | None
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
        self._inbound.patience = DRAIN_SECONDS
        with suppress(RefusedError, QuietError):  # what cannot be read is still to come
            while spared <= DRAIN_LIMIT and (chunk := next(self._chunks, b"")):
                spared += len(chunk)
        self._inbound.patience = None
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
                raise RefusedError(400, "a chunk of the body is longer than it says")
        trailers = 0
        while line := self._inbound.line():
            trailers += len(line)
            if trailers > HEAD_LIMIT:
                raise RefusedError(431, f"the trailers are larger than {HEAD_LIMIT} bytes")
        self._complete = True


class Frame(NamedTuple):
    """How a response goes out; ``length`` is None for a body that ends otherwise."""

    head: bytes
    length: int | None
    chunked: bool
    bodiless: bool
    keep: bool


def frame(head: Head, response: httpx.Response, intact: bool) -> Frame:
    """Lay out the answer to a request; ``intact`` when nothing of its body is still to come.

    A body without a length is chunked; with ``Connection: close`` it ends with the connection.
    """
    raw = response.headers.raw
    fields = {name.lower(): value for name, value in raw}
    upgrades = response.status_code == 101
    bodiless = head.method == "HEAD" or upgrades or response.status_code in (204, 304)
    declared = fields.get(b"content-length", b"")
    length = int(declared) if _LENGTH.fullmatch(declared) else None
    closes = b"close" in fields.get(b"connection", b"").lower()
    chunked = not bodiless and length is None and head.version == b"1.1" and not closes
    keep = (
        intact
        and not upgrades
        and head.stays
        and (bodiless or chunked or length is not None)
        and not closes
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
    if upgrades:
        lines.append(b"Connection: Upgrade")
    elif not keep:
        lines.append(b"Connection: close")
    elif head.version == b"1.0":
        lines.append(b"Connection: keep-alive")
    laid_out = b"\r\n".join(lines) + b"\r\n\r\n"
    if laid_out.count(b"\n") + laid_out.count(b"\r") != 2 * len(lines) + 2 or b"\0" in laid_out:
        # What a client named itself, the type of a file, shall not become other headers.
        lines = [_LINE_ENDS.sub(b" ", line) for line in lines]
        laid_out = b"\r\n".join(lines) + b"\r\n\r\n"
    return Frame(laid_out, length, chunked, bodiless, keep)


def checked(response: httpx.Response) -> httpx.Response:
    """Give back a response that can be sent; TypeError for any other, or for no response."""
    if isinstance(response, httpx.Response) and isinstance(response.stream, httpx.SyncByteStream):
        return response
    got = response.stream if isinstance(response, httpx.Response) else response
    raise TypeError(
        f"The wire cannot send a {type(got).__name__}: a handler returns an httpx.Response whose "
        "stream is a httpx.SyncByteStream. Write def __iter__(self), not async def __aiter__(self)."
    )


def failed(request: httpx.Request, error: BaseException) -> httpx.Response:
    """Make the answer to a request whose handler raised."""
    last_line = traceback.format_exception_only(error)[-1].strip()
    asked = f"{request.method} {masked(str(request.url))}"
    return httpx.Response(
        500,
        text=f"The emulator's handler failed at {asked}: {last_line}\n",
    )


def _quoted(text: bytes) -> str:
    """The beginning of what a client sent, without credentials in a URL."""
    return repr(masked(text[:200].decode("latin-1")))


def _no_request_line(line: bytes) -> RefusedError:
    return RefusedError(400, f"this is no HTTP/1.1 request line: {_quoted(line)}")


def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise RefusedError(400, f"this is no size of a chunk: {line[:16]!r}")
    return int(match[1], 16)


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
