"""Make ``docs/conformance.md``: which statement of the page has which test, and what came of it.

``python tests/conformance/table.py run [--python PATH]...``
    runs the conformance tests with each of these interpreters (default: this one) and keeps what
    came of them in ``results/<version of fal>.json``;
``python tests/conformance/table.py`` (or ``... write``)
    writes the page from the tests and the kept results.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from page import SECTIONS

__all__ = ["Departure", "Test", "collect", "load", "main", "render", "write"]

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
PAGE = ROOT / "docs" / "conformance.md"
RESULTS = FOLDER / "results"

#: By version of fal: by (statement, test) what came of it.
Results = Mapping[str, Mapping[tuple[str, str], str]]

INTRODUCTION = """\
# Conformance

This project goes by one page of fal's documentation, *Working with Files*. Each of its statements
stands below, with the tests that show whether the SDK keeps to it. The tests run the real SDK, in
each of the versions that head a column.

* **holds**: the SDK does what the page says.
* **departs**: it does something else, which the third column tells. The test pins what it does, so
  that a version which does otherwise again is noticed.
* **fails**: the test does not pass with that version.
* **not run**: there is no result: the test is about other versions, or came later.

What the table does not prove: nothing was compared with the live platform. The SDK is the real one,
so what is said of `download_file` or `Image` is shown. What stands around it is the emulator: what
is said of the CDN, of `/data` and of runners shows that the emulator does what the page says, not
that fal does. And a test shows the cases that it names, no more.

{count}

`python tests/conformance/table.py run` runs the tests and keeps the results,
`python tests/conformance/table.py` writes this page.
"""


@dataclass(frozen=True)
class Departure:
    """What the SDK does instead, and since which version."""

    does: str
    since: str


@dataclass(frozen=True)
class Test:
    """A test function, and the statements that it is about."""

    __test__ = False

    file: str
    name: str
    states: tuple[str, ...]
    departures: Mapping[str, Departure] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """As pytest names it, from this folder."""
        return f"{self.file}::{self.name}"


def collect(folder: Path = FOLDER) -> list[Test]:
    """All tests, in the order of their files and lines, read without importing them."""
    return [
        _read(file.name, function)
        for file in sorted(folder.glob("test_*.py"))
        for function in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_")
    ]


def _read(file: str, function: ast.FunctionDef) -> Test:
    states: tuple[str, ...] = ()
    departures = {}
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Name):
            continue
        if decorator.func.id == "states":
            states += tuple(ast.literal_eval(key) for key in decorator.args)
        elif decorator.func.id == "departs":
            told = {word.arg: ast.literal_eval(word.value) for word in decorator.keywords}
            departures[ast.literal_eval(decorator.args[0])] = Departure(told["does"], told["since"])
    return Test(file, function.name, states, departures)


def load(folder: Path = RESULTS) -> Results:
    """The kept results, oldest version first."""
    kept = [json.loads(file.read_text("utf-8")) for file in folder.glob("*.json")]
    return {
        run["fal"]: {(row["statement"], row["test"]): row["outcome"] for row in run["results"]}
        for run in sorted(kept, key=lambda run: _number(run["fal"]))
    }


def render(tests: Iterable[Test], results: Results) -> str:
    """The page."""
    tests = list(tests)
    parts = [INTRODUCTION.format(count=_summary(tests, results))]
    for section, statements in SECTIONS.items():
        versions = [f"fal {version}" for version in results]
        header = ["The page says", "Test", "What the SDK does instead", *versions]
        rows = [header, ["---"] * len(header)]
        for key, text in statements.items():
            rows += _rows(key, text, [test for test in tests if key in test.states], results)
        parts.append(f"## {section}\n\n" + "\n".join(_line(row) for row in rows) + "\n")
    return "\n".join(parts)


def write() -> None:
    """Write the page from the tests and the kept results."""
    PAGE.write_text(render(collect(), load()), "utf-8")


def _summary(tests: list[Test], results: Results) -> str:
    statements = [key for section in SECTIONS.values() for key in section]
    departing = {key for test in tests for key in test.departures}
    versions = ", ".join(results) or "none yet"
    return (
        f"{len(statements)} statements, {len(tests)} tests, versions of fal: {versions}. From "
        f"{len(departing)} of the statements the SDK departs, in whole or in part."
    )


def _rows(key: str, text: str, tests: list[Test], results: Results) -> list[list[str]]:
    rows: list[list[str]] = []
    for test in tests:
        departure = test.departures.get(key)
        instead = f"since {departure.since}: {departure.does}" if departure else ""
        outcomes = [result.get((key, test.id), "not run") for result in results.values()]
        link = f"[{test.name}](../tests/conformance/{test.file})"
        rows.append(["" if rows else _plain(text), link, _plain(instead), *outcomes])
    return rows or [[_plain(text), "no test", "", *("not run" for _ in results)]]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Markdown in which nothing of the text means anything."""
    return re.sub(r"([\\|*<`]|__)", lambda found: "".join(f"\\{c}" for c in found[0]), text)


def run(python: str) -> bool:
    """Run the tests with this interpreter and keep what came of them; whether all passed."""
    version = _output(python, "-c", "import importlib.metadata as m; print(m.version('fal'))")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", f"--junitxml={report}"]
        ended = subprocess.run([python, "-m", "pytest", str(FOLDER), *options], cwd=ROOT)
        if ended.returncode not in (0, 1):  # neither all passed nor some failed
            raise SystemExit(f"pytest ended with {ended.returncode}; no results of fal {version}")
        outcomes = read_report(report)
    keep(version, collect(), outcomes, RESULTS)
    return ended.returncode == 0


def read_report(report: Path) -> dict[str, str]:
    """By test the worst that came of any of its cases: "failed", "passed" or "skipped"."""
    outcomes: dict[str, str] = {}
    worse = ["skipped", "passed", "failed"]
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.attrib["classname"].rpartition(".")[2]
        test = f"{module}.py::{case.attrib['name'].partition('[')[0]}"
        tags = {child.tag for child in case}
        failed = tags & {"failure", "error"}
        outcome = "failed" if failed else "skipped" if "skipped" in tags else "passed"
        outcomes[test] = max(outcomes.get(test, "skipped"), outcome, key=worse.index)
    return outcomes


def keep(version: str, tests: Iterable[Test], outcomes: Mapping[str, str], folder: Path) -> None:
    """Write the results of one version."""
    rows = [
        {"statement": key, "test": test.id, "outcome": _verdict(test, key, outcomes[test.id])}
        for test in tests
        for key in test.states
        if test.id in outcomes
    ]
    folder.mkdir(exist_ok=True)
    text = json.dumps({"fal": version, "results": rows}, indent=1)
    (folder / f"{version}.json").write_text(text + "\n", "utf-8")


def _verdict(test: Test, key: str, outcome: str) -> str:
    if outcome == "passed":
        return "departs" if key in test.departures else "holds"
    return {"failed": "fails", "skipped": "not run"}[outcome]


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("what", nargs="?", choices=["write", "run"], default="write")
    parser.add_argument("--python", action="append", default=[], help="interpreter with a fal")
    chosen: Any = parser.parse_args(arguments)
    if chosen.what == "write":
        write()
        return 0
    passed = [run(python) for python in chosen.python or [sys.executable]]
    return 0 if all(passed) else 1


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description."""


if __name__ == "__main__":
    sys.exit(main())
