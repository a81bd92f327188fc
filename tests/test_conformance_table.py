"""The page docs/conformance.md: complete, up to date, and true to the results."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

CONFORMANCE = Path(__file__).parent / "conformance"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The module of the command, found as pytest finds the modules beside a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CONFORMANCE))
        import table
    return table


# --- the suite ------------------------------------------------------------------------------------


def test_every_statement_has_a_test(table: ModuleType) -> None:
    stated = {key for test in table.collect() for key in test.states}
    statements = [key for section in table.SECTIONS.values() for key in section]
    assert [key for key in statements if key not in stated] == []


def test_every_test_says_what_it_is_about(table: ModuleType) -> None:
    assert [test.id for test in table.collect() if not test.states] == []


def test_a_test_departs_only_from_what_it_is_about(table: ModuleType) -> None:
    strays = [t.id for t in table.collect() if not set(t.departures) <= set(t.states)]
    assert strays == []


def test_every_mark_is_one_of_a_test_function(table: ModuleType) -> None:
    """Elsewhere (on a class, a parameter, a module) the table would not see it."""
    calls = [
        node.func.id
        for file in CONFORMANCE.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    tests = table.collect()
    assert calls.count("departs") == sum(len(test.departures) for test in tests)
    assert calls.count("states") == len(tests)


def test_the_kept_results_are_of_tests_that_are_there(table: ModuleType) -> None:
    there = {(key, test.id) for test in table.collect() for key in test.states}
    for version, results in table.load().items():
        assert set(results) <= there, f"of fal {version}; run it again: {RUN}"


def test_the_page_is_what_the_command_writes(table: ModuleType) -> None:
    written = table.PAGE.read_text("utf-8")
    assert written == table.render(table.collect(), table.load()), f"run {WRITE}"


RUN = "python tests/conformance/table.py run"
WRITE = "python tests/conformance/table.py"


# --- the command ----------------------------------------------------------------------------------

TESTS = """
@states("chunks")
@departs("chunks", does="it | reads __all__ " "*", since="1.2.3")
def test_chunks(): ...

@states("atomic", "chunks")
@pytest.mark.parametrize("x", [1, 2])
def test_both(x): ...

def not_a_test(): ...
"""


@pytest.fixture
def tests(table: ModuleType, tmp_path: Path) -> list:
    (tmp_path / "test_some.py").write_text(TESTS)
    return table.collect(tmp_path)


def test_tests_are_read_with_their_marks(tests: list) -> None:
    chunks, both = tests
    assert (chunks.id, chunks.states) == ("test_some.py::test_chunks", ("chunks",))
    assert (chunks.departures["chunks"].does, chunks.departures["chunks"].since) == (
        "it | reads __all__ *",
        "1.2.3",
    )
    assert (both.id, both.states, both.departures) == (
        "test_some.py::test_both",
        ("atomic", "chunks"),
        {},
    )


def report(folder: Path, *cases: tuple[str, str]) -> Path:
    """A report as pytest writes it: names, and what came of them."""
    inside = "".join(
        f'<testcase classname="tests.conformance.test_some" name="{name}">{outcome}</testcase>'
        for name, outcome in cases
    )
    file = folder / "report.xml"
    file.write_text(f"<testsuites><testsuite>{inside}</testsuite></testsuites>")
    return file


@pytest.mark.parametrize(
    ("outcomes", "worst"),
    [
        (["", ""], "passed"),
        (["", "<skipped/>"], "passed"),
        (["<skipped/>", "<skipped/>"], "skipped"),
        (["<failure/>", ""], "failed"),
        (["<error/>", "<skipped/>"], "failed"),
    ],
)
def test_a_test_counts_as_the_worst_of_its_cases(
    table: ModuleType, tmp_path: Path, outcomes: list[str], worst: str
) -> None:
    cases = [(f"test_both[{number}]", outcome) for number, outcome in enumerate(outcomes)]
    assert table.read_report(report(tmp_path, *cases)) == {"test_some.py::test_both": worst}


def test_results_are_kept_by_statement_and_test(
    table: ModuleType, tests: list, tmp_path: Path
) -> None:
    outcomes = {"test_some.py::test_chunks": "passed", "test_some.py::test_both": "passed"}
    table.keep("1.2.3", tests, outcomes, tmp_path / "results")
    assert json.loads((tmp_path / "results" / "1.2.3.json").read_text()) == {
        "fal": "1.2.3",
        "results": [
            {"statement": "chunks", "test": "test_some.py::test_chunks", "outcome": "departs"},
            {"statement": "atomic", "test": "test_some.py::test_both", "outcome": "holds"},
            {"statement": "chunks", "test": "test_some.py::test_both", "outcome": "holds"},
        ],
    }


@pytest.mark.parametrize(("outcome", "shown"), [("failed", "fails"), ("skipped", "not run")])
def test_a_departure_that_was_not_seen_is_none(
    table: ModuleType, tests: list, tmp_path: Path, outcome: str, shown: str
) -> None:
    table.keep("1.2.3", tests, {"test_some.py::test_chunks": outcome}, tmp_path)
    assert table.load(tmp_path) == {"1.2.3": {("chunks", "test_some.py::test_chunks"): shown}}


def test_versions_are_in_their_order(table: ModuleType, tmp_path: Path) -> None:
    for version in ("1.10.0", "1.9.1", "1.9.0"):
        table.keep(version, [], {}, tmp_path)
    assert list(table.load(tmp_path)) == ["1.9.0", "1.9.1", "1.10.0"]


def test_the_page_has_a_row_for_each_test_of_a_statement(table: ModuleType, tests: list) -> None:
    results = {"1.2.3": {("chunks", "test_some.py::test_chunks"): "departs"}, "1.2.4": {}}
    rows = [line for line in table.render(tests, results).splitlines() if "test_some" in line]
    assert rows == [
        "| they are streamed in 64 MB chunks "
        "| [test_chunks](../tests/conformance/test_some.py) "
        "| since 1.2.3: it \\| reads \\_\\_all\\_\\_ \\* | departs | not run |",
        "|  | [test_both](../tests/conformance/test_some.py) |  | not run | not run |",
        "| it writes to a temporary file first, then renames atomically "
        "| [test_both](../tests/conformance/test_some.py) |  | not run | not run |",
    ]


def test_a_statement_without_a_test_is_shown_as_such(table: ModuleType, tests: list) -> None:
    assert "| force=True downloads again | no test |  | not run |" in table.render(
        tests, {"1.2.3": {}}
    )


def test_the_command_runs_the_suite_with_each_interpreter(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(table, "run", lambda python: asked.append(python) or python == "a")
    assert table.main(["run", "--python", "a", "--python", "b"]) == 1
    assert table.main(["run", "--python", "a"]) == 0
    assert table.main(["run"]) == 1
    assert asked == ["a", "b", "a", sys.executable]


def test_a_run_keeps_what_came_of_the_tests(
    table: ModuleType, tests: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run, of two tests that need nothing."""
    (tmp_path / "test_some.py").write_text("def test_chunks(): ...\ndef test_both(): assert 0\n")
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(table, "collect", lambda: tests)
    assert table.run(sys.executable) is False
    (kept,) = table.load(tmp_path / "results").values()
    assert kept == {
        ("chunks", "test_some.py::test_chunks"): "departs",
        ("atomic", "test_some.py::test_both"): "fails",
        ("chunks", "test_some.py::test_both"): "fails",
    }
