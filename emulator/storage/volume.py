"""One mounted directory as a test sees it: its files, their age, how full and how locked it is."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from emulator.checks import bytes_of, fail, listed
from emulator.errors import EmulatorError
from emulator.storage import mounts

if TYPE_CHECKING:
    from emulator.distributed.data import DistributedData

__all__ = ["Volume"]

#: Names of what is being written or was left half written. The SDK's downloads (.fal_download.tmp.*
#: and ..fal_download.tmp.*.tmp.*; before 1.75.5 <name>.tmp*) and clones (*<repository>.tmp) all
#: have .tmp in it; a .tmpl is a template.
_PARTIAL = re.compile(r".*(\.tmp(?!l$).*|\.incomplete|\.part)")

#: Why a folder cannot be listed: who may not, and whose path is longer than paths can be.
_UNLISTED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


class Volume:
    """A volume: ``/data`` of the account, or the ``/tmp`` of one runner.

    Everything here works on :attr:`backing`, so it means this volume from any thread, also where
    another runner's ``/tmp`` is mounted.
    """

    def __init__(self, path: str, backing: str, scratch: str) -> None:
        #: Where an app finds the volume: ``/data`` or ``/tmp``.
        self.path = Path(path)
        #: Where it really is. Kept when the test fails.
        self.backing = Path(backing)
        #: Called after :meth:`limit` or :meth:`read_only` changed what is mounted at ``backing``.
        self.remount: Callable[[], None] = lambda: None
        #: Called before: raises where the calling thread does not see this volume.
        self.check: Callable[[], None] = lambda: None
        #: /data's alone: when something in it is seen where, and readers that wait for it.
        self.between: DistributedData | None = None
        self._scratch = scratch
        self._not_ours: set[str] = set()
        self._covers = 0
        self._locked = False

    def __repr__(self) -> str:
        return f"<Volume {self.path} at {self.backing}>"

    def write(self, rel: str, data: bytes | str, age: timedelta | None = None) -> Path:
        """Write a file, its folders included.

        Args:
            rel: path inside the volume.
            data: the content; text is stored as UTF-8.
            age: how long ago, on the clock, it shall seem to have been written; default: now.

        Returns:
            The path at which an app finds it.
        """
        target = self._inside(rel)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)
        if age is not None:
            self.age(rel, age)
        return self.path / rel

    def read(self, rel: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none; the message lists what there is.
        """
        target = self._inside(rel)
        if not target.exists():
            there = ", ".join(self.tree()[:20]) or "nothing"
            raise FileNotFoundError(f"{self.path / rel} is not there. In {self.path}: {there}")
        return target.read_bytes()

    def tree(self) -> list[str]:
        """The relative paths of all files, sorted.

        Folders count only through their files; one that may not be listed stands for them, with a
        slash at the end.
        """
        return sorted(self._files())

    @property
    def partial_files(self) -> list[str]:
        """What is being downloaded or was left when that broke off, as relative paths, sorted.

        These are recognised by name: the temporary files of the SDK's downloads, and whatever else
        is called ``*.tmp*``, ``*.incomplete`` or ``*.part``. A folder of that name counts once,
        with a slash at its end.
        """
        return sorted({found for rel in self._files() if (found := _partial(rel)) is not None})

    def assert_no_partial_files(self) -> None:
        """Fail if there are :attr:`partial_files`."""
        __tracebackhide__ = True
        found = self.partial_files
        if found:
            fail(f"{self.path} has partial files: {self._sizes(found)}")

    def assert_holds(self, *paths: str | os.PathLike[str]) -> None:
        """Fail unless these files or folders are there, whatever else is.

        Args:
            paths: relative to the volume, or as an app has them: ``"/data/models/a.bin"``.
        """
        __tracebackhide__ = True
        missing = [
            rel for rel in map(self._relative, paths) if not os.path.lexists(self._inside(rel))
        ]
        if missing:
            there = self._sizes(self.tree()) or "nothing"
            fail(f"{self.path} does not hold {listed(missing)}; it holds {there}")

    def assert_tree(self, *paths: str | os.PathLike[str]) -> None:
        """Fail unless these files are there and no others; see :meth:`tree`."""
        __tracebackhide__ = True
        found, expected = set(self._files()), {self._relative(path) for path in paths}
        differences = (("missing", expected - found), ("unexpected", found - expected))
        shown = [f"{what} {listed(sorted(rels))}" for what, rels in differences if rels]
        if shown:
            fail(f"{self.path} does not hold just the files expected: {'; '.join(shown)}")

    def assert_empty(self) -> None:
        """Fail if there is any file."""
        __tracebackhide__ = True
        found = self.tree()
        if found:
            fail(f"{self.path} is not empty: it holds {self._sizes(found)}")

    @property
    def size(self) -> int:
        """Bytes in all files together."""
        return sum(status.st_size for status in self._inodes())

    def age(self, rel: str, delta: timedelta) -> None:
        """Make a file *delta* older than it is now: its access and modification times move back."""
        target = self._inside(rel)
        now = os.stat(target)
        nanoseconds = round(delta.total_seconds() * 1e9)
        os.utime(target, ns=(now.st_atime_ns - nanoseconds, now.st_mtime_ns - nanoseconds))

    def visible_at(
        self,
        rel: str,
        *,
        datacenter: str | None = None,
        server: str | None = None,
        listed: bool = False,
    ) -> datetime | None:
        """When the newest state of a file can be read on the servers of a datacenter.

        The test itself always sees everything; with ``data_visibility="staged"`` runners do not.

        Args:
            rel: path inside the volume.
            datacenter: default: ``Settings.region``.
            server: one server of it; default: any but that of the runner that wrote the file.
            listed: when it is listed, not when it can be read.

        Returns:
            The moment on the clock; now, if it has arrived; None, if it is not there or is still
            open for writing.
        """
        between = self.between
        if between is None:
            raise EmulatorError(f"{self.path} is seen by one runner alone. Ask fal_data.")
        self._inside(rel)
        return between.visible_at(rel, server, datacenter, listed=listed)

    def wait_for_reader(self, rel: str, timeout: float = 30) -> None:
        """Return once a runner waits for the content of a file, in real time.

        Raises:
            EmulatorError: in *timeout* seconds none did.
        """
        if self.between is None:
            raise EmulatorError(f"Nobody waits for a file in {self.path}. Ask fal_data.")
        self.between.wait_for_reader(rel, timeout)

    def limit(self, nbytes: int) -> None:
        """Let the volume hold at most *nbytes* from now on; more is the kernel's own ENOSPC.

        What is in it stays. Files that are open meanwhile keep writing to the volume as it was.

        Raises:
            EmulatorError: what is in the volume already is more than that.
        """
        self.check()
        # tmpfs counts whole pages.
        page = os.sysconf("SC_PAGE_SIZE")
        size = max(page, nbytes + -nbytes % page)
        held = sum(status.st_size + -status.st_size % page for status in self._inodes())
        if held > size:
            raise EmulatorError(
                f"{self.path} cannot be limited to {nbytes} bytes: in whole pages it holds {held} "
                f"already. Call limit() before writing, or with a larger number."
            )
        if self._locked:
            raise EmulatorError(
                f"{self.path} cannot be limited while it is read-only. Call limit() outside of "
                f"read_only()."
            )
        staged = os.path.join(self._scratch, "limit")
        os.makedirs(staged, exist_ok=True)
        mounts.mount_tmpfs(staged, size)
        try:
            self._copy_to(staged)
            mounts.set_propagation(staged, "private")
            mounts.bind(staged, str(self.backing))
        finally:
            mounts.unmount(staged)
        self._covers += 1
        self.remount()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """While in this block, every write is the kernel's EROFS, for every runner."""
        self.check()
        staged = os.path.join(self._scratch, "read-only")
        os.makedirs(staged, exist_ok=True)
        mounts.bind(str(self.backing), staged)
        # Still a peer of the volume, the mount below would appear a second time on top of itself.
        mounts.set_propagation(staged, "private")
        mounts.bind(staged, staged, read_only=True)
        mounts.bind(staged, str(self.backing))
        mounts.unmount(staged)
        mounts.unmount(staged)
        self._covers += 1
        outer, self._locked = self._locked, True
        try:
            self.remount()
            yield
        finally:
            self._locked = outer
            if self._covers:  # otherwise the test is over
                self._covers -= 1
                mounts.unmount(str(self.backing))
                self.remount()

    def hide(self, paths: set[str]) -> None:
        """Leave *paths*, which this process itself needs in ``/tmp``, out of :meth:`tree`."""
        self._not_ours = paths

    def save(self) -> None:
        """Copy what was written under a limit to where the host can see it later."""
        if self._covers:
            os.mkdir(f"{self.backing}.kept")
            # What may not be read is not worth another error after the test's.
            mounts.attempt(lambda: self._copy_to(f"{self.backing}.kept"))

    def uncover(self) -> None:
        """Take all covers away, and put back what was saved."""
        while self._covers:
            self._covers -= 1
            mounts.attempt(lambda: mounts.unmount(str(self.backing)))
        kept = f"{self.backing}.kept"
        if os.path.isdir(kept):
            os.rename(self.backing, f"{self.backing}.before-limit")
            os.rename(kept, self.backing)

    def _copy_to(self, target: str) -> None:
        skip = {os.path.join(self.backing, rel) for rel in self._not_ours}

        def ignore(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if os.path.join(folder, name) in skip]

        copies: dict[int, str] = {}

        def copy(source: str, place: str) -> None:
            status = os.lstat(source)
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                first = copies.setdefault(status.st_ino, place)
                if first != place:
                    return os.link(first, place)
            if stat.S_ISFIFO(status.st_mode):
                return os.mkfifo(place, stat.S_IMODE(status.st_mode))
            if not stat.S_ISSOCK(status.st_mode):  # which is nothing without its program
                shutil.copy2(source, place, follow_symlinks=False)
            return None

        shutil.copytree(
            self.backing,
            target,
            symlinks=True,
            dirs_exist_ok=True,
            ignore=ignore,
            copy_function=copy,
        )

    def _sizes(self, rels: list[str]) -> str:
        return listed([f"{rel}{self._size_of(rel)}" for rel in rels])

    def _size_of(self, rel: str) -> str:
        if rel.endswith("/"):
            return ""
        with suppress(FileNotFoundError):  # removed by a running app meanwhile
            return f" ({bytes_of(os.lstat(self.backing / rel).st_size)})"
        return ""

    def _relative(self, path: str | os.PathLike[str]) -> str:
        pure = PurePosixPath(path)
        return str(pure.relative_to(self.path) if pure.is_relative_to(self.path) else pure)

    def _inside(self, rel: str) -> Path:
        pure = PurePosixPath(rel)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise ValueError(
                f"{rel!r} is not a path inside {self.path}. Write it relative to the volume, "
                f"for example 'models/weights.bin'."
            )
        return self.backing / pure

    def _files(self) -> Iterator[str]:
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(os.path.join(self.backing, folder)))
            except FileNotFoundError:
                continue  # removed by a running app meanwhile
            except OSError as error:
                if error.errno not in _UNLISTED:
                    raise
                yield f"{folder}/"
                continue
            for entry in entries:
                rel = os.path.join(folder, entry.name)
                if rel in self._not_ours:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(rel)
                else:
                    yield rel

    def _inodes(self) -> list[os.stat_result]:
        """What is known of the files, each one once however many names it has."""
        found = {}
        for rel in self._files():
            with suppress(FileNotFoundError):  # removed by a running app meanwhile
                status = os.lstat(self.backing / rel)
                found[status.st_ino] = status
        return list(found.values())


def _partial(rel: str) -> str | None:
    """The part of a path up to the first name that only something unfinished has."""
    names = rel.split("/")
    for depth, name in enumerate(names, 1):
        if _PARTIAL.fullmatch(name):
            return "/".join(names[:depth]) + "/" * (depth < len(names))
    return None
