"""What a test costs: with all our fixtures, and with the usual libraries put together by hand."""

from __future__ import annotations

import functools
from pathlib import Path

from measure import Row, Table, in_turn
from sessions import project, seconds_of_session

EMPTY = """
import fal.toolkit
import pytest

@pytest.mark.parametrize("number", range({count}))
def test(number):
    pass
"""

OURS = """
import fal.toolkit
import pytest

@pytest.mark.parametrize("number", range({count}))
def test(number, fal_emulator, fal_data, fal_tmp, fal_cdn, fal_clock, fal_http, fal_origin,
         fal_faults, fal_ledger):
    {body}
"""

BY_HAND = """
import boto3
import fal.toolkit
import pytest
import respx
from freezegun import freeze_time
from moto import mock_aws

@pytest.mark.parametrize("number", range({count}))
def test(number, tmp_path):
    with respx.mock, mock_aws(), freeze_time("2030-01-01"):
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="files")
"""

CONFTEST = """
import pathlib
import time

starts = []

def pytest_runtest_logstart():
    starts.append(time.perf_counter())

def pytest_sessionfinish(session):
    seconds = (time.perf_counter() - starts[1]) / (len(starts) - 1)
    pathlib.Path(session.config.rootpath, "seconds").write_text(str(seconds))
"""

PLUGIN = ("-p", "pytest_fal.plugin")

EXPLANATION = """\
One test after the first, its set-up, tear-down and report included, in a session that has imported
the SDK. Ours asks for all fixtures: a fresh account, volumes, CDN, network, clock. By hand is
`tmp_path` with `respx.mock`, `mock_aws`, a new boto3 client, a bucket and `freeze_time`. "Once a
session" is what the rest of the session takes longer than that of empty tests: imports, the
certificate authority, the first mounts. The project lies in `/var/tmp`, or in `/tmp`, where our
mounts have to leave it visible."""


class Kind:
    """Many tests of one kind, in a file."""

    def __init__(self, name: str, source: str, count: int, options: tuple[str, ...] = ()) -> None:
        self.count = count
        self.file = f"test_{name}.py"
        self.source = source.replace("{count}", str(count))
        self.options = options
        #: What each session took besides its tests.
        self.rest: list[float] = []

    def seconds(self, folder: Path) -> float:
        """Run a session: seconds a test."""
        whole = seconds_of_session(folder, *self.options, self.file)
        each = float((folder / "seconds").read_text())
        self.rest.append(whole - each * self.count)
        return each


def measure(quick: bool) -> Table:
    """Compare."""
    many, few, rounds = (60, 8, 2) if quick else (300, 40, 4)
    table = Table("A test", EXPLANATION)
    for parent in ("/var/tmp", "/tmp"):
        table.rows += _compare(parent, many, few, rounds)
    return table


def _compare(parent: str, many: int, few: int, rounds: int) -> list[Row]:
    empty = Kind("empty", EMPTY, many)
    ours = Kind("ours", OURS.replace("{body}", "pass"), many, PLUGIN)
    stopped = Kind("stopped", OURS.replace("{body}", "fal_clock.freeze()"), many, PLUGIN)
    by_hand = Kind("by_hand", BY_HAND, few)
    kinds = (empty, ours, stopped, by_hand)
    with project({"conftest.py": CONFTEST, **{k.file: k.source for k in kinds}}, parent) as folder:
        sides = [functools.partial(kind.seconds, folder) for kind in kinds]
        nothing, fixtures, clock, libraries = in_turn(rounds, *sides)
    return [
        Row(f"{parent}: all fixtures / empty test", fixtures, nothing),
        Row(f"{parent}: all fixtures / by hand", fixtures, libraries),
        Row(f"{parent}: all fixtures and a stopped clock / by hand", clock, libraries),
        Row(f"{parent}: once a session / by hand", _beyond(ours, empty), _beyond(by_hand, empty)),
    ]


def _beyond(kind: Kind, empty: Kind) -> list[float]:
    """How much longer a session took besides its tests; without the round that warms up."""
    return [one - other for one, other in zip(kind.rest, empty.rest, strict=True)][1:]
