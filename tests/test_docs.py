"""Every Python snippet of the documentation is a test module, and runs."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = {
    page.name: snippets
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if (snippets := SNIPPET.findall(page.read_text("utf-8")))
}


@pytest.mark.parametrize("snippets", PAGES.values(), ids=PAGES)
def test_the_snippets_of_a_page_run(snippets, pytester, monkeypatch):
    monkeypatch.setenv("NODE_PATH", str(ROOT / "tests" / "javascript" / "node_modules"))
    if "data_visibility" in "".join(snippets) and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("a /data that differs between runners needs /dev/fuse")
    count = on_cuda = in_node = 0
    for number, code in enumerate(snippets, 1):
        pytester.makepyfile(**{f"test_snippet_{number}": code})
        tests = len(re.findall(r"^def test_", code, re.MULTILINE))
        assert tests, f"snippet {number}: a Python snippet of the documentation has to be a test"
        count += tests
        on_cuda += len(re.findall(r"^def test_\w+\([^)]*fal_cuda_runner", code, re.MULTILINE))
        in_node += tests if '"node"' in code and not _runs_in_node(code) else 0
    # One run for all: to start one takes longer than the snippets.
    result = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider")
    skipped = result.parseoutcomes().get("skipped", 0)
    assert skipped <= on_cuda + in_node, (
        "only what needs a CUDA device, Node or fal's JavaScript client may be skipped without it"
    )
    result.assert_outcomes(passed=count - skipped, skipped=skipped)


def _runs_in_node(code: str) -> bool:
    """Whether Node, and the client if the code has it, are there."""
    client = ROOT / "tests" / "javascript" / "node_modules" / "@fal-ai" / "client"
    return bool(shutil.which("node")) and ("@fal-ai/client" not in code or client.exists())


def test_the_readme_shows_every_fixture():
    from pytest_fal import fixtures

    shown = set(re.findall(r"`(fal_[a-z_]+)`", (ROOT / "README.md").read_text("utf-8")))
    there = {name for name in vars(fixtures) if name.startswith("fal_")}
    assert there <= shown


def test_the_settings_are_all_described():
    from emulator.settings import Settings

    assert [n for n, f in Settings.model_fields.items() if not f.description] == []
