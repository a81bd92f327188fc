"""The threads that ``fal_client.subscribe(client_timeout=...)`` leaves behind.

fal_client runs such a subscription on an executor of its module's, and when the time is over it
cancels the request and goes away: the thread asks on. It must not outlive its test, and a thread
that an app has started must not serve a test: it has the mounts of the app's runner.

The only module that touches that executor (seen: fal_client 1.0).
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Subscriptions"]

_PATIENCE = 5.0


class Subscriptions:
    """fal_client's executor, a new one for each test."""

    def __init__(self) -> None:
        self._outside: ThreadPoolExecutor | None = None

    def begin(self) -> None:
        """Put the executor aside that was there before."""
        client = _client()
        self._outside = getattr(client, "EXECUTOR", None)
        if self._outside is not None:
            client.EXECUTOR = _like(self._outside)

    def end(self) -> None:
        """Wait for those that still ask: what they ask for has ended."""
        client = _client()
        ours = getattr(client, "EXECUTOR", None)
        if ours is None:
            return
        client.EXECUTOR = self._outside or _like(ours)
        ours.shutdown(wait=False, cancel_futures=True)
        for thread in tuple(ours._threads):
            thread.join(_PATIENCE)


def _client() -> Any:
    return sys.modules.get("fal_client.client")


def _like(executor: ThreadPoolExecutor) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(executor._max_workers, executor._thread_name_prefix or "")
