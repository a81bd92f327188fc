"""The rungs without namespaces: Python's path calls lead to the volumes.

``rewrite`` leads ``/data`` and ``/tmp``. On the rung ``directory`` there is a real ``/data``
besides, another one for each test (:mod:`emulator.storage.real_data`), and only ``/tmp`` is led.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from emulator import file_times
from emulator.errors import FilesystemError
from emulator.storage import places, programs
from emulator.storage.disk import DATA, Disk, RunnerDisk, Seat
from emulator.storage.natives import Natives
from emulator.storage.places import Place
from emulator.storage.real_data import RealData
from emulator.storage.rewrite import Rewriter
from emulator.storage.visible import TMP, working_directory

if TYPE_CHECKING:
    from emulator.storage.volume import Volume

__all__ = ["RewrittenDisk"]

_numbers = count(places.FIRST_NUMBER)
_rewriter = Rewriter()
_FILE_TIMES = ("stat", "lstat", "scandir", "utime")


class RewrittenDisk(Disk):
    """Volumes to which paths are led.

    Args:
        root: an empty directory of the session; what failing tests leave stays below it.
        real_data: give each test a real ``/data``: the rung ``directory``.
    """

    def __init__(self, root: str, *, real_data: bool) -> None:
        super().__init__(root)
        self.rung = "directory" if real_data else "rewrite"
        self._real_data = RealData() if real_data else None
        self._natives = Natives()
        self._directory = ""
        self._is_in_place = False
        #: The place of the emulator around this one, if there is any.
        self._outer: Place | None = None
        self._guarded = (DATA,) if not real_data and os.path.lexists(DATA) else ()

    def here(self) -> int:
        """The number of the place of the calling thread."""
        place = places.here()
        return 0 if place is None else place.number

    def number_of_process(self, process: int) -> int | None:
        """The number of the place of a program, as its environment tells."""
        return places.number_of_process(process)

    def mount(self, name: str = "test") -> None:
        """Give this process a fresh ``/data`` and ``/tmp``."""
        if self._real_data is not None:
            self._real_data.acquire()
        try:
            self._begin(name)
            self._lay_out()
            self._directory = working_directory()
            self._outer = places.default()
            self._rewrite()
            places.set_default(self.place(self.tmp, self._empty))
            self._go_to(self._directory)  # below /tmp it is another one now
        except BaseException:
            self.unmount(keep=False)
            raise

    def unmount(self, keep: bool) -> str | None:
        """Let paths be the host's again.

        Returns:
            The directory that was kept.
        """
        test, self._test = self._test, None
        try:
            if self._is_in_place:
                self._stop_rewriting()
        finally:
            if self._real_data is not None:
                self._real_data.release(str(self.data.backing), keep and test is not None)
        if test is None:
            return None
        if keep:
            return test
        self._sweeper.remove(test)
        return None

    def new_runner(
        self, name: str, own_programs: Mapping[str, str] | None = None
    ) -> RewrittenRunnerDisk:
        """The ``/tmp`` of a new runner; and the scripts that it alone has."""
        tmp = self._runner_tmp(name)
        tmp.check = self._refuse_limit
        scripts = os.path.join(os.path.dirname(tmp.backing), "bin")
        if own_programs:
            os.mkdir(scripts)
            for script, text in own_programs.items():
                programs.write(os.path.join(scripts, script), text)
        place = self.place(tmp, scripts if own_programs else self._empty)
        return RewrittenRunnerDisk(self, tmp, place)

    def place(self, tmp: Volume, scripts: str) -> Place:
        """The place of whoever has this ``/tmp`` and these programs."""
        areas = [(path, str(tmp.backing)) for path in dict.fromkeys((TMP, os.path.realpath(TMP)))]
        areas.append((programs.DIRECTORY, scripts))
        if self._real_data is None:
            areas.insert(0, (DATA, str(self.data.backing)))
        kept = [path for place in self._visible.places for path in _spellings(place)]
        return Place(
            next(_numbers), tuple(areas), tuple(kept), self._guarded, self.trusted_programs
        )

    def at_home(self, action: Callable[[], None]) -> None:
        """Call something that sees the host's own ``/data`` and ``/tmp``."""
        with places.outside():
            action()

    def close(self) -> None:
        """Give up what the session has. Kept volumes stay."""
        self._sweeper.close()
        if self._real_data is not None:
            self._real_data.close()
        self._remove_if_empty(self._empty, self.volumes)

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _empty(self) -> str:
        """What the programs' directory is for those who have none of their own."""
        return os.path.join(self.root, "bin")

    def _lay_out(self) -> None:
        assert self._test is not None
        os.makedirs(self._empty, exist_ok=True)
        os.makedirs(self._test)
        backing = os.path.join(self._test, "data")
        if self._real_data is None:
            self.data = self._volume(DATA, backing, made=False)
        else:
            self._real_data.put()
            self.data = self._volume(DATA, DATA, made=True)
            self._real_data.kept_at = backing
        self.tmp = self._volume(TMP, os.path.join(self._test, "tmp"), made=False)
        self.data.check = self.tmp.check = self._refuse_limit

    def _go_to(self, directory: str) -> None:
        with suppress(OSError):  # it is gone, or there is none of that name here
            os.chdir(directory)

    def _rewrite(self) -> None:
        self._is_in_place = True
        _rewriter.install()
        self._natives.install()
        file_times.stand_on(
            {name: _rewriter.substitute(function) for name, function in _functions().items()}
        )

    def _stop_rewriting(self) -> None:
        self._is_in_place = False
        file_times.stand_on(_functions())
        self._natives.uninstall()
        _rewriter.uninstall()
        places.set_default(self._outer)
        self._go_to(self._directory)

    def _refuse_limit(self) -> None:
        raise FilesystemError(
            "limit() and read_only() are mounts, and there are none on the rung "
            f"{self.rung!r} that this test is on. Run it where namespaces can be had, and write "
            '@pytest.mark.fal(filesystem="namespace") above it, to have it skipped elsewhere.'
        )


class RewrittenRunnerDisk(RunnerDisk):
    """The place of one runner."""

    def __init__(self, disk: RewrittenDisk, tmp: Volume, place: Place) -> None:
        super().__init__(disk, tmp)
        self._place = place

    def enter(self) -> int:
        """Put the calling thread, and all it starts, onto the runner. Its place's number."""
        places.move_to(self._place)
        return self._place.number

    def enter_aside(self) -> Seat:
        """What a process is told."""
        return _PlaceSeat(self._place)

    def remount_tmp(self) -> None:
        """A volume cannot be limited here."""

    def remount_aside(self, seat: Seat) -> None:
        """A volume cannot be limited here."""


class _PlaceSeat:
    """A place as a process gets it."""

    descriptors = ()

    def __init__(self, place: Place) -> None:
        self.place = place
        self.number = place.number

    def enter(self) -> None:
        places.move_to(self.place)

    def close(self) -> None:
        pass


def _functions() -> dict[str, Callable[..., object]]:
    """What is asked for the times of files, as Python has it."""
    return {name: getattr(_Real, name) for name in _FILE_TIMES}


class _Real:
    """The functions as Python has them; in a class, where no scan of modules replaces them."""

    stat = staticmethod(os.stat)
    lstat = staticmethod(os.lstat)
    scandir = staticmethod(os.scandir)
    utime = staticmethod(os.utime)


def _spellings(path: str) -> set[str]:
    """A path below the real ``/tmp``, also as it is below what may be a link to that."""
    real = os.path.realpath(TMP)
    return {path, TMP + path.removeprefix(real)} if path.startswith(f"{real}/") else {path}
