"""The ladder: how ``/data`` and ``/tmp`` are emulated here, and why not better.

``namespace``: real mounts in private namespaces. ``directory``: a real ``/data`` swapped for each
test, for root where mounts are not allowed. ``rewrite``: Python's path calls are rewritten, which
works everywhere and cannot do everything. Each is worse than the one before it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulator.errors import FilesystemError, NamespaceRefusedError
from emulator.storage import real_data

if TYPE_CHECKING:
    from emulator.settings import FilesystemInForce
    from emulator.storage.disk import Disk

__all__ = ["RUNGS", "Choice", "choose", "make"]

RUNGS: tuple[FilesystemInForce, ...] = ("namespace", "directory", "rewrite")


@dataclass(frozen=True)
class Choice:
    """A rung, and why it is none of the better ones.

    Attributes:
        rung: the one to take.
        refusals: for each better one that cannot be had here, why.
        demanded: whether it was asked for; then nobody has looked at the better ones.
    """

    rung: FilesystemInForce
    refusals: tuple[tuple[FilesystemInForce, str], ...] = ()
    demanded: bool = False

    @property
    def why(self) -> str:
        """Why not better, as one sentence; empty where there is nothing better."""
        if self.demanded:
            return ""
        return " ".join(f"Not {rung!r}: {_sentence(reason)}" for rung, reason in self.refusals)


def choose(wanted: str = "auto") -> Choice:
    """The best rung there is, or the one that is wanted.

    Raises:
        NamespaceRefusedError: namespaces are wanted, and the kernel refuses them.
        FilesystemError: another rung is wanted that cannot be had.
    """
    if wanted != "auto":
        return _demanded(wanted)
    refusals: list[tuple[FilesystemInForce, str]] = []
    for rung in RUNGS:
        reason = _refusal(rung)
        if reason is None:
            return Choice(rung, tuple(refusals))
        refusals.append((rung, reason))
    raise AssertionError("rewriting is possible everywhere")


def make(choice: Choice, root: str) -> Disk:
    """The volumes of an emulator, on this rung."""
    if choice.rung == "namespace":
        from emulator.storage.mounted import MountedDisk

        return MountedDisk(root)
    from emulator.storage.rewritten import RewrittenDisk

    return RewrittenDisk(root, real_data=choice.rung == "directory")


def _demanded(wanted: str) -> Choice:
    rung = next((rung for rung in RUNGS if rung == wanted), None)
    if rung is None:
        raise FilesystemError(
            f"filesystem={wanted!r} is no rung. Write one of {', '.join(map(repr, RUNGS))}, or "
            "'auto' for the best there is."
        )
    reason = _refusal(rung)
    if reason is None:
        return Choice(rung, demanded=True)
    if rung == "namespace":
        raise NamespaceRefusedError(reason)
    raise FilesystemError(f"The rung {rung!r} is asked for and cannot be had: {_sentence(reason)}")


def _refusal(rung: FilesystemInForce) -> str | None:
    if rung == "namespace":
        if sys.platform != "linux":
            return f"mount namespaces are Linux's, and this system is {sys.platform}."
        from emulator.storage import mounts

        return mounts.refusal()
    return real_data.refusal() if rung == "directory" else None


def _sentence(reason: str) -> str:
    return reason if reason.endswith(".") else f"{reason}."
