"""Waiting for a deployment in real time: for an answer, for a turn, for quiet.

Nothing waits for what cannot come. Where only the test can help (move the clock, release the
queue), the error says so at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    import httpx

    from emulator.runners.call import Call
    from emulator.runners.call_queue import Member
    from emulator.runners.dispatch import Dispatch

__all__ = ["direct_answer", "result", "settle"]

_STEP = 0.05


def result(dispatch: Dispatch, call: Call, timeout: float) -> httpx.Response:
    """The answer to a queued call; see ``Call.result``."""
    for _ in range(max(1, int(timeout / _STEP))):
        if _wait(dispatch, lambda: call.over.is_set() or _waits_for_the_test(dispatch, call)):
            if call.over.is_set():
                return _answer(call)
            _raise_if_stuck(dispatch, call, timeout)
        _raise_if_broken(dispatch)
        dispatch.clock.keep_appointments()
    raise EmulatorError(
        f"{call.name} has no answer after {timeout:g} s of real time: {call!r}. What happened: "
        f"{'; '.join(dispatch.history[-5:])}. If a gate holds it, open it before result()."
    )


def direct_answer(dispatch: Dispatch, call: Call) -> httpx.Response:
    """Run a direct call in this thread, as soon as it has a runner.

    What it has to wait for on a stopped clock moves the clock, as a sleep of its caller would.
    """
    while not call.over.is_set():
        turn = call.turn
        if turn is not None:
            dispatch.perform(dispatch.turn_of(call, turn))
            call.over.wait()
        elif not _wait_for_turn(dispatch, call):
            _pass_time(dispatch, call)
        _raise_if_broken(dispatch)
        dispatch.clock.keep_appointments()
    return _answer(call)


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
    _wait(dispatch, lambda: _has_turn(call) or _waits_for_the_test(dispatch, call))
    with dispatch.changed:
        return _has_turn(call) or not _waits_for_the_test(dispatch, call)


def _has_turn(call: Call) -> bool:
    return call.turn is not None or call.over.is_set()


def _waits_for_the_test(dispatch: Dispatch, call: Call) -> bool:
    return dispatch.queue.position(call) is not None and _rests(dispatch)


def _rests(dispatch: Dispatch) -> bool:
    return not dispatch.fleet.is_moving and not any(
        member.running for member in dispatch.fleet.members
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
