"""The clock that google-cloud-storage signs by: a function that it keeps from its import on.

freezegun does not find it there, so a URL signed on a moved clock would carry the real time. The
only module that looks into Google's libraries (seen: google-cloud-storage 2.14 to 3.17); it imports
none of them.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from types import ModuleType

__all__ = ["keepers", "now"]

_PACKAGE = "google.cloud.storage"
#: Where it is kept, by the names it had.
_NAMES = ("_NOW", "NOW")


def keepers() -> Iterator[tuple[ModuleType, str]]:
    """The loaded modules that keep it, and under which name."""
    if _PACKAGE in sys.modules:
        for part in ("_helpers", "_signing", "blob", "bucket", "client"):
            module = sys.modules.get(f"{_PACKAGE}.{part}")
            for name in _NAMES:
                kept = vars(module).get(name) if module is not None else None
                if module is not None and getattr(kept, "__name__", "") == "now":
                    yield module, name


def now(zone: datetime.tzinfo | None = None) -> datetime.datetime:
    """The time as ``datetime`` has it now, not as it had it when Google's module was imported."""
    return datetime.datetime.now(zone)
