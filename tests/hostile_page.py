"""The tables of ``docs/isolation.md``, from the attempts: ``python tests/hostile_page.py``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hostile.attempts import ATTEMPTS, Attempt

PAGE = Path(__file__).parents[1] / "docs" / "isolation.md"
ISOLATIONS = ("thread", "process")


def tables() -> dict[str, str]:
    """Each table, by its name in the page."""
    sorted_out: dict[str, list[Attempt]] = {"stopped": [], "in a process": [], "not promised": []}
    for attempt in ATTEMPTS.values():
        both = attempt.stopped == ISOLATIONS
        name = "stopped" if both else "in a process" if attempt.stopped else "not promised"
        sorted_out[name].append(attempt)
    heads = {"stopped": "why it comes to nothing", "not promised": "why it gets through"}
    return {name: table(rows, heads.get(name, "why")) for name, rows in sorted_out.items()}


def table(attempts: Iterable[Attempt], head: str) -> str:
    rows = [f"| {attempt.what} | {attempt.why} |\n" for attempt in attempts]
    return "".join((f"| an app tries to | {head} |\n", "|---|---|\n", *rows))


def with_tables(page: str) -> str:
    """The page with its tables as they should be."""
    for name, text in tables().items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, mark, rest = page.partition(start)
        page = before + mark + text + rest[rest.index(end) :]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
