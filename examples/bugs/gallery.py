"""What every test of the gallery carries: which bug it shows, and in which versions."""

from __future__ import annotations

import functools
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

__all__ = ["JAVASCRIPT", "PARTS", "Bug", "bug", "needs_fuse", "needs_javascript", "wait_until"]

#: What the docstring of each test tells after its first line, in this order.
PARTS = ("Production", "Expected", "Happens", "Avoid")


#: For tests in which runners see different things in /data.
needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="a /data that differs between runners needs /dev/fuse (Docker: --device /dev/fuse)",
)


#: Where .ci/javascript installs fal's packages for JavaScript.
JAVASCRIPT = Path(__file__).resolve().parent.parent.parent / "tests" / "javascript"

#: For tests of fal's packages for JavaScript.
needs_javascript = pytest.mark.skipif(
    shutil.which("node") is None or not (JAVASCRIPT / "node_modules" / ".installed").exists(),
    reason="needs Node and fal's JavaScript client, which .ci/javascript installs",
)


def wait_until(condition: Callable[[], bool]) -> None:
    """Give another process, or an app that nobody waits for any more, the moment it needs."""
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.001)
    raise TimeoutError


@dataclass(frozen=True)
class Bug:
    """A bug of the SDK or a pitfall of the platform, which one test reproduces."""

    #: "D1" and so on are bugs of the SDK, "P1" and so on pitfalls of the platform, "N1" and so on
    #: what this project found by itself.
    ids: tuple[str, ...]
    #: What somebody notices, in their words: "my model loads garbage after a deploy".
    symptom: str
    #: The heading under which the index lists it.
    topic: str
    #: First and last version in which it was seen; None: no matter of versions.
    seen: tuple[str, str] | None
    #: Of what they are versions: "fal", "fal_client", or a package for JavaScript.
    package: str
    #: The first version that is known not to have it; None: none is.
    gone: str | None
    #: First line of the test's docstring.
    title: str
    #: The paragraphs of the docstring, by the words in :data:`PARTS`.
    parts: dict[str, str]
    #: The test: its module and name.
    module: str
    test: str

    @property
    def name(self) -> str:
        """Ids and title."""
        return f"{', '.join(self.ids)} ({self.title.rstrip('.')})"

    def is_newer_than(self, version: str) -> bool:
        """Whether this version of the package does not have it yet."""
        return self.seen is not None and Version(version) < Version(self.seen[0])

    def may_be_gone_from(self, version: str) -> bool:
        """Whether nobody has looked at this version of the package yet."""
        return self.seen is not None and Version(version) > Version(self.seen[1])


def bug(
    *ids: str,
    symptom: str,
    topic: str,
    seen: tuple[str, str] | None,
    package: str = "fal",
    gone: str | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test as the reproduction of a bug.

    With a package older than the first version in which the bug was seen it is skipped; from the
    version on in which it is *gone*, too. With one newer than the last, a test that fails says by
    name that the bug is gone, and is no failure.
    """

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        title, parts = _read_docstring(test)
        where = test.__module__, test.__name__
        shown = Bug(ids, symptom, topic, seen, package, gone, title, parts, *where)

        @functools.wraps(test)
        def run(*args: Any, **fixtures: Any) -> None:
            installed = _version(package)
            if shown.is_newer_than(installed):
                pytest.skip(
                    f"{package} {installed} does not show {shown.name}: seen since {seen[0]}"
                )
            if gone is not None and Version(installed) >= Version(gone):
                pytest.skip(f"{package} {installed} does not show {shown.name}: gone since {gone}")
            __tracebackhide__ = True
            try:
                test(*args, **fixtures)
            # Not only AssertionError: an error that no longer comes makes another one come, and
            # what pytest.raises misses is no Exception at all.
            except (Exception, pytest.fail.Exception):
                if not shown.may_be_gone_from(installed):
                    raise
                pytest.xfail(
                    f"{package} {installed} no longer shows {shown.name}, "
                    f"seen in {' to '.join(seen)}"
                )

        run.bug = shown
        return run

    return mark


def _version(package: str) -> str:
    """The version of a package that is installed, in Python or, with a name like @fal-ai/client,
    for Node."""
    if not package.startswith("@"):
        return metadata.version(package)
    about = JAVASCRIPT / "node_modules" / package / "package.json"
    return str(json.loads(about.read_text("utf-8"))["version"])


def _read_docstring(test: Callable[..., None]) -> tuple[str, dict[str, str]]:
    """The first line, and the paragraphs that begin with ``Production:`` and so on."""
    title, _, rest = (inspect.getdoc(test) or "").partition("\n")
    parts: dict[str, str] = {}
    part = None
    for line in rest.splitlines():
        word, colon, text = line.partition(":")
        if colon and word in PARTS:
            part, parts[word] = word, text.strip()
        elif line.strip() and part:
            parts[part] += f" {line.strip()}"
    if tuple(parts) != PARTS:
        raise ValueError(f"{test.__name__}: its docstring has to tell {', '.join(PARTS)}")
    return title, parts
