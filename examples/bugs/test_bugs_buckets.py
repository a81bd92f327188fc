"""Bugs of an app's own buckets, and of those that a caller brings along.

Without postponed annotations: the apps are pickled.
"""

import json
import time

import fal
import httpx
import pytest
from fal.toolkit import File
from fal.toolkit.file.providers.gcp import GoogleStorageRepository
from fal.toolkit.file.providers.r2 import R2Repository
from fal.toolkit.file.providers.s3 import S3Repository
from gallery import bug
from pydantic import BaseModel

OWN = "An app's own buckets"
CALLERS = "A caller's bucket"

#: Where the caller's bucket is.
HOST = "outputs.s3.amazonaws.com"

ONE_DAY = {"object_lifecycle_preference": {"expiration_duration_seconds": 24 * 3600}}


class Made(BaseModel):
    url: str


class Films(fal.App):
    @fal.endpoint("/")
    def make(self) -> Made:
        file = File.from_bytes(b"frames", file_name="a.mp4", content_type="video/mp4")
        return Made(url=file.url)

    def teardown(self):
        print("teardown: the queue is saved")


def ask(runner, post):
    """Have a film made into the caller's bucket; its URL."""
    response = runner.post("/", headers={"x-app-fal-upload-policy": json.dumps(post)})
    assert response.status_code == 200
    return response.json()["url"]


@pytest.fixture
def bucket(fal_buckets):
    """The caller's, whose objects everybody may read."""
    return fal_buckets.create("outputs", public=True)


@pytest.fixture
def own(fal_buckets, monkeypatch):
    """The app's bucket "films", and the repository that writes there, by the provider's name."""
    made = []

    def make(provider):
        for name, value in fal_buckets.secrets.items():
            monkeypatch.setenv(name, value)
        fal_buckets.create("films", provider)
        kinds = {"s3": S3Repository, "r2": R2Repository, "gcs": GoogleStorageRepository}
        made.append(kinds[provider]("films"))
        return made[-1]

    yield make
    for repository in made:
        for client in ("_s3_client", "_storage_client"):
            if getattr(repository, client, None) is not None:
                getattr(repository, client).close()
        if hasattr(repository, "_s3_resource"):
            repository._s3_resource.meta.client.close()


# --- an app's own buckets ------------------------------------------------------------------------


@bug(
    "P15",
    symptom="our links to S3 answer 403 after a quarter of an hour",
    topic=OWN,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.parametrize("provider", ["s3", "r2"])
def test_links_die_after_15_minutes(own, fal_clock, fal_buckets, provider):
    """Links to outputs in S3 and R2 die after 15 minutes, whatever lifetime is asked for.

    Production: a customer opens the mail with the film after lunch: 403.
    Expected: what object_lifecycle_preference says, a day; or as long as the object is there.
    Happens: the repositories return a presigned URL of 900 seconds. The preference is taken and
        ignored, so the object itself is there for ever.
    Avoid: S3Repository(..., url_expiration=7 * 24 * 3600), which is the longest there is; or store
        the key and sign a new URL for each reader.
    """
    fal_clock.freeze()
    repository = own(provider)
    file = File.from_bytes(b"film", repository=repository, save_kwargs=ONE_DAY)
    fal_clock.advance(minutes=14)
    assert httpx.get(file.url).content == b"film"

    fal_clock.advance(minutes=1)
    gone = httpx.get(file.url)
    assert gone.status_code == 403
    assert "Request has expired" in gone.text

    fal_clock.advance(days=400)
    assert len(fal_buckets["films"].keys) == 1


@bug(
    "U9",
    "P15",
    symptom="links that should live for 15 minutes can be opened all day",
    topic=OWN,
    seen=("1.75.5", "1.83.0"),
)
def test_googles_links_live_15_hours(own, fal_clock):
    """Links to Google's storage live for 15 hours: a number of seconds is taken for minutes.

    Production: a link that was sent to the wrong person works for the rest of the day.
    Expected: 15 minutes, as with S3 and R2; the constant of all three says 60 * 15.
    Happens: the repository passes the 900 as minutes.
    Avoid: GoogleStorageRepository(..., url_expiration=15).
    """
    pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")
    fal_clock.freeze()
    file = File.from_bytes(b"film", repository=own("gcs"))
    assert "X-Goog-Expires=54000" in file.url

    fal_clock.advance(hours=14, minutes=59)
    assert httpx.get(file.url).content == b"film"
    fal_clock.advance(minutes=1)
    assert httpx.get(file.url).status_code == 400


# --- a caller's bucket ---------------------------------------------------------------------------


@bug(
    "P13",
    symptom="the link in the answer is a 404 for a moment",
    topic=CALLERS,
    seen=("1.80.0", "1.83.0"),
)
def test_the_link_comes_before_the_file(fal_runner, fal_faults, bucket):
    """With a bucket of the caller's, the answer has a link to a file that is not there yet.

    Production: the caller downloads as soon as the answer is in, and fails now and then; the more,
        the larger the film.
    Expected: a link to a file; on fal's own CDN a reader waits until the upload is through.
    Happens: the upload runs in the background, so that the runner is free. S3 knows nothing of it.
    Avoid: in the caller, try again on 404 for a while; there is no sign that it will never come.
    """
    gate = fal_faults.gate(host=HOST, method="POST", of="request")
    url = ask(fal_runner(Films), bucket.presigned_post())
    gate.wait()
    assert httpx.get(url).status_code == 404

    gate.open()
    bucket.wait_for()
    assert httpx.get(url).content == b"frames"


@bug(
    "U11",
    "P13",
    symptom="the request succeeded, but its output never arrived in our bucket",
    topic=CALLERS,
    seen=("1.80.0", "1.83.0"),
)
def test_a_refused_upload_is_seen_by_nobody(fal_runner, fal_clock, fal_ledger, bucket):
    """When the caller's bucket refuses the upload, the request has succeeded, and is billed.

    Production: the policy was signed for ten minutes and the request waited for twelve in the
        queue. The caller pays for a film that is nowhere.
    Expected: an error; or at least a word to the caller.
    Happens: the answer is long out when S3 says 403. One line in the runner's log tells it.
    Avoid: sign policies for longer than the longest queue and run together, and check that the
        object is there.
    """
    fal_clock.freeze()
    runner = fal_runner(Films)
    post = bucket.presigned_post(expires_in=600)
    fal_clock.advance(minutes=12)
    url = ask(runner, post)
    runner.stop()

    assert httpx.get(url).status_code == 404
    assert fal_ledger.requests(host=HOST, method="POST")[0].status == 403
    assert '"status": 403, "s3_error": "AccessDenied"' in runner.output


@bug(
    "N41",
    symptom="no output ever arrives in our bucket, though the policy is what boto3 made",
    topic=CALLERS,
    seen=("1.80.0", "1.83.0"),
)
def test_a_plain_policy_of_boto3_is_refused(fal_runner, fal_ledger, bucket):
    """A policy made by generate_presigned_post() as its documentation shows it never works.

    Production: every upload of this caller is lost, and every request succeeds.
    Expected: an upload; or 422, as the policy can be read before the app runs.
    Happens: the SDK adds a Content-Type to the form. S3 refuses each field that no condition of the
        policy names.
    Avoid: Conditions=[["starts-with", "$Content-Type", ""]].
    """
    runner = fal_runner(Films)
    url = ask(runner, bucket.presigned_post(conditions=[]))
    runner.stop()

    assert httpx.get(url).status_code == 404
    [refused] = fal_ledger.requests(host=HOST, method="POST")
    assert refused.notes == [
        "AccessDenied: Invalid according to Policy: Extra input fields: content-type"
    ]


@bug(
    "U11",
    "P30",
    symptom="the last output before a scale-down is missing in our bucket",
    topic=CALLERS,
    seen=("1.80.0", "1.83.0"),
)
def test_an_upload_is_lost_with_its_process(fal_runner, fal_faults, bucket):
    """A process that ends right after its answer takes the upload with it.

    Production: the runner crashes, or is killed, after a request that succeeded; or a script ends
        as soon as it has printed the URL.
    Expected: a URL is a promise.
    Happens: the upload is a daemon thread. Nothing waits for it but the lifespan's end, for five
        seconds, and nobody takes it up again.
    Avoid: in scripts, fal.toolkit.file._upload_policy.drain() at the end; for what must not be
        lost, an upload of your own before the answer.
    """
    gate = fal_faults.gate(host=HOST, method="POST", of="request")
    runner = fal_runner(Films, isolation="process")
    url = ask(runner, bucket.presigned_post())
    gate.wait()
    runner.kill()

    assert bucket.keys == []
    assert httpx.get(url).status_code == 404


@bug(
    "N42",
    "P30",
    symptom="teardown is not called when the runner is shut down after a request",
    topic=CALLERS,
    seen=("1.80.0", "1.83.0"),
)
def test_a_slow_bucket_costs_the_teardown(fal_runner, fal_http, fal_clock, bucket):
    """An upload that hangs uses up the whole grace period, and teardown() is never called.

    Production: one caller's bucket is slow. Whatever teardown() saves is lost with each scale-down.
    Expected: time for teardown(): its own, or what the wait leaves of the grace period.
    Happens: the SDK waits up to 5 seconds for uploads before teardown(), and the platform kills the
        runner after 5 seconds.
    Avoid: termination_grace_period_seconds of more than 5, wherever callers may bring a bucket.
    """

    def hang(request):
        while runner.state in ("IDLE", "RUNNING"):
            time.sleep(0.001)
        time.sleep(6)  # the clock stands still, so that this takes no time
        return httpx.Response(204)

    fal_clock.freeze()
    fal_http.post(f"https://{HOST}/").mock(side_effect=hang)
    runner = fal_runner(Films)
    ask(runner, bucket.presigned_post())
    runner.stop()
    assert "teardown" not in runner.output


@bug(
    "N43",
    symptom="our bucket's events come twice for one output",
    topic=CALLERS,
    seen=("1.80.0", "1.83.0"),
)
def test_a_lost_answer_uploads_again(fal_runner, fal_clock, fal_faults, fal_ledger, bucket):
    """When S3's answer is lost, the file is uploaded again, up to five times.

    Production: each attempt is an event of the bucket: whatever the caller has listening to it runs
        twice for one output.
    Expected: once, or a hint that events may come twice.
    Happens: a lost connection is tried again, and the first attempt had arrived.
    Avoid: make what listens to the bucket's events look at the key, which stays the same.
    """
    fal_clock.freeze()
    fal_faults.drop(times=1, host=HOST, method="POST")
    runner = fal_runner(Films)
    ask(runner, bucket.presigned_post())
    runner.stop()
    assert len(fal_ledger.requests(host=HOST, method="POST")) == 2
    assert len(bucket.keys) == 1
