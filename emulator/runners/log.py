"""What a runner printed, piece by piece: when, and during which request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

__all__ = ["Line", "Log"]


@dataclass
class Line:
    """A line that was printed, without its end."""

    text: str
    #: Virtual time at which it was begun.
    at: datetime
    #: ``"STDOUT"`` or ``"STDERR"``; a process's are not told apart.
    level: str
    #: During which request, where the SDK knows it there; None: nobody can tell.
    request_id: str | None
    is_over: bool = False


class Log:
    """The lines that a runner printed.

    Args:
        now: the clock.
        request_here: the request that the calling thread is at work on, as far as that is known.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        request_here: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._now = now
        self._request_here = request_here
        #: Told of each line once it is over.
        self.on_line: Callable[[Line], None] = _nobody
        self._pieces: list[str] = []
        self._lines: list[Line] = []

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._pieces)

    def append(self, text: str, level: str = "STDOUT") -> None:
        """Add what was printed; print() writes a line and its end one after the other."""
        self._pieces.append(text)
        if not text:
            return
        request_id = self._request_here()
        *whole, rest = text.split("\n")
        for part in whole:
            line = self._add(part, level, request_id)
            line.is_over = True
            self.on_line(line)
        if rest:
            self._add(rest, level, request_id)

    def lines(self, begin: int, end: int | None, request_id: str) -> list[Line]:
        """The lines from one length of the log to another that may be of a request."""
        return [line for line in self._lines[begin:end] if line.request_id in (None, request_id)]

    def _add(self, text: str, level: str, request_id: str | None) -> Line:
        last = self._lines[-1] if self._lines else None
        if last is not None and not last.is_over and last.request_id == request_id:
            last.text += text
            return last
        line = Line(text, self._now(), level, request_id)
        self._lines.append(line)
        return line


def _nobody(_line: Line) -> None:
    """Nobody listens."""
