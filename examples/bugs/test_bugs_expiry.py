"""Links, tokens and files whose time is over."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import fal
import fal_client
import httpx
import pytest
from fal.toolkit import File, download_file
from fal.toolkit.exceptions import FileUploadException
from fal.toolkit.utils.download_utils import DownloadError
from gallery import bug
from pydantic import BaseModel

TOPIC = "Links and files that expire"
REST = "https://rest.fal.ai"


def account():
    return {"Authorization": f"Key {os.environ['FAL_KEY']}"}


# --- files ---------------------------------------------------------------------------------------


@bug(
    "P1",
    symptom="the image link in yesterday's e-mail is dead",
    topic=TOPIC,
    seen=None,
)
@pytest.mark.fal(account_expiration=timedelta(days=1))
def test_a_link_dies_with_its_file(fal_clock):
    """How long a file on the CDN lives is decided by the account, where nobody else does.

    Production: links in e-mails, databases and chat histories die, a day or a month after they were
        made, and no test that ends within a second can see it.
    Expected: a link that works is a link that works.
    Happens: the file is deleted for good once the lifetime is over that the account sets.
    Avoid: say how long with each upload, and keep what has to stay in a store of your own.
    """
    picture = File.from_bytes(b"a picture", file_name="picture.png")
    assert httpx.get(picture.url).status_code == 200
    fal_clock.advance(days=1)
    assert httpx.get(picture.url).status_code == 404

    preference = {"expiration_duration_seconds": None}
    kept = File.from_bytes(b"a picture", save_kwargs={"object_lifecycle_preference": preference})
    fal_clock.advance(days=1)
    assert httpx.get(kept.url).content == b"a picture"


@bug(
    "P2",
    symptom='I uploaded with expires_in="never", and the file is gone',
    topic=TOPIC,
    seen=None,
)
@pytest.mark.fal(account_expiration=timedelta(days=7))
def test_never_means_as_the_account_says(fal_cdn):
    """fal_client's expires_in="never" asks for nothing, so the account's lifetime holds.

    Production: files that were to stay for ever are deleted; "immediate" ones stay for a minute.
    Expected: what the words say.
    Happens: "never" sends no preference at all, and "immediate" sends 60 seconds.
    Avoid: a number of seconds, as large as you like.
    """
    client = fal_client.SyncClient()

    def lifetime(expires_in):
        settings = fal_client.StorageSettings(expires_in=expires_in)
        file = fal_cdn.info(client.upload(b"x", "text/plain", lifecycle=settings))
        return file.expires_at - file.created_at

    assert lifetime("never") == timedelta(days=7)
    assert lifetime("immediate") == timedelta(seconds=60)

    assert lifetime(100 * 365 * 86400) == timedelta(days=36500)


@bug(
    "P20",
    symptom="my app fails on a link that has expired, although it downloaded the file long ago",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_cached_file_needs_its_link(fal_cdn, fal_clock):
    """A file that is in /data cannot be had with download_file any more once its link has expired.

    Production: an app that "caches" a customer's LoRA fails a month after it was uploaded.
    Expected: the cached file.
    Happens: each call asks the server, which answers 404.
    Avoid: look for the file before calling, or use download_model_weights, which asks nobody.
    """
    url = fal_cdn.put(b"weights", "lora.bin", expires_in=timedelta(days=30))
    path = download_file(url, "loras")
    fal_clock.advance(days=30)
    with pytest.raises(DownloadError, match=r"^Failed to get remote file properties for "):
        download_file(url, "loras")
    assert path.read_bytes() == b"weights"


@bug(
    "N4",
    symptom="my app cannot save a file that it has just made itself",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_saving_a_file_needs_its_link(fal_clock, fal_data):
    """File.save() downloads the file, even if the app has just made it of bytes it still has.

    Production: once the link has expired saving fails; for callers who want their outputs private
        it always does. In all other cases it costs a download.
    Expected: the bytes that as_bytes() has are written.
    Happens: save() knows the URL only.
    Avoid: write as_bytes() to the path.
    """
    short = {"object_lifecycle_preference": {"expiration_duration_seconds": 60}}
    private = {"object_lifecycle_preference": {"initial_acl": {"default": "hide"}}}
    expired = File.from_bytes(b"a mask", save_kwargs=short)
    hidden = File.from_bytes(b"a mask", save_kwargs=private)
    fal_clock.advance(minutes=1)
    for file in (expired, hidden):
        with pytest.raises(DownloadError, match=r"^Failed to get remote file properties for "):
            file.save("/data/mask.png")
    assert fal_data.tree() == []

    Path("/data/mask.png").write_bytes(expired.as_bytes())
    assert fal_data.read("mask.png") == b"a mask"


@bug(
    "P11",
    symptom="Failed to get remote file properties: but what is wrong with this file?",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_all_that_is_missing_looks_alike(fal_cdn, fal_clock, fal_ledger):
    """Files that have expired, are hidden or never existed give one and the same error.

    Production: nobody can tell a lifetime that is too short from missing rights or a wrong link.
    Expected: an error that says which.
    Happens: all are a 404, and all statuses are one DownloadError.
    Avoid: the status at least is in the error's cause; in a test, the ledger knows the reason.
    """
    expired = fal_cdn.put(b"x", expires_in=60)
    hidden = fal_cdn.put(b"x", acl="hide")
    fal_clock.advance(minutes=1)
    for url in (expired, hidden, "https://v3b.fal.media/files/b/0/nothing.bin"):
        with pytest.raises(DownloadError) as failure:
            download_file(url, "inputs")
        assert str(failure.value) == f"Failed to get remote file properties for {url}"
        assert failure.value.__cause__.status_code == 404

    notes = [note for exchange in fal_ledger.exchanges for note in exchange.notes]
    assert notes[0].startswith("the file expired at ")
    assert notes[1:] == [
        "the file's access rules say hide",
        "no file was ever uploaded to this URL",
    ]


# --- requests ------------------------------------------------------------------------------------


class Video(BaseModel):
    video: File


class Copy(fal.App):
    @fal.endpoint("/")
    def copy(self, input: Video) -> Video:
        path = download_file(input.video.url, "/tmp/inputs")
        return Video(video=File.from_path(path))


@bug(
    "P9",
    symptom="requests that waited long in the queue fail: their input file is gone",
    topic=TOPIC,
    seen=None,
)
def test_an_input_expires_before_its_turn(fal_runner, fal_cdn, fal_clock):
    """The lifetime that a request asks for covers its outputs, not the input uploaded before it.

    Production: at busy hours, or when a request is tried again, the input's time is over by then.
    Expected: with a lifetime of 30 days in the request, its files live for 30 days.
    Happens: the input keeps the lifetime of its own upload.
    Avoid: give inputs a lifetime that covers queue, retries and debugging.
    """
    runner = fal_runner(Copy)
    month = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 2592000}'}
    url = fal_cdn.put(b"video", "clip.mp4", expires_in=timedelta(hours=1))
    copied = runner.post("/", json={"video": {"url": url}}, headers=month)
    fal_clock.advance(hours=1)
    assert fal_cdn.get(copied.json()["video"]["url"]) == b"video"

    late = runner.post("/", json={"video": {"url": url}}, headers=month)
    assert late.status_code == 500
    assert "DownloadError" in runner.output


class Prompt(BaseModel):
    prompt: str


class Painter(fal.App):
    def setup(self) -> None:
        self.pictures: dict[str, File] = {}

    @fal.endpoint("/")
    def paint(self, input: Prompt) -> File:
        if input.prompt not in self.pictures:
            self.pictures[input.prompt] = File.from_bytes(b"picture", file_name="picture.png")
        return self.pictures[input.prompt]


@bug(
    "P16",
    symptom="the second customer who asks for the same thing gets a dead link",
    topic=TOPIC,
    seen=None,
)
def test_a_remembered_link_outlives_its_file(fal_runner, fal_clock):
    """An app that remembers the links it returned hands them out after their files are deleted.

    Production: one customer asks for a lifetime of an hour, and everybody gets that customer's
        link.
    Expected: a cache that saves work.
    Happens: a link is remembered, not a file; the file's lifetime is the first request's.
    Avoid: remember the content and upload it for each request; that costs little.
    """
    runner = fal_runner(Painter)
    hour = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 3600}'}
    first = runner.post("/", json={"prompt": "a cat"}, headers=hour).json()["url"]
    assert httpx.get(first).content == b"picture"

    fal_clock.advance(hours=1)
    second = runner.post("/", json={"prompt": "a cat"}).json()["url"]
    assert httpx.get(second).status_code == 404


# --- links and tokens ----------------------------------------------------------------------------


@bug(
    "P13",
    symptom="my app returned a URL, and nothing is there",
    topic=TOPIC,
    seen=("1.82.0", "1.83.0"),
)
@pytest.mark.fal(unfinished_read="not_found")
def test_a_reserved_link_can_stay_dead(fal_faults):
    """File.reserve returns a URL before there is a file; if the upload then fails it stays dead.

    Production: the answer has been sent, the upload fails or the runner dies, and the caller keeps
        a link to nothing. Until then readers wait, or get a 404.
    Expected: an upload falls back to another store, as others do.
    Happens: nothing can fall back once the URL is out, and it is not revived.
    Avoid: reserve only for who can wait and can be told; otherwise upload, and return then.
    """
    pending = File.reserve(content_type="video/mp4", file_name="clip.mp4")
    assert httpx.get(pending.url).status_code == 404
    fal_faults.status(403, method="PUT", times=1)
    with pytest.raises(FileUploadException, match="403"):
        pending.complete(b"video")
    assert httpx.get(pending.url).status_code == 404

    pending = File.reserve(content_type="video/mp4", file_name="clip.mp4")
    pending.complete(b"video")
    assert httpx.get(pending.url).content == b"video"


@bug(
    "P14",
    symptom="my service reads its private files for a month, and then everything is 404",
    topic=TOPIC,
    seen=None,
)
def test_a_stored_token_expires(fal_cdn, fal_clock):
    """A CDN token that was stored stops to work after 30 days, while the files are still there.

    Production: a service that took a token at its deployment loses all private files at once.
    Expected: a key, which works until it is revoked.
    Happens: tokens have a date, and with an old one a hidden file is a 404, like a missing one.
    Avoid: take the answer's expires_at seriously, and ask for a token when needed.
    """

    def token():
        answer = httpx.post(f"{REST}/storage/auth/token", headers=account(), json={}).json()
        return {"Authorization": f"Bearer {answer['token']}"}

    url = fal_cdn.put(b"private", acl="hide")
    stored = token()
    assert httpx.get(url, headers=stored).content == b"private"
    fal_clock.advance(days=30)
    assert httpx.get(url, headers=stored).status_code == 404

    assert httpx.get(url, headers=token()).content == b"private"


@bug(
    "P14",
    symptom="links in last week's mails are dead, and the files are still there",
    topic=TOPIC,
    seen=None,
)
def test_a_signed_link_expires(fal_cdn, fal_clock, fal_emulator):
    """A signed link lives for 7 days at most, while the private file behind it stays.

    Production: links that were mailed, or stored in a database, work at first and not a week later.
    Expected: a link to a file works as long as the file.
    Happens: a signature has a date, and there is none beyond 7 days; after it the reader counts as
        anybody, for whom a hidden file is a 404.
    Avoid: store the file's own URL, and sign it when somebody wants to read.
    """
    url = fal_cdn.put(b"private", acl="hide")

    def sign(seconds):
        where = "https://api.fal.ai/v1/storage/files/sign"
        body = {"expiration_seconds": seconds}
        return httpx.post(where, params={"url": url}, headers=account(), json=body)

    week = 7 * 24 * 3600
    assert sign(week + 1).status_code == 400
    mailed = sign(week).json()["signed_url"]
    assert httpx.get(mailed).content == b"private"
    fal_clock.advance(days=7)
    assert httpx.get(mailed).status_code == 404
    assert fal_cdn.get(url) == b"private"

    assert httpx.get(sign(60).json()["signed_url"]).content == b"private"


@bug(
    "P14",
    symptom="uploads from the browser fail with 403 when the user takes a moment",
    topic=TOPIC,
    seen=None,
)
@pytest.mark.fal(upload_url_lifetime=timedelta(minutes=2))
def test_an_upload_link_expires(fal_clock):
    """A presigned upload URL works for a short while only.

    Production: an upload page that was left open, or a large file after a queue of others, fails.
    Expected: a URL that was just handed out can be used.
    Happens: 403. The time it has is not documented (two minutes were reported); here it is set.
    Avoid: ask for the URL when the bytes are ready, and again after a 403.
    """
    body = {"file_name": "clip.mp4", "content_type": "video/mp4"}

    def initiate():
        url = f"{REST}/storage/upload/initiate?storage_type=fal-cdn-v3"
        return httpx.post(url, headers=account(), json=body).json()["upload_url"]

    handed_out = initiate()
    fal_clock.advance(minutes=3)
    assert httpx.put(handed_out, content=b"video").status_code == 403

    assert httpx.put(initiate(), content=b"video").status_code == 200
