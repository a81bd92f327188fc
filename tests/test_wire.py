from __future__ import annotations

import asyncio
import http.client
import os
import queue
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests

from emulator.errors import EmulatorError
from emulator.network import http1
from emulator.network import server as server_module
from emulator.network import wire as wire_module
from emulator.network.trust import Authority
from emulator.network.wire import Abort, ClientGoneError, Peer, Wire

HOST = "v3.fal.media"
MEGABYTE = b"\x5a" * 1_048_576
MANY = 300
WAIT = 60  # how long a broken test hangs

Handler = Callable[[httpx.Request], httpx.Response]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture
def serve(authority: Authority) -> Iterator[Callable[[Handler], Wire]]:
    """Starts a wire in front of a handler; it must not have errors that the test did not take."""
    wires = []

    def start(handler: Handler) -> Wire:
        wire = Wire(handler, authority)
        wire.start()
        wires.append(wire)
        return wire

    yield start
    for wire in wires:
        wire.stop()
        assert wire.errors == []


Serve = Callable[[Handler], Wire]


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate_pem.decode())


def hello(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b"hello")


def echo(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=request.read())


def show_url(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, text=str(request.url))


class Stream(httpx.SyncByteStream):
    """A response's stream that says when it was closed."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def close(self) -> None:
        self.closed.set()


@contextmanager
def connected(wire: Wire) -> Iterator[socket.socket]:
    with socket.create_connection(wire.address, timeout=WAIT) as sock:
        yield sock


def until_end(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(65_536):
        received += data
    return received


def talk(wire: Wire, sent: bytes) -> bytes:
    """What comes back for these bytes until the wire hangs up."""
    with connected(wire) as sock:
        sock.sendall(sent)
        return until_end(sock)


def get(path: str = "/", *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", f"Host: {HOST}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def plain(wire: Wire) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*wire.address, timeout=WAIT)


def secure(wire: Wire, authority: Authority) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection(*wire.address, timeout=WAIT, context=trusting(authority))


def asked(
    connection: http.client.HTTPConnection, method: str = "GET", body: Any = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request(method, "/file", body=body, headers=headers)
    response = connection.getresponse()
    return response, response.read()


class TestRealClients:
    def test_http_client(self, serve: Serve) -> None:
        connection = plain(serve(hello))
        assert asked(connection)[1] == b"hello"
        connection.close()

    def test_http_client_over_tls(self, serve: Serve, authority: Authority) -> None:
        connection = secure(serve(hello), authority)
        assert asked(connection)[1] == b"hello"
        connection.close()

    def test_requests(self, serve: Serve, authority: Authority, tmp_path: Path) -> None:
        authority.write(tmp_path / "ca.pem")
        host, port = serve(echo).address
        with requests.Session() as session:
            session.trust_env = False
            for scheme in ("http", "https"):
                url = f"{scheme}://{host}:{port}/"
                answer = session.post(url, data=b"data", verify=str(tmp_path / "ca.pem"))
                assert answer.content == b"data"

    def test_aiohttp(self, serve: Serve, authority: Authority) -> None:
        host, port = serve(echo).address

        async def post(scheme: str) -> bytes:
            async def chunks() -> Any:
                yield b"da"
                yield b"ta"

            async with aiohttp.ClientSession() as session:
                async with session.post(
                    f"{scheme}://{host}:{port}/", data=chunks(), ssl=trusting(authority)
                ) as answer:
                    body: bytes = await answer.read()
                    return body

        assert asyncio.run(post("http")) == b"data"
        assert asyncio.run(post("https")) == b"data"

    def test_httpx(self, serve: Serve, authority: Authority) -> None:
        host, port = serve(echo).address
        with httpx.Client(verify=trusting(authority), trust_env=False) as client:
            assert client.post(f"https://{host}:{port}/", content=b"data").content == b"data"

    def test_a_connection_serves_many_requests(self, serve: Serve) -> None:
        connection = plain(serve(echo))
        connection.connect()
        own_port = connection.sock.getsockname()
        for text in ("one", "two", "three"):
            assert asked(connection, "POST", text)[1] == text.encode()
        assert connection.sock.getsockname() == own_port
        connection.close()

    def test_many_at_once(self, serve: Serve, authority: Authority) -> None:
        together = threading.Barrier(32, timeout=WAIT)

        def handler(request: httpx.Request) -> httpx.Response:
            together.wait()
            return echo(request)

        wire = serve(handler)

        def post(number: int) -> bytes:
            connection = secure(wire, authority) if number % 2 else plain(wire)
            body = asked(connection, "POST", str(number))[1]
            connection.close()
            return body

        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(post, range(32))) == [str(n).encode() for n in range(32)]


class TestRequest:
    def seen(self, serve: Serve, sent: bytes) -> httpx.Request:
        seen: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            request.read()
            return httpx.Response(200, headers={"Connection": "close"})

        answer = talk(serve(handler), sent)
        assert seen, answer
        return seen[0]

    def test_headers_keep_order_case_and_repetition(self, serve: Serve) -> None:
        sent = get("/", "User-Agent: a", "X-cAsE:  b c \t", "user-agent: d", "Empty:")
        assert self.seen(serve, sent).headers.raw == [
            (b"Host", HOST.encode()),
            (b"User-Agent", b"a"),
            (b"X-cAsE", b"b c"),
            (b"user-agent", b"d"),
            (b"Empty", b""),
        ]

    def test_says_that_it_came_over_the_wire(self, serve: Serve) -> None:
        assert self.seen(serve, get()).extensions["fal_client"] == "wire"

    @pytest.mark.parametrize(
        ("sent", "url"),
        [
            (get("/a/b?c=%2F"), f"http://{HOST}/a/b?c=%2F"),
            (b"GET / HTTP/1.1\r\nHost: a_b.example:8080\r\n\r\n", "http://a_b.example:8080/"),
            (b"GET / HTTP/1.1\r\nHost: [::1]:81\r\n\r\n", "http://[::1]:81/"),
            (get("http://other.example/x"), "http://other.example/x"),
            (b"\r\n" + get("/after-a-blank-line"), f"http://{HOST}/after-a-blank-line"),
        ],
    )
    def test_url(self, serve: Serve, sent: bytes, url: str) -> None:
        assert str(self.seen(serve, sent).url) == url

    @pytest.mark.parametrize("target", ["*", "/{a}"])
    def test_a_target_that_urls_cannot_hold_is_kept(self, serve: Serve, target: str) -> None:
        seen = self.seen(serve, get(target, method="OPTIONS"))
        assert seen.extensions["target"] == target.encode()

    def test_a_body_is_empty_where_there_is_none(self, serve: Serve) -> None:
        seen = self.seen(serve, get(method="POST"))
        assert seen.content == b""
        assert "content-length" not in seen.headers

    def test_https_is_told_from_http(self, serve: Serve, authority: Authority) -> None:
        connection = secure(serve(show_url), authority)
        connection.putrequest("GET", "/x", skip_host=True)
        connection.putheader("Host", HOST)
        connection.endheaders()
        assert connection.getresponse().read().decode() == f"https://{HOST}/x"
        connection.close()

    def test_pipelined_requests_are_answered_in_order(self, serve: Serve) -> None:
        sent = get("/1") + get("/2", "Content-Length: 3") + b"abc" + get("/3", "Connection: close")
        answers = talk(serve(show_url), sent)
        assert answers.count(b"HTTP/1.1 200 OK") == 3
        places = [answers.index(f"http://{HOST}/{number}".encode()) for number in (1, 2, 3)]
        assert places == sorted(places)

    def test_a_head_may_come_byte_by_byte(self, serve: Serve) -> None:
        with connected(serve(hello)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in get("/", "Connection: close"):
                sock.sendall(bytes([byte]))
            assert body_of(until_end(sock)) == b"hello"


class TestPeer:
    def ask(self, wire: Wire, sent: bytes, peer: Peer | None) -> bytes:
        with connected(wire) as sock:
            if peer is not None:
                wire.expect(sock.getsockname()[1], peer)
            sock.sendall(sent)
            return body_of(until_end(sock))

    def show_peer(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=repr(request.extensions["fal_peer"]))

    def test_is_what_the_client_meant(self, serve: Serve) -> None:
        peer = Peer("192.88.99.7", 8080, runner=3)
        sent = get("/", "Connection: close")
        assert self.ask(serve(self.show_peer), sent, peer) == repr(peer).encode()

    def test_lasts_for_the_connection(self, serve: Serve) -> None:
        peer = Peer("192.88.99.7", 8080, runner=3)
        sent = get("/") + get("/", "Connection: close")
        answers = self.ask(serve(self.show_peer), sent, peer)
        assert answers.count(repr(peer).encode()) == 2

    def test_is_none_when_nobody_said(self, serve: Serve) -> None:
        assert self.ask(serve(self.show_peer), get("/", "Connection: close"), None) == b"None"

    @pytest.mark.parametrize(
        ("peer", "url"),
        [
            (Peer("192.88.99.7", 80), b"http://192.88.99.7/"),
            (Peer("192.88.99.7", 8080), b"http://192.88.99.7:8080/"),
            (Peer("2002:c058::1", 8080), b"http://[2002:c058::1]:8080/"),
        ],
    )
    def test_stands_in_for_a_missing_host(self, serve: Serve, peer: Peer, url: bytes) -> None:
        assert self.ask(serve(show_url), b"GET / HTTP/1.0\r\n\r\n", peer) == url

    def test_may_be_named_after_the_request_when_it_is_needed(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wire_module, "PEER_SECONDS", WAIT)
        wire = serve(show_url)
        with connected(wire) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wire.expect(sock.getsockname()[1], Peer("late.example", 80))
            assert body_of(until_end(sock)) == b"http://late.example/"

    def test_without_any_name_the_request_is_refused(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(wire_module, "PEER_SECONDS", 0)
        answer = talk(serve(hello), b"GET / HTTP/1.0\r\n\r\n")
        assert status_of(answer) == 400
        assert body_of(answer) == b"400: there is no Host header\n"

    def test_the_tls_name_stands_in_first(self, serve: Serve, authority: Authority) -> None:
        wire = serve(show_url)
        with connected(wire) as sock:
            wire.expect(sock.getsockname()[1], Peer("192.88.99.7", 8443))
            with trusting(authority).wrap_socket(sock, server_hostname=HOST) as tls:
                tls.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert body_of(until_end(tls)) == f"https://{HOST}:8443/".encode()

    def test_gives_the_certificate_of_an_address(self, serve: Serve, authority: Authority) -> None:
        wire = serve(hello)
        with connected(wire) as sock:
            wire.expect(sock.getsockname()[1], Peer("192.88.99.7", 443))
            with trusting(authority).wrap_socket(sock, server_hostname="192.88.99.7") as tls:
                tls.sendall(get("/", "Connection: close"))
                assert body_of(until_end(tls)) == b"hello"


class TestRefusals:
    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"nonsense\r\n\r\n", 400),
            (b"GET /a b HTTP/1.1\r\n\r\n", 400),
            (b"G(T / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\nHost: a\n\n", 400),
            (b"GET relative HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (get("/", "No colon"), 400),
            (get("/", "Space : before"), 400),
            (get("/", " folded: line"), 400),
            (get("/", "Nul: \0"), 400),
            (get("/", "Content-Length: -1"), 400),
            (get("/", "Content-Length: 1x"), 400),
            (get("/", "Content-Length: 1", "Content-Length: 2"), 400),
            (get("/", "Content-Length: 1", "Transfer-Encoding: chunked"), 400),
            (get("/", "Transfer-Encoding: chunked", version="1.0"), 400),
            (get("/", "Expect: miracles"), 417),
            (get("/", "X: " + "y" * 70_000), 431),
            (b"GET /" + b"x" * 70_000, 431),
            (get("/", "Transfer-Encoding: gzip, chunked"), 501),
            (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ],
    )
    def test_status_and_the_end(self, serve: Serve, sent: bytes, status: int) -> None:
        with connected(serve(hello)) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            answer = until_end(sock)
        assert status_of(answer) == status
        assert b"Connection: close" in answer

    @pytest.mark.parametrize(
        "body", [b"z\r\n", b"-1\r\n", b"1\r\nab\r\n0\r\n\r\n", b"1" * 5_000, b"1" * 16 + b"\r\n"]
    )
    def test_malformed_chunks(self, serve: Serve, body: bytes) -> None:
        with connected(serve(echo)) as sock:
            sock.sendall(get("/", "Transfer-Encoding: chunked") + body)
            sock.shutdown(socket.SHUT_WR)
            assert status_of(until_end(sock)) == 400


class TestRequestBody:
    def test_chunked(self, serve: Serve) -> None:
        body = b"3;name=value\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
        sent = get("/", "Transfer-Encoding: chunked") + body + get("/", "Connection: close")
        answers = talk(serve(echo), sent)
        assert b"abc0123456789" in answers
        assert answers.count(b"HTTP/1.1 200 OK") == 2

    def test_arrives_while_it_is_sent(self, serve: Serve) -> None:
        arrived: queue.Queue[bytes] = queue.Queue()

        def handler(request: httpx.Request) -> httpx.Response:
            for chunk in request.stream:  # type: ignore[union-attr]
                arrived.put(chunk)
            return httpx.Response(200, headers={"Connection": "close"})

        with connected(serve(handler)) as sock:
            sock.sendall(get("/", "Content-Length: 6"))
            for part in (b"abc", b"def"):
                sock.sendall(part)
                assert arrived.get(timeout=WAIT) == part
            assert status_of(until_end(sock)) == 200

    def test_arrives_while_it_is_sent_over_tls(self, serve: Serve, authority: Authority) -> None:
        arrived: queue.Queue[int] = queue.Queue()

        def handler(request: httpx.Request) -> httpx.Response:
            for chunk in request.stream:  # type: ignore[union-attr]
                arrived.put(len(chunk))
            return httpx.Response(200)

        part = b"x" * 32_768  # whole TLS records, so that nothing shows that no more will come
        with (
            connected(serve(handler)) as sock,
            trusting(authority).wrap_socket(sock, server_hostname=HOST) as tls,
        ):
            tls.sendall(get("/", "Content-Length: 65536"))
            for _ in range(2):
                tls.sendall(part)
                received = 0
                while received < len(part):
                    received += arrived.get(timeout=WAIT)
            assert status_of(tls.recv(1000)) == 200

    def test_is_asked_for_when_the_handler_reads_it(self, serve: Serve) -> None:
        with connected(serve(echo)) as sock:
            sock.sendall(get("/", "Content-Length: 3", "Expect: 100-continue", "Connection: close"))
            assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"abc")
            assert body_of(until_end(sock)) == b"abc"

    def test_is_not_asked_for_when_nobody_reads_it(self, serve: Serve) -> None:
        with connected(serve(hello)) as sock:
            sock.sendall(get("/", "Content-Length: 3", "Expect: 100-continue"))
            answer = sock.recv(1000)
            assert status_of(answer) == 200
            assert b"Connection: close" in answer  # or the body could pass for a request

    def test_that_nobody_read_does_not_disturb_the_next(self, serve: Serve) -> None:
        connection = plain(serve(hello))
        connection.connect()
        own_port = connection.sock.getsockname()
        assert asked(connection, "POST", MEGABYTE)[1] == b"hello"
        assert asked(connection)[1] == b"hello"
        assert connection.sock.getsockname() == own_port
        connection.close()

    def test_that_nobody_read_does_not_block_a_large_answer(self, serve: Serve) -> None:
        connection = plain(serve(lambda _: httpx.Response(200, content=MEGABYTE * 16)))
        assert asked(connection, "POST", MEGABYTE * 16)[1] == MEGABYTE * 16
        connection.close()

    def test_that_is_too_long_to_skip_ends_the_connection(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http1, "DRAIN_LIMIT", 1_000)
        answer = talk(serve(hello), get("/", f"Content-Length: {10**12}") + b"x" * 500)
        assert b"Connection: close" in answer
        assert body_of(answer) == b"hello"

    def test_is_read_once(self, serve: Serve) -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            stream = request.stream
            assert isinstance(stream, httpx.SyncByteStream)
            assert b"".join(stream) == b"abc"
            with pytest.raises(httpx.StreamConsumed):
                b"".join(stream)
            return httpx.Response(200, headers={"Connection": "close"})

        assert status_of(talk(serve(handler), get("/", "Content-Length: 3") + b"abc")) == 200

    def test_is_gone_after_the_answer(self, serve: Serve) -> None:
        kept: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            kept.append(request)
            return httpx.Response(200, headers={"Connection": "close"})

        talk(serve(handler), get("/", "Content-Length: 3") + b"abc")
        with pytest.raises(httpx.StreamClosed):
            kept[0].read()

    @pytest.mark.parametrize(
        "sent",
        [
            get("/", "Content-Length: 10") + b"abc",
            get("/", "Transfer-Encoding: chunked") + b"5\r\nabc",
            get("/", "Transfer-Encoding: chunked") + b"5",
        ],
    )
    def test_tells_the_handler_when_the_client_leaves(self, serve: Serve, sent: bytes) -> None:
        told: queue.Queue[type] = queue.Queue()

        def handler(request: httpx.Request) -> httpx.Response:
            try:
                request.read()
            except ClientGoneError as error:
                told.put(type(error))
                raise
            return httpx.Response(200)

        with connected(serve(handler)) as sock:
            sock.sendall(sent)
        assert told.get(timeout=WAIT) is ClientGoneError


class TestResponse:
    def test_headers_keep_order_case_and_repetition(self, serve: Serve) -> None:
        fields = [("X-B", "1"), ("x-a", "2"), ("X-B", "3"), ("Content-Length", "0")]
        with connected(serve(lambda _: httpx.Response(200, headers=fields))) as sock:
            sock.sendall(get())
            assert sock.recv(1000) == (
                b"HTTP/1.1 200 OK\r\nX-B: 1\r\nx-a: 2\r\nX-B: 3\r\nContent-Length: 0\r\n\r\n"
            )

    @pytest.mark.parametrize(
        ("status", "reason", "line"),
        [
            (404, None, b"HTTP/1.1 404 Not Found"),
            (299, None, b"HTTP/1.1 299 "),
            (200, b"Fine", b"HTTP/1.1 200 Fine"),
        ],
    )
    def test_reason(self, serve: Serve, status: int, reason: bytes | None, line: bytes) -> None:
        extensions = {"reason_phrase": reason} if reason else {}
        wire = serve(lambda _: httpx.Response(status, extensions=extensions))
        assert talk(wire, get("/", "Connection: close")).split(b"\r\n")[0] == line

    def test_without_a_length_is_chunked(self, serve: Serve) -> None:
        wire = serve(lambda _: httpx.Response(200, content=iter([b"abc", b"", b"0123456789"])))
        answer = talk(wire, get("/", "Connection: close"))
        assert answer.lower().count(b"transfer-encoding: chunked") == 1
        assert body_of(answer) == b"3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n"

    def test_without_a_length_ends_with_the_connection_in_http_1_0(self, serve: Serve) -> None:
        wire = serve(lambda _: httpx.Response(200, content=iter([b"abc", b"def"])))
        answer = talk(wire, get("/", "Connection: keep-alive", version="1.0"))
        assert b"transfer-encoding" not in answer.lower()
        assert b"Connection: close" in answer
        assert body_of(answer) == b"abcdef"

    def test_http_1_0_ends_unless_it_is_kept(self, serve: Serve) -> None:
        wire = serve(hello)
        assert body_of(talk(wire, get(version="1.0"))) == b"hello"
        with connected(wire) as sock:
            for _ in range(2):
                sock.sendall(get("/", "Connection: keep-alive", version="1.0"))
                answer = sock.recv(1000)
                assert b"Connection: keep-alive" in answer
                assert body_of(answer) == b"hello"

    def test_the_handler_may_end_the_connection(self, serve: Serve) -> None:
        wire = serve(lambda _: httpx.Response(200, text="x", headers={"Connection": "close"}))
        assert talk(wire, get() + get()).count(b"200 OK") == 1

    @pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
    def test_without_a_body(self, serve: Serve, method: str, status: int) -> None:
        wire = serve(lambda _: httpx.Response(status, content=b"hello"))
        answer = talk(wire, get("/", "Connection: close", method=method))
        assert status_of(answer) == status
        assert b"content-length: 5" in answer.lower()
        assert body_of(answer) == b""

    def test_is_cut_to_the_promised_length(self, serve: Serve) -> None:
        def handler(_request: httpx.Request) -> httpx.Response:
            endless = Stream(iter(lambda: b"abcde", None))
            return httpx.Response(200, headers={"Content-Length": "7"}, stream=endless)

        connection = plain(serve(handler))
        assert asked(connection)[1] == b"abcdeab"
        assert asked(connection)[1] == b"abcdeab"
        connection.close()

    @pytest.mark.parametrize("tls", [False, True])
    def test_that_falls_short_ends_the_connection(
        self, serve: Serve, authority: Authority, tls: bool
    ) -> None:
        wire = serve(
            lambda _: httpx.Response(200, content=iter([b"abc"]), headers={"Content-Length": "9"})
        )
        connection = secure(wire, authority) if tls else plain(wire)
        with pytest.raises(http.client.IncompleteRead) as caught:
            asked(connection)
        assert caught.value.partial == b"abc"
        connection.close()

    def test_the_head_comes_before_a_stream_without_length(self, serve: Serve) -> None:
        go_on = threading.Event()

        def slowly() -> Iterator[bytes]:
            assert go_on.wait(WAIT)
            yield b"late"

        with connected(serve(lambda _: httpx.Response(200, content=slowly()))) as sock:
            sock.sendall(get("/", "Connection: close"))
            assert status_of(sock.recv(1000)) == 200
            go_on.set()
            assert until_end(sock) == b"4\r\nlate\r\n0\r\n\r\n"

    def test_is_closed_after_the_last_byte(self, serve: Serve) -> None:
        stream = Stream(iter([b"abc"]))
        wire = serve(lambda _: httpx.Response(200, headers={"content-length": "3"}, stream=stream))
        talk(wire, get("/", "Connection: close"))
        assert stream.closed.is_set()

    def test_is_closed_when_the_client_leaves(self, serve: Serve) -> None:
        stream = Stream(iter(lambda: MEGABYTE, None))
        with connected(serve(lambda _: httpx.Response(200, stream=stream))) as sock:
            sock.sendall(get())
            assert sock.recv(1000)
        assert stream.closed.wait(WAIT)

    def test_is_closed_when_it_has_no_body(self, serve: Serve) -> None:
        stream = Stream(iter([b"abc"]))
        wire = serve(lambda _: httpx.Response(200, stream=stream))
        talk(wire, get("/", "Connection: close", method="HEAD"))
        assert stream.closed.is_set()


class TestAbort:
    def raiser(self, error: BaseException) -> Handler:
        def handler(_request: httpx.Request) -> httpx.Response:
            raise error

        return handler

    def breaking(self, error: BaseException) -> Handler:
        def handler(_request: httpx.Request) -> httpx.Response:
            def chunks() -> Iterator[bytes]:
                yield b"abc"
                raise error

            return httpx.Response(200, content=chunks(), headers={"Content-Length": "9"})

        return handler

    def test_closes(self, serve: Serve) -> None:
        assert talk(serve(self.raiser(Abort())), get()) == b""

    def test_closes_an_upload_without_a_reset(self, serve: Serve) -> None:
        assert talk(serve(self.raiser(Abort())), get("/", "Content-Length: 9") + b"abc") == b""

    def test_resets(self, serve: Serve) -> None:
        with pytest.raises(ConnectionResetError):
            talk(serve(self.raiser(Abort(reset=True))), get())

    def test_resets_over_tls(self, serve: Serve, authority: Authority) -> None:
        connection = secure(serve(self.raiser(Abort(reset=True))), authority)
        with pytest.raises(ConnectionResetError):
            asked(connection)
        connection.close()

    def test_closes_in_mid_body(self, serve: Serve) -> None:
        answer = talk(serve(self.breaking(Abort())), get())
        assert body_of(answer) == b"abc"

    def test_resets_in_mid_body(self, serve: Serve) -> None:
        with connected(serve(self.breaking(Abort(reset=True)))) as sock:
            sock.sendall(get())
            received = sock.recv(1000)
            with pytest.raises(ConnectionResetError):
                until_end(sock)
        assert received.endswith(b"abc")

    def test_any_other_error_of_a_stream_ends_it_and_is_kept(self, serve: Serve) -> None:
        error = OSError("the disk is gone")
        wire = serve(self.breaking(error))
        assert body_of(talk(wire, get())) == b"abc"
        wire.stop()
        assert wire.errors == [error]
        wire.errors.clear()

    @pytest.mark.parametrize("error", [ValueError("it broke"), SystemExit("it broke")])
    def test_an_error_of_the_handler_is_a_500_and_is_kept(
        self, serve: Serve, error: BaseException
    ) -> None:
        wire = serve(self.raiser(error))
        answer = talk(wire, get("/x", "Connection: close"))
        assert status_of(answer) == 500
        assert body_of(answer).decode() == (
            f"The emulator's handler failed at GET http://{HOST}/x: "
            f"{type(error).__name__}: it broke\n"
        )
        assert wire.errors == [error]
        wire.errors.clear()

    def test_an_error_may_bring_its_answer(self, serve: Serve) -> None:
        error = ConnectionError("unknown host")
        error.fal_response = httpx.Response(502, text="nobody")  # type: ignore[attr-defined]
        answer = talk(serve(self.raiser(error)), get("/", "Connection: close"))
        assert status_of(answer) == 502
        assert body_of(answer) == b"nobody"

    def test_a_response_that_cannot_be_sent_is_said(self, serve: Serve) -> None:
        async def chunks() -> Any:
            yield b"abc"

        wire = serve(lambda _: httpx.Response(200, content=chunks()))
        assert status_of(talk(wire, get("/", "Connection: close"))) == 500
        assert [str(error) for error in wire.errors] == [
            "The wire cannot send a AsyncIteratorByteStream: a handler returns an httpx.Response "
            "whose stream is a httpx.SyncByteStream. "
            "Write def __iter__(self), not async def __aiter__(self)."
        ]
        wire.errors.clear()

    def test_a_client_that_does_not_trust_us_is_no_error(self, serve: Serve) -> None:
        wire = serve(hello)
        with connected(wire) as sock, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(sock, server_hostname=HOST)
        wire.stop()
        assert wire.errors == []


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@on_linux
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
class TestLargeBodies:
    """300 MB each way may cost 60 MB."""

    def connection(self, wire: Wire, authority: Authority, tls: bool) -> Any:
        return secure(wire, authority) if tls else plain(wire)

    def test_down(self, serve: Serve, authority: Authority, tls: bool) -> None:
        chunks = Stream(iter([MEGABYTE] * MANY))
        length = {"Content-Length": str(MANY * len(MEGABYTE))}
        wire = serve(lambda _: httpx.Response(200, headers=length, stream=chunks))
        connection = self.connection(wire, authority, tls)
        connection.request("GET", "/")
        response = connection.getresponse()
        before, peak, received = resident(), 0, 0
        while data := response.read(1_048_576):
            received += len(data)
            peak = max(peak, resident())
        connection.close()
        assert received == MANY * len(MEGABYTE)
        assert peak - before < 60_000_000

    def test_up(self, serve: Serve, authority: Authority, tls: bool) -> None:
        peak = received = 0

        def handler(request: httpx.Request) -> httpx.Response:
            nonlocal peak, received
            for chunk in request.stream:  # type: ignore[union-attr]
                received += len(chunk)
                peak = max(peak, resident())
            return httpx.Response(200)

        connection = self.connection(serve(handler), authority, tls)
        before = resident()
        length = str(MANY * len(MEGABYTE))
        response, _ = asked(
            connection, "PUT", iter([MEGABYTE] * MANY), **{"Content-Length": length}
        )
        connection.close()
        assert response.status == 200
        assert received == MANY * len(MEGABYTE)
        assert peak - before < 60_000_000


class TestLifetime:
    def waiting(self) -> tuple[Handler, queue.Queue[str]]:
        """A handler that never answers, and what happens to it."""
        events: queue.Queue[str] = queue.Queue()

        def handler(request: httpx.Request) -> httpx.Response:
            events.put("entered")
            try:
                request.extensions["fal_wait"](None)
            except ClientGoneError:
                events.put("gone")
                raise
            return httpx.Response(200)

        return handler, events

    @pytest.mark.parametrize("tls", [False, True])
    def test_close_connections_wakes_client_and_handler(
        self, serve: Serve, authority: Authority, tls: bool
    ) -> None:
        handler, events = self.waiting()
        wire = serve(handler)
        connection = secure(wire, authority) if tls else plain(wire)
        connection.request("GET", "/")
        assert events.get(timeout=WAIT) == "entered"
        wire.close_connections()
        assert events.get_nowait() == "gone"
        with pytest.raises((http.client.RemoteDisconnected, ssl.SSLEOFError)):
            connection.getresponse()
        connection.close()

    def test_close_connections_wakes_a_client_that_reads_a_body(self, serve: Serve) -> None:
        wire = serve(hello)
        with connected(wire) as sock:
            sock.sendall(get())
            assert sock.recv(1000)
            wire.close_connections()
            assert sock.recv(1000) == b""

    def test_the_wire_serves_on_after_close_connections(self, serve: Serve) -> None:
        wire = serve(hello)
        wire.close_connections()
        assert body_of(talk(wire, get("/", "Connection: close"))) == b"hello"

    def test_a_handler_that_waits_is_told_when_its_client_leaves(self, serve: Serve) -> None:
        handler, events = self.waiting()
        with connected(serve(handler)) as sock:
            sock.sendall(get())
            assert events.get(timeout=WAIT) == "entered"
        if sys.platform == "linux":
            assert events.get(timeout=WAIT) == "gone"

    def test_a_wait_ends_by_itself(self, serve: Serve) -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            request.extensions["fal_wait"](0.001)
            return hello(request)

        assert body_of(talk(serve(handler), get("/", "Connection: close"))) == b"hello"

    def test_a_handler_that_does_not_end_is_named(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server_module, "JOIN_SECONDS", 0.01)
        entered, go_on = threading.Event(), threading.Event()

        def handler(request: httpx.Request) -> httpx.Response:
            entered.set()
            assert go_on.wait(WAIT)
            return hello(request)

        wire = serve(handler)
        with connected(wire) as sock:
            sock.sendall(get("/stuck"))
            assert entered.wait(WAIT)
            wire.close_connections()
        go_on.set()
        [error] = wire.errors
        assert isinstance(error, EmulatorError)
        assert str(error) == (
            f"The handler of GET http://{HOST}/stuck still ran 0.01 s after its connection was "
            'cut. Let it wait with request.extensions["fal_wait"](seconds), which ends with the '
            "connection."
        )
        wire.errors.clear()
        monkeypatch.undo()

    def test_a_handler_may_close_the_connections(self, serve: Serve) -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            wire.close_connections()
            return hello(request)

        wire = serve(handler)
        assert body_of(talk(wire, get("/", "Connection: close"))) == b"hello"

    def test_a_client_that_says_nothing_does_no_harm(self, serve: Serve) -> None:
        wire = serve(hello)
        with connected(wire), connected(wire), connected(wire), connected(wire):
            assert body_of(talk(wire, get("/", "Connection: close"))) == b"hello"

    def test_a_client_that_resets_does_no_harm(self, serve: Serve) -> None:
        wire = serve(hello)
        for _ in range(5):
            with connected(wire) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert body_of(talk(wire, get("/", "Connection: close"))) == b"hello"

    def test_the_users_default_timeout_is_not_the_wires(self, serve: Serve) -> None:
        socket.setdefaulttimeout(0.001)
        try:
            wire = serve(hello)
        finally:
            socket.setdefaulttimeout(None)
        assert body_of(talk(wire, get("/", "Connection: close"))) == b"hello"

    def test_listens_on_the_loopback_alone(self, serve: Serve) -> None:
        assert serve(hello).address[0] == "127.0.0.1"

    def test_has_no_address_before_it_starts(self, authority: Authority) -> None:
        with pytest.raises(EmulatorError) as caught:
            _ = Wire(hello, authority).address
        assert str(caught.value) == ("The wire has no address until it is started: wire.start()")

    def test_refuses_clients_after_stop(self, serve: Serve) -> None:
        wire = serve(hello)
        address = wire.address
        wire.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()

    def test_starts_again(self, serve: Serve) -> None:
        wire = serve(hello)
        wire.stop()
        wire.start()
        assert body_of(talk(wire, get("/", "Connection: close"))) == b"hello"

    def test_threads_are_daemons_with_a_name(self, serve: Serve) -> None:
        before = set(threading.enumerate())
        serve(hello)
        threads = set(threading.enumerate()) - before
        assert threads
        assert all(t.daemon and t.name.startswith("fal-wire") for t in threads)

    @on_linux
    def test_stop_leaves_no_thread_and_no_descriptor(
        self, serve: Serve, authority: Authority
    ) -> None:
        def descriptors() -> set[str]:
            return {
                f"{entry.name} {entry.readlink()}"
                for entry in Path("/proc/self/fd").iterdir()
                if entry.is_symlink()
            }

        threads, open_before = set(threading.enumerate()), descriptors()
        wire = serve(hello)
        clients = [secure(wire, authority) if n % 2 else plain(wire) for n in range(10)]
        for client in clients:
            asked(client)
        half_open = socket.create_connection(wire.address)
        wire.stop()
        for client in clients:
            client.close()
        half_open.close()
        assert set(threading.enumerate()) <= threads
        assert {d for d in descriptors() - open_before if "socket" in d or "memfd" in d} == set()
