"""What google-cloud-storage keeps to itself: the clock that it signs by, requests of its own.

The clock is a function that it has from its import on. freezegun does not find it there, so a URL
signed on a moved clock would carry the real time. The only module that looks into Google's
libraries (seen: google-cloud-storage 2.16 to 3.17); it imports none of them.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

__all__ = ["BackgroundRequests", "is_replaced", "keepers", "now"]

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


def is_replaced(kept: Any, real: type[datetime.datetime]) -> bool:
    """Whether it is the ``now`` of a class that stood in for ``datetime``, the *real* one."""
    owner = getattr(kept, "__self__", None)
    return isinstance(owner, type) and owner is not real and issubclass(owner, real)


def now(zone: datetime.tzinfo | None = None) -> datetime.datetime:
    """The time as ``datetime`` has it now, not as it had it when Google's module was imported."""
    return datetime.datetime.now(zone)


class BackgroundRequests:
    """Those with which 3.17 looks, in a thread, whether a bucket is there, after each 404.

    Nothing waits for them, so they would be in the ledger or not, and outlive the test. What else
    it looks up has a variable that :mod:`emulator.environment` sets; this has none.
    """

    def __init__(self) -> None:
        self._cache: Any = None
        self._real: Any = None

    def stop(self) -> None:
        """Let it forget the bucket, without asking; for as long as it is not loaded, nothing."""
        module = sys.modules.get(f"{_PACKAGE}._bucket_metadata_cache")
        cache = getattr(module, "BucketMetadataCache", None)
        if self._cache is None and hasattr(cache, "check_and_evict") and hasattr(cache, "evict"):
            self._cache, self._real = cache, cache.check_and_evict  # type: ignore[union-attr]
            self._cache.check_and_evict = self._cache.evict

    def resume(self) -> None:
        """As it was."""
        if self._cache is not None:
            self._cache.check_and_evict = self._real
        self._cache = self._real = None
