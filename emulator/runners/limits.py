"""How long things may take: the app's own limits, else the platform's [§4.3, §4.4]."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emulator.settings import Settings

__all__ = ["WORTH_A_TIMER", "grace", "request_timeout", "startup_timeout"]

#: Longer limits are kept on the clock only: no test sits them out.
WORTH_A_TIMER = timedelta(minutes=5)


def startup_timeout(app: type, settings: Settings) -> timedelta:
    """From the start of a runner until its app is set up."""
    return _own(app, "startup_timeout") or settings.startup_timeout


def request_timeout(app: type, settings: Settings) -> timedelta:
    """How long a runner may take over one request."""
    return _own(app, "request_timeout") or settings.request_timeout


def grace(app: type, settings: Settings) -> timedelta:
    """From SIGTERM to SIGKILL."""
    return _own(app, "termination_grace_period_seconds") or settings.termination_grace_period


def _own(app: type, name: str) -> timedelta | None:
    seconds: Any = getattr(app, name, None)
    return timedelta(seconds=seconds) if seconds else None
