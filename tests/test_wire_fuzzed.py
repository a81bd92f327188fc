"""Requests, frames, forms and names that Hypothesis makes up, against a running emulator.

Each run here is short and always the same; WIRE_EXAMPLES asks for so many examples of each, another
way each time.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import struct
import unicodedata
import urllib.parse
import zipfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_clients import connect, status_of, until_end

from emulator.errors import RefusedRequest
from emulator.hosts.forms import FormError, file_in_form
from emulator.network import http1
from emulator.storage.lifecycle import parse_preference, parse_range
from emulator.storage.post_policy import S3Error, check_policy, read_form
from emulator.storage.upload_policy import parse_policy

#: How many examples of each; unset: a few, always the same.
EXAMPLES = "WIRE_EXAMPLES"
ACCOUNT = "Authorization: Key id:secret"


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Settings of a test: *examples*, or as many as the environment asks for."""
    wanted = int(os.environ.get(EXAMPLES, 0))
    return settings(
        max_examples=wanted or examples,
        derandomize=not wanted,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# --- requests -------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A call that one of fal's hosts knows."""

    door: str
    host: str
    method: str
    target: str


def calls() -> list[Call]:
    """Calls of every host, as they are before they are mutated."""
    written = """
        POST rest.fal.ai /storage/auth/token?storage_type=fal-cdn-v3
        POST rest.fal.ai /storage/upload/initiate
        POST rest.fal.ai /storage/upload/initiate-multipart?storage_type=gcs
        POST rest.fal.ai /storage/upload/gcs/UPLOAD/1
        POST rest.fal.ai /storage/upload/gcs/UPLOAD/complete
        POST rest.fal.ai /tokens/
        POST rest.fal.ai /tokens/realtime
        GET rest.fal.ai /files/list//data
        GET rest.fal.ai /files/file//data/a
        POST rest.fal.ai /files/file/local/a?unzip=true
        POST rest.fal.ai /files/file/url/a
        POST rest.fal.ai /files/file/multipart/a/initiate
        PUT rest.fal.ai /files/file/multipart/a/UPLOAD/1
        POST rest.fal.ai /files/file/multipart/a/UPLOAD/complete
        POST rest.fal.ai /files/rename/a
        DELETE rest.fal.ai /files/file/a
        GET rest.fal.ai /storage/files/acl?url=FILE
        PUT rest.fal.ai /storage/files/acl?url=FILE
        PUT rest.fal.ai /storage/settings
        GET rest.fal.ai /applications/me/app/queue
        POST api.fal.ai /v1/serverless/files/file/local/a
        POST api.fal.ai /v1/serverless/files/file/url/a
        GET api.fal.ai /v1/serverless/files/list/a
        POST api.fal.ai /v1/storage/files/sign
        DELETE api.fal.ai /v1/models/requests/a/payloads
        POST v3.fal.media /files/upload
        POST v3.fal.media /files/upload/multipart
        PUT v3.fal.media /files/a/b/multipart/UPLOAD/1
        POST v3.fal.media /files/a/b/multipart/UPLOAD/complete
        POST v3b.fal.media PATH/sign
        PUT v3b.fal.media PATH?upload_id=UPLOAD&signature=a
        GET v3b.fal.media PATH?identity=a
        HEAD v3b.fal.media PATH
        POST v2.fal.media /files/upload
        POST fal.run /me/app
        POST queue.fal.run /me/app?fal_webhook=https://a.example/&fal_max_queue_length=1
        GET queue.fal.run /me/app/requests/a/status?logs=1
        PUT queue.fal.run /me/app/requests/a/cancel
        GET ws.fal.run /me/app?fal_jwt_token=a
        GET kv.fal.media /get/db/key
        POST kv.fal.media /set/db/key?ttl=10
        GET amazon.s3.amazonaws.com /key
        GET amazon.s3.amazonaws.com /key?X-Amz-Signature=1&X-Amz-Date=20260101T000000Z&X-Amz-Expires=1&X-Amz-Credential=a/b
        GET amazon.s3.amazonaws.com /key?Signature=a&Expires=9999999999&AWSAccessKeyId=a
        PUT amazon.s3.amazonaws.com /key
        PUT amazon.s3.amazonaws.com /key?uploadId=a&partNumber=1
        POST amazon.s3.amazonaws.com /
        POST amazon.s3.amazonaws.com /key?uploadId=a
        POST amazon.s3.amazonaws.com /?delete
        POST storage.googleapis.com /upload/storage/v1/b/google/o?uploadType=multipart
        POST storage.googleapis.com /upload/storage/v1/b/google/o?uploadType=resumable
        PUT storage.googleapis.com /upload/storage/v1/b/google/o?upload_id=RESUMABLE
        POST storage.googleapis.com /storage/v1/b
        POST storage.googleapis.com /storage/v1/b/google/o/key/compose
        POST storage.googleapis.com /storage/v1/b/google/o/key/rewriteTo/b/google/o/copy
        POST storage.googleapis.com /storage/v1/b/google/o/key/acl
        PATCH storage.googleapis.com /storage/v1/b/google/o/key
        PUT storage.googleapis.com /storage/v1/b/google/iam
        GET storage.googleapis.com /google/key?X-Goog-Signature=1&X-Goog-Date=20260101T000000Z&X-Goog-Expires=1&X-Goog-Credential=a/b&X-Goog-SignedHeaders=host
        GET storage.googleapis.com /google/key?Expires=1&GoogleAccessId=a&Signature=a
        POST oauth2.googleapis.com /token
    """  # noqa: E501
    found = [line.split() for line in written.split("\n") if line.strip()]
    node = """
        POST /v1/uploads
        GET /v1/uploads/a?wait=0
        POST /v1/upload-sessions
        PUT /v1/upload-sessions/a/body
        POST /v1/upload-sessions/a/finish
        DELETE /v1/upload-sessions/a
    """
    near = [line.split() for line in node.split("\n") if line.strip()]
    return [Call("plain", host, method, target) for method, host, target in found] + [
        Call("socket file", "uploader.fal", method, target) for method, target in near
    ]


#: What a piece of a path or a query is replaced by, or gets behind it.
PIECES = st.sampled_from(
    [
        *("", ".", "..", "%2e%2e", "%2f", "..%2f..%2f..%2fetc%2fpasswd", "%5c..%5c", "%00", "%ff"),
        *("%ed%a0%80", "%C3%A9", "e%CC%81", "%F0%9F%98%80", "%0d%0aX:%20y", "%25", "%D9%A3", "%"),
        *("-1", "0", "1" * 5_000, "99999999999999999999", "1e400", "NaN", "null", "true", "{}"),
        *("x" * 300, "/" * 300, "//", ":", "@", ";", "=", "*", "'", '"', "\\", "xn--a", "[::1"),
    ]
)
NUMBERS = st.sampled_from(["1e400", "9" * 5_000, "-1", "0", "1.5", "true", "null", '"1"', "NaN"])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["../..", "/etc/passwd", "a\0b", "\ud800", "https://[", "http://xn--a/", "${"]
    )
)
KEYS = st.sampled_from(
    [
        *("file_name", "content_type", "parts", "part_number", "partNumber", "etag", "url", "a"),
        *("destination", "allowed_apps", "token_expiration", "duration", "expiration_seconds"),
        *("initial_acl", "default", "rules", "user", "decision", "size_bytes", "name", "acl"),
        *("sourceObjects", "objectPreconditions", "bindings", "members", "metadata", "contentType"),
        *("expiration_duration_seconds", "entity", "urls", "path", "file_url", "acl_update"),
    ]
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nkey\r\n'
    b'--b\r\nContent-Disposition: form-data; name="policy"\r\n\r\ne30=\r\n'
    b'--b\r\nContent-Disposition: form-data; name="AWSAccessKeyId"\r\n\r\na\r\n'
    b'--b\r\nContent-Disposition: form-data; name="signature"\r\n\r\na\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="../a"\r\n\r\ncontent\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file_upload"; filename="../a"\r\n\r\nx\r\n--b--'
)
BODIES = (
    st.just(b"")
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=40)
    | st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"<a>", FORM, b"x" * 70_000])
    | NUMBERS.map(
        lambda number: (
            b'{"duration": %s, "parts": [{"part_number": %s}]}' % ((number.encode(),) * 2)
        )
    )
    | NUMBERS.map(lambda number: f"<A><PartNumber>{number}</PartNumber></A>".encode())
)
VALUES = st.sampled_from(
    [
        *("", "\xff", "\xe9", "a" * 5_000, "[" * 5_000, "9" * 5_000, "\xb2", "NaN", "1e400", "-1"),
        *("../../etc/passwd", "%00", "*", "bytes=0-", "bytes=-", "bytes 0-1/2", "bytes */*"),
        *('{"expiration_duration_seconds": 1e400}', '{"initial_acl": {"rules": [[1]]}}', "null"),
        *('{"url": "https://[", "fields": {"key": "${filename}"}}', "STREAMING-AWS4", "websocket"),
        *("multipart/form-data; boundary=b", "multipart/form-data; boundary*=utf-99''b", ";;="),
        *("multipart/related; boundary=b", "Bearer a", "AWS a:b", "AWS4-HMAC-SHA256 Signature=a"),
    ]
)
NAMES = st.sampled_from(
    [
        *("Authorization", "Content-Type", "Range", "If-Range", "If-None-Match", "Content-Range"),
        *("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference", "X-Fal-File-Name"),
        *(
            "X-Fal-CDN-Token",
            "X-Fal-Request-Id",
            "X-App-Fal-Upload-Policy",
            "X-Fal-Request-Timeout",
        ),
        *("X-Fal-Queue-Priority", "X-Fal-Runner-Hint", "X-Fal-No-Retry", "X-Fal-Retry-Config"),
        *("X-Amz-Date", "X-Amz-Content-SHA256", "X-Amz-Copy-Source", "X-Amz-Acl", "X-Goog-Hash"),
        *("X-Upload-Content-Type", "Content-Encoding", "Content-MD5", "Upgrade", "Accept"),
        *("Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol"),
    ]
)


@st.composite
def requests(draw: Callable[[Any], Any], known: list[Call]) -> tuple[Call, bytes]:
    """A known call with something wrong about it; and its bytes."""
    call = draw(st.sampled_from(known))
    pieces = re.split("([/?&=])", call.target)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(pieces) - 1))
        keeps = draw(st.booleans())
        pieces[place] = (pieces[place] if keeps else "") + draw(PIECES)
    target = "/" + "".join(pieces).lstrip("/") if draw(st.booleans()) else "".join(pieces)
    method = draw(st.sampled_from([call.method] * 20 + ["OPTIONS", "PATCH", "TRACE", "BREW"]))
    headers = draw(st.lists(st.tuples(NAMES, VALUES), max_size=3))
    body = draw(BODIES)
    if not any(name == "Authorization" for name, _ in headers):
        bearer = "media" in call.host or "google" in call.host
        headers.append(("Authorization", "Bearer TOKEN" if bearer else "Key id:secret"))
    if body is FORM and draw(st.booleans()):
        headers.append(("Content-Type", "multipart/form-data; boundary=b"))
    if draw(st.booleans()):
        sent, framing = body, f"Content-Length: {len(body)}"
    else:
        sent = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:3], body[3:]) if part
        )
        sent, framing = sent + b"0\r\n\r\n", "Transfer-Encoding: chunked"
    lines = [f"{method} {target} HTTP/1.1", f"Host: {call.host}", "Connection: close", framing]
    lines += [f"{name}: {value}" for name, value in headers]
    return call, "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + sent


def exchanged(call: Call, sent: bytes) -> bytes:
    """What a host answers to these bytes."""
    with connect(call.door, call.host) as sock:
        with suppress(OSError):  # hung up on already
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
        return until_end(sock)


def known_calls(fal_emulator: Any) -> list[Call]:
    """The calls, with what is there for them: a file, uploads, buckets, an app, a token."""
    fal_emulator.gateway.deploy("me/app", {"images": []})
    fal_emulator.buckets.create("amazon", provider="s3").put("key", b"content")
    fal_emulator.buckets.create("google", provider="gcs").put("key", b"content")
    url = fal_emulator.cdn.put(b"content", "a.bin")
    with httpx.Client(headers={"Authorization": "Key id:secret"}) as client:
        rest = "https://rest.fal.ai"
        token = client.post(f"{rest}/storage/auth/token?storage_type=fal-cdn-v3", json={}).json()
        begun = client.post(f"{rest}/storage/upload/initiate-multipart", json={}).json()
        part = client.post(f"{rest}/files/file/multipart/a/initiate").json()
        resumable = client.post(
            "https://storage.googleapis.com/upload/storage/v1/b/google/o?uploadType=resumable",
            headers={"Authorization": "Bearer a"},
            json={"name": "a"},
        ).headers["x-guploader-uploadid"]
    upload = begun["upload_url"].rpartition("/")[2].partition("?")[0]
    there = {
        "PATH": "/" + url.split("/", 3)[3],
        "FILE": url,
        "RESUMABLE": resumable,
        "TOKEN": token["token"],
    }

    def fill(call: Call) -> Call:
        target = call.target
        for name, value in there.items():
            target = target.replace(name, value)
        mine = part["upload_id"] if "/files/file/" in target else upload
        return call._replace(target=target.replace("UPLOAD", mine))

    return [fill(call) for call in calls()]


@pytest.mark.fal(local_uploader=True)
def test_requests_are_answered_whatever_is_in_them(fal_emulator):
    known = known_calls(fal_emulator)

    @fuzzed(250)
    @given(requests(known))
    def check(example: tuple[Call, bytes]) -> None:
        answer = exchanged(*example)
        failed = [one for one in fal_emulator.ledger.problems if one.startswith("error")]
        fal_emulator.ledger.reset()
        assert failed == []
        # An app's caller who stops sending counts as gone.
        assert status_of(answer) or (answer == b"" and example[0].host.endswith("fal.run"))

    check()
    assert status_of(exchanged(known[0], b"GET / HTTP/1.1\r\nHost: rest.fal.ai\r\n\r\n")) == 404


# --- heads ----------------------------------------------------------------------------------------

LINES = st.sampled_from(
    [
        *(b"GET / HTTP/1.1", b"GET / HTTP/1.0", b"Host: a.example", b"Content-Length: 3", b""),
        *(b"Transfer-Encoding: chunked", b"Connection: close", b"Expect: 100-continue", b" b: c"),
        *(b"Content-Length: 3, 3", b"A:\tb\t", b"a:b:c", b":", b"A b: c", b"A: \0", b"A\x7f: b"),
        *(b"GET http://a.example/b HTTP/1.1", b"OPTIONS * HTTP/1.1", b"3", b"abc", b"0"),
    ]
)
SEPARATORS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n\r\n"])
STREAMS = st.lists(st.tuples(LINES | st.binary(max_size=12), SEPARATORS), max_size=12).map(
    lambda pairs: b"".join(line + end for line, end in pairs)
)


@fuzzed(200)
@given(st.sampled_from([b"", b"GET / HTTP/1.1\r\nHost: a.example\r\n"]), STREAMS, st.data())
def test_any_bytes_are_requests_or_refused_however_they_arrive(start, stream, data):
    """By the parser alone: what it makes of a stream does not depend on how that is cut."""
    sent = start + stream
    cut = data.draw(st.integers(0, len(sent)))
    whole, pieces = parsed([sent]), parsed([sent[:cut], sent[cut:]])
    assert whole == pieces
    for head in whole[:-1]:
        assert re.fullmatch(r"[!-~]+ \S+ (200|[45]\d\d|\d+)", head)


def parsed(pieces: list[bytes]) -> list[str]:
    """The requests that a stream is, with their bodies' lengths, and how it ends."""
    near, far = socket.socketpair()
    found = []
    with near, far:
        inbound = http1.Inbound(far)
        unsent = list(pieces)

        class Arriving:
            """What was not sent yet comes when it is asked for."""

            def recv(self, limit: int) -> bytes:
                if not unsent:
                    return b""
                data, unsent[0] = unsent[0][:limit], unsent[0][limit:]
                if not unsent[0]:
                    unsent.pop(0)
                return data or self.recv(limit)

        inbound._socket = Arriving()
        try:
            while True:
                head = http1.parse_head(inbound.head())
                body = http1.RequestBody(inbound, http1.body_length(head), None)
                url = http1.request_url(head.target, head.fields.get(b"host", b"a"), secure=False)
                found.append(f"{head.method} {url} {sum(map(len, body))}")
        except http1.RefusedError as refused:
            return [*found, str(refused.response.status_code)]
        except http1.ClientGoneError:
            return [*found, "gone"]


# --- websockets -----------------------------------------------------------------------------------


@st.composite
def frames(draw: Callable[[Any], Any]) -> bytes:
    """A frame with any of its parts wrong."""
    opcode = draw(st.sampled_from([0, 1, 1, 2, 2, 8, 9, 10, 3, 11, 15]))
    fin, reserved = (
        draw(st.sampled_from([0x80, 0x80, 0])),
        draw(st.sampled_from([0, 0, 0x40, 0x70])),
    )
    code = st.sampled_from([0, 999, 1000, 1004, 1005, 1006, 1015, 2000, 3000, 4999, 5000, 65535])
    close = code.map(lambda number: struct.pack(">H", number)) | st.just(b"\x03")
    text = st.sampled_from([b"{}", b'{"a": 1}', b"\xff", b"\xc3", b"\xed\xa0\x80", b"x" * 126])
    payload = draw(close | text | st.binary(max_size=130))
    length = draw(st.sampled_from([len(payload)] * 6 + [0, 126, 2**16, 2**40, 2**63]))
    masked = draw(st.sampled_from([0x80, 0x80, 0x80, 0]))
    if length < 126:
        size = bytes([masked | length])
    elif length < 2**16:
        size = bytes([masked | 126]) + struct.pack(">H", length)
    else:
        size = bytes([masked | 127]) + struct.pack(">Q", length)
    return bytes([fin | reserved | opcode]) + size + (b"\0\0\0\0" if masked else b"") + payload


HANDSHAKE = (
    f"GET /me/app HTTP/1.1\r\nHost: ws.fal.run\r\n{ACCOUNT}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
).encode()


def test_frames_end_a_websocket_at_most(fal_emulator):
    fal_emulator.gateway.deploy("me/app", {"images": []})

    @fuzzed(30)
    @given(st.lists(frames(), min_size=1, max_size=5))
    def check(sent: list[bytes]) -> None:
        with connect("plain", "ws.fal.run") as sock:
            sock.sendall(HANDSHAKE)
            assert status_of(sock.recv(1_000)) == 101
            with suppress(OSError):
                sock.sendall(b"".join(sent))
                sock.shutdown(socket.SHUT_WR)
            until_end(sock)
        failed = [one for one in fal_emulator.ledger.problems if one.startswith("error")]
        fal_emulator.ledger.reset()
        assert failed == []

    check()


# --- parsers --------------------------------------------------------------------------------------


@st.composite
def mutated(draw: Callable[[Any], Any], text: bytes) -> bytes:
    """Bytes of which some are left out, doubled, replaced or put in."""
    data = bytearray(text)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 12)))
        new = st.sampled_from([b"", b"\r\n", b"--", b"\0", b"\xff", b'"', b"--b", b"\\", b";"])
        data[at:end] = draw(new | st.just(bytes(data[at:end]) * 2) | st.binary(max_size=3))
    return bytes(data)


@fuzzed(120)
@given(mutated(FORM), mutated(b"multipart/form-data; boundary=b"), st.integers(1, 50))
def test_forms(body, kind, size):
    declared = kind.decode("latin-1").replace("\r", "").replace("\n", "").replace("\0", "")
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    with suppress(FormError):
        b"".join(file_in_form(declared, pieces, "file_upload"))
    with suppress(S3Error):
        form = read_form(declared, body)
        assert "/" not in form.file_name


@fuzzed(120)
@given(JSON, st.integers(0, 100))
def test_policies(value, size):
    import base64
    from datetime import datetime, timezone

    document = {"expiration": "2999-01-01T00:00:00Z", "conditions": value}
    form = read_form("multipart/form-data; boundary=b", FORM)
    form.data = b"x" * size
    for one in (document, value, {"expiration": value}):
        policy = base64.b64encode(json.dumps(one).encode()).decode()
        with suppress(S3Error):
            check_policy(policy, form, "bucket", datetime.now(timezone.utc))
        with suppress(RefusedRequest):
            parse_policy(json.dumps(one))


@fuzzed(120)
@given(JSON | st.text(max_size=30), st.sampled_from(["report", "refuse"]), st.booleans())
def test_lifecycle_preferences(value, malformed, ignores):
    text = value if isinstance(value, str) else json.dumps(value)
    parsed = parse_preference(
        {"X-Fal-Object-Lifecycle": text},
        malformed_lifecycle=malformed,
        invalid_expiration="ignore" if ignores else "refuse",
    )
    assert parsed.preference is None or isinstance(parsed.preference, dict)
    assert parsed.error is None or parsed.error[0] in (400, 422)


@fuzzed(120)
@given(st.text(st.sampled_from("bytes=-0123456789, \u0663"), max_size=20), st.integers(0, 100))
def test_ranges(text, size):
    found = parse_range(text, size)
    start, end = getattr(found, "start", 0), getattr(found, "end", size)
    assert 0 <= start <= end <= size


# --- names and paths ------------------------------------------------------------------------------

STEPS = st.sampled_from(
    [
        *("..", ".", "", "a", "folder", "link-out", "link-up", "link-in", "link-root", "loop"),
        *("%2e%2e", "..%2f..", "%2fetc", "%00", "a%00b", "%ff", "\\..", "..;", "~", "$HOME"),
        *("x" * 255, "x" * 256, "%C3%A9", "e%CC%81", "%EF%BC%8E%EF%BC%8E", "%E2%80%AE", " "),
        *("..\u2215", "\uff0e\uff0e", "CON", "-rf", "%0a"),
    ]
)


def test_paths_never_leave_the_volume(fal_emulator, tmp_path):
    """By the file API, whatever names it is given, and whatever links an app has made."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"outside")
    data = fal_emulator.data
    root = data.backing

    def seed() -> None:
        data.write("folder/a", b"inside")
        for name, target in (
            ("link-out", str(outside)),
            ("link-up", "../../../../../../etc"),
            ("link-in", "folder"),
            ("link-root", "/"),
            ("loop", "loop"),
        ):
            if not (root / name).is_symlink():
                with suppress(FileExistsError):
                    os.symlink(target, root / name)

    client = httpx.Client(headers={"Authorization": "Key id:secret"})
    before = sorted(os.listdir(outside)), sorted(os.listdir("/")), sorted(os.listdir("/etc"))

    @fuzzed(120)
    @given(
        st.sampled_from(["list", "read", "write", "delete", "rename", "unzip"]),
        st.lists(STEPS, min_size=1, max_size=5).map("/".join),
        st.sampled_from(["", "/", "/data/"]),
    )
    def check(what: str, path: str, start: str) -> None:
        seed()
        quoted = urllib.parse.quote(start + path, safe="/%")
        url = "https://rest.fal.ai/files"
        form = {"file_upload": ("../../x", b"content")}
        if what == "list":
            answer = client.get(f"{url}/list/{quoted}")
        elif what == "read":
            answer = client.get(f"{url}/file/{quoted}")
            assert answer.content != b"outside"
        elif what == "write":
            answer = client.post(f"{url}/file/local/{quoted}", files=form)
        elif what == "delete":
            answer = client.delete(f"{url}/file/{quoted}")
        elif what == "rename":
            target = urllib.parse.unquote(start + path)
            answer = client.post(f"{url}/rename/folder/a", json={"destination": target})
        else:
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as content:
                content.writestr(unicodedata.normalize("NFC", urllib.parse.unquote(path)), b"x")
            form = {"file_upload": ("a.zip", archive.getvalue())}
            answer = client.post(f"{url}/file/local/a?unzip=true", files=form)
        assert answer.status_code in (200, 400, 403, 404, 409)

    try:
        check()
    finally:
        client.close()
    after = sorted(os.listdir(outside)), sorted(os.listdir("/")), sorted(os.listdir("/etc"))
    assert after == before
    assert (outside / "secret").read_bytes() == b"outside"


def test_an_archive_is_unpacked_or_refused(fal_emulator):
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    archives = []
    for kind in kinds:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", kind) as archive:
            archive.writestr("a/b.txt", b"hello" * 20)
            archive.writestr("\u00fc.bin", bytes(range(256)))
        archives.append(file.getvalue())
    client = httpx.Client(headers={"Authorization": "Key id:secret"})

    @fuzzed(80)
    @given(st.sampled_from(archives).flatmap(mutated))
    def check(content: bytes) -> None:
        answer = client.post(
            "https://rest.fal.ai/files/file/local/a?unzip=true",
            files={"file_upload": ("a.zip", content)},
        )
        assert answer.status_code in (200, 400)

    try:
        check()
    finally:
        client.close()
