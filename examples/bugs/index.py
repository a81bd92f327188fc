"""Writes docs/bugs.md, the gallery's bugs by symptom: python examples/bugs/index.py

Ids that begin with N are bugs that this project found by itself. What is not reproduced yet, and
what it waits for, stands here.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from gallery import Bug

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "bugs.md"
COMMAND = "python examples/bugs/index.py"

#: The headings that come first; the others follow in the order of their tests.
TOPICS = (
    "Model weights",
    "Downloading files",
    "Links and files that expire",
    "Runners, /data and /tmp",
    "Apps that work until they are deployed",
    "Calling deployed apps",
    "Inputs",
    "Files",
    "Archives",
    "Images",
    "Uploads that go elsewhere",
    "Uploads",
    "Uploads by way of the node",
    "Lifetime and readers of uploads",
    "Results kept in memory",
    "Apps that call apps",
    "Streams",
    "Compiled kernels",
    "The KV store",
    "Repositories",
    "fal files and FalFileSystem",
    "fal's JavaScript client",
    "AppClient and fal.apps",
)

_OLD = "an SDK below 1.75.5, the oldest that is supported here"
_GATEWAY = "the gateway and its queue"

#: Id, what it is, what its test waits for. Those that have a test by now are left out of the page.
NOT_REPRODUCED = (
    ("D18", "filesize_limit=N refuses more than N bytes, not megabytes (until fal 1.75.4)", _OLD),
    ("U4", "uploads are never tried again (fal 1.20.0 to 1.69.13)", _OLD),
    (
        "P5",
        "uploads of more than 100 MiB lose the lifetime they were given (until fal 1.67.0)",
        _OLD,
    ),
)

HEAD = f"""\
# Bugs and pitfalls, by symptom

<!-- Written by `{COMMAND}` from the tests in examples/bugs. Do not edit. -->

Look for what you see: the headings are symptoms. Each entry is reproduced by the test that it
names, offline and in milliseconds.

**How to read an entry.** The first sentence says what is wrong. *What happens* is what the SDK or
the platform does, *How to avoid it* what an app can do about it. *Seen* are the first and the last
version of fal in which the test was run and the bug was there: it may be older, and where the last
one is older than yours it may be gone. Then come the entry's ids and its test. That tells besides
what production shows and what the code expected, and ends with the way around it where that is
short.

**Ids.** D, F, U, K, C, R and I count bugs of the SDK, P pitfalls of the platform, N what this
project found by itself, when it tested each statement of fal's documentation
([conformance](conformance.md)).
"""


def collect() -> list[Bug]:
    """The bugs that have a test, in the order of files and tests."""
    modules = [importlib.import_module(path.stem) for path in sorted(HERE.glob("test_bugs_*.py"))]
    found = [getattr(item, "bug", None) for module in modules for item in vars(module).values()]
    return [bug for bug in found if isinstance(bug, Bug)]


def page(bugs: list[Bug]) -> str:
    """The whole of docs/bugs.md."""
    by_topic: dict[str, list[Bug]] = {topic: [] for topic in TOPICS}
    for bug in bugs:
        by_topic.setdefault(bug.topic, []).append(bug)
    by_topic = {topic: found for topic, found in by_topic.items() if found}
    contents = [line for topic, found in by_topic.items() for line in _contents(topic, found)]
    entries = [text for topic, found in by_topic.items() for text in _entries(topic, found)]
    return "\n".join([HEAD, *contents, "", *entries, _not_reproduced(bugs)])


def _contents(topic: str, bugs: list[Bug]) -> list[str]:
    links = [f"  - [{_plain(bug.symptom)}](#{_anchor(bug.symptom)})" for bug in bugs]
    return [f"- **{topic}**", *links]


def _entries(topic: str, bugs: list[Bug]) -> list[str]:
    return [f"## {topic}\n", *(_entry(bug) for bug in bugs)]


def _entry(bug: Bug) -> str:
    seen = "any version" if bug.seen is None else f"{bug.package} {' to '.join(bug.seen)}"
    seen += f"; gone since {bug.gone}" if bug.gone else ""
    test = f"[{bug.test}](../examples/bugs/{bug.module}.py)"
    return f"""\
### {_plain(bug.symptom)}

{_plain(bug.title)}

- *What happens:* {_plain(bug.parts["Happens"])}
- *How to avoid it:* {_plain(bug.parts["Avoid"])}
- *Seen:* {seen}. {", ".join(bug.ids)}, {test}
"""


def _not_reproduced(bugs: list[Bug]) -> str:
    shown = {id for bug in bugs for id in bug.ids}
    rows = [
        f"| {id} | {_plain(what)} | {needs} |"
        for id, what, needs in NOT_REPRODUCED
        if id not in shown
    ]
    head = ["## Known, and not reproduced yet", "", "| | what it is | what its test waits for |"]
    return "\n".join([*head, "|---|---|---|", *rows, ""])


def _plain(text: str) -> str:
    """Text that Markdown shows as it is; underscores within words are safe."""
    return re.sub(r"[*<>|]|_(?![A-Za-z0-9])|(?<![A-Za-z0-9])_", r"\\\g<0>", text)


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(collect()), encoding="utf-8")
