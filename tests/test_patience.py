"""Waiting for what somebody else does."""

from __future__ import annotations

import threading
from datetime import timedelta

from emulator.clock import Clock
from emulator.patience import ON_A_STOPPED_CLOCK, wait_until


def test_who_is_notified_of_other_things_waits_no_shorter(fal_clock: Clock) -> None:
    fal_clock.freeze()
    changed, over = threading.Condition(), threading.Event()
    looks = []

    def disturb() -> None:
        while not over.wait(0.005):
            with changed:
                changed.notify_all()

    def done() -> bool:
        looks.append(None)
        return len(looks) > 10  # more than there are whole steps of a wait

    thread = threading.Thread(target=disturb)
    thread.start()
    before = fal_clock.now()
    assert wait_until(fal_clock, changed, done, timedelta(seconds=10))
    over.set()
    thread.join()
    assert fal_clock.now() == before
    assert ON_A_STOPPED_CLOCK / 0.05 < 10
