"""Coverage of the code that runs in runners' processes.

The only module that touches coverage (seen: 7.3 to 7.11). Where the test's process is measured, a
runner's is too, by the same settings, into a data file beside that is combined with it as
pytest-cov and ``coverage combine`` do.
"""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["coverage_options"]

_SAME = {
    "branch": "branch",
    "source": "source",
    "source_pkgs": "source_pkgs",
    "include": "run_include",
    "omit": "run_omit",
}


def coverage_options() -> dict[str, Any] | None:
    """Arguments of ``coverage.Coverage`` for another process; None if this one is not measured."""
    coverage = sys.modules.get("coverage")
    current = coverage.Coverage.current() if coverage is not None else None
    if current is None:
        return None
    config = current.config
    options = {name: getattr(config, of, None) for name, of in _SAME.items()}
    return {
        **{name: value for name, value in options.items() if value},
        "data_file": os.path.abspath(config.data_file),
        "data_suffix": True,
        "config_file": config.config_file or False,
    }
