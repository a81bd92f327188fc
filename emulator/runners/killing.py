"""Killing a runner at a point: of a request it makes, or of a file it writes."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from emulator.errors import EmulatorError
from emulator.storage.watch import Watch

if TYPE_CHECKING:
    from emulator.ledger import Exchange
    from emulator.network.fault import Fault
    from emulator.runners.process import ProcessRunner
    from emulator.runners.runner import Runner

__all__ = ["Killer", "settle"]

_LOOKS, _LOOK = 1000, 0.001
_OF_FILES = ("runner", "times", "optional")


class Killer:
    """Kills runners for faults.

    Args:
        named: finds a runner by its name.
        newest: the process runner that was started last, of those that live.
        directory: where the volumes of the test under way are.
        data: where its ``/data`` is; on the rung ``directory`` that is another place.
    """

    def __init__(
        self,
        named: Callable[[str | None], Runner | None],
        newest: Callable[[], Runner | None],
        directory: Callable[[], str | None],
        data: Callable[[], str],
    ) -> None:
        self._named = named
        self._newest = newest
        self._directory = directory
        self._data = data
        self._watches: list[Watch] = []

    def at_request(self, exchange: Exchange, reason: str) -> None:
        """Kill the runner that makes a request, once it has taken in all that came so far.

        Raises:
            EmulatorError: it is none that can be killed at a point; noted, as the client may hide
                it.
        """
        try:
            runner = _killable(self._named(exchange.runner), exchange.runner)
        except EmulatorError as error:
            exchange.notes.append(str(error))
            raise
        if runner.pid is not None:
            settle(runner.pid)
        runner.kill(reason)

    def at_file(self, pattern: str, size: int, matchers: list[str], fault: Fault) -> None:
        """Kill a runner as soon as a file of this pattern is there and has so many bytes.

        Raises:
            EmulatorError: it is no pattern of files of a runner's, or one of the matchers is of
                requests only, or there are no volumes to watch yet.
        """
        _check(pattern, matchers)
        runner = fault.which.runner
        directory = self._directory()
        if directory is None:
            raise EmulatorError("kill_runner(file=...) watches a test's volumes. Call start().")

        data = self._data()
        is_apart = not data.startswith(f"{directory}/")

        def changed(path: str) -> None:
            if is_apart and path.startswith(f"{data}/"):
                found: tuple[str, str | None] | None = (path, None)
            else:
                found = _in_volumes(os.path.relpath(path, directory))
            if found is None or not fnmatch.fnmatch(found[0], pattern):
                return
            with suppress(OSError):
                if os.lstat(path).st_size >= size:
                    self._strike(fault, runner or found[1], found[0])

        for root in (directory, data) if is_apart else (directory,):
            self._watches.append(Watch(root, changed))

    def end(self) -> None:
        """Watch nothing any more."""
        watches, self._watches = self._watches, []
        for watch in watches:
            watch.close()

    def _strike(self, fault: Fault, name: str | None, path: str) -> None:
        target = self._named(name) if name is not None else self._newest()
        if target is None or target.end is not None or not fault.is_due:
            return
        fault.seen += 1
        fault.strikes += 1
        _killable(target, name).kill(f"at the file {path}")


def settle(pid: int) -> None:
    """Wait until all threads of a process wait for something, a second at most."""
    quiet = 0
    for _ in range(_LOOKS):
        quiet = quiet + 1 if all(state in "SD" for state in _states(pid)) else 0
        if quiet == 2:
            break
        time.sleep(_LOOK)


def _states(pid: int) -> list[str]:
    """The kernel's letters for what the threads of a process do."""
    found = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{task}/stat") as file:
                found.append(file.read().rpartition(")")[2].split()[0])
    return found


def _check(pattern: str, matchers: list[str]) -> None:
    of_requests = [name for name in matchers if name not in _OF_FILES]
    if of_requests:
        raise EmulatorError(
            f"kill_runner(file=...) strikes at a file, not at a request: leave {of_requests[0]} "
            'out, and write for example kill_runner(file="/data/models/*", runner="runner-2").'
        )
    if not pattern.startswith(("/data/", "/tmp/")):
        raise EmulatorError(
            f"kill_runner(file={pattern!r}) takes a path in /data or /tmp as an app has it, for "
            'example file="/data/models/*.bin".'
        )


def _killable(runner: Runner | None, name: str | None) -> ProcessRunner:
    from emulator.runners.process import ProcessRunner

    if isinstance(runner, ProcessRunner):
        return runner
    who = "the test itself, which is no runner," if name is None else f"{name}, a thread,"
    raise EmulatorError(
        f"kill_runner() cannot kill {who} at a point. Boot the app in a process: "
        'fal_runner(MyApp, isolation="process").'
    )


def _in_volumes(relative: str) -> tuple[str, str | None] | None:
    """The path that an app has for a file of a test's directory, and whose ``/tmp`` it is in."""
    first, _, rest = relative.partition(os.sep)
    if first == "data" and rest:
        return f"/data/{rest}", None
    if rest.startswith(f"tmp{os.sep}"):
        return f"/{rest}", first
    return None
