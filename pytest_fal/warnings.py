"""The categories of our warnings, for pytest's ``filterwarnings``."""

from __future__ import annotations

__all__ = ["MemoryNotGivenBackWarning", "UnusedFaultWarning"]


class UnusedFaultWarning(UserWarning):
    """A test injected a fault that never struck: it does not test what it seems to."""


class MemoryNotGivenBackWarning(UserWarning):
    """A runner on a CUDA device has ended, and memory of the device is still taken."""
