"""Bugs of uploads: files in the wrong place, for the wrong time, with the wrong readers."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fal
import fal_client
import httpx
import pytest
from fal.toolkit import File, download_file
from fal.toolkit.exceptions import FileUploadException
from fal.toolkit.file.providers.fal import InternalFalFileRepositoryV3
from fal.toolkit.file.providers.r2 import R2Repository
from fal.toolkit.file.providers.s3 import S3Repository
from fal.toolkit.file.types import FileRepository
from fal.toolkit.utils.download_utils import DownloadError
from gallery import bug
from pydantic import BaseModel

UPLOADS = "Uploads"
WRONG_PLACE = "Uploads that go elsewhere"
LIFETIME = "Lifetime and readers of uploads"

#: Where the CDN's files are; a fallback is anywhere else.
CDN_HOST = "v3b.fal.media"

#: What a caller sends who wants the outputs for himself, or for an hour.
PRIVATE = {"x-fal-object-lifecycle-preference": '{"initial_acl": {"default": "hide"}}'}
ONE_HOUR = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 3600}'}


def host(file):
    return httpx.URL(file.url).host


# --- uploads that go elsewhere -------------------------------------------------------------------


class OurBucket(FileRepository):
    """An app's own storage, with a mistake in it."""

    def save(self, data, **options):
        return self.bucket.put(data.data)


@bug(
    "U2",
    symptom="my upload went to another bucket, and nobody told me",
    topic=WRONG_PLACE,
    seen=("1.75.5", "1.83.0"),
)
def test_a_mistake_publishes_the_file(fal_cdn):
    """When an app's own storage raises, whatever it is, the file is published by fal instead.

    Production: customers' data that belong in a private bucket are at a public URL, and the
        request succeeds.
    Expected: the error of one's own code.
    Happens: each exception, here an AttributeError, counts as a storage that is down; the toolkit
        prints a line and goes on to the next one.
    Avoid: fallback_repository=None wherever a file must not go elsewhere.
    """
    file = File.from_bytes(b"secret", repository=OurBucket())
    assert fal_cdn.get(file.url) == b"secret"

    with pytest.raises(AttributeError, match="'OurBucket' object has no attribute 'bucket'"):
        File.from_bytes(b"secret", repository=OurBucket(), fallback_repository=None)


@bug(
    "U2",
    symptom="large files are not in our S3 bucket but on fal's servers",
    topic=WRONG_PLACE,
    seen=("1.75.5", "1.83.0"),
)
def test_large_files_for_s3_go_elsewhere(fal_cdn, fal_tmp):
    """A file that shall go to S3 in parts is published by fal instead.

    Production: all small files are in the bucket, and all that were uploaded with multipart=True
        are at a public URL of fal's.
    Expected: an upload in parts, or an error.
    Happens: the toolkit's S3 storage has no upload in parts, which counts as a storage that is
        down.
    Avoid: fallback_repository=None.
    """
    path = fal_tmp.write("film.mp4", b"film")
    s3 = S3Repository("our-films", aws_access_key_id="id", aws_secret_access_key="secret")
    file = File.from_path(path, repository=s3, multipart=True)
    assert fal_cdn.get(file.url) == b"film"

    with pytest.raises(NotImplementedError):
        File.from_path(path, repository=s3, multipart=True, fallback_repository=None)


@bug(
    "U2",
    symptom="with save_kwargs my files get links of another host, and never expire",
    topic=WRONG_PLACE,
    seen=("1.75.5", "1.83.0"),
)
def test_a_misspelt_option_moves_the_file(fal_cdn):
    """A misspelt option of an upload takes the file to another store, without that option.

    Production: the file is at another host, and lives longer than was asked for.
    Expected: a TypeError.
    Happens: the TypeError counts as a storage that is down, and the fallback gets options of its
        own.
    Avoid: fallback_repository=None while developing.
    """
    misspelt = {"lifecycle_preference": {"expiration_duration_seconds": 60}}
    file = File.from_bytes(b"data", save_kwargs=misspelt)
    assert host(file) != CDN_HOST
    assert fal_cdn.info(file.url).expires_at is None

    with pytest.raises(TypeError, match="unexpected keyword argument 'lifecycle_preference'"):
        File.from_bytes(b"data", save_kwargs=misspelt, fallback_repository=None)


class Painter(fal.App):
    @fal.endpoint("/")
    def paint(self) -> File:
        return File.from_bytes(b"pixels", file_name="painting.png")

    @fal.endpoint("/careful")
    def paint_carefully(self) -> File:
        return File.from_bytes(b"pixels", file_name="painting.png", fallback_repository=None)


@bug(
    "P12",
    symptom="a file that only its owner may read can be read by everybody",
    topic=WRONG_PLACE,
    seen=("1.75.5", "1.83.0"),
)
def test_a_private_output_becomes_public(fal_runner, fal_faults):
    """When the CDN refuses an upload once, the file goes where there are no access rules.

    Production: of thousands of outputs that their callers made private, a few are public, and on
        another host.
    Expected: private, or an error.
    Happens: the fallback is an older store, which ignores the rules that it is sent.
    Avoid: fallback_repository=None wherever callers may want their outputs private.
    """
    runner = fal_runner(Painter)
    private = runner.post("/", headers=PRIVATE).json()["url"]
    assert httpx.get(private).status_code == 404

    fal_faults.status(400, times=1)
    public = runner.post("/", headers=PRIVATE).json()["url"]
    assert httpx.get(public).content == b"pixels"

    fal_faults.status(400, times=1)
    assert runner.post("/careful", headers=PRIVATE).status_code == 500


@bug(
    "P12",
    symptom="files with an umlaut in their name can be read by everybody",
    topic=WRONG_PLACE,
    seen=("1.0.3", "1.0.3"),
    package="fal_client",
)
def test_a_clients_file_name_makes_its_file_public(fal_cdn, caplog):
    """fal_client (1.0.3) uploads a file whose name is not ASCII to a store without access rules.

    Production: inputs named by people in their own language are public, and on another host.
    Expected: the name decides nothing but the name.
    Happens: the name travels in a header, which cannot carry it; that counts as a store that is
        down, and the fallback ignores the rules that it is sent.
    Avoid: a name of letters, digits and dots; the toolkit's File.from_bytes() has no such problem.
    """
    private = fal_client.StorageSettings(initial_acl=fal_client.StorageACL(default="hide"))
    client = fal_client.SyncClient()
    for name, status in (("cat.png", 404), ("kätzchen.png", 200)):
        url = client.upload(b"pixels", "image/png", name, lifecycle=private)
        assert httpx.get(url).status_code == status
    assert caplog.messages[-1].startswith("Upload failed to fal_v3, falling back to fal: 'ascii'")

    toolkit = File.from_bytes(b"pixels", "image/png", "kätzchen.png")
    assert host(toolkit) == CDN_HOST


@bug(
    "U7",
    symptom="only files with Chinese names are on another host",
    topic=WRONG_PLACE,
    seen=("1.75.5", "1.83.0"),
)
def test_a_repositorys_file_name_moves_the_file(fal_cdn):
    """InternalFalFileRepositoryV3 sends a file whose name is not Latin-1 to another store.

    Production: apps that use it for its long-lived tokens have some files elsewhere, for good.
    Expected: the name decides nothing but the name.
    Happens: the name travels in a header, which cannot carry it; that counts as a store that is
        down.
    Avoid: the default repository, which sends the name as JSON; or a name of your own making.
    """
    repository = InternalFalFileRepositoryV3()
    assert host(File.from_bytes(b"pixels", file_name="cat.png", repository=repository)) == CDN_HOST
    assert host(File.from_bytes(b"pixels", file_name="猫.png", repository=repository)) != CDN_HOST

    assert host(File.from_bytes(b"pixels", file_name="猫.png")) == CDN_HOST


@bug(
    "U3",
    symptom="each lost connection leaves a file that nobody knows of",
    topic=WRONG_PLACE,
    seen=("1.75.5", "1.83.0"),
)
def test_a_lost_answer_uploads_the_file_twice(fal_cdn, fal_faults):
    """When the CDN has stored a file and its answer is lost, the file is uploaded elsewhere again.

    Production: copies that no request knows of, one of them public and kept for ever.
    Expected: another attempt at the same URL; errors of the server are tried again five times.
    Happens: a reset connection is not among what is tried again, so it counts as a storage that is
        down.
    Avoid: fallback_repository=None, and try again yourself.
    """
    fal_faults.drop(after=0, method="PUT", times=1)
    file = File.from_bytes(b"pixels")
    assert host(file) != CDN_HOST
    assert [fal_cdn.get(stored.url) for stored in fal_cdn.files] == [b"pixels", b"pixels"]


@bug(
    "U3",
    symptom="after a network hiccup some links are of another host",
    topic=WRONG_PLACE,
    seen=("1.75.5", "1.83.0"),
)
def test_a_cut_answer_moves_the_file(fal_clock, fal_faults):
    """An answer that breaks off is not asked for again, and the file goes elsewhere.

    Production: a few links a day are of another host, which knows no access rules.
    Expected: another attempt, as after a 503.
    Happens: reading the answer is outside of what is tried again.
    Avoid: fallback_repository=None, and try again yourself.
    """
    fal_clock.freeze()  # nobody waits between attempts
    fal_faults.status(503, times=4)
    assert host(File.from_bytes(b"pixels")) == CDN_HOST

    fal_faults.drop(after=10, times=1)
    assert host(File.from_bytes(b"pixels")) != CDN_HOST


@bug(
    "P18",
    symptom="files in a format of our own get links of another host, but only under load",
    topic=WRONG_PLACE,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.fal(unrecognised_content="rate_limit")
def test_files_of_no_known_type_go_elsewhere(fal_clock, fal_ledger):
    """When the CDN limits the rate of files whose type it does not recognise, they go elsewhere.

    Production: under load weights, meshes and tensors are on another host, pictures never are.
    Expected: the upload waits, or fails.
    Happens: after five answers of 429 within three seconds the storage counts as down. Where fal's
        limit lies is not known.
    Avoid: fallback_repository=None, and try again later.
    """
    fal_clock.freeze()  # nobody waits between attempts
    weights = File.from_bytes(b"\x00\x01\x02\x03", file_name="lora.weights")
    assert [put.status for put in fal_ledger.requests(host=CDN_HOST)] == [429] * 5
    assert host(weights) != CDN_HOST

    assert host(File.from_bytes(b"\x89PNG\r\n\x1a\n", file_name="cat.png")) == CDN_HOST


# --- uploads -------------------------------------------------------------------------------------


@pytest.fixture
def login(fal_emulator):
    """A developer's login, in the folder that stands in for ~/.fal here."""
    token = Path(os.environ["FAL_HOME_DIR"]) / "auth0_token"
    token.write_text("refresh token")
    yield token
    token.unlink(missing_ok=True)


@bug(
    "U1",
    symptom="I have to log in again each time I worked without network",
    topic=UPLOADS,
    seen=("1.75.5", "1.83.0"),
)
def test_an_upload_logs_the_developer_out(login, fal_faults, monkeypatch):
    """An upload without a key and without network deletes the login of the developer's machine.

    Production: after a test in the train, or while auth.fal.ai is down, fal asks for a login.
    Expected: a network error, and the login is still there.
    Happens: whatever goes wrong while the login is renewed, the file with it is deleted.
    Avoid: set FAL_KEY wherever uploads may run, and FAL_HOME_DIR in tests. pytest-fal does both.
    """
    fal_faults.refuse(host="auth.fal.ai")
    File.from_bytes(b"data")
    assert login.exists()

    monkeypatch.delenv("FAL_KEY")
    with pytest.raises(FileUploadException, match="You must be authenticated"):
        File.from_bytes(b"data")
    assert not login.exists()


@bug(
    *("U5", "P36"),
    symptom="InvalidPartOrder, only for large files, and only sometimes",
    topic=UPLOADS,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.fal(part_order="strict")
def test_parts_are_listed_in_the_order_they_arrived(fal_http, fal_ledger):
    """A large upload names its parts in the order in which they happened to be finished.

    Production: a store that wants them in order, as S3 does, refuses the upload at its very end.
        (What fal's own CDN does is not known.)
    Expected: part 1, part 2, part 3.
    Happens: ten parts travel at a time, and whichever is through first is listed first.
    Avoid: save_kwargs={"multipart_max_concurrency": 1}.
    """
    third_comes = threading.Event()

    def hold_the_first(request):
        third_comes.wait(5)

    def release_it(request):
        third_comes.set()

    # A side effect that returns nothing lets the request go on to the CDN.
    fal_http.put(path__regex="/1$").mock(side_effect=hold_the_first)
    fal_http.put(path__regex="/3$").mock(side_effect=release_it)
    in_parts = {"multipart": True, "multipart_chunk_size": 1, "multipart_max_concurrency": 2}
    with pytest.raises(FileUploadException, match=r"Error completing upload .* Status 400"):
        File.from_bytes(b"123", save_kwargs=in_parts, fallback_repository=None)
    assert fal_ledger.exchanges[-1].notes == [
        "InvalidPartOrder: the parts are not in ascending order"
    ]

    one_at_a_time = in_parts | {"multipart_max_concurrency": 1}
    assert host(File.from_bytes(b"123", save_kwargs=one_at_a_time)) == CDN_HOST


@bug(
    "P36",
    symptom="an empty file cannot be uploaded to the fallback",
    topic=UPLOADS,
    seen=("1.75.5", "1.83.0"),
)
def test_an_empty_file_has_no_parts(fal_cdn, fal_tmp):
    """An empty file that is uploaded in parts to the repository "fal" has no part at all.

    Production: apps that upload everything in parts fail with empty results.
    Expected: an empty file.
    Happens: an upload of no parts is completed, which a store refuses.
    Avoid: leave multipart out; or the default repository, which sends one empty part since 1.82.0.
    """
    path = fal_tmp.write("log.txt", b"")
    to_fal = {"repository": "fal", "fallback_repository": None}
    with pytest.raises(FileUploadException, match="Status 400"):
        File.from_path(path, multipart=True, **to_fal)

    assert fal_cdn.get(File.from_path(path, **to_fal).url) == b""


@bug(
    "U6",
    symptom="while fal limits our rate we hammer on it, and then upload elsewhere",
    topic=UPLOADS,
    seen=("1.75.5", "1.83.0"),
)
def test_the_servers_wish_to_wait_is_ignored(fal_clock, fal_faults):
    """A server that says when to come back is asked again at once, five times, and given up.

    Production: a rate limit of a minute fails every upload of that minute.
    Expected: the next attempt after the 60 seconds that Retry-After says.
    Happens: five attempts within three seconds.
    Avoid: fallback_repository=None, and wait yourself.
    """
    fal_clock.freeze()  # waiting moves the clock
    before = fal_clock.now()
    limit = fal_faults.status(429, headers={"Retry-After": "60"}, times=5)
    with pytest.raises(FileUploadException, match="Status 429"):
        File.from_bytes(b"pixels", fallback_repository=None)
    assert len(limit.struck) == 5
    assert 0 < (fal_clock.now() - before).total_seconds() < 3

    fal_clock.advance(seconds=60)
    assert host(File.from_bytes(b"pixels", fallback_repository=None)) == CDN_HOST


@bug(
    "U8",
    symptom="I changed FAL_KEY, and files still go to the old account",
    topic=UPLOADS,
    seen=("1.75.5", "1.83.0"),
)
def test_a_token_outlives_its_key(fal_cdn, fal_ledger, monkeypatch):
    """Who uploads with tokens goes on as the old account when the key changes or is taken away.

    Production: an app that acts for several accounts, or a test that unsets the key, uploads to
        the account that came first.
    Expected: the key of now counts.
    Happens: the token is kept for the process, for up to 30 days, whichever key it came from. So
        do InternalFalFileRepositoryV3 and the key-value store.
    Avoid: the default repository, which sends the key each time; else a process for each account.
    """
    repository = InternalFalFileRepositoryV3()
    monkeypatch.setenv("FAL_KEY", "first:key")
    File.from_bytes(b"1", repository=repository)
    monkeypatch.setenv("FAL_KEY", "second:key")
    File.from_bytes(b"2", repository=repository)
    monkeypatch.delenv("FAL_KEY")
    File.from_bytes(b"3", repository=repository)
    assert len(fal_ledger.requests(path="/storage/auth/token")) == 1
    assert len(fal_cdn.files) == 3

    with pytest.raises(FileUploadException, match="You must be authenticated"):
        File.from_bytes(b"4")


@bug(
    "U10",
    symptom="our AWS secret is in the log",
    topic=UPLOADS,
    seen=("1.75.5", "1.83.0"),
)
def test_a_repository_prints_its_secret(fal_emulator):
    """Printing an S3 or R2 repository shows its secret key.

    Production: logs, tracebacks with local variables and error trackers have the credentials.
    Expected: three stars, as the toolkit prints its own tokens.
    Happens: they are ordinary dataclasses, which print all their fields.
    Avoid: never print or format one; rotate a key that was.
    """
    s3 = S3Repository(aws_access_key_id="id", aws_secret_access_key="s3-secret")
    assert "s3-secret" in repr(s3)

    account = {"ACCOUNT_ID": "1", "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "r2-secret"}
    assert "r2-secret" in repr(R2Repository(r2_account_json=json.dumps(account)))


# --- lifetime and readers ------------------------------------------------------------------------


class Threads(fal.App):
    """Uploads in threads, each endpoint in its own way."""

    @fal.endpoint("/pool")
    def pool(self) -> File:
        with ThreadPoolExecutor() as pool:
            return pool.submit(File.from_bytes, b"pixels").result()

    @fal.endpoint("/pool-with-context")
    def pool_with_context(self) -> File:
        with ThreadPoolExecutor() as pool:
            context = contextvars.copy_context()
            return pool.submit(context.run, File.from_bytes, b"pixels").result()

    @fal.endpoint("/executor")
    async def executor(self) -> File:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, File.from_bytes, b"pixels")

    @fal.endpoint("/to-thread")
    async def to_thread(self) -> File:
        return await asyncio.to_thread(File.from_bytes, b"pixels")


@bug(
    *("U12", "P3"),
    symptom="some outputs live for ever although their caller asked for an hour",
    topic=LIFETIME,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.parametrize(
    ("loses", "keeps"), [("/pool", "/pool-with-context"), ("/executor", "/to-thread")]
)
def test_threads_do_not_know_the_caller(fal_runner, fal_cdn, loses, keeps):
    """What an app uploads in threads of its own has none of the caller's wishes.

    Production: outputs made in a thread pool or in run_in_executor keep the account's lifetime and
        access, and cannot be traced to their request.
    Expected: all outputs of a request are alike.
    Happens: the request is kept in a context variable, which such threads do not have.
    Avoid: asyncio.to_thread, from_bytes_async, or contextvars.copy_context().run in the thread.
    """
    runner = fal_runner(Threads)
    headers = {**ONE_HOUR, "x-fal-request-id": "request-1"}

    lost = fal_cdn.info(runner.post(loses, headers=headers).json()["url"])
    assert (lost.lifecycle, lost.request_id) == (None, None)

    kept = fal_cdn.info(runner.post(keeps, headers=headers).json()["url"])
    assert kept.lifecycle == {"expiration_duration_seconds": 3600}
    assert kept.request_id == "request-1"


class Multiplexed(fal.App):
    """Answers two requests at a time."""

    max_multiplexing = 2

    def setup(self):
        from fal.toolkit.file.providers.fal import LIFECYCLE_PREFERENCE

        self.preference = LIFECYCLE_PREFERENCE
        self.both = threading.Barrier(2, timeout=5)

    @fal.endpoint("/")
    def lifetimes(self) -> list[int]:
        self.both.wait()
        found = (self.preference.get(), self.current_request.lifecycle_preference)
        self.both.wait()
        return [preference["expiration_duration_seconds"] for preference in found]


@bug(
    *("U13", "P4"),
    symptom="an image expired after a minute although its caller asked for a year",
    topic=LIFETIME,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.filterwarnings("ignore:LIFECYCLE_PREFERENCE is deprecated:DeprecationWarning")
def test_overlapping_requests_share_one_preference(fal_runner):
    """Code that reads the old LIFECYCLE_PREFERENCE gets that of whichever request came last.

    Production: with max_multiplexing above 1, outputs live as long as another caller wished.
    Expected: each request has its own.
    Happens: it is one variable for the whole process; it is deprecated, and still there for
        packages that import it.
    Avoid: current_request.lifecycle_preference, which the toolkit itself uses.
    """
    runner = fal_runner(Multiplexed)

    def post(seconds):
        wish = {"expiration_duration_seconds": seconds}
        headers = {"x-fal-object-lifecycle-preference": json.dumps(wish)}
        return runner.post("/", headers=headers).json()

    with ThreadPoolExecutor() as callers:
        minute, year = callers.map(post, (60, 31_536_000))
    assert minute[0] == year[0]

    assert (minute[1], year[1]) == (60, 31_536_000)


@bug(
    *("P6", "P7"),
    symptom="expiration does not work: the files are still there the next day",
    topic=LIFETIME,
    seen=("1.75.5", "1.83.0"),
)
def test_a_misspelt_wish_is_ignored(fal_runner, fal_cdn, fal_clock, fal_emulator):
    """A lifetime under a misspelt key is accepted by all, and ignored.

    Production: outputs are kept for ever, and the bill grows.
    Expected: an answer that names the wrong key.
    Happens: the preference is any JSON to the app and to the SDK. (What fal's CDN says to it is
        not known.)
    Avoid: test it with @pytest.mark.fal(malformed_lifecycle="refuse"), which answers 400.
    """
    runner = fal_runner(Painter)
    misspelt = {"x-fal-object-lifecycle-preference": '{"expiration_seconds": 60}'}
    url = runner.post("/", headers=misspelt).json()["url"]
    fal_clock.advance(days=365)
    assert fal_cdn.get(url) == b"pixels"

    fal_emulator.settings.malformed_lifecycle = "refuse"  # as the marker does
    assert runner.post("/", headers=misspelt).status_code == 400


@bug(
    "P7",
    symptom="outputs are public although we send initial_acl with each request",
    topic=LIFETIME,
    seen=("1.75.5", "1.83.0"),
)
def test_a_malformed_wish_is_ignored(fal_runner, fal_cdn):
    """A preference that is no JSON is dropped, and the request succeeds.

    Production: a client that quotes it wrongly, here as Python prints it, publishes its outputs.
    Expected: 422.
    Happens: the app prints a line, and goes on as if nothing had been asked for.
    Avoid: json.dumps in the client; in the app, refuse what current_request.headers has and
        current_request.lifecycle_preference has not.
    """
    runner = fal_runner(Painter)
    headers = {"x-fal-object-lifecycle-preference": str({"initial_acl": {"default": "hide"}})}
    response = runner.post("/", headers=headers)
    assert httpx.get(response.json()["url"]).content == b"pixels"
    assert "Failed to parse object lifecycle preference" in runner.output


@bug(
    "P10",
    symptom="404 for a file that was uploaded a second ago",
    topic=LIFETIME,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.fal(account_acl={"default": "hide"})
def test_an_account_can_hide_its_files_from_its_apps(fal_cdn, fal_ledger):
    """Where an account makes its files private, its own apps and clients cannot read them either.

    Production: the upload works, and then the app that gets the URL, and any browser, finds 404.
    Expected: who uploaded a file can read it.
    Happens: reading needs a token of the CDN; download_file sends none, and tells a hidden file
        from one that never was by nothing.
    Avoid: an initial_acl for what others shall read; or send the token yourself.
    """
    hidden = File.from_bytes(b"input", file_name="input.txt")
    with pytest.raises(DownloadError, match=r"^Failed to get remote file properties"):
        download_file(hidden.url, "inputs")
    assert fal_ledger.exchanges[-1].notes == ["the file's access rules say hide"]

    public = {"object_lifecycle_preference": {"initial_acl": {"default": "allow"}}}
    shown = File.from_bytes(b"input", file_name="input.txt", save_kwargs=public)
    assert download_file(shown.url, "inputs").read_bytes() == b"input"


class Seen(BaseModel):
    url: str


class Answer(BaseModel):
    text: str


class Copier(fal.App):
    @fal.endpoint("/")
    def copy(self, input: Seen) -> File:
        return File.from_bytes(httpx.get(input.url).content, file_name="copy.txt")


class Reader(fal.App):
    @fal.endpoint("/")
    def read(self, input: Seen) -> Answer:
        return Answer(text=download_file(input.url, "inputs").read_text())


@bug(
    "P10",
    symptom="our app answers 500 to inputs that the same account uploaded",
    topic=LIFETIME,
    seen=("1.75.5", "1.83.0"),
)
@pytest.mark.fal(account_acl={"default": "hide"})
def test_an_app_cannot_read_its_own_accounts_inputs(fal_runner, fal_cdn):
    """An app cannot read a private input, though it is the account's that runs the app.

    Production: all requests with a file fail since the account made its files private.
    Expected: the app reads as its owner, or as its caller.
    Happens: the app has a token of its caller's (x-fal-cdn-token) and a key of its owner's, and
        the toolkit sends neither of them when it reads.
    Avoid: send the app a signed link.
    """
    runner = fal_runner(Reader)
    url = str(File.from_bytes(b"input", file_name="input.txt").url)
    assert runner.post("/", json={"url": url}).status_code == 500
    assert f"Failed to get remote file properties for {url}" in runner.output

    signed = fal_cdn.sign(url, expires_in=3600)
    assert runner.post("/", json={"url": signed}).json() == {"text": "input"}


@bug(
    "P17",
    symptom="we deleted a request's data, and the customer's photo can still be downloaded",
    topic=LIFETIME,
    seen=None,
)
def test_deleting_payloads_leaves_inputs(fal_runner, fal_emulator):
    """Deleting a request's payloads deletes its outputs, and leaves the files it was made from.

    Production: a request for deletion counts as done, and the uploaded photo stays for ever.
    Expected: all that has to do with the request is gone.
    Happens: an input is a file of its own, uploaded before there was a request; there is no call
        that deletes a single file.
    Avoid: give inputs a lifetime when they are uploaded.
    """
    photo = str(File.from_bytes(b"a photo", file_name="photo.txt").url)
    request = {"x-fal-request-id": "9c1f0a3e"}
    output = fal_runner(Copier).post("/", json={"url": photo}, headers=request).json()["url"]

    where = "https://api.fal.ai/v1/models/requests/9c1f0a3e/payloads"
    answer = httpx.delete(where, headers={"Authorization": f"Key {fal_emulator.owner.key}"})
    assert answer.json() == {"cdn_delete_results": [{"link": output, "exception": None}]}
    assert [httpx.get(url).status_code for url in (output, photo)] == [404, 200]


@bug(
    "P17",
    symptom="X-Fal-Store-IO: 0 was sent, and all images of the request are still there",
    topic=LIFETIME,
    seen=None,
)
def test_not_storing_payloads_keeps_all_media(fal_runner, fal_clock):
    """X-Fal-Store-IO: 0 stops the storing of JSON, and of no file.

    Production: requests with private content leave their images on the CDN, readable by URL.
    Expected: nothing is stored.
    Happens: the header is about the request's JSON; its files live as long as the account's, or
        the request's, lifecycle preference says, by default for ever.
    Avoid: X-Fal-Object-Lifecycle-Preference with a lifetime in the same request.
    """
    runner = fal_runner(Painter)
    unstored = {"x-fal-store-io": "0"}
    kept = runner.post("/", headers=unstored).json()["url"]
    short = runner.post("/", headers={**unstored, **ONE_HOUR}).json()["url"]
    fal_clock.advance(days=365)
    assert httpx.get(kept).content == b"pixels"

    assert httpx.get(short).status_code == 404


class Studio(fal.App):
    @fal.endpoint("/")
    def order(self) -> File:
        return File(url=fal_client.run("studio/painter", {})["url"])

    @fal.endpoint("/pool")
    def order_in_a_pool(self) -> File:
        with ThreadPoolExecutor() as pool:
            return File(url=pool.submit(fal_client.run, "studio/painter", {}).result()["url"])

    @fal.endpoint("/careful")
    def order_in_a_pool_carefully(self) -> File:
        with ThreadPoolExecutor() as pool:
            context = contextvars.copy_context()
            answer = pool.submit(context.run, fal_client.run, "studio/painter", {}).result()
        return File(url=answer["url"])


@bug(
    "P39",
    symptom="the picture that my app ordered from another app is 404 for my caller",
    topic=LIFETIME,
    seen=("1.75.5", "1.83.0"),
)
def test_a_nested_result_cannot_be_read(fal_runner, fal_http, fal_emulator):
    """A caller cannot read what an app ordered for it in a thread of its own.

    Production: with private outputs, results of one endpoint can be read, those of another cannot;
        the only difference is a pool that was to make it faster.
    Expected: who may read the app's own outputs may read those of the apps that it calls.
    Happens: the gateway extends the caller's token by the nested request, and fal_client and the
        SDK hand it back to the caller as x-fal-cdn-token. Both find the request in a context
        variable, which a pool's threads do not have.
    Avoid: run the call in a copy of the context; and in the client, read with the token that came
        with the answer.
    """
    ann, painter = fal_emulator.user("ann"), fal_runner(Painter)

    def gateway(request):
        number = f"nested-{len(fal_emulator.cdn.uploads)}"
        answer = painter.post("/", headers={**PRIVATE, "x-fal-request-id": number})
        has_token = "x-fal-cdn-token" in request.headers
        token = {"x-fal-cdn-token": ann.token(also=[number])} if has_token else {}
        return httpx.Response(200, json=answer.json(), headers=token)

    fal_http.post("https://fal.run/studio/painter").mock(side_effect=gateway)
    runner = fal_runner(Studio)

    def read(path):
        """Order a picture as ann, and read it with the token that came with the answer."""
        answer = runner.post(path, caller=ann)
        token = answer.headers.get("x-fal-cdn-token", ann.token())
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(answer.json()["url"], headers=headers).status_code

    assert read("/") == 200
    assert ann.get(fal_emulator.cdn.uploads[-1].url).status_code == 404, "with her own token"
    assert read("/pool") == 404

    assert read("/careful") == 200


@bug(
    "N40",
    symptom="we changed FAL_KEY, and fal_client goes on uploading to the old account",
    topic=UPLOADS,
    seen=("1.0.3", "1.0.3"),
    package="fal_client",
)
def test_the_first_key_is_for_ever(fal_cdn, fal_emulator, monkeypatch):
    """The functions of fal_client keep the first FAL_KEY that they found.

    Production: a worker that serves several accounts puts all files into the first one's, and a
        process that was told of a new key goes on with the revoked one.
    Expected: fal_client.upload() takes the key that is set.
    Happens: the functions are methods of one client of the module, which keeps credentials and
        token for the life of the process.
    Avoid: fal_client.SyncClient(key=...) for each account.
    """
    bob = fal_emulator.user("bob")

    def owner(upload):
        return fal_cdn.info(upload(b"x", "text/plain", "a.txt")).owner

    assert owner(fal_client.upload) == "tester"
    monkeypatch.setenv("FAL_KEY", bob.key)
    assert owner(fal_client.upload) == "tester"

    assert owner(fal_client.SyncClient(key=bob.key).upload) == "bob"
