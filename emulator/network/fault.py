"""One fault, one gate, and how faults strike: without what each kind does (see ``faults``)."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx

from emulator.errors import EmulatorError
from emulator.ledger import Exchange
from emulator.network import bodies
from emulator.network.gate import Doorway
from emulator.network.matching import Target, Which

__all__ = ["Fault", "Flaw", "Gate", "NotConnected", "Stage", "Strike", "Strikes"]

Stage = Literal["lookup", "connect", "handshake", "exchange", "file"]
Flaw = Literal["expired", "wrong_host", "untrusted", "handshake"]


class NotConnected(Exception):  # noqa: N818 - carries an error to where it can be a client's own
    """A client in process did not get as far as sending its request."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(eq=False)
class Fault:
    """One injected fault; :attr:`struck` are the exchanges it hit."""

    #: What goes wrong: ``"status 503"``.
    kind: str
    #: The requests that it is for.
    which: Which
    #: Where in the life of a connection it strikes.
    stage: Stage = "exchange"
    #: Whether the emulated server never sees the request.
    ends: bool = False
    #: Whether it takes time, and goes together with any other.
    delays: bool = False
    #: Whether it is of an answer's body, so that it strikes no websocket, which has none.
    of_body: bool = False
    #: What is raised at its stage, if that is not the exchange.
    error: Callable[[], OSError] = field(default=bodies.reset, repr=False)
    on_request: Callable[[httpx.Request, Exchange], httpx.Response | None] = field(
        default=lambda _request, _exchange: None, repr=False
    )
    on_response: Callable[[httpx.Response, httpx.Request, Exchange], None] = field(
        default=lambda _response, _request, _exchange: None, repr=False
    )
    #: A certificate's flaw, at the handshake.
    flaw: Flaw | None = None
    #: The exchanges that it hit, in order.
    struck: list[Exchange] = field(default_factory=list, repr=False)
    #: How often it struck where there was no exchange: at a file.
    strikes: int = 0
    #: Where the test injected it: file and line.
    place: tuple[str, int] = ("", 0)
    #: How many fitting requests there were.
    seen: int = 0

    def __repr__(self) -> str:
        which = f" ({self.which})" if str(self.which) else ""
        return f"<{type(self).__name__}: {self.kind}{which}, struck {self.count} times>"

    @property
    def count(self) -> int:
        """How often it struck."""
        return len(self.struck) + self.strikes

    @property
    def is_due(self) -> bool:
        """Whether it strikes what fits now: not before the nth, not more often than told."""
        late_enough = self.which.nth is None or self.seen >= self.which.nth
        return late_enough and (self.which.times is None or self.count < self.which.times)

    def strike(self, exchange: Exchange) -> None:
        """Count a strike."""
        self.struck.append(exchange)
        where = f" at {self.which.address}" if self.which.address else ""
        exchange.notes.append(f"fault: {self.kind}{where}")


class Gate(Fault):
    """A fault that holds requests, or their answers, until the test lets them go."""

    def __init__(self, kind: str, which: Which) -> None:
        super().__init__(kind, which, delays=True)
        self._doorway = Doorway()

    @property
    def held(self) -> list[Exchange]:
        """The exchanges that are held now."""
        return self._doorway.waiting

    def wait(self, seconds: float = 10.0) -> Exchange:
        """Wait (in real time) until a request is held.

        Raises:
            EmulatorError: none was within *seconds*.
        """
        exchange = self._doorway.arrival(seconds)
        if exchange is None and self.struck:
            came = self.struck[-1]
            raise EmulatorError(
                f"{came.method} {came.url} came to the gate and was not held: its body has no more "
                "bytes than are to pass before. Take a smaller gate(after=...)."
            )
        if exchange is None:
            raise EmulatorError(
                f"No request came to the gate ({self.which or 'any request'}) within {seconds} s. "
                "Start it in a thread or process of its own before gate.wait(), and look at "
                "fal_ledger.exchanges for what came instead."
            )
        return exchange

    def open(self) -> None:
        """Let go what is held, and hold nothing any more."""
        self._doorway.open()

    def release(self) -> int:
        """Let go what is held, and hold what comes; how many there were."""
        return self._doorway.release()

    def break_down(self) -> None:
        """Reset what is held; called at the end of a test."""
        self._doorway.break_down()

    def hold(self, request: httpx.Request, exchange: Exchange) -> None:
        """Keep this exchange waiting."""
        wait = request.extensions.get("fal_wait")
        self._doorway.hold(exchange, lambda: wait(0) if wait is not None else None)


class Strike:
    """The faults that hit one exchange."""

    def __init__(self, faults: list[Fault], exchange: Exchange) -> None:
        self._faults = faults
        self._exchange = exchange

    @property
    def takes_time(self) -> bool:
        """Whether somebody has to wait."""
        return any(fault.delays for fault in self._faults)

    def before(self, request: httpx.Request) -> httpx.Response | None:
        """What happens to the request; an answer, if the server is not to see it.

        Raises:
            OSError: the connection ends here.
        """
        for fault in self._faults:
            response = fault.on_request(request, self._exchange)
            if response is not None:
                return response
        return None

    def after(self, response: httpx.Response, request: httpx.Request) -> httpx.Response:
        """What happens to the answer."""
        try:
            for fault in self._faults:
                fault.on_response(response, request, self._exchange)
        except BaseException:  # nobody else gets to see it, and it may be a websocket
            response.close()
            raise
        if self.takes_time:
            response.extensions["fal_may_wait"] = True
        return response


class Strikes:
    """The faults of a test, and whom they hit."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._faults)} injected>"

    @property
    def active(self) -> bool:
        """Whether any fault is injected."""
        return bool(self._faults)

    @property
    def holds(self) -> bool:
        """Whether a gate holds something now."""
        return any(isinstance(fault, Gate) and fault.held for fault in self._faults)

    @property
    def unused(self) -> list[Fault]:
        """The faults that never struck, and were to."""
        return [f for f in self._faults if not f.count and not f.which.optional]

    def end(self) -> None:
        """Reset the connections that gates hold; what struck can still be asked for."""
        for fault in self._faults:
            if isinstance(fault, Gate):
                fault.break_down()

    def reset(self) -> None:
        """Undo all faults."""
        self.end()
        self._faults = []

    def strike(self, exchange: Exchange) -> Strike | None:
        """The faults that hit this exchange, those of its connection left out; counted."""
        if not self._faults:
            return None
        with self._lock:
            fitting = [
                fault
                for fault in self._faults
                if _is_of_exchange(fault)
                and fault.which.fits(exchange)
                and not (fault.of_body and exchange.wants_websocket)
            ]
            hit = _together(_due(fitting))
            for fault in hit:
                fault.strike(exchange)
        return Strike(hit, exchange) if hit else None

    def strike_at(
        self, stage: Stage, target: Target, exchange: Callable[[], Exchange]
    ) -> Fault | None:
        """The fault that hits a connection at this stage, before any request; counted.

        Args:
            stage: where the connection stands.
            target: what is known of it.
            exchange: gives the exchange to write it down in.
        """
        if not self._faults:
            return None
        with self._lock:
            fitting = [
                fault
                for fault in self._faults
                if fault.stage == stage
                and not (stage == "connect" and fault.which.is_of_requests)
                and fault.which.fits(target)
            ]
            hit = next(iter(_due(fitting)), None)
            if hit is not None:
                hit.strike(exchange())
            return hit

    def connect(
        self, exchange: Exchange, addresses: Sequence[str], context: ssl.SSLContext | None
    ) -> None:
        """Let a client in process connect: look the name up, try its addresses, shake hands.

        Args:
            exchange: its request.
            addresses: of the host, in order; the first that is not refused is taken.
            context: how it verifies certificates; None: as usual.

        Raises:
            NotConnected: a fault struck.
        """
        lookup = self.strike_at("lookup", exchange, lambda: exchange)
        if lookup is not None:
            raise NotConnected(lookup.error())
        failed: Fault | None = None
        for address in addresses or (None,):
            exchange.address = address
            failed = self.strike_at("connect", exchange, lambda: exchange)
            if failed is None:
                break
        if failed is not None:
            raise NotConnected(failed.error())
        if exchange.url.startswith("https:"):
            flawed = self.strike_at("handshake", exchange, lambda: exchange)
            if flawed is not None and not _accepts(context, flawed.flaw):
                raise NotConnected(flawed.error())


def _is_of_exchange(fault: Fault) -> bool:
    if fault.stage == "exchange":
        return True
    return fault.stage == "connect" and fault.which.is_of_requests


def _due(fitting: Iterable[Fault]) -> list[Fault]:
    """Those whose turn it is; all are counted."""
    due = []
    for fault in fitting:
        fault.seen += 1
        if fault.is_due:
            due.append(fault)
    return due


def _together(faults: list[Fault]) -> list[Fault]:
    """Those that can strike one request: all delays, first; then the first that ends it, or all
    that change its answer. What is left over waits for the next request."""
    ending = next((fault for fault in faults if fault.ends), None)
    delays = [fault for fault in faults if fault.delays]
    if ending is not None:
        return [*delays, ending]
    return [*delays, *(fault for fault in faults if not fault.delays)]


def _accepts(context: ssl.SSLContext | None, flaw: Flaw | None) -> bool:
    """Whether a client with this context goes on in spite of a flaw."""
    if context is None or flaw == "handshake":
        return False
    if flaw == "wrong_host":
        return not context.check_hostname
    return context.verify_mode is ssl.CERT_NONE
