"""Where real and virtual time meet: a pure mapping, without clocks, files or locks.

A timeline is a sequence of segments. Each began at one real instant, at which the clock was given
a virtual time, and from there on the clock either ticked with real time or stood still. Every
instant is an integer of nanoseconds since the epoch, so that nothing is lost to rounding.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

__all__ = ["Segment", "Timeline"]


@dataclass(frozen=True)
class Segment:
    """One stretch of real time in which the clock only ticked, or only stood still.

    ``boundary`` is the first real instant that belongs to the segment. It may differ by a few
    milliseconds from ``real_start``, the instant at which the clock showed ``virtual_start``,
    because the kernel stamps files with a coarser clock than the one that programs read.
    """

    boundary: int
    real_start: int
    virtual_start: int
    ticking: bool

    def virtual_at(self, real: int) -> int:
        """Return what the clock showed at ``real``, never less than ``virtual_start``."""
        if not self.ticking:
            return self.virtual_start
        return self.virtual_start + max(0, real - self.real_start)

    def real_at(self, virtual: int, end: int) -> int | None:
        """Return a real instant before ``end`` at which the clock showed ``virtual``, if any."""
        if virtual == self.virtual_start:
            instant = min(max(self.boundary, self.real_start), end - 1)
        elif self.ticking:
            instant = self.real_start + virtual - self.virtual_start
        else:
            return None
        inside = self.boundary <= instant < end
        return instant if inside and self.virtual_at(instant) == virtual else None


@dataclass(frozen=True)
class Timeline:
    """The whole history of one clock; an immutable value, so it is read without a lock."""

    segments: tuple[Segment, ...] = ()
    boundaries: tuple[int, ...] = ()

    def then(self, boundary: int, real: int, virtual: int, *, ticking: bool) -> Timeline:
        """Return a timeline that from ``boundary`` on shows ``virtual`` as of ``real``.

        A boundary earlier than the last one (the machine's own clock was set back) counts as it.
        """
        if self.boundaries:
            boundary = max(boundary, self.boundaries[-1])
        segment = Segment(boundary, real, virtual, ticking)
        return Timeline((*self.segments, segment), (*self.boundaries, boundary))

    def now(self, real: int) -> int:
        """Return what the clock shows while real time is ``real``: the last segment decides."""
        return self.segments[-1].virtual_at(real) if self.segments else real

    def virtual_at(self, real: int, now: int) -> int:
        """Return what the clock showed at ``real``, an instant of the past.

        Before the first segment, and later than ``now``, time is real: files that somebody aged
        or dated into the future keep the time they were given.
        """
        if not self.segments or real < self.boundaries[0] or real > now:
            return real
        return self.segments[bisect_right(self.boundaries, real) - 1].virtual_at(real)

    def real_at(self, virtual: int, now: int) -> int | None:
        """Return the latest real instant up to ``now`` that ``virtual_at`` maps to ``virtual``.

        None where the clock never showed it. Instants later than ``now`` are not offered: they
        would change their meaning once real time has passed them.
        """
        end = now + 1
        for segment in reversed(self.segments):
            found = segment.real_at(virtual, end)
            if found is not None:
                return found
            end = min(end, segment.boundary)
        return virtual if virtual < end else None
