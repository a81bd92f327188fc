"""Brings calls to runners: a discrete simulation of a deployment.

Nothing here has a timer. Whenever something has happened (a call came, a runner is ready, the clock
was moved) ``go_on`` looks at everything once: what is over, whose turn it is, what the fleet has to
start and stop; and makes an appointment with the clock for the next moment at which time alone
changes something.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple

import httpx

from emulator.fleets import gateway_headers
from emulator.fleets.answers import final, in_words, outcome_of, request_of
from emulator.fleets.call import Attempt, Call
from emulator.fleets.call_queue import CallQueue, Member, Server, choose_member
from emulator.fleets.fleet import Fleet, Job, Platform
from emulator.fleets.options import Scaling
from emulator.fleets.retries import ErrorType, Outcome, judge
from emulator.network.bodies import CutShortError
from emulator.runners.body import Body
from emulator.runners.errors import HandshakeRefusedError, IncompleteAnswerError
from emulator.runners.runner import RunnerError, RunnerKilled

if TYPE_CHECKING:
    from emulator.runners.log import Line
    from emulator.schedule import Appointment

__all__ = ["Dispatch", "Turn"]


class Turn(NamedTuple):
    """A call that has got a runner."""

    call: Call
    attempt: Attempt
    member: Member


class Dispatch:
    """The calls of one deployment and their way to its runners."""

    def __init__(
        self,
        name: str,
        app: type,
        scaling: Scaling,
        platform: Platform,
        boot: Callable[[type, str, Scaling], Server],
    ) -> None:
        self.name = name
        self.changed = threading.Condition(threading.RLock())
        self.queue = CallQueue()
        self.history: list[str] = []
        self.fleet = Fleet(app, scaling, platform, boot, self.changed, self.go_on, self.note)
        #: Told of each line that runners print.
        self.on_output: Callable[[Line], None] | None = None
        self._platform = platform
        self.clock = platform.clock
        self._appointment: Appointment | None = None
        #: The next moment at which time alone changes something.
        self.wake: datetime | None = None

    def note(self, text: str) -> None:
        """Tell history and ledger."""
        self.history.append(f"{self.clock.now():%H:%M:%S} {text}")
        self._platform.note(f"{self.name}: {text}")

    @property
    def payload_retention(self) -> timedelta | None:
        """How long the JSON of requests is kept; None: for ever."""
        return self._platform.payload_retention

    # --- going on --------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Do everything that there is to do now."""
        with self.changed:
            jobs = [] if self.fleet.closed else self._look()
            self.changed.notify_all()
        self.do(jobs)

    def _look(self) -> list[Job]:
        jobs = [*self._end_what_is_over(), *self._notice_losses(), *self.fleet.fail_slow_starts()]
        if self.fleet.retired:
            jobs += [self._turn_away(call) for call in self.queue]
        while (turn := self.take()) is not None:
            if not turn.call.direct:  # those are run by their callers
                jobs.append(self.performing(turn))
        decision, scaling = self.fleet.scale(tuple(call.waiting_since for call in self.queue))
        jobs += scaling
        if self.fleet.is_down:  # direct callers do not wait for the next start
            kind, detail = self.fleet.last_failure
            jobs += [self._refuse(call, kind, detail) for call in self.queue if call.direct]
        self._arm(decision.wake)
        return jobs

    def _arm(self, wake: datetime | None) -> None:
        """Make an appointment with the clock."""
        moments = [wake, *(call.deadline for call in self.queue)]
        for member in self.fleet.members:
            moments += [attempt.deadline for attempt in member.running]
            if member.phase == "STARTING":
                moments.append(member.startup_deadline)
        if self._appointment is not None:
            self._appointment.cancel()
        self.wake = min((moment for moment in moments if moment is not None), default=None)
        if self.wake is not None:
            wait = max(self.wake - self.clock.now(), timedelta(0))
            self._appointment = self.clock.on(wait, self._tick)

    def _tick(self) -> None:
        """The clock has reached the appointment; in whatever thread moves it."""
        here = self._platform.here()
        self.go_on()
        if here is not None and here in self.fleet.killed:
            raise RunnerKilled(f"{here} was killed by the platform")

    def do(self, jobs: list[Job]) -> None:
        """Do what is to be done outside of the lock."""
        at_once = [job.do for job in jobs if not job.background and not job.last]
        at_last = [job.do for job in jobs if job.last]
        if (at_once or at_last) and self._platform.is_in_an_app():
            # A runner cannot wait for its own end.
            later = [*at_once, *at_last]
            self._platform.in_background("ends", lambda: [do() for do in later])
            at_once, at_last = [], []
        for do in at_once:
            do()
        for job in jobs:
            if job.background:
                self._platform.in_background(job.name, job.do)
        for do in at_last:
            do()

    def retire(self) -> None:
        """Take the app down: runners end in order, what waits is answered 404."""
        with self.changed:
            jobs = self.fleet.retire()
        self.do(jobs)
        self.go_on()

    def in_background(self, name: str, job: Callable[[], object]) -> None:
        """Do something in a thread of the test's."""
        self._platform.in_background(name, job)

    def close(self) -> None:
        """Start nothing more, and drop what waits."""
        with self.changed:
            self.fleet.closed = True
            for call in self.queue.clear():
                call.dropped = True
                self.note(f"dropped {call.name} {call.method} {call.path} at the end of the test")
                call.over.set()
            if self._appointment is not None:
                self._appointment.cancel()
            self.changed.notify_all()

    def break_down(self, error: BaseException) -> None:
        """Have whoever waits raise an error that nobody expected."""
        with self.changed:
            self.fleet.broken = self.fleet.broken or error
            self.changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for something, in real time; whether it is so."""
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    # --- turns -----------------------------------------------------------------------------------

    def enqueue(self, call: Call) -> None:
        """Let a call wait for its turn."""
        self.clock.keep_appointments()
        if self.fleet.broken is not None:
            raise self.fleet.broken
        with self.changed:
            self.queue.add(call)
        self.go_on()

    def take(self, held: bool = False, runner: str | None = None) -> Turn | None:
        """Give the next call to a runner; None: there is none, or no runner is free.

        Args:
            held: also while the queue is held.
            runner: the only one that will do.
        """
        chance = self._platform.chance
        free = self.fleet.free(runner)
        call = self.queue.next(chance, held) if free else None
        member = choose_member(free, call, chance) if call is not None else None
        if call is None or member is None:
            return None
        self.queue.remove(call)
        return Turn(call, self._begin(call, member), member)

    def _begin(self, call: Call, member: Member) -> Attempt:
        now, number = self.clock.now(), len(call.attempts) + 1
        limit = timedelta(seconds=self.fleet.scaling.request_timeout)
        identifier = call.request_id if number == 1 else str(uuid.uuid4())
        deadline = None if call.opens_websocket else now + limit
        attempt = Attempt(number, identifier, member.name, now, deadline)
        if member.runner is not None:
            attempt.log = len(member.runner.log), None
        if call.attempts:
            last = call.attempts[-1]
            which = f"retry {number - 1} of {call.name} on {member.name}"
            self.note(f"{which}: {last.runner} {last.ended}")
        else:
            self.note(f"{call.name} {call.method} {call.path} on {member.name}")
        call.attempts.append(attempt)
        member.running[attempt] = call
        member.idle_since, member.served = None, True
        call.turn = attempt
        return attempt

    def turn_of(self, call: Call, attempt: Attempt) -> Turn:
        """The turn that a direct call has got."""
        return Turn(call, attempt, self.fleet.member(attempt.runner))

    def performing(self, turn: Turn) -> Job:
        """The run of a handler, in a thread of its own."""
        return Job(turn.call.name, lambda: self.perform(turn), background=True)

    def perform(self, turn: Turn) -> None:
        """Run the handler, in this thread."""
        call, attempt, member = turn
        assert member.runner is not None
        response = None
        try:
            response = self._ask(turn, member.runner)
        except HandshakeRefusedError as error:
            response = gateway_headers.whole(error.response)
            outcome = outcome_of(response)
        except IncompleteAnswerError:
            outcome, response = self._incomplete(call, member)
        except (RunnerError, RunnerKilled):
            self.go_on()  # which knows why, if it was for its time
            outcome = Outcome(None, error="runner_disconnected")
        except httpx.TransportError:
            lost = member.runner.state == "TERMINATED"
            kind: ErrorType = "runner_disconnected" if lost else "runner_connection_error"
            outcome = Outcome(None, error=kind)
        except BaseException:
            was_over = attempt.ended is not None  # it was killed; groups may wrap the error
            self._end(member, attempt, Outcome(None, error="runner_disconnected"), None)
            if was_over:
                return
            raise
        else:
            if call.is_under_way:
                return
            member.runner.catch_up()  # its lines are the request's log
            outcome = outcome_of(response)
        self._end(member, attempt, outcome, response)

    def _ask(self, turn: Turn, runner: Server) -> httpx.Response:
        """What the app answers: whole, or under way."""
        call = turn.call
        request = request_of(call, runner, call.path)
        if call.opens_websocket:
            call.websocket = runner.connect(request)
            response = httpx.Response(101)

            def over() -> None:
                self._end_what_went_on(turn, response, None)

            # Whoever ends it has yet to tell the other side, and may be the app's own event loop.
            call.websocket.call_at_end(lambda: self._platform.in_background(call.name, over))
            self._let_go_on(turn, response)
            return response
        response = runner.open(request)
        body = response.stream
        if call.direct and isinstance(body, Body) and "content-length" not in response.headers:

            def end(error: BaseException | None) -> None:
                readers = isinstance(error, OSError) and not isinstance(error, CutShortError)
                if (body.was_left or readers) and not call.cancelled:
                    self.cancel(call, "client_disconnected")
                self._end_what_went_on(turn, response, error)

            body.then(end)
            self._let_go_on(turn, gateway_headers.answer(response, call.request_id, runner.name))
            return response
        return gateway_headers.whole(response)

    def _let_go_on(self, turn: Turn, response: httpx.Response) -> None:
        """Let a direct caller have an answer while the app makes it, or a websocket."""
        with self.changed:
            turn.call.response = response
            turn.call.is_under_way = True
            turn.call.under_way_since = self.clock.now()
            was_left = turn.call.was_left
            self.changed.notify_all()
        if was_left:
            _hang_up(turn.call)

    def leave(self, call: Call) -> None:
        """A direct caller waits no more: an answer that comes later has no reader."""
        with self.changed:
            call.was_left = True
            is_under_way = call.is_under_way
        if is_under_way:
            _hang_up(call)

    def _end_what_went_on(
        self, turn: Turn, response: httpx.Response, error: BaseException | None
    ) -> None:
        """Such an answer is over, and with it the turn."""
        call, attempt, member = turn
        assert member.runner is not None
        lost = member.runner.state == "TERMINATED" and (error is not None or call.opens_websocket)
        outcome = outcome_of(response)
        if lost:
            outcome = Outcome(None, error="runner_disconnected")
        self._end(member, attempt, outcome, response)

    @staticmethod
    def _incomplete(call: Call, member: Member) -> tuple[Outcome, httpx.Response | None]:
        """The body of an answer has ended before it was whole."""
        assert member.runner is not None
        if member.runner.state == "TERMINATED":
            return Outcome(None, error="runner_disconnected"), None
        response = gateway_headers.error("runner_incomplete_response", call.request_id)
        return Outcome(response.status_code), response

    def _end(
        self, member: Member, attempt: Attempt, outcome: Outcome, response: httpx.Response | None
    ) -> None:
        with self.changed:
            jobs = self._conclude(member, attempt, outcome, response)
        self.do([job for job in jobs if not job.last])
        self.go_on()
        # What follows from an answer has happened when the test sees it.
        self.do([job for job in jobs if job.last])

    # --- conclusions -----------------------------------------------------------------------------

    def _conclude(
        self,
        member: Member,
        attempt: Attempt,
        outcome: Outcome,
        response: httpx.Response | None,
        ended: str | None = None,
    ) -> list[Job]:
        """An attempt is over; under the lock."""
        call = member.running.pop(attempt, None)
        if call is None:  # it was over before: by a time-out, or with its runner
            return []
        earlier = tuple(one.condition for one in call.attempts[:-1])
        verdict = judge(outcome, call.policy, earlier, self._platform.after_503)
        attempt.status, attempt.condition = outcome.status, verdict.condition
        attempt.ended, attempt.ended_at = ended or in_words(outcome), self.clock.now()
        if member.runner is not None:
            attempt.log = attempt.log[0], len(member.runner.log)
        call.turn = None
        if not member.running:
            member.idle_since = self.clock.now()
        jobs = self._after(member, attempt, verdict.runner, response)
        if verdict.retry and not call.cancelled and not self.fleet.closed:
            call.waiting_since = self.clock.now()
            self.queue.add(call)
            return jobs
        if verdict.condition is not None and not call.cancelled:
            self.note(f"{call.name} is not retried: {verdict.why}")
        return [*jobs, self._answer(call, final(call, member, outcome, response))]

    def _after(
        self,
        member: Member,
        attempt: Attempt,
        fate: Literal["keep", "probe", "kill"],
        response: httpx.Response | None,
    ) -> list[Job]:
        """What becomes of a runner after an attempt."""
        if member.phase not in ("READY", "DRAINING") or member.runner is None:
            return []
        if response is not None:
            hints = response.headers.get("x-fal-runner-hints", "").split(",")
            member.hints = frozenset(hint.strip() for hint in hints if hint.strip())
        if fate == "kill":
            return self._end_runner(member, attempt)
        if fate == "probe":
            answers = member.runner.state != "TERMINATED"
            result = "it answers" if answers else "no answer"
            self.note(f"TCP probe of {member.name}, which {attempt.ended}: {result}")
        if member.phase == "DRAINING" and not member.running:
            return [self.fleet.stop(member, "drained")]
        return []

    def _end_runner(self, member: Member, attempt: Attempt) -> list[Job]:
        assert member.runner is not None
        jobs = []
        if attempt.status is None and member.runner.state == "TERMINATED":
            self.fleet.lose(member, f"it {attempt.ended}")
        else:
            jobs.append(self.fleet.kill(member, f"it {attempt.ended}"))
        return jobs + self._lose_attempts(member, "died")

    def _lose_attempts(self, member: Member, ended: str) -> list[Job]:
        """What a runner that has ended was doing."""
        jobs: list[Job] = []
        lost = Outcome(None, error="runner_disconnected")
        for attempt in list(member.running):
            jobs += self._conclude(member, attempt, lost, None, ended)
        return jobs

    def _notice_losses(self) -> list[Job]:
        jobs: list[Job] = []
        for member in self.fleet.lost():
            self.fleet.lose(member, "it has ended")
            jobs += self._lose_attempts(member, "died")
        return jobs

    def _end_what_is_over(self) -> list[Job]:
        """The deadlines of calls, waiting and running, that have passed."""
        now = self.clock.now()
        jobs: list[Job] = []
        for call in self.queue:
            if call.deadline is not None and call.deadline <= now:
                why = "no runner has started it in time"
                jobs.append(self._refuse(call, "request_timeout", why, by_user=True))
        for member in list(self.fleet.members):
            for attempt in [one for one in member.running if one.deadline and one.deadline <= now]:
                assert attempt.deadline is not None
                limit = f"request_timeout={(attempt.deadline - attempt.at).total_seconds():g} s"
                lost = Outcome(None, error="request_timeout")
                jobs += self._conclude(member, attempt, lost, None, f"ran longer than {limit}")
        return jobs

    def _refuse(self, call: Call, kind: ErrorType, why: str, by_user: bool = False) -> Job:
        """Answer a call that no runner has."""
        self.queue.remove(call)
        self.note(f"{call.name} ended with {kind}: {why}")
        response = gateway_headers.error(kind, call.request_id)
        if by_user:
            response.headers["x-fal-request-timeout-type"] = "user"
        return self._answer(call, response)

    def _turn_away(self, call: Call) -> Job:
        """Answer a call to what is not there any more; the pages do not say how."""
        self.queue.remove(call)
        self.note(f"{call.name} ended with 404: {self.name} was undeployed")
        return self._answer(call, gateway_headers.undeployed(self.name, call.request_id))

    def _answer(self, call: Call, response: httpx.Response) -> Job:
        if not call.is_under_way:  # else its caller has it already
            call.response = response
        call.completed_at = self.clock.now()

        def publish() -> None:
            self._platform.completed(call)  # who sees that it is over finds its webhook on its way
            with self.changed:
                call.over.set()
                self.changed.notify_all()

        return Job("publish", publish, last=True)

    def cancel(
        self, call: Call, kind: ErrorType = "client_cancelled"
    ) -> Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED"]:
        """Take a call out of the queue, or tell its runner."""
        with self.changed:
            if call.over.is_set() or (call.response is not None and not call.is_under_way):
                return "ALREADY_COMPLETED"
            call.cancelled = True
            member = self.fleet.member(call.turn.runner) if call.turn is not None else None
            jobs = [] if member else [self._refuse(call, kind, "it was waiting")]
        self.do(jobs)
        if member is not None and member.runner is not None:
            self._tell_to_cancel(call, member.runner)
        self.go_on()
        return "CANCELLATION_REQUESTED"

    def _tell_to_cancel(self, call: Call, runner: Server) -> None:
        path = f"{call.path.partition('?')[0].rstrip('/')}/cancel"
        try:
            status = runner.send(request_of(call, runner, path, cancels=True)).status_code
            answered = f"answered {status}"
        except (RunnerError, httpx.TransportError):
            answered = "did not answer"
        self.note(f"cancelled {call.name}: {runner.name} {answered} to POST {path}")


def _hang_up(call: Call) -> None:
    """End what an app makes for a caller that is not there any more."""
    if call.websocket is not None:
        call.websocket.hang_up()
    elif call.response is not None:
        call.response.close()
