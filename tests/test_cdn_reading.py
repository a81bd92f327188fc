"""Reading from the CDN: over every client, in part, while it is uploaded [facts §1.10, §1.11]."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
import requests
from fal.toolkit import File, download_file
from fal.toolkit.utils.download_utils import DownloadError

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.ledger import Ledger
    from emulator.storage.cdn import CDN

REST = "https://rest.fal.ai"
ACCOUNT = {"Authorization": "Key id:secret"}


def read_with_httpx(url: str) -> bytes:
    return httpx.get(url).content


def read_with_async_httpx(url: str) -> bytes:
    async def read() -> bytes:
        async with httpx.AsyncClient() as client:
            return bytes((await client.get(url)).content)

    return asyncio.run(read())


def read_with_urllib(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        return bytes(response.read())


def read_with_requests(url: str) -> bytes:
    return bytes(requests.get(url, timeout=10).content)


def read_with_http_client(url: str) -> bytes:
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPSConnection(parts.netloc)
    with closing(connection):
        connection.request("GET", parts.path)
        return connection.getresponse().read()


def read_with_aiohttp(url: str) -> bytes:
    async def read() -> bytes:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return bytes(await response.read())

    return asyncio.run(read())


def read_with_the_toolkit(url: str) -> bytes:
    return bytes(download_file(url, target_dir="/data/downloads").read_bytes())


CLIENTS: list[Callable[[str], bytes]] = [
    read_with_httpx,
    read_with_async_httpx,
    read_with_urllib,
    read_with_requests,
    read_with_http_client,
    read_with_aiohttp,
    read_with_the_toolkit,
]
every_client = pytest.mark.parametrize(
    "read", CLIENTS, ids=[client.__name__.removeprefix("read_with_") for client in CLIENTS]
)


def initiate(call: str = "initiate") -> dict[str, str]:
    body = {"file_name": "a.bin", "content_type": "audio/wav"}
    answer = httpx.post(f"{REST}/storage/upload/{call}", json=body, headers=ACCOUNT)
    upload: dict[str, str] = answer.json()
    return upload


def bearer() -> dict[str, str]:
    answer = httpx.post(f"{REST}/storage/auth/token", json={}, headers=ACCOUNT).json()
    return {"Authorization": f"Bearer {answer['token']}"}


# --- whole files ----------------------------------------------------------------------------------


@every_client
def test_every_client_reads(fal_cdn: CDN, read: Callable[[str], bytes]) -> None:
    assert read(fal_cdn.put(b"bytes", file_name="a.bin")) == b"bytes"


@every_client
def test_every_client_reads_names_however_it_quotes(
    fal_cdn: CDN, read: Callable[[str], bytes]
) -> None:
    assert read(fal_cdn.put(b"bytes", file_name="it's 100%, (a) [b]!.bin")) == b"bytes"


def test_a_slash_in_a_name_is_no_folder(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x", file_name="folder/a.bin")
    assert url.endswith("_folder_a.bin")
    assert httpx.get(url).content == b"x"


@pytest.mark.parametrize("host", ["v3.fal.media", "v3b.fal.media"])
def test_both_hosts_serve_every_file(fal_cdn: CDN, host: str) -> None:
    path = urllib.parse.urlsplit(fal_cdn.put(b"x")).path
    assert httpx.get(f"https://{host}{path}").content == b"x"
    assert fal_cdn.get(f"https://{host}{path}") == b"x"


def test_files_are_served_without_redirect(fal_cdn: CDN) -> None:
    assert httpx.get(fal_cdn.put(b"x"), follow_redirects=False).status_code == 200


def test_a_query_changes_nothing(fal_cdn: CDN) -> None:
    assert httpx.get(f"{fal_cdn.put(b'x')}?download=1").content == b"x"


def test_the_type_is_the_one_of_the_upload(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x", file_name="a.png", content_type="image/JPEG")
    assert httpx.get(url).headers["content-type"] == "image/JPEG"


def test_the_headers_of_a_file(fal_cdn: CDN) -> None:
    headers = httpx.get(fal_cdn.put(b"12345")).headers
    assert headers["content-length"] == "5"
    assert headers["accept-ranges"] == "bytes"
    assert "content-disposition" not in headers
    assert "location" not in headers


def test_last_modified_is_the_upload(fal_cdn: CDN, fal_clock: Clock) -> None:
    url = fal_cdn.put(b"x")
    fal_clock.advance(days=3)
    modified = parsedate_to_datetime(httpx.get(url).headers["last-modified"])
    assert modified == fal_cdn.info(url).created_at.replace(microsecond=0)


def test_an_empty_file(fal_cdn: CDN) -> None:
    answer = requests.get(fal_cdn.put(b""), timeout=10)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "0"


def test_image_opens_a_file(fal_cdn: CDN) -> None:
    from fal.toolkit import Image
    from PIL import Image as PILImage

    image = Image.from_pil(PILImage.new("RGB", (3, 2)), format="png")
    assert fal_cdn.image(image.url).size == (3, 2)


# --- browsers -------------------------------------------------------------------------------------


def test_browsers_of_any_origin_may_read(fal_cdn: CDN) -> None:
    answer = httpx.get(fal_cdn.put(b"x"), headers={"Origin": "https://app.example.com"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_browsers_may_see_that_a_file_is_missing(fal_cdn: CDN) -> None:
    answer = httpx.get("https://v3.fal.media/files/none")
    assert answer.status_code == 404
    assert answer.headers["access-control-allow-origin"] == "*"


def test_browsers_may_ask_first(fal_cdn: CDN) -> None:
    answer = httpx.options(initiate()["upload_url"])
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-methods"] == "*"
    assert answer.headers["access-control-allow-headers"] == "*"


# --- HEAD, ETag, Range ----------------------------------------------------------------------------


def test_head_is_get_without_the_body(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"12345")
    head, get = httpx.head(url), httpx.get(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == get.headers


def test_head_of_nothing_has_no_body(fal_cdn: CDN) -> None:
    head = httpx.head("https://v3.fal.media/files/none")
    assert (head.status_code, head.content) == (404, b"")


def test_the_etag_is_md5_like_hex_in_quotes_and_each_uploads_own(fal_cdn: CDN) -> None:
    one, two = (httpx.get(fal_cdn.put(b"12345")).headers["etag"] for _ in range(2))
    assert re.fullmatch('"[0-9a-f]{32}"', one)
    assert one != two


def test_the_etag_stays_the_same_from_read_to_read(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"12345")
    assert httpx.get(url).headers["etag"] == httpx.head(url).headers["etag"]


@pytest.mark.fal(etag="md5")
def test_the_etag_can_be_the_md5_of_the_content(fal_cdn: CDN) -> None:
    etag = httpx.get(fal_cdn.put(b"12345")).headers["etag"]
    assert etag == f'"{hashlib.md5(b"12345").hexdigest()}"'


@pytest.mark.fal(etag="absent")
def test_the_etag_can_be_left_out(fal_cdn: CDN) -> None:
    assert "etag" not in httpx.get(fal_cdn.put(b"12345")).headers


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_a_file_that_the_client_has_is_not_sent_again(fal_cdn: CDN, form: str) -> None:
    url = fal_cdn.put(b"12345")
    header = form.format(httpx.get(url).headers["etag"])
    answer = httpx.get(url, headers={"If-None-Match": header})
    assert (answer.status_code, answer.content) == (304, b"")


def test_another_etag_gets_the_file(fal_cdn: CDN) -> None:
    answer = httpx.get(fal_cdn.put(b"12345"), headers={"If-None-Match": '"other"'})
    assert answer.content == b"12345"


@pytest.mark.parametrize(
    ("wanted", "content", "content_range"),
    [
        ("bytes=0-2", b"012", "bytes 0-2/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ],
)
def test_ranges(fal_cdn: CDN, wanted: str, content: bytes, content_range: str) -> None:
    answer = requests.get(fal_cdn.put(b"0123456789"), headers={"Range": wanted}, timeout=10)
    assert (answer.status_code, answer.content) == (206, content)
    assert answer.headers["content-range"] == content_range
    assert answer.headers["content-length"] == str(len(content))


def test_a_range_behind_the_end_is_416(fal_cdn: CDN) -> None:
    answer = httpx.get(fal_cdn.put(b"0123456789"), headers={"Range": "bytes=10-"})
    assert (answer.status_code, answer.content) == (416, b"")
    assert answer.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize("wanted", ["bytes=0-1,4-5", "bytes=5-2", "lines=1-2"])
def test_other_ranges_get_the_whole_file(fal_cdn: CDN, wanted: str) -> None:
    answer = httpx.get(fal_cdn.put(b"0123456789"), headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, b"0123456789")


def test_a_download_of_this_version_is_resumed(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"0123456789")
    etag = httpx.head(url).headers["etag"]
    answer = httpx.get(url, headers={"Range": "bytes=8-", "If-Range": etag})
    assert (answer.status_code, answer.content) == (206, b"89")


def test_a_download_of_another_version_starts_again(fal_cdn: CDN) -> None:
    headers = {"Range": "bytes=8-", "If-Range": '"other"'}
    answer = httpx.get(fal_cdn.put(b"0123456789"), headers=headers)
    assert (answer.status_code, answer.content) == (200, b"0123456789")


# --- uploads in progress [§1.11] ------------------------------------------------------------------


def await_a_read(ledger: Ledger) -> None:
    """Until a read has reached the CDN."""
    deadline = time.monotonic() + 10
    while not ledger.requests(method="GET"):
        assert time.monotonic() < deadline, "nobody reads"
        os.sched_yield()


@every_client
def test_a_read_waits_for_the_upload(
    fal_cdn: CDN, fal_ledger: Ledger, read: Callable[[str], bytes]
) -> None:
    upload = initiate()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, upload["file_url"])
        await_a_read(fal_ledger)
        httpx.put(upload["upload_url"], content=b"late")
        assert reading.result() == b"late"


def test_a_reserved_url_can_be_read_before_it_is_saved(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    pending = File.reserve("audio/wav", "late.bin")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_with_urllib, pending.url)
        await_a_read(fal_ledger)
        pending.complete(b"late")
        assert reading.result() == b"late"


def test_a_waiting_read_does_not_block_the_event_loop(fal_cdn: CDN) -> None:
    upload = initiate()

    async def read_and_upload() -> bytes:
        async with httpx.AsyncClient() as client:
            reading = asyncio.ensure_future(client.get(upload["file_url"]))
            await asyncio.sleep(0)
            await client.put(upload["upload_url"], content=b"late")
            return (await reading).content

    assert asyncio.run(read_and_upload()) == b"late"


@pytest.mark.fal(unfinished_read_limit=timedelta(milliseconds=50))
def test_the_wait_is_bounded(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    assert httpx.get(initiate()["file_url"]).status_code == 404
    note = "the file's upload has begun and is not finished"
    assert fal_ledger.exchanges[-1].notes == [note]


def test_the_wait_is_ten_seconds_of_a_stopped_clock(fal_cdn: CDN, fal_clock: Clock) -> None:
    fal_clock.freeze()
    start, url = fal_clock.now(), initiate()["file_url"]
    assert httpx.get(url).status_code == 404
    assert fal_clock.now() - start == timedelta(seconds=10)


@pytest.mark.fal(unfinished_read="not_found")
def test_the_wait_can_be_left_out(fal_cdn: CDN, fal_clock: Clock) -> None:
    fal_clock.freeze()
    start, url = fal_clock.now(), initiate()["file_url"]
    assert httpx.get(url).status_code == 404
    assert fal_clock.now() == start


@pytest.mark.fal(unfinished_read_limit=timedelta(minutes=5))
def test_a_reader_who_gives_up_ends_its_wait(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    # Where it does not, the end of this test waits for it and fails.
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.get(initiate()["file_url"], timeout=0.05)


@pytest.mark.fal(unfinished_read_limit=timedelta(milliseconds=50))
def test_an_upload_that_broke_off_stays_unfinished(fal_cdn: CDN) -> None:
    upload = initiate("initiate-multipart")
    address, _, query = upload["upload_url"].partition("?")
    httpx.put(f"{address}/1?{query}", content=b"x")
    httpx.post(f"{address}/complete?{query}", json={"parts": []})
    assert httpx.get(upload["file_url"]).status_code == 404


# --- access [§1.10] -------------------------------------------------------------------------------


@pytest.mark.parametrize(("decision", "status"), [("allow", 200), ("forbid", 403), ("hide", 404)])
def test_what_an_anonymous_reader_gets(fal_cdn: CDN, decision: str, status: int) -> None:
    assert httpx.get(fal_cdn.put(b"x", acl=decision)).status_code == status


def test_files_are_public_unless_somebody_says_otherwise(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x")
    assert fal_cdn.info(url).acl is None
    assert httpx.get(url).status_code == 200


def test_the_owner_always_reads(fal_cdn: CDN) -> None:
    assert httpx.get(fal_cdn.put(b"x", acl="hide"), headers=bearer()).status_code == 200


def test_the_account_key_reads_nothing(fal_cdn: CDN) -> None:
    assert httpx.get(fal_cdn.put(b"x", acl="forbid"), headers=ACCOUNT).status_code == 403


def test_the_owners_expired_token_reads_nothing(fal_cdn: CDN, fal_clock: Clock) -> None:
    url, headers = fal_cdn.put(b"x", acl="forbid"), bearer()
    fal_clock.advance(days=31)
    assert httpx.get(url, headers=headers).status_code == 403


@pytest.mark.fal(account_acl={"default": "hide"})
def test_the_accounts_rules_hold_where_an_upload_has_none(fal_cdn: CDN) -> None:
    assert httpx.get(File.from_bytes(b"x", file_name="a").url).status_code == 404


@pytest.mark.fal(account_acl={"default": "hide"})
def test_an_uploads_rules_replace_the_accounts(fal_cdn: CDN) -> None:
    acl = {"initial_acl": {"default": "allow"}}
    file = File.from_bytes(b"x", file_name="a", save_kwargs={"object_lifecycle_preference": acl})
    assert httpx.get(file.url).status_code == 200


def test_the_test_itself_reads_what_is_hidden(fal_cdn: CDN) -> None:
    assert fal_cdn.get(fal_cdn.put(b"x", acl="hide")) == b"x"


# --- what is missing [§8, pitfall 11] -------------------------------------------------------------


def hidden(cdn: CDN, clock: Clock) -> str:
    return cdn.put(b"x", acl="hide")


def expired(cdn: CDN, clock: Clock) -> str:
    url = cdn.put(b"x", expires_in=60)
    clock.advance(minutes=2)
    return url


def unfinished(cdn: CDN, clock: Clock) -> str:
    return initiate()["file_url"]


def never_uploaded(cdn: CDN, clock: Clock) -> str:
    return "https://v3.fal.media/files/b/0/none.bin"


@pytest.mark.fal(unfinished_read="not_found")
@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (hidden, "the file's access rules say hide"),
        (expired, r"the file expired at \d{4}-"),
        (unfinished, "the file's upload has begun and is not finished"),
        (never_uploaded, "no file was ever uploaded to this URL"),
    ],
)
def test_the_ledger_tells_apart_what_is_one_404(
    fal_cdn: CDN,
    fal_clock: Clock,
    fal_ledger: Ledger,
    kind: Callable[[CDN, Clock], str],
    note: str,
) -> None:
    answer = httpx.get(kind(fal_cdn, fal_clock))
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    (written,) = fal_ledger.exchanges[-1].notes
    assert re.match(note, written)


@pytest.mark.fal(unfinished_read="not_found")
@pytest.mark.parametrize("kind", [hidden, expired, unfinished, never_uploaded])
def test_the_toolkit_folds_them_into_one_error(
    fal_cdn: CDN, fal_clock: Clock, kind: Callable[[CDN, Clock], str]
) -> None:
    with pytest.raises(DownloadError, match="Failed to get remote file properties") as caught:
        download_file(kind(fal_cdn, fal_clock), target_dir="/data/x")
    cause: Any = caught.value.__cause__
    assert cause.status_code == 404


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (expired, "it expired at"),
        (unfinished, "its upload has begun and is not finished"),
        (never_uploaded, "there never was a file at"),
    ],
)
def test_get_says_why_there_is_nothing(
    fal_cdn: CDN, fal_clock: Clock, kind: Callable[[CDN, Clock], str], message: str
) -> None:
    with pytest.raises(EmulatorError, match=message):
        fal_cdn.get(kind(fal_cdn, fal_clock))


def test_an_unknown_call_is_noted(fal_cdn: CDN, fal_ledger: Ledger) -> None:
    assert httpx.delete(fal_cdn.put(b"x")).status_code == 404
    assert fal_ledger.exchanges[-1].notes == ["the emulator does not know this call"]


def test_a_download_in_parallel_is_whole_each_time(fal_cdn: CDN) -> None:
    url = fal_cdn.put(bytes(range(256)) * 1000)
    start = threading.Barrier(4)

    def read(_: int) -> bytes:
        start.wait()
        return read_with_requests(url)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(read, range(4))) == {bytes(range(256)) * 1000}


def test_the_toolkit_names_a_download_after_the_url(fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"x", file_name="a.bin")
    assert download_file(url, target_dir="/data/x").name == Path(url).name
