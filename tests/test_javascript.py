"""fal's JavaScript client, unmodified, in Node: uploads, and what it sends with a call."""

from __future__ import annotations

import json
from datetime import timedelta

import httpx
import pytest
from nodejs import PROJECT, fal_js, needs_client, needs_node, node

from emulator.credentials import FAL_KEY

pytestmark = [needs_node, needs_client]

UPLOAD = "show(await fal.storage.upload(%s));"
#: Of more than 90 MiB, the last part shorter than the others.
LARGE = "new File([Buffer.alloc(91 * 1024 * 1024, 'ab')], 'large.bin')"
LARGE_SIZE = 91 * 1024 * 1024
#: Reports what an upload fails with.
FAILURE = """.catch((error) => show([error.name, error.message, error.status ?? null]));"""


# --- small files ---------------------------------------------------------------------------------


def test_a_blob_is_on_the_cdn(fal_cdn):
    url = fal_js(UPLOAD % "new Blob(['hello'], { type: 'image/png' })")
    assert fal_cdn.get(url) == b"hello"
    info = fal_cdn.info(url)
    assert (info.content_type, info.owner, info.lifecycle) == ("image/png", "tester", None)


def test_it_gets_a_name_of_its_time_and_type(fal_cdn):
    url = fal_js(UPLOAD % "new Blob(['hello'], { type: 'image/png' })")
    stem, _, suffix = fal_cdn.info(url).file_name.partition(".")
    assert (stem.isdigit(), suffix) == (True, "png")


def test_a_file_keeps_its_name(fal_cdn):
    url = fal_js(UPLOAD % "new File(['hello'], 'a.txt', { type: 'text/plain' })")
    info = fal_cdn.info(url)
    assert (info.file_name, info.content_type) == ("a.txt", "text/plain")


def test_the_upload_is_rests_presigned_one(fal_cdn, fal_ledger):
    fal_js(UPLOAD % "new Blob(['hello'])")
    initiate, put = fal_ledger.exchanges
    assert (initiate.method, initiate.url) == (
        "POST",
        "https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3",
    )
    assert (put.method, put.host, put.bytes_received) == ("PUT", "v3b.fal.media", 5)
    client = json.loads((PROJECT / "package.json").read_text())["dependencies"]["@fal-ai/client"]
    assert initiate.request_headers["user-agent"] == f"@fal-ai/client/{client}"


def test_the_lifecycle_is_the_uploads(fal_cdn):
    lifecycle = "{ lifecycle: { expiresIn: '1h', initialAcl: { default: 'hide' } } }"
    url = fal_js(UPLOAD % f"new Blob(['hello']), {lifecycle}")
    info = fal_cdn.info(url)
    assert info.lifecycle == {
        "expiration_duration_seconds": 3600,
        "initial_acl": {"default": "hide"},
    }
    assert info.expires_at == info.created_at + timedelta(hours=1)


@pytest.mark.parametrize(
    ("expires_in", "lifecycle"),
    [
        ("'never'", None),
        ("'immediate'", {"expiration_duration_seconds": 60}),
        ("'30d'", {"expiration_duration_seconds": 2_592_000}),
        ("0", {"expiration_duration_seconds": 0}),
    ],
)
def test_its_words_are_seconds(fal_cdn, expires_in, lifecycle):
    url = fal_js(UPLOAD % f"new Blob(['hello']), {{ lifecycle: {{ expiresIn: {expires_in} }} }}")
    assert fal_cdn.info(url).lifecycle == lifecycle


# --- files of more than 90 MiB -------------------------------------------------------------------


def test_a_large_file_goes_in_parts_of_10_mib(fal_cdn, fal_ledger):
    url = fal_js(UPLOAD % f"{LARGE}, {{ lifecycle: {{ expiresIn: 60 }} }}")
    info = fal_cdn.info(url)
    assert (info.size, info.file_name) == (LARGE_SIZE, "large.bin")
    assert info.lifecycle == {"expiration_duration_seconds": 60}
    assert fal_cdn.get(url)[-3:] == b"bab"
    parts = fal_ledger.requests(method="PUT")
    assert [part.bytes_received for part in parts] == [10 * 1024 * 1024] * 9 + [1024 * 1024]


def test_exactly_90_mib_are_no_large_file(fal_cdn, fal_ledger):
    fal_js(UPLOAD % "new Blob([Buffer.alloc(90 * 1024 * 1024)])")
    fal_ledger.assert_requested(times=1, method="PUT")
    fal_ledger.assert_requested(times=0, path="/storage/upload/initiate-multipart")


def test_a_part_that_fails_is_sent_again(fal_cdn, fal_faults, fal_ledger):
    fal_faults.status(503, times=2, method="PUT")
    url = fal_js(UPLOAD % LARGE)
    assert fal_cdn.info(url).size == LARGE_SIZE
    assert len(fal_ledger.requests(method="PUT")) == 12


def test_a_part_whose_answer_is_lost_is_sent_again(fal_cdn, fal_faults, fal_ledger):
    fal_faults.drop(after=0, times=1, method="PUT")
    assert fal_cdn.info(fal_js(UPLOAD % LARGE)).size == LARGE_SIZE
    assert len(fal_ledger.requests(method="PUT")) == 11


def test_a_part_that_is_answered_without_json_cannot_be_completed(fal_cdn, fal_http, fal_ledger):
    fal_http.put(host="v3b.fal.media").respond(200, headers={"etag": '"1"'})
    failure = fal_js(f"await fal.storage.upload({LARGE}){FAILURE}")
    assert failure == ["ApiError", "Bad Request", 400]
    completion = fal_ledger.exchanges[-1]
    assert completion.path.endswith("/complete")
    assert completion.notes == [
        'the body must be {"parts": [{"partNumber": 1, "etag": "..."}]}',
    ]


# --- who one is ----------------------------------------------------------------------------------


def test_the_key_is_the_tests(fal_http):
    route = fal_http.post(host="rest.fal.ai").respond(404)
    fal_js(f"await fal.storage.upload(new Blob(['hello'])){FAILURE}")
    assert route.calls.last.request.headers["authorization"] == f"Key {FAL_KEY}"


def test_another_users_key_is_another_user(fal_emulator, fal_cdn):
    bob = fal_emulator.user("bob")
    url = fal_js(
        f"fal.config({{ credentials: {json.dumps(bob.key)} }});" + UPLOAD % "new Blob(['hello'])"
    )
    assert fal_cdn.info(url).owner == "bob"


def test_acting_as_another_user_counts_for_node_too(fal_emulator, fal_cdn):
    with fal_emulator.user("bob"):
        url = fal_js(UPLOAD % "new Blob(['hello'])")
    assert fal_cdn.info(url).owner == "bob"


def test_without_a_key_nothing_is_uploaded(fal_cdn):
    code = "const { fal } = require('@fal-ai/client'); delete process.env.FAL_KEY;"
    failure = node(f"{code} await fal.storage.upload(new Blob(['hello'])){FAILURE}")
    assert failure == ["ApiError", "Unauthorized", 401]
    assert fal_cdn.files == []


# --- when the platform is busy -------------------------------------------------------------------


def test_the_start_of_an_upload_is_tried_again(fal_cdn, fal_faults):
    fal_faults.status(503, times=1, path="/storage/upload/initiate")
    config = "fal.config({ retry: { baseDelay: 1 } });"
    url = fal_js(config + UPLOAD % "new Blob(['hello'])")
    assert fal_cdn.get(url) == b"hello"


def test_errors_carry_what_the_platform_said(fal_faults):
    fal_faults.status(422, body='{"detail": "no"}', headers={"content-type": "application/json"})
    failure = fal_js("await fal.storage.upload(new Blob([])).catch((e) => show([e.name, e.body]));")
    assert failure == ["ValidationError", {"detail": "no"}]


# --- inputs of calls -----------------------------------------------------------------------------


@pytest.fixture
def app(fal_http):
    """Answers calls of an app with what it was sent."""

    def answer(request):
        headers = {"x-fal-request-id": "r-1"}
        return httpx.Response(200, json=json.loads(request.content or b"null"), headers=headers)

    return fal_http.post("https://fal.run/tester/app").mock(side_effect=answer)


def test_blobs_in_an_input_are_uploaded(app, fal_cdn):
    result = fal_js("""
    const input = { image: new Blob(["hello"]), more: [{ deep: new Blob(["there"]) }], n: 1 };
    show(await fal.run("tester/app", { input }));
    """)
    image, [more] = result["data"]["image"], result["data"]["more"]
    assert (fal_cdn.get(image), fal_cdn.get(more["deep"])) == (b"hello", b"there")
    assert (result["data"]["n"], result["requestId"]) == (1, "r-1")


def test_the_settings_of_a_call_are_for_its_outputs(app, fal_cdn):
    settings = "storageSettings: { expiresIn: '1h', initialAcl: { default: 'forbid' } }"
    fal_js(f"show(await fal.run('tester/app', {{ input: {{ a: new Blob(['x']) }}, {settings} }}));")
    sent = app.calls.last.request.headers["x-fal-object-lifecycle-preference"]
    assert json.loads(sent) == {
        "expiration_duration_seconds": 3600,
        "initial_acl": {"default": "forbid"},
    }
    assert [file.lifecycle for file in fal_cdn.files] == [None]


def test_a_limit_of_the_start_is_sent(app):
    fal_js("show(await fal.run('tester/app', { input: {}, startTimeout: 30 }));")
    assert app.calls.last.request.headers["x-fal-request-timeout"] == "30"


def test_an_input_of_get_is_the_query(fal_http):
    route = fal_http.get("https://fal.run/tester/app", params={"a": "b"}).respond(json={})
    fal_js("show(await fal.run('tester/app', { method: 'get', input: { a: 'b' } }));")
    assert route.called


# --- a proxy of the developer's ------------------------------------------------------------------

#: SvelteKit's adapter of fal's proxy: of a Request it makes a Response, without any framework.
PROXY = """
const { createRequestHandler } = require("@fal-ai/server-proxy/svelte");
const { createFalClient } = require("@fal-ai/client");
console.warn = () => {};
const proxy = createRequestHandler().requestHandler;
const browser = createFalClient({
  credentials: "",
  proxyUrl: { url: "http://localhost/api/fal/proxy", when: "always" },
  fetch: (url, init) =>
    url.endsWith("/proxy") ? proxy({ request: new Request(url, init) }) : fetch(url, init),
});
"""


def test_a_browser_uploads_by_way_of_a_proxy(fal_cdn, fal_ledger):
    lifecycle = "{ lifecycle: { expiresIn: '1h' } }"
    url = node(f"{PROXY} show(await browser.storage.upload(new Blob(['hello']), {lifecycle}));")
    info = fal_cdn.info(url)
    assert (info.owner, info.lifecycle) == ("tester", {"expiration_duration_seconds": 3600})
    agent = fal_ledger.exchanges[0].request_headers["x-fal-client-proxy"]
    assert agent == "@fal-ai/server-proxy/svelte-app-router"


# --- the ws package ------------------------------------------------------------------------------


def test_the_ws_package_asks_for_its_upgrade(fal_http):
    route = fal_http.get("https://fal.run/tester/app/realtime").respond(401)
    code = """
    const socket = new (require("ws"))("wss://fal.run/tester/app/realtime");
    socket.on("error", (error) => show(error.message));
    """
    assert node(code) == "Unexpected server response: 401"
    assert route.calls.last.request.headers["upgrade"] == "websocket"
