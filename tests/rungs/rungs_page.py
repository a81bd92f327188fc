"""Writes the table of ``docs/rungs.md``: ``python tests/rungs/rungs_page.py``.

What stands in it is what ``tests/test_rungs.py`` expects of the probes, on each rung.
"""

from __future__ import annotations

from pathlib import Path

from probes import LED, PROBES, REFUSED, UNSEEN, WORKS

__all__ = ["EXPECTED", "GUARDED", "PAGE", "RUNGS", "page"]

PAGE = Path(__file__).parent.parent.parent / "docs" / "rungs.md"
RUNGS = ("namespace", "directory", "rewrite")
#: The last rung on a machine with a ``/data`` of its own, where it differs.
GUARDED = {"script": REFUSED, "script_tmp": REFUSED}
BEGIN, END = "<!-- table: python tests/rungs/rungs_page.py -->\n", "<!-- end of table -->\n"

EVERYWHERE = (WORKS, WORKS, WORKS)
MOUNTS = (WORKS, REFUSED, REFUSED)
EXPECTED = {
    **dict.fromkeys(PROBES, EVERYWHERE),
    "disk_full": MOUNTS,
    "read_only": MOUNTS,
    "differing_data": MOUNTS,
    "program": (WORKS, WORKS, LED),
    "program_tmp": (WORKS, LED, LED),
    "shell": (WORKS, WORKS, REFUSED),
    "shell_tmp": MOUNTS,
    "script": (WORKS, WORKS, UNSEEN),
    "script_tmp": (WORKS, UNSEEN, UNSEEN),
    "unknown_native": (WORKS, WORKS, UNSEEN),
}


def page() -> str:
    """The page, with the table as it has to be."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [("", *(f"`{rung}`" for rung in RUNGS)), *[("---",) * 4]]
    rows += [(statement, *EXPECTED[name]) for name, (statement, _) in PROBES.items()]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
