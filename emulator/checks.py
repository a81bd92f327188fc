"""The words of the assertions that volumes, CDN, origins and ledger offer to tests.

Each fails with one sentence: what was found, what was expected, and the requests or files that show
it. The assertions themselves stand with what they are about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from emulator.ledger import Exchange
    from emulator.storage.cdn_files import CDNFile

__all__ = [
    "ANY",
    "TIME",
    "WantedUpload",
    "bytes_of",
    "fail",
    "happened",
    "how_uploaded",
    "listed",
    "name_of",
    "short",
    "times",
]

#: Stands for an argument that was not given, where None means something.
ANY: Any = object()

#: How moments are shown to people.
TIME = "%Y-%m-%d %H:%M:%S UTC"

#: How much evidence a sentence shows.
_MOST = 5


def fail(sentence: str) -> NoReturn:
    """Fail the test with a sentence; pytest shows the line of the test, not this one."""
    __tracebackhide__ = True
    raise AssertionError(sentence)


def times(count: int) -> str:
    """How often: "never", "once", "twice", "3 times"."""
    return ("never", "once", "twice")[count] if 0 <= count < 3 else f"{count} times"


def happened(verb: str, found: int, expected: int | None) -> str:
    """What happened how often, and what was expected; None: at least once."""
    wanted = "at least once" if expected is None else times(expected)
    return f"was {f'{verb} {times(found)}' if found else f'never {verb}'}, expected {wanted}"


def listed(items: Sequence[object], most: int = _MOST) -> str:
    """The first of them, and how many there are besides."""
    shown = ", ".join(str(item) for item in items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def bytes_of(count: int) -> str:
    """A size: "7 bytes"."""
    return f"{count} byte" if count == 1 else f"{count} bytes"


def short(exchange: Exchange, length: int | None = None) -> str:
    """An exchange without its URL: "#1 GET 200 (3 of 7 bytes, runner-1)"."""
    moved = exchange.bytes_sent
    whole = length is None or length == moved
    size = bytes_of(moved) if whole else f"{moved} of {length} bytes"
    runner = f", {exchange.runner}" if exchange.runner is not None else ""
    return f"#{exchange.number} {exchange.method} {exchange.status or '-'} ({size}{runner})"


def name_of(runner: Any) -> str | None:
    """The name of a runner; what is no runner is its own name."""
    name: str | None = getattr(runner, "name", runner)
    return name


def how_uploaded(file: CDNFile) -> str:
    """Who uploaded a file, and with which lifecycle preference."""
    return f"{_sender(file.runner)} {_preference(file.lifecycle)}"


@dataclass(frozen=True)
class WantedUpload:
    """Which uploads an assertion is about; ``ANY`` leaves a property open."""

    url: str | None
    runner: str | None
    lifecycle: dict[str, Any] | None
    request_id: str | None

    def fits(self, file: CDNFile) -> bool:
        """Whether a file was uploaded like this, wherever it is."""
        return (
            self.runner in (ANY, file.runner)
            and (self.lifecycle is ANY or self.lifecycle == file.lifecycle)
            and self.request_id in (ANY, file.request_id)
        )

    def __str__(self) -> str:
        parts = ["a file"]
        if self.url is not None:
            parts.append(f"at {self.url}")
        if self.runner is not ANY:
            parts.append(_sender(self.runner))
        if self.lifecycle is not ANY:
            parts.append(_preference(self.lifecycle))
        if self.request_id is not ANY:
            parts.append(
                f"in the request {self.request_id}" if self.request_id else "in no request"
            )
        return " ".join(parts)


def _sender(runner: str | None) -> str:
    return f"by {runner or 'the test'}"


def _preference(lifecycle: dict[str, Any] | None) -> str:
    if lifecycle is None:
        return "without a lifecycle preference"
    return f"with the lifecycle preference {json.dumps(lifecycle)}"
