"""The log of a request: what its runners printed while they were at work on it [§6.2]."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from emulator.runners.output import is_noise, readable

if TYPE_CHECKING:
    from emulator.fleets.call import Call

__all__ = ["entries"]

#: What uvicorn says of each request, in runners' processes.
_SERVER = re.compile(
    r'INFO: +\S+:\d+ - "[A-Z]+ \S+ HTTP/[\d.]+" \d{3}|ERROR: +Exception in ASGI application'
)


def entries(call: Call) -> list[dict[str, str]]:
    """The entries of a request's log, of all its attempts; the queue gives them as they are.

    What an app prints from a thread of its own, or in a process, is known by its time alone: of
    requests that run side by side on one runner each has it.
    """
    return [
        {
            "message": readable(line.text),
            "level": line.level,
            "source": "USER",
            "timestamp": line.at.isoformat(),
        }
        for attempt in call.attempts
        for line in call.log_of(attempt)
        if line.text and not is_noise(line.text) and not _SERVER.match(line.text)
    ]
