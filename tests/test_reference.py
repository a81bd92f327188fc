"""The reference pages: up to date, and with words about everything that is public."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from emulator import Emulator

DOCS = Path(__file__).parent.parent / "docs"
COMMAND = "python docs/reference.py"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        patch.delitem(sys.modules, "reference", raising=False)
        import reference
    return reference


def test_the_pages_are_what_the_command_writes(reference: ModuleType) -> None:
    stale = [
        name
        for name, text in reference.pages().items()
        if not (DOCS / name).exists() or (DOCS / name).read_text("utf-8") != text
    ]
    assert stale == [], f"run {COMMAND}"


def test_everything_public_has_words(reference: ModuleType) -> None:
    assert reference.wordless() == [], (
        "write a docstring, or a comment '#: ...' above the attribute; what is no business of "
        f"tests goes into INTERNAL in docs/reference.py. Then {COMMAND}"
    )


def test_what_is_left_out_is_there(reference: ModuleType) -> None:
    assert reference.unknown_internals() == []


def test_every_fixture_and_type_has_a_heading(reference: ModuleType) -> None:
    from pytest_fal import fixtures

    pages = reference.pages()
    headings = set(re.findall(r"^## (\w+)$", "\n".join(pages.values()), re.MULTILINE))
    expected = {name for name in vars(fixtures) if name.startswith("fal_")}
    given = {gives for _, _, gives in reference.fixtures()} | {"Settings"}
    expected |= set(reference.public_types()) - given
    assert expected <= headings


def test_every_setting_is_there(reference: ModuleType) -> None:
    from emulator.settings import Settings

    shown = re.findall(r"^- `(\w+)`: `", reference.pages()["settings.md"], re.MULTILINE)
    assert shown == list(Settings.model_fields)


@pytest.mark.skipif(shutil.which("git") is None, reason="without git it has no variables")
def test_the_variables_are_those_of_a_test(reference: ModuleType, monkeypatch) -> None:
    removed = set(re.findall(r"[A-Z_]{3,}", " ".join(reference.REMOVED)))
    for name in removed:
        monkeypatch.setenv(name, "/")
    shown = {name for names in reference.VARIABLES for name in names.split(", ")}
    for name in shown:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with Emulator():
        during = dict(os.environ)
    assert {name for name, value in during.items() if before.get(name) != value} == shown
    assert set(before) - set(during) == removed


@pytest.mark.parametrize(
    ("doc", "shown"),
    [
        ("A ``name`` [§4.3].", "A `name`."),
        ("See :meth:`~emulator.clock.Clock.now`.", "See `now`."),
        ("One\nline.\n\nAnother.", "One line.\n\nAnother."),
        (
            "Do.\n\nArgs:\n    a: the first,\n        and more.\n    b: it.",
            "Do.\n\n*Arguments:*\n\n- `a`: the first, and more.\n- `b`: it.",
        ),
        ("Do.\n\nReturns:\n    What is\n    there.", "Do.\n\n*Returns:* What is there."),
        ("Do.\n\nRaises:\n    OSError: no.", "Do.\n\n*Raises:*\n\n- `OSError`: no."),
    ],
)
def test_docstrings_become_markdown(reference: ModuleType, doc: str, shown: str) -> None:
    assert reference.markdown(doc) == shown


SOURCE = '''
class Thing:
    """A thing.

    Args:
        told: told in the docstring.
    """

    field: int = 1  #: behind it
    #: above
    #: it
    other: str

    def __init__(self, told: int, untold: str) -> None:
        self.told = told
        self.untold = untold
        self._hidden = 1

    @property
    def size(self) -> int:
        """Its size."""

    def move(self, by: float, *ways: str, fast: bool = False, **more: int) -> None:
        """Move it."""

    def _private(self) -> None:
        """Hidden."""
'''


def test_members_are_read_with_their_words(reference: ModuleType, tmp_path, monkeypatch) -> None:
    (tmp_path / "emulator_of_things.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import emulator_of_things

    members = reference.members_of(emulator_of_things.Thing)
    assert [(member.signature, member.doc) for member in members] == [
        ("field: int", "behind it"),
        ("other: str", "above\nit"),
        ("told: int", "told in the docstring."),
        ("untold: str", ""),
        ("size: int", "Its size."),
        ("move(by: float, *ways: str, fast: bool = False, **more: int)", "Move it."),
    ]
