"""Faults that a test injects: what the network and servers do wrong, for every client.

Each strikes the requests that fit its matchers, and is undone with the test. They go together: all
that delay or change an answer strike one request, of those that end it only the first, and the next
one waits for the next request.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import httpx

from emulator.errors import EmulatorError
from emulator.ledger import Exchange
from emulator.network import bodies
from emulator.network.fault import Fault, Flaw, Gate, Strikes
from emulator.network.matching import Which
from emulator.network.reply import Body, json_reply, reply

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from emulator.network.matching import Matchers
    from emulator.runners.killing import Killer

__all__ = ["Fault", "Faults", "Gate"]

Side = Literal["response", "request"]

#: What OpenSSL says of a certificate's flaw.
_FLAWS: dict[Flaw, str] = {
    "expired": "certificate has expired",
    "wrong_host": "Hostname mismatch",
    "untrusted": "unable to get local issuer certificate",
    "handshake": "sslv3 alert handshake failure",
}


class Faults(Strikes):
    """Injects faults.

    Every method takes these matchers by name, and returns the :class:`Fault`:

    * ``times``: how many requests it strikes, default all; ``nth``: from which one on, counted
      from 1 (alone: that one only);
    * ``host`` (``"*.example.com"`` fits by its end), ``method``, ``path`` (``"/models/*"`` fits by
      its beginning);
    * ``runner``: the runner, or its name, that sends the request;
    * ``address``: one of several addresses that a host resolves to (``fal_emulator.resolver.set``);
    * ``optional=True``: it need not strike; one that never struck is reported otherwise.

    Args:
        sleep: how a delay passes; on a stopped clock it moves the clock.
    """

    def __init__(self, sleep: Callable[[float], None]) -> None:
        super().__init__()
        self._sleep = sleep
        #: Kills runners; set where there are some.
        self.killer: Killer | None = None

    # --- instead of an answer --------------------------------------------------------------------

    def status(
        self,
        code: int,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | str | None = None,
        **which: Unpack[Matchers],
    ) -> Fault:
        """Answer with this HTTP status; the server never sees the request.

        Args:
            code: 400 to 599.
            headers: of the answer, for example ``{"Retry-After": "30"}``.
            body: default: a JSON ``{"detail": ...}``.
            which: the matchers.
        """
        if not 400 <= code <= 599:
            raise EmulatorError(f"{code} is no error status. Write for example status(503).")
        fields = list((headers or {}).items())

        def answer(_request: httpx.Request, _exchange: Exchange) -> httpx.Response:
            if body is not None:
                return reply(code, body, headers=fields)
            return json_reply({"detail": f"{code}, injected by fal_faults"}, code, fields)

        return self._add(Fault(f"status {code}", Which.of(which), ends=True, on_request=answer))

    def timeout(self, after: int | None = None, **which: Unpack[Matchers]) -> Fault:
        """Let the client's time-out strike at once, without waiting for it.

        Without *after*, *method* and *path* it strikes as the client connects, else as it waits
        for the answer. A client over a socket that is on an event loop, or has no time-out, is
        given half a second there; then its connection is reset.

        Args:
            after: let the server answer and so many bytes of its body come first; with 0 the
                server has handled the request and nothing of its answer comes.
            which: the matchers.
        """
        chosen = Which.of(which)
        if after is None:
            at_once = Fault("timed out", chosen, ends=True, error=bodies.timed_out)
            at_once.stage = "exchange" if chosen.is_of_requests else "connect"
            at_once.on_request = _raising(bodies.timed_out)
            return self._add(at_once)
        count = _whole(after, "timeout(after=...)")

        def stall(response: httpx.Response, request: httpx.Request, _: Exchange) -> None:
            if count == 0:
                response.close()
                raise bodies.timed_out()
            hasten = request.extensions.get("fal_hasten", lambda: None)
            _change(response, lambda chunks: bodies.stalled(chunks, count, hasten))

        fault = Fault(f"timed out after {count} bytes", chosen, of_body=count > 0)
        fault.on_response = stall
        return self._add(fault)

    # --- connecting ------------------------------------------------------------------------------

    def refuse(self, **which: Unpack[Matchers]) -> Fault:
        """Refuse the connection: nobody listens.

        With *method* or *path* it is reset instead over a socket, where these are known only once
        the client has connected.
        """

        def error() -> OSError:
            return ConnectionRefusedError(111, "Connection refused (injected by fal_faults)")

        fault = Fault("refused", Which.of(which), "connect", ends=True, error=error)
        fault.on_request = _raising(error)
        return self._add(fault)

    def dns_failure(self, temporary: bool = False, **which: Unpack[Matchers]) -> Fault:
        """Fail to resolve the host's name.

        Args:
            temporary: ``EAI_AGAIN`` (no name server answers) instead of ``EAI_NONAME`` (no such
                name).
            which: the matchers; not *method*, *path* or *address*.
        """
        code = socket.EAI_AGAIN if temporary else socket.EAI_NONAME
        text = "Temporary failure in name resolution" if temporary else "Name or service not known"

        def error() -> OSError:
            return socket.gaierror(code, f"{text} (injected by fal_faults)")

        fault = Fault("DNS failure", _of_connections(which, "dns_failure", "address"), "lookup")
        fault.error = error
        return self._add(fault)

    def tls_failure(self, flaw: Flaw = "expired", **which: Unpack[Matchers]) -> Fault:
        """Fail the TLS handshake.

        A client that does not verify certificates notices nothing, except of ``"handshake"``.

        Args:
            flaw: the server's certificate is ``"expired"``, of another host (``"wrong_host"``) or
                of an authority that nobody knows (``"untrusted"``); or the server gives up
                (``"handshake"``).
            which: the matchers; not *method* or *path*.
        """
        if flaw not in _FLAWS:
            raise EmulatorError(f"{flaw!r} is no flaw of TLS. There are {', '.join(_FLAWS)}.")
        chosen = _of_connections(which, "tls_failure")
        text = f"{_FLAWS[flaw]} (injected by fal_faults)"

        def error() -> OSError:
            if flaw == "handshake":
                return ssl.SSLError(1, f"[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] {text}")
            failed = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"
            return ssl.SSLCertVerificationError(1, f"{failed}: {text}")

        fault = Fault(f"TLS failure, {flaw}", chosen, "handshake", error=error, flaw=flaw)
        return self._add(fault)

    # --- breaking off ----------------------------------------------------------------------------

    def drop(
        self,
        after: int | Literal["body"] = 0,
        of: Side = "response",
        **which: Unpack[Matchers],
    ) -> Fault:
        """Reset the connection.

        Args:
            after: so many bytes of the body; ``"body"``: all of it. A body of no more than *after*
                bytes arrives whole.
            of: ``"response"``: the server has handled the request by then, and with 0 nothing of
                its answer comes. ``"request"``: the server never gets to see it.
            which: the matchers.
        """
        count = None if after == "body" else _whole(after, "drop(after=...)")
        where = "its body" if count is None else f"{count} bytes"
        kind = f"dropped after {where}" + (" of the request" if _is_request(of) else "")
        fault = Fault(kind, Which.of(which))

        def cut_request(request: httpx.Request, exchange: Exchange) -> None:
            if count == 0:
                raise bodies.reset()
            sent = list(_beyond(request.stream, count))
            size = sum(map(len, sent))
            if count is not None and size <= count:
                exchange.notes.append(f"its body had only {size} bytes, and arrived")
                request.stream = Body(sent)
                return
            raise bodies.reset()

        def cut_response(response: httpx.Response, _: httpx.Request, __: Exchange) -> None:
            if count == 0:
                response.close()
                raise bodies.reset()
            _change(response, lambda chunks: bodies.reset_after(chunks, count))

        if _is_request(of):
            fault.on_request = cut_request
            fault.ends = True
        else:
            fault.on_response = cut_response
            fault.of_body = count != 0
        return self._add(fault)

    def truncate(self, after: int = 0, **which: Unpack[Matchers]) -> Fault:
        """End the answer's body after *after* bytes, closing the connection in order.

        The Content-Length, if there is one, still tells the whole length.
        """
        count = _whole(after, "truncate(after=...)")

        def cut(response: httpx.Response, _: httpx.Request, __: Exchange) -> None:
            _change(response, lambda chunks: bodies.truncated(chunks, count))

        fault = Fault(f"truncated after {count} bytes", Which.of(which), of_body=True)
        fault.on_response = cut
        return self._add(fault)

    # --- the end of a runner ---------------------------------------------------------------------

    def kill_runner(
        self,
        after: int | Literal["body"] = 0,
        of: Side = "response",
        *,
        file: str | None = None,
        **which: Unpack[Matchers],
    ) -> Fault:
        """Kill a runner, as SIGKILL does, at a point of what it is at work on.

        At a point of a request that it makes: everything that came before has arrived, and its
        process waits for more. Or at a file that it writes: then as soon as the file is there,
        which may be a little later. Only a runner in a process can be killed at a point.

        Args:
            after: so many bytes of the body; ``"body"``: all of it. A body of no more than *after*
                bytes passes. Of a file: as soon as it has so many.
            of: ``"response"``: the server has handled the request by then. ``"request"``: it has
                not.
            file: a path as an app has it, with ``*`` for anything: ``"/data/models/*.bin"``. It is
                the newest runner that is killed, or the one that *runner* names; at a file in
                ``/tmp`` the one whose it is.
            which: the matchers; with *file* only *runner*, *times* and *optional*.
        """
        chosen = Which.of(which)
        killer = self.killer
        assert killer is not None
        if file is not None:
            fault = Fault(f"runner killed at {file}", chosen, stage="file")
            size = _whole(after, "kill_runner(after=...)")
            killer.at_file(file, size, list(which), fault)
            return self._add(fault)
        count = None if after == "body" else _whole(after, "kill_runner(after=...)")
        where = "its body" if count is None else f"{count} bytes"
        fault = Fault(f"runner killed after {where} of the {of}", chosen)

        def kill(request: httpx.Request, exchange: Exchange) -> None:
            request.extensions.get("fal_arrived", lambda: None)()
            killer.at_request(
                exchange, f"after {where} of the {of}, {exchange.method} {exchange.url}"
            )
            raise bodies.reset()

        def before(request: httpx.Request, exchange: Exchange) -> None:
            if count == 0:
                kill(request, exchange)
            chunks: Any = request.stream
            request.stream = Body(bodies.held(chunks, count, lambda: kill(request, exchange)))

        def after_it(response: httpx.Response, request: httpx.Request, exchange: Exchange) -> None:
            if count == 0:
                response.close()
                kill(request, exchange)
            _change(
                response,
                lambda chunks: bodies.held(chunks, count, lambda: kill(request, exchange)),
            )

        if _is_request(of):
            fault.on_request = before
        else:
            fault.on_response = after_it
            fault.of_body = count != 0
        return self._add(fault)

    def end(self) -> None:
        """Reset the connections that gates hold, and watch no files any more."""
        super().end()
        if self.killer is not None:
            self.killer.end()

    # --- what comes is late or wrong -------------------------------------------------------------

    def slow(
        self,
        seconds: float | timedelta | None = None,
        bytes_per_second: float | None = None,
        of: Side = "response",
        **which: Unpack[Matchers],
    ) -> Fault:
        """Take time: on a stopped clock the clock moves, nobody waits.

        Args:
            seconds: before the server sees the request; default 1 where no speed is given.
            bytes_per_second: the speed of the body. Schedules of the clock (``fal_clock.on``) are
                kept while it is under way, to a tenth of a second.
            of: whose body.
            which: the matchers.
        """
        if bytes_per_second is not None and bytes_per_second <= 0:
            raise EmulatorError(
                "slow(bytes_per_second=...) has to be more than 0. A body that never moves on is "
                "timeout(after=...), or gate(after=...) until you let it go."
            )
        if seconds is None:
            seconds = 0.0 if bytes_per_second else 1.0
        delay = seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
        parts = [f"by {delay:g} s"] if delay or not bytes_per_second else []
        parts += [f"{bytes_per_second:g} bytes/s"] if bytes_per_second else []
        is_request = _is_request(of)
        fault = Fault(f"slow {', '.join(parts)}", Which.of(which), delays=True)

        def slowly(chunks: Iterable[bytes]) -> Iterable[bytes]:
            return bodies.slowed(chunks, bytes_per_second or 0, self._sleep)

        def before(request: httpx.Request, _: Exchange) -> None:
            if delay:
                self._sleep(delay)
            if bytes_per_second and is_request:
                request.stream = Body(slowly(request.stream))  # type: ignore[arg-type]

        def after(response: httpx.Response, _: httpx.Request, __: Exchange) -> None:
            if bytes_per_second and not is_request:
                _change(response, slowly)

        fault.on_request, fault.on_response = before, after
        fault.of_body = not delay and not is_request
        return self._add(fault)

    def gate(self, after: int = 0, of: Side = "response", **which: Unpack[Matchers]) -> Gate:
        """Hold matching exchanges until the test lets them go: ``wait()``, then ``open()``.

        Args:
            after: so many bytes of the body pass before; a body of no more than that is not held.
                With 0 nothing of the answer comes, or nothing of the request is handled.
            of: ``"response"``: the server has handled the request. ``"request"``: it has not.
            which: the matchers.
        """
        count = _whole(after, "gate(after=...)")
        where = f"gate after {count} bytes" if count else "gate"
        gate = Gate(f"{where} of the {of}", Which.of(which))

        def before(request: httpx.Request, exchange: Exchange) -> None:
            if count == 0:
                return gate.hold(request, exchange)
            chunks: Any = request.stream
            request.stream = Body(bodies.held(chunks, count, lambda: gate.hold(request, exchange)))
            return None

        def after_it(response: httpx.Response, request: httpx.Request, exchange: Exchange) -> None:
            if count == 0:
                return gate.hold(request, exchange)
            return _change(
                response,
                lambda chunks: bodies.held(chunks, count, lambda: gate.hold(request, exchange)),
            )

        if _is_request(of):
            gate.on_request = before
        else:
            gate.on_response = after_it
            gate.of_body = count != 0
        self._add(gate)
        return gate

    def corrupt(self, of: Side = "response", **which: Unpack[Matchers]) -> Fault:
        """Flip the lowest bit of every 64th byte of the body; its length stays."""
        fault = Fault("corrupted request" if _is_request(of) else "corrupted", Which.of(which))

        def before(request: httpx.Request, _: Exchange) -> None:
            request.stream = Body(bodies.flipped(request.stream))  # type: ignore[arg-type]

        def after(response: httpx.Response, _: httpx.Request, __: Exchange) -> None:
            _change(response, bodies.flipped)

        if _is_request(of):
            fault.on_request = before
        else:
            fault.on_response = after
            fault.of_body = True
        return self._add(fault)

    def content_length(self, length: int | None, **which: Unpack[Matchers]) -> Fault:
        """Lie about the answer's length.

        Args:
            length: what the Content-Length says; a body that is longer ends there, one that is
                shorter ends early. None: there is none, and the body ends with the connection.
            which: the matchers.
        """
        if length is not None:
            _whole(length, "content_length(...)")
        what = "no Content-Length" if length is None else f"Content-Length {length}"

        def lie(response: httpx.Response, request: httpx.Request, _: Exchange) -> None:
            if length is None:
                response.headers.pop("content-length", None)
                response.headers["connection"] = "close"
                return
            response.headers["content-length"] = str(length)
            response.headers.pop("transfer-encoding", None)
            if request.method != "HEAD":
                _change(response, lambda chunks: bodies.exactly(chunks, length))

        return self._add(Fault(what, Which.of(which), of_body=True, on_response=lie))

    def _add(self, fault: Fault) -> Fault:
        fault.place = _place()
        self._faults = [*self._faults, fault]
        return fault


def _of_connections(given: Any, method: str, *further: str) -> Which:
    known_too_late = [name for name in ("method", "path", *further) if given.get(name) is not None]
    if known_too_late:
        raise EmulatorError(
            f"{method}() strikes before the client's {known_too_late[0]} is known. Leave it out, "
            f'and write for example {method}(host="example.com", nth=2).'
        )
    return Which.of(given)


def _whole(count: object, where: str) -> int:
    if not isinstance(count, int) or count < 0:
        raise EmulatorError(f"{where} takes a number of bytes, not {count!r}.")
    return count


def _is_request(of: Side) -> bool:
    if of not in ("request", "response"):
        raise EmulatorError(f"A fault is of the 'request' or of the 'response', not of {of!r}.")
    return of == "request"


def _raising(error: Callable[[], OSError]) -> Callable[[httpx.Request, Exchange], None]:
    def raise_(_request: httpx.Request, _exchange: Exchange) -> None:
        raise error()

    return raise_


def _change(response: httpx.Response, how: Callable[[Any], Iterable[bytes]]) -> None:
    response.stream = Body(how(response.stream), inner=response.stream)


def _beyond(stream: Any, count: int | None) -> Iterable[bytes]:
    """As many bytes and one more, if there are more; all with None."""
    return stream if count is None else bodies.beginning(stream, count + 1)


def _place() -> tuple[str, int]:
    """The line of the test that injects a fault."""
    ours = os.path.dirname(os.path.dirname(__file__)) + os.sep
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
