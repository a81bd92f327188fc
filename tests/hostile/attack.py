"""The attempts, each a test in both kinds of runners: for the machine of ``no_escape.py``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fal
import pytest
from hostile.attempts import ATTEMPTS

RESULTS = "HOSTILE_RESULTS"


class Hostile(fal.App):
    @fal.endpoint("/")
    def nothing(self) -> str:
        return ""


@pytest.fixture
def result(name, isolation):
    """What came of an attempt; kept when the emulation is gone, and its /tmp with it."""
    found: dict[str, str | None] = {}
    yield found
    Path(os.environ[RESULTS], f"{name}-{isolation}").write_text(json.dumps(found["error"]))


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt(result, fal_runner, name, isolation):
    attempt = ATTEMPTS[name]
    runner = fal_runner(Hostile, isolation=isolation)
    try:
        answer = runner.run(attempt.run)
        runner.stop()
        if attempt.afterwards is not None:
            attempt.afterwards(answer)
        result["error"] = None
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
