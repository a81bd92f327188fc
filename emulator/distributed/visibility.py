"""When a change of /data can be seen where: pure rules, without files, mounts or clocks.

The write path as documented [§2.1]: what is written is buffered while the file is open; ``close``
shows it to the same server; it reaches the caches of the datacenter; it reaches the object store,
and with it every datacenter. Names travel faster than content: another datacenter may list a file
whose content it has not got yet, and who reads it there waits.

Moments are integers of nanoseconds on the virtual clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["ALWAYS", "Delays", "History", "Place", "Version"]

#: A moment before all others: what was there before anybody wrote.
ALWAYS = -(1 << 63)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Place:
    """Where a runner is."""

    runner: str
    server: str
    datacenter: str

    def shares_server_with(self, other: Place) -> bool:
        """Whether both are on one server; servers of two datacenters may have one name."""
        return (self.server, self.datacenter) == (other.server, other.datacenter)


@dataclass(frozen=True)
class Delays:
    """How long after its publication (``close``, or the call that removes or renames) it arrives.

    The order is kept whatever the numbers: the server, its datacenter, listed elsewhere, readable
    elsewhere.
    """

    #: To the other servers of the datacenter.
    datacenter: int = 0
    #: Until its content can be read in all datacenters.
    everywhere: int = 0
    #: Until the other datacenters list it.
    listing: int = 0

    def until_listed_elsewhere(self) -> int:
        """From publication to the listings of other datacenters."""
        return max(self.datacenter, self.listing)

    def until_readable_elsewhere(self) -> int:
        """From publication to the last reader."""
        return max(self.until_listed_elsewhere(), self.everywhere)


@dataclass(eq=False)
class Version(Generic[Value]):
    """One state of a name or of a file's content."""

    value: Value
    #: Who made it; None: it was there before, for everybody.
    by: Place | None = None
    #: When it was published on the server of its maker; None: not yet, its file is open.
    at: int | None = None

    def listed(self, observer: Place, delays: Delays) -> int | None:
        """When the observer sees that it is there; None: nobody can tell yet."""
        if self.by is None or observer.runner == self.by.runner:
            return ALWAYS
        if self.at is None:
            return None
        if observer.shares_server_with(self.by):
            return self.at
        if observer.datacenter == self.by.datacenter:
            return self.at + delays.datacenter
        return self.at + delays.until_listed_elsewhere()

    def readable(self, observer: Place, delays: Delays) -> int | None:
        """When the observer can read it; from ``listed`` until then a read waits."""
        if self.by is None or self.at is None or observer.datacenter == self.by.datacenter:
            return self.listed(observer, delays)
        return self.at + delays.until_readable_elsewhere()

    def everywhere(self, delays: Delays) -> int | None:
        """When nobody is left who does not have it."""
        if self.by is None:
            return ALWAYS
        return None if self.at is None else self.at + delays.until_readable_elsewhere()


class History(Generic[Value]):
    """The states of one name, or of one file's content, in the order that everybody ends up with.

    Everybody sees the newest state that has arrived; an older one that arrives later changes
    nothing. So all observers agree in the end: the last one wins.
    """

    def __init__(self, first: Version[Value]) -> None:
        self.versions = [first]

    @property
    def newest(self) -> Version[Value]:
        """What everybody will see."""
        return self.versions[-1]

    def add(self, version: Version[Value]) -> None:
        """Something new, from the present state on."""
        self.versions.append(version)
        self._forget_hidden()

    def publish(self, version: Version[Value], at: int) -> None:
        """The file was closed: of several that have it open the last to close wins."""
        version.at = at
        self.versions.remove(version)
        self.versions.append(version)
        self._forget_hidden()

    def _forget_hidden(self) -> None:
        """What one maker made at one moment arrives together: but for the last, never seen."""
        last = self.newest
        if last.at is not None:
            self.versions = [
                v for v in self.versions if v is last or (v.by, v.at) != (last.by, last.at)
            ]

    def seen_by(self, observer: Place, now: int, delays: Delays) -> Version[Value] | None:
        """The state that the observer sees; None: none has arrived."""
        for version in reversed(self.versions):
            listed = version.listed(observer, delays)
            if listed is not None and listed <= now:
                return version
        return None

    def settle(self, now: int, delays: Delays) -> bool:
        """Forget what nobody can see any more; whether only one state is left, for everybody."""
        for index in range(len(self.versions) - 1, -1, -1):
            arrived = self.versions[index].everywhere(delays)
            if arrived is not None and arrived <= now:
                del self.versions[:index]
                self.versions[0].by = None  # as if it had always been there
                return len(self.versions) == 1
        return False

    def shift(self, span: int) -> None:
        """The clock was moved back: what has arrived stays, and the rest takes as long as before.

        Args:
            span: nanoseconds to add to every moment; negative.
        """
        for version in self.versions:
            if version.at is not None:
                version.at += span
