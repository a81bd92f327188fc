"""What the plugin costs a project that has it installed and does not use it."""

from __future__ import annotations

from measure import Table, compare
from sessions import project, seconds_of_session

EXPLANATION = """\
A whole pytest process with one empty test. First with all plugins that are installed, against the
same with `-p no:fal`; then with our plugin alone, against none."""


def measure(quick: bool) -> Table:
    """Compare."""
    rounds = 4 if quick else 25
    table = Table("pytest with the plugin idle", EXPLANATION)
    with project({"test_one.py": "def test():\n    pass\n"}, "/var/tmp") as folder:
        table.rows = [
            compare(
                "all plugins / without ours",
                rounds,
                lambda: seconds_of_session(folder, autoload=True),
                lambda: seconds_of_session(folder, "-p", "no:fal", autoload=True),
            ),
            compare(
                "our plugin / none",
                rounds,
                lambda: seconds_of_session(folder, "-p", "pytest_fal.plugin"),
                lambda: seconds_of_session(folder),
            ),
        ]
    return table
