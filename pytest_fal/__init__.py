"""pytest plugin: tests of fal apps on an emulated platform. See :mod:`emulator` for the library."""

from __future__ import annotations

__version__ = "0.1.0"
