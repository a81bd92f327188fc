"""Waiting for what somebody else does: in real time while the clock runs, else by moving it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from emulator.file_times import real_now

if TYPE_CHECKING:
    from emulator.clock import Clock

__all__ = ["real_seconds", "wait_until"]

#: Real seconds that other threads get to finish what they do while the clock stands still.
ON_A_STOPPED_CLOCK = 0.25
#: How often who waits looks whether its client is still there.
CHECK_SECONDS = 0.05


def wait_until(
    clock: Clock,
    changed: threading.Condition,
    done: Callable[[], bool],
    limit: timedelta,
    check: Callable[[], object] = lambda: None,
    *,
    due: datetime | None = None,
    hopeless: bool = False,
) -> bool:
    """Wait until *done*, at most for *limit*; whether it is.

    While the clock runs this is real time, in which its appointments are kept. On a stopped clock
    other threads get a moment, and then the clock moves on by *limit*; where it is known when it
    will be done, to that moment at once.

    Args:
        changed: notified when it may be done.
        check: called now and then; what it raises ends the wait.
        due: the moment of the clock at which an appointment will bring it about.
        hopeless: nothing can bring it about any more: nobody really waits for it.
    """
    start, frozen = clock.now(), clock.frozen
    span = limit if due is None else min(limit, max(due - start, timedelta(0)))
    if hopeless or (frozen and due is not None):
        left = 0.0
    else:
        left = ON_A_STOPPED_CLOCK if frozen else limit.total_seconds()
    while True:
        with changed:
            if done():
                return True
            if left > 0:
                begun = real_seconds()
                changed.wait(min(left, CHECK_SECONDS))
                left -= real_seconds() - begun  # it is notified of other things, too
        if left <= 0:
            break
        check()
        clock.keep_appointments()
    if not done() and frozen:
        clock.sleep(span.total_seconds())
    return done()


def real_seconds() -> float:
    """The machine's own time, whatever the clock says."""
    return real_now() / 1e9
