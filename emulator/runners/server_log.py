"""The server that the SDK runs an app with, uvicorn: what it says, and how long it dozes.

The only module that looks into uvicorn (seen: 0.20 to 0.54). A filter on its logger sees each
message, and the exception under way when it reports that the app's start failed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

from emulator.runners.pickling import dumps

__all__ = ["follow_server", "hurry_server", "tell_failure"]

_IN_A_REQUEST = "Exception in ASGI application\n"
_SHUTDOWN = "Waiting for application shutdown."
_DOZE = 0.01


def follow_server(tell: Callable[..., None]) -> None:
    """Tell how the app's life goes on: ``state`` with a name, ``failed`` with an exception."""
    logger = logging.getLogger("uvicorn.error")
    # A filter, as configuring the log again takes handlers away.
    logger.addFilter(_Follower(tell))


def hurry_server() -> None:
    """Have uvicorn look every 10 ms, not every 100 ms, whether it is to shut down."""
    import uvicorn.server

    uvicorn.server.asyncio = _Hurried()  # type: ignore[attr-defined,assignment]


class _Hurried:
    """The module ``asyncio``, whose ``sleep`` is short."""

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(min(delay, _DOZE))

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


class _Follower(logging.Filter):
    """Lets everything through."""

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__()
        self._tell = tell
        self._shutdowns = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == _SHUTDOWN:
            self._shutdowns += 1
            if self._shutdowns == 2:  # the server of the metrics goes first
                self._tell("state", "TERMINATING")
        elif record.msg == _IN_A_REQUEST:
            # The SDK prints it before, in fewer words: this one has the web framework's frames.
            record.msg, record.exc_info = f"{_IN_A_REQUEST.strip()}, as printed above", None
        elif record.levelno >= logging.ERROR:
            error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
            if error is not None:
                tell_failure(self._tell, error)
        return True


def tell_failure(tell: Callable[..., None], error: BaseException) -> None:
    """Tell an exception, or what it says where it cannot be pickled."""
    try:
        pickled = dumps(error, error)
    except Exception:
        pickled = None
    tell("failed", pickled, f"{type(error).__name__}: {error}")
