"""Says at the end of a run which bugs of the gallery the installed SDK no longer shows."""

from __future__ import annotations

import pytest


# Here and not in bugs/: of two workers' run the terminal belongs to a process that collects nothing
# and so finds only the conftest files of the directories that pytest was called with, and above.
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats.get("xfailed", [])
    gone = {r.wasxfail.removeprefix("reason: ") for r in reports if "no longer shows" in r.wasxfail}
    for message in sorted(gone):
        terminalreporter.write_line(message, yellow=True)
