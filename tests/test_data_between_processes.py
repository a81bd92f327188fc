"""/data between runners in processes: the same file system, seen from another process."""

from __future__ import annotations

import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import fal
import pytest

from emulator.runners.runner import RunnerError

SECOND = timedelta(seconds=1)
FILE, LOCK = Path("/data/a.bin"), Path("/data/lock")

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="a /data that differs between runners needs /dev/fuse (Docker: --device /dev/fuse)",
)
staged = pytest.mark.fal(
    data_visibility="staged",
    data_datacenter_delay=2 * SECOND,
    data_metadata_delay=5 * SECOND,
    data_global_delay=60 * SECOND,
)


class Keeper(fal.App):
    """Has a file open between its requests."""

    @fal.endpoint("/open")
    def open(self) -> None:
        self.file = FILE.open("wb", buffering=0)
        self.file.write(b"half")

    @fal.endpoint("/lock")
    def lock(self) -> bool:
        self.file = LOCK.open("r+b")
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @fal.endpoint("/region")
    def region(self) -> str:
        return os.environ["FAL_REGION"]


@pytest.fixture
def boot(fal_runner, fal_clock):
    """Boot an app in a process on a stopped clock."""
    fal_clock.freeze()

    def boot(server=None, datacenter=None):
        return fal_runner(Keeper, isolation="process", server=server, datacenter=datacenter)

    return boot


def listing():
    return sorted(os.listdir("/data"))


@staged
def test_a_file_travels(boot, fal_clock, fal_data):
    writer, same_server, elsewhere = boot("a"), boot("a"), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    assert [r.run(listing) for r in (same_server, elsewhere)] == [["a.bin"], []]
    fal_clock.advance(5)
    assert elsewhere.run(os.path.getsize, FILE) == 3
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(elsewhere.run, FILE.read_bytes)
        fal_data.wait_for_reader("a.bin")
        fal_clock.advance(55)
        assert reading.result() == b"all"


@staged
def test_threads_and_processes_see_one_volume(boot, fal_runner):
    writer, same_server = boot("a"), fal_runner(Keeper, server="a")
    writer.run(FILE.write_bytes, b"all")
    assert same_server.run(FILE.read_bytes) == b"all"


@staged
def test_a_runner_knows_its_datacenter(boot):
    assert [boot(None, d).post("/region").json() for d in ("eu-west", None)] == [
        "eu-west",
        "us-east",
    ]


@staged
def test_what_a_killed_runner_had_open_is_published_as_it_is(boot):
    writer, same_server = boot("a"), boot("a")
    writer.post("/open")
    assert same_server.run(listing) == []
    writer.kill()
    assert same_server.run(FILE.read_bytes) == b"half"


@staged
def test_a_runner_that_waits_for_content_can_be_killed(boot, fal_clock, fal_data):
    writer, elsewhere = boot("a"), boot("b", "eu-west")
    writer.run(FILE.write_bytes, b"all")
    fal_clock.advance(5)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(elsewhere.run, FILE.read_bytes)
        fal_data.wait_for_reader("a.bin")
        elsewhere.kill()
        with pytest.raises(RunnerError):
            reading.result()
    assert elsewhere.state == "TERMINATED"


@pytest.mark.fal(data_visibility="staged")
def test_record_locks_work_between_runners(boot, fal_data):
    fal_data.write("lock", b"")
    assert [boot().post("/lock").json() for _ in range(2)] == [True, False]


@pytest.mark.fal(data_locks="per_runner")
def test_record_locks_do_nothing_between_runners(boot, fal_data):
    fal_data.write("lock", b"")
    assert [boot().post("/lock").json() for _ in range(2)] == [True, True]


@pytest.mark.fal(data_metadata_latency=timedelta(milliseconds=10))
def test_names_are_slow_on_the_clock(boot, fal_clock):
    runner, start = boot(), fal_clock.now()

    def look():
        start = time.time()
        os.path.exists(FILE)
        return round(time.time() - start, 6)

    assert runner.run(look) == 0.01
    assert fal_clock.now() - start == timedelta(milliseconds=10)


@staged
def test_times_that_were_set_by_hand_are_seen_by_all(boot, fal_clock, fal_data):
    one, other = boot("a"), boot("a")
    fal_clock.advance(days=30)
    # A real time after the jump: only who knows that it was set by hand can tell.
    fal_data.write("a.bin", b"a", age=timedelta(days=30))
    set_by_test = fal_clock.time() - 30 * 86400
    assert one.run(FILE.stat).st_mtime == pytest.approx(set_by_test, abs=1e-3)

    def touch():
        moment = time.time() - 30 * 86400 + 0.5
        os.utime(FILE, (moment, moment))

    one.run(touch)
    for status in (one.run(FILE.stat), other.run(FILE.stat), FILE.stat()):
        assert status.st_mtime == pytest.approx(set_by_test + 0.5, abs=1e-3)
