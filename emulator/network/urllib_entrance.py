"""urllib's way to the router: an opener of its own, in process, with no connection and no TLS.

``urllib.request.urlopen`` keeps one opener for the process, with the proxies (and since Python 3.12
the TLS context) of the moment it was made. Ours stands in for it while the emulator is active.
"""

from __future__ import annotations

import http.client
import io
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from email.message import Message
from http import HTTPStatus
from typing import Any

import httpx

from emulator.errors import UnknownHostError
from emulator.network.bodies import CutShortError
from emulator.network.fault import NotConnected
from emulator.network.reply import ends_by_closing
from emulator.network.router import LetThrough

__all__ = ["UrllibEntrance"]

Dispatch = Callable[[httpx.Request], httpx.Response]


class UrllibEntrance:
    """Takes urllib's requests to the router while installed.

    Args:
        dispatch: answers a request.
        passes: whether requests for a host go to the real network.
    """

    def __init__(self, dispatch: Dispatch, passes: Callable[[str], bool]) -> None:
        real = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def open_(request: urllib.request.Request) -> Any:
            host = (request.host or "").rpartition("@")[2]
            name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
            if passes(name):
                return real.open(request, timeout=request.timeout)
            try:
                return _answer(dispatch, request)
            except LetThrough:
                return real.open(request, timeout=request.timeout)

        class Handler(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> Any:
                return open_(request)

        class SecureHandler(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> Any:
                return open_(request)

        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), Handler(), SecureHandler()
        )
        self._saved: object = None

    def install(self) -> None:
        """Take over."""
        self._saved = urllib.request._opener  # type: ignore[attr-defined]
        urllib.request._opener = self._opener  # type: ignore[attr-defined]

    def uninstall(self) -> None:
        """Give back."""
        urllib.request._opener = self._saved  # type: ignore[attr-defined]
        self._saved = None


def _answer(dispatch: Dispatch, request: urllib.request.Request) -> _Response:
    _check(request)
    converted = httpx.Request(
        request.get_method(),
        request.full_url,
        headers=list({**request.headers, **request.unredirected_hdrs}.items()),
        stream=_UploadStream(request.data),
    )
    try:
        response = dispatch(converted)
    except UnknownHostError:
        raise
    except NotConnected as failed:
        raise urllib.error.URLError(failed.error) from failed.error
    except ConnectionRefusedError as error:
        raise urllib.error.URLError(error) from error
    return _Response(response, request)


def _check(request: urllib.request.Request) -> None:
    """Raise what http.client raises of blanks and what is not ASCII in a URL; httpx quotes them."""
    connection = http.client.HTTPConnection("unused")
    connection.putrequest(request.get_method(), request.selector)  # sends nothing yet


class _UploadStream(httpx.SyncByteStream):
    """The data of a urllib request: bytes, a file, or an iterable of bytes."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        data = self._data
        if data is None:
            return
        if isinstance(data, (bytes, bytearray, memoryview)):
            yield data  # type: ignore[misc]
        elif hasattr(data, "read"):
            while chunk := data.read(256 * 1024):
                yield chunk
        else:
            yield from data


class _Stream(io.RawIOBase):
    """A response body as a file."""

    def __init__(self, chunks: Iterable[bytes], close: Callable[[], None], raises: bool) -> None:
        self._chunks = iter(chunks)
        self._close = close
        self._raises = raises
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = self._next()
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _next(self) -> bytes | None:
        try:
            return next(self._chunks, None)
        except CutShortError:
            if self._raises:
                raise http.client.IncompleteRead(b"") from None
            return None

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()


class _Response(http.client.HTTPResponse):
    """What ``urlopen`` returns: the standard library's own class, on a body of ours."""

    def __init__(self, response: httpx.Response, request: urllib.request.Request) -> None:
        # HTTPResponse.__init__ wants a socket and begin() parses one; these are what they set.
        # http.client finds out by itself where there is a length, and nobody does where a body
        # ends with the connection.
        chunked = "content-length" not in response.headers and not ends_by_closing(response)
        stream = _Stream(response.stream, response.close, chunked)  # type: ignore[arg-type]
        self.fp = io.BufferedReader(stream)
        self.debuglevel = 0
        self._method = request.get_method()
        self.headers = self.msg = _headers(response)  # type: ignore[assignment]
        self.version = 11
        self.status = self.code = response.status_code
        self.reason = response.reason_phrase or HTTPStatus(response.status_code).phrase
        self.chunked = False
        self.chunk_left = None
        self.will_close = True
        self.length = self._expected_length(response)
        self.url = request.full_url
        self.msg = self.reason  # type: ignore[assignment]  # as urllib's do_open does
        if self.length == 0:
            self._close_conn()  # type: ignore[attr-defined]

    def _expected_length(self, response: httpx.Response) -> int | None:
        if self._method == "HEAD" or response.status_code in (204, 304):
            return 0
        try:
            return int(response.headers["content-length"])
        except (KeyError, ValueError):
            return None


def _headers(response: httpx.Response) -> Message:
    headers = http.client.HTTPMessage()
    # The private list that add_header fills; 40 times faster, and names stay as they came.
    headers._headers = [  # type: ignore[attr-defined]
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw
    ]
    return headers
