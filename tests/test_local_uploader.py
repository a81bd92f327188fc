"""The node's uploader: the SDK hands its files over, and has their URLs before the CDN has them.

Platform facts §1.12; to a bucket of the caller's, §1.13. The SDK is the client, in the test itself
and in runners of both kinds; curl is one where a person would take it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fal
import httpx
import pytest
from fal.toolkit import File
from fal.toolkit.exceptions import FileUploadException
from fal.toolkit.file.providers.fal import MultipartUploadV3
from memory import MEBIBYTE, memory_grows_by_less_than
from versions import since

from emulator.errors import EmulatorError
from emulator.network.unix_server import UnixServer
from emulator.runners.runner import RunnerError
from emulator.storage import node_uploader

if TYPE_CHECKING:
    import respx

    from emulator.account import Emulator
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.network.faults import Faults
    from emulator.runners.runner import Runner, RunnerFactory
    from emulator.storage.cdn import CDN
    from emulator.storage.node_uploader import Uploader

pytestmark = [
    since("1.82.0", "the SDK hands files to the node"),
    pytest.mark.fal(local_uploader=True),
]

#: httpcore does not close the socket of a connection to a file that could not be made.
leaves_sockets = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)

NODE = "uploader.fal"
ACCOUNT = {"Authorization": "Key id:secret"}
WAITING = {"wait_for_completion": True}
MINUTE = timedelta(minutes=1)
START = datetime(2030, 1, 1, tzinfo=timezone.utc)


def upload(content: bytes = b"bytes", file_name: str = "a.txt", **options: Any) -> str:
    """Upload with the toolkit, which has no other store to go to; its URL."""
    file = File.from_bytes(
        content, file_name=file_name, save_kwargs=options, fallback_repository=None
    )
    return str(file.url)


def direct(ledger: Ledger) -> int:
    """How many uploads went to the CDN without the node."""
    return len(ledger.requests(host="rest.alpha.fal.ai", path="/storage/upload/initiate"))


@contextlib.contextmanager
def node(headers: dict[str, str] | None = None) -> Iterator[httpx.Client]:
    """A client of the socket, other than the SDK's."""
    transport = httpx.HTTPTransport(uds=os.environ["FAL_API_SOCKET"])
    given = {**ACCOUNT, "X-Fal-File-Name": "a.txt"} if headers is None else headers
    with httpx.Client(transport=transport, base_url="http://node", headers=given) as client:
        yield client


def text_of(events: Ledger) -> list[str]:
    return [event.text for event in events.events if event.kind == "uploader"]


# --- what the SDK does ----------------------------------------------------------------------------


def test_bytes_go_to_the_cdn_by_way_of_the_node(
    fal_cdn: CDN, fal_ledger: Ledger, fal_uploader: Uploader
) -> None:
    file = File.from_bytes(b"hello", "text/plain", "a.txt")
    assert fal_cdn.get(file.url) == b"hello"
    info = fal_cdn.info(file.url)
    assert (info.file_name, info.content_type, info.size) == ("a.txt", "text/plain", 5)
    assert [f"{e.method} {e.url}" for e in fal_ledger.exchanges] == [
        "POST http://uploader.fal/v1/uploads"
    ]
    assert [(one.url, one.state) for one in fal_uploader.uploads] == [(file.url, "completed")]


@pytest.mark.fal(local_uploader=False)
def test_without_the_setting_it_is_not_asked(fal_ledger: Ledger, fal_uploader: Uploader) -> None:
    upload()
    assert fal_uploader.uploads == []
    assert direct(fal_ledger) == 1


@pytest.mark.fal(local_uploader=False)
def test_the_variable_alone_turns_it_on(
    fal_uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAL_USE_LOCAL_UPLOADER", "1")
    assert fal_uploader.find(upload()).state == "completed"


@pytest.mark.parametrize("threshold", [100, 1], ids=["small", "streamed"])
def test_a_path_is_uploaded(
    fal_cdn: CDN,
    fal_tmp: Any,
    fal_ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    threshold: int,
) -> None:
    monkeypatch.setattr(MultipartUploadV3, "MULTIPART_THRESHOLD", threshold)
    file = File.from_path(fal_tmp.write("film.mp4", b"film"), content_type="video/mp4")
    assert fal_cdn.get(file.url) == b"film"
    assert fal_cdn.info(file.url).content_type == "video/mp4"
    assert file.file_data == (b"film" if threshold == 100 else None)
    assert len(fal_ledger.requests(host=NODE)) == 1


def test_an_empty_file_is_uploaded(fal_cdn: CDN) -> None:
    assert fal_cdn.get(upload(b"")) == b""


def test_a_large_file_is_held_in_memory_by_nobody(fal_cdn: CDN, fal_tmp: Any) -> None:
    path = fal_tmp.write("model.bin", b"")
    os.truncate(path, 128 * MEBIBYTE)
    with memory_grows_by_less_than(64 * MEBIBYTE):
        url = File.from_path(path).url
    assert fal_cdn.info(url).size == 128 * MEBIBYTE


def test_a_reserved_url_is_completed(fal_cdn: CDN, fal_uploader: Uploader) -> None:
    reserved = File.reserve(content_type="video/mp4", file_name="clip.mp4")
    assert fal_uploader.find(reserved.url).state == "receiving"
    assert reserved.complete(b"video").url == reserved.url
    assert fal_cdn.get(reserved.url) == b"video"
    assert fal_cdn.info(reserved.url).content_type == "video/mp4"


def test_a_reserved_url_is_completed_from_a_path(fal_cdn: CDN, fal_tmp: Any) -> None:
    reserved = File.reserve(file_name="clip.mp4")
    reserved.complete(fal_tmp.write("clip.mp4", b"video"))
    assert fal_cdn.get(reserved.url) == b"video"


def test_a_reserved_url_is_given_up(fal_uploader: Uploader, fal_clock: Clock) -> None:
    fal_clock.freeze()
    reserved = File.reserve(file_name="clip.mp4")
    reserved.abort()
    assert fal_uploader.find(reserved.url).state == "aborted"
    assert httpx.get(reserved.url).status_code == 404


def test_a_stream_is_uploaded(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    from fal.toolkit.file.providers.local import LocalFileRepository

    chunks = (b"frame %d\n" % number for number in range(3))
    url = LocalFileRepository().save_stream(chunks, "film.txt", "text/plain")
    assert fal_cdn.get(url) == b"frame 0\nframe 1\nframe 2\n"
    assert [e.method for e in fal_ledger.exchanges] == ["POST", "PUT", "POST"]


def test_a_stream_that_breaks_off_is_aborted(
    fal_uploader: Uploader, fal_cdn: CDN, fal_ledger: Ledger
) -> None:
    from fal.toolkit.file.providers.local import LocalFileRepository

    def frames() -> Iterator[bytes]:
        yield b"frame 0\n"
        raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        LocalFileRepository().save_stream(frames(), "film.txt", "text/plain")
    assert [one.state for one in fal_uploader.uploads] == ["aborted"]
    assert fal_cdn.files == []
    assert [e.status for e in fal_ledger.requests(method="DELETE")] == [202]


def test_the_async_variants_do_the_same(fal_uploader: Uploader, fal_tmp: Any) -> None:
    async def both() -> list[str]:
        files = await asyncio.gather(
            File.from_bytes_async(b"1"), File.from_path_async(fal_tmp.write("a.bin", b"2"))
        )
        return [file.url for file in files]

    assert [fal_uploader.find(url).size for url in asyncio.run(both())] == [1, 1]


def test_the_name_is_published_as_by_rest(fal_cdn: CDN) -> None:
    assert fal_cdn.info(upload(file_name="kätzchen.png")).file_name == "k?tzchen.png"


def test_a_lifetime_counts_from_completion(
    fal_cdn: CDN, fal_uploader: Uploader, fal_clock: Clock
) -> None:
    fal_clock.freeze(START)
    fal_uploader.hold()
    url = upload(object_lifecycle_preference={"expiration_duration_seconds": 60})
    fal_clock.advance(minutes=5)
    fal_uploader.complete(url)
    assert fal_cdn.info(url).expires_at == START + timedelta(minutes=6)
    fal_clock.advance(minutes=1)
    assert httpx.get(url).status_code == 404


# --- who sent it ----------------------------------------------------------------------------------


class Saver(fal.App):
    @fal.endpoint("/")
    def save(self) -> File:
        return File.from_bytes(b"pixels", file_name="cat.png")

    @fal.endpoint("/wait")
    def save_and_wait(self) -> File:
        options = {"wait_for_completion": True}
        return File.from_bytes(b"pixels", file_name="cat.png", save_kwargs=options)

    @fal.endpoint("/reserve")
    def reserve(self) -> dict:
        self.reserved = File.reserve(file_name="cat.png")
        return {"url": self.reserved.url}

    @fal.endpoint("/complete")
    def complete(self) -> File:
        return self.reserved.complete(b"pixels")

    @fal.endpoint("/curl")
    def curl(self) -> dict:
        call = ["curl", "-s", "--unix-socket", os.environ["FAL_API_SOCKET"]]
        call += ["-H", "Authorization: Key id:secret", "-H", "X-Fal-File-Name: a.txt"]
        call += ["--data-binary", "hello", "http://node/v1/uploads"]
        return json.loads(subprocess.run(call, capture_output=True, check=True).stdout)


@pytest.fixture(params=["thread", "process"])
def runner(request: pytest.FixtureRequest, fal_runner: RunnerFactory) -> Runner:
    return fal_runner(Saver, isolation=request.param)


def test_an_apps_upload_is_as_if_it_went_to_the_cdn_itself(
    runner: Runner, fal_cdn: CDN, fal_uploader: Uploader
) -> None:
    headers = {
        "x-fal-request-id": "request-1",
        "x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 3600}',
    }
    url = runner.post("/", headers=headers).json()["url"]
    assert fal_cdn.get(url) == b"pixels"
    fal_cdn.assert_uploaded(
        url,
        by=runner,
        request_id="request-1",
        lifecycle={"expiration_duration_seconds": 3600},
    )
    sent = fal_uploader.find(url)
    assert (sent.runner, sent.application, sent.request_id) == (runner.name, "app", "request-1")
    assert sent.headers["x-fal-endpoint"] == "tester/app"
    assert sent.headers["x-fal-cdn-token"] == "***"


def test_two_runners_are_told_apart(fal_runner: RunnerFactory, fal_uploader: Uploader) -> None:
    runners = [fal_runner(Saver), fal_runner(Saver), fal_runner(Saver, isolation="process")]
    urls = [runner.post("/").json()["url"] for runner in runners]
    names = ["runner-1", "runner-2", "runner-3"]
    assert [fal_uploader.find(url).runner for url in urls] == names


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_a_program_that_an_app_starts_is_the_runners(
    runner: Runner, fal_uploader: Uploader, fal_cdn: CDN
) -> None:
    url = runner.post("/curl").json()["file_url"]
    assert fal_uploader.find(url).runner == runner.name
    assert fal_cdn.get(url) == b"hello"


def test_the_tests_own_uploads_are_nobodys(fal_uploader: Uploader) -> None:
    assert fal_uploader.find(upload()).runner is None


@pytest.mark.fal(local_uploader=False)
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_single_runner_can_be_told_to_use_it(
    fal_runner: RunnerFactory, fal_uploader: Uploader, isolation: str
) -> None:
    env = {"FAL_USE_LOCAL_UPLOADER": "1"}
    runner = fal_runner(Saver, isolation=isolation, env=env)
    url = runner.post("/").json()["url"]
    assert fal_uploader.find(url).runner == runner.name


def test_a_lost_context_is_noted(fal_runner: RunnerFactory, fal_ledger: Ledger) -> None:
    from apps import Uploader as App

    fal_runner(App).post("/thread", json={})
    (exchange,) = fal_ledger.requests(host=NODE)
    assert exchange.notes[0].startswith("the request's context was lost: this upload has no")


# --- before the CDN has it ------------------------------------------------------------------------


def test_what_is_held_is_not_there(
    fal_uploader: Uploader, fal_cdn: CDN, fal_clock: Clock, fal_ledger: Ledger
) -> None:
    fal_clock.freeze()
    fal_uploader.hold()
    url = upload()
    assert [one.url for one in fal_uploader.pending] == [url]
    assert fal_cdn.files == []
    assert httpx.get(url).status_code == 404
    note = "the file's upload has begun and is not finished"
    assert fal_ledger.exchanges[-1].notes == [note]

    fal_uploader.release()
    assert fal_uploader.pending == []
    assert httpx.get(url).content == b"bytes"


def test_one_of_several_is_completed(fal_uploader: Uploader, fal_cdn: CDN) -> None:
    fal_uploader.hold()
    urls = [upload(file_name=f"{number}.txt") for number in range(3)]
    fal_uploader.complete(urls[1])
    assert [file.url for file in fal_cdn.files] == [urls[1]]
    assert [one.url for one in fal_uploader.pending] == [urls[0], urls[2]]


def test_a_reader_waits_until_it_is_there(fal_uploader: Uploader) -> None:
    fal_uploader.hold()
    url = upload()
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(httpx.get, url)
        fal_uploader.release()
        assert reading.result().content == b"bytes"


@pytest.mark.fal(uploader_delay=timedelta(seconds=30))
def test_it_takes_as_long_as_the_setting_says(
    fal_clock: Clock, fal_cdn: CDN, fal_uploader: Uploader
) -> None:
    fal_clock.freeze(START)
    url = upload()
    fal_clock.advance(seconds=29)
    assert fal_uploader.find(url).state == "pending"
    fal_clock.advance(seconds=1)
    assert fal_cdn.get(url) == b"bytes"
    assert fal_cdn.info(url).created_at == START + timedelta(seconds=30)


@pytest.mark.fal(uploader_delay=timedelta(seconds=4))
def test_a_reader_on_a_stopped_clock_moves_it_to_the_completion(fal_clock: Clock) -> None:
    fal_clock.freeze(START)
    assert httpx.get(upload()).content == b"bytes"
    assert fal_clock.now() == START + timedelta(seconds=4)


@pytest.mark.fal(uploader_delay=timedelta(milliseconds=20))
def test_a_reader_on_a_running_clock_waits_for_the_completion(fal_cdn: CDN) -> None:
    assert httpx.get(upload()).content == b"bytes"


@pytest.mark.fal(uploader_delay=MINUTE)
def test_a_reader_does_not_wait_longer_than_the_cdn_lets_it(
    fal_clock: Clock, fal_uploader: Uploader
) -> None:
    fal_clock.freeze(START)
    url = upload()
    assert httpx.get(url).status_code == 404
    assert fal_clock.now() == START + timedelta(seconds=10)
    assert fal_uploader.find(url).state == "pending"


@pytest.mark.fal(unfinished_read="not_found")
def test_a_reserved_url_is_404_where_readers_do_not_wait(fal_cdn: CDN) -> None:
    reserved = File.reserve(file_name="clip.mp4")
    assert httpx.get(reserved.url).status_code == 404
    reserved.complete(b"video")
    assert httpx.get(reserved.url).content == b"video"


def test_a_runner_that_dies_leaves_a_dead_url(
    fal_runner: RunnerFactory, fal_uploader: Uploader, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    runner = fal_runner(Saver, isolation="process")
    url = runner.post("/reserve").json()["url"]
    runner.kill()
    assert httpx.get(url).status_code == 404
    assert repr(fal_uploader.find(url)) == f"<NodeUpload: {url} of runner-1, receiving>"


def test_a_runner_that_lives_completes_it(runner: Runner, fal_cdn: CDN) -> None:
    url = runner.post("/reserve").json()["url"]
    assert runner.post("/complete").json()["url"] == url
    assert fal_cdn.get(url) == b"pixels"


# --- waiting for completion -----------------------------------------------------------------------


def test_who_waits_has_it_on_the_cdn(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    assert fal_cdn.get(upload(**WAITING)) == b"bytes"
    assert [e.path.rpartition("/")[0] for e in fal_ledger.exchanges] == ["/v1", "/v1/uploads"]


@pytest.mark.fal(uploader_delay=timedelta(seconds=90))
def test_waiting_takes_the_clocks_time(fal_clock: Clock, fal_cdn: CDN, fal_ledger: Ledger) -> None:
    fal_clock.freeze(START)
    assert fal_cdn.get(upload(**WAITING)) == b"bytes"
    assert fal_clock.now() == START + timedelta(seconds=90)
    polls = fal_ledger.requests(method="GET")
    assert [poll.url.rpartition("?")[2] for poll in polls] == ["wait=60", "wait=60"]


@pytest.mark.fal(uploader_delay=timedelta(milliseconds=20))
def test_waiting_ends_with_the_completion_on_a_running_clock(runner: Runner, fal_cdn: CDN) -> None:
    assert fal_cdn.get(runner.post("/wait").json()["url"]) == b"pixels"


def test_who_waits_is_let_go(fal_uploader: Uploader, fal_ledger: Ledger) -> None:
    fal_uploader.hold()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(upload, **WAITING)
        until(lambda: bool(fal_ledger.requests(method="GET")))
        fal_uploader.release()
        assert fal_uploader.find(waiting.result()).state == "completed"


def test_who_waits_hears_of_a_failure(fal_uploader: Uploader, fal_ledger: Ledger) -> None:
    fal_uploader.hold()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(upload, **WAITING)
        until(lambda: bool(fal_ledger.requests(method="GET")))
        fal_uploader.fail(fal_uploader.pending[0].url, "disk full")
        with pytest.raises(FileUploadException) as failed:
            waiting.result()
    assert str(failed.value) == "Local upload failed (disk full)."
    assert direct(fal_ledger) == 0


@pytest.mark.fal(uploader_deadline=timedelta(minutes=2))
def test_the_node_gives_up_at_its_deadline(
    fal_uploader: Uploader, fal_clock: Clock, fal_ledger: Ledger
) -> None:
    fal_clock.freeze(START)
    fal_uploader.hold()
    with pytest.raises(FileUploadException) as failed:
        upload(**WAITING)
    reason = "it was not there 0:02:00 after it was accepted"
    assert str(failed.value) == f"Local upload failed ({reason})."
    assert fal_clock.now() == START + timedelta(minutes=2)
    assert text_of(fal_ledger) == [f"{fal_uploader.uploads[0].url} failed: {reason}"]


def test_nobody_waits_for_what_only_the_test_can_release(
    fal_uploader: Uploader, fal_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_uploader, "HOLD_SECONDS", 0)
    fal_uploader.hold()
    with pytest.raises(FileUploadException, match=r"state is unknown \(HTTP 500\)"):
        upload(**WAITING)
    assert fal_ledger.exchanges[-1].notes == [
        f"{fal_uploader.pending[0].url} is held, and somebody waited for its completion for 0 s of "
        "real time. Upload it in a thread of its own, and call fal_uploader.release() in the test, "
        "or let the clock do it: fal_clock.on(when, fal_uploader.release)."
    ]


def test_the_clock_can_let_it_go(fal_uploader: Uploader, fal_clock: Clock, fal_cdn: CDN) -> None:
    fal_clock.freeze(START)
    fal_uploader.hold()
    fal_clock.on(timedelta(minutes=5), fal_uploader.release)
    assert fal_cdn.get(upload(**WAITING)) == b"bytes"
    assert fal_cdn.files[0].created_at == START + timedelta(minutes=5)


# --- what it refuses ------------------------------------------------------------------------------


def test_a_refusal_that_may_pass_is_tried_again(
    fal_clock: Clock, fal_faults: Faults, fal_ledger: Ledger, fal_uploader: Uploader
) -> None:
    fal_clock.freeze(START)
    fal_faults.status(429, host=NODE, path="/v1/uploads", times=2)
    assert fal_uploader.find(upload()).state == "completed"
    assert [e.status for e in fal_ledger.requests(host=NODE)] == [429, 429, 202]
    assert fal_clock.now() == START + timedelta(seconds=0.3)


def test_a_node_that_drains_takes_nothing_new(
    fal_clock: Clock, fal_ledger: Ledger, fal_uploader: Uploader, fal_cdn: CDN
) -> None:
    fal_clock.freeze()
    reserved = File.reserve(file_name="clip.mp4")
    fal_uploader.drain()
    assert fal_cdn.get(upload()) == b"bytes"
    assert fal_cdn.get(reserved.complete(b"video").url) == b"video"
    refused = fal_ledger.requests(host=NODE, path="/v1/uploads")
    assert [(e.status, e.notes) for e in refused] == [(429, ["this uploader is draining"])] * 3
    assert direct(fal_ledger) == 1

    fal_uploader.restart()
    assert fal_uploader.find(upload()).state == "completed"


@pytest.mark.fal(uploader_capacity=1)
def test_a_node_that_is_full_refuses(
    fal_clock: Clock, fal_uploader: Uploader, fal_ledger: Ledger, fal_cdn: CDN
) -> None:
    fal_clock.freeze()
    fal_uploader.hold()
    held, sent = upload(), upload(b"second")
    assert [one.url for one in fal_uploader.pending] == [held]
    assert fal_cdn.get(sent) == b"second"
    notes = fal_ledger.requests(path="/v1/uploads")[-1].notes
    assert notes == ["this uploader is full: 1 uploads are pending"]


@pytest.mark.fal(uploader_limit=5)
def test_a_file_that_is_too_large_goes_to_the_cdn_itself(
    fal_cdn: CDN, fal_ledger: Ledger, fal_uploader: Uploader, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fal_uploader.find(upload(b"12345")).size == 5
    url = upload(b"123456")
    assert fal_cdn.get(url) == b"123456"
    assert "HTTP 413. Uploading directly to CDN." in capsys.readouterr().out
    assert [one.size for one in fal_uploader.uploads] == [5]
    assert direct(fal_ledger) == 1


@pytest.mark.fal(uploader_limit=5)
def test_a_stream_that_becomes_too_large_is_refused(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    reserved = File.reserve(file_name="a.bin")
    with pytest.raises(FileUploadException, match="HTTP 413"):
        reserved.complete(b"123456")
    assert fal_cdn.files == []
    assert [e.status for e in fal_ledger.exchanges] == [201, 413, 202]


def test_a_wrong_lifetime_is_422(fal_ledger: Ledger) -> None:
    with pytest.raises(FileUploadException, match="422"):
        upload(object_lifecycle_preference={"expiration_duration_seconds": -1})
    assert [e.status for e in fal_ledger.requests(host=NODE)] == [422]
    assert direct(fal_ledger) == 1, "the SDK tries it at the CDN itself, which refuses it too"


@pytest.mark.parametrize("status", [400, 401, 404])
def test_any_other_refusal_goes_to_the_cdn_itself(
    fal_faults: Faults, fal_ledger: Ledger, fal_cdn: CDN, status: int
) -> None:
    fal_faults.status(status, host=NODE)
    assert fal_cdn.get(upload()) == b"bytes"
    assert direct(fal_ledger) == 1


@pytest.mark.parametrize("status", [500, 503])
def test_a_failure_is_raised_and_not_tried_elsewhere(
    fal_faults: Faults, fal_ledger: Ledger, fal_cdn: CDN, status: int
) -> None:
    fal_faults.status(status, host=NODE)
    with pytest.raises(FileUploadException) as failed:
        File.from_bytes(b"bytes")
    assert str(failed.value) == f"Local uploader returned HTTP {status}."
    assert (len(fal_ledger.exchanges), fal_cdn.files) == (1, [])


def test_a_lost_answer_is_raised_and_the_file_is_there_once(
    fal_faults: Faults, fal_ledger: Ledger, fal_cdn: CDN
) -> None:
    fal_faults.drop(after=0, host=NODE)
    with pytest.raises(FileUploadException, match="connection was interrupted"):
        File.from_bytes(b"bytes")
    assert len(fal_ledger.exchanges) == 1
    assert [fal_cdn.get(file.url) for file in fal_cdn.files] == [b"bytes"]


def test_what_breaks_off_was_not_accepted(fal_faults: Faults, fal_uploader: Uploader) -> None:
    fal_faults.drop(after=2, of="request", host=NODE)
    with pytest.raises(FileUploadException, match="connection was interrupted"):
        File.from_bytes(b"bytes")
    assert fal_uploader.uploads == []


def test_a_gate_holds_the_runner_and_not_the_test(
    runner: Runner, fal_faults: Faults, fal_uploader: Uploader
) -> None:
    gate = fal_faults.gate(host=NODE, of="request", runner=runner)
    with ThreadPoolExecutor() as pool:
        saving = pool.submit(runner.post, "/")
        gate.wait()
        assert fal_uploader.uploads == []
        gate.open()
        assert fal_uploader.find(saving.result().json()["url"]).state == "completed"


def test_a_runner_that_is_killed_in_the_middle_of_a_file_leaves_nothing(
    fal_runner: RunnerFactory, fal_faults: Faults, fal_uploader: Uploader
) -> None:
    runner = fal_runner(Saver, isolation="process")
    fal_faults.kill_runner(after=3, of="request", host=NODE)
    with pytest.raises(RunnerError):
        runner.post("/")
    assert fal_uploader.uploads == []


def test_a_runner_that_is_killed_before_its_answer_leaves_a_file(
    fal_runner: RunnerFactory, fal_faults: Faults, fal_uploader: Uploader, fal_cdn: CDN
) -> None:
    runner = fal_runner(Saver, isolation="process")
    fal_faults.kill_runner(after=0, host=NODE)
    with pytest.raises(RunnerError):
        runner.post("/")
    assert [file.runner for file in fal_cdn.files] == [runner.name]


def test_a_node_that_says_nothing_is_an_interruption(fal_faults: Faults, fal_cdn: CDN) -> None:
    fal_faults.timeout(host=NODE, path="/v1/uploads")
    with pytest.raises(FileUploadException, match="connection was interrupted"):
        upload()
    assert fal_cdn.files == []


def test_a_slow_node_takes_the_clocks_time(fal_faults: Faults, fal_clock: Clock) -> None:
    fal_clock.freeze(START)
    fal_faults.slow(20, host=NODE)
    upload()
    assert fal_clock.now() == START + timedelta(seconds=20)


# --- failures on the way to the CDN ---------------------------------------------------------------


def test_what_fails_is_never_there(
    fal_uploader: Uploader, fal_clock: Clock, fal_ledger: Ledger, fal_cdn: CDN
) -> None:
    fal_clock.freeze(START)
    fal_uploader.hold()
    url = upload()
    fal_uploader.fail(url)
    assert httpx.get(url).status_code == 404
    assert fal_clock.now() == START + timedelta(seconds=10), "readers wait all the same"
    assert fal_ledger.exchanges[-1].notes == [
        "the file's upload has begun and is not finished, and never will be: the CDN refused it"
    ]
    with pytest.raises(EmulatorError, match="and never will be: the CDN refused it"):
        fal_cdn.get(url)


@pytest.mark.fal(unfinished_read_limit=timedelta(hours=1))
def test_nobody_really_waits_for_what_has_failed(fal_uploader: Uploader) -> None:
    fal_uploader.hold()
    url = upload()
    fal_uploader.fail(url)
    assert httpx.get(url).status_code == 404


@pytest.mark.fal(content_check="refuse")
def test_the_cdn_refuses_it_when_nobody_listens_any_more(
    fal_uploader: Uploader, fal_cdn: CDN, fal_ledger: Ledger
) -> None:
    file = File.from_bytes(b"\x89PNG\r\n\x1a\n", "image/jpeg", "cat.jpg")
    assert fal_cdn.files == []
    reason = "the content is image/png, but image/jpeg was declared"
    assert fal_uploader.find(file.url).failure == reason
    assert text_of(fal_ledger) == [f"{file.url} failed: {reason}"]


def test_what_is_over_cannot_be_completed(fal_uploader: Uploader) -> None:
    url = upload()
    with pytest.raises(EmulatorError) as refused:
        fal_uploader.complete(url)
    assert str(refused.value) == (
        f"{url} is completed, so there is nothing to complete. Call fal_uploader.hold() before it "
        "is uploaded: it is pending then."
    )


@pytest.mark.fal(local_uploader=False)
def test_what_did_not_come_by_the_node_is_not_found(fal_uploader: Uploader) -> None:
    url = upload()
    with pytest.raises(EmulatorError) as refused:
        fal_uploader.find(url)
    assert str(refused.value) == (
        f"{url} did not come by way of the node's uploader; it was sent nothing. Write "
        "@pytest.mark.fal(local_uploader=True), so that the SDK uses it."
    )


# --- crashes --------------------------------------------------------------------------------------


def test_a_crash_loses_what_was_accepted(
    fal_uploader: Uploader, fal_clock: Clock, fal_ledger: Ledger
) -> None:
    fal_clock.freeze()
    fal_uploader.hold()
    url = upload()
    fal_uploader.crash()
    fal_uploader.restart()
    fal_uploader.release()
    assert httpx.get(url).status_code == 404
    assert fal_ledger.exchanges[-1].notes == [
        "the file's upload has begun and is not finished, and never will be: the node's uploader "
        "crashed with its bytes"
    ]
    assert text_of(fal_ledger) == [
        f"{url} lost: the node's uploader crashed with its bytes",
        "crashed; 0 accepted uploads are left on its disk",
        "started",
    ]


def test_what_is_on_its_disk_goes_on_after_a_crash(fal_uploader: Uploader, fal_cdn: CDN) -> None:
    fal_uploader.hold()
    url = upload()
    fal_uploader.crash(lose=False)
    fal_uploader.release()
    assert fal_cdn.files == []
    fal_uploader.restart()
    assert fal_cdn.get(url) == b"bytes"


@pytest.mark.fal(uploader_delay=timedelta(seconds=30))
def test_nothing_goes_on_while_it_is_down(
    fal_uploader: Uploader, fal_clock: Clock, fal_cdn: CDN
) -> None:
    fal_clock.freeze()
    url = upload()
    fal_uploader.crash(lose=False)
    fal_clock.advance(minutes=5)
    assert fal_cdn.files == []
    fal_uploader.restart()
    assert fal_cdn.get(url) == b"bytes"


def test_nothing_can_be_completed_while_it_is_down(fal_uploader: Uploader) -> None:
    fal_uploader.hold()
    url = upload()
    fal_uploader.crash(lose=False)
    with pytest.raises(EmulatorError) as refused:
        fal_uploader.complete(url)
    assert str(refused.value) == ("The uploader has crashed. Call fal_uploader.restart() first.")


def test_its_deadline_passes_while_it_is_down(fal_uploader: Uploader, fal_clock: Clock) -> None:
    fal_clock.freeze()
    fal_uploader.hold()
    url = upload()
    fal_uploader.crash(lose=False)
    fal_clock.advance(hours=1)
    fal_uploader.restart()
    assert fal_uploader.find(url).state == "failed"


@leaves_sockets
def test_while_it_is_down_the_sdk_goes_to_the_cdn_itself(
    runner: Runner, fal_uploader: Uploader, fal_ledger: Ledger, fal_cdn: CDN
) -> None:
    fal_uploader.crash()
    assert not os.path.exists(fal_uploader.socket)
    assert fal_cdn.get(runner.post("/").json()["url"]) == b"pixels"
    assert direct(fal_ledger) == 1
    assert "Uploading directly to CDN." in runner.output


def test_a_crash_cuts_who_waits(fal_uploader: Uploader, fal_ledger: Ledger) -> None:
    fal_uploader.hold()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(upload, **WAITING)
        until(lambda: bool(fal_ledger.requests(method="GET")))
        fal_uploader.crash()
        with pytest.raises(FileUploadException, match="Lost the local uploader while waiting"):
            waiting.result()


def test_a_record_is_lost_in_a_restart(fal_uploader: Uploader) -> None:
    fal_uploader.hold()
    identifier = fal_uploader.find(upload()).id
    fal_uploader.crash()
    fal_uploader.restart()
    with node() as client:
        answer = client.get(f"/v1/uploads/{identifier}")
    assert (answer.status_code, answer.json()) == (
        404,
        {"detail": "there is no such upload (any more)"},
    )


def test_a_crash_in_the_middle_of_a_file_loses_it(
    fal_uploader: Uploader, fal_faults: Faults, fal_cdn: CDN
) -> None:
    gate = fal_faults.gate(after=2, of="request", host=NODE)
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(upload)
        gate.wait()
        fal_uploader.crash(lose=False)
        gate.open()
        with pytest.raises(FileUploadException, match="connection was interrupted"):
            sending.result()
    fal_uploader.restart()
    assert (fal_uploader.uploads, fal_cdn.files) == ([], [])


def test_a_reserved_url_does_not_survive_a_crash(fal_uploader: Uploader) -> None:
    reserved = File.reserve(file_name="clip.mp4")
    fal_uploader.crash(lose=False)
    fal_uploader.restart()
    with pytest.raises(FileUploadException, match="HTTP 409"):
        reserved.complete(b"video")
    assert fal_uploader.find(reserved.url).state == "lost"


def test_the_clock_can_crash_it(fal_uploader: Uploader, fal_clock: Clock) -> None:
    fal_clock.freeze()
    fal_uploader.hold()
    fal_clock.on(90, fal_uploader.crash)
    with pytest.raises(FileUploadException, match="Lost the local uploader while waiting"):
        upload(**WAITING)
    assert fal_uploader.uploads[0].state == "lost"


@pytest.mark.parametrize("_", range(2))
def test_each_test_begins_with_a_node_that_runs(
    fal_uploader: Uploader, fal_cdn: CDN, _: int
) -> None:
    assert fal_uploader.uploads == []
    assert fal_cdn.get(upload()) == b"bytes"
    fal_uploader.hold()
    fal_uploader.drain()
    fal_uploader.crash()


def until(happened: Callable[[], bool]) -> None:
    """Wait for another thread."""
    ended = threading.Event()
    for _ in range(1000):
        if happened():
            return
        ended.wait(0.005)
    raise AssertionError("it never happened")


# --- a bucket of the caller's [§1.13] -------------------------------------------------------------

BUCKET = "https://pictures.s3.us-east-1.amazonaws.com/"
FIELDS = {"key": "out/${filename}", "policy": "signed", "x-amz-signature": "secret-signature"}
POLICY = {"x-app-fal-upload-policy": json.dumps({"url": BUCKET, "fields": FIELDS})}


@pytest.fixture
def bucket(fal_http: respx.MockRouter) -> respx.Route:
    return fal_http.post(BUCKET).respond(204)


def test_a_callers_bucket_gets_the_file(
    runner: Runner, bucket: respx.Route, fal_uploader: Uploader, fal_cdn: CDN
) -> None:
    url = runner.post("/", headers={**POLICY, "x-fal-request-id": "request-1"}).json()["url"]
    assert url.startswith(f"{BUCKET}out/")
    assert url.endswith("-cat.png")
    (call,) = bucket.calls
    form = call.request.content
    key = url.removeprefix(BUCKET).encode()
    assert b'name="key"\r\n\r\n' + key + b"\r\n" in form
    assert b'name="Content-Type"\r\n\r\nimage/png\r\n' in form
    assert b"\r\n\r\npixels\r\n" in form
    assert "authorization" not in call.request.headers
    sent = fal_uploader.find(url)
    assert (sent.is_for_a_bucket, sent.state, sent.runner) == (True, "completed", runner.name)
    assert sent.request_id == "request-1"
    assert fal_cdn.files == []


def test_signatures_do_not_get_into_the_ledger(
    fal_runner: RunnerFactory, bucket: respx.Route, fal_ledger: Ledger, fal_uploader: Uploader
) -> None:
    fal_runner(Saver).post("/", headers=POLICY)
    (exchange,) = fal_ledger.requests(host=NODE)
    assert exchange.request_headers["x-app-fal-upload-policy"] == "***"
    assert "authorization" not in exchange.request_headers, "it is sent without credentials"
    shown = [repr(vars(one)) for one in fal_ledger.exchanges]
    assert "secret-signature" not in "".join([*shown, repr(vars(fal_uploader.uploads[0]))])


def test_nobody_waits_for_the_bucket(
    fal_runner: RunnerFactory, bucket: respx.Route, fal_faults: Faults, fal_uploader: Uploader
) -> None:
    gate = fal_faults.gate(host="pictures.s3.us-east-1.amazonaws.com")
    url = fal_runner(Saver).post("/", headers=POLICY).json()["url"]
    assert fal_uploader.find(url).state == "pending"
    gate.open()
    until(lambda: fal_uploader.find(url).state == "completed")


def test_a_bucket_that_refuses_leaves_a_dead_url(
    fal_runner: RunnerFactory, fal_http: respx.MockRouter, fal_uploader: Uploader
) -> None:
    text = "<Error><Code>AccessDenied</Code></Error>"
    fal_http.post(BUCKET).respond(403, text=text)
    response = fal_runner(Saver).post("/", headers=POLICY)
    assert response.status_code == 200
    sent = fal_uploader.find(response.json()["url"])
    assert (sent.state, sent.failure) == ("failed", "403 AccessDenied")


def test_a_bucket_that_cannot_be_reached_leaves_a_dead_url(
    fal_runner: RunnerFactory, bucket: respx.Route, fal_faults: Faults, fal_uploader: Uploader
) -> None:
    fal_faults.drop(after=0, host="*.amazonaws.com")
    response = fal_runner(Saver).post("/", headers=POLICY)
    assert fal_uploader.find(response.json()["url"]).failure == (
        "ConnectionResetError: [Errno 104] Connection reset by peer (injected by fal_faults)"
    )


def test_an_answer_that_leads_elsewhere_means_that_it_was_taken(
    fal_runner: RunnerFactory, fal_http: respx.MockRouter, fal_uploader: Uploader
) -> None:
    fal_http.post(BUCKET).respond(303, headers={"location": "https://example.com/thanks"})
    url = fal_runner(Saver).post("/", headers=POLICY).json()["url"]
    assert fal_uploader.find(url).state == "completed"


def test_a_held_file_is_not_in_the_bucket(
    fal_runner: RunnerFactory, bucket: respx.Route, fal_uploader: Uploader
) -> None:
    fal_uploader.hold()
    url = fal_runner(Saver).post("/", headers=POLICY).json()["url"]
    assert not bucket.called
    fal_uploader.complete(url)
    assert bucket.called


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("{", "has to be JSON with a url and fields"),
        ("[]", "has to be JSON with a url and fields"),
        (json.dumps({"url": BUCKET}), "has to be JSON with a url and fields"),
        (json.dumps({"url": BUCKET, "fields": {"key": "a"}}), "has to contain '${filename}'"),
        (json.dumps({"url": "https://example.com/", "fields": FIELDS}), "is no bucket of S3's"),
        (json.dumps({"url": BUCKET.replace("https", "http"), "fields": FIELDS}), "is no bucket"),
    ],
)
def test_a_policy_that_is_none_is_422(fal_cdn: CDN, policy: str, why: str) -> None:
    with node({"X-Fal-File-Name": "a.txt", "x-app-fal-upload-policy": policy}) as client:
        answer = client.post("/v1/uploads", content=b"x")
    assert answer.status_code == 422
    assert why in answer.json()["detail"]


def test_a_name_keeps_its_letters_in_the_bucket(bucket: respx.Route, fal_cdn: CDN) -> None:
    name = {"X-Fal-File-Name": "k%C3%A4tzchen%2F1.png"}
    with node({**POLICY, **name}) as client:
        answer = client.post("/v1/uploads", content=b"x")
    assert answer.json()["file_url"] == f"{BUCKET}out/k%C3%A4tzchen/1.png"
    assert "out/kätzchen/1.png".encode() in bucket.calls[0].request.content


# --- the protocol, for other clients --------------------------------------------------------------


def test_all_answers_have_what_the_sdk_reads(fal_uploader: Uploader) -> None:
    with node() as client:
        accepted = client.post("/v1/uploads", content=b"x")
        session = client.post("/v1/upload-sessions")
        path = f"/v1/upload-sessions/{session.json()['upload_id']}"
        body = client.put(f"{path}/body", content=iter([b"1", b"2"]))
        finished = client.post(f"{path}/finish", json={"size_bytes": 2})
        status = client.get(f"/v1/uploads/{session.json()['upload_id']}")
    one, other = fal_uploader.uploads
    expected = {"upload_id": one.id, "file_url": one.url}
    assert (accepted.status_code, accepted.json()) == (202, {"state": "accepted_local", **expected})
    expected = {"upload_id": other.id, "file_url": other.url}
    signing = {"cdn_signing_requested": False}
    assert session.json() == {"state": "receiving", **expected, **signing}
    assert (session.status_code, body.status_code, body.content) == (201, 204, b"")
    assert (finished.status_code, finished.json()) == (202, {"state": "accepted_local", **expected})
    assert (status.status_code, status.json()) == (200, {"state": "completed", **expected})


def test_without_a_key_it_is_401(fal_cdn: CDN) -> None:
    with node({"X-Fal-File-Name": "a.txt"}) as client:
        answers = [client.post(path) for path in ("/v1/uploads", "/v1/upload-sessions")]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json() == {"detail": "an account key is needed to upload to the CDN"}


@pytest.mark.parametrize("name", [{}, {"X-Fal-File-Name": ""}])
def test_without_a_name_it_is_422(fal_cdn: CDN, name: dict[str, str]) -> None:
    with node({**ACCOUNT, **name}) as client:
        answer = client.post("/v1/uploads", content=b"x")
    assert (answer.status_code, answer.json()) == (422, {"detail": "X-Fal-File-Name is missing"})


@pytest.mark.parametrize(
    ("calls", "status", "why"),
    [
        (["finish 2"], 409, "this session has no body yet"),
        (["body", "body"], 409, "this session has its body already"),
        (["body", "finish 3"], 422, "size_bytes is 3, and 2 bytes came"),
        (["body", 'finish "2"'], 422, 'the body must be {"size_bytes": 123}'),
        (["body", "finish 2", "finish 2"], 409, "this session is over: completed"),
        (["abort", "body"], 409, "this session is over: aborted"),
        (["abort", "abort"], 409, "this session is over: aborted"),
    ],
)
def test_a_session_goes_in_order(fal_cdn: CDN, calls: list[str], status: int, why: str) -> None:
    with node() as client:
        path = f"/v1/upload-sessions/{client.post('/v1/upload-sessions').json()['upload_id']}"
        for call in calls:
            verb, _, size = call.partition(" ")
            if verb == "body":
                answer = client.put(f"{path}/body", content=b"12")
            elif verb == "abort":
                answer = client.delete(path)
            else:
                answer = client.post(f"{path}/finish", content=f'{{"size_bytes": {size}}}')
    assert (answer.status_code, answer.json()) == (status, {"detail": why})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/uploads/none"),
        ("PUT", "/v1/upload-sessions/none/body"),
        ("POST", "/v1/upload-sessions/none/finish"),
        ("DELETE", "/v1/upload-sessions/none"),
        ("GET", "/v2"),
    ],
)
def test_what_is_not_there_is_404(fal_cdn: CDN, method: str, path: str) -> None:
    with node() as client:
        assert client.request(method, path, json={"size_bytes": 1}).status_code == 404


@pytest.mark.parametrize("wait", ["x", "-1", "inf", "nan"])
def test_a_wait_is_a_number_of_seconds(fal_uploader: Uploader, wait: str) -> None:
    identifier = fal_uploader.find(upload()).id
    with node() as client:
        answer = client.get(f"/v1/uploads/{identifier}", params={"wait": wait})
    assert answer.json() == {"detail": f"wait is a number of seconds, not {wait!r}"}
    assert answer.status_code == 422


def test_without_a_wait_the_state_is_told_at_once(fal_uploader: Uploader) -> None:
    fal_uploader.hold()
    identifier = fal_uploader.find(upload()).id
    with node() as client:
        assert client.get(f"/v1/uploads/{identifier}").json()["state"] == "pending"


def test_a_client_that_gives_up_ends_its_wait(fal_uploader: Uploader) -> None:
    # Where it does not, the end of this test waits for it.
    fal_uploader.hold()
    identifier = fal_uploader.find(upload()).id
    with node() as client, pytest.raises(httpx.ReadTimeout):
        client.get(f"/v1/uploads/{identifier}?wait=60", timeout=0.05)


def test_only_its_socket_leads_there(fal_uploader: Uploader) -> None:
    with pytest.raises(EmulatorError, match=r"nothing answers for uploader\.fal"):
        httpx.get("http://uploader.fal/v1/uploads/none")


# --- the socket -----------------------------------------------------------------------------------


def test_its_socket_is_this_users(fal_uploader: Uploader) -> None:
    assert os.environ["FAL_API_SOCKET"] == fal_uploader.socket
    mode = os.lstat(fal_uploader.socket).st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)


@pytest.mark.fal(local_uploader=False)
def test_the_hosts_own_socket_is_out_of_reach(fal_emulator: Emulator) -> None:
    assert os.environ["FAL_API_SOCKET"] == fal_emulator.uploader.socket
    assert "FAL_USE_LOCAL_UPLOADER" not in os.environ


def test_a_path_too_long_for_a_socket_is_avoided(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    server = UnixServer(lambda _: httpx.Response(204), NODE, lambda: None, lambda _: None)
    server.place(str(folder), "api.sock")
    server.start()
    assert len(server.path) < 100
    with httpx.Client(transport=httpx.HTTPTransport(uds=server.path)) as client:
        assert client.get("http://node/").status_code == 204
    server.remove()
    assert not os.path.exists(os.path.dirname(server.path))


# --- a failing test -------------------------------------------------------------------------------


def test_a_failing_tests_report_lists_what_is_not_there(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from fal.toolkit import File

        @pytest.mark.fal(local_uploader=True)
        def test_it(fal_uploader):
            fal_uploader.hold()
            urls = [File.from_bytes(b"12345", file_name=name).url for name in ("a.txt", "b.txt")]
            fal_uploader.fail(urls[1])
            assert not urls
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly")
    result.stdout.fnmatch_lines(
        [
            "*fal: uploads by way of the node that are not there*",
            "NodeUpload: https://v3b.fal.media/*_a.txt, 5 bytes, pending",
            "NodeUpload: https://v3b.fal.media/*_b.txt, 5 bytes, failed: the CDN refused it",
        ]
    )


# --- whose file it is -----------------------------------------------------------------------------


class Maker(fal.App):
    @fal.endpoint("/")
    def make(self) -> dict[str, str]:
        return {"url": str(File.from_bytes(b"made", file_name="made.txt").url)}


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_what_a_runner_hands_over_is_its_callers(
    isolation: str, fal_runner: RunnerFactory, fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    bob = fal_emulator.user("bob")
    hidden = {"x-fal-object-lifecycle-preference": '{"initial_acl": {"default": "hide"}}'}
    runner = fal_runner(Maker, isolation=isolation)
    url = runner.post("/", headers=hidden, caller=bob).json()["url"]
    assert fal_cdn.info(url).owners == ("bob", "tester")
    assert (httpx.get(url).status_code, bob.get(url).content) == (404, b"made")


def test_who_acts_as_another_user_hands_over_that_users_files(
    fal_emulator: Emulator, fal_cdn: CDN
) -> None:
    with fal_emulator.user("bob"):
        assert fal_cdn.info(upload()).owner == "bob"


def test_a_rule_for_an_unknown_user_is_dropped_there_too(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    rules = {"default": "hide", "rules": [{"user": "bob", "decision": "allow"}]}
    url = upload(object_lifecycle_preference={"initial_acl": rules})
    assert fal_cdn.info(url).acl.to_json() == {"default": "hide", "rules": []}
    assert fal_ledger.problems == [
        "#1 POST http://uploader.fal/v1/uploads: the rule for 'bob' was dropped: the platform "
        'knows no such user. Write fal_emulator.user("bob") before this, or '
        '@pytest.mark.fal(users=["bob"])'
    ]


# --- several at once ------------------------------------------------------------------------------


@pytest.mark.fal(uploader_capacity=1)
def test_a_node_is_full_for_those_who_come_at_once_too(fal_uploader: Uploader) -> None:
    fal_uploader.hold()
    begun = threading.Barrier(4)

    def slowly() -> Iterator[bytes]:
        yield b"1"
        begun.wait(10)  # all of them were let in before one of them was accepted
        yield b"2"

    def send(number: int) -> int:
        with node({**ACCOUNT, "X-Fal-File-Name": f"{number}.txt"}) as client:
            return client.post("/v1/uploads", content=slowly()).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(send, range(4)))
    assert statuses == [202, 429, 429, 429]
    assert len(fal_uploader.pending) == 1


def test_a_session_is_finished_once(fal_uploader: Uploader) -> None:
    with node({**ACCOUNT, "X-Fal-File-Name": "a.txt"}) as client:
        session = client.post("/v1/upload-sessions").json()["upload_id"]
        client.put(f"/v1/upload-sessions/{session}/body", content=b"12345")

        def finish(_: int) -> int:
            with node(ACCOUNT) as other:
                path = f"/v1/upload-sessions/{session}/finish"
                return other.post(path, json={"size_bytes": 5}).status_code

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(finish, range(4))) == [202, 409, 409, 409]


class Forking(fal.App):
    @fal.endpoint("/")
    def make(self) -> list[str]:
        with multiprocessing.get_context("fork").Pool(4) as pool:
            return pool.map(_make_one, range(24), chunksize=1)


def _make_one(number: int) -> str:
    return str(File.from_bytes(b"x", file_name=f"{number}.txt", fallback_repository=None).url)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_forked_workers_of_an_app_use_the_node_too(
    fal_runner: RunnerFactory, fal_uploader: Uploader, fal_ledger: Ledger
) -> None:
    urls = fal_runner(Forking).post("/").json()
    assert sorted(urls) == sorted(one.url for one in fal_uploader.uploads)
    assert direct(fal_ledger) == 0


def test_a_client_of_any_name_harms_nobody(fal_uploader: Uploader) -> None:
    for number in range(5):
        with socket.socket(socket.AF_UNIX) as client:
            client.bind(b"\0\xff\xfe%d" % number)
            client.connect(fal_uploader.socket)
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 404")
    assert upload()


def test_a_long_wait_is_none(fal_uploader: Uploader) -> None:
    url = upload()
    identifier = fal_uploader.find(url).id
    with node(ACCOUNT) as client:
        assert client.get(f"/v1/uploads/{identifier}?wait=1e20").json()["state"] == "completed"


def test_a_field_of_a_policy_that_cannot_be_sent_is_a_failure(
    fal_uploader: Uploader, fal_http: respx.MockRouter
) -> None:
    fal_http.post(BUCKET).respond(204)
    policy = {"url": BUCKET, "fields": {"key": "a", "x": {"a": 1}}}
    headers = {"X-Fal-File-Name": "a.txt", "x-app-fal-upload-policy": json.dumps(policy)}
    with node(headers) as client:
        answer = client.post("/v1/uploads", content=b"x")
    if answer.status_code == 202:
        (sent,) = fal_uploader.uploads
        assert (sent.state, (sent.failure or "").partition(":")[0]) == ("failed", "TypeError")
    else:
        assert answer.status_code == 422


def test_a_bucket_that_does_not_answer_holds_no_runner(
    fal_runner: RunnerFactory,
    fal_http: respx.MockRouter,
    fal_uploader: Uploader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_uploader, "BUCKET_SECONDS", 0.05)
    answers = threading.Event()

    def wait(request: httpx.Request) -> httpx.Response:
        answers.wait(20)
        return httpx.Response(204)

    fal_http.post(BUCKET).mock(side_effect=wait)
    url = fal_runner(Saver).post("/", headers=POLICY).json()["url"]
    assert fal_uploader.find(url).state == "pending"
    monkeypatch.setattr(node_uploader, "END_SECONDS", 0.05)
    with pytest.raises(EmulatorError) as caught:
        fal_uploader.end()
    assert str(caught.value) == (
        f"The node's uploader waits for a bucket that does not answer: {url}. Have the route or "
        "the server that the test made for it answer before the test ends."
    )
    answers.set()
    until(lambda: fal_uploader.find(url).state == "completed")
