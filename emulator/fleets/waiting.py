"""Waiting for a deployment in real time: for an answer, for a turn, for quiet.

Nothing waits for what cannot come. Where only the test can help (move the clock, release the
queue), the error says so at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from emulator.errors import EmulatorError
from emulator.patience import real_seconds

if TYPE_CHECKING:
    import httpx

    from emulator.fleets.call import Call
    from emulator.fleets.call_queue import Member
    from emulator.fleets.dispatch import Dispatch
    from emulator.schedule import Appointment

__all__ = [
    "Caller",
    "direct_answer",
    "refuse_vain_questions",
    "result",
    "settle",
    "waits_for_the_test",
]

_STEP = 0.05
#: As fal_client polls, some five seconds.
_VAIN_QUESTIONS = 50
_VAIN_STARTS = 10
#: Real seconds in which the head of an answer comes from its app.
_HEAD = 0.02
#: Real seconds after which a stopped clock moves on to a caller's time-out, as nothing else moves
#: it; and after which a caller that has none is told that nothing will happen.
_STANDSTILL, _FOR_EVER = 5.0, 30.0
#: How long, in real seconds, an app that lets time pass waits to hear that its caller has left.
_TELLING = 0.25


def result(dispatch: Dispatch, call: Call, timeout: float) -> httpx.Response:
    """The answer to a queued call; see ``Call.result``."""
    for _ in range(max(1, int(timeout / _STEP))):
        if _wait(dispatch, lambda: call.over.is_set() or waits_for_the_test(dispatch, call)):
            if call.over.is_set():
                return _answer(call)
            _raise_if_stuck(dispatch, call, timeout)
        _raise_if_broken(dispatch)
        dispatch.clock.keep_appointments()
    raise EmulatorError(
        f"{call.name} has no answer after {timeout:g} s of real time: {call!r}. What happened: "
        f"{'; '.join(dispatch.history[-5:])}. If a gate holds it, open it before result()."
    )


class Caller:
    """Who waits for the answer to a direct call, and may have enough of it.

    Args:
        patience: seconds of the clock, the client's read time-out; None: it waits for ever.
        check: raises ``ConnectionError`` once the client has hung up.
    """

    def __init__(
        self, patience: float | None = None, check: Callable[[], object] | None = None
    ) -> None:
        self.patience = patience
        self._check = check
        self._left = threading.Event()
        #: The moment of the time-out.
        self._limit: datetime | None = None
        #: Whether the app was told, or is being told, that its caller has left.
        self.has_told = False

    @property
    def may_leave(self) -> bool:
        """Whether there is any end to its waiting."""
        return self.patience is not None or self._check is not None

    def begin(self, dispatch: Dispatch, call: Call) -> None:
        """Start to wait."""
        self._alarm: Appointment | None = None
        if self.patience is not None:
            wait = timedelta(seconds=self.patience)
            self._limit = dispatch.clock.now() + wait
            self._alarm = dispatch.clock.on(wait, lambda: self._leave(dispatch, call))

    def _leave(self, dispatch: Dispatch, call: Call) -> None:
        """The time-out has come, in whatever thread moves the clock.

        That may be the app's own, whose handler sleeps: it gets a moment to be told meanwhile. The
        head of an answer that the app has sent before gets one to come here.
        """
        is_there = dispatch.wait_until(lambda: call.is_under_way, _HEAD)
        if is_there and not self._is_too_late(dispatch, call):
            return
        told = threading.Event()

        def tell() -> None:
            try:
                dispatch.cancel(call, "client_disconnected")
            finally:
                told.set()

        self.has_told = True
        self._left.set()
        dispatch.in_background("leaves", tell)
        told.wait(_TELLING)

    def end(self) -> None:
        """The answer is there, or is waited for no more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def check(self) -> None:
        """Raise what the client meets, if it has waited long enough: TimeoutError."""
        if self._left.is_set():
            raise self._timed_out()
        if self._check is not None:
            self._check()

    def check_in_time(self, dispatch: Dispatch, call: Call) -> None:
        """The same for an answer that is there."""
        self.check()
        if self._is_too_late(dispatch, call):
            raise self._timed_out()

    def _is_too_late(self, dispatch: Dispatch, call: Call) -> bool:
        """Whether an answer was made after the time-out: several threads move a stopped clock."""
        since = call.under_way_since or call.completed_at
        if self._limit is None or since is None or not dispatch.clock.frozen:
            return False
        return since > self._limit

    def _timed_out(self) -> TimeoutError:
        return TimeoutError(f"no answer within {self.patience:g} s, the client's read time-out")


def direct_answer(dispatch: Dispatch, call: Call, caller: Caller) -> httpx.Response:
    """Run a direct call as soon as it has a runner: in this thread, unless its caller may leave.

    What it has to wait for on a stopped clock moves the clock, as a sleep of its caller would.

    Raises:
        OSError: the caller has left; the app is told [§4.6].
    """
    caller.begin(dispatch, call)
    since = real_seconds()
    try:
        while not _is_answered(call):
            _come_closer(dispatch, call, caller)
            caller.check()
            if call.attempts or dispatch.fleet.is_booting:
                since = real_seconds()
            _move_on_from_a_standstill(dispatch, call, caller, real_seconds() - since)
            _raise_if_broken(dispatch)
            dispatch.clock.keep_appointments()
        caller.check_in_time(dispatch, call)
    except BaseException:  # whatever it is, nobody waits for the answer any more
        if not caller.has_told:
            dispatch.cancel(call, "client_disconnected")
        dispatch.leave(call)
        raise
    finally:
        caller.end()
    return _answer(call)


def _move_on_from_a_standstill(
    dispatch: Dispatch, call: Call, caller: Caller, waited: float
) -> None:
    """A call that waits for a busy runner, which may itself wait for this call."""
    if not dispatch.clock.frozen:
        return
    if caller.patience is not None and waited > _STANDSTILL:
        dispatch.clock.sleep(caller.patience)
    elif caller.patience is None and waited > _FOR_EVER:
        busy = ", ".join(one.name for one in dispatch.fleet.members if one.running)
        raise EmulatorError(
            f"{call.name} waits for a free runner of {dispatch.name}, and {busy} had none of its "
            f"requests end in {waited:.0f} s of real time. If one of these waits for {call.name}, "
            "give the deployment more: deploy(..., max_concurrency=...) or max_multiplexing."
        )


def _come_closer(dispatch: Dispatch, call: Call, caller: Caller) -> None:
    """Do what a direct call's caller does while it waits, for a moment."""
    turn = call.turn
    if turn is None:
        if not _wait_for_turn(dispatch, call):
            _pass_time(dispatch, call)
    elif not caller.may_leave:
        dispatch.perform(dispatch.turn_of(call, turn))
        _wait(dispatch, lambda: _is_answered(call))
    else:
        if not call.begun:
            call.begun = True
            dispatch.do([dispatch.performing(dispatch.turn_of(call, turn))])
        _wait(dispatch, lambda: _is_answered(call))


def _is_answered(call: Call) -> bool:
    return call.over.is_set() or call.is_under_way


def settle(dispatch: Dispatch, timeout: float) -> None:
    """Wait until nothing goes on: no start, no end, no handler."""
    for _ in range(max(1, int(timeout / _STEP))):
        if _wait(dispatch, lambda: _rests(dispatch) and not dispatch.fleet.is_booting):
            _raise_if_broken(dispatch)
            return
        dispatch.clock.keep_appointments()
    moving = [
        f"{member.name} is {_doing(member)}"
        for member in dispatch.fleet.members
        if member.running or member.booting or member.phase == "STOPPING"
    ]
    raise EmulatorError(
        f"{dispatch.name} does not come to rest within {timeout:g} s of real time: "
        f"{', '.join(moving)}. If a gate holds it, open it first."
    )


def _doing(member: Member) -> str:
    return "RUNNING" if member.running else "STARTING" if member.booting else member.phase


def _wait(dispatch: Dispatch, condition: Callable[[], bool]) -> bool:
    return dispatch.wait_until(condition, _STEP)


def _wait_for_turn(dispatch: Dispatch, call: Call) -> bool:
    """Wait for a while; False: only the clock can help."""
    _wait(dispatch, lambda: _has_turn(call) or waits_for_the_test(dispatch, call))
    with dispatch.changed:
        return _has_turn(call) or not waits_for_the_test(dispatch, call)


def _has_turn(call: Call) -> bool:
    return call.turn is not None or call.over.is_set()


def waits_for_the_test(dispatch: Dispatch, call: Call) -> bool:
    """Whether a call waits, although nothing goes on that could end that."""
    return dispatch.queue.position(call) is not None and _rests(dispatch)


def _rests(dispatch: Dispatch) -> bool:
    return not dispatch.fleet.is_moving and not any(
        member.running for member in dispatch.fleet.members
    )


def refuse_vain_questions(dispatch: Dispatch, call: Call, asker: threading.Thread | None) -> None:
    """End the polling of a test for a call that will not be answered while it polls.

    Nobody but the test itself could run it, or no runner comes up for it.

    Raises:
        EmulatorError: after some seconds of fal_client's polling; says what to write.
    """
    why = _why_in_vain(dispatch, call) if asker is threading.main_thread() else None
    if why is None:
        call.asked_in_vain = 0
        return
    call.asked_in_vain += 1
    if call.asked_in_vain > _VAIN_QUESTIONS:
        raise EmulatorError(why)


def _why_in_vain(dispatch: Dispatch, call: Call) -> str | None:
    """Why a call is not answered, however long one polls; None: it may be."""
    if call.deadline is not None or not waits_for_the_test(dispatch, call):
        return None
    fleet, clock = dispatch.fleet, dispatch.clock
    # On a stopped clock the polling itself moves it on to the next start.
    if fleet.failures > (_VAIN_STARTS if clock.frozen else 0) and fleet.is_down:
        return (
            f"{call.name} waits for a runner of {dispatch.name}, and {fleet.last_failure[1]} "
            f"({fleet.failures} times; the next start is at {fleet.blocked_until:%H:%M:%S}). "
            "If that is meant, stop the clock first, so that waiting takes no time: "
            "fal_clock.freeze()."
        )
    if not dispatch.queue.held:
        return None
    return (
        f"{call.name} waits in a queue that is held, and the test waits for {call.name}. Write "
        "deployment.run_next() before you ask for its result, or deployment.release(); or call "
        "subscribe() in a thread of its own."
    )


def _raise_if_broken(dispatch: Dispatch) -> None:
    if dispatch.fleet.broken is not None:
        raise dispatch.fleet.broken


def _raise_if_stuck(dispatch: Dispatch, call: Call, timeout: float) -> None:
    """A call that waits, although nothing goes on, waits for the test."""
    if dispatch.queue.held:
        raise EmulatorError(
            f"{call.name} waits in a queue that is held. Write deployment.run_next() to run the "
            "next call, or deployment.release()."
        )
    seconds = _seconds_to_go(dispatch)
    if seconds is not None and (dispatch.clock.frozen or seconds > timeout):
        raise EmulatorError(
            f"{call.name} waits for the clock: {_what_for(dispatch)}, at {dispatch.wake:%H:%M:%S}. "
            f"Write fal_clock.advance(seconds={seconds:g}) before result()."
        )


def _pass_time(dispatch: Dispatch, call: Call) -> None:
    seconds = _seconds_to_go(dispatch)
    if seconds is None or seconds <= 0:
        return
    if not dispatch.clock.frozen:
        raise EmulatorError(
            f"{call.name} would wait for {seconds:g} s: {_what_for(dispatch)}. Stop the clock "
            "first, so that this takes no time: fal_clock.freeze()."
        )
    dispatch.clock.sleep(seconds)


def _seconds_to_go(dispatch: Dispatch) -> float | None:
    if dispatch.wake is None:
        return None
    return (dispatch.wake - dispatch.clock.now()).total_seconds()


def _what_for(dispatch: Dispatch) -> str:
    blocked = dispatch.fleet.blocked_until
    if blocked is not None and blocked > dispatch.clock.now():
        return "the next start of a runner (CRASH_BACKOFF)"
    return f"scaling_delay={dispatch.fleet.scaling.scaling_delay:g}"


def _answer(call: Call) -> httpx.Response:
    if call.response is None:
        raise EmulatorError(f"{call.name} was dropped: the test was over before its turn.")
    return call.response
