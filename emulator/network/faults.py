"""Faults that a test injects: what the network and servers do wrong, for every client.

Each applies to the requests that match it, the next *times* of them (default: all), and is undone
with the test. A fault strikes before the emulated server sees the request unless it says otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import httpx

from emulator.errors import EmulatorError
from emulator.ledger import Exchange, matches_path
from emulator.network.reply import Body, json_reply

__all__ = ["Fault", "Faults", "Strike"]


@dataclass(eq=False)
class Fault:
    """One injected fault; :attr:`struck` are the exchanges it hit."""

    kind: str
    times: int | None
    host: str | None
    method: str | None
    path: str | None
    before: Callable[[], httpx.Response | None] = field(default=lambda: None, repr=False)
    after: Callable[[httpx.Response], httpx.Response] = field(default=lambda r: r, repr=False)
    struck: list[Exchange] = field(default_factory=list, repr=False)
    #: Whether it strikes already when a socket connects.
    connecting: bool = False
    #: Whether the emulated server never sees the request.
    ends: bool = False
    #: Whether it only takes time, and goes together with any other.
    delays: bool = False

    @property
    def is_left(self) -> bool:
        """Whether it has not struck as often as it shall."""
        return self.times is None or len(self.struck) < self.times

    def matches(self, exchange: Exchange) -> bool:
        """Whether it strikes this exchange."""
        return (
            self.is_left
            and (self.host is None or self.host == exchange.host)
            and (self.method is None or self.method.upper() == exchange.method)
            and (self.path is None or matches_path(self.path, exchange.path))
        )


class Strike:
    """The faults that hit one exchange."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults

    @property
    def takes_time(self) -> bool:
        """Whether the answer is delayed."""
        return any(fault.delays for fault in self._faults)

    def before(self) -> httpx.Response | None:
        """What happens instead of an answer; may raise an ``OSError``."""
        for fault in self._faults:
            response = fault.before()
            if response is not None:
                return response
        return None

    def after(self, response: httpx.Response) -> httpx.Response:
        """What happens to the answer."""
        for fault in self._faults:
            response = fault.after(response)
        return response


class Faults:
    """Injects faults.

    Every method takes ``times`` (how many requests it hits, default all), ``host``, ``method`` and
    ``path`` (one that ends in ``*`` is a prefix) and returns the :class:`Fault`.

    Args:
        sleep: how a delay passes; on a stopped clock it moves the clock.
    """

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Faults: {len(self._faults)} injected>"

    def reset(self) -> None:
        """Undo all faults."""
        self._faults = []

    def strike(self, exchange: Exchange) -> Strike | None:
        """The faults that hit this exchange; counted."""
        if not self._faults:
            return None
        with self._lock:
            hit = _together([fault for fault in self._faults if fault.matches(exchange)])
            for fault in hit:
                fault.struck.append(exchange)
                exchange.notes.append(f"fault: {fault.kind}")
        return Strike(hit) if hit else None

    def strike_connection(self, host: str) -> Fault | None:
        """The fault that hits a connection to *host* before any request, if one does."""
        for fault in self._faults:
            anything = fault.method is None and fault.path is None
            if fault.is_left and anything and fault.connecting and fault.host in (None, host):
                return fault
        return None

    @property
    def active(self) -> bool:
        """Whether any fault is injected."""
        return bool(self._faults)

    def status(
        self,
        code: int,
        times: int | None = None,
        host: str | None = None,
        method: str | None = None,
        path: str | None = None,
    ) -> Fault:
        """Answer with this HTTP status and a JSON ``{"detail": ...}``."""
        if not 400 <= code <= 599:
            raise EmulatorError(f"{code} is no error status. Write for example status(503).")

        def before() -> httpx.Response:
            return json_reply({"detail": f"{code}, injected by fal_faults"}, code)

        return self._add(
            Fault(f"status {code}", times, host, method, path, before=before, ends=True)
        )

    def refuse(
        self,
        times: int | None = None,
        host: str | None = None,
        method: str | None = None,
        path: str | None = None,
    ) -> Fault:
        """Refuse the connection: nobody listens."""

        def before() -> None:
            raise ConnectionRefusedError(111, "Connection refused (injected by fal_faults)")

        return self._add(
            Fault("refused", times, host, method, path, before=before, connecting=True, ends=True)
        )

    def timeout(
        self,
        times: int | None = None,
        host: str | None = None,
        method: str | None = None,
        path: str | None = None,
    ) -> Fault:
        """Let the client's time-out strike at once, without waiting for it."""

        def before() -> None:
            raise TimeoutError("timed out (injected by fal_faults)")

        return self._add(
            Fault("timed out", times, host, method, path, before=before, connecting=True, ends=True)
        )

    def drop(
        self,
        after: int = 0,
        times: int | None = None,
        host: str | None = None,
        method: str | None = None,
        path: str | None = None,
    ) -> Fault:
        """Reset the connection after *after* bytes of the response's body.

        The server has handled the request by then; with 0 the client gets no answer at all, and a
        body of no more than *after* bytes arrives whole.
        """

        def cut(response: httpx.Response) -> httpx.Response:
            if after <= 0:
                response.close()
                raise _reset()
            response.stream = Body(_first(response.stream, after))  # type: ignore[arg-type]
            return response

        return self._add(
            Fault(f"dropped after {after} bytes", times, host, method, path, after=cut)
        )

    def slow(
        self,
        seconds: float | timedelta = 1.0,
        times: int | None = None,
        host: str | None = None,
        method: str | None = None,
        path: str | None = None,
    ) -> Fault:
        """Take this long before answering: on a stopped clock the clock moves, nobody waits."""
        delay = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds

        def before() -> None:
            self._sleep(delay)

        return self._add(
            Fault(f"slow by {delay} s", times, host, method, path, before=before, delays=True)
        )

    def corrupt(
        self,
        times: int | None = None,
        host: str | None = None,
        method: str | None = None,
        path: str | None = None,
    ) -> Fault:
        """Flip the lowest bit of every 64th byte of the response's body; its length stays."""

        def damage(response: httpx.Response) -> httpx.Response:
            response.stream = Body(_flip(response.stream))  # type: ignore[arg-type]
            return response

        return self._add(Fault("corrupted", times, host, method, path, after=damage))

    @property
    def unused(self) -> list[Fault]:
        """The faults that never struck."""
        return [fault for fault in self._faults if not fault.struck]

    def _add(self, fault: Fault) -> Fault:
        if fault.times is not None and fault.times < 1:
            raise EmulatorError(
                f"A fault that strikes {fault.times} times is none. Leave out times for all "
                "requests, or write for example times=1."
            )
        self._faults.append(fault)
        return fault


def _together(faults: list[Fault]) -> list[Fault]:
    """Those that can strike one request: all delays, first; then the first that ends it, or all
    that change its answer. What is left over waits for the next request."""
    ending = next((fault for fault in faults if fault.ends), None)
    delays = [fault for fault in faults if fault.delays]
    if ending is not None:
        return [*delays, ending]
    return [*delays, *(fault for fault in faults if not fault.delays)]


def _reset() -> ConnectionResetError:
    return ConnectionResetError(104, "Connection reset by peer (injected by fal_faults)")


def _first(stream: Iterator[bytes], count: int) -> Iterator[bytes]:
    for chunk in stream:
        if len(chunk) > count:
            yield bytes(chunk[:count])
            raise _reset()
        count -= len(chunk)
        yield chunk


def _flip(stream: Iterator[bytes]) -> Iterator[bytes]:
    position = 0
    for chunk in stream:
        damaged = bytearray(chunk)
        for index in range(-position % 64, len(damaged), 64):
            damaged[index] ^= 1
        position += len(damaged)
        yield bytes(damaged)
