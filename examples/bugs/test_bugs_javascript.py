"""Bugs of fal's JavaScript client, and of the proxy that goes between a browser and fal."""

from __future__ import annotations

import json
import subprocess
import threading

import httpx
import pytest
from gallery import JAVASCRIPT, bug, needs_javascript

pytestmark = needs_javascript

TOPIC = "fal's JavaScript client"
CLIENT = {"package": "@fal-ai/client", "seen": ("1.10.1", "1.10.1")}
PROXY = {"package": "@fal-ai/server-proxy", "seen": ("1.2.1", "1.2.1")}

FRAME = """\
const { fal, createFalClient } = require("@fal-ai/client");
const show = (value) => console.log(JSON.stringify(value));
const failure = ({ name, message, status, body }) => show({ name, message, status, body });
console.warn = () => {};
(async () => {
%s
})().catch(failure);
"""


def node(code):
    """What the code ``show()``s; an error that it does not catch is shown, too."""
    command = ["node", "-e", FRAME % code]
    done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def through(handler):
    """A client as it is in a browser, whose calls the proxy's ``handler(url, init)`` answers."""
    return f"""
    const handler = {handler};
    const browser = createFalClient({{
      credentials: "",
      proxyUrl: {{ url: "http://localhost/api/fal/proxy", when: "always" }},
      fetch: (url, init) => (url.endsWith("/proxy") ? handler(url, init) : fetch(url, init)),
    }});
    """


SVELTE = """(url, init) =>
  require("@fal-ai/server-proxy/svelte")
    .createRequestHandler(config)
    .requestHandler({ request: new Request(url, init) })"""

HONO = """(url, init) => {
  const app = new (require("hono").Hono)();
  app.all("/api/fal/proxy", require("@fal-ai/server-proxy/hono").createRouteHandler());
  return app.fetch(new Request(url, init));
}"""

#: Of what Express adds to Node's own request and response, the handler needs the body alone.
EXPRESS = """async (url, init) => {
  const handle = require("@fal-ai/server-proxy/express").createHandler();
  const server = require("http").createServer((request, response) => {
    request.body = JSON.parse(init.body);
    handle(request, response, () => {});
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const answer = await fetch(`http://127.0.0.1:${server.address().port}/`, init);
    return new Response(await answer.arrayBuffer(), answer);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}"""


# --- inputs --------------------------------------------------------------------------------------


@bug(
    "P8",
    symptom="our users' photos are still there, though the call said that they expire",
    topic=TOPIC,
    **CLIENT,
)
def test_blobs_of_an_input_carry_no_lifetime(fal_http, fal_cdn):
    """The storageSettings of a call are for its outputs; inputs that it uploads live for ever.

    Production: photos of users stay on public URLs after the hour that was promised.
    Expected: one setting for all files of a call.
    Happens: the client uploads each Blob of the input without any setting, and sends the setting
        with the call, for what the app makes of it.
    Avoid: upload first, fal.storage.upload(blob, {lifecycle: {expiresIn: "1h"}}), and put the URL
        into the input; or set the account's expiration.
    """
    call = fal_http.post("https://fal.run/tester/app").respond(json={})
    node("""
    const image = new Blob(["a photo"], { type: "image/png" });
    const storageSettings = { expiresIn: "1h", initialAcl: { default: "hide" } };
    show(await fal.run("tester/app", { input: { image }, storageSettings }));
    """)
    sent = call.calls.last.request
    assert "expiration_duration_seconds" in sent.headers["x-fal-object-lifecycle-preference"]
    photo = fal_cdn.info(json.loads(sent.content)["image"])
    assert (photo.lifecycle, photo.expires_at, photo.acl) == (None, None, None)

    url = node("""
    const lifecycle = { expiresIn: "1h", initialAcl: { default: "hide" } };
    show(await fal.storage.upload(new Blob(["a photo"]), { lifecycle }));
    """)
    assert fal_cdn.info(url).expires_at is not None


@bug(
    "N46",
    symptom="the app gets {'type': 'Buffer', 'data': [...]} instead of an image",
    topic=TOPIC,
    **CLIENT,
)
def test_buffers_are_not_uploaded(fal_http, fal_cdn):
    """Only Blobs in plain objects are uploaded: Buffers become lists of numbers, others {}.

    Production: a 422 of the app, or a request of four times the file's size.
    Expected: what fs.readFile() gives is a file; or an error.
    Happens: anything but a Blob, an array or a plain object goes to JSON.stringify as it is. A
        Blob that a class instance holds is not looked for, and JSON has no Blobs.
    Avoid: new Blob([buffer]), or fs.openAsBlob(path), right in the input.
    """
    call = fal_http.post("https://fal.run/tester/app").respond(json={})
    node("""
    class Scene { image = new Blob(["hello"]); }
    const input = { buffer: Buffer.from("hi"), bytes: new Uint8Array([1]), scene: new Scene() };
    show(await fal.run("tester/app", { input }));
    """)
    assert json.loads(call.calls.last.request.content) == {
        "buffer": {"type": "Buffer", "data": [104, 105]},
        "bytes": {"0": 1},
        "scene": {"image": {}},
    }
    assert fal_cdn.files == []


# --- lifetimes -----------------------------------------------------------------------------------


@bug(
    "N47",
    symptom="expiresIn: '2h' never expires",
    topic=TOPIC,
    **CLIENT,
)
@pytest.mark.parametrize("expires_in", ["2h", "1w", "3600"])
def test_an_unknown_word_for_a_lifetime_is_no_lifetime(fal_cdn, expires_in):
    """A lifetime that is none of six words is dropped: the file lives as the account says.

    Production: files that should be gone are there; nothing was logged.
    Expected: an error. TypeScript gives one, JavaScript and values from a configuration do not.
    Happens: the word is looked up in a table, and what is not in it is undefined, which is how
        "never" is sent, too.
    Avoid: numbers of seconds.
    """
    url = node(f"""
    const lifecycle = {{ expiresIn: {json.dumps(expires_in)} }};
    show(await fal.storage.upload(new Blob(["x"]), {{ lifecycle }}));
    """)
    assert fal_cdn.info(url).expires_at is None


# --- uploads -------------------------------------------------------------------------------------


@bug(
    "N48",
    symptom="TypeError: Cannot read properties of undefined (reading 'split')",
    topic=TOPIC,
    **CLIENT,
)
def test_a_type_without_a_slash_ends_the_upload(fal_cdn):
    """A Blob whose type is "png" cannot be uploaded, and the error tells nothing of types.

    Production: the types that users' browsers or databases have are not all media types.
    Expected: application/octet-stream, or an error that names the type.
    Happens: a name is made from what is after the slash.
    Avoid: a File, which has a name: new File([data], "a.png", {type: "png"}).
    """
    failure = node("""await fal.storage.upload(new Blob(["x"], { type: "png" }));""")
    assert failure == {
        "name": "TypeError",
        "message": "Cannot read properties of undefined (reading 'split')",
    }

    node("""show(await fal.storage.upload(new File(["x"], "a.png", { type: "png" })));""")
    assert len(fal_cdn.files) == 1


@bug(
    "N49",
    symptom="small uploads fail where large ones succeed, in JavaScript",
    topic=TOPIC,
    **CLIENT,
)
def test_the_bytes_of_a_small_file_are_sent_once(fal_cdn, fal_faults, fal_ledger):
    """One 503 of the CDN ends an upload up to 90 MiB, whatever retry says; parts are sent again.

    Production: uploads of small files fail now and then.
    Expected: retry, which is three by default and counts for all else.
    Happens: the bytes are sent by a plain fetch(), around which nothing tries again. The same goes
        for the completion of a large upload.
    Avoid: a loop around fal.storage.upload().
    """
    fal_faults.status(503, times=2, method="PUT")
    failure = node("""
    fal.config({ retry: { maxRetries: 5, baseDelay: 1 } });
    await fal.storage.upload(new Blob(["x"]));
    """)
    assert (failure["name"], failure["status"]) == ("ApiError", 503)
    assert len(fal_ledger.requests(method="PUT")) == 1

    node("show(await fal.storage.upload(new Blob([Buffer.alloc(91 * 1024 * 1024)])));")
    assert [file.size for file in fal_cdn.files] == [91 * 1024 * 1024]


@bug(
    "N50",
    symptom="Part upload failed, retries exhausted",
    topic=TOPIC,
    **CLIENT,
)
def test_nobody_says_why_a_part_failed(fal_faults, fal_ledger):
    """A part that fails is sent three times within milliseconds, and the reason is thrown away.

    Production: an expired URL, a rate limit and a broken network look alike; a short outage is
        longer than all three attempts.
    Expected: the ApiError with its status, and a pause between attempts.
    Happens: whatever is thrown is caught, and the part sent again at once; also after a 403, which
        no repetition helps.
    Avoid: a loop around the upload, with pauses.
    """
    fal_faults.status(403, body="the URL has expired", method="PUT")
    failure = node("""await fal.storage.upload(new Blob([Buffer.alloc(91 * 1024 * 1024)]));""")
    assert failure == {"name": "Error", "message": "Part upload failed, retries exhausted"}
    assert len(fal_ledger.requests(method="PUT")) == 3


# --- streams -------------------------------------------------------------------------------------

EVENT_STREAM = {"content-type": "text/event-stream"}
APP_STREAM = "https://fal.run/tester/app/stream"


@bug(
    "N53",
    symptom="letters in streamed text are now and then replaced by question marks",
    topic=TOPIC,
    **CLIENT,
)
def test_a_letter_between_two_chunks_is_garbled(fal_http):
    """A letter whose bytes arrive in two chunks becomes two replacement characters.

    Production: umlauts, Chinese and emoji break at places that differ from call to call.
    Expected: what the app sent.
    Happens: each chunk is decoded by itself (TextDecoder without stream: true).
    Avoid: in the app, json.dumps() with its default ensure_ascii=True.
    """
    first_arrived = threading.Event()

    def chunks():
        yield 'data: "first"\n\ndata: "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}'.encode()[:-1]
        assert first_arrived.wait(60)
        yield b'\xbcn"\n\n'

    def arrived(request):
        first_arrived.set()
        return httpx.Response(200)

    fal_http.post(APP_STREAM).respond(200, stream=chunks(), headers=EVENT_STREAM)
    fal_http.get("https://example.com/arrived").mock(side_effect=arrived)
    last = node("""
    const stream = await fal.stream("tester/app", { input: { a: 1 } });
    stream.on("data", (text) => text === "first" && fetch("https://example.com/arrived"));
    show(await stream.done());
    """)
    assert last == "gr\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}n"


@bug(
    "N54",
    symptom="for await over a stream leaves out events",
    topic=TOPIC,
    **CLIENT,
)
def test_events_that_are_falsy_are_left_out(fal_http):
    """Events that are 0, false, null or "" never come out of for await.

    Production: a progress that begins with 0 begins with 1; an empty token is missing.
    Expected: each event.
    Happens: what is taken out of the buffer is yielded if it is truthy.
    Avoid: objects as events, or stream.on("data", ...).
    """
    events = "".join(f"data: {event}\n\n" for event in ("0", "1", "null", '""', "2"))
    fal_http.post(APP_STREAM).respond(200, text=events, headers=EVENT_STREAM)
    iterated, heard = node("""
    const stream = await fal.stream("tester/app", { input: { a: 1 } });
    const iterated = [], heard = [];
    stream.on("data", (event) => heard.push(event));
    for await (const event of stream) iterated.push(event);
    show([iterated, heard]);
    """)
    assert (iterated, heard) == ([1, 2], [0, 1, None, "", 2])


@bug(
    "N55",
    symptom="a stream that fails is just empty",
    topic=TOPIC,
    **CLIENT,
)
def test_for_await_does_not_throw(fal_http):
    """for await over a stream that was refused ends at once, without an error.

    Production: an empty result; or the end of the process, at a line that is nobody's.
    Expected: for await throws.
    Happens: the error goes to the promise of done() alone. If that is never asked for, it is an
        unhandled rejection, which ends Node.
    Avoid: await stream.done() after each loop.
    """
    fal_http.post(APP_STREAM).respond(422, json={"detail": "no such model"})
    begin = 'const stream = await fal.stream("tester/app", { input: { a: 1 } });'
    events = "const events = []; for await (const event of stream) events.push(event);"
    quiet = "stream.done().catch(() => {});"
    assert node(f"{begin} {quiet} {events} show(events);") == []

    failure = node(f"{begin} {quiet} {events} await stream.done();")
    assert (failure["name"], failure["status"]) == ("ValidationError", 422)


# --- by way of a proxy ---------------------------------------------------------------------------

NO_CHANGES = "const config = {};"


@bug(
    "P35",
    symptom="uploads of more than 90 MiB from the browser fail with 400, smaller ones work",
    topic=TOPIC,
    **PROXY,
)
def test_a_proxy_refuses_the_start_of_large_uploads(fal_cdn, fal_ledger):
    """fal's own proxy does not let a browser begin an upload of more than 90 MiB.

    Production: "Bad Request" for large files, and fal has never heard of them.
    Expected: what works without the proxy works with it.
    Happens: of the two calls that begin an upload the proxy's list of allowed URLs has the one for
        small files, and another, complete-multipart, that no client sends.
    Avoid: allowedUrlPatterns with the missing URL, as at the end of this test.
    """
    upload = "await browser.storage.upload(new Blob([Buffer.alloc(91 * 1024 * 1024)]))"
    failure = node(NO_CHANGES + through(SVELTE) + upload)
    assert (failure["status"], failure["body"]) == (400, "Invalid request")
    assert fal_ledger.exchanges == []
    node(NO_CHANGES + through(SVELTE) + 'show(await browser.storage.upload(new Blob(["small"])));')

    allowed = """
    const { DEFAULT_ALLOWED_URL_PATTERNS } = require("@fal-ai/server-proxy");
    const missing = "rest.fal.ai/storage/upload/initiate-multipart\\\\?storage_type=fal-cdn-v3";
    const config = { allowedUrlPatterns: [...DEFAULT_ALLOWED_URL_PATTERNS, missing] };
    """
    url = node(allowed + through(SVELTE) + f"show({upload});")
    assert fal_cdn.info(url).size == 91 * 1024 * 1024


@bug(
    "N51",
    symptom="an error of the app is a result in the browser",
    topic=TOPIC,
    **PROXY,
)
def test_express_turns_errors_into_results(fal_http):
    """Through fal's proxy for Express each answer has status 200, errors of the app included.

    Production: the browser goes on with {detail: ...} as if it were the result.
    Expected: the status of the answer.
    Happens: the handler copies headers and body of an answer that streams, which every answer of
        fetch() does, and not its status.
    Avoid: look for detail in results; or set response.statusCode in a handler of your own around
        handleRequest().
    """
    fal_http.post("https://fal.run/tester/app").respond(422, json={"detail": "no such model"})
    run = 'show(await browser.run("tester/app", { input: { a: 1 } }));'
    assert node(through(EXPRESS) + run)["data"] == {"detail": "no such model"}

    direct = node('await fal.run("tester/app", { input: { a: 1 } });')
    assert (direct["name"], direct["status"]) == ("ValidationError", 422)


@bug(
    "N52",
    symptom="behind Hono our uploads never expire, and low priority is ignored",
    topic=TOPIC,
    **PROXY,
)
def test_hono_drops_fals_headers(fal_http, fal_cdn):
    """fal's proxy for Hono passes on no header of the client's: lifetimes, priorities, time-outs.

    Production: files that should be gone or hidden are there for everybody.
    Expected: headers that begin with x-fal- are passed on, as with the other frameworks.
    Happens: the handler offers the headers of its answer, which are none yet, for those of the
        request.
    Avoid: set them in the handler's place, in a middleware that calls fal itself; or another
        framework's handler.
    """
    lifecycle = "{ lifecycle: { expiresIn: '1h', initialAcl: { default: 'hide' } } }"
    url = node(through(HONO) + f"show(await browser.storage.upload(new Blob(['x']), {lifecycle}));")
    assert fal_cdn.info(url).lifecycle is None

    submit = 'show(await browser.queue.submit("tester/app", { input: { a: 1 }, priority: "low" }));'
    queue = fal_http.post("https://queue.fal.run/tester/app").respond(json={})
    node(through(HONO) + submit)
    assert "x-fal-queue-priority" not in queue.calls.last.request.headers
    node(NO_CHANGES + through(SVELTE) + submit)
    assert queue.calls.last.request.headers["x-fal-queue-priority"] == "low"
