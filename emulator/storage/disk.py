"""The volumes' directories: fresh ones for each test, another ``/tmp`` for each runner.

How ``/data`` and ``/tmp`` come to lead there is a matter of the rung: mounts (``mounted.py``), or
Python's path calls rewritten, with or without a real ``/data`` (``rewritten.py``).

Layout below the session's directory: ``volumes/<test>/data``, ``volumes/<test>/tmp``,
``volumes/<test>/runner-1/tmp``.
"""

from __future__ import annotations

import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from emulator.storage.sweeper import Sweeper, remove_tree
from emulator.storage.visible import TMP, Visible
from emulator.storage.volume import Volume

if TYPE_CHECKING:
    from emulator.distributed.data import Share
    from emulator.settings import FilesystemInForce
    from emulator.storage.places import Place

__all__ = ["DATA", "TMP", "Disk", "RunnerDisk", "Seat", "in_thread", "remove_tree"]

DATA = "/data"


class Seat(Protocol):
    """What a process needs to be on a runner: descriptors to pass, or a place to be told."""

    @property
    def number(self) -> int:
        """Names the runner."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of its mounts."""

    @property
    def place(self) -> Place | None:
        """Where its paths lead, if they are rewritten."""

    def enter(self) -> None:
        """Take it, with the calling thread."""

    def close(self) -> None:
        """Give it up."""


class Disk(ABC):
    """The volumes of one emulator.

    Args:
        root: an empty directory of the session; what failing tests leave stays below it.
    """

    rung: FilesystemInForce
    #: What the settings say (``trusted_programs``) of the test that is about to begin.
    trusted_programs: tuple[str, ...] = ()

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.volumes = os.path.join(self.root, "volumes")
        self._visible = Visible(self.root)
        self._test: str | None = None
        self._count = 0
        self._sweeper = Sweeper()
        self.data = self.tmp = Volume(DATA, self.volumes, self.root)

    def keep_visible(self, paths: Iterable[str]) -> None:
        """Say which paths below ``/tmp`` this process needs although another one is there."""
        self._visible.add(paths)

    @abstractmethod
    def mount(self, name: str = "test") -> None:
        """Give the calling thread, and those it starts, a fresh ``/data`` and ``/tmp``."""

    @abstractmethod
    def unmount(self, keep: bool) -> str | None:
        """Take them away and, unless *keep*, what was written.

        Returns:
            The directory that was kept.
        """

    @abstractmethod
    def new_runner(self, name: str, own_programs: Mapping[str, str] | None = None) -> RunnerDisk:
        """The ``/tmp`` of a new runner, not in place yet; and the scripts that it alone has."""

    @abstractmethod
    def here(self) -> int:
        """The number of the runner that the calling thread is on, or another for the test."""

    @abstractmethod
    def number_of_process(self, process: int) -> int | None:
        """The number of the runner that a process is on; None when it has ended or is nobody's."""

    @abstractmethod
    def at_home(self, action: Callable[[], None]) -> None:
        """Call something that sees the host's own ``/data`` and ``/tmp``."""

    @abstractmethod
    def close(self) -> None:
        """Give up what the session has. Kept volumes stay."""

    @property
    def directory(self) -> str | None:
        """Where the volumes of the test under way are."""
        return self._test

    def throw_away(self, path: str) -> None:
        """Remove a directory in the background."""
        self._sweeper.remove(path)

    def _begin(self, name: str) -> None:
        """Name the directory of a new test, which is not there yet."""
        self._count += 1
        self._visible.look()
        self._test = os.path.join(self.volumes, f"{self._count}-{_file_name(name)}")

    def _volume(self, path: str, backing: str, made: bool) -> Volume:
        assert self._test is not None
        if not made:
            os.mkdir(backing)
            os.chmod(backing, 0o1777 if path == TMP else 0o755)
        return Volume(path, backing, self._test)

    def _runner_tmp(self, name: str) -> Volume:
        assert self._test is not None
        backing = os.path.join(self._test, _file_name(name), "tmp")
        os.mkdir(os.path.dirname(backing))
        return self._volume(TMP, backing, made=False)

    def _remove_if_empty(self, *folders: str) -> None:
        for folder in folders:
            with suppress(OSError):
                os.rmdir(folder)


class RunnerDisk(ABC):
    """What one runner has of the volumes: ``/data`` as everybody, a ``/tmp`` of its own."""

    def __init__(self, disk: Disk, tmp: Volume) -> None:
        self._disk = disk
        self.tmp = tmp
        #: ``/data`` as this runner sees it; None: the plain directory.
        self.share: Share | None = None

    def here(self) -> int:
        """The number of the runner that the calling thread is on, or another for the test."""
        return self._disk.here()

    @abstractmethod
    def enter(self) -> int:
        """Move the calling thread, and all it starts, onto the runner; the runner's number."""

    @abstractmethod
    def enter_aside(self) -> Seat:
        """Make a seat on the runner for another process."""

    @abstractmethod
    def remount_tmp(self) -> None:
        """After the volume's limit changed: show it. Called on the runner."""

    @abstractmethod
    def remount_aside(self, seat: Seat) -> None:
        """The same, for a runner in another process."""

    def disconnect(self) -> None:
        """The runner is dead: what it still does in a ``/data`` of its own fails."""
        share, self.share = self.share, None
        if share is not None:
            share.end()

    def discard(self) -> None:
        """The runner is shut down: what was in its ``/tmp`` is lost."""
        self.disconnect()
        self.tmp.uncover()
        discarded = f"{self.tmp.backing}-discarded"
        os.rename(self.tmp.backing, discarded)
        self._disk.throw_away(discarded)
        os.mkdir(self.tmp.backing)


def in_thread(action: Callable[[], None]) -> None:
    """Call something in a thread of its own, whose mounts and rights may change, and wait for it.

    Raises:
        BaseException: whatever the action raised.
    """
    raised: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=act, name="fal-mounts")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:60].strip("-") or "test"
