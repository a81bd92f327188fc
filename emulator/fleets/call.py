"""A request on its way through the gateway: where it is, and what each attempt came to."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple

from emulator.fleets import waiting
from emulator.fleets.retries import RetryPolicy

if TYPE_CHECKING:
    import httpx

    from emulator.fleets.dispatch import Dispatch
    from emulator.runners.log import Line
    from emulator.runners.websocket import AppWebSocket

__all__ = ["Attempt", "Call", "CallStatus", "Incoming", "Payloads"]

CallStatus = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


@dataclass(frozen=True)
class Incoming:
    """A request as it reaches the gateway."""

    #: In the app, with the query.
    path: str
    #: Lower-case names.
    headers: Mapping[str, str]
    #: Who asks, by nickname; None: as whom the test acts.
    caller: str | None
    body: bytes | None = None
    method: str = "POST"
    #: Through the queue, or directly.
    queued: bool = True
    #: Where its answer is sent to, besides.
    webhook: str | None = None
    opens_websocket: bool = False


class Payloads(NamedTuple):
    """What the platform keeps of a request: its bodies, as they were sent."""

    input: bytes | None
    #: None while there is no answer, and of one that went out piece by piece.
    output: bytes | None


@dataclass(eq=False)
class Attempt:
    """One run of a handler for a call."""

    #: Counted from 1, within its call.
    number: int
    #: ``gateway_request_id``: the call's own for the first attempt, a new one for each retry.
    id: str
    #: Name of the runner.
    runner: str
    #: Virtual time of its start.
    at: datetime
    #: When it is over its ``request_timeout``; None: never, a websocket has none.
    deadline: datetime | None = field(repr=False)
    #: What the app answered; None: nothing.
    status: int | None = None
    #: Why it ended, in words; None while it runs.
    ended: str | None = None
    #: What a retry of it is about.
    condition: str | None = None
    #: Virtual time of its end.
    ended_at: datetime | None = None
    #: Where in its runner's log it began and ended.
    log: tuple[int, int | None] = (0, None)


class Call:
    """A request that was submitted; see ``Deployment.submit``."""

    def __init__(
        self,
        dispatch: Dispatch,
        number: int,
        request_id: str,
        incoming: Incoming,
        headers: Mapping[str, str],
        policy: RetryPolicy,
        at: datetime,
    ) -> None:
        self._dispatch = dispatch
        #: Counted from 1, within the test.
        self.number = number
        #: ``x-fal-request-id``: the same in every attempt.
        self.request_id = request_id
        #: HTTP method.
        self.method = incoming.method
        #: In the app, with the query.
        self.path = incoming.path
        self.body = incoming.body
        #: Where its answer is sent to, besides.
        self.webhook = incoming.webhook
        #: What the app gets.
        self.headers = headers
        self.policy = policy
        #: Virtual time at which it came, or came back to the queue.
        self.waiting_since = at
        #: Until when it has to be started; None: for ever.
        self.deadline: datetime | None = None
        #: Nickname of who calls; None: the app's owner.
        self.caller: str | None = None
        #: ``X-Fal-Queue-Priority: low``.
        self.low_priority = False
        #: ``X-Fal-Runner-Hint``.
        self.hint: str | None = None
        #: What became of it so far, the first attempt first.
        self.attempts: list[Attempt] = []
        #: What the caller gets; None until it is COMPLETED.
        self.response: httpx.Response | None = None
        #: Whether its caller has the response while the app makes it, or a websocket.
        self.is_under_way = False
        #: When the caller got a response that the app was still making, by the clock.
        self.under_way_since: datetime | None = None
        #: Whether its direct caller waits for it no more.
        self.was_left = False
        self.opens_websocket = incoming.opens_websocket
        #: The client's end of it.
        self.websocket: AppWebSocket | None = None
        #: Virtual time at which it was COMPLETED.
        self.completed_at: datetime | None = None
        #: Why it will have no response: dropped at a test's end.
        self.dropped = False
        #: Whether its caller has taken it back.
        self.cancelled = False
        #: ``X-Fal-Store-IO``: whether its payloads are kept.
        self.stores_payloads = True
        #: Whether its payloads were deleted.
        self.deleted = False
        #: The attempt under way.
        self.turn: Attempt | None = None
        #: How often the test has asked for its status, while it waited for the test.
        self.asked_in_vain = 0
        #: Whether a direct call's attempt is being run for its caller.
        self.begun = False
        self.over = threading.Event()

    def __repr__(self) -> str:
        return f"<Call {self.name} {self.method} {self.path}: {self._state()}>"

    def _state(self) -> str:
        if self.dropped:
            return "dropped at the test's end"
        if self.response is not None:
            runs = len(self.attempts)
            return f"{self.response.status_code} after {runs} attempt{'s' * (runs != 1)}"
        where = f" on {self.attempts[-1].runner}" if self.turn is not None else ""
        return f"{self.status}{where}"

    @property
    def name(self) -> str:
        """How the ledger calls it: ``call-1``."""
        return f"call-{self.number}"

    @property
    def deployment(self) -> str:
        """The name of what it was made to."""
        return self._dispatch.name

    @property
    def direct(self) -> bool:
        """Whether its caller waits for it, outside of the queue."""
        return not self.policy.queued

    @property
    def status(self) -> CallStatus:
        """As the queue tells it; while it waits to be tried again it is IN_QUEUE once more."""
        if self.over.is_set():
            return "COMPLETED"
        return "IN_PROGRESS" if self.turn is not None or self.response is not None else "IN_QUEUE"

    @property
    def waits_for_the_test(self) -> bool:
        """Whether nothing goes on: it waits for a queue to be released, or for the clock."""
        return waiting.waits_for_the_test(self._dispatch, self)

    def has_been_over_for(self, span: timedelta | None) -> bool:
        """Whether it was COMPLETED so long ago; None: that is never long enough."""
        if span is None or self.completed_at is None:
            return False
        return self._dispatch.clock.now() >= self.completed_at + span

    @property
    def payloads(self) -> Payloads | None:
        """What the platform keeps of it [§1.15]; None: nothing.

        ``X-Fal-Store-IO: 0`` keeps it from being stored, a deletion and
        ``Settings.payload_retention`` end it. The result can be fetched regardless of the former.
        """
        is_old = self.has_been_over_for(self._dispatch.payload_retention)
        if self.deleted or not self.stores_payloads or is_old:
            return None
        is_whole = self.response is not None and not self.is_under_way
        return Payloads(self.body, self.response.content if is_whole and self.response else None)

    def log_of(self, attempt: Attempt) -> list[Line]:
        """What its runner printed during an attempt, as far as one can tell."""
        runner = self._dispatch.fleet.member(attempt.runner).runner
        return [] if runner is None else runner.log.lines(*attempt.log, self.request_id)

    def wait_for_news(self, seconds: float, asker: threading.Thread | None = None) -> None:
        """Wait until anything happens in its deployment; at most so many seconds of real time."""
        waiting.refuse_vain_questions(self._dispatch, self, asker)
        with self._dispatch.changed:
            self._dispatch.changed.wait(seconds)

    def wait(self, seconds: float, asker: threading.Thread | None = None) -> CallStatus:
        """Its status, as soon as it is COMPLETED, or after so many seconds of real time.

        Args:
            asker: in which somebody asks for it; EmulatorError where that is the test's own and the
                test waits for itself.
        """
        waiting.refuse_vain_questions(self._dispatch, self, asker)
        self._dispatch.wait_until(lambda: self.over.is_set() or self.waits_for_the_test, seconds)
        return self.status

    @property
    def position(self) -> int | None:
        """How many calls are before it in the queue; None: it is not there."""
        return self._dispatch.queue.position(self)

    def result(self, timeout: float = 30.0) -> httpx.Response:
        """Wait for the answer.

        Args:
            timeout: seconds of real time.

        Raises:
            EmulatorError: it takes longer, or it waits for something that the test has to do: move
                the clock, release the queue. Says what to write.
        """
        return waiting.result(self._dispatch, self, timeout)

    def cancel(self) -> Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED"]:
        """Take it back [§4.6].

        While it waits it is answered 499. While it runs the app gets a POST to the endpoint's
        ``/cancel``, with the same ``x-fal-request-id``; an app without that route goes on.
        """
        return self._dispatch.cancel(self)
