"""What the emulation stops of a hostile app, and what it does not, is what the page says.

The attempts (``tests/hostile``) are made on a machine of their own, see ``no_escape.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile.attempts import ATTEMPTS, Attempt
from hostile_page import ISOLATIONS, PAGE, with_tables

HERE = Path(__file__).parent
PROGRAMS = ("curl", "env", "nsenter", "unshare")


def test_the_page_has_the_tables_of_the_attempts():
    page = PAGE.read_text("utf-8")
    assert page == with_tables(page), "write it again: python tests/hostile_page.py"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make such a machine")
def test_every_attempt_ends_as_the_page_says(tmp_path):
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not os.path.exists("/proc/net/if_inet6"):
        missing.append("IPv6")
    if missing:
        pytest.skip(f"not there: {', '.join(missing)}")
    # Not the working directory's configuration, and not the fixtures of our suite.
    own = ("-q", "-c", os.devnull, f"--rootdir={HERE}", "--noconftest", "-p", "no:randomly")
    done = subprocess.run(
        [sys.executable, "no_escape.py", "--", *own, "hostile/attack.py"],
        cwd=HERE,
        env={**os.environ, "HOSTILE_RESULTS": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 3, done.stdout
    seen = sections(done.stdout)
    assert list(differences(tmp_path, seen)) == [], done.stdout
    assert seen["changed"] == ["- home/written was made"]


def sections(output: str) -> dict[str, list[str]]:
    """What the machine saw, by what it is."""
    found: dict[str, list[str]] = {}
    for line in output.partition("== what escaped")[2].splitlines()[1:]:
        number, _, what = line.partition(" ")
        if line.startswith("- "):
            found[list(found)[-1]].append(line)
        elif number.isdigit():
            found[what] = []
    return found


def differences(results: Path, seen: dict[str, list[str]]) -> Iterator[str]:
    """Where an attempt did not end as it is said to."""
    for name, attempt in ATTEMPTS.items():
        for isolation in ISOLATIONS:
            answer = json.loads((results / f"{name}-{isolation}").read_text())
            named = f"test_attempt[{name}-{isolation}]"
            # Who had ended when it was looked at may have been anybody.
            named_so = (named, "by no test (a process that has ended)")
            traces = {
                what
                for what, lines in seen.items()
                if any(one in line for one in named_so for line in lines)
            }
            wrong = difference(attempt, isolation, answer, traces)
            if wrong:
                yield f"{name}, in a {isolation}: {wrong}"


def difference(attempt: Attempt, isolation: str, answer: str | None, traces: set[str]) -> str:
    if isolation not in attempt.stopped:
        if answer is not None:
            return f"it was stopped ({answer})"
        return "" if attempt.seen in {"", *traces} else f"nothing of it was seen ({traces})"
    if answer is None:
        return "it got through"
    if "packets" in traces:
        return f"packets were sent, although it was stopped ({answer})"
    return "" if attempt.error in answer else f"another error ({answer})"
