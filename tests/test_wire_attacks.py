"""What clients should not send, at every door of a running emulator.

Each gets a clear answer or a clean end, others are served on, and nothing of it is left.
"""

from __future__ import annotations

import gc
import os
import re
import select
import socket
import ssl
import struct
from contextlib import suppress

import pytest
from memory import MEBIBYTE, memory_grows_by_less_than
from websockets.protocol import State
from websockets.server import ServerProtocol
from wire_clients import (
    DOORS,
    HOST,
    answers,
    connect,
    reset,
    settled,
    status_of,
    talk,
    until_end,
    wire_threads,
)

from emulator.network import http1, server
from emulator.network.websocket import SocketEnd
from pytest_fal.descriptors import descriptors

HEAD = f"Host: {HOST}\r\n".encode()
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")
GET = b"GET /nothing HTTP/1.1\r\n" + HEAD


@pytest.fixture(params=DOORS)
def door(request, fal_emulator):
    """A door, at which others are served afterwards, and nothing of the emulator's has failed."""
    yield request.param
    assert answers(request.param)
    assert [one for one in fal_emulator.ledger.problems if one.startswith("error")] == []


def get(*lines: str | bytes, target: str = "/nothing") -> bytes:
    """A request with these headers."""
    encoded = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    return b"\r\n".join([f"GET {target} HTTP/1.1\r\nHost: {HOST}".encode(), *encoded, b"", b""])


def post(headers: str, body: bytes) -> bytes:
    """A request with a body."""
    return f"POST /nothing HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n\r\n".encode() + body


CHUNKED = "Transfer-Encoding: chunked"

MALFORMED = {
    # request lines
    "no request line": (b"\r\n \r\n\r\n", 400),
    "no target": (b"GET HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "a space in the target": (b"GET /a b HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "a tab": (b"GET\t/ HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "a fragment": (b"GET /#a HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "bytes above ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "a NUL in the target": (b"GET /\0 HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "a method with a bracket": (b"G(T / HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "a method in small letters": (b"head / HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "a method of another protocol": (b"\x05\x01\x00\r\n\r\n", 400),
    "a relative target": (b"GET nothing HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "a target without a host": (b"GET http:///a HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "another scheme": (b"GET file:///etc/passwd HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
    "CONNECT": (b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", 501),
    # versions
    "HTTP/0.9": (b"GET /nothing\r\n", 400),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HEAD + b"\r\n", 505),
    "HTTP/1": (b"GET / HTTP/1\r\n" + HEAD + b"\r\n", 400),
    "HTTP/1.10": (b"GET / HTTP/1.10\r\n" + HEAD + b"\r\n", 400),
    "http/1.1": (b"GET / http/1.1\r\n" + HEAD + b"\r\n", 400),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 505),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", 400),
    # lines
    "bare line feeds": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "one bare line feed": (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    "bare carriage returns": (b"GET / HTTP/1.1\rHost: a\r\r", 400),
    "a folded line": (get("X: a", " b"), 400),
    "a folded first line": (get(" folded: a"), 400),
    "blank lines without end": (b"\r\n" * 10_000, 400),
    # headers
    "no colon": (get("nothing"), 400),
    "no name": (get(": a"), 400),
    "a space before the colon": (get("X : a"), 400),
    "a NUL in a value": (get("X: a\0b"), 400),
    "a NUL in a name": (get("X\0: a"), 400),
    "a carriage return in a value": (get("X: a\rY: b"), 400),
    "a name beyond ASCII": (get("\xe9: a"), 400),
    "a header of 1 MB": (get("X: " + "y" * 1_000_000), 431),
    "10,000 headers": (get(*[f"X-{n}: y" for n in range(10_000)]), 431),
    "a name of 100 kB": (get("x" * 100_000 + ": y"), 431),
    "a header line without end": (GET + b"X: " + b"y" * 200_000, 431),
    "a request line without end": (b"GET /" + b"x" * 200_000, 431),
    "an expectation": (get("Expect: miracles"), 417),
    # lengths
    "a negative length": (post("Content-Length: -1", b""), 400),
    "a length with a sign": (post("Content-Length: +1", b"a"), 400),
    "a hexadecimal length": (post("Content-Length: 0x1", b"a"), 400),
    "a length of digits that are none": (post("Content-Length: \xb2", b"a"), 400),
    "a length beyond all bounds": (post("Content-Length: " + "9" * 30, b"a"), 400),
    "an empty length": (post("Content-Length:", b"a"), 400),
    "two lengths": (post("Content-Length: 1\r\nContent-Length: 2", b"aa"), 400),
    "a list of lengths": (post("Content-Length: 1, 1", b"a"), 400),
    # codings
    "a length and a coding": (post(f"Content-Length: 4\r\n{CHUNKED}", b"0\r\n\r\n"), 400),
    "a coding and a length": (post(f"{CHUNKED}\r\nContent-Length: 4", b"0\r\n\r\n"), 400),
    "chunked, identity": (post("Transfer-Encoding: chunked, identity", b"0\r\n\r\n"), 501),
    "chunked twice": (post(f"{CHUNKED}\r\n{CHUNKED}", b"0\r\n\r\n"), 501),
    "identity": (post("Transfer-Encoding: identity", b""), 501),
    "a coding of that sound": (post("Transfer-Encoding: xchunked", b"0\r\n\r\n"), 501),
    "a coding with a tab in it": (post("Transfer-Encoding: chu\tnked", b"0\r\n\r\n"), 501),
    "an empty coding": (post("Transfer-Encoding:", b""), 501),
    "a coding in HTTP/1.0": (
        b"POST / HTTP/1.0\r\n" + HEAD + CHUNKED.encode() + b"\r\n\r\n0\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_request_is_refused(door, fal_ledger, name):
    sent, status = MALFORMED[name]
    answer = talk(door, sent)
    assert status_of(answer) == status
    assert b"\r\nConnection: close\r\n" in answer
    assert len(STATUS_LINE.findall(answer)) == 1  # nothing of it passed for a request of its own
    [told] = fal_ledger.problems
    assert told.startswith(f"refused: what a socket sent is no HTTP request: {status}: ")
    assert len(told) < 500
    assert fal_ledger.exchanges == []


BAD_CHUNKS = {
    "no number": b"z\r\n",
    "a negative size": b"-1\r\nab\r\n0\r\n\r\n",
    "a size with a sign": b"+2\r\nab\r\n0\r\n\r\n",
    "a size with a prefix": b"0x2\r\nab\r\n0\r\n\r\n",
    "no size": b"\r\nab\r\n0\r\n\r\n",
    "a size beyond all bounds": b"f" * 16 + b"\r\nab",
    "a size without end": b"1" * 100_000,
    "an extension without end": b"1;" + b"x" * 100_000,
    "an extension with a line feed": b"2;a\nb\r\nab\r\n0\r\n\r\n",
    "more than it says": b"2\r\nabc\r\n0\r\n\r\n",
    "less than it says": b"4\r\nab\r\n0\r\n\r\n",
    "a bare line feed": b"2\nab\n0\n\n" + b"x" * 5_000,
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_chunks_that_are_none_end_the_connection(door, fal_ledger, name):
    answer = talk(door, post(CHUNKED, BAD_CHUNKS[name]) + get())
    assert status_of(answer) in (400, 404)  # 404: the answer was clear before the body was read
    assert b"\r\nConnection: close\r\n" in answer
    assert len(STATUS_LINE.findall(answer)) == 1  # what followed was not taken for a request


@pytest.mark.parametrize("lines", [b"X: y\r\n" * 20_000, b"X: " + b"y" * 100_000])
def test_trailers_have_an_end(door, lines):
    assert status_of(talk(door, post(CHUNKED, b"0\r\n" + lines))) in (400, 404, 431)


def test_a_body_that_its_handler_reads_and_is_no_body_is_refused(fal_emulator, fal_ledger):
    head = f"POST /tokens/ HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Key id:secret\r\n{CHUNKED}"
    answer = talk("plain", head.encode() + b"\r\n\r\nzz\r\n")
    assert status_of(answer) == 400
    assert answer.endswith(b"400: this is no size of a chunk: b'zz'\n")
    assert fal_ledger.problems == [
        "refused: what a socket sent is no HTTP request: 400: this is no size of a chunk: b'zz'"
    ]


# --- who is asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("a b", 400),
        ("user:word@a.example", 400),
        ("a.example/path", 400),
        ("a.example:port", 400),
        ("a.example:999999", 400),
        ("xn--a", 400),
        ("[::zz]", 400),
        ("999.999.999.999", 400),
        ("a\xe9.example", 400),
        ("a" * 70_000, 431),
        ("nobody.example", 502),
        ("..", 502),
        ("-", 502),
    ],
)
def test_hosts(fal_emulator, fal_ledger, host, status):
    sent = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1")
    assert status_of(talk("plain", sent)) == status
    assert [one for one in fal_ledger.problems if one.startswith("error")] == []
    assert "word" not in str(fal_ledger.problems)


def test_two_hosts_are_none(fal_emulator):
    sent = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: {HOST}\r\n\r\n".encode()
    assert status_of(talk("plain", sent)) == 400


def test_the_socket_file_has_one_name(fal_emulator):
    sent = b"GET /nothing HTTP/1.1\r\nHost: v3.fal.media\r\nConnection: close\r\n\r\n"
    assert b"Path /nothing not found" in talk("socket file", sent)


def test_a_host_header_may_be_another_than_the_certificates(fal_emulator, fal_ledger):
    """As with servers that have one certificate for many names; the request is the header's."""
    sent = b"GET /nothing HTTP/1.1\r\nHost: api.fal.ai\r\nConnection: close\r\n\r\n"
    assert status_of(talk("tls", sent)) == 401
    assert [one.host for one in fal_ledger.exchanges] == ["api.fal.ai"]


def test_a_whole_url_wins_over_the_host_header(fal_emulator, fal_ledger):
    sent = get("Connection: close", target="http://api.fal.ai/nothing")
    assert status_of(talk("plain", sent)) == 401
    assert [one.url for one in fal_ledger.exchanges] == ["http://api.fal.ai/nothing"]


# --- plain and TLS --------------------------------------------------------------------------------


def test_plain_http_where_tls_is_spoken_is_refused(fal_emulator, fal_ledger):
    with socket.create_connection((HOST, 443)) as sock:
        sock.sendall(get())
        answer = until_end(sock)
    assert status_of(answer) == 400
    assert answer.endswith(b"400: port 443 speaks TLS, and this is plain HTTP\n")
    assert fal_ledger.problems == [
        "refused: what a socket sent is no HTTP request: "
        "400: port 443 speaks TLS, and this is plain HTTP"
    ]


def test_tls_where_plain_http_is_spoken_fails_in_the_clients_way(fal_emulator):
    with socket.create_connection((HOST, 80)) as sock:
        with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number"):
            ssl.create_default_context().wrap_socket(sock, server_hostname=HOST)
    assert answers("plain")


GARBAGE = {
    "a record of nothing": b"\x16\x03\x01\x00\x00",
    "a record too long": b"\x16\x03\x01\xff\xff" + b"x" * 65_535,
    "no message": b"\x16\x03\x01\x00\x05hello",
    "random": b"\x16" + bytes(range(256)) * 4,
    "an alert": b"\x15\x03\x03\x00\x02\x02\x50",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_for_a_handshake_ends_the_connection(fal_emulator, name):
    with socket.create_connection((HOST, 443)) as sock:
        with suppress(OSError):  # hung up on already
            sock.sendall(GARBAGE[name])
            sock.shutdown(socket.SHUT_WR)
        until_end(sock)
    assert answers("tls")


def hello_to(name: bytes) -> bytes:
    """The first message of a client that asks for this name."""
    stand_in = "x" * 40
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=stand_in)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read().replace(stand_in.encode(), name)


@pytest.mark.parametrize(
    "name",
    [
        *(b"\xff" * 40, b"\xc3\xa9" * 20, b"a\0b" + b"c" * 37, b"." * 40, b" " * 40),
        *(b"*." + b"a" * 38, b"xn--" + b"a" * 36, b"-" * 40, b"[" * 40, b"\x01" * 40),
    ],
)
def test_names_in_a_handshake_that_are_none(fal_emulator, name):
    """The ssl module prints a traceback for some of them; here that would be an error."""
    with socket.create_connection((HOST, 443)) as sock:
        sock.sendall(hello_to(name))
        with suppress(OSError):  # hung up on already
            sock.shutdown(socket.SHUT_WR)
        until_end(sock)
    assert answers("tls")


def test_a_handshake_that_comes_byte_by_byte_is_one(fal_emulator):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=HOST)
    with socket.create_connection((HOST, 443)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    sock.sendall(bytes([byte]))
                incoming.write(sock.recv(65_536))
    assert client.version() == "TLSv1.3"


# --- keep-alive and pipelining --------------------------------------------------------------------


def numbered(count: int, *, close: bool = False) -> bytes:
    """So many requests, each for another path; every third has a body."""
    requests = []
    for number in range(count):
        last = close and number == count - 1
        headers = ["Connection: close"] if last else []
        target = f"/nothing/{number}"
        if number % 3 == 2:
            requests.append(get(*headers, "Content-Length: 5", target=target) + b"GET /")
        elif number % 3 == 1:
            requests.append(get(*headers, CHUNKED, target=target) + b"5\r\nGET /\r\n0\r\n\r\n")
        else:
            requests.append(get(*headers, target=target))
    return b"".join(requests)


def test_pipelined_requests_are_answered_in_their_order(door):
    answer = talk(door, numbered(100, close=True))
    told = [line for line in answer.split(b'"Path ') if line.startswith(b"/nothing/")]
    assert [int(one[9:].split()[0]) for one in told] == list(range(100))


def test_an_error_among_pipelined_requests_ends_them(door):
    answer = talk(door, numbered(5) + b"nonsense\r\n\r\n" + numbered(5))
    statuses = STATUS_LINE.findall(answer)
    assert statuses == [b"404"] * 5 + [b"400"]


def test_a_connection_is_used_again_and_again(door):
    with connect(door) as sock:
        for _ in range(300):
            sock.sendall(get())
            assert status_of(sock.recv(65_536)) == 404
        sock.sendall(get("Connection: close"))
        assert b"\r\nConnection: close\r\n" in until_end(sock)


@pytest.mark.parametrize("value", ["close", "Close", "upgrade, close", "close, close"])
def test_a_client_may_end_it(door, value):
    answer = talk(door, get(f"Connection: {value}") + get())
    assert answer.count(b"HTTP/1.1 404") == 1


def test_a_head_has_no_body(door):
    head = get("Connection: close").replace(b"GET", b"HEAD")
    answer = talk(door, head)
    assert status_of(answer) == 404
    assert answer.endswith(b"\r\n\r\n")


def test_what_names_itself_is_no_header(fal_cdn, fal_origin):
    """A client chose the type of its file; whoever reads the file gets no header more by that."""
    fal_cdn.put(b"x", "a.bin")
    url = fal_cdn.put(b"content", "b.bin", content_type="text/plain\r\nSet-Cookie: a=b\r\n\r\nx")
    target = "/" + url.split("/", 3)[3]
    sent = f"GET {target} HTTP/1.1\r\nHost: v3b.fal.media\r\nConnection: close\r\n\r\n".encode()
    head, _, body = talk("plain", sent, "v3b.fal.media").partition(b"\r\n\r\n")
    assert body == b"content"
    assert b"\r\nSet-Cookie" not in head
    assert b"text/plain  Set-Cookie: a=b    x" in head


def test_a_type_beyond_ascii_is_sent_as_it_is(fal_cdn):
    url = fal_cdn.put(b"content", "b.bin", content_type="text/pl\u00e4in; \ud800")
    target = "/" + url.split("/", 3)[3]
    sent = f"GET {target} HTTP/1.1\r\nHost: v3b.fal.media\r\nConnection: close\r\n\r\n".encode()
    answer = talk("plain", sent, "v3b.fal.media")
    assert status_of(answer) == 200
    assert "text/pl\u00e4in; ?".encode() in answer


# --- 100-continue and upgrades --------------------------------------------------------------------

LONG = f"Content-Length: 10000000000\r\nHost: {HOST}\r\n"


def test_a_body_that_nobody_wants_is_not_asked_for(door):
    with connect(door) as sock:
        sock.sendall(f"POST /nothing HTTP/1.1\r\n{LONG}Expect: 100-continue\r\n\r\n".encode())
        assert status_of(until_end(sock)) == 404


def test_who_was_not_answered_may_send_all_the_same(door):
    """And is hung up on in the end, as what it sends may look like a request."""
    sent = post("Content-Length: 5\r\nExpect: 100-continue", b"GET /") + get("Connection: close")
    answer = talk(door, sent)
    assert answer.count(b"HTTP/1.1 404") in (1, 2)


@pytest.mark.parametrize(
    "headers",
    [
        ["Upgrade: websocket"],
        ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk"],
        ["Upgrade: " + "x" * 10_000, "Connection: Upgrade"],
        ["Upgrade: \x01", "Connection: Upgrade"],
    ],
)
def test_an_upgrade_of_what_has_none_is_an_ordinary_request(door, headers):
    answer = talk(door, get(*headers, "Connection: close"))
    assert status_of(answer) in (404, 426)


# --- clients that go, or stay ---------------------------------------------------------------------

PARTS = {
    "nothing": b"",
    "half a line": b"GET /noth",
    "half a head": GET + b"X: y",
    "half a body": post("Content-Length: 1000", b"half"),
    "half a chunk": post(CHUNKED, b"5\r\nab"),
    "half a size": post(CHUNKED, b"5"),
    "half a trailer": post(CHUNKED, b"0\r\nX"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["closes", "stops sending", "resets"])
def test_who_leaves_in_the_middle_is_no_trouble(door, part, how):
    sock = connect(door)
    sock.sendall(PARTS[part])
    if how == "stops sending":
        socket.socket.shutdown(sock, socket.SHUT_WR)
        until_end(sock)
        sock.close()
    elif how == "resets":
        reset(sock)
    else:
        sock.close()


def test_whoever_stays_in_the_middle_keeps_nobody_from_anything(fal_emulator):
    """All of them at once; stopping the emulator hangs up on them."""
    before = descriptors()
    staying = []
    for door in DOORS:
        for part in PARTS.values():
            for _ in range(3):
                staying.append(connect(door))
                staying[-1].sendall(part)
    for _ in range(5):  # a handshake that never ends
        staying.append(socket.create_connection((HOST, 443)))
        staying[-1].sendall(hello_to(b"a" * 40)[:100])
    assert all(answers(door) for door in DOORS)
    fal_emulator.reset()
    # A body that nobody wants was answered before.
    assert all(status_of(until_end(sock)) in (None, 404) for sock in staying)
    for sock in staying:
        sock.close()
    gc.collect()
    assert settled(lambda: len(descriptors()) <= len(before))
    assert settled(lambda: wire_threads() <= 2 * server.WAITING_THREADS)


def test_who_sends_half_a_body_that_nobody_wants_is_answered(door, monkeypatch):
    monkeypatch.setattr(http1, "DRAIN_SECONDS", 0.01)
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.01)
    with connect(door) as sock:
        sock.sendall(PARTS["half a body"])
        answer = until_end(sock)  # although it has not sent all, and stays
    assert status_of(answer) == 404
    assert b"\r\nConnection: close\r\n" in answer


def test_who_is_refused_and_stays_is_hung_up_on(door, monkeypatch):
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.01)
    with connect(door) as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        assert status_of(until_end(sock)) == 400
        assert settled(lambda: wire_threads() <= 2 * server.WAITING_THREADS)


def test_who_never_reads_keeps_nobody_from_anything(fal_emulator, fal_origin):
    fal_origin.serve("https://large.example/file", size=200_000_000)
    with socket.create_connection(("large.example", 443)) as sock:
        context = ssl.create_default_context()
        with context.wrap_socket(sock, server_hostname="large.example") as tls:
            tls.sendall(b"GET /file HTTP/1.1\r\nHost: large.example\r\n\r\n" * 3)
            assert status_of(tls.recv(1000)) == 200
            assert answers("tls")
            fal_emulator.reset()


def test_who_resets_in_the_middle_of_an_answer_is_no_trouble(fal_emulator, fal_origin):
    fal_origin.serve("http://large.example/file", size=200_000_000)
    for _ in range(20):
        sock = socket.create_connection(("large.example", 80))
        sock.sendall(b"GET /file HTTP/1.1\r\nHost: large.example\r\n\r\n")
        assert status_of(sock.recv(1000)) == 200
        reset(sock)
    assert answers("plain")
    assert [one for one in fal_emulator.ledger.problems if one.startswith("error")] == []


def test_a_head_that_comes_byte_by_byte_is_one(door):
    with connect(door) as sock:
        for byte in get("X: " + "y" * 2_000, "Connection: close"):
            sock.sendall(bytes([byte]))
        assert status_of(until_end(sock)) == 404


# --- websockets -----------------------------------------------------------------------------------


def handshake(*lines: str) -> bytes:
    """A client's wish for a websocket."""
    return get(
        *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"), *lines,
        "Authorization: Key id:secret", target="/me/app",
    ).replace(HOST.encode(), b"ws.fal.run")  # fmt: skip


KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], 400),
        (["Sec-WebSocket-Key: short"], 400),
        (["Sec-WebSocket-Key: \xff"], 400),
        ([KEY, "Sec-WebSocket-Protocol: \x01"], 400),
        ([KEY, KEY], 400),
        ([KEY, *["Sec-WebSocket-Protocol: a"] * 300], 400),
        ([KEY, "Sec-WebSocket-Protocol: " + "a" * 20_000], 400),
        ([KEY, "Sec-WebSocket-Extensions: ;;;"], 400),
    ],
)
def test_handshakes_that_are_none(fal_gateway, fal_ledger, lines, status):
    fal_gateway.deploy("me/app", {"images": []})
    assert status_of(talk("plain", handshake(*lines), "ws.fal.run")) == status
    assert [one for one in fal_ledger.problems if one.startswith("error")] == []


def test_a_client_that_asks_and_does_not_listen_is_not_answered_on_and_on():
    """Its pings are no longer read once a megabyte of answers waits for it."""
    pings = memoryview((b"\x89\xfd" + b"\0\0\0\0" + b"x" * 125) * 100_000)
    near, far = socket.socketpair()
    with near, far:
        end = SocketEnd(far, ServerProtocol(state=State.OPEN))
        near.setblocking(False)
        sent = 0
        while sent < len(pings):
            try:
                sent += near.send(pings[sent : sent + 65_536])
            except BlockingIOError:
                if not end.events() & select.POLLIN:
                    break
                end.step()
        assert end.code is None
        assert sent < len(pings)
        end.hang_up()


def test_a_message_has_a_limit(fal_gateway):
    fal_gateway.deploy("me/app", {"images": []})
    with connect("plain", "ws.fal.run") as sock:
        sock.sendall(handshake(KEY))
        assert status_of(sock.recv(1000)) == 101
        sock.sendall(b"\x82\xff" + struct.pack(">Q", 1 << 40) + b"\0\0\0\0")
        assert until_end(sock)[:4][2:] == struct.pack(">H", 1009)


# --- what hosts stumbled over ---------------------------------------------------------------------

AMAZON, GOOGLE = "amazon.s3.amazonaws.com", "storage.googleapis.com"
DEEP = b"[" * 100_000
SIGNED = "X-Amz-Signature=1&X-Amz-Credential=a/b&X-Amz-Date=20260101T000000Z&X-Amz-Expires="
STUMBLING = [
    ("rest.fal.ai", "POST /tokens/", DEEP, 422),
    ("rest.fal.ai", "POST /files/rename/a", DEEP, 422),
    ("rest.fal.ai", "POST /storage/upload/gcs/a/complete", DEEP, 403),
    ("rest.fal.ai", f"POST /storage/upload/gcs/a/{'9' * 5_000}", b"", 404),
    ("rest.fal.ai", f"PUT /files/file/multipart/a/b/{'9' * 5_000}", b"", 404),
    ("v3.fal.media", f"PUT /files/a/b/multipart/c/{'9' * 5_000}", b"", 403),
    ("queue.fal.run", "POST /me/app?fal_max_queue_length=%C2%B2", b"{}", 200),
    ("queue.fal.run", f"POST /me/app?fal_max_queue_length={'9' * 5_000}", b"{}", 200),
    ("fal.run", "POST /me/app", DEEP, 200),
    (GOOGLE, "PATCH /storage/v1/b/google/o/key", DEEP, 400),
    (GOOGLE, "PATCH /storage/v1/b/google/o/key", b'{"acl": [1]}', 400),
    (GOOGLE, "PUT /storage/v1/b/google/iam", b'{"bindings": [1]}', 400),
    (GOOGLE, "PUT /storage/v1/b/google/iam", b'{"bindings": 1}', 400),
    (GOOGLE, "POST /storage/v1/b/google/o/key/compose", b'{"destination": "a"}', 400),
    (GOOGLE, "POST /storage/v1/b/google/o/key/compose", b'{"sourceObjects": 1}', 400),
    (GOOGLE, f"GET /google/key?GoogleAccessId=a&Signature=b&Expires={'9' * 30}", b"", 200),
    (GOOGLE, "GET /google/key?GoogleAccessId=a&Signature=b&Expires=%C2%B2", b"", 200),
    (AMAZON, "BREW /key", b"", 501),
    (AMAZON, "PUT /key?uploadId=a&partNumber=b", b"", 501),
    (AMAZON, "POST /key?uploadId=nowhere", b"<a/>", 501),
    (AMAZON, f"GET /key?{SIGNED}-1{'0' * 30}", b"", 400),
]


@pytest.mark.parametrize(
    ("host", "line", "body", "status"), STUMBLING, ids=[str(n) for n in range(len(STUMBLING))]
)
def test_what_is_malformed_is_answered(fal_emulator, host, line, body, status):
    fal_emulator.gateway.deploy("me/app", {"images": []})
    fal_emulator.buckets.create("amazon", provider="s3")
    fal_emulator.buckets.create("google", provider="gcs").put("key", b"content")
    key = {"rest.fal.ai": "Key id:secret", AMAZON: "AWS4-HMAC-SHA256 Credential=a/b/c"}
    key |= dict.fromkeys(("queue.fal.run", "fal.run"), "Key id:secret")
    sent = (
        f"{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        f"Authorization: {key.get(host, 'Bearer a')}\r\n\r\n"
    )
    with connect("plain", host) as sock:
        sock.sendall(sent.encode() + body)
        answer = until_end(sock)
    assert status_of(answer) == status
    assert [one for one in fal_emulator.ledger.problems if one.startswith("error")] == []


# --- growth ---------------------------------------------------------------------------------------


def test_nothing_grows(fal_emulator):
    """Hundreds of connections of each kind, and what they leave: no thread, descriptor, memory."""
    sent = [MALFORMED[name][0] for name in MALFORMED if len(MALFORMED[name][0]) < 1_000]

    def disturb() -> None:
        for door in DOORS:
            for one in (*sent, get("Connection: close")):
                talk(door, one)
            for part in PARTS.values():
                with connect(door) as sock:
                    sock.sendall(part)
        fal_emulator.ledger.reset()

    disturb()  # what is there from now on: threads that wait, certificates, caches
    assert settled(lambda: wire_threads() <= 2 * server.WAITING_THREADS)
    before = len(descriptors())
    with memory_grows_by_less_than(16 * MEBIBYTE):
        for _ in range(int(os.environ.get("WIRE_ROUNDS", "3"))):
            disturb()
    assert settled(lambda: wire_threads() <= 2 * server.WAITING_THREADS)
    assert settled(lambda: len(descriptors()) <= before)
