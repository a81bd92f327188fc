"""The best rung: volumes are mounts in namespaces of our own.

The directory of all volumes is a shared mount: what is mounted inside it later (a size limit, a
read-only cover) appears in every runner's ``/data`` by the kernel's own propagation.

All of that is mounted in a namespace of the emulator's, in which the test's thread is only while
the test has volumes. There ``/data`` never is the host's, so what a test leaves running cannot
reach that; it finds the volumes of the test under way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from emulator import processes
from emulator.errors import EmulatorError
from emulator.storage import mounts, programs
from emulator.storage.disk import DATA, Disk, RunnerDisk, Seat, in_thread
from emulator.storage.spare import Spare
from emulator.storage.visible import (
    TMP,
    make_mount_points,
    remove_mount_points,
    working_directory,
)
from emulator.storage.volume import Volume

__all__ = ["MountedDisk"]


class MountedDisk(Disk):
    """The mounts of one emulator."""

    rung = "namespace"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._stage = os.path.join(self.root, "stage")
        self._tmp = TMP
        self._home: mounts.View | None = None
        self._inside: mounts.View | None = None
        self._is_inside = False
        self._directory: int | None = None
        self._runners: set[int] = set()
        self._data_mounted = False
        self._depth = 0
        self._spare = Spare()

    def here(self) -> int:
        """The number of the mount namespace of the calling thread."""
        return mounts.current_namespace()

    def number_of_process(self, process: int) -> int | None:
        """The number of a process's mount namespace."""
        return mounts.namespace_of(process)

    def mount(self, name: str = "test") -> None:
        """Mount a fresh ``/data`` and ``/tmp`` for the calling thread and those it starts.

        Raises:
            NamespaceRefusedError: the kernel does not allow it; says what to do.
        """
        inside = self._prepare()
        self._begin(name)
        assert self._test is not None
        try:
            self._lay_out(self._test)
            place = working_directory()
            self._directory = os.open(".", os.O_PATH)
            inside.enter()
            self._is_inside = True
            self._mount_volumes()
            self._spare.remember()
            mounts.attempt(lambda: os.chdir(place))
        except BaseException:
            self.unmount(keep=False)
            raise

    def unmount(self, keep: bool) -> str | None:
        """Take the mounts away and, unless *keep*, what was written.

        Returns:
            The directory that was kept, on the host's own disk.

        Raises:
            EmulatorError: another thread than the one that mounted calls it.
        """
        test = self._test
        if test is None:
            return None
        self._check_thread()
        self._test = None
        untouched: set[str] = set()
        try:
            if keep:
                self.data.save()
                self.tmp.save()
            elif self._is_inside and not processes.has_others():
                untouched = self._spare.untouched()
            if self._is_inside:
                self._unmount_volumes(untouched)
        finally:
            self._go_home()
        if not keep:
            self._spare.take(untouched, self._sweeper)
            return None
        self._spare.keep()
        remove_mount_points(str(self.tmp.backing), self._visible)
        self.tmp.hide(set())
        return test

    def new_runner(
        self, name: str, own_programs: Mapping[str, str] | None = None
    ) -> MountedRunnerDisk:
        """The ``/tmp`` of a new runner, not mounted yet; and the scripts that it alone has."""
        return MountedRunnerDisk(self, self._runner_tmp(name), own_programs or {})

    def close(self) -> None:
        """Give up the session's mounts. Kept volumes stay."""
        self._spare.discard(self._sweeper)
        self._data_mounted, self._depth = False, 0
        self._sweeper.close()
        for view in (self._home, self._inside):
            if view is not None:
                view.close()
        self._home = self._inside = None
        self._remove_if_empty(self._stage, self.volumes)

    # --- the namespace ---------------------------------------------------------------------------

    def _prepare(self) -> mounts.View:
        """Make the namespace, once, and come back from it."""
        if self._inside is not None:
            return self._inside
        for folder in (self.volumes, self._stage):
            os.makedirs(folder, exist_ok=True)
        self._home = mounts.home_view()
        self._directory = os.open(".", os.O_PATH)
        try:
            mounts.enter_private_namespace()
            self._build()
            self._inside = mounts.View()
        finally:
            self._go_home()
            if self._inside is None:
                self._home.close()
                self._home = None
        return self._inside

    def _build(self) -> None:
        scratch = os.path.join(self.root, "root")
        os.makedirs(scratch, exist_ok=True)
        mounts.build_root_with(DATA.strip("/"), scratch, also=programs.DIRECTORY.strip("/"))
        os.rmdir(scratch)
        mounts.bind(self.volumes, self.volumes)
        mounts.set_propagation(self.volumes, "shared")
        self._tmp = os.path.realpath(TMP)

    def _go_home(self) -> None:
        assert self._home is not None
        self._home.enter()
        self._is_inside = False
        if self._directory is not None:
            os.fchdir(self._directory)
            os.close(self._directory)
            self._directory = None

    def _check_thread(self) -> None:
        """Elsewhere the same calls would take away the host's own mounts."""
        assert self._inside is not None
        if self._is_inside and mounts.current_namespace() != self._inside.number:
            raise EmulatorError(
                "The emulator was started in another thread, or another emulator was started after "
                "it. Call stop() in the thread that called start(), the newest emulator first."
            )

    # --- volumes ---------------------------------------------------------------------------------

    def _lay_out(self, test: str) -> None:
        self._spare.give(test, self._visible, self._sweeper)
        self._runners.clear()
        self.data = self._volume(DATA, f"{test}/data", made="data" in self._spare.given)
        self.data.check = self._check_sees_data
        self.tmp = self._volume(TMP, f"{test}/tmp", made="tmp" in self._spare.given)
        self.tmp.check = self._check_sees_tmp
        self.tmp.remount = self._mount_tmp

    def _check_sees_data(self) -> None:
        """Mounting in another thread would do it where the host can see it."""
        assert self._inside is not None
        if mounts.current_namespace() not in {self._inside.number, *self._runners}:
            raise EmulatorError(
                f"This thread was started before the test's volumes were mounted and does not see "
                f"{DATA}. Call limit() and read_only() from the test or on a runner."
            )

    def _check_sees_tmp(self) -> None:
        assert self._inside is not None
        if mounts.current_namespace() != self._inside.number:
            raise EmulatorError(
                f"This thread has another {TMP} than the test. Call limit() and read_only() of the "
                f"test's {TMP} from the test, and those of a runner's on runner.tmp."
            )

    def _mount_volumes(self) -> None:
        """Mount what is not mounted still, as the last test left it untouched."""
        still = self._spare.given
        self._unmount_all_but(still)
        if "data" not in still:
            mounts.bind(str(self.data.backing), DATA)
            self._data_mounted = True
            mounts.set_propagation(DATA, "slave")
        if "tmp" in still:
            self.tmp.hide(set(self._visible.relative))
        else:
            self._mount_tmp()

    def _unmount_volumes(self, except_for: set[str]) -> None:
        # Covers of /data lie on DATA, too, by propagation: what is unmounted there is the topmost.
        self.data.uncover()
        self._unmount_all_but(except_for)
        self.tmp.uncover()

    def _unmount_all_but(self, kinds: set[str]) -> None:
        while self._depth and "tmp" not in kinds:
            mounts.unmount(self._tmp)
            self._depth -= 1
        if self._data_mounted and "data" not in kinds:
            mounts.unmount(DATA)
            self._data_mounted = False

    def _mount_tmp(self) -> None:
        """Put this volume over ``/tmp``, with what the process needs bound through.

        A second call stacks: unmounting the first would take other limits with it.
        """
        self.mount_over_tmp(self.tmp)
        self._depth += 1

    def mount_over_tmp(self, volume: Volume) -> None:
        """Mount a volume over the calling thread's ``/tmp``."""
        place = working_directory()
        mounts.bind(str(volume.backing), self._stage)
        # Private and unbindable: the session's own directory is bound into it, stage included.
        mounts.set_propagation(self._stage, "unbindable")
        try:
            for source, target in make_mount_points(self._stage, self._visible):
                mounts.bind(source, target, recursive=True)
            mounts.move(self._stage, self._tmp)
        except BaseException:
            mounts.unmount(self._stage)
            raise
        mounts.set_propagation(self._tmp, "private")
        volume.hide(set(self._visible.relative))
        if place == TMP or place.startswith(f"{TMP}/"):
            # The directory itself is the one below; the path shall mean the same as everywhere.
            mounts.attempt(lambda: os.chdir(place))

    def joined(self, namespace: int) -> None:
        """A runner has entered a namespace of its own."""
        self._runners.add(namespace)

    def at_home(self, action: Callable[[], None]) -> None:
        """Call something in a thread that sees the host's own mounts."""
        home = self._home
        assert home is not None

        def act() -> None:
            place = working_directory()
            home.enter()
            mounts.attempt(lambda: os.chdir(place))
            action()

        in_thread(act)


class MountedRunnerDisk(RunnerDisk):
    """The mounts of one runner: ``/data`` as everybody's, ``/tmp`` and some programs its own."""

    def __init__(self, disk: MountedDisk, tmp: Volume, own_programs: Mapping[str, str]) -> None:
        super().__init__(disk, tmp)
        self._mounted = disk
        self._programs = own_programs

    def enter(self) -> int:
        """Move the calling thread, and all it starts, onto the runner. Its namespace's number."""
        mounts.copy_namespace()
        self._mounted.mount_over_tmp(self.tmp)
        if self.share is not None:
            place = working_directory()
            self.share.mount(DATA)
            if place == DATA or place.startswith(f"{DATA}/"):
                mounts.attempt(lambda: os.chdir(place))
        programs.install(self._programs)
        number = mounts.current_namespace()
        self._mounted.joined(number)
        return number

    def enter_aside(self) -> mounts.View:
        """Make the runner's mounts for another process, which the calling thread does not see."""
        views: list[mounts.View] = []

        def make() -> None:
            self.enter()
            views.append(mounts.View())

        in_thread(make)
        return views[0]

    def remount_tmp(self) -> None:
        """After the volume's limit changed: show it. Called on the runner."""
        self._mounted.mount_over_tmp(self.tmp)

    def remount_aside(self, seat: Seat) -> None:
        """The same, for a runner in another process."""

        def remount() -> None:
            seat.enter()
            self.remount_tmp()

        in_thread(remount)
