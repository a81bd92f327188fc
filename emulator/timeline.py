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


class Timeline:
    """The whole history of one clock; an immutable value, so it is read without a lock.

    A timeline and those that were made from it share their lists, each up to its own length: one
    of thousands of moves (a slow body, an appointment every minute) costs no more a move than a
    short one.
    """

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._boundaries: list[int] = []
        self._length = 0

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments, in order."""
        return tuple(self._segments[: self._length])

    @property
    def boundaries(self) -> tuple[int, ...]:
        """The boundary of each segment."""
        return tuple(self._boundaries[: self._length])

    @property
    def first_boundary(self) -> int | None:
        """The first real instant that is not told as it is; None while all are."""
        return self._boundaries[0] if self._length else None

    @property
    def last(self) -> Segment:
        """The segment that the clock is in; only for a timeline that has one."""
        return self._segments[self._length - 1]

    def __len__(self) -> int:
        return self._length

    def goes_on_from(self, earlier: Timeline) -> bool:
        """Whether this is *earlier* and what came after it."""
        return not earlier or (
            self._segments is earlier._segments and self._length >= earlier._length
        )

    def since(self, length: int) -> list[Segment]:
        """The segments but for the first so many."""
        return self._segments[length : self._length]

    def then(self, boundary: int, real: int, virtual: int, *, ticking: bool) -> Timeline:
        """Return a timeline that from ``boundary`` on shows ``virtual`` as of ``real``.

        A boundary earlier than the last one (the machine's own clock was set back) counts as it.
        To be called by one thread at a time.
        """
        longer = Timeline()
        longer._segments, longer._boundaries = self._segments, self._boundaries
        if len(self._segments) != self._length:  # another one goes on from here already
            longer._segments = self._segments[: self._length]
            longer._boundaries = self._boundaries[: self._length]
        if self:
            boundary = max(boundary, self._boundaries[self._length - 1])
        longer._segments.append(Segment(boundary, real, virtual, ticking))
        longer._boundaries.append(boundary)
        longer._length = self._length + 1
        return longer

    def now(self, real: int) -> int:
        """Return what the clock shows while real time is ``real``: the last segment decides."""
        return self.last.virtual_at(real) if self else real

    def virtual_at(self, real: int, now: int) -> int:
        """Return what the clock showed at ``real``, an instant of the past.

        Before the first segment, and later than ``now``, time is real: files that somebody aged
        or dated into the future keep the time they were given.
        """
        if not self or real < self._boundaries[0] or real > now:
            return real
        index = bisect_right(self._boundaries, real, hi=self._length) - 1
        return self._segments[index].virtual_at(real)

    def real_at(self, virtual: int, now: int) -> int | None:
        """Return a real instant up to ``now`` that ``virtual_at`` maps to ``virtual``.

        It is in the latest segment that showed it; where the clock stood still, at its beginning.
        None where the clock never showed it. Instants later than ``now`` are not offered: they
        would change their meaning once real time has passed them.
        """
        end = now + 1
        for index in range(self._length - 1, -1, -1):
            segment = self._segments[index]
            found = segment.real_at(virtual, end)
            if found is not None:
                return found
            end = min(end, segment.boundary)
        return virtual if virtual < end else None
