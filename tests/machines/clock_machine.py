"""The clock beside a small model: whoever asks for the time, by whatever name, is told the same."""

from __future__ import annotations

import calendar
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, precondition, rule
from machines.machine import NOON, EmulatorMachine

if TYPE_CHECKING:
    from emulator.account import Emulator

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)
#: Nanoseconds by which readings may differ: ``datetime`` counts microseconds, ``time.time`` is a
#: float that cannot tell less than a quarter of one.
READING = 2_000
#: The kernel stamps files, and counts seconds, with a clock that ticks every 1-10 ms; on Linux
#: before 6.13 files written just before a jump are pushed back behind it.
TICK = 25_000_000

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
spans = st.sampled_from([MICROSECOND, timedelta(milliseconds=250), HOUR, DAY, 400 * DAY])
moments = st.sampled_from(
    [NOON, NOON - MICROSECOND, NOON + HOUR, NOON - 400 * DAY, EPOCH + DAY, NOON + 20_000 * DAY]
)
paths = st.sampled_from([f"/data/{name}" for name in "abcd"])


class Between(NamedTuple):
    """A moment that is known to lie between two, in nanoseconds since the epoch."""

    low: int
    high: int

    def widened(self, below: int, above: int) -> Between:
        return Between(self.low - below, self.high + above)

    def __contains__(self, moment: object) -> bool:
        return isinstance(moment, int) and self.low <= moment <= self.high


@dataclass
class Stamp:
    """When a file was written, on the clock and really."""

    virtual: Between
    #: None: not known, as its time was set by hand.
    real: Between | None


@dataclass(eq=False)
class Entry:
    """What the model knows of an appointment."""

    number: int
    moment: datetime
    every: timedelta | None
    appointment: Any = None


class ClockAndFiles(EmulatorMachine):
    """Stop, move, sleep, resume, write files, in any order."""

    entries = Bundle("entries")

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(emulator)
        self.files: dict[str, Stamp] = {}
        self.entered: list[Entry] = []
        self.called: list[tuple[int, datetime]] = []
        self.numbers = 0

    @initialize()
    def start(self) -> None:
        self.emulator.reset()
        self.clock = self.emulator.clock
        self.frozen = self.engaged = False
        #: What the clock showed when it was last moved, and when that really was.
        self.shown = self.moved = Between(0, 0)

    # --- the model -------------------------------------------------------------------------------

    def _expected(self, real: Between) -> Between:
        """What the clock shows at a moment of real time."""
        if not self.engaged:
            return real
        if self.frozen:
            return self.shown
        low, high = real.low - self.moved.high, real.high - self.moved.low
        return self.shown.widened(-max(low, 0), high)

    def _move(self, move: Callable[[], object], to: Callable[[Between], Between]) -> None:
        """Move the clock; *to* tells from what it shows before what it shows after."""
        before = _real_now()
        move()
        real = Between(before, _real_now())
        # Moves end at whole microseconds.
        self.shown = to(self._expected(real)).widened(0 if self.frozen else 999, 0)
        self.moved = real
        self.engaged = True

    def _call_up_to(self, moment: datetime) -> list[tuple[int, datetime]]:
        """The calls that a move of a stopped clock to *moment* makes."""
        calls = []
        now = self.clock.now()
        while due := [entry for entry in self.entered if now <= moment >= entry.moment]:
            first = min(due, key=lambda entry: (entry.moment, entry.number))
            calls.append((first.number, max(now, first.moment)))
            if first.every is None:
                self.entered.remove(first)
            else:
                first.moment += first.every
        return calls

    # --- moving ----------------------------------------------------------------------------------

    @rule(at=st.none() | moments)
    def freeze(self, at: datetime | None) -> None:
        calls = [] if at is None else self._call_up_to(at)
        there = None if at is None else _exactly(at)
        self._move(lambda: self.clock.freeze(at), lambda now: there or now.widened(999, 0))
        self.frozen = True
        # Which of the possible moments it has stopped at is told by the clock, once.
        stopped = _nanoseconds(self.clock.now())
        assert stopped in self.shown
        self.shown = Between(stopped, stopped)
        self._check_calls(calls)

    @rule(span=spans)
    def advance(self, span: timedelta) -> None:
        step = span // MICROSECOND * 1000
        calls = self._call_up_to(self.clock.now() + span)
        self._move(lambda: self.clock.advance(span), lambda now: now.widened(-step, step))
        self._check_calls(calls)

    @rule(moment=moments)
    def move_to(self, moment: datetime) -> None:
        calls = self._call_up_to(moment)
        self._move(lambda: self.clock.move_to(moment), lambda _: _exactly(moment))
        self._check_calls(calls)

    @precondition(lambda self: self.frozen)
    @rule(span=spans)
    def sleep(self, span: timedelta) -> None:
        step = span // MICROSECOND * 1000
        calls = self._call_up_to(self.clock.now() + span)
        self._move(lambda: time.sleep(span.total_seconds()), lambda now: now.widened(-step, step))
        self._check_calls(calls)

    @precondition(lambda self: self.engaged)
    @rule()
    def resume(self) -> None:
        self.clock.resume()
        self.frozen = self.engaged = False
        # When real time comes to them is told elsewhere.
        for entry in self.entered:
            entry.appointment.cancel()
        self.entered.clear()

    # --- appointments ----------------------------------------------------------------------------

    @precondition(lambda self: self.frozen)
    @rule(target=entries, span=spans, every=st.none() | st.just(300 * DAY))
    def on(self, span: timedelta, every: timedelta | None) -> Entry:
        self.numbers += 1
        number = self.numbers
        entry = Entry(number, self.clock.now() + span, every)
        entry.appointment = self.clock.on(
            span, lambda: self.called.append((number, self.clock.now())), every=every
        )
        self.entered.append(entry)
        return entry

    @rule(entry=entries)
    def cancel(self, entry: Entry) -> None:
        entry.appointment.cancel()
        if entry in self.entered:
            self.entered.remove(entry)

    def _check_calls(self, expected: list[tuple[int, datetime]]) -> None:
        """Each was called once, in order, with the clock at its very moment."""
        assert self.called == expected
        self.called.clear()

    # --- files -----------------------------------------------------------------------------------

    @rule(path=paths)
    def write(self, path: str) -> None:
        before = _real_now()
        with open(path, "a") as file:
            file.write("x")
        real = Between(before, _real_now())
        virtual = self._expected(real)
        if not self.frozen:
            # Never before the moment at which the clock was moved.
            virtual = virtual.widened(TICK, READING)
            if self.engaged:
                virtual = Between(max(virtual.low, self.shown.low), virtual.high)
        self.files[path] = Stamp(virtual, real.widened(TICK, READING))

    @precondition(lambda self: self.engaged)
    @rule(path=paths, moment=moments)
    def set_the_time_of(self, path: str, moment: datetime) -> None:
        if path in self.files:
            nanoseconds = _nanoseconds(moment)
            os.utime(path, ns=(nanoseconds, nanoseconds))
            self.files[path] = Stamp(_exactly(moment), None)

    # --- what always holds -----------------------------------------------------------------------

    def check(self) -> None:
        assert (self.clock.frozen, self.clock.engaged) == (self.frozen, self.engaged)
        self._whoever_asks_is_told_the_same()
        self._files_keep_their_times()

    def _whoever_asks_is_told_the_same(self) -> None:
        before = _real_now()
        told = {
            "clock.now": _nanoseconds(self.clock.now()),
            "clock.time": round(self.clock.time() * 1e9),
            "time.time": round(time.time() * 1e9),
            "time.time_ns": time.time_ns(),
            "datetime.now": _nanoseconds(datetime.now(timezone.utc)),
            "file": self._stamp_of_a_fresh_file(),
        }
        second = calendar.timegm(time.gmtime())
        expected = self._expected(Between(before, _real_now()))
        for name, moment in told.items():
            below = TICK if name == "file" and not self.frozen else READING
            assert moment in expected.widened(below, READING), name
        earliest = expected.low - (0 if self.frozen else TICK)
        assert earliest // 10**9 <= second <= expected.high // 10**9
        if self.frozen:
            exact = {told["clock.now"], told["datetime.now"], told["file"]}
            assert exact == {expected.low}

    def _stamp_of_a_fresh_file(self) -> int:
        path = "/data/fresh"
        with open(path, "w") as file:
            file.write("x")
        stamp = os.stat(path).st_mtime_ns
        os.unlink(path)
        return stamp

    def _files_keep_their_times(self) -> None:
        for path, stamp in self.files.items():
            # Back in real time they tell the kernel's; moved again, the clock remembers.
            expected = stamp.virtual if self.engaged else stamp.real
            assert expected is None or os.stat(path).st_mtime_ns in expected


def _real_now() -> int:
    return time.clock_gettime_ns(time.CLOCK_REALTIME)


def _nanoseconds(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND * 1000


def _exactly(moment: datetime) -> Between:
    return Between(_nanoseconds(moment), _nanoseconds(moment))
