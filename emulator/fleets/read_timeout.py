"""A client's read time-out between the pieces of an answer, by the clock."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulator.clock import Clock

__all__ = ["ReadTimeout"]

_STEP_MILLISECONDS = 50


class ReadTimeout:
    """Waits for the next piece, and not for ever.

    Args:
        seconds: of the clock, that a client waits for each piece.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds

    def wait_for(self, descriptor: int) -> None:
        """Wait until there is something to read at a descriptor.

        Raises:
            TimeoutError: nothing has come in time.
        """
        is_late = threading.Event()

        def decide() -> None:
            # In the thread that moves the clock: what has come by now was in time.
            if not _has_come(descriptor, 0):
                is_late.set()

        alarm = self._clock.on(self._seconds, decide)
        try:
            while not is_late.is_set():
                if _has_come(descriptor, _STEP_MILLISECONDS) and not is_late.is_set():
                    return
                self._clock.keep_appointments()
        finally:
            alarm.cancel()
        raise TimeoutError(f"nothing came for {self._seconds:g} s, the client's read time-out")


def _has_come(descriptor: int, milliseconds: int) -> bool:
    """Whether there is something to be read, or comes within so many milliseconds."""
    poller = select.poll()  # one for each thread: two cannot poll one at a time
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(milliseconds))
