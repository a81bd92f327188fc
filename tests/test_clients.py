"""One router answers every client: in process for httpx and urllib, over the wire for the rest."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import aiohttp
import boto3
import httpx
import pytest
import requests
import urllib3
from botocore.config import Config
from memory import MEBIBYTE, memory_grows_by_less_than

from emulator.errors import UnknownHostError
from emulator.storage import mounts

if sys.version_info < (3, 11):  # asyncio there forgets the transport of a connection that broke
    pytestmark = pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")

URL = "https://api.example.com/v1/thing?q=1"


def by_httpx(url):
    return httpx.get(url).content


def by_httpx_async(url):
    async def get():
        async with httpx.AsyncClient() as client:
            return (await client.get(url)).content

    return asyncio.run(get())


def by_urllib(url):
    with urllib.request.urlopen(url) as response:
        return response.read()


def by_http_client(url):
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port)
    connection.request("GET", f"{parts.path}?{parts.query}")
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def by_requests(url):
    return requests.get(url).content


def by_urllib3(url):
    with urllib3.PoolManager() as pool:
        return pool.request("GET", url).data


def by_aiohttp(url):
    async def get():
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return await response.read()

    return asyncio.run(get())


CLIENTS = [
    by_httpx,
    by_httpx_async,
    by_urllib,
    by_http_client,
    by_requests,
    by_urllib3,
    by_aiohttp,
]
WIRE = {"by_http_client", "by_requests", "by_urllib3", "by_aiohttp"}
every_client = pytest.mark.parametrize("get", CLIENTS, ids=lambda client: client.__name__)


@every_client
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_respx_route_answers(get, scheme, fal_http):
    route = fal_http.get(f"{scheme}://api.example.com/v1/thing", params={"q": "1"})
    route.respond(200, json={"ok": True})
    assert json.loads(get(f"{scheme}://api.example.com/v1/thing?q=1")) == {"ok": True}
    assert route.call_count == 1


@every_client
def test_the_ledger_has_the_exchange(get, fal_http, fal_ledger):
    fal_http.get(url__startswith="https://api.example.com/").respond(200, content=b"12345")
    get(URL)
    (exchange,) = [e for e in fal_ledger.exchanges if e.host == "api.example.com"]
    assert (exchange.method, exchange.path, exchange.status) == ("GET", "/v1/thing", 200)
    assert exchange.bytes_sent == 5
    assert (exchange.client == "wire") is (get.__name__ in WIRE)


@every_client
def test_an_async_side_effect_answers(get, fal_http):
    async def answer(request):
        await asyncio.sleep(0)
        return httpx.Response(200, content=b"async")

    fal_http.get("https://api.example.com/v1/thing").mock(side_effect=answer)
    assert get(URL) == b"async"


@every_client
def test_a_side_effect_that_writes_to_data_writes_to_the_emulated_one(get, fal_http, fal_data):
    def answer(request):
        with open("/data/from-a-side-effect", "wb") as file:
            file.write(request.method.encode())
        return httpx.Response(200)

    fal_http.get("https://api.example.com/v1/thing").mock(side_effect=answer)
    get(URL)
    assert fal_data.tree() == ["from-a-side-effect"]


@every_client
def test_an_unknown_host_is_refused_with_the_line_to_write(get, fal_emulator):
    with pytest.raises(Exception) as caught:
        get("https://nowhere.example.com/x")
    text = str(caught.value)
    assert "nowhere.example.com" in text
    assert "fal_origin.serve(" in text
    assert any("refused" in problem for problem in fal_emulator.ledger.problems)


@every_client
def test_another_url_of_a_known_host_is_refused_and_named_in_the_ledger(
    get, fal_origin, fal_ledger
):
    fal_origin.serve("https://files.example.com/a", b"a")
    try:
        answer = get("https://files.example.com/b")
    except UnknownHostError as error:
        answer = str(error).encode()
    assert b"nothing answers for files.example.com" in answer
    assert any(
        "at files.example.com is served: https://files.example.com/a" in problem
        for problem in fal_ledger.problems
    )


@every_client
def test_a_port_of_the_url_is_part_of_it(get, fal_origin):
    fal_origin.serve("https://files.example.com:8443/a", b"with a port")
    assert get("https://files.example.com:8443/a?") == b"with a port"


@every_client
def test_localhost_is_always_allowed(get, fal_emulator):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"real")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        try:
            assert get(f"http://127.0.0.1:{server.server_port}/x?") == b"real"
        finally:
            thread.join()


def serve_once(content):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    return server, thread


@pytest.mark.parametrize("get", [by_httpx, by_httpx_async, by_urllib])
def test_a_route_that_passes_through_lets_localhost_answer(get, fal_http):
    server, thread = serve_once(b"passed")
    with server:
        fal_http.get(f"http://127.0.0.1:{server.server_port}/x").pass_through()
        assert get(f"http://127.0.0.1:{server.server_port}/x") == b"passed"
        thread.join()


def test_a_route_of_the_users_wins_over_localhost_for_httpx(fal_http):
    fal_http.get("http://localhost:9/x").respond(200, content=b"routed")
    assert httpx.get("http://localhost:9/x").content == b"routed"


@pytest.fixture
def real_name(fal_emulator, tmp_path):
    """``allowed.example.com``, to the real resolver this machine's loopback."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 allowed.example.com localhost\n")
    mounts.bind(str(hosts), "/etc/hosts")
    yield
    mounts.unmount("/etc/hosts")


@every_client
@pytest.mark.fal(allow_hosts=["allowed.example.com"])
def test_an_allowed_host_is_the_real_one(get, real_name, fal_emulator):
    server, thread = serve_once(b"real")
    with server:
        assert get(f"http://allowed.example.com:{server.server_port}/x?") == b"real"
        thread.join()
    assert fal_emulator.ledger.exchanges == []


@every_client
def test_a_route_that_passes_a_host_through_lets_the_real_one_answer(get, real_name, fal_http):
    fal_http.route(host="allowed.example.com").pass_through()
    server, thread = serve_once(b"real")
    with server:
        assert get(f"http://allowed.example.com:{server.server_port}/x?") == b"real"
        thread.join()


@pytest.mark.fal(allow_hosts=["allowed.example.com"])
def test_where_a_host_is_allowed_the_usual_authorities_are_trusted_too(fal_emulator):
    context = ssl.create_default_context()
    assert len(context.get_ca_certs()) > 1


def test_otherwise_only_the_emulators_authority_is_trusted(fal_emulator):
    (authority,) = ssl.create_default_context().get_ca_certs()
    assert "pytest-fal" in str(authority["subject"])


def test_a_users_route_wins_over_the_platforms_host(fal_http, fal_cdn):
    from fal.toolkit import File

    fal_http.post("https://rest.alpha.fal.ai/storage/upload/initiate").respond(
        json={"file_url": "https://mine/f", "upload_url": "https://mine/u"}
    )
    fal_http.put("https://mine/u").respond(200)
    assert File.from_bytes(b"x", file_name="x").url == "https://mine/f"
    assert fal_cdn.files == []


def test_boto3_reaches_a_route_over_the_wire(fal_http):
    route = fal_http.put("https://bucket.s3.amazonaws.com/key").respond(200)
    client = boto3.client(
        "s3",
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(retries={"max_attempts": 1}),
    )
    client.put_object(Bucket="bucket", Key="key", Body=b"body")
    client.close()
    assert route.calls.last.request.content.endswith(b"body") or route.called


def test_requests_with_a_session_of_before_the_emulator(fal_http):
    fal_http.get("https://api.example.com/x").respond(200, content=b"ok")
    with requests.Session() as session:
        assert session.get("https://api.example.com/x").content == b"ok"
        assert session.get("https://api.example.com/x").content == b"ok"


def test_proxies_of_the_environment_are_out_of_the_way(pytester):
    pytester.makepyfile(
        """
        import httpx, requests, urllib.request

        def test_it(fal_http):
            fal_http.get("https://api.example.com/x").respond(200, content=b"ok")
            assert httpx.get("https://api.example.com/x").content == b"ok"
            assert requests.get("https://api.example.com/x").content == b"ok"
            assert urllib.request.urlopen("https://api.example.com/x").read() == b"ok"
        """
    )
    proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://10.1.2.3:3128")
    environment = {**os.environ, **proxies}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(pytester.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- names and addresses -------------------------------------------------------------------------


def test_emulated_names_resolve_to_globally_routable_addresses(fal_origin):
    from fal.toolkit.utils.ssrf import is_globally_routable_ip

    fal_origin.serve("https://files.example.com/a", b"a")
    ((_, _, _, _, (address, port)),) = socket.getaddrinfo(
        "files.example.com", 443, type=socket.SOCK_STREAM
    )
    assert is_globally_routable_ip(address)
    assert address.startswith("192.88.99.")
    assert port == 443
    assert socket.gethostbyname("files.example.com") == address


def test_a_name_can_be_given_a_private_address_and_the_sdk_refuses_it(fal_emulator, fal_origin):
    from fal.toolkit import download_file

    fal_origin.serve("https://internal.example.com/a", b"secret")
    fal_emulator.resolver.set("internal.example.com", "10.0.0.5")
    with pytest.raises(Exception, match="non-routable address"):
        download_file("https://internal.example.com/a", target_dir="x")


def test_a_private_address_answers_clients_that_do_not_mind(fal_emulator, fal_origin):
    fal_origin.serve("https://internal.example.com/a", b"inside")
    fal_emulator.resolver.set("internal.example.com", "10.0.0.5")
    assert by_requests("https://internal.example.com/a") == b"inside"


def test_several_addresses_come_in_the_order_given(fal_emulator, fal_origin):
    fal_origin.serve("https://files.example.com/a", b"a")
    fal_emulator.resolver.set("files.example.com", "1.1.1.1", "8.8.8.8", "2606:4700::1111")
    found = socket.getaddrinfo("files.example.com", 443, type=socket.SOCK_STREAM)
    assert [info[4][0] for info in found] == ["1.1.1.1", "8.8.8.8", "2606:4700::1111"]


def test_an_ipv6_address_is_reached_too(fal_emulator, fal_origin):
    fal_origin.serve("https://files.example.com/a", b"six")
    fal_emulator.resolver.set("files.example.com", "2606:4700::1111")
    assert by_http_client("https://files.example.com/a?") == b"six"


def test_an_address_that_is_none_is_refused(fal_emulator):
    with pytest.raises(ValueError, match="not-an-address"):
        fal_emulator.resolver.set("files.example.com", "not-an-address")


def test_addresses_of_one_test_are_forgotten_in_the_next(pytester):
    pytester.makepyfile(
        """
        import socket
        def test_one(fal_emulator, fal_origin):
            fal_origin.serve("https://a.example.com/", b"")
            fal_emulator.resolver.set("a.example.com", "10.0.0.5")
        def test_two(fal_emulator, fal_origin):
            fal_origin.serve("https://a.example.com/", b"")
            assert socket.gethostbyname("a.example.com").startswith("192.88.99.")
        """
    )
    pytester.runpytest_subprocess("-p", "no:randomly").assert_outcomes(passed=2)


def test_an_address_of_one_test_is_nobodys_in_the_next(fal_emulator):
    fal_emulator.resolver.set("a.example.com", "93.184.216.34")
    fal_emulator.reset()
    with socket.socket() as sock, pytest.raises(UnknownHostError):
        sock.connect(("93.184.216.34", 443))


def test_a_literal_address_that_nobody_serves_is_refused(fal_emulator):
    with socket.socket() as sock, pytest.raises(UnknownHostError) as caught:
        sock.connect(("93.184.216.34", 443))
    assert "connecting to 93.184.216.34:443: nothing answers for 93.184.216.34" in str(caught.value)


def test_a_literal_address_can_be_served(fal_origin):
    fal_origin.serve("http://93.184.216.34/a", b"by number")
    assert by_http_client("http://93.184.216.34/a?") == b"by number"


def test_datagrams_to_the_outside_are_refused(fal_emulator):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(OSError):
        sock.connect(("8.8.8.8", 53))


NOTHING_ANSWERS = r"connecting to 8\.8\.8\.8:53: nothing answers for 8\.8\.8\.8 in this test"


@pytest.mark.parametrize(
    "send",
    [
        lambda sock, address: sock.sendto(b"x", address),
        lambda sock, address: sock.sendto(b"x", 0, address),
        lambda sock, address: sock.sendmsg([b"x"], [], 0, address),
    ],
    ids=["sendto", "sendto with flags", "sendmsg"],
)
def test_a_datagram_to_the_outside_is_refused(fal_ledger, send):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(UnknownHostError, match=NOTHING_ANSWERS):
            send(sock, ("8.8.8.8", 53))
        with pytest.raises(UnknownHostError, match="looking up example"):
            send(sock, ("example.com", 53))
    assert [event.kind for event in fal_ledger.events] == ["refused", "refused"]


def test_one_to_an_emulated_address_is_refused(fal_origin):
    """What answers there is a server of streams."""
    fal_origin.serve("https://example.com/a", b"x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(UnknownHostError, match=r"nothing answers for 192\.88\.99"):
            sock.sendto(b"x", ("example.com", 443))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_datagrams_on_this_machine_arrive(fal_emulator, host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            assert sender.sendto(b"one", (host, port)) == 3
            assert sender.sendmsg([b"t", b"wo"], [], 0, (host, port)) == 3
            sender.connect((host, port))
            assert sender.sendmsg([b"three"]) == 5
        assert [receiver.recv(9) for _ in range(3)] == [b"one", b"two", b"three"]


def test_no_name_of_an_address_is_looked_up(fal_origin):
    fal_origin.serve("https://example.com/a", b"x")
    address = socket.gethostbyname("example.com")
    assert socket.gethostbyaddr(address) == ("example.com", [], [address])
    assert socket.gethostbyaddr("example.com") == ("example.com", [], [address])
    assert socket.getnameinfo((address, 443), socket.NI_NUMERICSERV) == ("example.com", "443")
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    assert socket.getnameinfo((address, 443), numeric) == (address, "443")
    assert socket.getnameinfo(("8.8.8.8", 53), socket.NI_NUMERICSERV) == ("8.8.8.8", "53")
    with pytest.raises(socket.gaierror):
        socket.getnameinfo(("8.8.8.8", 53), socket.NI_NAMEREQD)
    with pytest.raises(socket.herror, match="nothing in this test has the address"):
        socket.gethostbyaddr("8.8.8.8")


def test_this_machine_has_its_name(fal_ledger):
    assert socket.gethostbyaddr("127.0.0.1")[2] == ["127.0.0.1"]
    assert socket.getfqdn() == socket.gethostname()
    assert fal_ledger.events == []


def test_unix_sockets_are_left_alone(fal_emulator):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("/tmp/socket")
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("/tmp/socket")


def test_what_a_library_kept_of_socket_is_the_real_thing_afterwards(fal_emulator):
    """A module first imported in a test may have done ``from socket import getaddrinfo``."""
    look_up, by_name = socket.getaddrinfo, socket.gethostbyname
    connect = socket.socket.connect
    fal_emulator.stop()
    try:
        assert look_up("localhost", 80, socket.AF_INET)[0][4] == ("127.0.0.1", 80)
        assert by_name("localhost") == "127.0.0.1"
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sock:
            connect(sock, server.getsockname())
    finally:
        fal_emulator.start()


# --- streaming -----------------------------------------------------------------------------------


GIGABYTE = 1024**3


def drain(client, url):
    """Read a body and throw it away; over TLS a part: what matters is that nothing piles up."""
    if client == "httpx":
        with httpx.stream("GET", url) as response:
            return sum(len(chunk) for chunk in response.iter_raw())
    if client == "urllib":
        with urllib.request.urlopen(url) as response:
            return sum(len(chunk) for chunk in iter(lambda: response.read(MEBIBYTE), b""))
    connection = http.client.HTTPSConnection(urllib.parse.urlsplit(url).hostname)
    connection.request("GET", "/huge", headers={"Range": f"bytes=0-{GIGABYTE - 1}"})
    response = connection.getresponse()
    received = sum(len(chunk) for chunk in iter(lambda: response.read(MEBIBYTE), b""))
    connection.close()
    return received


@pytest.mark.parametrize("client", ["http.client", "urllib", "httpx"])
def test_a_huge_synthetic_body_costs_no_memory(client, fal_origin):
    served = fal_origin.serve("https://files.example.com/huge", size=5 * GIGABYTE)
    with memory_grows_by_less_than(60 * MEBIBYTE):
        received = drain(client, "https://files.example.com/huge")
    assert received == (GIGABYTE if client == "http.client" else 5 * GIGABYTE)
    assert served.bytes_sent == received


def test_an_upload_that_is_a_generator_is_streamed(fal_cdn, fal_emulator):
    token = fal_emulator._identities.issue("tester", fal_emulator.settings.token_lifetime).token

    def chunks():
        for _ in range(200):
            yield b"x" * MEBIBYTE

    with memory_grows_by_less_than(100 * MEBIBYTE):
        response = httpx.post(
            "https://v3.fal.media/files/upload",
            content=chunks(),
            headers={"Authorization": f"Bearer {token}"},
        )
    assert fal_cdn.info(response.json()["access_url"]).size == 200 * MEBIBYTE


# --- asyncio -------------------------------------------------------------------------------------


def test_an_async_read_that_has_to_wait_is_one_exchange_and_lets_the_loop_go_on(
    fal_cdn, fal_emulator, fal_ledger
):
    upload = fal_cdn.begin("slow.bin", "application/octet-stream")

    async def read_and_upload():
        async with httpx.AsyncClient() as client:
            reading = asyncio.create_task(client.get(upload.url))
            await asyncio.sleep(0.05)
            fal_cdn.receive(upload, (b"done",))
            return (await reading).content

    assert asyncio.run(read_and_upload()) == b"done"
    assert len(fal_ledger.requests(method="GET")) == 1


def test_a_slow_answer_does_not_block_the_event_loop(fal_faults, fal_http):
    fal_http.get("https://api.example.com/x").respond(200)
    slow = fal_faults.slow(0.1, times=1)
    ticks = []

    async def tick():
        while True:
            ticks.append(1)
            await asyncio.sleep(0.005)

    async def get():
        ticking = asyncio.create_task(tick())
        async with httpx.AsyncClient() as client:
            await client.get("https://api.example.com/x")
        ticking.cancel()

    asyncio.run(get())
    assert len(ticks) > 3
    assert len(slow.struck) == 1


@pytest.mark.parametrize("get", [by_httpx, by_httpx_async])
def test_a_body_shorter_than_promised_is_httpxs_error(get, fal_origin):
    fal_origin.serve("https://files.example.com/a", b"12345", content_length=9)
    with pytest.raises(httpx.RemoteProtocolError, match=r"received 5 bytes, expected 9"):
        get("https://files.example.com/a")


@pytest.mark.parametrize("client", [by_urllib, by_http_client])
@pytest.mark.parametrize(
    ("path", "error"),
    [("my model.bin", http.client.InvalidURL), ("mod\u00e8le.bin", UnicodeEncodeError)],
)
def test_what_http_client_does_not_send_is_not_sent(fal_origin, fal_ledger, client, path, error):
    fal_origin.serve("https://example.com/*", b"x")
    with pytest.raises(error):
        client(f"https://example.com/{path}")
    assert fal_ledger.exchanges == []


@pytest.mark.parametrize("client", CLIENTS)
def test_a_fragment_is_not_sent(fal_http, fal_ledger, client):
    fal_http.get(URL).respond(content=b"x")
    assert client(f"{URL}#part-2") == b"x"
    assert fal_ledger.exchanges[0].url == URL


def test_an_error_in_answering_a_socket_is_told(fal_http, fal_ledger):
    def fail(request):
        raise ValueError("no such file")

    fal_http.route(host="example.com").mock(side_effect=fail)
    assert requests.get("https://example.com/a").status_code == 500
    (problem,) = [one for one in fal_ledger.problems if one.startswith("error: ")]
    assert problem.startswith(f"error: ValueError('no such file') at {__file__}:")
    assert problem.endswith(", while a client over a socket was answered")
