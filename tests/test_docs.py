"""Every Python snippet of the documentation is a test module, and runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(SNIPPET.findall(page.read_text("utf-8")), 1)
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(code, pytester):
    pytester.makepyfile(test_snippet=code)
    count = len(re.findall(r"^def test_", code, re.MULTILINE))
    assert count, "a Python snippet of the documentation has to be a test"
    result = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=count)


def test_the_readme_shows_every_fixture():
    from pytest_fal import fixtures

    shown = set(re.findall(r"`(fal_[a-z_]+)`", (ROOT / "README.md").read_text("utf-8")))
    there = {name for name in vars(fixtures) if name.startswith("fal_")}
    assert there <= shown


def test_the_settings_are_all_described():
    from emulator.settings import Settings

    assert [n for n, f in Settings.model_fields.items() if not f.description] == []
