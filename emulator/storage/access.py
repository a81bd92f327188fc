"""What may be done with files on the CDN besides reading them: signed, given rules, deleted.

The bounds are those of platform facts §1.10 and §1.15.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from emulator.checks import TIME
from emulator.errors import EmulatorError
from emulator.storage.lifecycle import Acl, Decision

if TYPE_CHECKING:
    from emulator.identity import Reader
    from emulator.storage.cdn_files import CDNFile

__all__ = ["LONGEST_SIGNATURE", "Deletion", "check_lifetime", "why_refused"]

#: How long a signed URL can be valid at most [§1.10].
LONGEST_SIGNATURE = timedelta(days=7)


@dataclass(frozen=True)
class Deletion:
    """A file that was deleted, for good."""

    file: CDNFile
    #: Virtual time.
    at: datetime
    why: str

    def __str__(self) -> str:
        return f"deleted at {self.at:{TIME}} {self.why}"


def check_lifetime(expires_in: timedelta | float) -> timedelta:
    """How long a signed URL that a test asks for is valid.

    Raises:
        EmulatorError: the platform gives none of that duration.
    """
    lifetime = expires_in if isinstance(expires_in, timedelta) else timedelta(seconds=expires_in)
    if not timedelta(0) < lifetime <= LONGEST_SIGNATURE:
        raise EmulatorError(
            f"a signed URL cannot be valid for {lifetime}: fal signs for 7 days at most. Write for "
            "example fal_cdn.sign(url, expires_in=timedelta(hours=1))."
        )
    return lifetime


def why_refused(decision: Decision, acl: Acl | None, reader: Reader) -> str:
    """What to tell the test about a read that access rules refuse."""
    said = f"the file's access rules say {decision}"
    if reader.shown is None:
        return said
    is_named = any(rule.user in reader.names for rule in (acl.rules if acl else ()))
    return f"{said} to {reader.shown}{'' if is_named else ', whom no rule names'}"
