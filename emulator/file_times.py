"""What the times of files are to an app whose clock was moved.

The kernel stamps files in real time. Here a stamp is translated through the clock's timeline, a
time that the app sets comes back as it was set, and each jump of the clock gets a boundary that
parts the stamps from before it from those after it.

Nothing is patched here: ``emulator.timepatch`` puts these functions in the place of ``os.stat``
and its kin while the clock is engaged.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from emulator.storage.entries import Entry, Scan
from emulator.timeline import Timeline

__all__ = ["ENTRIES_TO_PUSH_BACK", "FileTimes", "coarse_now", "real_now", "stand_on"]

ENTRIES_TO_PUSH_BACK = 20_000
"""A directory tree with more entries is not walked at a jump; the kernel's clock is awaited."""

_BILLION = 1_000_000_000
# CLOCK_REALTIME_COARSE of Linux, for which Python has no name.
_COARSE = 5 if sys.platform == "linux" else time.CLOCK_REALTIME
_PROBES = 8

_TIME_NAMES = ("st_atime", "st_mtime", "st_ctime")


class _Real:
    """The functions as Python has them; in a class, where no scan of modules replaces them."""

    stat: Callable[..., os.stat_result] = staticmethod(os.stat)
    lstat: Callable[..., os.stat_result] = staticmethod(os.lstat)
    fstat: Callable[[int], os.stat_result] = staticmethod(os.fstat)
    scandir: Callable[[Any], Any] = staticmethod(os.scandir)
    utime: Callable[..., None] = staticmethod(os.utime)
    sleep = staticmethod(time.sleep)
    clock = staticmethod(time.clock_gettime_ns)


def stand_on(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Ask these for the times of files from now on, by their names in ``os``."""
    for name, function in functions.items():
        setattr(_Real, name, staticmethod(function))


class _Pin(NamedTuple):
    """Times of one file that the timeline cannot tell: pairs of real stamp and virtual time."""

    atime: tuple[int, int]
    mtime: tuple[int, int]
    ctime: tuple[int, int] | None


def real_now() -> int:
    """Return real time in nanoseconds since the epoch, whatever freezegun has replaced."""
    return _Real.clock(time.CLOCK_REALTIME)


def coarse_now() -> int:
    """Return the clock with which kernels before Linux 6.13 stamp files: 1-10 ms behind."""
    return _Real.clock(_COARSE)


class FileTimes:
    """Translates the times of files between the kernel and the app.

    ``fine_stamps=False`` leaves the fine stamps of Linux 6.13 and later unused, so that the
    arrangement for older kernels can be tested on any.
    """

    def __init__(self, *, fine_stamps: bool = True) -> None:
        self.timeline = Timeline()
        #: How often a time was set by hand, and what is to be called then.
        self.pin_changes = 0
        self.pinned: Callable[[], None] = lambda: None
        self._pins: dict[tuple[int, int], _Pin] = {}
        #: Devices through which the files of another one are seen.
        self.devices: dict[int, int] = {}
        self._probe: _StampProbe | None = None
        self._fine_stamps = fine_stamps and sys.platform == "linux"

    @property
    def pins(self) -> dict[tuple[int, int], _Pin]:
        """The times that the timeline cannot tell, by device and number of the file."""
        return self._pins

    def set_pin(self, key: tuple[int, int], pin: _Pin | None) -> None:
        """Take down times that the timeline cannot tell, or that it can again."""
        if pin is None:
            if self._pins.pop(key, None) is None:
                return
        else:
            self._pins[key] = pin
        self.pin_changes += 1
        self.pinned()

    def forget(self) -> None:
        """Drop the timeline and every time that was set by hand."""
        self.timeline = Timeline()
        self._pins.clear()
        self.devices.clear()
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    # What the app calls in place of the functions of ``os``.

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> Any:
        """``os.stat`` in virtual time."""
        return self.translate(_Real.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks))

    def lstat(self, path: Any, *, dir_fd: int | None = None) -> Any:
        """``os.lstat`` in virtual time."""
        return self.translate(_Real.lstat(path, dir_fd=dir_fd))

    def fstat(self, fd: int) -> Any:
        """``os.fstat`` in virtual time."""
        return self.translate(_Real.fstat(fd))

    def scandir(self, path: Any = None) -> Any:
        """``os.scandir`` whose entries tell virtual times."""
        found = _Real.scandir("." if path is None else path)
        return Scan(found, lambda entry: _Entry(entry, self.translate))

    def utime(
        self,
        path: Any,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """``os.utime`` that takes virtual times; without times it is the kernel's now, as ever.

        A moment that the clock has shown is written as the real instant of that moment, so that
        another program's copy of the file means the same. Any other is written as it is and
        remembered.
        """
        where: dict[str, Any] = {"dir_fd": dir_fd, "follow_symlinks": follow_symlinks}
        if ns is None and times is None:
            _Real.utime(path, None, **where)
            return
        if ns is None and isinstance(times, tuple) and len(times) == 2:
            wanted = (_nanoseconds(times[0]), _nanoseconds(times[1]))
        elif times is None and isinstance(ns, tuple) and len(ns) == 2:
            wanted = (int(ns[0]), int(ns[1]))
        else:
            # Not a call that Python accepts: its own message says why.
            _Real.utime(path, times, **({} if ns is None else {"ns": ns}), **where)
            return
        self._set(path, wanted, where)

    # How stamps become virtual.

    def translate(self, status: os.stat_result) -> os.stat_result:
        """Return ``status`` with the times that the app is to see; itself if they are the same."""
        first = self.timeline.first_boundary
        pin = self._pins.get(self._key(status)) if self._pins else None
        if pin is None and (
            first is None
            or (
                status.st_ctime_ns < first
                and status.st_mtime_ns < first
                and status.st_atime_ns < first
            )
        ):
            return status
        stamps = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        virtual = self._virtual(stamps, pin)
        return status if virtual == stamps else _with_times(status, virtual)

    def _key(self, status: os.stat_result) -> tuple[int, int]:
        return self.devices.get(status.st_dev, status.st_dev), status.st_ino

    def _virtual(self, stamps: tuple[int, int, int], pin: _Pin | None) -> tuple[int, int, int]:
        timeline, now = self.timeline, real_now()
        atime, mtime, ctime = (timeline.virtual_at(stamp, now) for stamp in stamps)
        if pin is not None:
            if stamps[0] == pin.atime[0]:
                atime = pin.atime[1]
            if stamps[1] == pin.mtime[0]:
                mtime = pin.mtime[1]
                # A file written again within the same tick of the kernel's clock has the pinned
                # ctime still, but no longer the pinned mtime.
                if pin.ctime is not None and stamps[2] == pin.ctime[0]:
                    ctime = pin.ctime[1]
        return atime, mtime, ctime

    def _set(self, path: Any, wanted: tuple[int, int], where: dict[str, Any]) -> None:
        now = real_now()
        found = tuple(self.timeline.real_at(moment, now) for moment in wanted)
        written = tuple(
            moment if real is None else real for moment, real in zip(wanted, found, strict=True)
        )
        _Real.utime(path, ns=written, **where)
        status = _Real.fstat(path) if isinstance(path, int) else _Real.stat(path, **where)
        key = self._key(status)
        if None not in found:
            self.set_pin(key, None)
            return
        # What the file system kept, which may be coarser than what was asked for: then the app
        # is to read that, as it would in real time.
        kept = (status.st_atime_ns, status.st_mtime_ns)
        pairs = [
            (stamp, stamp if stamp != real else moment)
            for stamp, real, moment in zip(kept, written, wanted, strict=True)
        ]
        self.set_pin(key, _Pin(pairs[0], pairs[1], None))

    # What parts the stamps from before a jump from those after it.

    def boundary(self, directories: Iterable[str]) -> int:
        """Return an instant: from now on every stamp is at or after it, all others are before.

        Linux 6.13 and later tell such an instant, for a few microseconds. Elsewhere a file
        written just before and one written just after a jump may carry the same stamp; then the
        files under ``directories`` are pushed back behind the boundary and remembered.
        """
        directories = [directory for directory in directories if directory]
        if self._fine_stamps:
            self._probe = self._probe or _StampProbe()
            instant = self._probe.instant()
            if instant is None:
                self._fine_stamps = False
            elif all(self._probe.holds_for(directory, instant) for directory in directories):
                return instant
        instant = coarse_now()
        entries = _entries(directories, ENTRIES_TO_PUSH_BACK)
        if entries is None:
            return _next_tick()
        for path, status in entries:
            self._push_back(path, status, instant)
        return instant

    def _push_back(self, path: str, status: os.stat_result, boundary: int) -> None:
        stamps = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        now = real_now()
        # A stamp later than now was set by hand: it is not in doubt.
        behind = [boundary - 1 if boundary <= stamp <= now else stamp for stamp in stamps]
        if tuple(behind) == stamps:
            return
        key = (status.st_dev, status.st_ino)
        pin = self._pins.get(key)
        virtual = self._virtual(stamps, pin)
        if pin is not None and stamps[1] == pin.mtime[0] and stamps[0] == pin.atime[0]:
            # Set by hand, or pushed back by an earlier jump: only the ctime is still open.
            if pin.ctime is None or pin.ctime[0] != stamps[2]:
                self.set_pin(key, pin._replace(ctime=(stamps[2], virtual[2])))
            return
        with suppress(OSError):  # Gone in the meantime, or not ours to change.
            _Real.utime(path, ns=(behind[0], behind[1]), follow_symlinks=False)
            ctime = _Real.lstat(path).st_ctime_ns
            pin = _Pin((behind[0], virtual[0]), (behind[1], virtual[1]), (ctime, virtual[2]))
            self.set_pin(key, pin)


class _StampProbe:
    """Makes the kernel draw a line between the stamps it has given and those it will give.

    Since Linux 6.13 a file whose times were looked at gets a stamp of full resolution at its next
    change, and no stamp given afterwards, to any file, is earlier (multigrain timestamps). A file
    in memory is enough to cause that.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("clock") if sys.platform == "linux" else -1
        self._known: set[int] = set()

    def close(self) -> None:
        """Give the file descriptor back."""
        os.close(self._fd)

    def instant(self) -> int | None:
        """Return the line, or None on a kernel that does not draw one."""
        for _ in range(_PROBES):
            before = real_now()
            _Real.fstat(self._fd)
            os.pwrite(self._fd, b"x", 0)
            stamp = _Real.fstat(self._fd).st_mtime_ns
            # Just after a tick of the coarse clock that clock is good enough for the kernel.
            if stamp >= before:
                return stamp
        return None

    def holds_for(self, directory: str, instant: int) -> bool:
        """Whether the file system of ``directory`` keeps to the line; asked once for each."""
        if sys.platform != "linux":
            return False
        try:
            device = _Real.stat(directory).st_dev
            if device in self._known:
                return True
            fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            holds = _Real.fstat(fd).st_mtime_ns >= instant
        finally:
            os.close(fd)
        if holds:
            self._known.add(device)
        return holds


class _Entry(Entry):
    """An entry that tells virtual times."""

    def __init__(
        self, real: os.DirEntry[Any], translate: Callable[[os.stat_result], os.stat_result]
    ) -> None:
        super().__init__(real)
        self._translate = translate

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the entry's status in virtual time."""
        return self._translate(self._real.stat(follow_symlinks=follow_symlinks))


def _nanoseconds(seconds: float) -> int:
    """Split as Python does for the kernel: a float loses no more than it would there."""
    if isinstance(seconds, int):
        return seconds * _BILLION
    whole = math.floor(seconds)
    return whole * _BILLION + int((seconds - whole) * 1e9)


def _with_times(status: os.stat_result, times: tuple[int, int, int]) -> os.stat_result:
    """Return a genuine ``os.stat_result`` with other times, as floats, integers and nanoseconds."""
    kind, (sequence, named) = status.__reduce__()  # type: ignore[misc]
    named = dict(named)
    whole = []
    for name, moment in zip(_TIME_NAMES, times, strict=True):
        seconds, rest = divmod(moment, _BILLION)
        whole.append(seconds)
        named[name] = seconds + 1e-9 * rest
        named[f"{name}_ns"] = moment
    result: os.stat_result = kind((*sequence[:7], *whole), named)
    return result


def _entries(directories: list[str], limit: int) -> list[tuple[str, os.stat_result]] | None:
    """Return everything under ``directories``, themselves included; None if that is too much."""
    found: list[tuple[str, os.stat_result]] = []
    waiting = []
    for directory in directories:
        with suppress(OSError):
            found.append((directory, _Real.lstat(directory)))
            waiting.append(directory)
    while waiting:
        with suppress(OSError), _Real.scandir(waiting.pop()) as scan:
            for entry in scan:
                with suppress(OSError):
                    found.append((entry.path, entry.stat(follow_symlinks=False)))
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                if len(found) > limit:
                    return None
    return found


def _next_tick() -> int:
    """Wait until the coarse clock shows a time later than now; return it."""
    now = real_now()
    while (tick := coarse_now()) <= now:
        _Real.sleep(0.0005)
    return tick
