"""An app that is deployed: its runners, its queue, and the ways of asking it."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from emulator.errors import EmulatorError
from emulator.fleets import gateway_headers, waiting
from emulator.fleets.call import Call, Incoming
from emulator.fleets.dispatch import Dispatch, Turn
from emulator.fleets.endpoint_ids import owner_of
from emulator.fleets.gateway_headers import caller_id
from emulator.fleets.options import Scaling
from emulator.fleets.retries import RetryPolicy
from emulator.fleets.stand_in import SomebodyElses, code_of
from emulator.runners.errors import HandshakeRefusedError
from emulator.runners.runner import Runner
from emulator.users import nickname_of

if TYPE_CHECKING:
    from emulator.runners.websocket import AppWebSocket
    from emulator.users import User

__all__ = ["Deployment", "Identity"]


class Identity(NamedTuple):
    """Of a call: its request's id, who makes it, the account that the test has, a CDN token."""

    request_id: str
    caller: str
    account: str
    token: str


class Deployment:
    """What ``fal_gateway.deploy`` returns.

    Calls run by themselves, in threads, as soon as a runner is free; or one by one, when the test
    says so: :meth:`hold`, :meth:`run_next`, :meth:`release`.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        identify: Callable[[str | None], Identity],
        find: Callable[[str], Runner | None],
        new_number: Callable[[], int],
        forget: Callable[[Deployment], None],
    ) -> None:
        self._dispatch = dispatch
        self._fleet = dispatch.fleet
        self._identify = identify
        self._find = find
        self._new_number = new_number
        self._forget = forget
        #: Every call that ever came, in order.
        self.calls: list[Call] = []
        self._by_id: dict[str, Call] = {}

    def __repr__(self) -> str:
        runners = ", ".join(f"{one.name} {one.state}" for one in self.runners) or "no runner"
        until = f", CRASH_BACKOFF until {self.blocked_until:%H:%M:%S}" if self.blocked_until else ""
        return f"<Deployment {self.name}: {runners}; {len(self.queue)} queued{until}>"

    # --- what there is ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """``"owner/app"``."""
        return self._dispatch.name

    @property
    def url(self) -> str:
        """Where it is called directly: ``https://fal.run/owner/app`` [§6.1]."""
        return f"https://fal.run/{self.name}"

    @property
    def owner(self) -> str:
        """Whose app it is."""
        return owner_of(self.name)

    @property
    def _is_stand_in(self) -> bool:
        return issubclass(self.app, SomebodyElses)

    @property
    def app(self) -> type:
        """The app that new runners run."""
        return self._fleet.app

    @property
    def scaling(self) -> Scaling:
        """The options in force."""
        return self._fleet.scaling

    @property
    def runners(self) -> list[Runner]:
        """The runners there are, the oldest first; those in setup and those that drain included.

        A stand-in for somebody else's app has none.
        """
        for _ in range(1000):
            with self._dispatch.changed:
                alive = [member for member in self._fleet.members if member.phase != "ENDED"]
                found = [member.runner or self._find(member.name) for member in alive]
            if None not in found:
                break
            # A runner that was decided on has not been made yet: a matter of moments.
            self._dispatch.wait_until(lambda: False, 0.005)
        return [runner for runner in found if isinstance(runner, Runner)]

    @property
    def queue(self) -> list[Call]:
        """The calls that wait for a runner, the next one first."""
        return list(self._dispatch.queue)

    def call(self, request_id: str) -> Call | None:
        """A call by its request's id, also one that is over."""
        return self._by_id.get(request_id)

    @property
    def history(self) -> list[str]:
        """Every decision with its virtual time, one sentence each."""
        return list(self._dispatch.history)

    @property
    def blocked_until(self) -> datetime | None:
        """Until when no runner is started: CRASH_BACKOFF, or no machine; None: it is not so."""
        blocked = self._fleet.blocked_until
        return blocked if blocked is not None and blocked > self._dispatch.clock.now() else None

    # --- asking ----------------------------------------------------------------------------------

    def post(
        self,
        path: str = "/",
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        content: bytes | None = None,
        caller: User | str | None = None,
    ) -> httpx.Response:
        """Call the app directly, as ``fal.run`` does: no queue, no retries.

        A runner is started if there is none. What the gateway answers itself is JSON of ``detail``
        and ``error_type``, with ``X-Fal-Error-Type`` [§6.3]. If it has to wait for something on a
        stopped clock, the clock moves there.

        Args:
            content: the body, instead of *json*.
            caller: who asks; default: as whom the test acts, by default the app's owner.
        """
        response = self.answer(_incoming(path, json, content, headers, caller, queued=False))
        response.read()
        return response

    def submit(
        self,
        path: str = "/",
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        content: bytes | None = None,
        caller: User | str | None = None,
    ) -> Call:
        """Put a call into the queue, as ``queue.fal.run`` does; it is retried as documented."""
        return self.accept(_incoming(path, json, content, headers, caller, queued=True))

    def answer(self, incoming: Incoming, caller: waiting.Caller | None = None) -> httpx.Response:
        """The answer to a direct call.

        Args:
            caller: who waits for it; default: one that waits for ever.

        Raises:
            OSError: the caller has left.
        """
        call = self.accept(incoming)
        return waiting.direct_answer(self._dispatch, call, caller or waiting.Caller())

    def connect(self, incoming: Incoming, caller: waiting.Caller) -> AppWebSocket:
        """A websocket to the app, on a runner of its own until it ends.

        Raises:
            HandshakeRefusedError: there is none; has the answer of the app, or of the gateway.
            OSError: the caller has left.
        """
        call = self.accept(incoming)
        response = waiting.direct_answer(self._dispatch, call, caller)
        if call.websocket is None:
            raise HandshakeRefusedError(f"{call.name} was refused", response)
        return call.websocket

    def accept(self, incoming: Incoming) -> Call:
        """Take in a request."""
        given = incoming.headers
        known = self._identify(incoming.caller)
        owner = self.owner if self._is_stand_in else known.account
        is_own = known.caller in (owner, self.owner)
        own = {
            "x-fal-cdn-token": known.token,
            "x-fal-request-id": known.request_id,
            "x-fal-endpoint": self.name + incoming.path.partition("?")[0].rstrip("/"),
            "x-fal-caller-user-id": self.owner if is_own else caller_id(known.caller, owner),
        }
        sent, refused = gateway_headers.forwarded(given, own)
        call = Call(
            self._dispatch,
            self._new_number(),
            known.request_id,
            incoming,
            sent,
            RetryPolicy.of(self.scaling, given, incoming.queued, is_own),
            self._dispatch.clock.now(),
        )
        call.caller = None if known.caller == known.account else known.caller
        call.low_priority = given.get("x-fal-queue-priority", "").lower() == "low"
        call.hint = given.get("x-fal-runner-hint")
        call.stores_payloads = given.get("x-fal-store-io", "").strip() != "0"
        self.calls.append(call)
        self._by_id[call.request_id] = call
        for name in refused:
            self._dispatch.note(f"{call.name}: {name} left out, callers cannot set it")
        if self._set_deadline(call, given.get("x-fal-request-timeout"), is_own):
            self._dispatch.enqueue(call)
        return call

    def _set_deadline(self, call: Call, header: str | None, owner: bool) -> bool:
        """When the call has to be started; False: the caller's header makes no sense."""
        try:
            seconds = gateway_headers.start_deadline(header)
        except ValueError:
            why = f"X-Fal-Request-Timeout is {header!r} and has to be seconds, more than 0.1"
            self._dispatch.note(f"{call.name} ended with bad_request: {why}")
            call.response = gateway_headers.error("bad_request", call.request_id, why)
            call.completed_at = call.waiting_since
            call.over.set()
            return False
        if seconds is None and owner:
            seconds = self.scaling.request_start_timeout or None
        if seconds is not None:
            call.deadline = call.waiting_since + timedelta(seconds=seconds)
        return True

    # --- one by one ------------------------------------------------------------------------------

    def hold(self) -> None:
        """Let queued calls wait until the test runs them; runners are started for them."""
        self._dispatch.queue.held = True

    def release(self) -> None:
        """Let queued calls run by themselves again."""
        self._dispatch.queue.held = False
        self._dispatch.go_on()

    def run_next(self, runner: Runner | str | None = None) -> Call:
        """Run the next queued call once, and return when its handler has ended.

        A call that is to be tried again is in the queue afterwards.

        Args:
            runner: where it runs; default: the oldest free one, or as :meth:`Gateway.explore` has
                it.

        Raises:
            EmulatorError: the queue is empty or not held, or no runner is free.
        """
        turn = self._next_turn("run_next", runner)
        self._dispatch.perform(turn)
        return turn.call

    def start_next(self, runner: Runner | str | None = None) -> Call:
        """As :meth:`run_next`, in a thread: returns at once, so that several run side by side."""
        turn = self._next_turn("start_next", runner)
        self._dispatch.do([self._dispatch.performing(turn)])
        return turn.call

    def run_all(self) -> list[Call]:
        """Run what is queued, one after another, until nothing is; the calls as they ran."""
        ran = []
        while self._dispatch.queue.next(None, held=True) is not None:
            ran.append(self.run_next())
        return ran

    def _next_turn(self, method: str, runner: Runner | str | None) -> Turn:
        if not self._dispatch.queue.held:
            raise EmulatorError(
                f"{method}() runs a queue that is held, and this one runs by itself. Write "
                "deployment.hold() before the calls are submitted."
            )
        self._wait_for_starts()
        self._dispatch.go_on()  # what is over by now is not run any more
        name = runner.name if isinstance(runner, Runner) else runner
        with self._dispatch.changed:
            turn = self._dispatch.take(held=True, runner=name)
        if turn is None:
            raise EmulatorError(self._why_no_turn(method, name))
        return turn

    def _wait_for_starts(self) -> None:
        if not self._dispatch.wait_until(lambda: not self._fleet.is_moving, 30.0):
            raise EmulatorError(
                f"A runner of {self.name} is still being started or stopped after 30 s of real "
                "time. If a gate holds it, open it first."
            )
        if self._fleet.broken is not None:
            raise self._fleet.broken

    def _why_no_turn(self, method: str, name: str | None) -> str:
        if not self.queue:
            return f"{method}(): nothing is queued. Write deployment.submit(...) before."
        if name is not None and self._fleet.free():
            free = ", ".join(member.name for member in self._fleet.free())
            return f"{method}(runner={name!r}): it is not free. Free is: {free}."
        if self.blocked_until is not None:
            return (
                f"{method}(): no runner is there, and the next is started at "
                f"{self.blocked_until:%H:%M:%S} (CRASH_BACKOFF). Move the clock there: "
                "fal_clock.move_to(deployment.blocked_until)."
            )
        return f"{method}(): no runner is free: {self!r}."

    def settle(self, timeout: float = 30.0) -> None:
        """Wait until nothing goes on by itself: no start, no end, no handler.

        Args:
            timeout: seconds of real time.
        """
        waiting.settle(self._dispatch, timeout)

    # --- what happens to it ----------------------------------------------------------------------

    def redeploy(self, app: type | object, *, reset_scale: bool = False, **scaling: Any) -> None:
        """Deploy other code: new calls go to new runners, the old ones finish and are stopped.

        Args:
            reset_scale: take over the new code's scaling; without it only multiplexing, time-outs
                of starts and retries follow the code [§4.4].
            scaling: options to change.
        """
        code = code_of(self.name, app)
        options = self.scaling.redeployed(code, scaling, reset_scale)
        with self._dispatch.changed:
            jobs = self._fleet.redeploy(code, options)
        self._dispatch.do(jobs)
        self._dispatch.go_on()

    def undeploy(self) -> None:
        """Take the app down: returns when the runners that were idle have shut down.

        Those that are busy finish what they do. Calls that wait, and those that come, are answered
        404; what is known of earlier ones can be fetched still. A second call does nothing.
        """
        self._forget(self)
        self._dispatch.retire()

    def refuse_machines(self, times: int = 1) -> None:
        """Let the next starts find no machine: scheduling failures, 20 s each [§4.1]."""
        self._fleet.missing_machines = times


def _incoming(
    path: str,
    json: Any,
    content: bytes | None,
    headers: Mapping[str, str] | None,
    caller: User | str | None,
    queued: bool,
) -> Incoming:
    """A test's own call, as it reaches the gateway.

    The body is the same in every attempt, whatever the test does to *json* then.
    """
    given = {name.lower(): value for name, value in (headers or {}).items()}
    if content is None and json is not None:
        content = json_module.dumps(json).encode()
        given.setdefault("content-type", "application/json")
    path = httpx.URL(f"http://app/{path.removeprefix('/')}").raw_path.decode("ascii")
    nickname = None if caller is None else nickname_of(caller)
    return Incoming(path, given, nickname, content, queued=queued)
