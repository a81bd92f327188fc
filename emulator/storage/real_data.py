"""A real ``/data`` for root in a disposable container that allows no mounts.

Another directory for each test: made beside, put at ``/data`` by a rename, and taken away so. There
is one ``/data`` for the whole machine, so whoever else wants it meanwhile (pytest-xdist's other
workers, another session) waits for its turn. A ``/data`` that is not ours is never touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from contextlib import suppress

from emulator.errors import EmulatorError, FilesystemError
from emulator.storage.sweeper import remove_tree

__all__ = ["RealData", "refusal"]

_DATA = "/data"
#: Ours, on the file system of the root directory, as a rename needs it.
_HOME = "/.fal-emulator-data"
#: There while ``/data`` is a test's: whoever finds it with nobody holding the lock may clear up.
_MARK = f"{_HOME}/data-is-of-a-test"
_LOCK = f"{_HOME}/lock"
_PATIENCE_SECONDS = 1800.0
_POLL_SECONDS = 0.002
_mine = threading.Lock()


def refusal() -> str | None:
    """Why ``/data`` cannot be given to tests; None: it can."""
    if not os.access("/", os.W_OK):
        return "/ cannot be written to by this user"
    if os.path.lexists(_DATA) and not os.path.exists(_MARK):
        return f"there is a {_DATA} already, which is not ours to touch"
    return None


class RealData:
    """The ``/data`` of the test under way, one at a time on this machine."""

    def __init__(self) -> None:
        #: Where what a failing test wrote goes.
        self.kept_at = ""
        self._lock = -1
        self._is_put = False

    def acquire(self) -> None:
        """Wait until nobody else has ``/data``.

        Raises:
            FilesystemError: there is one that is not ours, or somebody has had it for half an hour.
            EmulatorError: another emulator of this process has it.
        """
        if not _mine.acquire(blocking=False):
            raise EmulatorError(
                "Another emulator of this process has /data, of which there is one on this rung. "
                "Stop that one first."
            )
        try:
            why = refusal()
            if why is not None:
                raise FilesystemError(f"There cannot be a real /data for the tests: {why}.")
            self._lock = _locked()
            self._clear_up()
        except BaseException:
            self._let_go()
            raise

    def put(self) -> None:
        """Put an empty directory at ``/data``."""
        os.close(os.open(_MARK, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.mkdir(_DATA, 0o755)
        self._is_put = True

    def release(self, path: str, keep: bool) -> None:
        """Take ``/data`` away and let the next one have its turn.

        Args:
            path: where it is.
            keep: move it to :attr:`kept_at`.
        """
        if self._lock < 0:
            return
        try:
            if self._is_put:
                self._is_put = False
                gone = _aside(path)
                if gone is not None and keep:
                    shutil.move(gone, self.kept_at)
                elif gone is not None:
                    _remove(gone)
            with suppress(FileNotFoundError):
                os.unlink(_MARK)
        finally:
            self._let_go()

    def close(self) -> None:
        """Leave nothing, unless somebody else is at it."""
        with suppress(OSError):
            lock = os.open(_LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(_LOCK)
                os.rmdir(_HOME)
            finally:
                os.close(lock)

    def _let_go(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)
        _mine.release()

    def _clear_up(self) -> None:
        """Remove what a session that was killed has left."""
        if os.path.exists(_MARK):
            if os.path.lexists(_DATA):
                gone = _aside(_DATA)
                if gone is not None:
                    _remove(gone)
            os.unlink(_MARK)
        elif os.path.lexists(_DATA):
            raise FilesystemError(
                "There cannot be a real /data for the tests: there is one already, which is not "
                "ours to touch."
            )


def _locked() -> int:
    """A descriptor of the lock, which is ours once it is returned."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        os.makedirs(_HOME, mode=0o700, exist_ok=True)
        lock = os.open(_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            while not _is_locked(lock):
                if time.monotonic() > deadline:
                    raise FilesystemError(
                        "Another pytest process has had /data for half an hour, and there is one "
                        "on this machine. End it, or run the tests where namespaces can be had."
                    )
                time.sleep(_POLL_SECONDS)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(_LOCK)):
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # who had it has removed it meanwhile


def _is_locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _aside(path: str) -> str | None:
    """Rename a directory to where the next one is not in its way."""
    gone = f"{_HOME}/{os.getpid()}-{time.monotonic_ns()}"
    try:
        os.rename(path, gone)
    except FileNotFoundError:  # the test itself has removed it
        return None
    return gone


def _remove(path: str) -> None:
    try:
        remove_tree(path)
    except OSError:
        return  # a program that still runs keeps writing to it
