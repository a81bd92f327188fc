"""The volumes' directories and mounts: fresh ones for each test, another ``/tmp`` for each runner.

Layout below the session's directory: ``volumes/<test>/data``, ``volumes/<test>/tmp``,
``volumes/<test>/runner-1/tmp``. ``volumes`` is a shared mount: what is mounted inside it later (a
size limit, a read-only cover) appears in every runner's ``/data`` by the kernel's own propagation.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import sys
import threading
from collections.abc import Iterable

from emulator.errors import NamespaceRefusedError
from emulator.storage import mounts
from emulator.storage.volume import Volume

__all__ = ["DATA", "TMP", "Disk", "RunnerDisk"]

DATA = "/data"
TMP = "/tmp"

# Mount namespaces that have a /data to mount on, and whether that directory is ours to remove.
_prepared: dict[int, bool] = {}


class Disk:
    """The mounts of one emulator.

    Args:
        root: an empty directory of the session; what failing tests leave stays below it.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.volumes = os.path.join(self.root, "volumes")
        self._stage = os.path.join(self.root, "stage")
        self._visible: tuple[str, ...] = ()
        self._extra: tuple[str, ...] = ()
        self._visible_for: object = None
        self._test: str | None = None
        self._depth = 0
        self._count = 0
        self._sweeper = Sweeper()
        self.data = self.tmp = Volume(DATA, self.volumes, self.root)

    def keep_visible(self, paths: Iterable[str]) -> None:
        """Say which paths below ``/tmp`` this process needs although it is mounted over."""
        self._extra = tuple(paths)
        self._visible_for = None

    def mount(self, name: str = "test") -> None:
        """Mount a fresh ``/data`` and ``/tmp`` for the calling thread and those it starts.

        Raises:
            NamespaceRefusedError: the kernel does not allow it; says what to do.
        """
        if sys.platform != "linux":
            raise NamespaceRefusedError(
                "pytest-fal mounts /data and /tmp in a Linux mount namespace, and this system is "
                f"{sys.platform}. Run the tests on Linux or in a Linux container."
            )
        self._prepare()
        self._count += 1
        test = os.path.join(self.volumes, f"{self._count}-{_file_name(name)}")
        self._test = test
        os.mkdir(test)
        self.data = self._volume(DATA, f"{test}/data")
        self.tmp = self._volume(TMP, f"{test}/tmp")
        self.tmp.remount = self._mount_tmp
        if _prepared[mounts.current_namespace()]:
            os.mkdir(DATA)
        mounts.bind(str(self.data.backing), DATA)
        mounts.set_propagation(DATA, "slave")
        self._mount_tmp()

    def unmount(self, keep: bool) -> str | None:
        """Take the mounts away and, unless *keep*, what was written.

        Returns:
            The directory that was kept, on the host's own disk.
        """
        test, self._test = self._test, None
        if test is None:
            return None
        if keep:
            self.data.save()
            self.tmp.save()
        while self._depth:
            mounts.unmount(TMP)
            self._depth -= 1
        mounts.unmount(DATA)
        self.data.uncover()
        self.tmp.uncover()
        if _prepared[mounts.current_namespace()]:
            os.rmdir(DATA)
        if not keep:
            self._sweeper.remove(test)
            return None
        _remove_mount_points(str(self.tmp.backing), self._visible)
        self.tmp.hide(set())
        return test

    def new_runner(self, name: str) -> RunnerDisk:
        """The ``/tmp`` of a new runner, not mounted yet."""
        assert self._test is not None
        backing = os.path.join(self._test, _file_name(name), "tmp")
        os.mkdir(os.path.dirname(backing))
        return RunnerDisk(self, self._volume(TMP, backing))

    @property
    def directory(self) -> str | None:
        """Where the volumes of the test under way are."""
        return self._test

    def close(self) -> None:
        """Give up the session's mounts. Kept volumes stay."""
        self._sweeper.close()
        if os.path.isdir(self.volumes) and mounts.attempt(lambda: mounts.unmount(self.volumes)):
            return
        for leftover in (self._stage, os.path.join(self.root, "root"), self.volumes, self.root):
            mounts.attempt(lambda path=leftover: os.rmdir(path))  # type: ignore[misc]

    def _prepare(self) -> None:
        """Enter a namespace, once a process, and give it what the tests' mounts need."""
        if mounts.current_namespace() not in _prepared:
            mounts.enter_private_namespace()
            ours = not mounts.is_real_directory(DATA)
            if ours:
                scratch = os.path.join(self.root, "root")
                os.makedirs(scratch, exist_ok=True)
                mounts.build_root_with(DATA.strip("/"), scratch)
            _prepared[mounts.current_namespace()] = ours
        if not os.path.isdir(self.volumes):
            os.mkdir(self.volumes)
            os.mkdir(self._stage)
            mounts.bind(self.volumes, self.volumes)
            mounts.set_propagation(self.volumes, "shared")

    def _volume(self, path: str, backing: str) -> Volume:
        os.mkdir(backing)
        os.chmod(backing, 0o1777 if path == TMP else 0o755)
        return Volume(path, backing, self._scratch())

    def _scratch(self) -> str:
        assert self._test is not None
        return self._test

    def _mount_tmp(self) -> None:
        """Put this volume over ``/tmp``, with what the process needs bound through.

        A second call stacks: unmounting the first would take other limits with it.
        """
        self.mount_over_tmp(self.tmp)
        self._depth += 1

    def mount_over_tmp(self, volume: Volume) -> None:
        """Mount a volume over the calling thread's ``/tmp``."""
        mounts.bind(str(volume.backing), self._stage)
        # Private and unbindable: the session's own directory is bound into it, stage included.
        mounts.set_propagation(self._stage, "unbindable")
        paths = self._visible_paths()
        for path in paths:
            place = self._stage + path.removeprefix(TMP)
            _make_mount_point(path, place)
            mounts.bind(path, place, recursive=True)
        volume.hide({path.removeprefix(f"{TMP}/") for path in paths})
        mounts.move(self._stage, TMP)
        mounts.set_propagation(TMP, "private")

    def _visible_paths(self) -> tuple[str, ...]:
        wanted = (tuple(sys.path), self._extra)
        if wanted != self._visible_for:
            process = (sys.prefix, sys.base_prefix, sys.exec_prefix, os.getcwd(), self.root)
            self._visible = _outermost([*wanted[0], *wanted[1], *process])
            self._visible_for = wanted
        return self._visible


class Sweeper:
    """Removes what passing tests wrote, in the background: an rmdir on a disk costs 60 µs."""

    def __init__(self) -> None:
        self._paths: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def remove(self, path: str) -> None:
        """Remove a tree soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fal-sweeper", daemon=True)
            self._thread.start()
        self._paths.put(path)

    def close(self) -> None:
        """Wait until everything is removed and end the thread."""
        if self._thread is not None:
            self._paths.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (path := self._paths.get()) is not None:
            remove_tree(path)


class RunnerDisk:
    """The mounts of one runner: ``/data`` as everybody's, ``/tmp`` its own."""

    def __init__(self, disk: Disk, tmp: Volume) -> None:
        self._disk = disk
        self.tmp = tmp

    def enter(self) -> int:
        """Move the calling thread, and all it starts, onto the runner. Its namespace's number."""
        mounts.copy_namespace()
        self._disk.mount_over_tmp(self.tmp)
        return mounts.current_namespace()

    def remount_tmp(self) -> None:
        """After the volume's limit changed: show it. Called on the runner."""
        self._disk.mount_over_tmp(self.tmp)

    def discard(self) -> None:
        """The runner is shut down: what was in its ``/tmp`` is lost."""
        self.tmp.uncover()
        remove_tree(str(self.tmp.backing))
        os.mkdir(self.tmp.backing)


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """The existing paths below ``/tmp``, without those inside another of them."""
    found: set[str] = set()
    for path in paths:
        real = os.path.realpath(path or ".")
        if real == TMP:
            found.update(_python_files_in(TMP))
        elif real.startswith(f"{TMP}/") and os.path.exists(real):
            found.add(real)
    inside = {p for p in found if any(p.startswith(f"{outer}/") for outer in found)}
    return tuple(sorted(found - inside))


def _python_files_in(folder: str) -> list[str]:
    """What can be imported from *folder*: somebody works in ``/tmp`` itself."""
    return [
        entry.path
        for entry in os.scandir(folder)
        if entry.name.endswith((".py", ".ini", ".toml", ".cfg"))
        or os.path.exists(os.path.join(entry.path, "__init__.py"))
    ]


def _make_mount_point(source: str, target: str) -> None:
    if os.path.exists(target):
        return
    if os.path.isdir(source):
        os.makedirs(target)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))


def _remove_mount_points(volume: str, visible: Iterable[str]) -> None:
    """Remove the empty mount points that were made in a kept ``/tmp``."""
    for path in visible:
        place = volume + path.removeprefix(TMP)
        if mounts.attempt(lambda place=place: os.removedirs(place)):  # type: ignore[misc]
            mounts.attempt(lambda place=place: os.unlink(place))  # type: ignore[misc]


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:60].strip("-") or "test"


def remove_tree(path: str) -> None:
    """Remove a directory tree, also where an app took away its own permissions."""

    def allow_and_retry(_function: object, place: str, _error: object) -> None:
        os.chmod(os.path.dirname(place), 0o700)
        if os.path.isdir(place) and not os.path.islink(place):
            os.chmod(place, 0o700)
            shutil.rmtree(place, ignore_errors=True)
        else:
            os.unlink(place)

    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=allow_and_retry)
    else:
        shutil.rmtree(path, onerror=allow_and_retry)
