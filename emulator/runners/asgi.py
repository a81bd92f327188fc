"""One request to an ASGI app, whose answer is read while it is made: what a server does for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from typing import Any

import httpx

from emulator.runners.conduit import Conduit

__all__ = ["Answer", "connection_scope"]

Message = MutableMapping[str, Any]
ASGIApp = Callable[..., Any]

#: How long, in seconds, a head waits for its body: most answers are whole by then, and so are
#: handed over at once.
_MOMENT = 0.001


class Answer(httpx.SyncByteStream):
    """The answer of an app on *loop*, read in another thread.

    Args:
        app: the ASGI app.
        request: what it is asked; its body is read.
        loop: the loop that the app runs on.
        cut_short: makes the error for a body that ends before it is whole, of what the app raised.
    """

    def __init__(
        self,
        app: ASGIApp,
        request: httpx.Request,
        loop: asyncio.AbstractEventLoop,
        cut_short: Callable[[BaseException | None], BaseException],
    ) -> None:
        self._app = app
        self._request = request
        self._body = request.read()
        self._loop = loop
        self._cut_short = cut_short
        self._conduit: Conduit[bytes] = Conduit(loop)
        self._changed = self._conduit.changed
        self._conduit.quiet = True
        self._over = asyncio.Event()
        self._status: int | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._missing: int | None = None
        #: Whether its reader has been told that the head is there.
        self._announced = False
        self._asked = self._complete = self._done = self._closed = False
        #: What the app raised.
        self.error: BaseException | None = None
        #: Waits until a descriptor can be read, for a reader that has something else to look at.
        self.wait_with: Callable[[int], None] | None = None

    # --- in the thread that reads ----------------------------------------------------------------

    def begin(self) -> None:
        """Ask the app, and wait until it has sent its head, or has ended."""
        self._loop.call_soon_threadsafe(self._start)
        with self._changed:
            self._changed.wait_for(lambda: self._announced or self._done)

    @property
    def has_head(self) -> bool:
        """Whether the app has sent its head."""
        return self._status is not None

    @property
    def response(self) -> httpx.Response:
        """The answer, its head being there; a 500 if the app has ended without one."""
        if self._status is None:
            return httpx.Response(500, text="Internal Server Error")
        return httpx.Response(self._status, headers=self._headers, stream=self)

    def __iter__(self) -> Iterator[bytes]:
        try:
            while (chunk := self._next()) is not None:
                yield chunk
        finally:
            self._conduit.close()

    def close(self) -> None:
        """The client goes away; from any thread."""
        with self._changed:
            if self._done or self._closed:
                return
            self._closed = True
            self._conduit.tell()
        with suppress(RuntimeError):  # the loop is closed: nobody waits there
            self._loop.call_soon_threadsafe(self._disconnect)

    def _next(self) -> bytes | None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_news, 0 if self.wait_with else None)
                done = self._done
                if self._closed:
                    raise self._cut_short(None)
            chunk = self._conduit.take()
            if chunk is not None:
                return chunk
            if done and not self._complete:
                raise self._cut_short(self.error)
            if done:
                return None
            if self.wait_with is not None and not self._has_news():
                self.wait_with(self._conduit.fileno())
                self._conduit.settle()

    def _has_news(self) -> bool:
        return bool(self._conduit) or self._done or self._closed

    # --- on the loop -----------------------------------------------------------------------------

    def _start(self) -> None:
        call = self._app(self._scope(), self._receive, self._send)
        task = self._loop.create_task(call, name=f"{self._request.method} {self._request.url.path}")
        task.add_done_callback(self._ended)

    def _scope(self) -> dict[str, Any]:
        method = self._request.method
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": method,
            **connection_scope(self._request),
        }

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._closed:
            return  # as uvicorn, which has nobody to send it to
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message.get("headers", []))
            self._missing = _declared_length(self._headers)
            self._loop.call_later(_MOMENT, self._announce)
        elif message["type"] == "http.response.body":
            body = bytes(message.get("body", b""))
            ends = not message.get("more_body", False)
            self._check_length(len(body), ends)
            if ends:
                self._complete = True
                self._over.set()
            if body and self._request.method != "HEAD":
                await self._conduit.put(body)

    def _check_length(self, size: int, ends: bool) -> None:
        """Refuse another length than the head says, as uvicorn does."""
        if self._missing is None or self._request.method == "HEAD":
            return
        self._missing -= size
        if self._missing < 0 or (ends and self._missing):
            how = "longer" if self._missing < 0 else "shorter"
            raise RuntimeError(f"Response content {how} than Content-Length")

    def _announce(self) -> None:
        with self._changed:
            self._announced = True
            self._conduit.quiet = False
            self._conduit.tell()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.error = asyncio.CancelledError() if task.cancelled() else task.exception()
        with self._changed:
            self._done = True
        self._announce()

    def _disconnect(self) -> None:
        self._over.set()
        self._conduit.release()


def _declared_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    for name, value in headers:
        if name.lower() == b"content-length":
            return int(value)
    return None


def connection_scope(request: httpx.Request) -> dict[str, Any]:
    """What an ASGI app is told of the connection that a request came over."""
    return {
        "http_version": "1.1",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.split(b"?")[0],
        "query_string": request.url.query,
        "server": (request.url.host, request.url.port),
        "client": ("127.0.0.1", 123),
        "root_path": "",
    }
