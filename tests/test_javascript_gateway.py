"""fal's JavaScript client, unmodified, in front of a deployment: run, queue, streams, realtime.

Without postponed annotations: the names in them do not go along when the SDK pickles an app.
"""

import json
import urllib.request

import fal
import pytest
from fal.toolkit import File
from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from nodejs import fal_js, needs_client, needs_node
from pydantic import BaseModel

pytestmark = [
    needs_node,
    needs_client,
]

#: Reports what a call fails with.
FAILURE = """.catch(({ name, message, status, body }) => show({ name, message, status, body }));"""
#: Node has it by itself since 22.
WEBSOCKET = "--experimental-websocket"


class Number(BaseModel):
    number: int = 1


class Image(BaseModel):
    image_url: str


class Doubler(fal.App):
    @fal.endpoint("/")
    def double(self, input: Number) -> dict:
        print(f"doubling {input.number}")
        return {"doubled": 2 * input.number}

    @fal.endpoint("/fails")
    def fail(self, input: Number) -> dict:
        raise HTTPException(418, detail="no coffee here")

    @fal.endpoint("/file")
    def file(self, input: Number) -> dict:
        return {"url": File.from_bytes(b"out", file_name="out.bin").url}

    @fal.endpoint("/image")
    def image(self, input: Image) -> dict:
        with urllib.request.urlopen(input.image_url) as image:
            return {"bytes": image.read().decode()}

    @fal.endpoint("/stream")
    def stream(self, input: Number) -> StreamingResponse:
        events = (f"data: {json.dumps({'step': n})}\n\n" for n in range(input.number))
        return StreamingResponse(events, media_type="text/event-stream")

    @fal.realtime("/realtime")
    def live(self, input: Number) -> dict:
        if input.number < 0:
            raise ValueError("negative")
        return {"doubled": 2 * input.number}


@pytest.fixture
def deployment(fal_gateway):
    return fal_gateway.deploy("tester/app", Doubler)


def run(options="", path=""):
    return f'await fal.run("tester/app{path}", {{ input: {{ number: 21 }}, {options} }})'


def submit(options="", path=""):
    return f'await fal.queue.submit("tester/app{path}", {{ input: {{ number: 21 }}, {options} }})'


def subscribe(options="", path=""):
    return (
        f'await fal.subscribe("tester/app{path}", '
        f"{{ input: {{ number: 21 }}, pollInterval: 10, {options} }})"
    )


def ask(what, request_id, options=""):
    """A queue's ``status``, ``result`` or ``cancel``."""
    return f'await fal.queue.{what}("tester/app", {{ requestId: "{request_id}", {options} }})'


# --- run -----------------------------------------------------------------------------------------


def test_run_returns_the_apps_answer_and_the_requests_id(deployment):
    result = fal_js(f"show({run()});")
    assert result == {"data": {"doubled": 42}, "requestId": deployment.calls[0].request_id}


def test_run_calls_endpoints_by_their_paths(deployment):
    failure = fal_js(f"{run(path='/fails')}{FAILURE}")
    assert (failure["name"], failure["status"]) == ("ApiError", 418)
    assert failure["body"] == {"detail": "no coffee here"}


def test_an_input_that_does_not_fit_is_a_validation_error(deployment):
    failure = fal_js("""
    await fal.run("tester/app", { input: { number: "x" } })
      .catch((error) => show([error.name, error.status, error.getFieldErrors("number")[0].loc]));
    """)
    assert failure == ["ValidationError", 422, ["body", "number"]]


def test_a_blob_of_an_input_is_a_url_to_the_app(deployment):
    result = fal_js("""
    const image_url = new Blob(["pixels"], { type: "image/png" });
    show(await fal.run("tester/app/image", { input: { image_url } }));
    """)
    assert result["data"] == {"bytes": "pixels"}


def test_the_settings_of_a_call_reach_the_apps_outputs(deployment, fal_cdn):
    options = "storageSettings: { expiresIn: '1h' }"
    url = fal_js(f"show({run(options, '/file')});")["data"]["url"]
    assert fal_cdn.info(url).lifecycle == {"expiration_duration_seconds": 3600}


def test_the_limit_of_the_start_is_kept(deployment):
    fal_js(f"show({run('startTimeout: 30')});")
    [call] = deployment.calls
    assert (call.deadline - call.waiting_since).total_seconds() == 30


def test_another_users_key_is_another_caller(deployment, fal_emulator):
    key = json.dumps(fal_emulator.user("bob").key)
    fal_js(f"fal.config({{ credentials: {key} }}); show({run()});")
    assert deployment.calls[0].caller == "bob"


# --- subscribe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["polling", "streaming"])
def test_subscribe_returns_the_result(deployment, mode):
    result = fal_js(f"show({subscribe(f'mode: {mode!r}')});")
    assert result == {"data": {"doubled": 42}, "requestId": deployment.calls[0].request_id}


def test_subscribe_tells_the_requests_id_first(deployment):
    options = "onEnqueue: (id) => seen.push(id), onQueueUpdate: ({ status }) => seen.push(status)"
    seen = fal_js(f"const seen = []; {subscribe(options)}; show(seen);")
    assert seen[0] == deployment.calls[0].request_id
    assert seen[-1] == "COMPLETED"
    assert set(seen[1:]) <= {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}


@pytest.mark.parametrize("mode", ["polling", "streaming"])
def test_subscribe_has_the_logs_on_request(deployment, mode):
    options = f"mode: {mode!r}, logs: true, onQueueUpdate: (update) => (last = update)"
    last = fal_js(f"let last; {subscribe(options)}; show(last);")
    assert last["status"] == "COMPLETED"
    assert "doubling 21" in [entry["message"].strip() for entry in last["logs"]]


def test_without_the_request_there_are_no_logs(deployment):
    options = "onQueueUpdate: (update) => (last = update)"
    last = fal_js(f"let last; {subscribe(options)}; show(last);")
    assert not last["logs"]


def test_subscribe_throws_what_the_app_answered(deployment):
    failure = fal_js(f"{subscribe(path='/fails')}{FAILURE}")
    assert (failure["status"], failure["body"]) == (418, {"detail": "no coffee here"})


def test_subscribe_cancels_after_its_timeout(deployment):
    deployment.hold()
    failure = fal_js(f"{subscribe('timeout: 100')}{FAILURE}")
    assert failure["message"] == (
        "Client timed out waiting for the request to complete after 100ms"
    )
    assert deployment.calls[0].cancelled


# --- the queue -----------------------------------------------------------------------------------


def test_a_submitted_call_waits_in_the_queue(deployment):
    deployment.hold()
    queued = fal_js(f"show({submit()});")
    [call] = deployment.queue
    base = f"https://queue.fal.run/tester/app/requests/{call.request_id}"
    assert queued["request_id"] == call.request_id
    assert queued["status"] == "IN_QUEUE"
    assert queued["response_url"] == base
    assert queued["status_url"] == f"{base}/status"
    assert queued["cancel_url"] == f"{base}/cancel"


def test_its_status_tells_its_place(deployment):
    deployment.hold()
    first, second = (fal_js(f"show({submit()});")["request_id"] for _ in range(2))
    statuses = [fal_js(f"show({ask('status', one)});") for one in (first, second)]
    assert [status["status"] for status in statuses] == ["IN_QUEUE", "IN_QUEUE"]
    assert [status["queue_position"] for status in statuses] == [0, 1]


def test_its_result_is_there_once_it_has_run(deployment):
    deployment.hold()
    identifier = fal_js(f"show({submit()});")["request_id"]
    deployment.run_next()
    assert fal_js(f"show({ask('status', identifier)});")["status"] == "COMPLETED"
    result = fal_js(f"show({ask('result', identifier)});")
    assert result == {"data": {"doubled": 42}, "requestId": identifier}


def test_a_path_is_no_part_of_the_later_calls(deployment):
    deployment.hold()
    identifier = fal_js(f"show({submit(path='/file')});")["request_id"]
    deployment.run_next()
    code = f'show(await fal.queue.result("tester/app/file", {{ requestId: "{identifier}" }}));'
    assert fal_js(code)["data"]["url"].startswith("https://v3b.fal.media/")


def test_a_result_that_is_not_there_yet_is_an_error(deployment):
    deployment.hold()
    identifier = fal_js(f"show({submit()});")["request_id"]
    failure = fal_js(f"{ask('result', identifier)}{FAILURE}")
    assert (failure["name"], failure["status"]) == ("ApiError", 400)


def test_an_unknown_request_is_not_found(deployment):
    failure = fal_js(f"{ask('result', '00000000-0000-0000-0000-000000000000')}{FAILURE}")
    assert (failure["name"], failure["status"]) == ("ApiError", 404)


def test_a_cancelled_call_does_not_run(deployment):
    deployment.hold()
    identifier = fal_js(f"show({submit()});")["request_id"]
    fal_js(f"{ask('cancel', identifier)}; show(null);")
    assert deployment.calls[0].cancelled
    assert deployment.queue == []


def test_a_call_that_is_over_cannot_be_cancelled(deployment):
    deployment.hold()
    identifier = fal_js(f"show({submit()});")["request_id"]
    deployment.run_next()
    failure = fal_js(f"{ask('cancel', identifier)}{FAILURE}")
    assert (failure["status"], failure["body"]) == (400, {"status": "ALREADY_COMPLETED"})


def test_priority_and_hint_are_the_calls(deployment):
    deployment.hold()
    submitted = submit("priority: 'low', hint: 'warm'")
    fal_js(f"show({submitted});")
    assert (deployment.queue[0].low_priority, deployment.queue[0].hint) == (True, "warm")


def test_a_webhook_is_told_the_result(deployment, fal_http):
    hook = fal_http.post("https://example.com/hook").respond(200)
    submitted = submit("webhookUrl: 'https://example.com/hook'")
    identifier = fal_js(f"show({submitted});")["request_id"]
    deployment.settle()
    told = json.loads(hook.calls.last.request.content)
    assert (told["request_id"], told["status"]) == (identifier, "OK")
    assert told["payload"] == {"doubled": 42}


# --- streams -------------------------------------------------------------------------------------

STREAM = """
const stream = await fal.stream("tester/app", { input: { number: 3 }, %s });
const steps = [];
for await (const event of stream) steps.push(event.step);
show([steps, await stream.done(), stream.requestId]);
"""


def test_a_stream_is_its_events_and_the_last_of_them(deployment):
    steps, done, identifier = fal_js(STREAM % "")
    assert (steps, done) == ([0, 1, 2], {"step": 2})
    assert identifier == deployment.calls[0].request_id


def test_a_browser_streams_with_a_token(deployment, fal_ledger):
    code = "console.warn = () => {};" + STREAM % 'connectionMode: "client"'
    assert fal_js(code)[0] == [0, 1, 2]
    fal_ledger.assert_requested(times=1, host="rest.fal.ai", path="/tokens/")
    [request] = fal_ledger.requests(host="fal.run")
    assert "authorization" not in request.request_headers
    assert request.url == "https://fal.run/tester/app/stream?fal_jwt_token=***"


def test_a_stream_that_does_not_begin_throws(deployment):
    failure = fal_js(f"""
    const stream = await fal.stream("tester/app/fails/stream", {{ input: {{}} }});
    await stream.done(){FAILURE}
    """)
    assert (failure["name"], failure["status"]) == ("ApiError", 404)


# --- realtime ------------------------------------------------------------------------------------

REALTIME = """
console.warn = () => {};
const results = [];
let closed = false;
const finish = (value) => {
  if (closed) return; // that it is closed is told as an error, too
  closed = true;
  show(value);
  connection.close();
};
const connection = fal.realtime.connect("tester/app", {
  throttleInterval: 0,
  onResult: (result) => { results.push(result); next(); },
  onError: (error) => finish(error.message),
  %s
});
const inputs = %s;
const next = () => (inputs.length ? connection.send({ number: inputs.shift() }) : finish(results));
next();
"""


def test_realtime_answers_message_by_message(deployment):
    assert fal_js(REALTIME % ("", [1, 2]), WEBSOCKET) == [{"doubled": 2}, {"doubled": 4}]


def test_its_token_is_for_the_app_alone(deployment, fal_ledger):
    fal_js(REALTIME % ("", [1]), WEBSOCKET)
    fal_ledger.assert_requested(times=1, host="rest.fal.ai", method="POST", path="/tokens/")
    [upgrade] = fal_ledger.requests(host="fal.run")
    assert upgrade.url == "https://fal.run/tester/app/realtime?fal_jwt_token=***"
    assert upgrade.status == 101


def test_a_token_of_ones_own_server_will_do(deployment):
    provider = """
    tokenProvider: async (app) => {
      const answer = await fetch("https://rest.fal.ai/tokens/", {
        method: "POST",
        headers: { authorization: `Key ${process.env.FAL_KEY}` },
        body: JSON.stringify({ allowed_apps: [app.split("/")[1]], token_expiration: 120 }),
      });
      return answer.json();
    },
    """
    assert fal_js(REALTIME % (provider, [1]), WEBSOCKET) == [{"doubled": 2}]


def test_an_error_of_the_app_is_told(deployment):
    assert fal_js(REALTIME % ("", [-1]), WEBSOCKET) == "INTERNAL_ERROR: negative"


def test_closing_it_is_told_as_an_error(deployment):
    """A bug of the client's: its own close() has no code, which it takes for a failure."""
    code = """
    console.warn = () => {};
    const connection = fal.realtime.connect("tester/app", {
      onResult: () => connection.close(),
      onError: ({ message, status }) => show([message, status]),
    });
    connection.send({ number: 1 });
    """
    assert fal_js(code, WEBSOCKET) == ["Error closing the connection: ", 1005]
