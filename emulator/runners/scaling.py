"""When runners start and stop: a function of options, clock and load, without side effects [§4.4].

A fleet needs runners for its requests, and keeps a buffer beside them; ``min_concurrency`` is the
least there is and ``max_concurrency`` the most. A runner goes when it is more than that and has
been idle for ``keep_alive``; one that never had a request goes after ten seconds, unless the app
asks for runners in advance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from emulator.runners.options import Scaling

__all__ = [
    "SCHEDULING_DELAY",
    "Decision",
    "Load",
    "Phase",
    "RunnerLoad",
    "crash_backoff",
    "decide",
    "expiry",
    "wanted",
]

#: Where a runner is, as its fleet sees it.
Phase = Literal["STARTING", "READY", "DRAINING", "STOPPING", "ENDED"]

_UNUSED = timedelta(seconds=10)
_BACKOFF_STEP = timedelta(seconds=30)
_BACKOFF_MOST = timedelta(minutes=10)
#: The wait after a runner for which there was no machine [§4.1].
SCHEDULING_DELAY = timedelta(seconds=20)


@dataclass(frozen=True)
class RunnerLoad:
    """One runner, as far as scaling is concerned."""

    name: str
    phase: Phase
    #: Requests it has.
    requests: int = 0
    #: Since when it has none.
    idle_since: datetime | None = None
    #: Whether it ever had one.
    served: bool = False


@dataclass(frozen=True)
class Load:
    """A fleet at one moment; without the runners of earlier deployments that only finish."""

    now: datetime
    #: In the order in which they were started.
    runners: tuple[RunnerLoad, ...] = ()
    #: Since when each request waits for a runner.
    waiting: tuple[datetime, ...] = ()
    #: Until when no runner starts: crash back-off, or no machine.
    blocked_until: datetime | None = None


@dataclass(frozen=True)
class Decision:
    """What to do now, and when to look again."""

    #: How many runners to start.
    start: int = 0
    #: The runners to stop.
    stop: tuple[str, ...] = ()
    #: The next moment at which time alone changes something.
    wake: datetime | None = None


def decide(scaling: Scaling, load: Load) -> Decision:
    """What a fleet does now."""
    start, start_wake = _starts(scaling, load)
    stop, stop_wake = _stops(scaling, load)
    wakes = [wake for wake in (start_wake, stop_wake) if wake is not None]
    return Decision(start, stop, min(wakes, default=None))


def wanted(scaling: Scaling, busy: int, requests: int) -> int:
    """How many runners there should be.

    Args:
        busy: runners that have a request.
        requests: requests that run or wait.
    """
    needed = max(busy, math.ceil(requests / scaling.max_multiplexing))
    percentage = math.ceil(scaling.concurrency_buffer_perc * requests / 100)
    buffer = max(scaling.concurrency_buffer, percentage)
    return min(max(needed + buffer, scaling.min_concurrency), scaling.max_concurrency)


def expiry(scaling: Scaling, runner: RunnerLoad) -> datetime | None:
    """When an idle runner may go; None: it is not idle."""
    if runner.phase != "READY" or runner.requests or runner.idle_since is None:
        return None
    keep_alive = timedelta(seconds=scaling.keep_alive)
    if not runner.served and not scaling.holds_runners:
        keep_alive = min(keep_alive, _UNUSED)
    return runner.idle_since + keep_alive


def crash_backoff(failures: int) -> timedelta:
    """The wait before the next start, after so many failed ones in a row [§4.1]."""
    return min(_BACKOFF_STEP * failures, _BACKOFF_MOST)


def _starts(scaling: Scaling, load: Load) -> tuple[int, datetime | None]:
    delay = timedelta(seconds=scaling.scaling_delay)
    overdue = [since for since in load.waiting if since + delay <= load.now]
    alive = sum(runner.phase in ("STARTING", "READY") for runner in load.runners)
    room = scaling.max_concurrency - len(load.runners)
    count = max(0, min(_wanted_for(scaling, load, len(overdue)) - alive, room))
    wakes = []
    if room > 0 and len(overdue) < len(load.waiting):
        wakes.append(min(since + delay for since in load.waiting if since + delay > load.now))
    if count and load.blocked_until is not None and load.blocked_until > load.now:
        count = 0
        wakes.append(load.blocked_until)
    return count, min(wakes, default=None)


def _stops(scaling: Scaling, load: Load) -> tuple[tuple[str, ...], datetime | None]:
    alive = [runner for runner in load.runners if runner.phase in ("STARTING", "READY")]
    surplus = len(alive) - _wanted_for(scaling, load, len(load.waiting))
    ends = [(end, runner.name) for runner in alive if (end := expiry(scaling, runner))]
    ends.sort(key=lambda one: one[0])  # stable: of two, the one that was started first
    leaving = ends[: max(surplus, 0)]
    later = [end for end, _ in leaving if end > load.now]
    return tuple(name for end, name in leaving if end <= load.now), min(later, default=None)


def _wanted_for(scaling: Scaling, load: Load, waiting: int) -> int:
    ready = [runner for runner in load.runners if runner.phase == "READY"]
    busy = sum(runner.requests > 0 for runner in ready)
    return wanted(scaling, busy, sum(runner.requests for runner in ready) + waiting)
