"""The page ``docs/mutation.md``: how many changes of each module the tests notice."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from targets import ROOT, TARGETS, Target

__all__ = ["PAGE", "Row", "hash_of", "read", "write"]

PAGE = ROOT / "docs" / "mutation.md"

_TEXT = """\
# Mutation testing

The modules that decide something without touching anything (when a file expires, what the clock
shows, which requests a fault strikes) are changed in small ways, one at a time: `<` becomes `<=`,
`and` becomes `or`, 0 becomes 1, a call or a `return` is left out, a text gets other words. Then
their tests run. A change that no test notices is a test that is missing, code that is not needed,
or a change that means nothing; for each of the latter `tests/mutation/survivors.toml` says why.

{table}

{total}.

Of `clock.py` those functions count that move it or are told moments. Seconds are those of one
processor; two trials run at a time. The last column says which source a row is about: a test fails
once a module has changed since.

`python tests/mutation/run.py write lifecycle` tries the changes of one module and writes its row;
without a name it does so for all.
"""
_HEAD = """\
| module | changes | noticed | explained | seconds | code |
|---|--:|--:|--:|--:|---|
"""
_ROW = re.compile(r"^\| `(\S+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| `(\w+)` \|$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """What came of the changes of one module."""

    changes: int
    explained: int
    seconds: int
    code: str

    @classmethod
    def of(cls, target: Target, changes: int, explained: int, seconds: float) -> Row:
        """The row of a module as it is now."""
        return cls(changes, explained, round(seconds), hash_of(target))


def hash_of(target: Target) -> str:
    """A short hash of a module's code; comments of their own lines and empty lines do not count."""
    lines = (line.strip() for line in target.source.splitlines())
    code = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:10]


def read() -> dict[str, Row]:
    """The rows of the page as it is, by path."""
    found = _ROW.findall(PAGE.read_text("utf-8")) if PAGE.exists() else []
    return {
        path: Row(int(changes), int(explained), int(seconds), code)
        for path, changes, _, explained, seconds, code in found
    }


def write(rows: dict[str, Row]) -> None:
    """Write the page."""
    there = [(target.path, rows[target.path]) for target in TARGETS if target.path in rows]
    table = _HEAD + "\n".join(
        f"| `{path}` | {row.changes} | {row.changes - row.explained} | {row.explained} "
        f"| {row.seconds} | `{row.code}` |"
        for path, row in there
    )
    changes, explained = (
        sum(getattr(row, n) for _, row in there) for n in ("changes", "explained")
    )
    total = f"Of {changes:,} changes {changes - explained:,} are noticed and {explained} explained"
    PAGE.write_text(_TEXT.format(table=table, total=total), "utf-8")
