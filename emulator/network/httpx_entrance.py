"""httpx's way to the router: in process, below its transports, where respx would be too.

The only module that touches httpcore (seen: 1.0). The pool's one method is replaced while the
emulator is active, so what others patch above it (``respx.mock``, pytest-httpx, a client's own
transport) still comes first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import httpcore
import httpx

from emulator.errors import UnknownHostError
from emulator.network.bodies import CutShortError
from emulator.network.fault import NotConnected
from emulator.network.http1 import ClientGoneError
from emulator.network.reply import ends_by_closing
from emulator.network.router import LetThrough, WouldBlock
from emulator.reliance import gone

__all__ = ["HttpxEntrance"]

_POOLS = (
    (httpcore.ConnectionPool, "handle_request"),
    (httpcore.AsyncConnectionPool, "handle_async_request"),
)
Dispatch = Callable[[httpx.Request], httpx.Response]


class HttpxEntrance:
    """Takes httpx's requests to the router while installed.

    Args:
        dispatch: answers a request.
        passes: whether requests for a host go to the real network.
    """

    def __init__(self, dispatch: Dispatch, passes: Callable[[str], bool]) -> None:
        self._dispatch = dispatch
        self._passes = passes
        self._originals = [_method(pool, name) for pool, name in _POOLS]

    def install(self) -> None:
        """Take over."""
        real, real_async = (_method(pool, name) for pool, name in _POOLS)
        self._originals = [real, real_async]

        def handle_request(pool: Any, request: Any) -> Any:
            if self._is_elsewhere(pool, request):
                return real(pool, request)
            try:
                return self._answer(_to_httpx(pool, request))
            except LetThrough:
                return real(pool, request)

        async def handle_async_request(pool: Any, request: Any) -> Any:
            if self._is_elsewhere(pool, request):
                return await real_async(pool, request)
            try:
                return await self._answer_async(pool, request)
            except LetThrough:
                return await real_async(pool, request)

        for (pool, name), ours in zip(_POOLS, (handle_request, handle_async_request), strict=True):
            setattr(pool, name, ours)

    def uninstall(self) -> None:
        """Give back."""
        for (pool, name), original in zip(_POOLS, self._originals, strict=True):
            setattr(pool, name, original)

    def _is_elsewhere(self, pool: Any, request: Any) -> bool:
        """Whether the request goes over a Unix socket or to a host that is let through."""
        return pool._uds is not None or self._passes(request.url.host.decode("ascii"))

    def _answer(self, request: httpx.Request) -> Any:
        try:
            response = self._dispatch(request)
        except UnknownHostError:
            raise
        except NotConnected as failed:
            late = isinstance(failed.error, TimeoutError)
            kind = httpcore.ConnectTimeout if late else httpcore.ConnectError
            raise kind(str(failed.error)) from failed.error
        except ConnectionRefusedError as error:
            raise httpcore.ConnectError(str(error)) from error
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except ConnectionError as error:
            raise httpcore.ReadError(str(error)) from error
        return _to_httpcore(response, request.method)

    async def _answer_async(self, pool: Any, request: Any) -> Any:
        if not hasattr(request.stream, "__iter__"):
            request.stream = httpx.ByteStream(b"".join([chunk async for chunk in request.stream]))
        converted = _to_httpx(pool, request)
        converted.extensions["fal_may_block"] = False
        try:
            return self._answer(converted)
        except WouldBlock:
            converted.extensions["fal_may_block"] = True
            return await self._answer_aside(converted)

    async def _answer_aside(self, request: httpx.Request) -> Any:
        """In a thread, that hears of it when the client gives up."""
        gone = threading.Event()

        def wait(seconds: float | None = None) -> None:
            if gone.wait(seconds):
                raise ClientGoneError("The client gave up while it was let wait.")

        request.extensions["fal_wait"] = wait
        try:
            return await _in_thread(self._answer, request)
        except BaseException:
            gone.set()
            raise


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call what waits in a thread; who is cancelled meanwhile does not wait for its end.

    Without a limit: in reality these wait for a socket, which takes no thread, and among an app's
    own threads (Starlette's) they could wait for each other.
    """
    limiter = anyio.CapacityLimiter(1)
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=limiter)


def _method(pool: type, name: str) -> Any:
    try:
        return pool.__dict__[name]
    except KeyError:
        raise gone(f"httpcore:{pool.__name__}.{name}") from None


def _to_httpx(pool: Any, request: Any) -> httpx.Request:
    url = request.url
    host = url.host.decode("ascii")
    host = f"[{host}]" if ":" in host else host
    port = f":{url.port}" if url.port is not None else ""
    return httpx.Request(
        request.method.decode("ascii"),
        f"{url.scheme.decode('ascii')}://{host}{port}{url.target.decode('ascii')}",
        headers=request.headers,
        stream=request.stream,
        extensions={
            # By which a fault of TLS knows whether the client would mind.
            "fal_ssl_context": getattr(pool, "_ssl_context", None),
            # By which an app's answer can come too late.
            "timeout": request.extensions.get("timeout", {}),
        },
    )


def _to_httpcore(response: httpx.Response, method: str) -> Any:
    reason = response.reason_phrase.encode("latin-1")
    extensions = {"http_version": b"HTTP/1.1", "reason_phrase": reason}
    return httpcore.Response(
        response.status_code,
        headers=response.headers.raw,
        content=_Errors(
            response.stream,
            _promised(response, method),
            may_wait=bool(response.extensions.get("fal_may_wait")),
            ends_by_closing=ends_by_closing(response),
        ),
        extensions=extensions,
    )


def _promised(response: httpx.Response, method: str) -> int | None:
    """How many bytes of a body the response's head promises."""
    length = response.headers.get("content-length", "")
    bodiless = method == "HEAD" or response.status_code in (204, 304)
    return int(length) if length.isdigit() and not bodiless else None


class _Errors:
    """A body that is cut short or breaks off with the errors that httpx knows."""

    def __init__(
        self, stream: Any, promised: int | None, *, may_wait: bool, ends_by_closing: bool
    ) -> None:
        self._stream = stream
        self._promised = promised
        self._may_wait = may_wait
        self._ends_by_closing = ends_by_closing

    def __iter__(self) -> Any:
        received = 0
        try:
            for chunk in self._stream:
                received += len(chunk)
                yield chunk
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except CutShortError as error:
            if not self._ends_by_closing:  # else nobody can tell
                raise self._cut_short(received) from error
        except ConnectionError as error:
            if received != self._promised:  # else the client has all it waits for
                raise httpcore.ReadError(str(error)) from error
        if self._promised is not None and received < self._promised:
            raise self._cut_short(received)

    async def __aiter__(self) -> Any:
        chunks = iter(self)
        while True:  # where the body makes its reader wait, it is not the event loop that waits
            if self._may_wait:
                # Who gives up does not wait for a chunk either: closing the body ends the thread.
                chunk = await _in_thread(next, chunks, None)
            else:
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _cut_short(self, received: int) -> httpcore.RemoteProtocolError:
        if self._promised is None:
            what = "incomplete chunked read"
        else:
            what = f"received {received} bytes, expected {self._promised}"
        return httpcore.RemoteProtocolError(
            f"peer closed connection without sending complete message body ({what})"
        )

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        self._stream.close()
