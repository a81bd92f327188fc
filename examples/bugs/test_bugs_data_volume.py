"""What runners share, what they lose, and what they are told at their end."""

from __future__ import annotations

import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import fal
import httpx
import pytest
from gallery import bug, needs_fuse
from pydantic import BaseModel

TOPIC = "Runners, /data and /tmp"
URL = "https://example.com/dataset.bin"
MIB = 2**20


class Empty(fal.App):
    @fal.endpoint("/")
    def nothing(self) -> None: ...


def load_dataset() -> bytes:
    """What many apps do, those of the documentation included."""
    path = Path("/data/dataset.bin")
    if not path.exists():
        with httpx.stream("GET", URL) as response, path.open("wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
    return path.read_bytes()


@bug(
    "P23",
    symptom="the first minutes after a deploy, some runners crash on a truncated dataset",
    topic=TOPIC,
    seen=None,
)
def test_a_second_runner_reads_a_file_that_is_being_written(fal_runner, fal_origin, fal_faults):
    """A file that one runner is writing into /data exists for all others, and is not whole.

    Production: several runners start at once; one writes, the others find the file and read it.
    Expected: "if it does not exist, download it" is safe.
    Happens: it exists from the first byte on.
    Avoid: write to another name beside it, then os.replace: that is one step for everybody.
    """
    fal_origin.serve(URL, size=2 * MIB)
    gate = fal_faults.gate(after=MIB, times=1)
    first, second = fal_runner(Empty), fal_runner(Empty)
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(first.run, load_dataset)
        gate.wait()
        assert len(second.run(load_dataset)) == MIB
        gate.open()
        assert len(loading.result()) == 2 * MIB


@bug(
    "P24",
    symptom="in one region my runners hang while they load a model that is there",
    topic=TOPIC,
    seen=None,
)
@needs_fuse
@pytest.mark.fal(
    data_visibility="staged",
    data_metadata_delay=timedelta(seconds=1),
    data_global_delay=timedelta(minutes=2),
)
def test_another_datacenter_lists_a_file_and_hangs_reading_it(
    fal_runner, fal_origin, fal_clock, fal_data
):
    """A file's name and size reach other datacenters before its content does.

    Production: the first runner in Europe finds the weights that one in the USA has just written,
        and its setup() stands still for minutes, without an error, until it is killed.
    Expected: what exists can be read.
    Happens: reading waits until the content has been uploaded, at 300 to 500 MB/s.
    Avoid: where the file comes from somewhere, read with a time limit and download it again to
        /tmp; and know that os.replace is one step for everybody, but no faster.
    """
    fal_clock.freeze()
    fal_origin.serve(URL, size=MIB)
    usa, europe = fal_runner(Empty), fal_runner(Empty, datacenter="eu-west")
    usa.run(load_dataset)
    assert europe.run(os.listdir, "/data") == []
    fal_clock.advance(1)
    assert europe.run(os.path.getsize, "/data/dataset.bin") == MIB
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(europe.run, load_dataset)
        fal_data.wait_for_reader("dataset.bin")
        fal_clock.advance(60)
        assert not loading.done()
        fal_clock.advance(60)
        assert len(loading.result()) == MIB


def load_dataset_under_a_lock() -> bytes:
    """As libraries do that keep a cache for several processes."""
    with open("/data/dataset.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return load_dataset()


@bug(
    "P25",
    symptom="two runners download the same model at once, and now and then it is corrupt",
    topic=TOPIC,
    seen=None,
)
@needs_fuse
@pytest.mark.fal(data_locks="per_runner")
def test_a_file_lock_does_not_keep_another_runner_out(fal_runner, fal_origin, fal_faults):
    """A lock on a file in /data may have no effect between runners.

    Production: two runners write into one cache under "the same" lock; the hub's client library
        has had corrupted files reported from such file systems. What fal's does is not known.
    Expected: flock and fcntl work as on one machine.
    Happens: each runner gets the lock.
    Avoid: need none: write to a name of one's own beside the target, then os.replace.
    """
    fal_origin.serve(URL, size=2 * MIB)
    gate = fal_faults.gate(after=MIB, times=1)
    first, second = fal_runner(Empty), fal_runner(Empty)
    with ThreadPoolExecutor() as pool:
        loading = pool.submit(first.run, load_dataset_under_a_lock)
        gate.wait()
        assert len(second.run(load_dataset_under_a_lock)) == MIB
        gate.open()
        assert len(loading.result()) == 2 * MIB


class Model(Empty):
    def setup(self) -> None:
        Path("/data/model.bin").read_bytes()


@bug(
    "P40",
    symptom="my runners start in a second, and now and then one needs minutes",
    topic=TOPIC,
    seen=None,
)
@needs_fuse
@pytest.mark.fal(data_cold_read_latency=timedelta(seconds=90))
def test_the_first_reading_on_another_server_is_slow(fal_runner, fal_clock, fal_data):
    """What a server has not read yet, or no longer has in its cache, comes from far away.

    Production: a start-up time that was measured on a warm server is not met on a new one; a
        start-up limit or a client's time-out strikes there alone.
    Expected: /data is a disk.
    Happens: the server's cache, then the datacenter's, then the object store; no error, just slow.
    Avoid: measure on a cold server, set limits accordingly, read many files in parallel.
    """
    fal_clock.freeze()
    fal_data.write("model.bin", bytes(MIB))

    def start_on(server: str) -> float:
        start = fal_clock.now()
        fal_runner(Model, server=server)
        return (fal_clock.now() - start).total_seconds()

    assert [start_on(server) for server in ("a", "a", "b", "a")] == [90, 0, 90, 0]


class Sessions(fal.App):
    @fal.endpoint("/start")
    def start(self) -> None:
        Path("/tmp/session.json").write_text("{}")

    @fal.endpoint("/continue")
    def go_on(self) -> bool:
        return Path("/tmp/session.json").exists()


@bug(
    "P29",
    symptom="it works on my runner, and fails now and then as soon as there are two",
    topic=TOPIC,
    seen=None,
)
def test_tmp_is_one_runners_own(fal_runner):
    """What a request leaves in /tmp is there for the next one, if that comes to the same runner.

    Production: with one warm runner everything works; a second one, a deploy or a quiet hour later
        the file is missing.
    Expected: either always there, or never.
    Happens: /tmp stays between the requests of a runner and is lost with it.
    Avoid: /data, or the CDN and its URL in the answer.
    """
    runner = fal_runner(Sessions)
    runner.post("/start")
    assert runner.post("/continue").json() is True

    assert fal_runner(Sessions).post("/continue").json() is False
    runner.stop()
    assert fal_runner(Sessions).post("/continue").json() is False


class Counter(fal.App):
    def setup(self) -> None:
        self.requests = 0

    @fal.endpoint("/")
    def count(self) -> None:
        self.requests += 1

    def teardown(self) -> None:
        Path("/data/requests.txt").write_text(str(self.requests))


class SlowCounter(Counter):
    def teardown(self) -> None:
        time.sleep(6)
        super().teardown()


@bug(
    "P30",
    symptom="my statistics miss the last requests of some runners",
    topic=TOPIC,
    seen=None,
)
def test_a_killed_runner_has_no_teardown(fal_runner, fal_data, fal_clock):
    """teardown() is not called on a runner that is killed.

    Production: a crash, a request over its time limit or the end of the grace period (5 seconds)
        ends a runner without a word.
    Expected: teardown() runs at the end.
    Happens: only where the end comes in order.
    Avoid: write down what matters when it happens, and let teardown() only tidy up.
    """
    runner = fal_runner(Counter)
    runner.post("/")
    runner.kill()
    assert fal_data.tree() == []

    fal_clock.freeze()
    fal_runner(SlowCounter).stop()  # cut off after 5 seconds
    assert fal_data.tree() == []

    runner = fal_runner(Counter)
    runner.post("/")
    runner.stop()
    assert fal_data.read("requests.txt") == b"1"


class Cache(Empty):
    def teardown(self) -> None:
        if os.environ["FAL_RUNNER_STATE"] == "STOPPING":
            Path("/data/cache.bin").write_bytes(b"hours of work")
        Path("/data/state.txt").write_text(os.environ["FAL_RUNNER_STATE"])


@bug(
    "P38",
    symptom="my app does not save its cache any more at the end, since I updated fal",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_runner_that_ends_is_called_terminating(fal_runner, fal_data):
    """The state of a runner that shuts down is TERMINATING; until fal 1.61 it was STOPPING.

    Production: code that waits for "STOPPING" is silently never run.
    Expected: the names in FAL_RUNNER_STATE stay as they are.
    Happens: no error, just no cache.
    Avoid: do it in teardown() or handle_exit() without asking for the state.
    """
    fal_runner(Cache).stop()
    assert fal_data.tree() == ["state.txt"]
    assert fal_data.read("state.txt") == b"TERMINATING"


class Scheduler(BaseModel):
    scheduler: str


class Generator(fal.App):
    @fal.endpoint("/")
    def generate(self, input: Scheduler) -> None:
        raise ValueError(f"there is no scheduler {input.scheduler!r}")


@bug(
    "P32",
    symptom="one strange request takes down runner after runner",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_an_error_that_mentions_the_gpu_is_a_503(fal_runner):
    """Any exception whose text has a word like "cuda" or "triton" is answered with 503.

    Production: the platform replaces a runner that answers 503, and tries the request again on the
        next: a caller's typing error costs up to ten runners with all they have loaded.
    Expected: an exception of the app is a 500, which is neither tried again nor held against the
        runner.
    Happens: the SDK takes the text for a broken GPU.
    Avoid: check inputs, and raise FieldException, which is a 422.
    """
    runner = fal_runner(Generator)
    assert runner.post("/", json={"scheduler": "euler"}).status_code == 500
    assert runner.post("/", json={"scheduler": "triton"}).status_code == 503
