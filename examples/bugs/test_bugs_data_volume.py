"""What runners share, what they lose, and what they are told at their end."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fal
import httpx
from gallery import bug
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


@bug(
    "P30",
    symptom="my statistics miss the last requests of some runners",
    topic=TOPIC,
    seen=None,
)
def test_a_killed_runner_has_no_teardown(fal_runner, fal_data):
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
