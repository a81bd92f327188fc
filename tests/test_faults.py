"""What goes wrong on the network, and what the real clients make of it [facts §1.8]."""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import fal_client
import httpx
import pytest
import requests
from fal.toolkit import File, download_file
from fal.toolkit.exceptions import FileUploadFallbackException
from fal.toolkit.utils.download_utils import DownloadError

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.hosts.origin import Origin
    from emulator.ledger import Ledger
    from emulator.network.faults import Faults
    from emulator.storage.cdn import CDN

URL = "https://example.com/model.bin"
INITIATE = "/storage/upload/initiate"


def get_with_aiohttp(url: str) -> bytes:
    async def get() -> bytes:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return bytes(await response.read())

    return asyncio.run(get())


def get_with_urllib(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        return bytes(response.read())


def get_with_httpx(url: str) -> bytes:
    return httpx.get(url).content


def get_with_requests(url: str) -> bytes:
    return bytes(requests.get(url, timeout=10).content)


def clients_and(*errors: Any) -> pytest.MarkDecorator:
    """Each client with the error it makes of a fault."""
    clients = [get_with_httpx, get_with_urllib, get_with_requests, get_with_aiohttp]
    names = [client.__name__.removeprefix("get_with_") for client in clients]
    pairs = list(zip(clients, errors, strict=True))
    return pytest.mark.parametrize(("get", "error"), pairs, ids=names)


# --- which requests -------------------------------------------------------------------------------


def test_a_fault_strikes_every_request(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fault = fal_faults.status(503)
    assert [httpx.get(URL).status_code for _ in range(3)] == [503] * 3
    assert len(fault.struck) == 3


def test_a_fault_strikes_as_often_as_told(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.status(503, times=2)
    assert [httpx.get(URL).status_code for _ in range(3)] == [503, 503, 200]


def test_a_fault_strikes_as_often_as_told_in_parallel(
    fal_faults: Faults, fal_origin: Origin
) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.status(503, times=10)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(httpx.get, [URL] * 40))
    assert sum(answer.status_code == 503 for answer in answers) == 10


@pytest.mark.parametrize(
    "only",
    [
        {"host": "example.com"},
        {"method": "get"},
        {"path": "/model.bin"},
        {"path": "/mod*"},
        {"host": "example.com", "method": "GET", "path": "/*"},
    ],
)
def test_a_fault_strikes_what_it_names(
    fal_faults: Faults, fal_origin: Origin, only: dict[str, Any]
) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.status(503, **only)
    assert httpx.get(URL).status_code == 503


@pytest.mark.parametrize(
    "other", [{"host": "example.org"}, {"method": "PUT"}, {"path": "/model"}, {"path": "/models*"}]
)
def test_a_fault_spares_the_others(
    fal_faults: Faults, fal_origin: Origin, other: dict[str, Any]
) -> None:
    fal_origin.serve(URL, b"x")
    fault = fal_faults.status(503, **other)
    assert httpx.get(URL).status_code == 200
    assert fal_faults.unused == [fault]


def test_faults_of_the_same_requests_strike_in_turn(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.status(503, times=1)
    fal_faults.status(429, times=2)
    assert [httpx.get(URL).status_code for _ in range(4)] == [503, 429, 429, 200]


def test_the_ledger_names_the_fault(
    fal_faults: Faults, fal_origin: Origin, fal_ledger: Ledger
) -> None:
    fal_origin.serve(URL, b"x")
    fault = fal_faults.status(503)
    httpx.get(URL)
    assert fault.struck == fal_ledger.exchanges
    assert fal_ledger.exchanges[0].notes == ["fault: status 503"]


def test_users_routes_are_struck_too(fal_faults: Faults, fal_http: Any) -> None:
    route = fal_http.get("https://api.example.com/").respond(200)
    fal_faults.status(503)
    assert requests.get("https://api.example.com/", timeout=10).status_code == 503
    assert not route.called


def test_each_test_starts_without_faults(fal_faults: Faults) -> None:
    assert not fal_faults.active


@pytest.mark.parametrize("code", [200, 302, 600])
def test_only_an_error_is_a_fault(fal_faults: Faults, code: int) -> None:
    with pytest.raises(EmulatorError, match=f"{code} is no error status. Write for example"):
        fal_faults.status(code)


def test_a_fault_strikes_at_least_once(fal_faults: Faults) -> None:
    with pytest.raises(EmulatorError, match="strikes 0 times is none"):
        fal_faults.refuse(times=0)


# --- status ---------------------------------------------------------------------------------------


def test_a_status_comes_instead_of_the_server(fal_faults: Faults, fal_origin: Origin) -> None:
    served = fal_origin.serve(URL, b"x")
    fal_faults.status(503)
    answer = requests.get(URL, timeout=10)
    assert answer.json() == {"detail": "503, injected by fal_faults"}
    assert served.requests == []


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 504])
def test_the_toolkit_tries_again(
    fal_faults: Faults, fal_clock: Clock, fal_cdn: CDN, code: int
) -> None:
    fal_clock.freeze()
    fault = fal_faults.status(code, times=4, path=INITIATE)
    assert fal_cdn.get(File.from_bytes(b"x", file_name="a").url) == b"x"
    assert len(fault.struck) == 4


def test_the_toolkit_gives_up_after_five_attempts(fal_faults: Faults, fal_clock: Clock) -> None:
    fal_clock.freeze()
    fault = fal_faults.status(503, path=INITIATE)
    with pytest.raises(FileUploadFallbackException, match=r"fal_v3: .*503.*; fal: .*503"):
        File.from_bytes(b"x", file_name="a")
    assert len(fault.struck) == 10, "five of each repository"


@pytest.mark.parametrize("code", [400, 401, 403, 422])
def test_the_toolkit_does_not_repeat_its_own_mistakes(fal_faults: Faults, code: int) -> None:
    fault = fal_faults.status(code, path=INITIATE)
    with pytest.raises(FileUploadFallbackException, match=str(code)):
        File.from_bytes(b"x", file_name="a")
    assert len(fault.struck) == 2


def test_back_off_passes_in_virtual_time(fal_faults: Faults, fal_clock: Clock) -> None:
    fal_clock.freeze()
    start = fal_clock.now()
    fal_faults.status(503, times=4, path=INITIATE)
    File.from_bytes(b"x", file_name="a")
    waited = fal_clock.now() - start
    assert timedelta(seconds=0.75) <= waited <= timedelta(seconds=2.25), "1.5 s, give or take half"


def test_fal_client_falls_back_whatever_the_status(fal_faults: Faults) -> None:
    fal_faults.status(400, path="/files/upload")
    url = fal_client.SyncClient().upload(b"x", "text/plain", "a.txt")
    assert url.startswith("https://storage.googleapis.com/")


# --- refused and timed out ------------------------------------------------------------------------


@clients_and(
    httpx.ConnectError,
    urllib.error.URLError,
    requests.exceptions.ConnectionError,
    aiohttp.ClientConnectorError,
)
def test_refused(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes], error: type[Exception]
) -> None:
    fal_origin.serve(URL, b"x")
    fault = fal_faults.refuse()
    with pytest.raises(error):
        get(URL)
    assert fault.struck


@clients_and(
    httpx.TimeoutException,
    TimeoutError,
    requests.exceptions.Timeout,
    (TimeoutError, aiohttp.ClientConnectorError),
)
def test_timed_out(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes], error: type[Exception]
) -> None:
    fal_origin.serve(URL, b"x")
    fault = fal_faults.timeout()
    with pytest.raises(error):
        get(URL)
    assert fault.struck


def test_refused_once(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fault = fal_faults.refuse(times=1)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(URL, timeout=10)
    assert requests.get(URL, timeout=10).content == b"x"
    assert len(fault.struck) == 1


@pytest.mark.parametrize("kind", ["refuse", "timeout"])
def test_the_toolkit_tries_again_after_no_answer(
    fal_faults: Faults, fal_clock: Clock, fal_cdn: CDN, kind: str
) -> None:
    fal_clock.freeze()
    fault = getattr(fal_faults, kind)(times=2, path=INITIATE)
    assert fal_cdn.get(File.from_bytes(b"x", file_name="a").url) == b"x"
    assert len(fault.struck) == 2


@pytest.mark.parametrize("kind", ["refuse", "timeout", "drop"])
def test_fal_client_tries_again_after_no_answer(
    fal_faults: Faults, fal_clock: Clock, fal_cdn: CDN, kind: str
) -> None:
    fal_clock.freeze()
    fault = getattr(fal_faults, kind)(times=2, path="/files/upload")
    url = fal_client.SyncClient().upload(b"x", "text/plain", "a.txt")
    assert url.startswith("https://v3b.fal.media/")
    assert len(fault.struck) == 2


def test_a_refused_download(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.refuse(host="example.com")
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="/data/x")


# --- dropped --------------------------------------------------------------------------------------


@clients_and(
    httpx.ReadError,
    ConnectionResetError,
    requests.exceptions.ConnectionError,
    aiohttp.ClientError,
)
def test_dropped_without_an_answer(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes], error: type[Exception]
) -> None:
    served = fal_origin.serve(URL, b"12345")
    fal_faults.drop()
    with pytest.raises(error):
        get(URL)
    assert served.requests, "the server has handled it (for aiohttp twice: it tries again)"


@clients_and(
    httpx.ReadError,
    ConnectionResetError,
    requests.exceptions.RequestException,
    aiohttp.ClientError,
)
def test_dropped_in_the_body(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes], error: type[Exception]
) -> None:
    served = fal_origin.serve(URL, size=5_000_000)
    fal_faults.drop(after=2_000_000)
    with pytest.raises(error):
        get(URL)
    assert 2_000_000 <= served.bytes_sent < 5_000_000


def test_what_came_before_the_drop_is_there(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"0123456789")
    fal_faults.drop(after=4)
    with httpx.stream("GET", URL) as response:
        chunks = response.iter_bytes()
        assert next(chunks) == b"0123"
        with pytest.raises(httpx.ReadError):
            next(chunks)


@pytest.mark.parametrize("get", [get_with_httpx, get_with_requests])
def test_a_body_that_ends_before_the_drop_arrives(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes]
) -> None:
    fal_origin.serve(URL, b"0123456789")
    fal_faults.drop(after=10)
    assert get(URL) == b"0123456789"


def test_a_dropped_download_leaves_nothing_in_place(
    fal_faults: Faults, fal_origin: Origin, fal_data: Any
) -> None:
    fal_origin.serve(URL, size=5_000_000)
    fal_faults.drop(after=2_000_000)
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="/data/x")
    assert "x/model.bin" not in fal_data.tree()


def test_an_upload_whose_answer_is_lost_is_there(fal_faults: Faults, fal_cdn: CDN) -> None:
    fal_faults.drop(times=1, path="/files/upload")
    url = fal_client.SyncClient().upload(b"x", "text/plain", "a.txt")
    first, second = fal_cdn.files
    assert (first.url != url, second.url) == (True, url), "the client has uploaded it twice"


# --- slow -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [90, timedelta(seconds=90)])
def test_slow_moves_a_stopped_clock(
    fal_faults: Faults, fal_origin: Origin, fal_clock: Clock, delay: float | timedelta
) -> None:
    fal_origin.serve(URL, b"x")
    fal_clock.freeze()
    start = fal_clock.now()
    fal_faults.slow(delay)
    assert get_with_requests(URL) == b"x"
    assert fal_clock.now() - start == timedelta(seconds=90)


def test_slow_goes_together_with_other_faults(
    fal_faults: Faults, fal_origin: Origin, fal_clock: Clock
) -> None:
    fal_origin.serve(URL, b"x")
    fal_clock.freeze()
    start = fal_clock.now()
    fal_faults.status(503)
    fal_faults.slow(90)
    assert httpx.get(URL).status_code == 503
    assert fal_clock.now() - start == timedelta(seconds=90)


def test_a_file_expires_while_the_network_is_slow(
    fal_faults: Faults, fal_cdn: CDN, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    url = fal_cdn.put(b"x", expires_in=60)
    fal_faults.slow(61)
    assert httpx.get(url).status_code == 404


# --- corrupted ------------------------------------------------------------------------------------


@pytest.mark.parametrize("get", [get_with_httpx, get_with_urllib, get_with_requests])
def test_corrupt_flips_a_bit_of_every_64th_byte(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes]
) -> None:
    content = bytes(range(256)) * 8192
    fal_origin.serve(URL, content)
    fal_faults.corrupt()
    received = get(URL)
    assert len(received) == len(content)
    flipped = [i for i, (a, b) in enumerate(zip(received, content, strict=True)) if a != b]
    assert flipped == list(range(0, len(content), 64))
    assert received[0] == content[0] ^ 1


def test_a_corrupted_download_has_the_right_length(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"0123456789")
    fal_faults.corrupt(host="example.com")
    path = download_file(URL, target_dir="/data/x")
    assert path.read_bytes() == b"1123456789"


def test_what_is_stored_is_not_corrupted(fal_faults: Faults, fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"0123456789")
    fal_faults.corrupt(times=1)
    assert [httpx.get(url).content for _ in range(2)] == [b"1123456789", b"0123456789"]


def test_http_client_sees_a_reset(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, size=5_000_000)
    fal_faults.drop(after=1_000_000)
    connection = http.client.HTTPSConnection("example.com")
    connection.request("GET", "/model.bin")
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        connection.getresponse().read()
    connection.close()
