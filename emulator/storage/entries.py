"""Directory entries that stand for the kernel's own: what ``os.scandir`` gives, told otherwise.

Imports next to nothing: a Python that the app starts needs it before anything else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Entry", "Scan"]


class Scan:
    """``os.scandir``'s iterator, with another entry for each of its own."""

    def __init__(self, real: Any, entry: Callable[[Any], Any]) -> None:
        self._real = real
        self._entry = entry

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._entry(next(self._real))

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *_: object) -> None:
        self._real.close()

    def close(self) -> None:
        """Give the directory's file descriptor back."""
        self._real.close()


class Entry:
    """An ``os.DirEntry`` that answers for another; ``isinstance`` takes it for one."""

    def __init__(self, real: os.DirEntry[Any]) -> None:
        self._real = real

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return os.DirEntry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __fspath__(self) -> Any:
        return self._real.__fspath__()

    def __repr__(self) -> str:
        return repr(self._real)
