"""The calls that wait for a runner, and which is next: in order, or as a seed has it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from emulator.fleets.call import Attempt, Call
from emulator.fleets.scaling import Phase

if TYPE_CHECKING:
    import httpx

    from emulator.runners.log import Log
    from emulator.runners.runner import State
    from emulator.runners.websocket import AppWebSocket

__all__ = ["CallQueue", "Member", "Server", "choose_member"]


class Server(Protocol):
    """What answers calls: a runner, or a stand-in for somebody else's."""

    name: str
    log: Log

    @property
    def state(self) -> State:
        """Where it is in its life."""

    def send(self, request: httpx.Request) -> httpx.Response:
        """Let it answer a request."""

    def open(self, request: httpx.Request) -> httpx.Response:
        """Let it answer a request, and return as soon as the head of its answer is there."""

    def connect(self, request: httpx.Request) -> AppWebSocket:
        """Let it open a websocket."""

    def catch_up(self) -> None:
        """Have all that it printed so far in its log."""

    def stop(self) -> None:
        """Shut it down in order."""

    def kill(self, reason: str = "by the test") -> None:
        """End it at once."""


@dataclass(eq=False)
class Member:
    """A runner of a fleet, from the decision to start it to its end."""

    name: str
    #: Which deployment it belongs to: 1, then 2 after a redeploy.
    revision: int
    #: How many requests it takes at once.
    slots: int
    started_at: datetime
    startup_deadline: datetime
    phase: Phase = "STARTING"
    runner: Server | None = None
    #: Whether its boot is under way; it may be given up before that is over.
    booting: bool = True
    #: What it does now.
    running: dict[Attempt, Call] = field(default_factory=dict)
    idle_since: datetime | None = None
    served: bool = False
    #: The ``X-Fal-Runner-Hints`` of its last answer.
    hints: frozenset[str] = frozenset()

    @property
    def is_free(self) -> bool:
        """Whether it takes one more request."""
        return self.phase == "READY" and len(self.running) < self.slots


class CallQueue:
    """Waiting calls: direct ones, whose callers wait, and queued ones, which can be held."""

    def __init__(self) -> None:
        self._waiting: list[Call] = []
        self.held = False

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._waiting))

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, call: Call) -> None:
        """Let a call wait; one that is tried again takes its old place."""
        self._waiting.append(call)
        self._waiting.sort(key=_order)

    def remove(self, call: Call) -> bool:
        """Take a call out; whether it was in."""
        if call not in self._waiting:
            return False
        self._waiting.remove(call)
        return True

    def clear(self) -> list[Call]:
        """Take all out."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def position(self, call: Call) -> int | None:
        """How many are before it."""
        return self._waiting.index(call) if call in self._waiting else None

    def next(self, chance: random.Random | None, held: bool = False) -> Call | None:
        """The call whose turn it is.

        Args:
            chance: chooses among the queued ones of the same priority; None: in order.
            held: also while the queue is held.
        """
        for call in self._waiting:
            if call.direct:
                return call
        if not self._waiting or (self.held and not held):
            return None
        first = self._waiting[0]
        equals = [call for call in self._waiting if call.low_priority == first.low_priority]
        return first if chance is None else chance.choice(equals)


def choose_member(free: list[Member], call: Call, chance: random.Random | None) -> Member | None:
    """The runner for a call: by its hint, and rather not one that it has failed on."""
    if call.hint is not None:
        free = [member for member in free if call.hint in member.hints] or free
    used = {attempt.runner for attempt in call.attempts}
    free = [member for member in free if member.name not in used] or free
    if not free:
        return None
    return free[0] if chance is None else chance.choice(free)


def _order(call: Call) -> tuple[bool, bool, int]:
    return not call.direct, call.low_priority, call.number
