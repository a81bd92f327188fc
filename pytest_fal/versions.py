"""What is said of an error that another package's version, or a package of our name, is behind."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pytest_fal import clash

if TYPE_CHECKING:
    import pytest

__all__ = ["tell"]


def tell(report: pytest.TestReport | pytest.CollectReport, error: BaseException) -> None:
    """Replace a trace by its message where that says everything; else add what may be the cause."""
    clashes = clash.explain(error)
    if clashes:
        report.longrepr = clashes
    elif "emulator.reliance" in sys.modules:
        _tell_of_versions(report, error)


def _tell_of_versions(
    report: pytest.TestReport | pytest.CollectReport, error: BaseException
) -> None:
    from emulator.errors import UnsupportedVersionError
    from emulator.reliance import explain, newer_packages

    if isinstance(error, UnsupportedVersionError):
        report.longrepr = str(error)
        return
    explained = explain(error) if _is_raised_by_us(error) else None
    lines = [*([str(explained)] if explained else []), *newer_packages(["fal", "fal-client"])]
    if lines:
        report.sections.append(("fal: versions", "\n".join(lines)))


def _is_raised_by_us(error: BaseException) -> bool:
    """Whether it is in a line of ours that an error came up."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return name.split(".")[0] in ("emulator", "pytest_fal")
