"""What others on the machine, and readers of a report, cannot get at."""

from __future__ import annotations

import os
import re
import socket
import ssl
import stat
import struct
import subprocess
import sys
from pathlib import Path

import fal
import httpx
import pytest
from fal.ref import get_current_app

from emulator.ledger import masked, masked_text, redact_headers
from emulator.network.trust import Authority

is_root = os.geteuid() == 0
SECRET = "v3ry-s3cr3t-0123456789"


# --- what listens ---------------------------------------------------------------------------------


class Idle(fal.App):
    @fal.endpoint("/")
    def answer(self) -> dict:
        return {}


def process_tree() -> list[int]:
    """This process and all that it has started."""
    found, ahead = [], [os.getpid()]
    while ahead:
        found.append(ahead.pop())
        for task in Path(f"/proc/{found[-1]}/task").iterdir():
            ahead += map(int, (task / "children").read_text().split())
    return found


def socket_inodes() -> set[str]:
    """The sockets of the process tree."""
    found = set()
    for process in process_tree():
        for entry in Path(f"/proc/{process}/fd").iterdir():
            try:
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
            except OSError:
                continue
            if match:
                found.add(match[1])
    return found


def tcp_listeners() -> list[str]:
    """The addresses at which the process tree listens."""
    ours, found = socket_inodes(), []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[at] for at in (1, 3, 9))
            if state == "0A" and inode in ours:
                words = bytes.fromhex(local.partition(":")[0])
                order = f"<{len(words) // 4}I", f">{len(words) // 4}I"
                packed = struct.pack(order[1], *struct.unpack(order[0], words))
                found.append(socket.inet_ntop(family, packed))
    return found


def unix_listeners() -> list[str]:
    """The names at which it listens; those without a file begin with "@"."""
    ours, found = socket_inodes(), []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if int(fields[3], 16) & 0x10000 and fields[6] in ours:
            found.append(fields[7] if len(fields) > 7 else "")
    return found


@pytest.mark.fal(local_uploader=True)
def test_everything_listens_on_the_loopback_or_for_this_user_alone(fal_emulator):
    runner = fal_emulator.runner(Idle, isolation="process")
    assert runner.post("/", json={}).status_code == 200
    tcp, unix = tcp_listeners(), unix_listeners()
    assert len(tcp) >= 2  # the wire, and the app's own server
    assert set(tcp) <= {"127.0.0.1", "::1"}
    files = [name for name in unix if not name.startswith("@")]
    assert files == [os.environ["FAL_API_SOCKET"]]
    assert all(re.fullmatch(r"@pytest-fal-\d+-[0-9a-f]{32}", name) for name in set(unix) - {*files})
    assert stat.S_IMODE(os.stat(files[0]).st_mode) == 0o600
    runner.stop()


AS_NOBODY = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as sock:
    try:
        sock.connect(sys.argv[1].replace("@", chr(0), 1))
    except OSError as error:
        print(type(error).__name__)
    else:
        print(sock.recv(100))
"""


@pytest.mark.skipif(not is_root, reason="only root can be somebody else")
@pytest.mark.fal(local_uploader=True)
def test_another_user_gets_in_nowhere(fal_emulator):
    runner = fal_emulator.runner(Idle, isolation="process")
    for name in unix_listeners():
        said = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, name],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        # A name without a file can be connected to, and nothing is said there.
        wanted = "b''\n" if name.startswith("@") else "PermissionError\n"
        assert (said.stdout, said.stderr) == (wanted, "")
    runner.stop()


def test_a_server_in_an_app_is_on_the_loopback(fal_emulator):
    """Also one that the app meant for everybody."""
    runner = fal_emulator.runner(Idle, isolation="process")

    def listen() -> None:
        server = socket.create_server(("0.0.0.0", 0))
        get_current_app().server = server

    runner.run(listen)
    assert set(tcp_listeners()) <= {"127.0.0.1", "::1"}
    runner.stop()


# --- the certificate authority --------------------------------------------------------------------

SESSION = """
    import http.client, os, ssl, pathlib

    def keys_below(place):
        for folder, _, files in os.walk(place):
            for name in files:
                path = os.path.join(folder, name)
                if os.path.isfile(path) and b"PRIVATE KEY" in pathlib.Path(path).read_bytes():
                    yield path

    def test_it(fal_origin, fal_emulator, tmp_path_factory):
        fal_origin.serve("https://a.example/file", b"content")
        connection = http.client.HTTPSConnection("a.example")
        connection.request("GET", "/file")
        assert connection.getresponse().read() == b"content"
        connection.close()
        assert list(keys_below(tmp_path_factory.getbasetemp())) == []
        for process in filter(str.isdigit, os.listdir("/proc")):
            for name in ("environ", "cmdline"):
                try:
                    told = pathlib.Path(f"/proc/{process}/{name}").read_bytes()
                except OSError:
                    continue
                assert b"BEGIN PRIVATE KEY" not in told and b"BEGIN EC PRIVATE KEY" not in told

    def test_on_another_worker(fal_emulator):
        assert fal_emulator.active
"""


def test_the_authoritys_key_is_in_no_file(pytester):
    """Neither while tests run, on workers to which it was handed, nor afterwards."""
    pytester.makepyfile(SESSION)
    result = pytester.runpytest_subprocess("-p", "xdist", "-n", "2", "--basetemp=kept")
    result.assert_outcomes(passed=2)
    written = (path for path in pytester.path.rglob("*") if path.is_file())
    left = [path for path in written if path.suffix not in (".py", ".pyc")]
    assert left
    assert [path for path in left if re.search(rb"BEGIN \w* ?PRIVATE KEY", path.read_bytes())] == []


def test_a_leafs_key_is_written_nowhere(monkeypatch):
    if sys.platform != "linux":
        pytest.skip("needs memfd_create")
    written = []
    monkeypatch.setattr("tempfile.mkstemp", lambda *_, **__: written.append(1))
    Authority.create().server_context("a.example")
    assert written == []


def test_a_message_of_the_authority_does_not_have_its_key():
    authority = Authority.create()
    assert "PRIVATE" not in f"{authority!r} {authority} {authority.certificate_pem!r}"


def test_nothing_trusts_the_authority_afterwards(fal_emulator):
    def who_is_trusted() -> str:
        return str(ssl.create_default_context().get_ca_certs())

    assert "pytest-fal emulator" in who_is_trusted()
    fal_emulator.stop()
    assert "pytest-fal emulator" not in who_is_trusted()
    known = ssl.get_default_verify_paths()
    for path in filter(None, (known.cafile, known.openssl_cafile)):
        assert not Path(path).exists() or b"pytest-fal" not in Path(path).read_bytes()
    fal_emulator.start()


# --- what is shown --------------------------------------------------------------------------------

LEAKING = """
    import contextlib, os, socket, urllib.request
    import fal_client, httpx, pytest, requests

    secret = os.environ["SECRET"]

    def send(host, text):
        with socket.create_connection((host, 80)) as sock:
            sock.sendall(text.replace("SECRET", secret).encode())
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):
                pass

    def test_it(fal_origin, fal_gateway, fal_http, fal_cdn):
        place = "https://a.example/file"
        fal_origin.serve(place, b"x")
        query = f"token={secret}&X-Amz-Signature={secret}&X-Amz-Credential={secret}&sig={secret}"
        query += f"&to%6ben={secret}&a=1;api_key={secret}&next=https%3A%2F%2Fme%3A{secret}%40a.b%2F"
        headers = {
            "Authorization": f"Bearer {secret}",
            "X-Api-Key": secret,
            "X-Amz-Security-Token": secret,
            "X-Fal-Webhook-Signature": secret,
            "X-My-Password": secret,
            "Referer": f"https://a.example/?key={secret}",
        }
        for client in (requests, httpx):
            client.get(f"{place}?{query}", headers=headers, cookies={"c": secret})
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"https://nobody.example/?access_token={secret}")
        with contextlib.suppress(OSError):
            requests.get(f"https://me:{secret}@a.example/nothing?password={secret}")
        fal_http.get("https://b.example/").respond(
            302, headers={"Location": f"/x?token={secret}", "Set-Cookie": secret}
        )
        requests.get("https://b.example/", allow_redirects=False)
        # what is no request at all
        send("rest.fal.ai", "GET /?token=SECRET HTTP/9\\r\\n\\r\\n")
        send("rest.fal.ai", "GET / HTTP/1.1\\r\\nHost: me:SECRET@a\\r\\n\\r\\n")
        send("rest.fal.ai", "GET / HTTP/1.1\\r\\nAuthorization : Key SECRET\\r\\n\\r\\n")
        send("rest.fal.ai", "GET http:///?key=SECRET HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        # keys and tokens that do not count, policies, webhooks
        for key in (f"Key {secret}", f"Bearer {secret}", f"Basic {secret}"):
            for url in ("https://rest.fal.ai/tokens/", "https://v3.fal.media/files/upload"):
                requests.post(url, headers={"Authorization": key, "X-Fal-CDN-Token": secret})
        url = fal_cdn.put(b"x", acl="hide")
        requests.get(f"{url}?identity={secret}", headers={"X-Fal-CDN-Token": secret})
        fal_gateway.deploy("me/app", {"images": []})
        fal_client.submit(
            "me/app", {}, webhook_url=f"https://me:{secret}@hook.example/?token={secret}"
        )
        raise AssertionError("look below")
"""


def test_no_secret_is_in_a_failing_tests_report(pytester, monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)
    pytester.makepyfile(LEAKING)
    result = pytester.runpytest_subprocess(
        "-p", "no:randomly", "--junitxml=report.xml", "-o", "junit_logging=all", "-rA"
    )
    result.assert_outcomes(failed=1)
    shown = result.stdout.str() + result.stderr.str()
    assert "look below" in shown
    assert "https://a.example/file?token=***" in shown
    assert "is no HTTP request" in shown
    reported = (pytester.path / "report.xml").read_text()
    lines = [line for line in (shown + reported).splitlines() if SECRET in line]
    assert lines == []


def test_no_secret_is_in_the_ledger(fal_ledger, fal_origin):
    fal_origin.serve("https://a.example/file", b"x")
    httpx.get(
        f"https://me:{SECRET}@a.example/file?x%2Dtoken={SECRET}#{SECRET}",
        headers={"Cookie": SECRET, "X-Session-Token": SECRET, "Proxy-Authorization": SECRET},
    )
    [exchange] = fal_ledger.exchanges
    assert SECRET not in repr(vars(exchange))
    assert exchange.request_headers["cookie"] == "***"


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("to%6Ben=1", "to%6Ben=***"),
        ("my+token=1", "my+token=***"),
        ("sig=1&design=2", "sig=***&design=2"),
        ("a=1;token=2;b=3", "a=1;token=***;b=3"),
        ("X-Amz-Security-Token=1&X-Amz-Date=2", "X-Amz-Security-Token=***&X-Amz-Date=2"),
        ("session_id=1", "session_id=***"),
        ("hmac=1", "hmac=***"),
    ],
)
def test_parameters(query, shown):
    assert masked(f"https://a.example/?{query}") == f"https://a.example/?{shown}"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("X-Amz-Security-Token", "1", "***"),
        ("X-Goog-Api-Key", "1", "***"),
        ("X-CSRF-Token", "1", "***"),
        ("Set-Cookie", "a=1", "***"),
        ("Sec-WebSocket-Key", "1", "1"),
        ("Access-Control-Allow-Credentials", "true", "true"),
        ("Location", "/a?token=1", "/a?token=***"),
        ("Location", "https://me:1@a.b/c", "https://a.b/c"),
        ("Link", "<https://a.b/c?key=1>; rel=next", "<https://a.b/c?key=***>; rel=next"),
        ("User-Agent", "a (+https://a.b/#c)", "a (+https://a.b/)"),
    ],
)
def test_headers(name, value, shown):
    assert redact_headers([(name, value)]) == {name.lower(): shown}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("it said Bearer abc-1, and left", "it said Bearer ***, and left"),
        ("with Key id:secret", "with Key ***"),
        ("Credential=a/b/s3, Signature=0f", "Credential=***, Signature=***"),
        ("see https://me:pw@a.b/c?key=1 and d", "see https://a.b/c?key=*** and d"),
        (
            "to https://a.b/?token=1: refused (https://a.b/).",
            "to https://a.b/?token=***: refused (https://a.b/).",
        ),
        ("a key has to be quoted", "a key has to be quoted"),
        ("no CDN token", "no CDN token"),
    ],
)
def test_texts(text, shown):
    assert masked_text(text) == shown


def test_what_is_noted_and_what_happens_is_shown_without_credentials(fal_ledger):
    exchange = fal_ledger.open("wire", "GET", "https://a.example/", [])
    exchange.notes.append(f"asked https://b.example/?token={SECRET}")
    exchange.notes.extend([f"with Bearer {SECRET}"])
    fal_ledger.event("error", f"OSError('https://me:{SECRET}@b.example/')")
    assert fal_ledger.problems == [
        "#1 GET https://a.example/: asked https://b.example/?token=***",
        "#1 GET https://a.example/: with Bearer ***",
        "error: OSError('https://b.example/')",
    ]
