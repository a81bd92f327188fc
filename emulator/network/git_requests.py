"""What git asked servers for, as the programs that answered it have written it down."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger

__all__ = ["GitRequest", "Requests"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NAMESPACE = re.compile(r"mnt:\[(\d+)\]")
_DONE = {"clone": "cloned", "fetch": "fetched from", "list": "looked at", "push": "pushed to"}


@dataclass(eq=False)
class GitRequest:
    """What git asked a server for."""

    #: Virtual time.
    at: datetime
    #: Without credentials.
    url: str
    #: A clone (by somebody who had no commit of it), a fetch of what is new, a push, or only a
    #: list of branches (``git ls-remote``, or a fetch where nothing is new).
    operation: Literal["clone", "fetch", "list", "push"]
    #: Name of the runner that asked, None for the test itself.
    runner: str | None
    #: What became of it: nothing serves it, or not that; it was broken down, or who asked was
    #: killed meanwhile. ``"running"``: it is not over.
    outcome: Literal["running", "served", "refused", "broken"] = "running"

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"{self.operation} of {self.url}{self.by}: {self.outcome}"

    @property
    def by(self) -> str:
        """Who asked: " by runner-1"; empty for the test itself."""
        return f" by {self.runner}" if self.runner else ""


class Requests:
    """Reads what was written, whenever somebody wants to know, and before the clock is moved.

    Args:
        folder: a file for each program that answered: in its first line what was asked, in the
            others what became of it.
        clock: the clock.
        ledger: gets an event for each request that is over.
        name_of: the name of the runner whose mount namespace has a number.
    """

    def __init__(
        self,
        folder: str,
        clock: Clock,
        ledger: Ledger,
        name_of: Callable[[int | None], str | None],
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._ledger = ledger
        self._name_of = name_of
        self._lock = threading.RLock()
        self._known: dict[str, GitRequest] = {}
        self._finished: set[str] = set()
        self._jumped = _EPOCH
        clock.subscribe(self._before_jump)
        ledger.before_reading = self.look

    def reset(self) -> None:
        """Forget them."""
        self._known.clear()
        self._finished.clear()
        self._jumped = _EPOCH

    @property
    def all(self) -> list[GitRequest]:
        """All of this test, in order."""
        self.look()
        return list(self._known.values())

    def _before_jump(self, old: datetime, new: datetime) -> None:
        """What was asked for before the clock was moved was asked for until then."""
        self.look(until=old)
        self._jumped = new

    def look(self, until: datetime | None = None) -> None:
        """Take in what git has asked for since the last look."""
        with self._lock:
            try:
                new = set(os.listdir(self._folder)) - self._finished
            except FileNotFoundError:  # an app has cleared /tmp, where it is
                return
            if not new:
                return
            until = until or self._clock.now()
            found = sorted((os.stat(self._path(name)).st_mtime_ns, int(name)) for name in new)
            for nanoseconds, pid in found:
                moment = _EPOCH + timedelta(microseconds=nanoseconds // 1000)
                self._take(str(pid), min(max(moment, self._jumped), until))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _take(self, name: str, moment: datetime) -> None:
        """Take in what one program has written."""
        first, *notes = self._read(name) or [""]
        request = self._known.get(name)
        if request is None and first.count("\t") != 2:
            if not _is_alive(int(name)):  # else it is about to write
                self._finished.add(name)
            return
        operation, namespace, url = first.split("\t")
        if request is None:
            number = _NAMESPACE.fullmatch(namespace)
            runner = self._name_of(int(number[1])) if number else None
            request = GitRequest(moment, url, operation, runner)  # type: ignore[arg-type]
            self._known[name] = request
        if not {"end", "refused"} & set(notes) and not _is_alive(int(name)):
            notes = [*self._read(name)[1:], "broken"]  # it may have ended meanwhile
            if "end" in notes:
                notes.remove("broken")
        for note in notes:
            if note in ("clone", "fetch"):
                request.operation = note  # type: ignore[assignment]
            elif note in ("refused", "broken"):
                request.outcome = note  # type: ignore[assignment]
            elif note == "end" and request.outcome == "running":
                request.outcome = "served"
        if request.outcome != "running":
            self._finished.add(name)
            self._record(request)

    def _read(self, name: str) -> list[str]:
        return Path(self._path(name)).read_text("utf-8", "replace").splitlines()

    def _record(self, request: GitRequest) -> None:
        done = f"{_DONE[request.operation]} {request.url}{request.by}"
        if request.outcome != "refused":
            broken = ", which broke down" if request.outcome == "broken" else ""
            self._ledger.event("git", f"{done}{broken}", at=request.at)
        elif request.operation == "push":
            self._ledger.event("refused", f"git {done}: nobody can in a test", at=request.at)
        else:
            text = f"git asked for {request.url}{request.by}: nothing in this test serves it"
            self._ledger.event("refused", text, at=request.at)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2]
    except OSError:
        return False
    return not state.startswith(" Z")  # one that has ended, and whose parent has not asked how
