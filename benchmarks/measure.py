"""Measuring two sides of one thing in turn, and showing them side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Row", "Table", "compare", "in_turn", "seconds_of"]

Side = Callable[[], float]


@dataclass
class Row:
    """One comparison; the samples are in seconds."""

    what: str
    ours: Sequence[float]
    alternative: Sequence[float]
    #: Megabytes that one sample moved, to show MB/s; None shows only the time.
    megabytes: float | None = None

    def cells(self) -> list[str]:
        """What, ours, alternative, and how many times as long the alternative takes."""
        ratio = statistics.median(self.alternative) / statistics.median(self.ours)
        return [self.what, self._show(self.ours), self._show(self.alternative), f"{ratio:.2f}"]

    def _show(self, samples: Sequence[float]) -> str:
        middle, low, high = (f(samples) * 1e3 for f in (statistics.median, min, max))
        digits = 2 if middle < 10 else 1 if middle < 100 else 0
        text = f"{middle:.{digits}f} ms ({low:.{digits}f}-{high:.{digits}f})"
        if self.megabytes is None:
            return text
        return f"{self.megabytes / middle * 1e3:.0f} MB/s, {text}"


@dataclass
class Table:
    """The comparisons of one topic."""

    title: str
    explanation: str
    rows: list[Row] = field(default_factory=list)

    def markdown(self) -> str:
        """The table in Markdown, its columns aligned so that it can be read as it is."""
        lines = [["", "ours", "alternative", "ratio"], *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        lines.insert(1, ["-" * width for width in widths])
        drawn = ("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
        return f"## {self.title}\n\n{self.explanation}\n\n" + "\n".join(drawn) + "\n"


def compare(
    what: str, rounds: int, ours: Side, alternative: Side, megabytes: float | None = None
) -> Row:
    """Measure both sides in turn."""
    first, second = in_turn(rounds, ours, alternative)
    return Row(what, first, second, megabytes)


def in_turn(rounds: int, *sides: Side) -> list[list[float]]:
    """Call the sides A B A B ..., so that what else the machine does hits both.

    A round before, which is not counted, imports, connects and fills caches.

    Returns:
        The samples of each side.
    """
    samples: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for side, kept in zip(sides, samples, strict=True):
            value = side()
            if number:
                kept.append(value)
    return samples


def seconds_of(action: Callable[[], object], times: int = 1) -> float:
    """How long the action takes, as the mean of *times* runs."""
    start = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - start) / times
