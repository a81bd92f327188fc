"""Which versions are tried together, and what is said of what cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    import cells

    return cells


def matrix(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ".ci/matrix", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_each_version_is_tried_at_least_once(cells: Any) -> None:
    assert {cell.python for cell in cells.COVERING} == set(cells.PYTHONS)
    assert {cell.fal for cell in cells.COVERING} == set(cells.FALS)


def test_the_oldest_and_the_newest_are_tried_with_each_other(cells: Any) -> None:
    tried = {(cell.python, cell.fal) for cell in cells.COVERING}
    corners = {(p, f) for p in ("3.10", "3.13") for f in ("1.75.5", cells.NEWEST)}
    assert corners <= tried


def test_each_python_has_one_cell_with_more_tests_but_the_one_that_has_the_whole_suite(
    cells: Any,
) -> None:
    assert sorted(cell.python for cell in cells.COVERING if cell.wide) == ["3.10", "3.12", "3.13"]


def test_all_is_every_pair_once(cells: Any) -> None:
    assert len(set(cells.ALL)) == len(cells.ALL) == len(cells.PYTHONS) * len(cells.FALS) == 32


@pytest.mark.parametrize("wide", [False, True])
def test_the_tests_of_a_cell_are_there(cells: Any, wide: bool) -> None:
    named = cells.tests(wide)
    assert len(set(named)) == len(named)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_python_that_is_not_installed_is_named(tmp_path: Path) -> None:
    unchecked = tmp_path / "unchecked"
    done = matrix(
        *("--unchecked", str(unchecked), "3.10", "1.80.1"),
        PATH=str(tmp_path),
        PYENV_ROOT=str(tmp_path),
    )
    line = "Python 3.10, fal 1.80.1: not checked: no interpreter python3.10\n"
    assert (done.returncode, unchecked.read_text()) == (77, line)
    assert done.stdout.endswith(line)


@pytest.mark.parametrize("wrong", [["3.9", "1.80.1"], ["3.10"], ["everything"]])
def test_what_names_no_cell_is_refused(wrong: list[str]) -> None:
    done = matrix(*wrong)
    assert done.returncode == 1
    assert f".ci/matrix: {' '.join(wrong)!r} names no cell; see .ci/matrix --help" in done.stderr
