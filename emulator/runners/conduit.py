"""A queue from an event loop to a thread, that makes a producer wait whose reader is slow."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["Conduit"]

Item = TypeVar("Item", str, bytes, "str | bytes")

#: So much is taken without being read; as much as uvicorn takes.
_LIMIT = 65_536


class Conduit(Generic[Item]):
    """Takes what a coroutine of *loop* sends to one thread.

    Whoever changes something that the thread waits for does so while holding ``changed``, and calls
    ``tell``. A thread that has to wait for other things too polls ``fileno()``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.changed = threading.Condition()
        #: While this is set nobody is woken.
        self.quiet = False
        self._loop = loop
        self._items: deque[Item] = deque()
        self._size = 0
        self._full = False
        self._drained = asyncio.Event()
        self._wake = -1

    # --- on the loop -----------------------------------------------------------------------------

    async def put(self, item: Item) -> None:
        """Add an item; returns once there is room for another."""
        with self.changed:
            self._items.append(item)
            self._size += len(item)
            full = self._full = self._size > _LIMIT
            if full:
                self._drained.clear()
            self.tell()
        if full:
            await self._drained.wait()

    def release(self) -> None:
        """Let the producer go on: nobody reads any more."""
        self._drained.set()

    # --- anywhere --------------------------------------------------------------------------------

    def tell(self) -> None:
        """Wake whoever waits; with ``changed`` held."""
        if self.quiet:
            return
        self.changed.notify_all()
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # --- in the thread that reads ----------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self._items)

    def take(self) -> Item | None:
        """The next item; None: there is none now."""
        with self.changed:
            if not self._items:
                return None
            item = self._items.popleft()
            self._size -= len(item)
            resumes = self._full and self._size <= _LIMIT
            if resumes:
                self._full = False
        if resumes:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there
                self._loop.call_soon_threadsafe(self._drained.set)
        return item

    def fileno(self) -> int:
        """A descriptor that can be read once something has changed; then call ``settle``."""
        with self.changed:
            if self._wake < 0:
                self._wake = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._wake

    def settle(self) -> None:
        """What has changed so far is being looked at."""
        with self.changed, suppress(BlockingIOError):
            if self._wake >= 0:
                os.eventfd_read(self._wake)

    def close(self) -> None:
        """Give the descriptor back."""
        with self.changed:
            if self._wake >= 0:
                os.close(self._wake)
            self._wake = -1
