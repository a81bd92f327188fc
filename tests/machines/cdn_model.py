"""A small model of a file on the CDN: what was uploaded, until its time is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

__all__ = ["FAR", "LIFETIME", "Begun", "Known", "lifetime_of"]

LIFETIME = "expiration_duration_seconds"
#: In the year 33000 or so, which no calendar here has: as good as never.
FAR = 10**12


def lifetime_of(preference: dict[str, Any] | None, default: timedelta | None) -> timedelta | None:
    """A preference that names a lifetime overrides the account's; 0, null and FAR are never."""
    if preference is None or LIFETIME not in preference:
        return default
    seconds = preference[LIFETIME]
    return None if seconds in (None, 0, FAR) else timedelta(seconds=seconds)


@dataclass(eq=False)
class Known:
    """A file, as the model has it."""

    url: str
    data: bytes
    content_type: str
    created_at: datetime
    expires_at: datetime | None
    #: How long after its expiry it can still be read.
    lag: timedelta
    #: Its time is over.
    gone: bool = False
    #: Its time is over or not: too close to tell, until somebody looks.
    doubtful: bool = False
    #: The account it belonged to is no more.
    forgotten: bool = False

    @property
    def readable(self) -> bool:
        """Whether it is there."""
        return not (self.gone or self.forgotten)

    def pass_time(self, before: datetime, after: datetime) -> None:
        """It was *before* at first, and not later than *after* in the end."""
        if self.expires_at is None or self.gone:
            return
        end = self.expires_at + self.lag
        if end <= before:
            self.gone, self.doubtful = True, False
        elif end <= after:
            self.doubtful = True

    def look(self, seen: bool, before: datetime, after: datetime) -> None:
        """Learn, where time alone cannot tell, from a look between two moments."""
        self.pass_time(before, after)
        if self.doubtful:
            self.gone, self.doubtful = not seen, False


@dataclass(eq=False)
class Begun:
    """A multipart upload, as the model has it."""

    url: str
    upload_url: str
    content_type: str
    preference: dict[str, Any] | None
    #: Content and ETag by number.
    parts: dict[int, tuple[bytes, str]] = field(default_factory=dict)
    done: bool = False
    forgotten: bool = False

    def address(self, rest: str) -> str:
        """Where a part goes, or the call that completes: the query comes after it."""
        path, _, query = self.upload_url.partition("?")
        return f"{path}/{rest}?{query}"
