"""The one clock: tokens, expiry, retention, keep-alive and the times of files all follow it.

It is real time, with nothing replaced anywhere, until a test stops or moves it. From then on
``datetime.now``, ``time.time``, ``os.stat`` and the rest of what an app sees tell the clock's
time, and a ``time.sleep`` on a stopped clock moves it instead of waiting. What has to wait for
something real (sockets, locks, event loops, subprocesses) goes on in real time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING

from emulator.file_times import FileTimes, real_now
from emulator.schedule import Agenda, Appointment
from emulator.timeline import Timeline
from emulator.timepatch import TimePatch, naive_utc

if TYPE_CHECKING:
    from datetime import datetime

    Subscriber = Callable[[datetime, datetime], object]

__all__ = ["Clock"]

_BILLION = 1_000_000_000
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = naive_utc(0).replace(tzinfo=timezone.utc)


class Clock:
    """What time it is for the app: real, shifted and ticking, or stopped.

    Where a test has frozen time with freezegun itself, the clock follows that freeze until
    ``freeze``, ``advance`` or ``move_to`` is called.

    ``volumes`` returns the directories in which file times are to be exact on kernels before
    Linux 6.13 too (a file written within 10 ms before a jump could else seem written after it).
    ``files`` is how the times of files are translated, by default as well as the kernel allows.
    """

    def __init__(self, files: FileTimes | None = None) -> None:
        self.volumes: Callable[[], Iterable[str]] = tuple
        #: Called before the clock is moved by the test.
        self.before_moving: Callable[[], object] = lambda: None
        #: Around a move by somebody's sleep, in the thread of that.
        self.around_waking: Callable[[], AbstractContextManager[object]] = nullcontext
        self._lock = threading.RLock()
        self._files = files or FileTimes()
        self._subscribers: list[tuple[bool, Subscriber]] = []
        self._agenda = Agenda()
        self._frozen = False
        self._patch = TimePatch(
            naive_now=lambda: naive_utc(self._files.timeline.now(real_now())),
            stopped=self._stands_still,
            start_sleep=self._start_sleep,
            files=self._files,
        )

    @property
    def files(self) -> FileTimes:
        """How the times of files are translated, and the clock's history."""
        return self._files

    def __repr__(self) -> str:
        state = "stopped" if self.frozen else "shifted" if self.shifted else "real"
        return f"<Clock: {self.now():%Y-%m-%d %H:%M:%S} UTC, {state}>"

    def now(self) -> datetime:
        """Return the clock's time: aware, UTC, and never a ``FakeDatetime``."""
        return _moment(self._nanoseconds())

    def time(self) -> float:
        """Return the clock's time in seconds since the epoch."""
        return self._nanoseconds() // 1000 / 1e6

    @property
    def engaged(self) -> bool:
        """Whether the app sees this clock instead of real time."""
        return self._patch.engaged

    @property
    def frozen(self) -> bool:
        """Whether the clock was stopped."""
        return self._frozen

    @property
    def shifted(self) -> bool:
        """Whether the clock tells another time than the machine's."""
        real = real_now()
        return self.engaged and self._files.timeline.now(real) != real

    def freeze(self, at: datetime | None = None) -> None:
        """Stop the clock, now or at the moment ``at``.

        Raises ``ValueError`` if ``at`` has no time zone.
        """
        target = None if at is None else _since_epoch(at, "freeze")
        if target is not None and self._agenda:  # stop first, and go there by the appointments
            self._jump(lambda now: now, ticking=False)
            self._travel(target, lambda _: target)
            return
        self._jump(lambda now: now if target is None else target, ticking=False)

    def advance(
        self,
        delta: timedelta | float | None = None,
        *,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        milliseconds: float = 0,
    ) -> datetime:
        """Move the clock forward by a ``timedelta``, by seconds, or by the units named.

        A running clock goes on ticking from there, a stopped one stays stopped. Returns the new
        time. Raises ``TypeError`` if it is not told by how much.
        """
        named = timedelta(
            weeks=weeks,
            days=days,
            hours=hours,
            minutes=minutes,
            seconds=seconds,
            milliseconds=milliseconds,
        )
        if delta is None and not named:
            raise TypeError(
                "advance() was not told by how much. Write clock.advance(hours=1), "
                "clock.advance(90) for seconds, or clock.advance(timedelta(days=30))."
            )
        step = _nanoseconds_of(named) + _nanoseconds_of(delta or 0)
        self.before_moving()
        return self._travel(self._nanoseconds() + step, lambda now: now + step)

    def move_to(self, moment: datetime) -> datetime:
        """Set the clock to ``moment``, backwards too; it ticks on, or stays stopped.

        Raises ``ValueError`` if ``moment`` has no time zone.
        """
        target = _since_epoch(moment, "move_to")
        self.before_moving()
        return self._travel(target, lambda _: target)

    def on(
        self,
        when: datetime | timedelta | float,
        callback: Callable[[], object],
        *,
        every: timedelta | float | None = None,
    ) -> Appointment:
        """Let something happen at a moment: ``clock.on(timedelta(hours=1), gate.open)``.

        When the clock is moved past it (by ``advance``, ``move_to``, a sleep or a slow body on a
        stopped clock), ``callback`` is called with the clock at that very moment, in the thread
        that moves it, and the clock goes on from there; what the callback raises ends the move
        there. On a running clock it is called with the first request, or the first move, after
        that moment.

        Args:
            when: the moment; or how long from now, as a ``timedelta`` or in seconds.
            callback: called without arguments.
            every: call it again each time so much has passed.

        Returns:
            The appointment: ``cancel()`` it, read ``calls``.

        Raises:
            ValueError: the moment has no time zone or is over, or ``every`` is not positive.
        """
        now = self._nanoseconds()
        if isinstance(when, (timedelta, int, float)):
            moment = now + _nanoseconds_of(when)
        else:
            moment = _since_epoch(when, "on")
        if moment < now:
            raise ValueError(
                f"Clock.on() was given {_moment(moment).isoformat()}, and the clock is at "
                f"{_moment(now).isoformat()} already. Write on(timedelta(hours=1), ...) for an "
                "hour from now."
            )
        step = None if every is None else _nanoseconds_of(every)
        if step is not None and step <= 0:
            raise ValueError("Clock.on(every=...) has to be more than 0, for example 60 seconds.")
        return self._agenda.add(moment, callback, step)

    def keep_appointments(self) -> None:
        """Call what is due on a clock that runs; the emulator does so before each request."""
        if not self._stands_still():
            while (due := self._agenda.take(self._nanoseconds())) is not None:
                due.callback()

    def sleep(self, seconds: float) -> None:
        """Do what ``time.sleep`` does in an app.

        On a stopped clock it is moved to the end of the sleep, unless it is past that already:
        sleeps that began at the same moment do not add up. Else this really sleeps.
        """
        if seconds > 0 and self._stands_still():
            self._start_sleep(seconds)()
        else:
            self._patch.real_sleep(seconds)

    def resume(self) -> None:
        """Go back to real time, with nothing replaced.

        Files keep their places in the clock's history, should it be moved again.
        """
        with self._lock:
            if not self.engaged:
                return
            old, real = self._nanoseconds(), real_now()
            boundary = self._files.boundary(self.volumes())
            # From the boundary on, which a coarse clock of the kernel's puts before ``real``: what
            # is stamped between the two was read with its real time while nothing was replaced.
            start = min(boundary, real)
            self._files.timeline = self._files.timeline.then(boundary, start, start, ticking=True)
            self._frozen = False
            self._patch.disengage()
        self._notify(old, real)

    def reset(self) -> None:
        """Go back to real time and forget everything but the subscribers; called after a test."""
        with self._lock:
            if self.engaged:
                self._patch.disengage()
            self._patch.freezegun.clean_up()
            self._frozen = False
            self._files.forget()
            self._agenda.clear()

    def subscribe(self, callback: Subscriber, *, last: bool = False) -> None:
        """Call ``callback(old, new)`` after each jump, in the thread that moved the clock.

        With *last*, after all others: it wakes somebody who shall find everything in order.
        """
        known = [*self._subscribers, (last, callback)]
        self._subscribers = sorted(known, key=lambda subscriber: subscriber[0])

    def same_device(self, device: int, as_device: int) -> None:
        """Times set on a file count for it through another mount too: two numbers of devices."""
        self._files.devices[device] = as_device

    def unsubscribe(self, callback: Subscriber) -> None:
        """Stop calling ``callback``; nothing happens if it is not called anyway."""
        self._subscribers = [known for known in self._subscribers if known[1] != callback]

    def _nanoseconds(self) -> int:
        foreign = self._patch.freezegun.foreign
        if foreign is None:
            return self._files.timeline.now(real_now()) if self.engaged else real_now()
        return (foreign[0]() - naive_utc(0)) // _MICROSECOND * 1000

    def _stands_still(self) -> bool:
        return self._frozen and self._patch.freezegun.foreign is None

    def _travel(self, target: int, choose: Callable[[int], int]) -> datetime:
        """Move the clock, and keep the appointments on the way."""
        if not self._agenda or target < self._nanoseconds():
            return self._jump(choose)
        while (due := self._agenda.take(target)) is not None:
            self._jump(partial(max, due.moment))
            due.callback()
        return self._jump(partial(max, target))

    def _jump(self, choose: Callable[[int], int], ticking: bool | None = None) -> datetime:
        with self._lock:
            foreign = self._patch.freezegun.foreign
            real, old = real_now(), self._nanoseconds()
            # Whole microseconds, so that file times and ``datetime`` agree to the last digit.
            new = choose(old) // 1000 * 1000
            moment = _moment(new)
            if ticking is None:
                ticking = foreign[1] if foreign else not self._frozen
            timeline = self._files.timeline
            if self.engaged:
                self._patch.freezegun.claim()
            boundary = self._files.boundary(self.volumes())
            self._files.timeline = timeline.then(boundary, real, new, ticking=ticking)
            self._frozen = not ticking
            if not self.engaged:
                self._engage(timeline)
        self._notify(old, new)
        return moment

    def _engage(self, before: Timeline) -> None:
        try:
            self._patch.engage()
        except BaseException:
            self._files.timeline = before
            self._frozen = False
            raise

    def _start_sleep(self, seconds: float) -> Callable[[], object]:
        end = self._nanoseconds() + timedelta(seconds=seconds) // _MICROSECOND * 1000
        return lambda: self.wake(end)

    def wake(self, end: int) -> None:
        """End a sleep: move a clock that stands still forward to ``end``, in nanoseconds since the
        epoch, keeping the appointments till then."""
        with self.around_waking():
            self._wake(end)

    def _wake(self, end: int) -> None:
        while self._agenda and (due := self._agenda.take(end)) is not None:
            self._creep(due.moment)
            due.callback()
        self._creep(end)

    def _creep(self, moment: int) -> None:
        """Move a clock that stands still forward to a moment, unless it is there."""
        with self._lock:
            if not self._stands_still() or self._nanoseconds() >= moment:
                return
            old = self._nanoseconds()
            boundary = self._files.boundary(self.volumes())
            timeline = self._files.timeline.then(boundary, real_now(), moment, ticking=False)
            self._files.timeline = timeline
        self._notify(old, moment)

    def _notify(self, old: int, new: int) -> None:
        before, after = _moment(old), _moment(new)
        for _, callback in self._subscribers:
            callback(before, after)


def _moment(nanoseconds: int) -> datetime:
    return naive_utc(nanoseconds).replace(tzinfo=timezone.utc)


def _since_epoch(moment: datetime, method: str) -> int:
    if moment.utcoffset() is None:
        raise ValueError(
            f"Clock.{method}() was given {moment.isoformat()}, which has no time zone, so it names "
            f"no moment. Write {method}(datetime(..., tzinfo=timezone.utc))."
        )
    return (moment - _EPOCH) // _MICROSECOND * 1000


def _nanoseconds_of(span: timedelta | float) -> int:
    whole = span if isinstance(span, timedelta) else timedelta(seconds=span)
    return whole // _MICROSECOND * 1000
