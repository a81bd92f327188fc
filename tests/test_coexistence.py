"""Somebody else's suite, which patches things by itself, stays green beside ours.

The same module runs twice: with the plugin installed and unused, and with ``fal_emulator`` around
every test.
"""

from __future__ import annotations

import pytest

SUITE = """
import contextlib, datetime, io, json, pathlib, time, urllib.request
from unittest import mock

import boto3, freezegun, httpx, pytest, respx
import fal.ref
from moto import mock_aws
from fal.toolkit import File, Image, download_file
from fal.toolkit.utils import download_utils
from fal.toolkit.file.providers import fal as provider


class Answer(io.BytesIO):
    headers = {"ETag": '"1"'}
    def __enter__(self): return self
    def __exit__(self, *_): pass


def test_patches_urlopen_where_the_sdk_imported_it(monkeypatch):
    sent = []
    def urlopen(request, timeout=None):
        sent.append(request.full_url)
        return Answer(json.dumps({"file_url": "https://x/y", "upload_url": "https://x/z"}).encode())
    monkeypatch.setenv("FAL_KEY", "a:b")
    monkeypatch.setattr(provider, "urlopen", urlopen)
    assert File.from_bytes(b"1", file_name="a").url == "https://x/y"
    assert len(sent) == 2


def test_patches_urllib_itself():
    with mock.patch("urllib.request.urlopen", return_value=Answer(b"mine")):
        assert urllib.request.urlopen("https://example.com").read() == b"mine"


def test_installs_an_opener_of_its_own():
    class Handler(urllib.request.BaseHandler):
        handler_order = 1
        def https_open(self, request):
            answer = urllib.request.addinfourl(io.BytesIO(b"own"), {}, request.full_url, 200)
            answer.msg = "OK"
            return answer
    before = urllib.request._opener
    urllib.request.install_opener(urllib.request.build_opener(Handler()))
    try:
        assert urllib.request.urlopen("https://example.com").read() == b"own"
    finally:
        urllib.request._opener = before


@respx.mock
def test_uses_respx_as_a_decorator():
    route = respx.get("https://rest.fal.ai/x").respond(json={"mine": 1})
    assert httpx.get("https://rest.fal.ai/x").json() == {"mine": 1}
    assert route.called


def test_uses_respx_as_a_fixture(respx_mock):
    respx_mock.post("https://v3.fal.media/files/upload").respond(201)
    assert httpx.post("https://v3.fal.media/files/upload").status_code == 201


def test_uses_a_transport_of_its_own():
    transport = httpx.MockTransport(lambda request: httpx.Response(418))
    assert httpx.Client(transport=transport).get("https://rest.fal.ai").status_code == 418


def test_patches_httpx(monkeypatch):
    monkeypatch.setattr(httpx, "get", lambda url: "patched")
    assert httpx.get("https://rest.fal.ai") == "patched"


def test_patches_get_current_app(monkeypatch):
    app = mock.Mock()
    app.current_request.lifecycle_preference = {"expiration_duration_seconds": 5}
    monkeypatch.setattr("fal.toolkit.file.file.get_current_app", lambda: app)
    from fal.toolkit.file.file import _lifecycle_preference
    assert _lifecycle_preference(None) == {"expiration_duration_seconds": 5}


def test_sets_a_current_app_and_takes_it_back():
    app = object()
    fal.ref.set_current_app(app)
    assert fal.ref.get_current_app() is app
    fal.ref.current_app = None


def test_patches_the_constants(monkeypatch, tmp_path):
    monkeypatch.setattr(download_utils, "FAL_PERSISTENT_DIR", pathlib.PurePath(tmp_path))
    path = download_file("data:text/plain;base64,aGk=", target_dir="sub")
    assert path.parent == tmp_path / "sub" and path.read_text() == "hi"


def test_uses_moto():
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="mine")
        client.put_object(Bucket="mine", Key="k", Body=b"v")
        assert client.get_object(Bucket="mine", Key="k")["Body"].read() == b"v"


def test_freezes_time_by_itself():
    with freezegun.freeze_time("2001-02-03"):
        assert datetime.date.today().year == 2001
    assert datetime.date.today().year > 2001


def test_patches_sleep(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    time.sleep(9)
    assert slept == [9]


def test_uses_an_in_memory_repository():
    assert File.from_bytes(b"1", repository="in_memory").url.startswith("data:")


def test_runs_the_app_by_hand():
    import asyncio

    class App(fal.App):
        def setup(self): self.ready = True
        @fal.endpoint("/")
        def f(self) -> dict: return {"ready": self.ready}

    async def go():
        app = App(_allow_init=True)
        asgi = app._build_app()
        async with asgi.router.lifespan_context(asgi):
            transport = httpx.ASGITransport(asgi)
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                return (await client.post("/")).json()
    assert asyncio.run(go()) == {"ready": True}


def test_talks_to_a_server_of_its_own_on_localhost():
    import http.server, threading
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
        def log_message(self, *args): pass
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://localhost:{server.server_port}/"
        try:
            assert httpx.get(url).content == b"ok"
            assert urllib.request.urlopen(url).read() == b"ok"
        finally:
            server.shutdown()
            thread.join()
"""

AROUND = """
import pytest

@pytest.fixture(autouse=True)
def around(fal_emulator):
    yield
"""


@pytest.mark.parametrize("conftest", ["", AROUND], ids=["plugin unused", "fal_emulator around"])
def test_a_suite_that_patches_by_itself_stays_green(pytester, conftest):
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_theirs=SUITE)
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=SUITE.count("\ndef test_"))
