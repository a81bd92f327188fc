"""What happens at a moment of the clock: an agenda of callbacks, pure but for its lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

__all__ = ["Agenda", "Appointment"]


@dataclass(eq=False)
class Appointment:
    """A callback that waits for its moment; ``cancel`` it, or read ``done``."""

    #: Nanoseconds since the epoch.
    moment: int
    callback: Callable[[], object] = field(repr=False)
    #: Nanoseconds after which it is due again; None: once.
    every: int | None
    number: int
    #: How often it was called.
    calls: int = 0
    #: Whether it is not to be called any more.
    cancelled: bool = False

    def cancel(self) -> None:
        """Do not call it (any more)."""
        self.cancelled = True

    @property
    def done(self) -> bool:
        """Whether it will not be called (any more)."""
        return self.cancelled or (self.every is None and self.calls > 0)


class Agenda:
    """Appointments in the order of their moments, those of one moment as they were made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = count()
        self._waiting: list[Appointment] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, moment: int, callback: Callable[[], object], every: int | None) -> Appointment:
        """Make an appointment."""
        with self._lock:
            made = Appointment(moment, callback, every, next(self._numbers))
            self._waiting.append(made)
            return made

    def take(self, until: int) -> Appointment | None:
        """The next appointment up to a moment; it is called by whoever took it.

        One that repeats waits again, counted from the moment at which it was due.
        """
        with self._lock:
            self._waiting = [made for made in self._waiting if not made.cancelled]
            due = [made for made in self._waiting if made.moment <= until]
            if not due:
                return None
            first = min(due, key=lambda made: (made.moment, made.number))
            first.calls += 1
            if first.every is None:
                self._waiting.remove(first)
                return first
            taken = Appointment(first.moment, first.callback, first.every, first.number)
            first.moment += first.every
            return taken

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._waiting = []
