"""Webhooks as the platform sends them: at once, and again until they are taken [facts §6.4].

A delivery is a discrete simulation, as a deployment is. Its first attempt goes out in the
background; every other is an appointment of the clock, and the clock goes on when the attempt is
over. A time-out is an appointment too: it strikes where the test moves the clock past it, or a
receiver sleeps past it on a stopped one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal

import httpx

from emulator.checks import TIME, listed, times
from emulator.errors import EmulatorError, UnknownHostError
from emulator.file_times import real_now
from emulator.fleets.webhook_messages import Keys, body_of
from emulator.ledger import masked
from emulator.network.fault import NotConnected
from emulator.network.resolver import is_local
from emulator.network.router import LetThrough
from emulator.patience import ON_A_STOPPED_CLOCK

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.schedule import Appointment
    from emulator.settings import Settings

__all__ = ["WEBHOOK", "Attempt", "Delivery", "Webhooks", "post"]

Dispatch = Callable[[httpx.Request, str], httpx.Response]

#: The request extension in which a receiver of ours finds the attempt that it is.
WEBHOOK = "fal_webhook_attempt"
#: What the ledger calls the platform as a client.
_CLIENT = "fal"
#: Real seconds for which the clock stands still for a receiver that does not answer, and for which
#: one gets to answer after all when its time is over by the clock alone.
_PATIENCE = 5.0
_GRACE = 2.0
_CHECK_SECONDS = 0.02


@dataclass(eq=False)
class Attempt:
    """One try to deliver a webhook."""

    number: int
    #: When it began, by the clock.
    at: datetime
    #: Of the receiver's answer.
    status: int | None = None
    #: Why it failed: "answered 500", "timed out after 15 s".
    problem: str | None = None
    is_over: bool = False
    #: Whether the receiver is done with it, too: later than that after a time-out.
    is_done: bool = False
    limit: Appointment | None = field(default=None, repr=False)
    #: In which it is sent.
    thread: int | None = field(default=None, repr=False)


@dataclass(eq=False)
class Delivery:
    """A webhook on its way to its receiver."""

    #: The receiver's.
    url: str
    #: Of the request whose end it tells.
    request_id: str
    #: Of that request's last attempt.
    gateway_request_id: str
    #: Of the account whose request it is.
    user_id: str
    #: The JSON that is signed and sent.
    body: bytes = field(repr=False)
    #: What became of it so far, the first attempt first.
    attempts: list[Attempt] = field(default_factory=list)
    #: ``"failed"``: given up; ``"dropped"``: the test ended before.
    state: Literal["pending", "delivered", "failed", "dropped"] = "pending"
    #: When it is sent again, by the clock; None while an attempt is under way, and in the end.
    next_at: datetime | None = None
    appointment: Appointment | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        tried = f"tried {times(len(self.attempts))}"
        problem = self.attempts[-1].problem if self.attempts else None
        again = f", again at {self.next_at:{TIME}}" if self.next_at else ""
        why = f" ({problem})" if problem else ""
        return f"<Delivery to {masked(self.url)}: {self.state}, {tried}{why}{again}>"

    @property
    def is_sending(self) -> bool:
        """Whether an attempt is under way."""
        return bool(self.attempts) and not self.attempts[-1].is_over

    @property
    def is_quiet(self) -> bool:
        """Whether no receiver does anything about it any more, also about what timed out."""
        return all(attempt.is_over and attempt.is_done for attempt in self.attempts)


class Webhooks:
    """Sends webhooks.

    Args:
        clock: what attempts, time-outs and signatures go by.
        ledger: is told of every attempt.
        dispatch: sends a request to whatever answers its URL: the router's.
        settings: the account's, as they are now.
        in_background: does something in a thread of the test's.
        is_held: whether a gate of the test's holds something, so that waiting is of no use.
        is_in_an_app: whether the calling thread is an app's, which may be the receiver itself.
    """

    def __init__(
        self,
        clock: Clock,
        ledger: Ledger,
        dispatch: Dispatch,
        settings: Callable[[], Settings],
        in_background: Callable[[str, Callable[[], object]], object],
        is_held: Callable[[], bool],
        is_in_an_app: Callable[[], bool],
    ) -> None:
        self.keys = Keys()
        #: Notified when an attempt is over.
        self.changed = threading.Condition()
        #: All of the test, in order.
        self.deliveries: list[Delivery] = []
        self._clock = clock
        self._ledger = ledger
        self._dispatch = dispatch
        self._settings = settings
        self._in_background = in_background
        self._is_held = is_held
        self._is_in_an_app = is_in_an_app
        self._is_open = True

    def deliver(
        self,
        url: str,
        request_id: str,
        gateway_request_id: str,
        user_id: str,
        response: httpx.Response,
    ) -> Delivery:
        """Tell a receiver about a finished request; returns at once, from any thread.

        Args:
            url: of the receiver: ``?fal_webhook=``.
            request_id: of the queue.
            gateway_request_id: of its last attempt.
            user_id: whose request it was.
            response: the final answer, the app's or the gateway's own.
        """
        body = body_of(request_id, gateway_request_id, response)
        delivery = Delivery(url, request_id, gateway_request_id, user_id, body)
        with self.changed:
            self.deliveries.append(delivery)
            if self._is_open:
                self._begin(delivery)
            else:
                self._drop(delivery)
        return delivery

    @property
    def pending(self) -> list[Delivery]:
        """Those that are under way or wait for their next attempt."""
        return [one for one in self.deliveries if one.state == "pending"]

    def settle(self, timeout: float = 5.0) -> None:
        """Wait until no attempt is under way; those whose time has not come stay pending.

        Args:
            timeout: seconds of real time.

        Raises:
            EmulatorError: one still is.
        """
        if not self.wait_until(self._is_quiet, timeout):
            busy = listed([one for one in self.deliveries if not one.is_quiet])
            raise EmulatorError(
                f"Receivers have not answered after {timeout:g} s of real time: {busy}. If a gate "
                "holds one, open it, or move the clock past its time-out: "
                f"fal_clock.advance({self._limit.total_seconds():g})."
            )

    def wait_until(self, done: Callable[[], bool], timeout: float) -> bool:
        """Wait for something that *changed* is notified of; whether it came about.

        Args:
            done: what is waited for.
            timeout: seconds of real time, in which a running clock's appointments are kept.
        """
        end = real_now() + int(timeout * 1e9)
        while True:
            with self.changed:
                left = (end - real_now()) / 1e9
                if done() or left <= 0:
                    return done()
                self.changed.wait(min(left, _CHECK_SECONDS))
            self._clock.keep_appointments()

    def has_ended(self, attempt: Attempt) -> bool:
        """Whether an attempt is over, and its receiver done with it unless a gate holds that."""
        return attempt.is_over and (attempt.is_done or self._is_held())

    def come_to_rest(self) -> None:
        """Give what is under way a moment of real time, unless a gate holds something."""
        self.wait_until(lambda: self._is_held() or self._is_quiet(), _PATIENCE)

    # --- lifetime --------------------------------------------------------------------------------

    def end(self) -> None:
        """The test is over: send nothing any more, and tell the ledger what is dropped."""
        with self.changed:
            self._is_open = False
            for delivery in self.pending:
                if not delivery.is_sending:
                    self._drop(delivery)

    def reset(self) -> None:
        """Forget everything."""
        self.deliveries = []
        self.keys.reset()
        self._is_open = True

    # --- attempts --------------------------------------------------------------------------------

    @property
    def _limit(self) -> timedelta:
        return self._settings().webhook_timeout

    def _is_quiet(self) -> bool:
        """Whether nothing is under way, but for what timed out and a gate holds."""
        if any(one.is_sending for one in self.pending):
            return False
        return all(one.is_quiet for one in self.deliveries) or self._is_held()

    def _begin(self, delivery: Delivery) -> None:
        """Make an attempt, in the background."""
        attempt = Attempt(len(delivery.attempts) + 1, self._clock.now())
        delivery.next_at = delivery.appointment = None
        delivery.attempts.append(attempt)
        attempt.limit = self._clock.on(self._limit, partial(self._give_up, delivery, attempt))
        self._in_background("webhook", partial(self._send, delivery, attempt))

    def _send(self, delivery: Delivery, attempt: Attempt) -> None:
        attempt.thread = threading.get_ident()
        try:
            status = self._post(delivery, attempt)
        except Exception as error:  # a fault's, a route's, the app's: all of them are no answer
            self._close(delivery, attempt, _named(error))
        else:
            taken = 200 <= status < 300  # a redirect is not followed
            self._close(delivery, attempt, None if taken else f"answered {status}", status)
        finally:
            with self.changed:
                attempt.is_done = True
                self.changed.notify_all()

    def _post(self, delivery: Delivery, attempt: Attempt) -> int:
        signed = self.keys.headers(delivery.request_id, delivery.user_id, attempt.at, delivery.body)
        request = post_request(delivery.url, delivery.body, signed)
        request.extensions[WEBHOOK] = attempt
        limit = self._limit.total_seconds()
        return send(self._dispatch, request, limit).status_code

    def _give_up(self, delivery: Delivery, attempt: Attempt) -> None:
        """The receiver has not answered in time; what it may do later does not count.

        A test that moves the clock while a webhook is under way does not mean that the receiver is
        slow. One that sleeps moves the clock itself, in the thread of the attempt.
        """
        if attempt.thread != threading.get_ident():
            self._let_end(attempt, _GRACE)
        if attempt.is_over:
            return
        self._close(delivery, attempt, f"timed out after {self._limit.total_seconds():g} s")

    def _close(
        self, delivery: Delivery, attempt: Attempt, problem: str | None, status: int | None = None
    ) -> None:
        with self.changed:
            if attempt.is_over:
                late = problem or f"answered {status}"
                self._note(delivery, f"attempt {attempt.number} {late}, too late")
                return
            attempt.problem, attempt.status = problem, status
            overdue = self._go_on(delivery, attempt)
            attempt.is_over = True
            assert attempt.limit is not None
            attempt.limit.cancel()
            self.changed.notify_all()
        if overdue:
            self._again(delivery)

    def _go_on(self, delivery: Delivery, attempt: Attempt) -> bool:
        """Decide what becomes of a delivery; whether its next attempt is overdue."""
        told = f"attempt {attempt.number} {attempt.problem or f'answered {attempt.status}'}"
        retries = self._settings().webhook_retries
        if attempt.problem is None:
            delivery.state = "delivered"
            self._note(delivery, told)
        elif attempt.number > len(retries):
            delivery.state = "failed"
            self._note(delivery, f"{told}; given up")
        elif not self._is_open:
            self._note(delivery, told)
            self._drop(delivery)
        else:
            due = delivery.attempts[0].at + retries[attempt.number - 1]
            delivery.next_at = max(due, self._clock.now())
            self._note(delivery, f"{told}; again at {delivery.next_at:{TIME}}")
            return self._make_appointment(delivery, delivery.next_at)
        return False

    def _make_appointment(self, delivery: Delivery, moment: datetime) -> bool:
        """See to it that a delivery is tried again; whether that is due already."""
        left = moment - self._clock.now()
        if left <= timedelta(0):
            return True
        delivery.appointment = self._clock.on(left, partial(self._again, delivery))
        return False

    def _again(self, delivery: Delivery) -> None:
        """Make the next attempt, and let it come to its end before the clock goes on."""
        with self.changed:
            if not self._is_open or delivery.state != "pending":
                return
            self._begin(delivery)
        self._let_end(delivery.attempts[-1], _PATIENCE)

    def _let_end(self, attempt: Attempt, seconds: float) -> None:
        """Give an attempt real time to come to its end, unless a gate holds it.

        An app that moves the clock by sleeping is not kept for long: it may be the receiver.
        """
        seconds = ON_A_STOPPED_CLOCK if self._is_in_an_app() else seconds
        end = real_now() + int(seconds * 1e9)
        with self.changed:
            while not attempt.is_over and not self._is_held() and real_now() < end:
                self.changed.wait(_CHECK_SECONDS)

    def _drop(self, delivery: Delivery) -> None:
        if delivery.appointment is not None:
            delivery.appointment.cancel()
        due = f"; the next attempt was due at {delivery.next_at:{TIME}}" if delivery.next_at else ""
        delivery.state, delivery.next_at = "dropped", None
        self._note(delivery, f"was not delivered when the test ended{due}")

    def _note(self, delivery: Delivery, text: str) -> None:
        self._ledger.event("webhook", f"{delivery.request_id} to {masked(delivery.url)}: {text}")


def post(
    dispatch: Dispatch, url: str, body: bytes, headers: dict[str, str], limit: float
) -> httpx.Response:
    """Post JSON as the platform does; the receiver's answer, read.

    Args:
        dispatch: the router's.
        url: the receiver's.
        body: JSON.
        headers: besides those of JSON.
        limit: seconds that a receiver on the real network may take.

    Raises:
        Exception: there is no answer.
    """
    return send(dispatch, post_request(url, body, headers), limit)


def post_request(url: str, body: bytes, headers: dict[str, str]) -> httpx.Request:
    """A request that posts JSON."""
    everything = {
        "host": httpx.URL(url).netloc.decode(),
        "content-type": "application/json",
        "content-length": str(len(body)),
        **headers,
    }
    # As a stream, so that the ledger counts what the receiver really takes.
    return httpx.Request("POST", url, headers=everything, stream=httpx.ByteStream(body))


def send(dispatch: Dispatch, request: httpx.Request, limit: float) -> httpx.Response:
    """Send a request; to the real network, too, where the test lets that through."""
    try:
        response = dispatch(request, _CLIENT)
    except LetThrough:
        exchange = request.extensions["fal_exchange"][0]
        if is_local(request.url.host):
            exchange.notes.append("only here: the platform does not reach your localhost")
        # No extensions of ours go along: it is another request.
        real = post_request(str(request.url), request.read(), dict(request.headers))
        with httpx.Client(timeout=limit) as client:
            response = client.send(real)
        exchange.status = response.status_code
    response.read()
    return response


def _named(error: Exception) -> str:
    """Why there is no answer, in a few words."""
    cause = error.error if isinstance(error, NotConnected) else error
    if isinstance(cause, UnknownHostError):
        return "failed: nothing answers this URL"
    if isinstance(cause, (TimeoutError, httpx.TimeoutException)):
        return f"timed out: {cause}" if str(cause) else "timed out"
    return f"failed: {type(cause).__name__}: {cause}".removesuffix(": ")
