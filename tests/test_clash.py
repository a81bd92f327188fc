"""Another package of the name ``emulator``: found, and explained, whichever of both is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import emulator
from pytest_fal import clash

OURS = os.path.dirname(os.path.realpath(emulator.__file__))
PLAIN = ("-p", "no:cacheprovider", "-p", "no:randomly")


@pytest.fixture
def a_test(pytester: Any) -> Any:
    pytester.makepyfile("def test_it(fal_data):\n    fal_data.write('a', b'')")
    return pytester


def the_other(folder: Path) -> Path:
    """A package of the same name, in a folder."""
    (folder / "emulator").mkdir(parents=True)
    (folder / "emulator" / "__init__.py").write_text("class Console: ...\n")
    return folder


def run_first_on_the_path(pytester: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    result = pytester.runpytest_subprocess(*PLAIN)
    assert result.ret != 0
    text = " ".join((result.stdout.str() + result.stderr.str()).split())
    assert "Traceback" not in text
    return text


def test_a_folder_of_the_users_is_named(
    a_test: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = the_other(tmp_path / "project")
    text = run_first_on_the_path(a_test, folder, monkeypatch)
    assert (
        f"pytest-fal's package 'emulator', in {OURS}, is hidden by another of that name: "
        f"{folder}/emulator, which stands before it on sys.path. Rename it; or keep its folder off "
        "sys.path: write `pytest` for `python -m pytest`, and --import-mode=importlib."
    ) in text


def test_a_module_of_that_name_is_named_too(
    a_test: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "emulator.py").write_text("")
    text = run_first_on_the_path(a_test, tmp_path, monkeypatch)
    assert f"is hidden by another of that name: {tmp_path}/emulator.py, which stands" in text


def test_a_distribution_is_named(
    a_test: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = the_other(tmp_path / "site")
    info = folder / "retro_console-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: retro-console\nVersion: 1.2\n")
    (info / "RECORD").write_text("emulator/__init__.py,,\n")
    (info / "top_level.txt").write_text("emulator\n")
    text = run_first_on_the_path(a_test, folder, monkeypatch)
    assert (
        f"{folder}/emulator, which the distribution retro-console 1.2 has installed. Uninstall "
        "retro-console 1.2, or test with pytest-fal in an environment of its own."
    ) in text


def test_a_folder_beside_the_tests_hides_ours(pytester: Any) -> None:
    the_other(pytester.path)
    pytester.makepyfile(
        "from emulator import Console\n\ndef test_it(fal_data):\n    fal_data.write('a', b'')"
    )
    program = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, *PLAIN], capture_output=True, text=True, cwd=pytester.path
    )
    text = " ".join((done.stdout + done.stderr).split())
    assert f"is hidden by another of that name: {pytester.path}/emulator" in text
    assert "Traceback" not in text


def test_a_module_that_found_ours_is_told_so(pytester: Any) -> None:
    pytester.makepyfile("import emulator.console\n\ndef test_it(): ...")
    result = pytester.runpytest_subprocess(*PLAIN)
    text = " ".join(result.stdout.str().split())
    assert (
        "No module named 'emulator.console': 'emulator' is pytest-fal's package here, in "
        f"{OURS}. If you meant another, of yours: there can be one of a name in a process, so "
        "rename it."
    ) in text
    assert "Traceback" not in text


def test_what_was_installed_over_ours_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clash, "_distribution_of", lambda _: "retro-console 1.2")
    said = clash.explain(ImportError("cannot import name 'Emulator'", name="emulator"))
    assert said == (
        "cannot import name 'Emulator': the distribution retro-console 1.2 has installed a package "
        f"'emulator' over pytest-fal's, in {OURS}. Uninstall retro-console 1.2, then: pip install "
        "--force-reinstall pytest-fal"
    )


def test_an_attribute_that_ours_has_not_says_whose_package_it_is() -> None:
    with pytest.raises(AttributeError, match=r"\(of pytest-fal, .*\) has no attribute 'Console'"):
        _ = emulator.Console  # type: ignore[attr-defined]


def test_other_errors_are_left_alone() -> None:
    assert clash.explain(ImportError("no", name="emulators")) is None
    assert clash.explain(ValueError("emulator")) is None
    assert clash.explain(None) is None
