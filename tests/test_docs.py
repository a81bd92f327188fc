"""Every snippet of the documentation is run, or, where it cannot be, checked as far as can be."""

from __future__ import annotations

import os
import re
import shutil
import sys

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from snippets import ROOT, Block, check_shell, console, pages, play, read, resembles

BLOCKS = {page.name: read(page.read_text("utf-8"), page.name) for page in pages()}
WALKTHROUGHS = {name: b for name, b in BLOCKS.items() if any(x.kind == "console" for x in b)}


def of_kind(*kinds: str) -> list[Block]:
    return [block for blocks in BLOCKS.values() for block in blocks if block.kind in kinds]


#: By page: its Python snippets, each a test module.
SNIPPETS = {
    name: python
    for name, blocks in BLOCKS.items()
    if name not in WALKTHROUGHS and (python := [b for b in blocks if b.kind == "python"])
}


# --- what is run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("snippets", SNIPPETS.values(), ids=SNIPPETS)
def test_the_snippets_of_a_page_run(snippets, pytester, monkeypatch):
    monkeypatch.setenv("NODE_PATH", str(ROOT / "tests" / "javascript" / "node_modules"))
    if "data_visibility" in str(snippets) and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("a /data that differs between runners needs /dev/fuse")
    count = on_cuda = in_node = 0
    for number, block in enumerate(snippets, 1):
        code = block.text
        if block.file == "conftest.py":
            # It is for its own folder; that it does no harm is seen with a test beside it.
            folder = pytester.mkdir(f"snippet_{number}")
            (folder / "conftest.py").write_text(code, "utf-8")
            code = f"def test_beside_the_conftest_of_snippet_{number}(): ..."
            (folder / f"test_beside_{number}.py").write_text(code, "utf-8")
        else:
            pytester.makepyfile(**{f"test_snippet_{number}": code})
        tests = len(re.findall(r"^(?:async )?def test_", code, re.MULTILINE))
        assert tests, f"{block}: a Python snippet of the documentation has to be a test"
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


@pytest.mark.parametrize("blocks", WALKTHROUGHS.values(), ids=WALKTHROUGHS)
def test_a_walkthrough_goes_as_its_page_shows(blocks, tmp_path):
    play(blocks, tmp_path)


SAMPLES = [block for block in of_kind("text") if block.comment.startswith("output of\n")]
TREES = [block for block in of_kind("text") if block.comment.startswith("tree of this repository")]


def test_samples_of_output_are_what_is_printed(pytester):
    for number, block in enumerate(SAMPLES):
        (program,) = read(block.comment.partition("\n")[2])
        pytester.makepyfile(**{f"test_sample_{number}": program.text})
    # One run for all, as above.
    options = ("-W", "error", "-p", "no:cacheprovider", "--fal-strict-leaks")
    result = pytester.runpytest_subprocess(*options)
    output = result.stdout.str()
    without_gpu = "/dev/nvidiactl is not there"
    for block in SAMPLES:
        if not (without_gpu in block.text and os.path.exists("/dev/nvidiactl")):
            assert resembles(block.text, output, somewhere=True), f"{block} shows\n{block.text}"


# --- what is checked ------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_looked_at():
    kinds = {"python", "console", "text", "sh", "yaml", "toml", "dockerfile"}
    others = [b for blocks in BLOCKS.values() for b in blocks if b.kind not in kinds]
    assert [f"{block}: {block.kind!r}" for block in others] == []


def test_a_file_of_a_walkthrough_has_a_name():
    written = [b for b in of_kind("python", "toml") if b.page in WALKTHROUGHS]
    assert [str(block) for block in written if block.file is None] == []


@pytest.mark.parametrize("block", of_kind("toml"), ids=str)
def test_a_toml_file_is_one(block):
    tomllib.loads(block.text)


def test_a_sample_of_output_says_whose_it_is():
    assert [str(block) for block in of_kind("text") if block not in SAMPLES + TREES] == []


@pytest.mark.parametrize("block", TREES, ids=str)
def test_a_tree_shows_files_that_are_there(block):
    packages = (ROOT / "emulator", ROOT / "pytest_fal")
    there = {path.name for package in packages for path in package.rglob("*")}
    assert set(re.findall(r"[\w.]+\.(?:py|cjs)\b", block.text)) - there == set()


@pytest.mark.parametrize("block", of_kind("sh"), ids=str)
def test_a_script_is_one(block):
    check_shell(block.text, ours=True)


@pytest.mark.parametrize("block", of_kind("yaml"), ids=str)
def test_the_scripts_of_a_yaml_file_are_ones(block):
    scripts = list(_scripts(yaml.safe_load(block.text)))
    assert scripts, f"{block}: no command was found in it"
    for script in scripts:
        check_shell(script)


def _scripts(node):
    """What is run: a step of GitHub's, a job of GitLab's, a service of compose's."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if name in ("run", "command"):
            yield value
        elif name in ("script", "before_script"):
            yield from value
        elif isinstance(value, dict | list):
            yield from _scripts(value)


INSTRUCTIONS = {"FROM", "RUN", "COPY", "WORKDIR", "CMD", "ENV", "USER", "ARG", "ENTRYPOINT"}


@pytest.mark.parametrize("block", of_kind("dockerfile"), ids=str)
def test_a_dockerfile_is_one(block):
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert words[0][0] == "FROM"
    assert {instruction for instruction, _ in words} <= INSTRUCTIONS
    for instruction, rest in words:
        if instruction == "RUN":
            check_shell(rest)


# --- what the tests of pages rely on --------------------------------------------------------------

PAGE = """\
<!-- output of
```python
hidden
```
-->
```text
shown
```
words
```console
$ one
a
b
$ two
```
1. indented

   ```python
   # test_a.py
   code
   ```
"""


def test_blocks_are_read():
    text, commands, code = read(PAGE, "a.md")
    assert (text.kind, text.text, text.line) == ("text", "shown\n", 6)
    assert read(text.comment)[0].text == "hidden\n"
    assert [(c.line, c.shown) for c in console(commands.text)] == [("one", "a\nb\n"), ("two", "")]
    assert (code.file, code.text, code.comment) == ("test_a.py", "# test_a.py\ncode\n", "")


@pytest.mark.parametrize(
    ("shown", "real", "same"),
    [
        ("1 passed in 0.12s", "1 passed in 3.45s", True),
        ("1 passed in 0.12s", "1 passed in 61.00s (0:01:01)", True),
        ("1 passed in 0.12s", "2 passed in 0.12s", False),
        ("=== a ===", "====== a ======", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nb\nc\n", False),
        ("b", "a\nb\nc", False),
    ],
)
def test_output_is_compared(shown, real, same):
    assert resembles(shown, real) is same


def test_output_may_be_a_part():
    assert resembles("b\nc", "a b c d", somewhere=True)
    assert not resembles("b\nd", "a b c d", somewhere=True)


@pytest.mark.parametrize(
    "said",
    ["$ echo a\nb\n", "$ false\n", "$ echo 1 failed\n1 failed\n"],
    ids=["another output", "a failure", "no failure"],
)
def test_a_walkthrough_that_goes_otherwise_fails(tmp_path, said):
    with pytest.raises(AssertionError, match=r"a\.md:7"):
        play([Block("a.md", 7, "console", said)], tmp_path)


@pytest.mark.parametrize("script", ["if", "nosuchcommand a", "bash tests/nosuchfile.py"])
def test_a_script_that_cannot_be_is_found(script):
    with pytest.raises(AssertionError):
        check_shell(script, ours=True)


# --- what pages have to have ----------------------------------------------------------------------


def test_every_page_is_in_the_navigation():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    listed = re.findall(r"^- \[.+?\]\(([\w-]+)\.md\): ", index, re.MULTILINE)
    there = sorted(page.stem for page in (ROOT / "docs").glob("*.md") if page.stem != "index")
    assert sorted(listed) == there, (
        "each page of docs/ stands once in a list of docs/index.md: - [title](page.md): what it is"
    )


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_links_of_a_page_outside_the_site_lead_somewhere(page):
    """Those of the pages in docs/ are the site's to check."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", (ROOT / page).read_text("utf-8"))
    assert [path for path, _ in links if not (ROOT / path).exists()] == []
    lost = [(p, a) for p, a in links if a and a not in anchors((ROOT / p).read_text("utf-8"))]
    assert lost == []


def anchors(text: str) -> set[str]:
    """Those of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_shows_every_fixture():
    from pytest_fal import fixtures

    shown = set(re.findall(r"`(fal_[a-z_]+)`", (ROOT / "README.md").read_text("utf-8")))
    there = {name for name in vars(fixtures) if name.startswith("fal_")}
    assert there <= shown


def test_the_settings_are_all_described():
    from emulator.settings import Settings

    assert [n for n, f in Settings.model_fields.items() if not f.description] == []


# --- what checks the built site -------------------------------------------------------------------


def test_links_that_lead_nowhere_are_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import check_links

    (tmp_path / "style.css").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.html").write_text('<h1 id="there">C</h1><a href="../a.html">back</a>')
    good = ["b/c.html", "b/c.html#there", "#here", "style.css", "https://example.com/", "b/c.html#"]
    bad = ["b/d.html", "b/c.html#not-there", "#nor-here"]
    links = "".join(f'<a href="{link}">x</a>' for link in good + bad)
    (tmp_path / "a.html").write_text(f'<h1 id="here">A</h1>{links}')

    assert check_links.broken(tmp_path) == [f"a.html: {link}" for link in sorted(bad)]
