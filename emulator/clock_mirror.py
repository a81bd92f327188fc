"""One clock in several processes: the test's is written into memory that runners' processes read.

The timeline is in an anonymous file that both have open, so a moved clock is moved for everybody
at once and nobody has to be told. Only that the clock was engaged at all (freezegun is to be in
place from then on) is said to each process, and waited for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from datetime import datetime
from typing import Any

from emulator.clock import Clock
from emulator.copied_globals import CopiedGlobals
from emulator.file_times import FileTimes, real_now
from emulator.timeline import Timeline
from emulator.timepatch import TimePatch, naive_utc

__all__ = ["ClockMirror", "FollowingClock"]

#: Generation and length of the timeline in one number, so that it is read and written at once;
#: how often times of files were set by hand; whether the clock stands still.
_HEAD = struct.Struct("<QQ")
_SEGMENT = struct.Struct("<qqq?7x")
_GENERATION = 40
_LENGTH_MASK = (1 << _GENERATION) - 1


class ClockMirror:
    """Writes what the clock shows to where other processes read it.

    Args:
        clock: the test's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.descriptor = os.memfd_create("fal-clock")
        self._generation = 0
        self._timeline = Timeline()
        self._engaged = False
        #: Called when the clock is engaged or gives real time back, with whether it is engaged.
        self.changed: Callable[[bool], None] = lambda _engaged: None
        clock.subscribe(self._follow)
        clock.files.pinned = self._write_head
        self._write()

    @property
    def engaged(self) -> bool:
        """Whether runners' processes are to see this clock instead of real time."""
        return self._clock.engaged

    def reset(self) -> None:
        """Take down the clock anew; called before the first runner of a test."""
        self._write()
        self._engaged = self._clock.engaged

    def close(self) -> None:
        """Give the memory back."""
        self._clock.unsubscribe(self._follow)
        self._clock.files.pinned = _nothing
        os.close(self.descriptor)

    def pins(self) -> Any:
        """The times of files that were set by hand, and through which devices they are seen."""
        return self._clock.files.pins, self._clock.files.devices

    def pin(self, key: tuple[int, int], pin: Any) -> None:
        """Take down a time that a runner's process has set by hand."""
        device, inode = key
        self._clock.files.set_pin((self._clock.files.devices.get(device, device), inode), pin)

    # --- inside ----------------------------------------------------------------------------------

    def _follow(self, _old: datetime, _new: datetime) -> None:
        self._write()
        if self._clock.engaged != self._engaged:
            self._engaged = self._clock.engaged
            self.changed(self._engaged)

    def _write(self) -> None:
        timeline, shared = self._clock.files.timeline, len(self._timeline)
        if not timeline.goes_on_from(self._timeline):
            self._generation, shared = self._generation + 1, 0
        packed = b"".join(
            _SEGMENT.pack(one.boundary, one.real_start, one.virtual_start, one.ticking)
            for one in timeline.since(shared)
        )
        os.pwrite(self.descriptor, packed, _HEAD.size + shared * _SEGMENT.size)
        self._timeline = timeline
        self._write_head()

    def _write_head(self) -> None:
        number = self._generation << _GENERATION | len(self._timeline)
        os.pwrite(self.descriptor, _HEAD.pack(number, self._clock.files.pin_changes), 0)


def _nothing() -> None:
    return None


class FollowingClock:
    """The clock of a runner's process.

    Args:
        descriptor: the mirror's memory.
        ask: asks the test's process.
    """

    def __init__(self, descriptor: int, ask: Callable[..., Any]) -> None:
        self._files = _FollowingFileTimes(descriptor, ask)
        self._ask = ask
        self._copies = CopiedGlobals()
        self._patch = TimePatch(
            naive_now=lambda: naive_utc(self._files.timeline.now(real_now())),
            stopped=self._stands_still,
            start_sleep=self._start_sleep,
            files=self._files,
        )

    def catch_up(self) -> None:
        """Be engaged if the test's clock is."""
        self.follow(bool(self._ask("engaged")))

    def remember_app(self) -> None:
        """The app has been loaded: what came with it has to follow, too."""
        self._copies.remember()

    def follow(self, engaged: bool) -> None:
        """Show the app the test's clock, or real time."""
        if engaged == self._patch.engaged:
            return
        self._copies.look()
        if engaged:
            self._patch.engage()
        else:
            self._patch.disengage()
            self._patch.freezegun.clean_up()
        self._copies.follow()

    def _stands_still(self) -> bool:
        timeline = self._files.timeline
        return self._patch.engaged and bool(timeline) and not timeline.last.ticking

    def _start_sleep(self, seconds: float) -> Callable[[], object]:
        end = self._files.timeline.now(real_now()) + int(seconds * 1_000_000) * 1000
        return lambda: self._ask("wake", end)


class _FollowingFileTimes(FileTimes):
    """File times by the mirror's timeline."""

    def __init__(self, descriptor: int, ask: Callable[..., Any]) -> None:
        self._descriptor = descriptor
        self._ask = ask
        self._number = self._changes = 0
        self._read = Timeline()
        super().__init__()

    @property
    def timeline(self) -> Timeline:
        """The test's clock's history, as it is now."""
        number, changes = _HEAD.unpack(os.pread(self._descriptor, _HEAD.size, 0))
        if number != self._number:
            self._read = self._read_timeline(number)
            self._number = number
        if changes != self._changes:
            pins, devices = self._ask("pins")
            # Not before: another thread that asks for the time meanwhile has to ask as well.
            self._pins, self.devices, self._changes = pins, devices, changes
        return self._read

    @timeline.setter
    def timeline(self, value: Timeline) -> None:
        """Only the test moves the clock."""

    def set_pin(self, key: tuple[int, int], pin: Any) -> None:
        """Take down a time that was set by hand, for everybody."""
        super().set_pin(key, pin)
        self._ask("pin", key, pin)

    def _read_timeline(self, number: int) -> Timeline:
        timeline, known = Timeline(), 0
        if number >> _GENERATION == self._number >> _GENERATION:
            timeline, known = self._read, len(self._read)
        length = number & _LENGTH_MASK
        place = _HEAD.size + known * _SEGMENT.size
        packed = os.pread(self._descriptor, (length - known) * _SEGMENT.size, place)
        for boundary, real, virtual, ticking in _SEGMENT.iter_unpack(packed):
            timeline = timeline.then(boundary, real, virtual, ticking=ticking)
        return timeline
