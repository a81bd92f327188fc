"""pytest's base directory, in which the emulator's volumes are, is better not in ``/tmp``.

Each runner has a ``/tmp`` of its own, and what this process needs in the host's is shown in it. An
app that looks through its ``/tmp`` finds that, and one that clears it deletes that: it is real.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

__all__ = ["describe", "keep_out_of_tmp"]

#: Read by pytest where nothing else says where its base directory shall be.
_VARIABLE = "PYTEST_DEBUG_TEMPROOT"


def keep_out_of_tmp(config: pytest.Config) -> None:
    """Have pytest make it elsewhere if it would do so in ``/tmp`` of its own accord."""
    from emulator.storage.room import room_outside_tmp

    if config.getoption("basetemp", None) or os.environ.get(_VARIABLE):
        return
    elsewhere = room_outside_tmp()
    if elsewhere is not None:
        os.environ[_VARIABLE] = elsewhere
        config.add_cleanup(_forget)


def _forget() -> None:
    os.environ.pop(_VARIABLE, None)


def describe(config: pytest.Config) -> list[str]:
    """For pytest's header: what of ours there is in ``/tmp`` all the same."""
    places = ", ".join(_in_tmp(config))
    if not places:
        return []
    return [f"fal: in /tmp, where apps see it, and one that clears /tmp deletes it: {places}"]


def _in_tmp(config: pytest.Config) -> Iterator[str]:
    from emulator.storage.room import is_in_tmp

    project = str(config.rootpath)
    if is_in_tmp(project):
        yield "the project"
    if is_in_tmp(sys.prefix) and not sys.prefix.startswith(f"{project}/"):
        yield "the virtual environment"
    base = config.getoption("basetemp", None) or os.environ.get(_VARIABLE) or tempfile.gettempdir()
    if is_in_tmp(str(base)):
        yield "pytest's base directory (--basetemp moves it)"
