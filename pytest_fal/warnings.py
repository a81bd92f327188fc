"""The categories of our warnings, for pytest's ``filterwarnings``."""

from __future__ import annotations

__all__ = ["UnusedFaultWarning"]


class UnusedFaultWarning(UserWarning):
    """A test injected a fault that never struck: it does not test what it seems to."""
