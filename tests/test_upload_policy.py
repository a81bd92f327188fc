"""A caller's own bucket: ``x-app-fal-upload-policy`` and uploads in the background [§1.13].

Without postponed annotations: the apps are pickled.
"""

import json
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import fal
import httpx
import pytest
from fal.toolkit import File
from fastapi import WebSocket
from pydantic import BaseModel
from versions import since

pytestmark = since("1.80.0", "a caller's upload policy is known")

HOST = "outputs.s3.amazonaws.com"
BOTH = pytest.mark.parametrize("isolation", ["thread", "process"])


class Wanted(BaseModel):
    count: int = 1
    seconds: float = 0
    repository: str = "fal_v3"
    content_type: str = "video/mp4"
    name: str = "a b.mp4"


class Made(BaseModel):
    urls: list[str]


class Films(fal.App):
    @fal.endpoint("/")
    def make(self, wanted: Wanted) -> Made:
        time.sleep(wanted.seconds)
        urls = [
            File.from_bytes(
                b"frames",
                file_name=wanted.name,
                content_type=wanted.content_type,
                repository=wanted.repository,
            ).url
            for _ in range(wanted.count)
        ]
        return Made(urls=urls)

    @fal.endpoint("/path")
    def make_from_path(self, wanted: Wanted) -> Made:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "a.mp4"
            path.write_bytes(b"frames")
            return Made(urls=[File.from_path(path, content_type="video/mp4").url])

    @fal.endpoint("/thread")
    def make_in_a_thread(self, wanted: Wanted) -> Made:
        urls = []
        thread = threading.Thread(target=lambda: urls.append(File.from_bytes(b"frames").url))
        thread.start()
        thread.join()
        return Made(urls=urls)

    @fal.endpoint("/talk", is_websocket=True)
    async def talk(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()


class SaysGoodbye(Films):
    def teardown(self):
        print("teardown")


@pytest.fixture
def bucket(fal_buckets):
    """The caller's."""
    return fal_buckets.create("outputs", public=True)


def policy(post: Any) -> dict[str, str]:
    return {"x-app-fal-upload-policy": json.dumps(post)}


# --- an upload ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("path", ["/", "/path"])
def test_the_output_goes_to_the_callers_bucket(
    fal_runner, fal_cdn, fal_ledger, bucket, isolation, path
):
    runner = fal_runner(Films, isolation=isolation)
    response = runner.post(path, json={}, headers=policy(bucket.presigned_post()))
    [url] = response.json()["urls"]
    runner.stop()
    [key] = bucket.keys
    assert url == bucket.url(key)
    assert key.startswith("uploads/")
    assert key.endswith("-a b.mp4" if path == "/" else "-a.mp4")
    found = httpx.get(url)
    assert (found.content, found.headers["content-type"]) == (b"frames", "video/mp4")
    assert fal_cdn.files == []
    [post] = fal_ledger.requests(host=HOST, method="POST")
    assert (post.status, post.runner) == (204, runner.name)


def test_without_the_header_it_goes_to_the_cdn(fal_runner, fal_cdn, bucket):
    [url] = fal_runner(Films).post("/", json={}).json()["urls"]
    assert fal_cdn.get(url) == b"frames"
    assert bucket.keys == []


def test_what_boto3_has_signed_does_as_well(fal_runner, bucket, fal_emulator):
    from boto import client

    s3 = client(None)
    conditions = [["starts-with", "$Content-Type", ""]]
    post = s3.generate_presigned_post("outputs", "dir/${filename}", Conditions=conditions)
    s3.close()
    runner = fal_runner(Films)
    runner.post("/", json={}, headers=policy(post))
    assert [key[:4] for key in bucket.wait_for()] == ["dir/"]


def test_a_redirect_counts_as_stored(fal_runner, bucket, capsys):
    post = bucket.presigned_post(
        conditions=[
            ["starts-with", "$Content-Type", ""],
            ["starts-with", "$success_action_redirect", ""],
        ]
    )
    post["fields"]["success_action_redirect"] = "https://caller.example/done"
    runner = fal_runner(Films)
    runner.post("/", json={}, headers=policy(post))
    runner.stop()
    assert len(bucket.keys) == 1
    assert "upload_policy_failure" not in runner.output


def test_a_thread_of_the_apps_own_does_not_know_the_policy(fal_runner, fal_cdn, bucket):
    headers = policy(bucket.presigned_post())
    [url] = fal_runner(Films).post("/thread", json={}, headers=headers).json()["urls"]
    assert fal_cdn.get(url) == b"frames"


# --- before it is there ---------------------------------------------------------------------------


@BOTH
def test_the_url_is_dead_until_the_upload_is_done(fal_runner, fal_faults, bucket, isolation):
    gate = fal_faults.gate(host=HOST, method="POST", of="request")
    runner = fal_runner(Films, isolation=isolation)
    headers = policy(bucket.presigned_post())
    [url] = runner.post("/", json={}, headers=headers).json()["urls"]
    gate.wait()
    assert httpx.get(url).status_code == 404

    gate.open()
    bucket.wait_for()
    assert httpx.get(url).content == b"frames"


def test_a_stopping_runner_waits_for_it(fal_runner, fal_faults, bucket):
    gate = fal_faults.gate(host=HOST, method="POST", of="request")
    runner = fal_runner(SaysGoodbye)
    runner.post("/", json={}, headers=policy(bucket.presigned_post()))
    gate.wait()
    threading.Timer(0.05, gate.open).start()
    runner.stop()
    assert len(bucket.keys) == 1
    assert "teardown" in runner.output


def test_it_does_not_wait_for_ever(fal_runner, fal_faults, bucket, monkeypatch):
    from fal.toolkit.file._upload_policy import drain

    # The SDK's 5 seconds are real ones.
    monkeypatch.setattr(drain, "__defaults__", (0.05,))
    gate = fal_faults.gate(host=HOST, method="POST", of="request")
    runner = fal_runner(SaysGoodbye)
    runner.post("/", json={"count": 2}, headers=policy(bucket.presigned_post()))
    gate.wait()
    runner.stop()
    assert bucket.keys == []
    [line] = [line for line in runner.output.splitlines() if "abandoned" in line]
    told = json.loads(line)["upload_policy_abandoned_at_shutdown"]
    assert told == {"unfinished": 2, "pending": 2, "timeout": 0.05}
    assert "teardown" in runner.output
    gate.open()


@pytest.mark.fal(termination_grace_period=timedelta(seconds=0.2))
def test_a_process_that_is_killed_meanwhile_has_lost_it(fal_runner, fal_faults, bucket):
    gate = fal_faults.gate(host=HOST, method="POST", of="request")
    runner = fal_runner(SaysGoodbye, isolation="process")
    response = runner.post("/", json={}, headers=policy(bucket.presigned_post()))
    gate.wait()
    runner.stop()
    assert bucket.keys == []
    assert "teardown" not in runner.output
    assert httpx.get(response.json()["urls"][0]).status_code == 404


def test_a_test_that_ends_in_the_middle_leaves_nothing_behind(fal_emulator, fal_buckets):
    bucket = fal_buckets.create("outputs")
    gate = fal_emulator.faults.gate(host=HOST, method="POST", of="request")
    runner = fal_emulator.runner(Films)
    runner.post("/", json={}, headers=policy(bucket.presigned_post()))
    gate.wait()
    begun = time.monotonic()
    fal_emulator.stop()
    assert time.monotonic() - begun < 2
    assert not [t for t in threading.enumerate() if t.name == "fal-upload-policy"]
    fal_emulator.start()


def test_an_upload_that_is_stuck_ends_with_its_test(fal_emulator, fal_buckets, monkeypatch):
    import emulator.sdk

    monkeypatch.setattr(emulator.sdk, "DRAIN_SECONDS", 0.05)
    asleep, wake = threading.Event(), threading.Event()

    def sleep(seconds):
        asleep.set()
        wake.wait(5)

    bucket = fal_buckets.create("outputs")
    fal_emulator.faults.status(500, host=HOST, method="POST")
    runner = fal_emulator.runner(Films)
    with monkeypatch.context() as patch:
        patch.setattr("fal.toolkit.file._upload_policy.time.sleep", sleep)
        patch.setattr("fal.toolkit.file._upload_policy.drain.__defaults__", (0.05,))
        runner.post("/", json={}, headers=policy(bucket.presigned_post()))
        asleep.wait(5)
        fal_emulator.stop()
        fal_emulator.start()
        wake.set()
        for thread in threading.enumerate():
            if thread.name == "fal-upload-policy":
                thread.join(5)
    # Awake, it did not try once more: without the emulation, that would be the real bucket.
    assert fal_emulator.ledger.exchanges == []


# --- what goes wrong ------------------------------------------------------------------------------


def test_what_the_bucket_refuses_the_caller_does_not_learn(fal_runner, fal_ledger, bucket):
    conditions = [["starts-with", "$Content-Type", ""], ["content-length-range", 100, 200]]
    strict = bucket.presigned_post(conditions=conditions)
    runner = fal_runner(Films)
    response = runner.post("/", json={}, headers=policy(strict))
    assert response.status_code == 200
    runner.stop()
    assert httpx.get(response.json()["urls"][0]).status_code == 404
    [post] = fal_ledger.requests(host=HOST, method="POST")
    assert (post.status, len(post.notes)) == (400, 1)
    assert post.notes[0].startswith("EntityTooSmall: ")
    assert '"status": 400, "s3_error": "EntityTooSmall"' in runner.output


def test_a_policy_expires_while_the_app_computes(fal_runner, fal_ledger, fal_clock, bucket):
    fal_clock.freeze()
    runner = fal_runner(Films)
    headers = policy(bucket.presigned_post(expires_in=600))
    response = runner.post("/", json={"seconds": 601}, headers=headers)
    assert response.status_code == 200
    runner.stop()
    assert bucket.keys == []
    [post] = fal_ledger.requests(host=HOST, method="POST")
    assert post.notes == ["AccessDenied: Invalid according to Policy: Policy expired."]


@BOTH
def test_a_passing_fault_is_tried_again(fal_runner, fal_faults, fal_clock, bucket, isolation):
    fal_clock.freeze()
    fal_faults.status(503, times=2, host=HOST, method="POST")
    fal_faults.drop(times=1, host=HOST, method="POST", of="request")
    runner = fal_runner(Films, isolation=isolation)
    began = fal_clock.now()
    runner.post("/", json={}, headers=policy(bucket.presigned_post()))
    assert len(bucket.wait_for()) == 1
    assert timedelta(seconds=3) < fal_clock.now() - began < timedelta(seconds=11)


@pytest.mark.fal(termination_grace_period=timedelta(minutes=5))
def test_five_times_at_most(fal_runner, fal_faults, fal_clock, fal_ledger, bucket):
    fal_clock.freeze()
    fal_faults.status(500, host=HOST, method="POST")
    runner = fal_runner(Films)
    runner.post("/", json={}, headers=policy(bucket.presigned_post()))
    runner.stop()
    assert len(fal_ledger.requests(host=HOST, method="POST")) == 5
    assert bucket.keys == []


def test_a_runner_that_is_killed_between_two_attempts_ends_quietly(
    fal_runner, fal_http, fal_clock, bucket
):
    def fail_once_it_stops(request):
        while runner.state in ("IDLE", "RUNNING"):
            time.sleep(0.001)
        return httpx.Response(500)

    fal_clock.freeze()
    route = fal_http.post(f"https://{HOST}/").mock(side_effect=fail_once_it_stops)
    runner = fal_runner(Films)
    runner.post("/", json={}, headers=policy(bucket.presigned_post()))
    runner.stop()  # within 5 seconds on the clock, which the pauses use up
    assert 2 <= route.call_count <= 4
    assert bucket.keys == []


def test_too_many_at_once_are_refused(fal_runner, fal_faults, bucket):
    gate = fal_faults.gate(host=HOST, method="POST", of="request")
    runner = fal_runner(Films)
    headers = policy(bucket.presigned_post())
    assert runner.post("/", json={"count": 64}, headers=headers).status_code == 200
    refused = runner.post("/", json={}, headers=headers)
    assert refused.status_code == 424
    assert "too many uploads still in flight" in refused.json()["detail"]
    gate.open()
    assert len(bucket.wait_for(64)) == 64
    assert runner.post("/", json={}, headers=headers).status_code == 200


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ("no json", "not valid JSON"),
        ([], "expected a JSON object"),
        ({"url": "https://s3.example/outputs"}, "must be an HTTPS S3 upload URL"),
        ({"url": "http://outputs.s3.amazonaws.com/"}, "must be an HTTPS S3 upload URL"),
        ({"url": "https://outputs.s3.amazonaws.com:8443/"}, "port 8443 is not allowed"),
        ({"url": "https://outputs.s3.amazonaws.com/a"}, "must point at the bucket root"),
        ({"fields": {"key": "a.mp4"}}, "fields.key must contain '${filename}'"),
        ({"fields": None}, "must contain object 'fields'"),
    ],
)
def test_a_malformed_policy_is_refused_before_the_app_runs(
    fal_runner, fal_ledger, bucket, change, detail
):
    post = bucket.presigned_post()
    value = json.dumps({**post, **change} if isinstance(change, dict) else change)
    header = {"x-app-fal-upload-policy": change if isinstance(change, str) else value}
    response = fal_runner(Films).post("/", json={}, headers=header)
    assert response.status_code == 422
    assert detail in response.json()["detail"]
    assert response.headers["x-fal-billable-units"] == "0"
    assert fal_ledger.requests(host=HOST) == []


def test_an_output_that_the_app_puts_elsewhere_is_refused(fal_runner, bucket):
    headers = policy(bucket.presigned_post())
    response = fal_runner(Films).post("/", json={"repository": "in_memory"}, headers=headers)
    assert response.status_code == 422
    assert "this output is written to in_memory" in response.json()["detail"]


def test_a_signed_content_type_has_to_be_the_outputs(fal_runner, bucket):
    post = bucket.presigned_post(conditions=[{"Content-Type": "image/png"}])
    post["fields"]["Content-Type"] = "image/png"
    response = fal_runner(Films).post("/", json={}, headers=policy(post))
    assert response.status_code == 422
    assert "a signed Content-Type cannot be changed" in response.json()["detail"]


def test_a_websocket_with_a_policy_is_refused(fal_runner, bucket):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    runner = fal_runner(Films, isolation="process")
    url = f"ws://127.0.0.1:{runner.port}/talk"
    with connect(url):
        pass
    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(url, additional_headers=policy(bucket.presigned_post())),
    ):
        pass


# --- waiting --------------------------------------------------------------------------------------


def test_what_does_not_come_is_told(bucket):
    bucket.put("a", b"x")
    with pytest.raises(AssertionError) as error:
        bucket.wait_for(2, seconds=0.01)
    assert str(error.value) == (
        "2 objects did not come into the bucket 'outputs' within 0.01 s: there is a. Look at "
        'fal_ledger.requests(method="POST") for what became of the uploads.'
    )


# --- by way of the node ---------------------------------------------------------------------------


@since("1.82.0", "the SDK hands files to the node")
@pytest.mark.fal(local_uploader=True)
@BOTH
def test_the_node_brings_an_output_to_the_callers_bucket(
    fal_runner, fal_cdn, fal_uploader, bucket, isolation
):
    response = fal_runner(Films, isolation=isolation).post(
        "/", json={}, headers=policy(bucket.presigned_post())
    )
    [url] = response.json()["urls"]
    assert fal_uploader.find(url).state == "completed"
    assert httpx.get(url).content == b"frames"
    assert [bucket.url(key) for key in bucket.keys] == [url]
    assert fal_cdn.files == []


@since("1.82.0", "the SDK hands files to the node")
@pytest.mark.fal(local_uploader=True)
def test_a_policy_that_expires_on_the_node_leaves_a_dead_url(
    fal_runner, fal_uploader, fal_clock, bucket
):
    fal_clock.freeze()
    fal_uploader.hold()
    post = bucket.presigned_post(expires_in=60)
    response = fal_runner(Films).post("/", json={}, headers=policy(post))
    fal_clock.advance(seconds=61)
    fal_uploader.release()
    [url] = response.json()["urls"]
    assert fal_uploader.find(url).failure == "403 AccessDenied"
    assert bucket.keys == []
