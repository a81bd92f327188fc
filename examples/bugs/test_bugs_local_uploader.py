"""Bugs of uploads by way of the node: a URL is out before there is anything behind it."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import fal
import httpx
import pytest
from fal.toolkit import File
from fal.toolkit.exceptions import FileUploadException
from gallery import bug

TOPIC = "Uploads by way of the node"
SEEN = ("1.82.0", "1.83.0")
NODE = "uploader.fal"


class Painter(fal.App):
    @fal.endpoint("/")
    def paint(self) -> File:
        return File.from_bytes(b"pixels", "image/png", "painting.png")

    @fal.endpoint("/careful")
    def paint_carefully(self) -> File:
        options = {"wait_for_completion": True}
        return File.from_bytes(b"pixels", "image/png", "painting.png", save_kwargs=options)

    @fal.endpoint("/stubborn")
    def paint_stubbornly(self) -> File:
        from fal.toolkit.exceptions import FileUploadException

        for _ in range(3):
            try:
                return File.from_bytes(b"pixels", "image/png", "painting.png")
            except FileUploadException as error:
                failed = error
        raise failed

    @fal.endpoint("/film")
    def announce_a_film(self) -> dict:
        self.film = File.reserve("video/mp4", "film.mp4")
        return {"url": self.film.url}

    @fal.endpoint("/film/ready")
    def finish_the_film(self) -> File:
        return self.film.complete(b"frames")


@bug(
    "P13",
    symptom="some requests succeed, and their file is never there",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.fal(local_uploader=True)
def test_a_crash_of_the_node_loses_files_of_requests_that_succeeded(
    fal_runner, fal_uploader, fal_clock, fal_ledger
):
    """When the node's uploader dies with a file that it had accepted, its URL stays dead.

    Production: after a node was lost, customers have links of successful requests to nothing.
    Expected: a request that succeeded has its output.
    Happens: the toolkit returns the URL when the node has the bytes, not when the CDN has them.
    Avoid: save_kwargs={"wait_for_completion": True} where the file matters more than the time.
    """
    fal_clock.freeze()  # nobody waits for what does not come
    runner = fal_runner(Painter)
    fal_uploader.hold()
    response = runner.post("/")
    fal_uploader.crash()
    assert response.status_code == 200
    assert httpx.get(response.json()["url"]).status_code == 404
    assert fal_ledger.exchanges[-1].notes == [
        "the file's upload has begun and is not finished, and never will be: the node's uploader "
        "crashed with its bytes"
    ]

    fal_uploader.restart()
    fal_clock.on(timedelta(seconds=30), fal_uploader.crash)
    assert runner.post("/careful").status_code == 500


@bug(
    "P13",
    symptom="the link works a minute later, but not when our service reads it at once",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.fal(local_uploader=True, uploader_delay=timedelta(seconds=30))
def test_a_link_is_faster_than_its_file(fal_runner, fal_clock):
    """Who reads an output the moment the request is over may be faster than the node.

    Production: under load a pipeline's next step finds 404, and its retry a minute later works.
    Expected: what was returned can be read.
    Happens: the node has the file and the CDN has not; a reader waits there for a while, and for
        how long is not known (here: 10 seconds).
    Avoid: save_kwargs={"wait_for_completion": True}; or readers that try again.
    """
    fal_clock.freeze()
    runner = fal_runner(Painter)
    url = runner.post("/").json()["url"]
    assert httpx.get(url).status_code == 404
    fal_clock.advance(minutes=1)
    assert httpx.get(url).content == b"pixels"

    url = runner.post("/careful").json()["url"]
    assert httpx.get(url).content == b"pixels"


@bug(
    *("P13", "P18"),
    symptom="our logs say that everything was uploaded, and some files are not there",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.fal(local_uploader=True, content_check="refuse")
def test_the_cdn_refuses_when_nobody_listens_any_more(fal_clock, fal_uploader):
    """What the CDN refuses after the node has accepted it is refused to nobody.

    Production: files with a wrong content type have links that never work, and no log says why.
    Expected: the error that an upload to the CDN itself gets.
    Happens: the node answers before it asks the CDN, and who uploaded has gone on.
    Avoid: declare the right type; save_kwargs={"wait_for_completion": True} has the reason.
    """
    fal_clock.freeze()
    png = b"\x89PNG\r\n\x1a\n"
    file = File.from_bytes(png, "image/jpeg", "cat.jpg")
    assert httpx.get(file.url).status_code == 404
    reason = "the content is image/png, but image/jpeg was declared"
    assert fal_uploader.find(file.url).failure == reason

    with pytest.raises(FileUploadException, match=reason):
        File.from_bytes(png, "image/jpeg", "cat.jpg", save_kwargs={"wait_for_completion": True})


@bug(
    "P13",
    symptom="the link to a film that was being made never worked after the runner was replaced",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.fal(local_uploader=True)
def test_a_runner_dies_between_the_link_and_the_file(fal_runner, fal_clock, fal_uploader):
    """A URL of File.reserve is dead for good when its runner ends before complete().

    Production: after a deploy or a crash all films that were being made have links to nothing.
    Expected: another runner can complete what was announced.
    Happens: the URL belongs to a session that only its runner knows.
    Avoid: announce a URL of your own, and store there what File.from_bytes returns in the end.
    """
    fal_clock.freeze()
    runner = fal_runner(Painter, isolation="process")
    url = runner.post("/film").json()["url"]
    runner.kill()
    assert httpx.get(url).status_code == 404
    assert fal_uploader.find(url).state == "receiving"

    runner = fal_runner(Painter, isolation="process")
    url = runner.post("/film").json()["url"]
    assert runner.post("/film/ready").json()["url"] == url
    assert httpx.get(url).content == b"frames"


@bug(
    "N37",
    symptom="there are two copies of some outputs, and no request knows of one of them",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.fal(local_uploader=True)
def test_an_app_that_tries_again_uploads_twice(fal_runner, fal_faults, fal_cdn):
    """An upload whose answer was lost is an error, and trying it again makes a second file.

    Production: after each hiccup of a node public files are left over, which are never deleted.
    Expected: trying again is safe, or it can be found out whether the first one was taken.
    Happens: the toolkit itself does not try again, and raises; its error has neither the URL nor an
        id to ask the node for.
    Avoid: a lifetime for outputs, so that what is left over goes away.
    """
    runner = fal_runner(Painter)
    fal_faults.drop(after=0, host=NODE, times=1)
    url = runner.post("/stubborn").json()["url"]
    assert [fal_cdn.get(file.url) for file in fal_cdn.files] == [b"pixels", b"pixels"]

    hour = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 3600}'}
    fal_faults.drop(after=0, host=NODE, times=1)
    kept = {url, runner.post("/stubborn", headers=hour).json()["url"]}
    left_over = [file for file in fal_cdn.files if file.url not in kept]
    assert [file.expires_at is None for file in left_over] == [True, False]


BUCKET = "https://customer.s3.us-east-1.amazonaws.com/"
POLICY = json.dumps({"url": BUCKET, "fields": {"key": "out/${filename}", "policy": "signed"}})
TO_THE_BUCKET = {"x-app-fal-upload-policy": POLICY}


@bug(
    *("U11", "P13"),
    symptom="outputs for the customer's bucket are missing, and the log has nothing about it",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.fal(local_uploader=True)
def test_a_bucket_refuses_when_nobody_listens_any_more(fal_runner, fal_http, fal_uploader):
    """A file that the caller's bucket refuses is missing there, and its request has succeeded.

    Production: a policy that has expired while the request was queued; the customer gets links to
        nothing, is billed, and the runner's log shows nothing at all.
    Expected: a request that fails, or a line in the log.
    Happens: the node sends it to the bucket later. Where the SDK does it itself the request
        succeeds, too, but a line of JSON is in the log.
    Avoid: policies that live for much longer than a request may wait; the customer looks at the
        bucket before using a link. wait_for_completion does nothing here.
    """
    fal_http.post(BUCKET).respond(403, text="<Error><Code>AccessDenied</Code></Error>")
    runner = fal_runner(Painter)
    for path in ("/", "/careful"):
        response = runner.post(path, headers=TO_THE_BUCKET)
        assert response.status_code == 200
        assert fal_uploader.find(response.json()["url"]).failure == "403 AccessDenied"
    assert "AccessDenied" not in runner.output


@bug(
    "N38",
    symptom="requests with an upload policy fail with 500, are tried again, and arrive twice",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.fal(local_uploader=True)
def test_a_hiccup_of_the_node_is_a_500(fal_runner, fal_http, fal_faults):
    """An answer of the node that is lost makes a request for a caller's bucket fail with 500.

    Production: a 500 counts against the app and may be tried again, with the whole generation,
        while the file is on its way to the bucket already.
    Expected: 424, as for a bucket that does not keep up: that is what the SDK chose so that clients
        do not try again.
    Happens: only refusals of the node are made a 424; a connection that breaks is any error.
    Avoid: idempotent keys are not possible (the key has a uuid), so look for doubles in the bucket.
    """
    bucket = fal_http.post(BUCKET).respond(204)
    runner = fal_runner(Painter)
    fal_faults.status(413, host=NODE, times=1)
    assert runner.post("/", headers=TO_THE_BUCKET).status_code == 424
    assert not bucket.called

    fal_faults.drop(after=0, host=NODE, times=1)
    assert runner.post("/", headers=TO_THE_BUCKET).status_code == 500
    assert bucket.call_count == 1


@bug(
    "N39",
    symptom="an output of 90 MB takes seconds to upload, and one of 110 MB no time at all",
    topic=TOPIC,
    seen=SEEN,
)
@pytest.mark.fal(local_uploader=True)
def test_bytes_are_copied_again_and_again(fal_tmp):
    """What is handed to the node as bytes costs processor time by the square of its size.

    Production: the larger an output, the longer a runner is busy with nothing but copying: 64 MB
        took 3 s of it, and 0.06 s as a stream.
    Expected: twice the size takes twice the time.
    Happens: files of up to 100 MiB are handed to httpx in one piece; the socket takes some 200 kB
        of it at a time, and for each of them all the rest is copied.
    Avoid: File.from_path(path, multipart=True), which sends any file in small pieces.
    """
    content = bytes(32_000_000)
    path = fal_tmp.write("film.mp4", content)

    def seconds(upload):
        start = time.thread_time()
        upload()
        return time.thread_time() - start

    as_a_stream = seconds(lambda: File.from_path(path, multipart=True))
    assert seconds(lambda: File.from_bytes(content)) > 4 * as_a_stream
    assert seconds(lambda: File.from_path(path)) > 4 * as_a_stream
