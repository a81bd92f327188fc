"""``webhooks.test.fal``: a receiver of webhooks that is the test's; and what all receivers ask for.

The receiver writes down what comes, checks its signature as every receiver should, and answers 200,
or what the test has told it to.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from emulator.checks import ANY, listed
from emulator.errors import EmulatorError
from emulator.fleets.webhook_messages import (
    WebhookNotVerifiedError,
    body_of,
    signed_headers,
    verify,
)
from emulator.fleets.webhooks import WEBHOOK, post
from emulator.network.reply import json_reply

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.fleets.webhooks import Attempt, Delivery, Webhooks
    from emulator.hosts.common import PathRouter
    from emulator.ledger import Exchange
    from emulator.settings import Settings

__all__ = ["Webhook", "WebhookReceiver"]

_HOST = "webhooks.test.fal"
_JWKS_SECONDS = 24 * 60 * 60  # the longest that a receiver may keep the keys


@dataclass(eq=False)
class Webhook:
    """A webhook as the receiver got it."""

    #: None, where the body is no JSON object, or has none.
    request_id: str | None
    #: Of the request's last attempt; None, as above.
    gateway_request_id: str | None
    #: Whether the request came to a result.
    status: Literal["OK", "ERROR"] | None
    #: The app's answer, or what went wrong.
    payload: Any
    #: "Invalid status code: 422", where the app has not answered 2xx.
    error: str | None
    #: Why there is no payload: the answer is no JSON.
    payload_error: str | None
    #: As they came.
    headers: httpx.Headers = field(repr=False)
    #: As it came: what the signature is for.
    body: bytes = field(repr=False)
    #: Of the URL: ``"/orders/7"``.
    path: str
    #: The whole URL.
    url: str = field(repr=False)
    #: When it came, by the clock.
    at: datetime
    #: The how manieth attempt of its delivery; None: it is not from the platform.
    attempt: int | None
    #: Why it is not to be believed; None: it is.
    problem: str | None
    #: What the receiver answered; None: nothing yet, or its answer was lost.
    answered: int | None = None
    #: What the test's handler raised.
    raised: Exception | None = field(default=None, repr=False)

    @property
    def verified(self) -> bool:
        """Whether its signature is one of fal's, and no older than 300 s [§6.4]."""
        return self.problem is None


#: What the receiver does with one webhook: answers a status; or handles it and loses the answer.
_Plan = int | None


class WebhookReceiver:
    """The test's receiver of webhooks, and what a test does with the platform's.

    Args:
        webhooks: sends them.
        clock: the receiver's time.
        dispatch: sends what the test itself sends, such as a forged webhook.
        settings: the account's, as they are now.
        user_id: the id of the user as whom the test acts.
    """

    def __init__(
        self,
        webhooks: Webhooks,
        clock: Clock,
        dispatch: Callable[[httpx.Request, str], httpx.Response],
        settings: Callable[[], Settings],
        user_id: Callable[[], str],
    ) -> None:
        self._webhooks = webhooks
        self._clock = clock
        self._dispatch = dispatch
        self._settings = settings
        self._user_id = user_id
        self._plans: deque[_Plan] = deque()
        self._attempts: dict[Webhook, Attempt] = {}
        #: All that came, in order; those that were refused and those nobody should believe, too.
        self.received: list[Webhook] = []
        #: The test's own receiver: what it raises is answered with 500; it may return an
        #: ``httpx.Response``, whose status is then the answer.
        self.handler: Callable[[Webhook], object] | None = None

    def __repr__(self) -> str:
        return f"<WebhookReceiver at {self.url}: {len(self.received)} received>"

    def offer(self, rest: PathRouter, platform: PathRouter) -> None:
        """Publish the keys and where webhooks come from, on hosts that need no credentials."""
        rest.add("GET", r"/\.well-known/jwks\.json", self._jwks)
        platform.add("GET", r"/v1/meta", self._meta)

    def reset(self) -> None:
        """Forget everything, the platform's deliveries included."""
        self._webhooks.reset()
        self.received = []
        self.handler = None
        self._plans.clear()
        self._attempts.clear()

    # --- what a test looks at --------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it is: ``webhook_url=fal_webhooks.url``; any path below it is its, too."""
        return f"https://{_HOST}/"

    @property
    def deliveries(self) -> list[Delivery]:
        """All webhooks of the test, to this receiver and to others, with their attempts."""
        return self._webhooks.deliveries

    @property
    def pending(self) -> list[Delivery]:
        """Those that are not delivered yet: ``.next_at`` is when the platform tries again."""
        return self._webhooks.pending

    def wait(self, count: int = 1, timeout: float = 5.0) -> list[Webhook]:
        """Wait until so many have come since the test began, and the platform has its answers.

        Args:
            count: of all, those that were refused included.
            timeout: seconds of real time.

        Returns:
            All that have come.

        Raises:
            EmulatorError: fewer came; says what happened instead.
        """
        if not self._webhooks.wait_until(lambda: self._answered() >= count, timeout):
            raise EmulatorError(self._why_not(count, timeout))
        return list(self.received)

    def settle(self, timeout: float = 5.0) -> None:
        """Wait until no webhook is under way, to whatever receiver.

        Those that were not taken and whose next attempt is to come stay pending: move the clock.
        """
        self._webhooks.settle(timeout)

    def verify(self, headers: Mapping[str, str], body: bytes) -> None:
        """Check a webhook as a receiver has to: its headers, its age, its signature [§6.4].

        Raises:
            WebhookNotVerifiedError: it is not to be believed; says why.
        """
        verify(headers, body, self._webhooks.keys.public, self._clock.now())

    # --- what a test does ------------------------------------------------------------------------

    def answer(self, status: int = 500, times: int = 1) -> None:
        """Answer the next webhooks with a status, as if the receiver was down: no handler runs."""
        self._plans.extend([status] * times)

    def lose_answer(self, times: int = 1) -> None:
        """Take the next webhooks, and let the platform hear nothing: they will come again."""
        self._plans.extend([None] * times)

    def rotate_key(self, *, drop_old: bool = False) -> None:
        """Let the platform sign with a new key.

        Args:
            drop_old: list the old keys no more; else what they signed still counts.
        """
        self._webhooks.keys.rotate(drop_old)

    def send(
        self,
        payload: Any = None,
        *,
        status: int = 200,
        url: str | None = None,
        request_id: str | None = None,
    ) -> Delivery:
        """Let the platform send a webhook, as if an app had answered a queued request.

        Args:
            payload: the app's answer.
            status: its status.
            url: of the receiver; default: this one.
            request_id: of the request; default: a new one.
        """
        request_id = request_id or str(uuid4())
        answer = httpx.Response(status, json=payload)
        receiver, user = url or self.url, self._user_id()
        return self._webhooks.deliver(receiver, request_id, request_id, user, answer)

    def forge(
        self,
        payload: Any = None,
        *,
        url: str | None = None,
        request_id: str | None = None,
        signed: bool = True,
    ) -> httpx.Response:
        """Send what somebody else made up; the receiver's answer, which should be a refusal.

        Args:
            payload: what it claims that an app has answered.
            url: of the receiver; default: this one.
            request_id: of whatever request.
            signed: with a key that is not fal's; else without a signature.
        """
        request_id = request_id or str(uuid4())
        body = body_of(request_id, request_id, httpx.Response(200, json=payload))
        key, now = Ed25519PrivateKey.generate(), self._clock.now()
        headers = signed_headers(key, request_id, self._user_id(), now, body) if signed else {}
        return self._post(url or self.url, body, headers)

    def replay(
        self, webhook: Webhook, *, url: str | None = None, payload: Any = ANY
    ) -> httpx.Response:
        """Send one that came once more, its time stamp and signature as they were; the answer.

        A receiver has to refuse it once the clock is 300 s further, and before that not to do twice
        what it says.

        Args:
            webhook: of :attr:`received`.
            url: of the receiver; default: where it came to.
            payload: instead of its own, so that the signature is not for it.
        """
        body = webhook.body
        if payload is not ANY:
            body = json.dumps({**json.loads(body), "payload": payload}, sort_keys=True).encode()
        stamps = {k: v for k, v in webhook.headers.items() if k.startswith("x-fal-")}
        return self._post(url or webhook.url, body, stamps)

    def _post(self, url: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        limit = self._settings().webhook_timeout.total_seconds()
        return post(self._dispatch, url, body, headers, limit)

    # --- what receivers ask for ------------------------------------------------------------------

    def _jwks(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        keys = self._webhooks.keys.jwks(padded=self._settings().webhook_key_padding)
        return json_reply(keys, headers=[("cache-control", f"public, max-age={_JWKS_SECONDS}")])

    def _meta(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        return json_reply({"webhook_ip_ranges": list(self._settings().webhook_ip_ranges)})

    # --- the host --------------------------------------------------------------------------------

    def answers(self, host: str) -> bool:
        """Whether this is the receiver's host."""
        return host == _HOST

    def handle(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        """Write a webhook down, and answer.

        Raises:
            ConnectionResetError: the answer is to be lost.
        """
        if request.method != "POST":
            return json_reply({"detail": "webhooks are posted"}, 405)
        webhook = self._read(request)
        plan, planned = self._arrived(webhook, request.extensions.get(WEBHOOK))
        if planned and plan is not None:
            webhook.answered = plan
            return json_reply({}, plan)
        answer = self._handled(webhook, exchange)
        if planned:
            exchange.notes.append("the answer was lost on its way")
            raise ConnectionResetError(104, "the answer was lost (fal_webhooks.lose_answer)")
        webhook.answered = answer.status_code
        return answer

    def _arrived(self, webhook: Webhook, attempt: Attempt | None) -> tuple[_Plan, bool]:
        """Write it down; what is to become of it, and whether anything is planned."""
        with self._webhooks.changed:
            if attempt is not None:
                webhook.attempt = attempt.number
                self._attempts[webhook] = attempt
            self.received.append(webhook)
            self._webhooks.changed.notify_all()
            return (self._plans.popleft(), True) if self._plans else (None, False)

    def _handled(self, webhook: Webhook, exchange: Exchange) -> httpx.Response:
        if self.handler is None:
            return json_reply({})
        try:
            answer = self.handler(webhook)
        except Exception as error:  # the test's receiver is down
            webhook.raised = error
            exchange.notes.append(f"the handler raised {type(error).__name__}: {error}")
            return json_reply({"detail": "Internal Server Error"}, 500)
        return answer if isinstance(answer, httpx.Response) else json_reply({})

    def _read(self, request: httpx.Request) -> Webhook:
        body = request.read()
        try:
            self.verify(request.headers, body)
            problem = None
        except WebhookNotVerifiedError as error:
            problem = str(error)
        says = _object(body)
        return Webhook(
            request_id=says.get("request_id"),
            gateway_request_id=says.get("gateway_request_id"),
            status=says.get("status"),
            payload=says.get("payload"),
            error=says.get("error"),
            payload_error=says.get("payload_error"),
            headers=request.headers,
            body=body,
            path=request.url.path,
            url=str(request.url),
            at=self._clock.now(),
            attempt=None,
            problem=problem,
        )

    def _answered(self) -> int:
        """How many have come whose attempt is over."""
        attempts = [self._attempts.get(webhook) for webhook in self.received]
        ended = self._webhooks.has_ended
        return sum(attempt is None or ended(attempt) for attempt in attempts)

    def _why_not(self, count: int, timeout: float) -> str:
        came, others = self._answered(), [repr(one)[1:-1] for one in self.deliveries]
        what = "webhook" if count == 1 else "webhooks"
        due = [one.next_at for one in self.pending if one.next_at is not None]
        seconds = max(0.0, (min(due) - self._clock.now()).total_seconds()) if due else 0.0
        move = (
            f" The platform tries again in {seconds:g} s of the clock: "
            f"fal_clock.advance({seconds:g})."
            if due
            else ""
        )
        return (
            f"Waited {timeout:g} s for {count} {what}, and {came or 'none'} came to {self.url}. "
            f"Deliveries: {listed(others) or 'none at all'}.{move}"
        )


def _object(body: bytes) -> dict[str, Any]:
    try:
        says = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return says if isinstance(says, dict) else {}
