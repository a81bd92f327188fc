"""What a test costs: with all our fixtures, and with the usual libraries put together by hand."""

from __future__ import annotations

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

ALONE = """
import fal.toolkit
import pytest

@pytest.mark.parametrize("number", range({count}))
def test(number, fal_emulator):
    pass
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
the SDK. Ours asks for `fal_emulator` alone, which is all of it (a fresh account, volumes, CDN,
network, clock), or for nine fixtures, each of which costs what any fixture costs pytest. A stopped
clock is mostly freezegun's start, which lists the attributes of every loaded module. By hand is
`tmp_path` with `respx.mock`, `mock_aws`, a new boto3 client, a bucket and `freeze_time`. "Once a
session" is what the rest of the session takes longer than that of empty tests: imports, the
certificate authority, the first mounts. The project lies in `/var/tmp`, or in `/tmp`, where our
mounts have to leave it visible."""


class Kind:
    """Many tests of one kind, in a file of a project."""

    def __init__(self, folder: Path, name: str, source: str, count: int, *options: str) -> None:
        self.count = count
        self.folder = folder
        self.file = f"test_{name}.py"
        self.options = options
        #: What each session took besides its tests.
        self.rest: list[float] = []
        (folder / self.file).write_text(source.replace("{count}", str(count)))

    def seconds(self) -> float:
        """Run a session: seconds a test."""
        whole = seconds_of_session(self.folder, *self.options, self.file)
        each = float((self.folder / "seconds").read_text())
        self.rest.append(whole - each * self.count)
        return each


def measure(quick: bool) -> Table:
    """Compare; both places in turn too, so that they can be compared with each other."""
    many, few, rounds = (60, 8, 2) if quick else (200, 25, 4)
    files = {"conftest.py": CONFTEST}
    with project(files, "/var/tmp") as outside, project(files, "/tmp") as inside:
        kinds = [*_kinds(outside, many, few), *_kinds(inside, many, few)]
        samples = in_turn(rounds, *(kind.seconds for kind in kinds))
    table = Table("A test", EXPLANATION)
    table.rows = [
        *_rows("/var/tmp", kinds[:5], samples[:5]),
        *_rows("/tmp", kinds[5:], samples[5:]),
    ]
    return table


def _kinds(folder: Path, many: int, few: int) -> list[Kind]:
    stopped = OURS.replace("{body}", "fal_clock.freeze()")
    return [
        Kind(folder, "empty", EMPTY, many),
        Kind(folder, "alone", ALONE, many, *PLUGIN),
        Kind(folder, "ours", OURS.replace("{body}", "pass"), many, *PLUGIN),
        Kind(folder, "stopped", stopped, many, *PLUGIN),
        Kind(folder, "by_hand", BY_HAND, few),
    ]


def _rows(place: str, kinds: list[Kind], samples: list[list[float]]) -> list[Row]:
    empty, alone, ours, stopped, by_hand = samples
    return [
        Row(f"{place}: fal_emulator / empty test", alone, empty),
        Row(f"{place}: all fixtures / empty test", ours, empty),
        Row(f"{place}: all fixtures / by hand", ours, by_hand),
        Row(f"{place}: all fixtures and a stopped clock / by hand", stopped, by_hand),
        Row(
            f"{place}: once a session / by hand",
            _beyond(kinds[2], kinds[0]),
            _beyond(kinds[4], kinds[0]),
        ),
    ]


def _beyond(kind: Kind, empty: Kind) -> list[float]:
    """How much longer a session took besides its tests; without the round that warms up."""
    return [one - other for one, other in zip(kind.rest, empty.rest, strict=True)][1:]
