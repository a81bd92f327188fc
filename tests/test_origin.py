"""Everybody else's servers, with the quirks servers have."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests
from fal.toolkit import download_file
from fal.toolkit.utils.download_utils import DownloadError
from memory import MEBIBYTE, memory_grows_by_less_than

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from emulator.hosts.origin import Origin
    from emulator.ledger import Ledger

URL = "https://example.com/model.bin"
GIGABYTE = 1_000_000_000


@contextmanager
def ask(url: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
    """What the standard library's own client gets over the socket, unchanged."""
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc)
    with closing(connection):
        connection.request("GET", parts.path, headers=headers)
        with connection.getresponse() as response:
            yield response


def read_with_http_client(url: str) -> bytes:
    with ask(url) as answer:
        return answer.read()


# --- where ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [URL, "http://example.com/a", "https://example.com:8443/a"])
def test_any_url_can_be_served(fal_origin: Origin, url: str) -> None:
    fal_origin.serve(url, b"content")
    assert httpx.get(url).content == b"content"
    assert requests.get(url, timeout=10).content == b"content"
    assert urllib.request.urlopen(url).read() == b"content"


def test_text_is_sent_as_utf_8(fal_origin: Origin) -> None:
    fal_origin.serve(URL, "süß")
    assert httpx.get(URL).content == "süß".encode()


def test_without_a_query_any_query_is_answered(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"content")
    assert httpx.get(f"{URL}?download=true").content == b"content"


def test_with_a_query_just_that_one_is_answered(fal_origin: Origin) -> None:
    fal_origin.serve(f"{URL}?v=1 a", b"one")
    fal_origin.serve(f"{URL}?v=2", b"two")
    assert httpx.get(f"{URL}?v=2").content == b"two"
    assert httpx.get(URL, params={"v": "1 a"}).content == b"one"
    with pytest.raises(Exception, match=re.escape('fal_origin.serve("https://example.com/')):
        httpx.get(f"{URL}?v=3")


@pytest.mark.parametrize("asked", ["a%20b's.bin", "a b's.bin", "a%20b%27s.bin"])
def test_a_path_may_be_quoted_or_not(fal_origin: Origin, asked: str) -> None:
    fal_origin.serve("https://example.com/a b's.bin", b"content")
    assert httpx.get(f"https://example.com/{asked}").content == b"content"


def test_the_host_is_served_in_any_case(fal_origin: Origin) -> None:
    fal_origin.serve("https://Example.COM/a", b"content")
    assert httpx.get("https://example.com/a").content == b"content"


def test_http_and_https_are_different_urls(fal_origin: Origin) -> None:
    fal_origin.serve("http://example.com/a", b"content")
    with pytest.raises(Exception, match="nothing answers"):
        httpx.get("https://example.com/a")


@pytest.mark.parametrize("url", ["example.com/a", "ftp://example.com/a", "/a", "https:///a"])
def test_what_is_no_url_is_refused_with_an_example(fal_origin: Origin, url: str) -> None:
    with pytest.raises(EmulatorError, match=r"Write it whole, for example \"https://example.com/"):
        fal_origin.serve(url, b"")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5, "content": b"x"}, "leave out content and gzip, or size"),
        ({"size": 5, "gzip": True}, "leave out content and gzip, or size"),
        ({"chunked": True, "content_length": 5}, "leave out content_length, or chunked"),
        ({"file_name": "a", "content_disposition": "inline"}, "leave out file_name, or it"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    fal_origin: Origin, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EmulatorError, match=message):
        fal_origin.serve(URL, **options)


# --- what -----------------------------------------------------------------------------------------


def test_a_status_comes_with_its_content(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"busy", status=503)
    answer = requests.get(URL, timeout=10)
    assert (answer.status_code, answer.content) == (503, b"busy")


def test_no_type_is_sent_unless_given(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_origin.serve(f"{URL}.png", b"x", content_type="image/png")
    assert "content-type" not in httpx.get(URL).headers
    assert httpx.get(f"{URL}.png").headers["content-type"] == "image/png"


def test_more_headers_are_sent(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x", headers={"X-Linked-Size": "1", "X-Note": "süß"})
    with ask(URL) as answer:
        assert answer.headers["X-Linked-Size"] == "1"
        assert answer.headers["X-Note"].encode("latin-1").decode() == "süß"


def test_a_file_name_is_an_attachments(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x", file_name="a.bin")
    assert httpx.get(URL).headers["content-disposition"] == 'attachment; filename="a.bin"'


@pytest.mark.parametrize("name", ["weights v2.bin", 'a "b".bin', "süß.bin"])
def test_the_toolkit_takes_the_file_name(fal_origin: Origin, name: str) -> None:
    fal_origin.serve(URL, b"x", file_name=name)
    assert download_file(URL, target_dir="/data/x").name == name


def test_the_whole_content_disposition_can_be_given(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x", content_disposition="inline; filename=b.bin")
    assert httpx.get(URL).headers["content-disposition"] == "inline; filename=b.bin"


def test_content_changes_while_it_is_served(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"old")
    served.update("new")
    assert httpx.get(URL).content == b"new"


def test_serving_again_replaces(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"old")
    fal_origin.serve(URL, b"new")
    assert httpx.get(URL).content == b"new"


def test_chunks_are_bytes(fal_origin: Origin) -> None:
    fal_origin.serve(URL, size=3 * MEBIBYTE)
    with httpx.stream("GET", URL) as response:
        assert {type(chunk) for chunk in response.iter_bytes()} == {bytes}


# --- Content-Length -------------------------------------------------------------------------------


def test_the_length_is_told(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"12345")
    assert httpx.get(URL).headers["content-length"] == "5"


@pytest.mark.parametrize("options", [{"content_length": "absent"}, {"chunked": True}])
def test_the_length_can_be_missing(fal_origin: Origin, options: dict[str, Any]) -> None:
    fal_origin.serve(URL, b"12345", **options)
    with ask(URL) as answer:
        assert answer.headers["Content-Length"] is None
        assert answer.read() == b"12345"
    assert download_file(URL, target_dir="/data/x").read_bytes() == b"12345"


def test_chunked_is_said(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"12345", chunked=True)
    with ask(URL) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert answer.read() == b"12345"
    assert httpx.get(URL).headers["transfer-encoding"] == "chunked"


def test_a_length_that_is_too_large_breaks_the_body_off(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"12345", content_length=10)
    with pytest.raises(http.client.IncompleteRead) as caught:
        read_with_http_client(URL)
    assert caught.value.partial == b"12345"


def test_a_length_that_is_too_large_fails_urllib_too(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"12345", content_length=10)
    with pytest.raises(http.client.IncompleteRead):
        urllib.request.urlopen(URL).read()


@pytest.mark.parametrize(
    "read",
    [
        lambda: read_with_http_client(URL),
        lambda: urllib.request.urlopen(URL).read(),
        lambda: requests.get(URL, timeout=10).content,
        lambda: httpx.get(URL).content,
    ],
    ids=["http.client", "urllib", "requests", "httpx"],
)
def test_a_length_that_is_too_small_ends_the_body(
    fal_origin: Origin, read: Callable[[], bytes]
) -> None:
    served = fal_origin.serve(URL, b"12345", content_length=3)
    assert read() == b"123"
    assert served.bytes_sent == 3


# --- compression ----------------------------------------------------------------------------------


def test_gzip_is_sent_whether_or_not_it_is_wanted(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"12345" * 100, gzip=True)
    with ask(URL, **{"Accept-Encoding": "identity"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        body = answer.read()
    assert answer.headers["Content-Length"] == str(len(body))
    assert gzip.decompress(body) == b"12345" * 100


@pytest.mark.parametrize("get", [httpx.get, requests.get])
def test_clients_that_can_decompress(fal_origin: Origin, get: Callable[..., Any]) -> None:
    served = fal_origin.serve(URL, b"12345" * 1000, gzip=True)
    assert get(URL, timeout=10).content == b"12345" * 1000
    assert served.bytes_sent < 1000


# --- ranges ---------------------------------------------------------------------------------------


def test_ranges_are_answered(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"0123456789")
    answer = requests.get(URL, headers={"Range": "bytes=2-4"}, timeout=10)
    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["Content-Range"] == "bytes 2-4/10"


def test_a_range_behind_the_end(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"0123456789")
    answer = httpx.get(URL, headers={"Range": "bytes=10-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10")


def test_a_server_may_know_no_ranges(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"0123456789", ranges=False)
    answer = httpx.get(URL, headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert "accept-ranges" not in answer.headers


def test_head_has_the_length_and_no_body(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"12345")
    answer = httpx.head(URL)
    assert (answer.headers["content-length"], answer.content) == ("5", b"")
    assert served.bytes_sent == 0


# --- who may --------------------------------------------------------------------------------------


def test_required_headers(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"secret", require_headers={"Authorization": "Bearer hf_1"})
    answer = httpx.get(URL)
    assert answer.status_code == 401
    assert answer.json() == {"detail": "header authorization is missing or wrong"}
    assert httpx.get(URL, headers={"authorization": "Bearer hf_1"}).content == b"secret"


def test_the_status_of_the_others(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x", require_headers={"X-A": "1"}, require_status=403)
    assert httpx.get(URL, headers={"X-A": "2"}).status_code == 403


def test_the_toolkit_sends_what_a_server_requires(fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"secret", require_headers={"Authorization": "Bearer hf_1"})
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="/data/x")
    headers = {"Authorization": "Bearer hf_1"}
    assert download_file(URL, "/data/x", request_headers=headers).read_bytes() == b"secret"


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["https://cdn.example.org/real.bin", "/real.bin", "real.bin"])
def test_redirects_are_followed(fal_origin: Origin, target: str) -> None:
    fal_origin.serve(URL, redirect_to=target)
    fal_origin.serve(urllib.parse.urljoin(URL, target), b"there")
    assert httpx.get(URL, follow_redirects=True).content == b"there"
    assert requests.get(URL, timeout=10).content == b"there"
    assert urllib.request.urlopen(URL).read() == b"there"
    assert download_file(URL, target_dir="/data/x").read_bytes() == b"there"


def test_a_redirect_is_302_or_as_given(fal_origin: Origin) -> None:
    fal_origin.serve(URL, redirect_to="/a")
    assert httpx.get(URL).status_code == 302
    fal_origin.serve(URL, redirect_to="/a", status=308)
    assert httpx.get(URL).status_code == 308


def test_the_toolkit_gives_up_a_circle(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, redirect_to=URL)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="/data/x")
    assert len(served.requests) == 6, "five redirects are followed"


def test_the_toolkit_keeps_its_credentials_to_itself(fal_origin: Origin) -> None:
    elsewhere = fal_origin.serve("https://cdn.example.org/real.bin", b"there")
    fal_origin.serve(URL, redirect_to="https://cdn.example.org/real.bin")
    download_file(URL, "/data/x", request_headers={"Authorization": "Bearer hf_1"})
    assert "authorization" not in elsewhere.requests[0].request_headers


# --- counting -------------------------------------------------------------------------------------


def test_requests_and_bytes_are_counted(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"12345")
    httpx.get(URL)
    requests.get(URL, timeout=10)
    assert [(r.client, r.status, r.bytes_sent) for r in served.requests] == [
        ("httpx", 200, 5),
        ("wire", 200, 5),
    ]
    assert served.bytes_sent == 10


def test_requests_are_the_ledgers(fal_origin: Origin, fal_ledger: Ledger) -> None:
    served = fal_origin.serve(URL, b"12345")
    httpx.get(URL)
    assert served.requests == fal_ledger.requests(host="example.com")


@pytest.mark.parametrize("client", ["httpx", "urllib", "http.client"])
def test_bytes_that_nobody_took_do_not_count(fal_origin: Origin, client: str) -> None:
    served = fal_origin.serve(URL, size=GIGABYTE)
    if client == "httpx":
        with httpx.stream("GET", URL) as response:
            next(response.iter_bytes())
    elif client == "urllib":
        with urllib.request.urlopen(URL) as opened:
            opened.read(1)
    else:
        with ask(URL) as answer:
            answer.read(1)
    assert served.requests[0].bytes_sent < 50 * MEBIBYTE


def test_a_refused_download_sends_nothing_more(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, size=GIGABYTE)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="/data/x", filesize_limit=1)
    assert served.bytes_sent < 50 * MEBIBYTE


# --- synthetic bodies -----------------------------------------------------------------------------


def test_a_synthetic_body_is_the_same_each_time(fal_origin: Origin) -> None:
    fal_origin.serve(URL, size=3_000_001)
    one, two = requests.get(URL, timeout=10).content, urllib.request.urlopen(URL).read()
    assert len(one) == 3_000_001
    assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest()


def test_a_part_of_a_synthetic_body_is_a_part_of_the_whole(fal_origin: Origin) -> None:
    fal_origin.serve(URL, size=3_000_001)
    whole = httpx.get(URL).content
    part = httpx.get(URL, headers={"Range": "bytes=1048000-2098000"}).content
    assert part == whole[1048000:2098001]


def test_a_synthetic_body_becomes_a_real_one(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, size=1000)
    served.update(b"real")
    assert httpx.get(URL).content == b"real"


def test_a_gigabyte_takes_no_memory(fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, size=GIGABYTE)
    buffer = bytearray(MEBIBYTE)
    with memory_grows_by_less_than(60 * MEBIBYTE), ask(URL) as response:
        while response.readinto(buffer):
            pass
    assert served.bytes_sent == GIGABYTE


def test_a_download_by_the_toolkit_takes_no_memory(fal_origin: Origin) -> None:
    size = 100 * MEBIBYTE
    fal_origin.serve(URL, size=size)
    with memory_grows_by_less_than(60 * MEBIBYTE):
        path = download_file(URL, target_dir="/data/x")
    assert Path(path).stat().st_size == size


def test_what_is_no_content_is_refused(fal_origin):
    with pytest.raises(EmulatorError) as caught:
        fal_origin.serve("https://example.com/a", object())
    assert str(caught.value) == (
        "serve(content=...) is bytes or text, not object. For a server of your own write a "
        "route: fal_http.route(host=...).mock(side_effect=...); docs/webhooks.md shows one for "
        "an ASGI app."
    )
