"""The bug gallery: what its tests say on which version of fal, and its page in the docs."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "examples" / "bugs"

#: Everything the study of the SDK, the list of the platform's pitfalls and the tests of the
#: documentation's statements (N) have a number for.
LAST = {"D": 18, "F": 12, "U": 13, "K": 2, "C": 1, "R": 2, "I": 4, "P": 40, "N": 74}
KNOWN = [f"{letter}{number}" for letter, last in LAST.items() for number in range(1, last + 1)]


@pytest.fixture
def index(monkeypatch):
    monkeypatch.syspath_prepend(GALLERY)
    return importlib.import_module("index")


@pytest.fixture
def gallery(index):
    return importlib.import_module("gallery")


# --- on which version ----------------------------------------------------------------------------


@pytest.fixture
def show(gallery, monkeypatch):
    """Run a reproduction that does *what* on a version of fal; *seen* says where it was seen."""

    def run(fal, what=lambda: None, seen=("1.76.0", "1.83.0"), gone=None):
        def test_it():
            """The weights are truncated.

            Production: a
            Expected: b
            Happens: c
            Avoid: d
            """
            what()

        monkeypatch.setattr(metadata, "version", {"fal": fal}.__getitem__)
        gallery.bug("D1", "P21", symptom="garbage", topic="Weights", seen=seen, gone=gone)(
            test_it
        )()

    return run


def fails():
    raise AssertionError("the weights are whole")


def raises_nothing():
    with pytest.raises(OSError):
        pass


def raises(error):
    def what():
        raise error

    return what


GONE = "fal 1.84.0 no longer shows D1, P21 (The weights are truncated), seen in 1.76.0 to 1.83.0"


@pytest.mark.parametrize(
    "what",
    [
        fails,
        raises_nothing,
        raises(KeyError("jpg")),
        raises(OSError(28, "No space left on device")),
    ],
)
def test_a_bug_that_is_gone_is_named(show, what):
    with pytest.raises(pytest.xfail.Exception) as gone:
        show("1.84.0", what)
    assert gone.value.msg == GONE


def test_why_it_seems_to_be_gone_is_kept(show):
    with pytest.raises(pytest.xfail.Exception) as gone:
        show("1.84.0", fails)
    assert str(gone.value.__context__) == "the weights are whole"


@pytest.mark.parametrize("fal", ["1.84.0rc1", "1.83.1", "1.100.0", "2.0"])
def test_any_newer_version_counts(show, fal):
    with pytest.raises(pytest.xfail.Exception, match=f"^fal {re.escape(fal)} no longer shows D1"):
        show(fal, fails)


def test_a_bug_that_is_still_there_passes_on_a_newer_version(show):
    show("1.84.0")


@pytest.mark.parametrize("fal", ["1.76.0", "1.80.1", "1.83.0"])
@pytest.mark.parametrize(("what", "error"), [(fails, AssertionError), (raises(OSError()), OSError)])
def test_within_the_versions_a_failure_is_one(show, fal, what, error):
    with pytest.raises(error):
        show(fal, what)


def test_below_the_first_version_it_is_skipped_by_name(show):
    with pytest.raises(pytest.skip.Exception) as skipped:
        show("1.75.9", fails)
    assert skipped.value.msg == (
        "fal 1.75.9 does not show D1, P21 (The weights are truncated): seen since 1.76.0"
    )


@pytest.mark.parametrize("fal", ["1.84.0", "1.85.2"])
def test_from_where_it_is_gone_it_is_skipped_by_name(show, fal):
    with pytest.raises(pytest.skip.Exception) as skipped:
        show(fal, fails, gone="1.84.0")
    assert skipped.value.msg == (
        f"fal {fal} does not show D1, P21 (The weights are truncated): gone since 1.84.0"
    )


def test_a_pitfall_of_the_platform_fails_on_any_version(show):
    for fal in ("1.0.0", "9.0.0"):
        with pytest.raises(AssertionError):
            show(fal, fails, seen=None)


def test_a_skip_is_a_skip(show):
    with pytest.raises(pytest.skip.Exception, match="no git here"):
        show("1.84.0", lambda: pytest.skip("no git here"))


def test_a_docstring_tells_everything(gallery):
    def test_it():
        """The weights are truncated.

        Production: a
        Happens: c
        """

    mark = gallery.bug("D1", symptom="garbage", topic="Weights", seen=None)
    with pytest.raises(ValueError) as refused:
        mark(test_it)
    assert str(refused.value) == (
        "test_it: its docstring has to tell Production, Expected, Happens, Avoid"
    )


# --- at the end of a run -------------------------------------------------------------------------

NEWER = """
    from importlib import metadata

    import pytest
    from gallery import bug

    @pytest.fixture(autouse=True)
    def newer(monkeypatch):
        real = metadata.version
        monkeypatch.setattr(metadata, "version", lambda n: "1.84.0" if n == "fal" else real(n))

    def shows(*ids):
        return bug(*ids, symptom="garbage", topic="Weights", seen=("1.75.5", "1.83.0"))

    @shows("D1", "P21")
    def test_gone(tmp_path):
        '''The weights are truncated.

        Production: a
        Expected: b
        Happens: c
        Avoid: d
        '''
        assert tmp_path.exists() is None

    @shows("D2")
    @pytest.mark.parametrize("size", [1, 2])
    def test_gone_twice(size):
        '''The weights grow.

        Production: a
        Expected: b
        Happens: c
        Avoid: d
        '''
        assert size == 3

    @shows("D3")
    def test_still_there():
        '''The weights move.

        Production: a
        Expected: b
        Happens: c
        Avoid: d
        '''
"""


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "2")])
def test_a_run_ends_with_what_is_gone(pytester, workers):
    pytester.makeini("[pytest]\ntestpaths = examples\n")
    folder = pytester.mkdir("examples") / "bugs"
    folder.mkdir()
    for name in ("gallery.py", "../conftest.py"):
        (folder / name).write_text((GALLERY / name).read_text("utf-8"), "utf-8")
    pytester.makepyfile(**{"examples/bugs/test_bugs": NEWER})

    result = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *workers)
    result.assert_outcomes(passed=1, xfailed=3)
    shown = [line for line in result.outlines if "no longer shows" in line]
    assert shown == [
        "fal 1.84.0 no longer shows D1, P21 (The weights are truncated), seen in 1.75.5 to 1.83.0",
        "fal 1.84.0 no longer shows D2 (The weights grow), seen in 1.75.5 to 1.83.0",
    ]


# --- the page ------------------------------------------------------------------------------------


def test_the_page_is_up_to_date(index):
    written = index.PAGE.read_text("utf-8") if index.PAGE.exists() else ""
    if written != index.page(index.collect()):
        pytest.fail(f"docs/bugs.md is not up to date. Run: {index.COMMAND}", pytrace=False)


def test_every_known_bug_is_reproduced_or_waits_for_something(index):
    shown = {id for bug in index.collect() for id in bug.ids}
    waiting = {id for id, _, _ in index.NOT_REPRODUCED}
    assert shown | waiting == set(KNOWN)


def test_no_two_symptoms_are_the_same(index):
    symptoms = [bug.symptom for bug in index.collect()]
    assert len(set(map(index._anchor, symptoms))) == len(symptoms)


def test_links_lead_to_headings(index):
    page = index.page(index.collect())
    headings = {index._anchor(h.replace("\\", "")) for h in re.findall(r"^### (.*)$", page, re.M)}
    links = re.findall(r"\]\(#(.*?)\)$", page, re.M)
    assert headings == set(links)
    assert len(links) == len(index.collect())


def test_every_test_of_the_gallery_is_on_the_page(index):
    page = index.page(index.collect())
    for path in GALLERY.glob("test_bugs_*.py"):
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M):
            assert f"[{name}](../examples/bugs/{path.name})" in page


def test_what_has_a_test_is_not_listed_as_waiting(index, gallery, monkeypatch):
    monkeypatch.setattr(index, "NOT_REPRODUCED", (("D1", "truncated", "X"), ("K1", "keys", "KV")))
    parts = dict.fromkeys(gallery.PARTS, "text")
    where = "test_x", "test_y"
    bug = gallery.Bug(("D1",), "garbage", "Weights", None, "fal", None, "Truncated.", parts, *where)
    page = index.page([bug])
    assert "| K1 | keys | KV |" in page
    assert "| D1 |" not in page


def test_markdown_does_not_read_what_it_should_not(index):
    shown = index._plain("__cause__ of *every* download_file <url> | .fal_used")
    assert shown == r"\_\_cause\_\_ of \*every\* download_file \<url\> \| .fal_used"
