"""How long things may take: the app's own limits, else the platform's [§4.3, §4.4]."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emulator.settings import Settings

__all__ = ["WORTH_A_TIMER", "Limits"]

#: Longer limits are kept on the clock only: no test sits them out.
WORTH_A_TIMER = timedelta(minutes=5)


@dataclass(frozen=True)
class Limits:
    """The limits of one runner."""

    #: From its start until its app is set up.
    startup_timeout: timedelta
    #: How long it may take over one request.
    request_timeout: timedelta
    #: From SIGTERM to SIGKILL.
    grace: timedelta

    @classmethod
    def of(cls, app: type, settings: Settings) -> Limits:
        """The app's own limits, else the account's."""
        return cls(
            _own(app, "startup_timeout") or settings.startup_timeout,
            _own(app, "request_timeout") or settings.request_timeout,
            _own(app, "termination_grace_period_seconds") or settings.termination_grace_period,
        )


def _own(app: type, name: str) -> timedelta | None:
    seconds: Any = getattr(app, name, None)
    return timedelta(seconds=seconds) if seconds else None
