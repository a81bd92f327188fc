"""The one router: every request of every client passes through :meth:`Router.dispatch`.

In this order: faults that the test injects, the user's own routes, everybody else's servers
(origins), fal's hosts. What none of them answers is refused, with the line to write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Protocol

import httpx

from emulator.errors import UnknownHostError
from emulator.ledger import Exchange, Ledger, redact_headers
from emulator.network.fault import Strike
from emulator.network.faults import Faults
from emulator.network.peer import unknown_host
from emulator.network.reply import Body, reply
from emulator.network.routes import PassThrough, Routes

__all__ = ["Host", "LetThrough", "Router", "WouldBlock"]


class WouldBlock(Exception):  # noqa: N818 - no error: the caller asks again from a thread
    """A handler has to wait, and its caller runs on an event loop."""


class LetThrough(Exception):  # noqa: N818 - no error: the client takes the real network
    """A request that the test lets through, found out only by asking its routes."""


class Host(Protocol):
    """Something that answers for host names."""

    def answers(self, host: str) -> bool:
        """Whether requests for *host* are for this one."""

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response | None:
        """The response; None when it has nothing at this URL."""


class Router:
    """Decides who answers a request, and writes down what happened."""

    def __init__(self, ledger: Ledger, routes: Routes, faults: Faults) -> None:
        self.ledger = ledger
        self.routes = routes
        self.faults = faults
        #: Asked in order, after the user's routes.
        self.hosts: list[Host] = []
        #: Whether a host may be reached for real where no route of the user's matches.
        self.lets_through: Callable[[str], bool] = lambda _host: False
        #: Called before each request, its exchange not yet open.
        self.before_request: Callable[[], None] = lambda: None
        #: The addresses of a host, in the order in which clients try them.
        self.addresses: Callable[[str], Sequence[str]] = lambda _host: ()

    def passes(self, host: str) -> bool:
        """Whether requests for a host need not be asked about: it is let through as a whole."""
        return self.lets_through(host) and not self.routes.may_answer(host)

    def answers(self, host: str) -> bool:
        """Whether a request for this host name has a chance of being answered."""
        return self.routes.may_answer(host) or any(h.answers(host) for h in self.hosts)

    def dispatch(
        self, request: httpx.Request, client: str, runner: str | None = None
    ) -> httpx.Response:
        """Answer a request.

        Raises:
            UnknownHostError: nothing answers this URL.
            NotConnected: a fault struck a client in process as it connected.
            OSError: another one did (reset, timed out).
            LetThrough: the request is to take the real network.
            WouldBlock: the handler must wait and the request may not
                (``extensions["fal_may_block"]`` is False).
        """
        exchange, strike = self._open(request, client, runner)
        if strike and strike.takes_time and request.extensions.get("fal_may_block") is False:
            raise WouldBlock
        response = strike.before(request) if strike else None
        if response is None:
            response = self._answer(request, exchange)
        if strike:
            response = strike.after(response, request)
        return _watch(response, exchange)

    def _open(
        self, request: httpx.Request, client: str, runner: str | None
    ) -> tuple[Exchange, Strike | None]:
        """Write a request down and see what strikes it; once, also if it comes back to wait."""
        opened: tuple[Exchange, Strike | None] | None = request.extensions.get("fal_exchange")
        if opened is None:
            self.before_request()
            headers = request.headers.multi_items()
            exchange = self.ledger.open(client, request.method, str(request.url), headers, runner)
            request.stream = _Counted(request.stream, exchange)
            strike = self._strike(request, exchange) if self.faults.active else None
            opened = request.extensions["fal_exchange"] = (exchange, strike)
        return opened

    def _strike(self, request: httpx.Request, exchange: Exchange) -> Strike | None:
        """See what strikes a request; one in process connects in thought, over the wire it has."""
        if exchange.client == "wire":
            peer = request.extensions.get("fal_peer")
            exchange.address = peer.address if peer is not None else None
        else:
            context = request.extensions.get("fal_ssl_context")
            self.faults.connect(exchange, self.addresses(exchange.host), context)
        return self.faults.strike(exchange)

    def _answer(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        host = request.url.host
        if self.routes.may_answer(host):
            try:
                response = self.routes.answer(request)
            except PassThrough:
                raise LetThrough from None
            if response is not None:
                return response
        for candidate in self.hosts:
            if candidate.answers(host):
                response = candidate.handle(request, exchange)
                if response is not None:
                    return response
        if self.lets_through(host):
            exchange.notes.append("let through to the real host")
            raise LetThrough
        raise self._refuse(request, exchange)

    def _refuse(self, request: httpx.Request, exchange: Exchange) -> UnknownHostError:
        """The error for a request that nobody answers; also put into the ledger."""
        url = exchange.url
        error = unknown_host(request.url.host, f"{request.method} {url}", url, request.method)
        near = [place for host in self.hosts for place in _served_at(host, request.url.host)]
        exchange.notes.append(
            f'refused: nothing answers this URL. Write fal_origin.serve("{url}", content=b"...")'
        )
        if near:
            exchange.notes.append(f"at {request.url.host} is served: {', '.join(near)}")
        # For clients behind a socket, which cannot be handed an exception.
        error.fal_response = reply(502, str(error), content_type="text/plain; charset=utf-8")
        exchange.status = 502
        return error


def _served_at(host: Host, name: str) -> list[str]:
    """The URLs that a host has at this name, where it can tell."""
    served_at = getattr(host, "served_at", None)
    return [] if served_at is None else list(served_at(name))


class _Counted(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request body that counts what is really taken from it."""

    def __init__(self, stream: object, exchange: Exchange) -> None:
        self._stream = stream
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        for chunk in self._stream:  # type: ignore[attr-defined]
            exchange.bytes_received += len(chunk)
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()


def _watch(response: httpx.Response, exchange: Exchange) -> httpx.Response:
    """Write the answer down, and its bytes as they are taken."""
    exchange.status = response.status_code
    exchange.response_headers = redact_headers(response.headers.multi_items())

    def count(size: int) -> None:
        exchange.bytes_sent += size

    stream = response.stream
    if isinstance(stream, Body) and stream.count is None:
        stream.count = count
    else:
        response.stream = Body(stream, count)  # type: ignore[arg-type]
    return response
