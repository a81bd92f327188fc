"""What tests ask of files, origins and requests in one line, and the sentence it fails with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fal
import httpx
import pytest
from fal.toolkit import File, Image, download_file, download_model_weights
from fal.toolkit.utils.download_utils import DownloadError
from pydantic import BaseModel

from emulator.checks import listed, times
from emulator.errors import EmulatorError
from emulator.hosts.origin import ServedFile
from emulator.ledger import Ledger
from emulator.storage.cdn import CDN
from emulator.storage.volume import Volume

if TYPE_CHECKING:
    from emulator.account import Emulator
    from emulator.clock import Clock
    from emulator.hosts.origin import Origin
    from emulator.network.faults import Faults
    from emulator.runners.runner import RunnerFactory

URL = "https://example.com/model.bin"
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
MINUTE = {"expiration_duration_seconds": 60}
LIFECYCLE = "x-fal-object-lifecycle-preference"


class Nothing(BaseModel):
    pass


class Uploader(fal.App):  # type: ignore[misc]
    @fal.endpoint("/")  # type: ignore[untyped-decorator]
    def upload(self, input: Nothing) -> dict[str, str]:
        return {"url": File.from_bytes(b"x", file_name="a.txt").url}

    @fal.endpoint("/weights")  # type: ignore[untyped-decorator]
    def weights(self, input: Nothing) -> dict[str, str]:
        return {"path": str(download_model_weights(URL))}


def sentence_of(assertion: Callable[..., None], *args: Any, **options: Any) -> str:
    """The whole message with which an assertion fails."""
    with pytest.raises(AssertionError) as caught:
        assertion(*args, **options)
    return str(caught.value)


# --- the words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "words"), [(0, "never"), (1, "once"), (2, "twice"), (3, "3 times"), (-1, "-1 times")]
)
def test_how_often(count: int, words: str) -> None:
    assert times(count) == words


@pytest.mark.parametrize(
    ("items", "words"), [([], ""), ([1], "1"), ([1, 2], "1, 2"), ([1, 2, 3, 4], "1, 2 and 2 more")]
)
def test_evidence_is_short(items: list[int], words: str) -> None:
    assert listed(items, 2) == words


# --- a file that is served ------------------------------------------------------------------------


@pytest.fixture
def served(fal_origin: Origin) -> ServedFile:
    return fal_origin.serve(URL, b"weights")


def test_a_file_is_downloaded_once(served: ServedFile) -> None:
    download_file(URL, target_dir="/data")
    served.assert_downloaded()
    assert served.downloads == 1


def test_a_file_was_downloaded_again(served: ServedFile) -> None:
    download_file(URL, target_dir="/data")
    download_file(URL, target_dir="/data")
    served.assert_downloaded(times=2)
    assert sentence_of(served.assert_downloaded) == (
        f"{URL} was downloaded twice, expected once: #1 GET 200 (7 bytes), #2 GET 200 (7 bytes)"
    )


def test_nobody_asked_for_a_file(served: ServedFile) -> None:
    served.assert_not_requested()
    served.assert_downloaded(times=0)
    assert sentence_of(served.assert_downloaded) == (
        f"{URL} was never downloaded, expected once: nobody asked for it"
    )


def test_a_runners_download_was_not_expected(served: ServedFile, fal_runner: RunnerFactory) -> None:
    fal_runner(Uploader).post("/weights", json={})
    assert sentence_of(served.assert_downloaded, 0) == (
        f"{URL} was downloaded once, expected never: #1 GET 200 (7 bytes, runner-1)"
    )
    assert sentence_of(served.assert_not_requested) == (
        f"{URL} was requested once, expected never: #1 GET 200 (7 bytes, runner-1)"
    )


def test_what_broke_off_is_no_download(served: ServedFile, fal_faults: Faults) -> None:
    fal_faults.truncate(after=3)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="/data")
    assert served.downloads == 0
    assert sentence_of(served.assert_downloaded).startswith(
        f"{URL} was never downloaded, expected once: #1 GET 200 (3 of 7 bytes)"
    )


def test_a_client_that_leaves_early_downloads_nothing(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, size=100_000_000)
    with httpx.stream("GET", URL) as answer:
        next(answer.iter_raw())
    assert served.downloads == 0


@pytest.mark.parametrize(
    ("method", "options", "downloads"),
    [
        ("GET", {"chunked": True}, 1),
        ("GET", {"content_length": "absent"}, 1),
        ("GET", {"content_length": 3}, 1),
        ("GET", {"gzip": True}, 1),
        ("GET", {"content": b""}, 1),
        ("GET", {"status": 404}, 0),
        ("GET", {"redirect_to": "https://example.com/other"}, 0),
        ("GET", {"require_headers": {"x-key": "secret"}}, 0),
        ("HEAD", {}, 0),
        ("POST", {}, 0),
    ],
)
def test_what_counts_as_a_download(
    fal_origin: Origin, method: str, options: dict[str, Any], downloads: int
) -> None:
    served = fal_origin.serve(URL, **{"content": b"weights", **options})
    httpx.request(method, URL)
    assert len(served.requests) == 1
    assert served.downloads == downloads


def test_a_body_that_is_shorter_than_promised_is_never_whole(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"weights", content_length=100)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="/data")
    assert served.downloads == 0


def test_a_range_is_a_download_of_its_own(served: ServedFile) -> None:
    httpx.get(URL, headers={"Range": "bytes=0-2"})
    httpx.get(URL, headers={"Range": "bytes=100-"})
    assert served.downloads == 1


def test_only_the_first_requests_are_named(served: ServedFile) -> None:
    for _ in range(7):
        httpx.head(URL)
    assert sentence_of(served.assert_not_requested) == (
        f"{URL} was requested 7 times, expected never: #1 HEAD 200 (0 bytes), "
        "#2 HEAD 200 (0 bytes), #3 HEAD 200 (0 bytes), #4 HEAD 200 (0 bytes), "
        "#5 HEAD 200 (0 bytes) and 2 more"
    )


# --- files on the CDN: expiry ---------------------------------------------------------------------


@pytest.fixture
def at_noon(fal_clock: Clock) -> None:
    fal_clock.freeze()
    fal_clock.move_to(NOON)


@pytest.mark.usefixtures("at_noon")
def test_a_file_expires(fal_cdn: CDN, fal_clock: Clock) -> None:
    url = fal_cdn.put(b"x", expires_in=60)
    assert not fal_cdn.expired(url)
    fal_cdn.assert_alive(url)
    fal_clock.advance(seconds=60)
    assert fal_cdn.expired(url)
    fal_cdn.assert_expired(url)


@pytest.mark.usefixtures("at_noon")
def test_a_file_has_not_expired_yet(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x", expires_in=60)
    assert sentence_of(fal_cdn.assert_expired, url) == (
        f"{url} has not expired: it can be read until 2026-03-01 12:01:00 UTC, and it is "
        "2026-03-01 12:00:00 UTC"
    )


@pytest.mark.usefixtures("at_noon")
@pytest.mark.fal(expiry_lag=timedelta(seconds=30))
def test_a_file_that_can_still_be_read_has_not_expired(fal_cdn: CDN, fal_clock: Clock) -> None:
    url = fal_cdn.put(b"x", expires_in=60)
    fal_clock.advance(seconds=70)
    fal_cdn.assert_alive(url)
    assert sentence_of(fal_cdn.assert_expired, url) == (
        f"{url} has not expired: it can be read until 2026-03-01 12:01:30 UTC, and it is "
        "2026-03-01 12:01:10 UTC"
    )


def test_a_file_never_expires(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x")
    assert sentence_of(fal_cdn.assert_expired, url) == (
        f"{url} has not expired: it never does; it was uploaded by the test without a lifecycle "
        "preference, and account_expiration is None"
    )


@pytest.mark.usefixtures("at_noon")
def test_a_file_is_not_alive_any_more(fal_cdn: CDN, fal_clock: Clock) -> None:
    url = fal_cdn.put(b"x", expires_in=60)
    fal_clock.advance(hours=1)
    assert sentence_of(fal_cdn.assert_alive, url) == (
        f"{url} is not there any more: it expired at 2026-03-01 12:01:00 UTC; it was uploaded at "
        "2026-03-01 12:00:00 UTC by the test with the lifecycle preference "
        '{"expiration_duration_seconds": 60}'
    )


def test_a_hidden_file_is_alive(fal_cdn: CDN) -> None:
    fal_cdn.assert_alive(fal_cdn.put(b"x", acl="hide"))


def test_a_file_that_never_was_is_another_matter(fal_cdn: CDN) -> None:
    url = "https://v3.fal.media/files/b/1/a.png"
    sentence = f"there never was a file at {url}; on the CDN is nothing"
    assert sentence_of(fal_cdn.assert_expired, url) == sentence
    assert sentence_of(fal_cdn.assert_alive, url) == sentence
    with pytest.raises(EmulatorError) as caught:
        fal_cdn.expired(url)
    assert str(caught.value) == sentence


def test_a_file_whose_upload_is_not_finished_is_another_matter(fal_cdn: CDN) -> None:
    url = fal_cdn.begin("a.png", "image/png").url
    sentence = f"{url} is not there yet: its upload has begun and is not finished"
    assert sentence_of(fal_cdn.assert_expired, url) == sentence
    assert sentence_of(fal_cdn.assert_alive, url) == sentence


# --- files on the CDN: who uploaded them ----------------------------------------------------------


def test_who_uploaded_a_file_with_which_lifecycle(fal_cdn: CDN, fal_runner: RunnerFactory) -> None:
    runner = fal_runner(Uploader)
    headers = {LIFECYCLE: '{"expiration_duration_seconds": 60}', "x-fal-request-id": "r-1"}
    url = runner.post("/", json={}, headers=headers).json()["url"]
    assert (fal_cdn.info(url).runner, fal_cdn.info(url).lifecycle) == ("runner-1", MINUTE)
    fal_cdn.assert_uploaded(url, by=runner, lifecycle=MINUTE, request_id="r-1", times=1)
    fal_cdn.assert_uploaded(by="runner-1")
    fal_cdn.assert_uploaded(by=None, times=0)


@pytest.mark.parametrize("options", [{"multipart": True}, {}], ids=["multipart", "single"])
@pytest.mark.parametrize("repository", ["fal_v3", "fal"])
def test_every_way_of_uploading_tells_its_runner(
    fal_cdn: CDN, fal_runner: RunnerFactory, repository: str, options: dict[str, Any]
) -> None:
    runner = fal_runner(Uploader)
    runner.run(File.from_bytes, b"x", repository=repository, save_kwargs=options)
    (file,) = fal_cdn.files
    assert file.runner == "runner-1"


def test_a_direct_upload_tells_its_runner(fal_cdn: CDN, fal_runner: RunnerFactory) -> None:
    client = pytest.importorskip("fal_client").SyncClient()
    fal_runner(Uploader).run(client.upload, b"x", "text/plain")
    fal_cdn.assert_uploaded(by="runner-1", times=1)


def test_the_tests_own_uploads_are_nobody_elses(fal_cdn: CDN, fal_runner: RunnerFactory) -> None:
    runner = fal_runner(Uploader)
    own = [File.from_bytes(b"x").url, fal_cdn.put(b"x")]
    runner.post("/", json={})
    assert [file.url for file in fal_cdn.uploads_by(None)] == own
    assert [file.file_name for file in fal_cdn.uploads_by(runner)] == ["a.txt"]
    assert fal_cdn.uploads_by("runner-1") == fal_cdn.uploads_by(runner)


def test_what_has_expired_was_uploaded_all_the_same(fal_cdn: CDN, fal_clock: Clock) -> None:
    urls = [fal_cdn.put(b"x", expires_in=60), fal_cdn.put(b"x")]
    fal_clock.advance(seconds=61)
    assert [file.url for file in fal_cdn.uploads] == urls
    fal_cdn.assert_uploaded(urls[0], times=1)
    fal_cdn.assert_uploaded(times=2)


def test_nothing_was_uploaded(fal_cdn: CDN) -> None:
    assert sentence_of(fal_cdn.assert_uploaded) == (
        "a file was never uploaded, expected at least once: there was nothing"
    )


def test_something_else_was_uploaded(fal_cdn: CDN, fal_runner: RunnerFactory) -> None:
    url = fal_cdn.put(b"x")
    runner = fal_runner(Uploader)
    assert sentence_of(fal_cdn.assert_uploaded, by=runner, lifecycle=MINUTE, request_id="r-1") == (
        "a file by runner-1 with the lifecycle preference "
        '{"expiration_duration_seconds": 60} in the request r-1 was never uploaded, expected at '
        f"least once: there was {url} by the test without a lifecycle preference"
    )


def test_more_was_uploaded_than_expected(fal_cdn: CDN) -> None:
    one, two = fal_cdn.put(b"x"), fal_cdn.put(b"x", expires_in=60)
    fal_cdn.assert_uploaded(lifecycle=None, times=1)
    assert sentence_of(fal_cdn.assert_uploaded, by=None, request_id=None, times=1) == (
        "a file by the test in no request was uploaded twice, expected once: "
        f"{one} by the test without a lifecycle preference, {two} by the test with the lifecycle "
        'preference {"expiration_duration_seconds": 60}'
    )


def test_a_file_was_uploaded_by_somebody_else(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x")
    assert sentence_of(fal_cdn.assert_uploaded, url, by="runner-1") == (
        f"a file at {url} by runner-1 was never uploaded, expected at least once: there was {url} "
        "by the test without a lifecycle preference"
    )


def test_the_uploads_of_another_request_do_not_count(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x")
    assert sentence_of(fal_cdn.assert_uploaded, request_id="r-1") == (
        "a file in the request r-1 was never uploaded, expected at least once: there was "
        f"{url} by the test without a lifecycle preference"
    )


def test_no_upload_was_expected(fal_cdn: CDN) -> None:
    url = Image.from_bytes(b"x", format="png").url
    assert sentence_of(fal_cdn.assert_uploaded, lifecycle=None, times=0) == (
        "a file without a lifecycle preference was uploaded once, expected never: "
        f"{url} by the test without a lifecycle preference"
    )


# --- volumes --------------------------------------------------------------------------------------


def test_the_sdks_downloads_leave_partial_files(
    fal_data: Volume, fal_origin: Origin, fal_faults: Faults, fal_emulator: Emulator
) -> None:
    """While a download is under way, as a runner that is killed then leaves them."""
    fal_origin.serve(URL, b"weights")
    seen: list[list[str]] = []

    def look(request: httpx.Request) -> httpx.Response:
        seen.append(fal_data.partial_files)
        return httpx.Response(200, content=b"weights")

    fal_emulator.http.get(URL).mock(side_effect=look)
    download_file(URL, target_dir="models")
    ((partial,),) = seen
    assert partial.startswith("models/.fal_download.tmp.")
    assert fal_data.partial_files == []
    fal_data.assert_no_partial_files()


PARTIAL = [
    "w/..fal_download.tmp.abc.tmp.def",
    "w/.fal_download.tmp.abc",
    "w/.fal_download.tmp.abc.tmpk3_x",
    "w/model.bin.tmpk3_x",
    "w/model.bin.incomplete",
    "w/model.bin.part",
]


@pytest.mark.parametrize("rel", PARTIAL)
def test_partial_files_are_known_by_their_names(fal_data: Volume, rel: str) -> None:
    fal_data.write(rel, b"half")
    assert fal_data.partial_files == [rel]


@pytest.mark.parametrize(
    "rel", ["model.bin", "tmp/a.bin", "tmpk3_x", "page.tmpl", "part", "a.part1.rar", ".fal_used"]
)
def test_other_files_are_not_partial(fal_data: Volume, rel: str) -> None:
    fal_data.write(rel, b"whole")
    assert fal_data.partial_files == []


def test_a_half_cloned_repository_counts_once(fal_data: Volume) -> None:
    for name in (".git/HEAD", "README.md"):
        fal_data.write(f".fal/repositories/tmpk3_xrepo-12345678.tmp/{name}", b"")
    assert fal_data.partial_files == [".fal/repositories/tmpk3_xrepo-12345678.tmp/"]
    assert sentence_of(fal_data.assert_no_partial_files) == (
        "/data has partial files: .fal/repositories/tmpk3_xrepo-12345678.tmp/"
    )


def test_partial_files_are_named(fal_data: Volume) -> None:
    fal_data.write("b.bin.part", b"1234")
    fal_data.write("a.tmp", b"")
    assert sentence_of(fal_data.assert_no_partial_files) == (
        "/data has partial files: a.tmp (0 bytes), b.bin.part (4 bytes)"
    )


@pytest.mark.parametrize("names", [("a.bin",), ("/data/a.bin", "models/b.bin"), ("models",), ()])
def test_files_are_there(fal_data: Volume, names: tuple[str, ...]) -> None:
    fal_data.write("a.bin", b"1")
    fal_data.write("models/b.bin", b"22")
    fal_data.assert_holds(*names)


def test_files_are_not_there(fal_data: Volume, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"weights")
    path = download_file(URL, target_dir="models")
    fal_data.assert_holds(path)
    assert sentence_of(fal_data.assert_holds, path, "b.bin", Path("/data/c.bin")) == (
        "/data does not hold b.bin, c.bin; it holds models/model.bin (7 bytes)"
    )


def test_an_empty_volume_does_not_hold_a_file(fal_tmp: Volume) -> None:
    assert sentence_of(fal_tmp.assert_holds, "a") == "/tmp does not hold a; it holds nothing"


def test_a_link_without_its_file_is_there(fal_data: Volume) -> None:
    os.symlink("/data/nowhere", "/data/link")
    fal_data.assert_holds("link")


@pytest.mark.parametrize("name", ["/tmp/a.bin", "../a.bin"])
def test_a_path_outside_is_refused(fal_data: Volume, name: str) -> None:
    with pytest.raises(ValueError, match="is not a path inside /data"):
        fal_data.assert_holds(name)


def test_just_these_files_are_there(fal_data: Volume) -> None:
    fal_data.write("models/b.bin", b"1")
    fal_data.write("a.bin", b"1")
    fal_data.assert_tree("a.bin", "/data/models/b.bin")


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        (["a.bin", "b.bin"], "missing b.bin"),
        ([], "unexpected a.bin"),
        (["c.bin", "b.bin"], "missing b.bin, c.bin; unexpected a.bin"),
    ],
)
def test_other_files_are_there(fal_data: Volume, expected: list[str], sentence: str) -> None:
    fal_data.write("a.bin", b"1")
    assert sentence_of(fal_data.assert_tree, *expected) == (
        f"/data does not hold just the files expected: {sentence}"
    )


def test_a_volume_is_empty(fal_data: Volume, fal_tmp: Volume) -> None:
    fal_data.assert_empty()
    os.mkdir("/tmp/folder")
    fal_tmp.assert_empty()
    fal_tmp.assert_tree()


def test_a_volume_is_not_empty(fal_runner: RunnerFactory) -> None:
    tmp = fal_runner(Uploader).tmp
    for number in range(7):
        tmp.write(f"{number}", b"1")
    assert sentence_of(tmp.assert_empty) == (
        "/tmp is not empty: it holds 0 (1 byte), 1 (1 byte), 2 (1 byte), 3 (1 byte), "
        "4 (1 byte) and 2 more"
    )


# --- requests -------------------------------------------------------------------------------------


@pytest.fixture
def two_requests(served: ServedFile) -> None:
    httpx.get(URL)
    with contextlib.suppress(EmulatorError):
        httpx.post("https://example.com/other?signature=secret", content=b"12345")


@pytest.mark.usefixtures("two_requests")
def test_requests_were_sent(fal_ledger: Ledger) -> None:
    fal_ledger.assert_requested()
    fal_ledger.assert_requested(2, host="example.com")
    fal_ledger.assert_requested(1, method="get", path="/model*")
    fal_ledger.assert_requested(0, host="fal.ai")


@pytest.mark.usefixtures("two_requests")
def test_a_request_was_not_sent(fal_ledger: Ledger) -> None:
    assert sentence_of(fal_ledger.assert_requested, host="fal.ai", method="PUT") == (
        "a request with host='fal.ai', method='PUT' was never sent, expected at least once: "
        f"there was #1 GET {URL} 200, #2 POST https://example.com/other?signature=*** 502"
    )


@pytest.mark.usefixtures("two_requests")
def test_a_request_was_sent_too_often(fal_ledger: Ledger) -> None:
    assert sentence_of(fal_ledger.assert_requested, 1, path="/*") == (
        "a request with path='/*' was sent twice, expected once: "
        f"#1 GET {URL} 200, #2 POST https://example.com/other?signature=*** 502"
    )


def test_no_request_was_sent(fal_ledger: Ledger) -> None:
    assert sentence_of(fal_ledger.assert_requested) == (
        "a request was never sent, expected at least once: there was none at all"
    )


@pytest.mark.usefixtures("two_requests")
def test_how_many_bytes_were_downloaded(fal_ledger: Ledger) -> None:
    assert fal_ledger.bytes_sent() == fal_ledger.bytes_sent(path="/model.bin") == 7
    assert fal_ledger.bytes_sent(host="example.com", method="POST") == 0


def test_how_many_bytes_were_uploaded(fal_ledger: Ledger, fal_cdn: CDN) -> None:
    File.from_bytes(b"12345")
    assert fal_ledger.bytes_received(method="PUT") == 5
    assert fal_ledger.bytes_received(host="v3b.fal.media", path="/files/*") == 5
    assert fal_ledger.bytes_received() > 5, "the initiation has a body, too"


# --- what pytest prints ---------------------------------------------------------------------------


def test_pytest_shows_the_users_line_and_the_sentence(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        def test_it(fal_data):
            fal_data.write("models/a.bin.part", b"1234")
            fal_data.assert_no_partial_files()
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       fal_data.assert_no_partial_files()",
            "E       AssertionError: /data has partial files: models/a.bin.part (4 bytes)",
            "",
            "test_it.py:3: AssertionError",
        ],
        consecutive=True,
    )
    assert "__tracebackhide__" not in result.stdout.str()


def test_it_does_so_without_the_plugin_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        from datetime import datetime
        from emulator.ledger import Ledger

        def test_it():
            Ledger(datetime.now).assert_requested()
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:fal")
    result.stdout.fnmatch_lines(
        [
            ">       Ledger(datetime.now).assert_requested()",
            "E       AssertionError: a request was never sent, expected at least once: there was "
            "none at all",
            "",
            "test_it.py:5: AssertionError",
        ],
        consecutive=True,
    )
    assert "__tracebackhide__" not in result.stdout.str()


@pytest.mark.parametrize("owner", [CDN, Ledger, ServedFile, Volume])
def test_every_assertion_hides_itself(owner: type) -> None:
    assertions = [value for name, value in vars(owner).items() if name.startswith("assert_")]
    assert assertions
    assert all("__tracebackhide__" in one.__code__.co_varnames for one in assertions)
