"""A thousand tests in one session: what the last ones cost, and what is left of all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from measure import Row, Table
from sessions import project, seconds_of_session

TESTS = """
import fal
import pytest
from fal.toolkit import File

class App(fal.App):
    @fal.endpoint("/")
    def run(self) -> dict:
        return {"url": File.from_bytes(b"12345", file_name="a.bin").url}

@pytest.mark.parametrize("number", range({count}))
def test(number, fal_emulator, fal_data, fal_tmp, fal_cdn, fal_kv, fal_uploader, fal_clock,
         fal_http, fal_origin, fal_faults, fal_buckets, fal_ledger, fal_gateway, fal_webhooks,
         fal_git, fal_runner):
    fal_data.write("a.bin", b"1")
    url = fal_runner(App).post("/", json={}).json()["url"]
    fal_clock.advance(hours=1)
    fal_cdn.assert_alive(url)
"""

CONFTEST = """
import gc
import json
import os
import pathlib
import threading
import time

moments, looks = [], {}

def pytest_runtest_logstart():
    if len(moments) in ({part}, {count} - 1):
        looks[len(moments)] = look()
    moments.append((time.perf_counter(), time.process_time()))

def look():
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }

def pytest_sessionfinish(session):
    pairs = list(zip(moments, moments[1:]))
    wall, processor = ([end[clock] - start[clock] for start, end in pairs] for clock in (0, 1))
    first, last = looks.values()
    found = {"wall": wall, "processor": processor, "first": first, "last": last}
    pathlib.Path(session.config.rootpath, "growth.json").write_text(json.dumps(found))
"""

EXPLANATION = """\
{count} tests in one session, each with every fixture, an app on a runner in a thread, an upload and
a moved clock. Ours is a test of the last {part}, the alternative one of the first {part} (without
the very first, which imports and prepares), with `--fal-strict-leaks` too. What the whole process
holds after the first {part} and at the end, pytest's own reports of the tests included:
{growth}"""


def measure(quick: bool) -> Table:
    """Run the sessions, one without and one with the detectors."""
    count, part = (200, 50) if quick else (1000, 100)
    rows, growth = [], []
    for what, *options in (("a test",), ("a test, watched for leaks", "--fal-strict-leaks")):
        found = run(count, part, *options)
        for clock, text in (("wall", ""), ("processor", ", processor time")):
            first, last = found[clock][1:part], found[clock][-part:]
            rows.append(Row(f"{what}: the last / the first {part}{text}", last, first))
        growth.append(f"* {what}: {difference(found['first'], found['last'])}")
    text = EXPLANATION.format(count=count, part=part, growth="\n".join(["", *growth]))
    return Table("A thousand tests in one session", text, rows)


def run(count: int, part: int, *options: str) -> dict[str, Any]:
    """One session; what its conftest wrote down."""
    files = {
        "conftest.py": CONFTEST.replace("{part}", str(part)).replace("{count}", str(count)),
        "test_growth.py": TESTS.replace("{count}", str(count)),
    }
    with project(files, "/var/tmp") as folder:
        seconds_of_session(folder, "-p", "pytest_fal.plugin", *options, "test_growth.py")
        found: dict[str, Any] = json.loads(Path(folder, "growth.json").read_text())
    return found


def difference(first: dict[str, float], last: dict[str, float]) -> str:
    """What there was, and what there is."""
    memory = f"{first['memory']:.0f} -> {last['memory']:.0f} MB of memory"
    others = [f"{first[key]} -> {last[key]} {key}" for key in ("descriptors", "threads", "objects")]
    return ", ".join([memory, *others])
