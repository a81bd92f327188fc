"""The platform's health check of a runner [§4.5]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from emulator.errors import EmulatorError

__all__ = ["Check"]

Send = Callable[[str, str], httpx.Response]


@dataclass(frozen=True)
class Check:
    """What is asked, how often it may fail in a row, and when it is asked."""

    method: str
    path: str
    failure_threshold: int = 3
    #: Seconds from the runner's start to the first one.
    start_period: float = 30
    #: Whether it is asked again and again, not only when an answer asks for it.
    regular: bool = False
    #: Seconds from one to the next.
    interval: float = 15

    @classmethod
    def of(cls, app: type) -> Check:
        """The check that an app declares, or the one that every app has."""
        declared: Any = app.get_health_check_config()  # type: ignore[attr-defined]
        if declared is None:
            return cls("GET", "/health")
        return cls(
            method=getattr(declared, "method", None) or "POST",
            path=declared.path,
            failure_threshold=declared.failure_threshold or 3,
            start_period=declared.start_period_seconds or 30,
            regular=declared.call_regularly is not False,
        )

    def problem(self, send: Send) -> str:
        """Ask once: what is wrong, or nothing."""
        try:
            response = send(self.method, self.path)
        except EmulatorError as error:
            return str(error)
        if response.is_success:
            return ""
        return f"{self.method} {self.path} answered {response.status_code}"
