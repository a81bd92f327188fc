"""How much memory a block of a test takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MEBIBYTE = 1024 * 1024


@contextmanager
def memory_grows_by_less_than(limit: int) -> Iterator[None]:
    """Compare the peak inside with what was held before; both in bytes."""
    before = _memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # the peak counts from now on
    yield
    assert _memory("VmHWM") - before < limit


def _memory(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))
