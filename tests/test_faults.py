"""What goes wrong on the network, and what the real clients make of it [facts §1.8]."""

from __future__ import annotations

import asyncio
import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import fal
import fal_client
import httpx
import pytest
import requests
from fal.toolkit import File, download_file, exceptions
from fal.toolkit.utils.download_utils import DownloadError
from versions import since

from emulator.errors import EmulatorError

if TYPE_CHECKING:
    from emulator.clock import Clock
    from emulator.hosts.origin import Origin
    from emulator.ledger import Ledger
    from emulator.network.faults import Faults
    from emulator.storage.cdn import CDN

if sys.version_info < (3, 11):  # asyncio there forgets the transport of a connection that broke
    pytestmark = pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")

URL = "https://example.com/model.bin"
INITIATE = "/storage/upload/initiate"

two_repositories = since("1.82.0", "one error names both repositories that were tried")


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
        {"host": "Example.com"},
        {"host": "*ple.com"},
        {"nth": 1},
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


@pytest.mark.filterwarnings("ignore::pytest_fal.UnusedFaultWarning")
@pytest.mark.parametrize(
    "other",
    [
        {"host": "example.org"},
        {"host": "*.example.com"},
        {"method": "PUT"},
        {"path": "/model"},
        {"path": "/models*"},
        {"nth": 2},
        {"runner": "runner-1"},
        {"address": "203.0.113.7"},
    ],
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


@two_repositories
def test_the_toolkit_gives_up_after_five_attempts(fal_faults: Faults, fal_clock: Clock) -> None:
    fal_clock.freeze()
    fault = fal_faults.status(503, path=INITIATE)
    both = r"fal_v3: .*503.*; fal: .*503"
    with pytest.raises(exceptions.FileUploadFallbackException, match=both):
        File.from_bytes(b"x", file_name="a")
    assert len(fault.struck) == 10, "five of each repository"


@two_repositories
@pytest.mark.parametrize("code", [400, 401, 403, 422])
def test_the_toolkit_does_not_repeat_its_own_mistakes(fal_faults: Faults, code: int) -> None:
    fault = fal_faults.status(code, path=INITIATE)
    with pytest.raises(exceptions.FileUploadFallbackException, match=str(code)):
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
    httpx.ConnectTimeout,
    urllib.error.URLError,
    requests.exceptions.ConnectTimeout,
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


# --- nth, runner and address ----------------------------------------------------------------------


def statuses(count: int) -> list[int]:
    return [httpx.get(URL).status_code for _ in range(count)]


def test_nth_is_that_request_alone(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.status(503, nth=3)
    assert statuses(5) == [200, 200, 503, 200, 200]


def test_nth_and_times_are_that_many_from_there(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.status(503, nth=2, times=2)
    assert statuses(5) == [200, 503, 503, 200, 200]


def test_nth_counts_only_what_matches(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_origin.serve("https://example.com/other", b"x")
    fal_faults.status(503, nth=2, path="/model.bin")
    assert statuses(1) == [200]
    assert httpx.get("https://example.com/other").status_code == 200
    assert statuses(1) == [503]


def test_nth_counts_what_another_fault_has_struck(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.status(503, times=1)
    fal_faults.status(429, nth=2)
    assert statuses(3) == [503, 429, 200]


def test_a_fault_of_one_runner(fal_faults: Faults, fal_origin: Origin, fal_runner: Any) -> None:
    fal_origin.serve(URL, b"x")
    first, second = fal_runner(Idle), fal_runner(Idle)
    fal_faults.status(503, runner=second, times=1)
    fal_faults.status(429, runner=first.name, times=1)
    assert httpx.get(URL).status_code == 200
    assert first.run(statuses, 2) == [429, 200]
    assert second.run(statuses, 2) == [503, 200]


class Idle(fal.App):
    """An app that does nothing."""

    @fal.endpoint("/")
    def run(self) -> dict:
        return {}


ADDRESSES = ("192.88.99.201", "192.88.99.202")


@pytest.mark.parametrize("get", [get_with_httpx, get_with_urllib, get_with_requests])
def test_one_of_several_addresses_fails(
    fal_emulator: Any,
    fal_faults: Faults,
    fal_origin: Origin,
    fal_ledger: Ledger,
    get: Callable[[str], bytes],
) -> None:
    fal_emulator.resolver.set("example.com", *ADDRESSES)
    fal_origin.serve(URL, b"x")
    fault = fal_faults.refuse(address=ADDRESSES[0])
    assert get(URL) == b"x", "the second is tried"
    assert len(fault.struck) == 1
    assert fal_ledger.exchanges[-1].address == ADDRESSES[1]


@clients_and(
    httpx.ConnectError,
    urllib.error.URLError,
    requests.exceptions.ConnectionError,
    aiohttp.ClientConnectorError,
)
def test_all_of_several_addresses_fail(
    fal_emulator: Any,
    fal_faults: Faults,
    fal_origin: Origin,
    get: Callable[[str], bytes],
    error: type[Exception],
) -> None:
    fal_emulator.resolver.set("example.com", *ADDRESSES)
    served = fal_origin.serve(URL, b"x")
    faults = [fal_faults.refuse(address=address) for address in ADDRESSES]
    with pytest.raises(error):
        get(URL)
    assert all(fault.struck for fault in faults)
    assert served.requests == []


def test_the_toolkit_tries_every_address(
    fal_emulator: Any, fal_faults: Faults, fal_origin: Origin
) -> None:
    fal_emulator.resolver.set("example.com", *ADDRESSES)
    fal_origin.serve(URL, b"x")
    fault = fal_faults.refuse(address=ADDRESSES[0])
    assert download_file(URL, target_dir="models").read_bytes() == b"x"
    assert len(fault.struck) == 1


def test_the_server_behind_one_address_is_broken(
    fal_emulator: Any, fal_faults: Faults, fal_origin: Origin, fal_ledger: Ledger
) -> None:
    fal_emulator.resolver.set("example.com", *ADDRESSES)
    fal_origin.serve(URL, b"0123456789")
    fal_faults.truncate(after=4, address=ADDRESSES[0])
    assert download_file(URL, target_dir="models").read_bytes() == b"0123456789"
    assert [exchange.address for exchange in fal_ledger.exchanges] == [*ADDRESSES]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"nth": 0}, "There is no request number 0. The first one is nth=1."),
        ({"hots": "x"}, "hots is no matcher of a fault. There are times, nth, host, method, "),
    ],
)
def test_a_matcher_that_makes_no_sense(
    fal_faults: Faults, which: dict[str, Any], message: str
) -> None:
    with pytest.raises(EmulatorError) as caught:
        fal_faults.status(503, **which)
    assert str(caught.value).startswith(message)


# --- names and TLS --------------------------------------------------------------------------------


@pytest.mark.parametrize("temporary", [False, True])
@clients_and(
    httpx.ConnectError,
    urllib.error.URLError,
    requests.exceptions.ConnectionError,
    aiohttp.ClientConnectorError,
)
def test_a_name_is_not_resolved(
    fal_faults: Faults,
    fal_origin: Origin,
    get: Callable[[str], bytes],
    error: type[Exception],
    temporary: bool,
) -> None:
    served = fal_origin.serve(URL, b"x")
    fault = fal_faults.dns_failure(temporary=temporary, times=1)
    text = "Temporary failure in name resolution" if temporary else "Name or service not known"
    with pytest.raises(error, match=text):
        get(URL)
    assert (len(fault.struck), served.requests) == (1, [])
    assert get(URL) == b"x"


@pytest.mark.parametrize(
    ("flaw", "text"),
    [
        ("expired", "certificate has expired"),
        ("wrong_host", "(Hostname mismatch|doesn't match)"),
        ("untrusted", "unable to get local issuer certificate"),
        ("handshake", "(?i)handshake.failure"),
    ],
)
@clients_and(
    httpx.ConnectError,
    urllib.error.URLError,
    requests.exceptions.SSLError,
    aiohttp.ClientConnectorError,
)
def test_the_tls_handshake_fails(
    fal_faults: Faults,
    fal_origin: Origin,
    get: Callable[[str], bytes],
    error: type[Exception],
    flaw: Any,
    text: str,
) -> None:
    served = fal_origin.serve(URL, b"x")
    fault = fal_faults.tls_failure(flaw, times=1)
    with pytest.raises(error, match=text):
        get(URL)
    assert (len(fault.struck), served.requests) == (1, [])
    assert get(URL) == b"x"


@pytest.mark.parametrize("flaw", ["expired", "wrong_host", "untrusted"])
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_who_does_not_verify_notices_nothing(
    fal_faults: Faults, fal_origin: Origin, flaw: Any
) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.tls_failure(flaw)
    assert httpx.get(URL, verify=False).content == b"x"
    assert requests.get(URL, verify=False, timeout=10).content == b"x"


def test_the_toolkit_gives_a_flawed_server_up(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.tls_failure()
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="models")


@pytest.mark.parametrize("method", ["dns_failure", "tls_failure"])
def test_a_connection_has_no_path_yet(fal_faults: Faults, method: str) -> None:
    with pytest.raises(EmulatorError, match=r"before the client's path is known. Leave it out"):
        getattr(fal_faults, method)(path="/x")


def test_a_flaw_that_there_is_not(fal_faults: Faults) -> None:
    with pytest.raises(EmulatorError, match=r"'old' is no flaw of TLS. There are expired, "):
        fal_faults.tls_failure("old")  # type: ignore[arg-type]


# --- time-outs without waiting --------------------------------------------------------------------


@pytest.mark.parametrize("fault", [{"path": "/*"}, {"after": 0}, {"after": 10}])
@pytest.mark.parametrize(
    ("get", "error"),
    [
        (get_with_httpx, httpx.ReadTimeout),
        (get_with_urllib, TimeoutError),
        (get_with_requests, requests.exceptions.RequestException),
    ],
)
def test_the_answer_does_not_come_in_time(
    fal_faults: Faults,
    fal_origin: Origin,
    get: Callable[[str], bytes],
    error: type[Exception],
    fault: dict[str, Any],
) -> None:
    served = fal_origin.serve(URL, bytes(100))
    begun = time.perf_counter()
    injected = fal_faults.timeout(**fault)
    with pytest.raises(error, match="timed out"):
        get(URL)
    assert time.perf_counter() - begun < 5, "the clients' own time-outs are 5 s and more"
    assert len(injected.struck) == 1
    assert bool(served.requests) == ("after" in fault), "who sends a body has handled the request"


@pytest.mark.parametrize("after", [1, 1_000_000, 1024 * 1024], ids=["1", "1 MB", "a whole chunk"])
def test_a_download_times_out_in_its_body(
    fal_faults: Faults, fal_origin: Origin, after: int
) -> None:
    fal_origin.serve(URL, size=3_000_000)
    fal_faults.timeout(after=after)
    begun = time.perf_counter()
    with pytest.raises(DownloadError):
        download_file(URL, target_dir="models")
    assert time.perf_counter() - begun < 5, "the SDK's own time-out is 30 s"


@pytest.mark.parametrize("size", [1, 10])
def test_a_body_that_is_short_enough_comes_in_time(
    fal_faults: Faults, fal_origin: Origin, size: int
) -> None:
    fal_origin.serve(URL, bytes(size))
    fal_faults.timeout(after=10)
    assert get_with_requests(URL) == bytes(size)


def test_a_client_without_a_time_out_is_reset(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.timeout(path="/*")
    connection = http.client.HTTPSConnection("example.com")
    connection.request("GET", "/model.bin")
    with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
        connection.getresponse()
    connection.close()


def test_a_client_on_an_event_loop_is_reset(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, bytes(100))
    fal_faults.timeout(after=10)
    with pytest.raises(aiohttp.ClientError):
        get_with_aiohttp(URL)


# --- breaking off ---------------------------------------------------------------------------------


@clients_and(
    httpx.RemoteProtocolError,
    http.client.IncompleteRead,
    requests.exceptions.ChunkedEncodingError,
    aiohttp.ClientPayloadError,
)
@pytest.mark.parametrize("options", [{}, {"chunked": True}], ids=["length", "chunked"])
def test_truncated(
    fal_faults: Faults,
    fal_origin: Origin,
    get: Callable[[str], bytes],
    error: type[Exception],
    options: dict[str, Any],
) -> None:
    served = fal_origin.serve(URL, bytes(100), **options)
    fal_faults.truncate(after=10)
    with pytest.raises(error):
        get(URL)
    assert served.bytes_sent == 10


@pytest.mark.parametrize("get", [get_with_httpx, get_with_urllib, get_with_requests])
def test_a_body_that_is_short_enough_is_not_truncated(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes]
) -> None:
    fal_origin.serve(URL, bytes(10))
    fal_faults.truncate(after=10)
    assert get(URL) == bytes(10)


@pytest.mark.parametrize(
    "get", [get_with_httpx, get_with_urllib, get_with_requests, get_with_aiohttp]
)
def test_dropped_after_the_body(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes]
) -> None:
    fal_origin.serve(URL, bytes(100))
    fal_faults.drop(after="body")
    assert get(URL) == bytes(100), "who knows the length has all it waits for"


def test_a_body_without_a_length_that_is_dropped_at_its_end(
    fal_faults: Faults, fal_origin: Origin
) -> None:
    fal_origin.serve(URL, bytes(100), chunked=True)
    fal_faults.drop(after="body")
    with pytest.raises(httpx.ReadError):
        httpx.get(URL)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(URL, timeout=10)


@pytest.mark.parametrize("after", [0, 2, "body"])
@pytest.mark.parametrize(
    ("post", "error"),
    [
        (lambda: httpx.post(URL, content=b"12345"), httpx.ReadError),
        (lambda: requests.post(URL, b"12345", timeout=9), requests.exceptions.ConnectionError),
        (lambda: urllib.request.urlopen(URL, b"12345"), ConnectionResetError),
    ],
    ids=["httpx", "requests", "urllib"],
)
def test_a_request_is_dropped(
    fal_faults: Faults, fal_http: Any, post: Any, error: type[Exception], after: Any
) -> None:
    route = fal_http.post(URL).respond(200)
    fault = fal_faults.drop(after, of="request", times=1)
    with pytest.raises(error):
        post()
    assert not route.called, "the server never sees it"
    assert len(fault.struck) == 1


@pytest.mark.parametrize("after", [5, 9])
def test_a_request_that_is_short_enough_arrives(
    fal_faults: Faults, fal_http: Any, fal_ledger: Ledger, after: int
) -> None:
    route = fal_http.post(URL).respond(200)
    fal_faults.drop(after, of="request")
    assert requests.post(URL, b"12345", timeout=9).status_code == 200
    assert route.calls.last.request.content == b"12345"
    assert fal_ledger.exchanges[0].notes[1:] == ["its body had only 5 bytes, and arrived"]


def test_an_upload_that_is_dropped_is_not_there(fal_faults: Faults, fal_cdn: CDN) -> None:
    fal_faults.drop(after=1000, of="request", method="PUT", host="v3b.fal.media")
    url = File.from_bytes(bytes(5000), file_name="a").url
    assert [file.url for file in fal_cdn.files] == [url], "only what the SDK put elsewhere instead"
    assert not url.startswith("https://v3b.fal.media/")  # where depends on its version


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "get", [get_with_httpx, get_with_urllib, get_with_requests, get_with_aiohttp]
)
@pytest.mark.parametrize("length", [4, None])
def test_a_length_that_is_too_short_or_missing(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes], length: int | None
) -> None:
    fal_origin.serve(URL, b"0123456789")
    fal_faults.content_length(length)
    assert get(URL) == b"0123456789"[:length]


@clients_and(
    httpx.RemoteProtocolError,
    http.client.IncompleteRead,
    requests.exceptions.ChunkedEncodingError,
    aiohttp.ClientPayloadError,
)
def test_a_length_that_is_too_long(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes], error: type[Exception]
) -> None:
    fal_origin.serve(URL, b"0123456789")
    fal_faults.content_length(11)
    with pytest.raises(error):
        get(URL)


def test_a_files_length_is_missing_on_the_cdn(fal_faults: Faults, fal_cdn: CDN) -> None:
    url = fal_cdn.put(b"0123456789")
    fal_faults.content_length(None)
    assert "content-length" not in httpx.get(url).headers
    assert "content-length" not in requests.get(url, timeout=9).headers


def test_a_corrupted_upload_is_stored_corrupted(fal_faults: Faults, fal_cdn: CDN) -> None:
    fal_faults.corrupt(of="request", method="PUT")
    url = File.from_bytes(b"0123456789", file_name="a").url
    assert fal_cdn.get(url) == b"1123456789"


def test_a_status_can_have_headers_and_a_body(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fal_faults.status(429, headers={"Retry-After": "60"}, body="later")
    answer = requests.get(URL, timeout=9)
    assert (answer.status_code, answer.headers["Retry-After"], answer.text) == (429, "60", "later")


@pytest.mark.parametrize("method", ["drop", "truncate", "timeout", "gate", "content_length"])
def test_a_negative_number_of_bytes(fal_faults: Faults, method: str) -> None:
    with pytest.raises(EmulatorError, match="takes a number of bytes, not -1"):
        getattr(fal_faults, method)(-1)


def test_a_number_of_bytes_that_is_none(fal_faults: Faults) -> None:
    with pytest.raises(
        EmulatorError, match=r"drop.after=.... takes a number of bytes, not 'boddy'"
    ):
        fal_faults.drop("boddy")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["drop", "gate", "slow", "corrupt"])
def test_a_side_that_there_is_not(fal_faults: Faults, method: str) -> None:
    with pytest.raises(EmulatorError, match="of the 'request' or of the 'response', not of 'both'"):
        getattr(fal_faults, method)(of="both")


@pytest.mark.parametrize("method", ["drop", "truncate", "timeout", "gate", "corrupt"])
def test_a_body_that_is_broken_off_is_closed(
    fal_faults: Faults, fal_http: Any, method: str
) -> None:
    closed: list[bool] = []

    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"0123456789"

        def close(self) -> None:
            closed.append(True)

    fal_http.get(URL).mock(return_value=httpx.Response(200, stream=Stream()))
    getattr(fal_faults, method)(**({} if method == "corrupt" else {"after": 4}))
    with httpx.stream("GET", URL):  # and nothing of it is read
        pass
    assert closed


# --- slow bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("get", [get_with_httpx, get_with_urllib, get_with_requests])
def test_a_slow_body_moves_a_stopped_clock(
    fal_faults: Faults, fal_origin: Origin, fal_clock: Clock, get: Callable[[str], bytes]
) -> None:
    fal_origin.serve(URL, bytes(50_000))
    fal_clock.freeze()
    start = fal_clock.now()
    fal_faults.slow(bytes_per_second=1000)
    assert get(URL) == bytes(50_000)
    assert fal_clock.now() - start == timedelta(seconds=50)


def test_a_slow_upload_moves_a_stopped_clock(
    fal_faults: Faults, fal_cdn: CDN, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    start = fal_clock.now()
    fal_faults.slow(5, bytes_per_second=1000, of="request", method="PUT")
    File.from_bytes(bytes(2000), file_name="a")
    assert fal_clock.now() - start == timedelta(seconds=7)
    assert fal_cdn.files[0].size == 2000


def test_an_event_loop_goes_on_during_a_slow_body(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, bytes(30))
    fal_faults.slow(bytes_per_second=1000)

    async def both() -> list[str]:
        order: list[str] = []

        async def get() -> None:
            async with httpx.AsyncClient() as client:
                await client.get(URL)
            order.append("body")

        async def tick() -> None:
            await asyncio.sleep(0.005)
            order.append("tick")

        await asyncio.gather(get(), tick())
        return order

    assert asyncio.run(both()) == ["tick", "body"]


@pytest.mark.parametrize("speed", [0, -1])
def test_a_speed_of_nothing(fal_faults: Faults, speed: float) -> None:
    with pytest.raises(EmulatorError, match=r"has to be more than 0. A body that never moves on"):
        fal_faults.slow(bytes_per_second=speed)


# --- gates ----------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that are held."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


CLIENTS = [get_with_httpx, get_with_urllib, get_with_requests, get_with_aiohttp]


@pytest.mark.parametrize("get", CLIENTS)
@pytest.mark.parametrize("after", [0, 4])
def test_a_gate_holds_an_answer(
    fal_faults: Faults,
    fal_origin: Origin,
    pool: ThreadPoolExecutor,
    get: Callable[[str], bytes],
    after: int,
) -> None:
    served = fal_origin.serve(URL, b"0123456789")
    gate = fal_faults.gate(after)
    got = pool.submit(get, URL)
    held = gate.wait()
    assert (held.url, gate.held, got.done()) == (URL, [held], False)
    assert (len(served.requests), served.bytes_sent) == (1, after)
    gate.open()
    assert got.result(10) == b"0123456789"
    assert (gate.held, get(URL)) == ([], b"0123456789")


def test_a_gate_holds_a_request(fal_faults: Faults, fal_cdn: CDN, pool: ThreadPoolExecutor) -> None:
    gate = fal_faults.gate(of="request", method="PUT")
    uploaded = pool.submit(File.from_bytes, b"12345", file_name="a")
    gate.wait()
    assert fal_cdn.files == []
    gate.open()
    assert fal_cdn.get(uploaded.result(10).url) == b"12345"


def test_a_gate_in_the_middle_of_an_upload(
    fal_faults: Faults, fal_cdn: CDN, pool: ThreadPoolExecutor
) -> None:
    gate = fal_faults.gate(3, of="request", method="PUT")
    uploaded = pool.submit(File.from_bytes, b"12345", file_name="a")
    assert gate.wait().bytes_received == 5, "what is read of it, in chunks"
    assert fal_cdn.files == []
    gate.open()
    assert fal_cdn.get(uploaded.result(10).url) == b"12345"


def test_a_gate_can_let_go_and_hold_on(
    fal_faults: Faults, fal_origin: Origin, pool: ThreadPoolExecutor
) -> None:
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    first = pool.submit(get_with_httpx, URL)
    gate.wait()
    assert gate.release() == 1
    assert first.result(10) == b"x"
    second = pool.submit(get_with_httpx, URL)
    gate.wait()
    assert not second.done()
    gate.open()
    assert second.result(10) == b"x"


def test_the_clock_can_open_a_gate(
    fal_faults: Faults, fal_origin: Origin, fal_clock: Clock, pool: ThreadPoolExecutor
) -> None:
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    fal_clock.on(timedelta(hours=1), gate.open)
    got = pool.submit(get_with_requests, URL)
    gate.wait()
    fal_clock.advance(minutes=59)
    assert gate.held
    fal_clock.advance(minutes=1)
    assert got.result(10) == b"x"


def test_who_hangs_up_at_a_gate_is_no_longer_held(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    gate = fal_faults.gate()
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.get(URL, timeout=0.05)
    for _ in range(500):
        if not gate.held:
            break
        time.sleep(0.01)
    assert gate.held == []


def test_what_a_gate_holds_at_the_end_of_a_test_is_reset(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import threading, httpx, requests

        URL = "https://example.com/model.bin"
        ends = []

        def get(get):
            try:
                get(URL)
            except Exception as error:
                ends.append(type(error).__name__)

        threads = [
            threading.Thread(target=get, args=(function,))
            for function in (httpx.get, lambda url: requests.get(url, timeout=60))
        ]

        def test_one(fal_faults, fal_origin):
            fal_origin.serve(URL, b"x")
            gate = fal_faults.gate()
            for thread in threads:
                thread.start()
                while len(gate.held) < len([t for t in threads if t.is_alive()]):
                    pass

        def test_two():
            for thread in threads:
                thread.join(10)
            assert sorted(ends) == ["ConnectionError", "ReadError"]
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)


@pytest.mark.filterwarnings("ignore::pytest_fal.UnusedFaultWarning")
def test_a_gate_that_nobody_comes_to(fal_faults: Faults) -> None:
    gate = fal_faults.gate(host="example.com")
    with pytest.raises(EmulatorError) as caught:
        gate.wait(0.01)
    assert str(caught.value) == (
        "No request came to the gate (host='example.com') within 0.01 s. Start it in a thread or "
        "process of its own before gate.wait(), and look at fal_ledger.exchanges for what came "
        "instead."
    )


def test_a_gate_behind_the_end_of_a_body(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"0123456789")
    gate = fal_faults.gate(after=10)
    get_with_httpx(URL)
    with pytest.raises(EmulatorError, match="came to the gate and was not held: its body has no"):
        gate.wait(0.01)


def test_a_gate_that_nobody_opens(
    fal_faults: Faults, fal_origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emulator.network.gate.HOLD_SECONDS", 0.05)
    fal_origin.serve(URL, b"x")
    fal_faults.gate()
    with pytest.raises(EmulatorError, match=r"was held by a gate for .* and nobody opened it"):
        httpx.get(URL)


# --- faults that never struck ---------------------------------------------------------------------


def test_a_fault_that_never_struck_is_reported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import httpx

        def test_one(fal_faults, fal_origin):
            fal_origin.serve("https://example.com/model.bin", b"x")
            fal_faults.status(503, path="/modle.bin")
            assert httpx.get("https://example.com/model.bin").status_code == 200
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "*test_a_fault_that_never_struck_is_reported.py:5: UnusedFaultWarning: The fault "
            "'status 503' (path='/modle.bin') never struck. The test's requests: GET "
            "https://example.com/model.bin. Take the fault out, or have it match one of them."
        ]
    )


def test_a_fault_that_need_not_strike_is_not_reported(fal_faults: Faults) -> None:
    fal_faults.refuse(optional=True)
    assert fal_faults.unused == []


def test_a_fault_that_never_struck_can_be_a_failure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(fal_faults):\n    fal_faults.refuse()\n")
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-W", "error::pytest_fal.UnusedFaultWarning"
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*The fault 'refused' never struck. There was no request.*"])


def test_a_fault_says_what_it_is(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"x")
    fault = fal_faults.drop(after=100, of="request", nth=2, host="example.com")
    get_with_httpx(URL)
    assert repr(fault) == (
        "<Fault: dropped after 100 bytes of the request (times=1, nth=2, host='example.com'), "
        "struck 0 times>"
    )
    get_with_httpx(URL)


@pytest.mark.parametrize("get", CLIENTS)
def test_a_body_that_ends_with_the_connection_can_be_cut_unseen(
    fal_faults: Faults, fal_origin: Origin, get: Callable[[str], bytes]
) -> None:
    fal_origin.serve(URL, b"0123456789", content_length="absent")
    fal_faults.truncate(after=4)
    assert get(URL) == b"0123"


def test_the_toolkit_takes_such_a_part_for_the_file(fal_faults: Faults, fal_origin: Origin) -> None:
    fal_origin.serve(URL, b"0123456789", content_length="absent")
    fal_faults.truncate(after=4)
    assert download_file(URL, target_dir="models").read_bytes() == b"0123"


def receive(connection: http.client.HTTPConnection, got: list[bytes]) -> None:
    """Read an answer in pieces, as they come."""
    answer = connection.getresponse()
    while piece := answer.read1():
        got.append(piece)


def test_all_that_comes_before_a_reset_arrives_over_a_socket(
    fal_faults: Faults, fal_origin: Origin
) -> None:
    fal_origin.serve("http://example.com/", bytes(300_000))
    fal_faults.drop(after=200_000)
    for _ in range(30):
        got: list[bytes] = []
        connection = http.client.HTTPConnection("example.com", timeout=10)
        connection.request("GET", "/")
        with pytest.raises(ConnectionResetError):
            receive(connection, got)
        connection.close()
        assert sum(map(len, got)) == 200_000
