"""What a runner finds on the platform."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.runners.limits import Limits
    from emulator.settings import Settings
    from emulator.storage.disk import RunnerDisk
    from emulator.users import User

__all__ = ["Surroundings"]


@dataclass
class Surroundings:
    """What a runner finds on the platform.

    ``changed`` is told each new state, ``note`` what the platform decided, ``intercept`` is what
    fal's gateway answers a request itself (None lets it through to the app). ``in_fleet``: what its
    answers mean for it is decided by its deployment.
    """

    disk: RunnerDisk
    clock: Clock
    settings: Settings
    #: Headers that the gateway adds to a request of this user's; None: as whom the test acts.
    gateway: Callable[[User | str | None], Mapping[str, str]]
    environment: dict[str, str]
    changed: Callable[[Any, str], None]
    note: Callable[[str], None]
    intercept: Callable[[Any, httpx.Request], httpx.Response | None]
    limits: Limits
    in_fleet: bool = False

    @contextmanager
    def within(self, limit: timedelta, time_out: Callable[[], None]) -> Iterator[None]:
        """Have something done if this block is not over by then; a deployment keeps its time."""
        if self.in_fleet:
            yield
            return
        alarm = self.clock.on(limit, time_out)
        try:
            yield
        finally:
            alarm.cancel()
