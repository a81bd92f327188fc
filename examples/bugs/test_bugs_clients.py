"""What callers of deployed apps meet: requests made twice, limits of time, answers unheard of."""

from __future__ import annotations

import json
import pickle
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import fal
import fal_client
import httpx
import pytest
from fal.exceptions import FieldException
from fal.toolkit import DownloadError, File, download_file
from fastapi.responses import JSONResponse, Response
from gallery import bug, wait_until

TOPIC = "Calling deployed apps"
#: The one version of fal_client in which these were run.
SEEN = ("1.0.3", "1.0.3")
SLOW = "https://example.com/slow.bin"


class Studio(fal.App):
    @fal.endpoint("/")
    def render(self, input: dict) -> dict:
        """Takes its time, and leaves a file."""
        Path(f"/data/render-{uuid.uuid4()}.txt").touch()
        time.sleep(input["seconds"])
        return {}

    @fal.endpoint("/busy")
    def busy(self, input: dict) -> JSONResponse:
        with Path("/data/asked").open("a") as file:
            file.write("x")
        return JSONResponse({"detail": "no credits left"}, input["status"])

    @fal.endpoint("/slow")
    def slow(self) -> dict:
        return {"size": len(httpx.get(SLOW).content)}

    @fal.endpoint("/retouch")
    def retouch(self, input: dict) -> dict:
        try:
            path = download_file(input["url"], "/tmp/inputs")
        except DownloadError as error:
            raise FieldException("url", "the file could not be downloaded") from error
        return {"url": File.from_path(path).url}

    @fal.endpoint("/retouch-later")
    def retouch_later(self, input: dict) -> JSONResponse:
        if not Path("/data/tried").exists():
            Path("/data/tried").touch()
            return JSONResponse({"detail": "out of memory"}, 503)
        return JSONResponse(self.retouch(input))

    @fal.endpoint("/image")
    def image(self) -> Response:
        return Response(b"\x89PNG", media_type="image/png")


# --- made twice -----------------------------------------------------------------------------------


@bug(
    "N65",
    "P31",
    symptom="one call to run() with a timeout was billed ten times",
    topic=TOPIC,
    seen=SEEN,
    package="fal_client",
)
def test_a_timeout_repeats_the_request(fal_gateway, fal_clock, fal_data, fal_ledger):
    """After a time-out fal_client.run(timeout=...) makes the request again, nine times.

    Production: where the model is slower than the limit, each call costs ten runs and takes ten
        times as long as the limit, and what the app writes is there ten times.
    Expected: timeout=5 ends after 5 seconds, with one request made.
    Happens: a read time-out counts as a passing error, and the POST is repeated. The gateway tells
        the app that its caller has left, and an app without a /cancel endpoint goes on.
    Avoid: subscribe(client_timeout=...), which cancels; or a start_timeout beside it, which
        turns the repetition off.
    """
    fal_clock.freeze()
    fal_gateway.deploy("tester/studio", Studio)
    began = fal_clock.now()
    with pytest.raises(httpx.ReadTimeout):
        fal_client.run("tester/studio", {"seconds": 60}, timeout=5)
    fal_ledger.assert_requested(10, host="fal.run")
    wait_until(lambda: len(fal_data.tree()) == 10)
    assert fal_clock.now() - began > timedelta(seconds=50)

    with pytest.raises(httpx.ReadTimeout):
        fal_client.run("tester/studio", {"seconds": 60}, timeout=5, start_timeout=3600)
    fal_ledger.assert_requested(11, host="fal.run")
    wait_until(lambda: len(fal_data.tree()) == 11)


@bug(
    "N66",
    "P31",
    symptom="a customer without credits makes our app work for a minute",
    topic=TOPIC,
    seen=SEEN,
    package="fal_client",
)
@pytest.mark.parametrize("status", [408, 409, 429])
def test_some_refusals_of_an_app_are_asked_for_again(status, fal_gateway, fal_clock, fal_data):
    """What an app answers with 408, 409 or 429 is taken for passing: run() asks ten times.

    Production: a conflict or a spent quota is a final answer of the app's; its caller gets it after
        the better part of a minute, and the app has been asked ten times.
    Expected: an answer below 500 is final, as the platform has it, which does not repeat it.
    Happens: fal_client repeats these three whoever they come from, with growing waits.
    Avoid: 402, 403 or 422 for what will not pass.
    """
    fal_clock.freeze()
    fal_gateway.deploy("tester/studio", Studio)
    began = fal_clock.now()
    with pytest.raises(fal_client.FalClientHTTPError, match=r"^no credits left$"):
        fal_client.run("tester/studio", {"status": status}, path="/busy")
    assert fal_data.read("asked") == b"x" * 10
    assert fal_clock.now() - began > timedelta(seconds=25)

    with pytest.raises(fal_client.FalClientHTTPError, match=r"^no credits left$"):
        fal_client.run("tester/studio", {"status": 402}, path="/busy")
    assert fal_data.read("asked") == b"x" * 11


@bug(
    "N67",
    "P31",
    symptom="submit() was called once, and there are two requests",
    topic=TOPIC,
    seen=SEEN,
    package="fal_client",
)
def test_a_lost_answer_submits_twice(fal_gateway, fal_faults):
    """If the answer to a submission is lost, the request is submitted again.

    Production: with a shaky connection some requests run, and are billed, twice; the caller knows
        of one of them.
    Expected: a submission carries a key by which the queue knows it again.
    Happens: the POST is repeated as it is, and the queue takes in what it gets.
    Avoid: name what a request writes after its inputs, so that the second run overwrites the first.
    """
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    fal_faults.drop(host="queue.fal.run", method="POST", times=1)
    handle = fal_client.submit("tester/studio", {"seconds": 0})
    assert len(deployment.queue) == 2
    assert [call.request_id == handle.request_id for call in deployment.queue] == [False, True]


# --- limits of time -------------------------------------------------------------------------------


@bug(
    "N68",
    symptom="subscribe(client_timeout=...) times out, and nothing was ever submitted",
    topic=TOPIC,
    seen=SEEN,
    package="fal_client",
)
@pytest.mark.filterwarnings("ignore:start_timeout:UserWarning")
def test_subscriptions_that_were_given_up_keep_their_threads(
    fal_gateway, fal_faults, fal_origin, monkeypatch
):
    """A subscription whose client_timeout is over keeps its thread until the request has ended.

    Production: the process has as many of these threads as processors and four. When so many slow
        requests were given up, every further subscribe(client_timeout=...) times out by itself.
    Expected: who gives up lets go; or the time counts from the submission.
    Happens: the thread asks on for the status of a request that it has cancelled, as long as the
        app works on it; the next subscription waits for a thread, and that wait counts.
    Avoid: a /cancel endpoint that stops the app; or the async client, which needs no threads.
    """
    fal_origin.serve(SLOW, b"x")
    gate = fal_faults.gate(host="example.com")
    deployment = fal_gateway.deploy("tester/studio", Studio, max_multiplexing=4)
    limits = {"path": "/slow", "start_timeout": 60, "client_timeout": 0.2}
    with ThreadPoolExecutor(2) as pool:  # as if there were fewer processors
        monkeypatch.setattr("fal_client.client.EXECUTOR", pool)
        errors = []
        for _ in range(3):
            with pytest.raises(fal_client.FalClientTimeoutError) as caught:
                fal_client.subscribe("tester/studio", {}, **limits)
            errors.append(caught.value)
        submitted = len(deployment.calls)
        gate.open()
    assert [error.request_id is None for error in errors] == [False, False, True]
    assert submitted == 2


@bug(
    "N69",
    symptom="we cancelled the request, and it ran to its end and was billed",
    topic=TOPIC,
    seen=None,
)
def test_a_cancelled_request_runs_on(fal_gateway, fal_faults, fal_origin):
    """cancel() of a request that runs is a message to the app; one that has no ear for it goes on.

    Production: cancelled requests keep runners busy, and their results can be fetched.
    Expected: a cancelled request is over.
    Happens: the app gets a POST to the endpoint's path and /cancel, with the same request id.
    Avoid: an endpoint of that path, and RequestCancelledException where the work is done.
    """
    fal_origin.serve(SLOW, b"123")
    gate = fal_faults.gate(host="example.com")
    deployment = fal_gateway.deploy("tester/studio", Studio)
    handle = fal_client.submit("tester/studio", {}, path="/slow")
    gate.wait()
    handle.cancel()
    gate.open()
    assert handle.get() == {"size": 3}
    assert "runner-1 answered 404 to POST /slow/cancel" in "".join(deployment.history)


# --- answers --------------------------------------------------------------------------------------


@bug(
    "N70",
    symptom="a job that fails in a pool of processes breaks the whole pool",
    topic=TOPIC,
    seen=SEEN,
    package="fal_client",
)
def test_an_error_of_the_client_cannot_be_unpickled(fal_gateway):
    """FalClientHTTPError goes into a pickle and does not come out of it.

    Production: concurrent.futures reports BrokenProcessPool, Celery an error of its own, for any
        request that the app refuses; what the app said is lost.
    Expected: exceptions cross processes.
    Happens: it is made with a keyword argument that the pickle does not know of.
    Avoid: catch it where it is raised, and hand on its message and status_code.
    """
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal_client.run("tester/studio", {"status": 402}, path="/busy")
    pickled = pickle.dumps(caught.value)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'response'"):
        pickle.loads(pickled)


@bug(
    "N71",
    symptom="AttributeError: 'list' object has no attribute 'lower', while handling an error",
    topic=TOPIC,
    seen=SEEN,
    package="fal_client",
)
def test_the_message_of_an_error_may_be_a_list(fal_gateway):
    """FalClientHTTPError.message is no text where the app refuses an input: it is a list.

    Production: code that looks for words in the message fails at the commonest of errors.
    Expected: message is a str, as it is annotated.
    Happens: it is the answer's detail, whatever that is.
    Avoid: str(error), or error.response.json().
    """
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal_client.run("tester/studio", {"url": "https://example.com/none"}, path="/retouch")
    (detail,) = caught.value.message
    assert detail["msg"] == "the file could not be downloaded"


@bug(
    "N72",
    symptom="JSONDecodeError, although the request was a success",
    topic=TOPIC,
    seen=SEEN,
    package="fal_client",
)
def test_an_answer_that_is_no_json(fal_gateway):
    """An endpoint that answers with an image works, and fal_client cannot say what it answered.

    Production: the app has run and is billed; its caller gets an error that names neither the
        request nor the content type.
    Expected: the bytes, or an error of fal_client's that has the response.
    Happens: whatever comes is read as JSON.
    Avoid: return a File; or ask with httpx.
    """
    fal_gateway.deploy("tester/studio", Studio)
    with pytest.raises(ValueError, match=r"codec can't decode byte 0x89"):
        fal_client.run("tester/studio", {}, path="/image")
    with pytest.raises(ValueError, match=r"codec can't decode byte 0x89"):
        fal_client.subscribe("tester/studio", {}, path="/image")


# --- files that do not live as long as requests ---------------------------------------------------


@bug(
    "P9",
    symptom="422 for an input that was fine when it was submitted",
    topic=TOPIC,
    seen=None,
)
def test_an_input_expires_in_the_queue(fal_gateway, fal_clock):
    """An input with a short lifetime is gone when its request's turn comes, or its second attempt.

    Production: fails at busy hours, and after a runner was lost; never when one tries it by hand.
    Expected: what a request needs is kept as long as the request waits.
    Happens: requests wait as long as they have to, and a file lives as long as it was told.
    Avoid: lifetimes for inputs that cover the longest wait; and a start_timeout that is shorter.
    """
    fal_clock.freeze()
    studio = fal_gateway.deploy("tester/studio", Studio)
    studio.hold()
    hour = fal_client.StorageSettings(expires_in="1h")

    def refusal_of(path, *waits):
        url = fal_client.upload(b"photo", "text/plain", "photo.txt", lifecycle=hour)
        handle = fal_client.submit("tester/studio", {"url": url}, path=path)
        for hours in waits:
            studio.settle()  # else a runner that is being started takes an hour for it
            fal_clock.advance(hours=hours)
            studio.run_next()
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            handle.get()
        (detail,) = caught.value.message
        return caught.value.status_code, detail["msg"]

    gone = 422, "the file could not be downloaded"
    assert refusal_of("/retouch", 1) == gone
    assert refusal_of("/retouch-later", 0.5, 0.5) == gone


@bug(
    "P16",
    symptom="the result of last week's request can be fetched, and its picture cannot",
    topic=TOPIC,
    seen=None,
)
def test_a_result_outlives_its_file(fal_gateway, fal_clock):
    """The queue gives out a result for thirty days, whatever lifetime the files in it have.

    Production: who fetches results later, by their ids, gets dead links and no error.
    Expected: a result whose files are gone is gone, or says so.
    Happens: the result is JSON, kept by itself; a link in it is text.
    Avoid: fetch the files along with the result; or give outputs a lifetime of thirty days.
    """
    fal_clock.freeze()
    fal_gateway.deploy("tester/studio", Studio)
    url = fal_client.upload(b"photo", "text/plain", "photo.txt")
    day = {"X-Fal-Object-Lifecycle-Preference": json.dumps({"expiration_duration_seconds": 86_400})}
    handle = fal_client.submit("tester/studio", {"url": url}, path="/retouch", headers=day)
    assert httpx.get(handle.get()["url"]).content == b"photo"

    fal_clock.advance(days=7)
    late = fal_client.result("tester/studio", handle.request_id)
    assert httpx.get(late["url"]).status_code == 404


@bug(
    "P17",
    symptom="a request's payloads were deleted, and what was sent with it is still on the CDN",
    topic=TOPIC,
    seen=None,
)
def test_deleting_a_queued_requests_payloads_leaves_its_input(fal_gateway, fal_emulator):
    """Deletion takes a request's JSON and the files it made; the file it was made from stays.

    Production: the result is gone from the queue, so the deletion seems complete.
    Expected: all that was sent and made is gone.
    Happens: an input was uploaded before there was a request.
    Avoid: give inputs a lifetime when they are uploaded.
    """
    deployment = fal_gateway.deploy("tester/studio", Studio)
    photo = fal_client.upload(b"photo", "text/plain", "photo.txt")
    handle = fal_client.submit("tester/studio", {"url": photo}, path="/retouch")
    made = handle.get()["url"]
    where = f"https://api.fal.ai/v1/models/requests/{handle.request_id}/payloads"
    httpx.delete(where, headers={"Authorization": f"Key {fal_emulator.owner.key}"})
    with pytest.raises(fal_client.FalClientHTTPError, match="not found"):
        handle.get()
    assert deployment.calls[0].payloads is None
    assert [httpx.get(url).status_code for url in (made, photo)] == [404, 200]


@bug(
    "N74",
    symptom="our webhook is never called, for some endpoints",
    topic=TOPIC,
    seen=("1.0.3", "1.0.3"),
    package="fal_client",
)
def test_a_path_with_a_query_loses_the_webhook(fal_gateway, fal_webhooks):
    """submit(path="/?seed=1", webhook_url=...) makes a URL with two question marks.

    Production: requests are done and nobody is told; the app gets a strange seed.
    Expected: the webhook is one parameter more.
    Happens: fal_client appends "?fal_webhook=..." whatever the path has.
    Avoid: send such parameters as arguments.
    """
    app = fal_gateway.deploy("tester/app", lambda arguments: {})
    url = fal_webhooks.url
    handle = fal_client.submit("tester/app", {}, path="/?seed=1", webhook_url=url)
    assert handle.get() == {}
    fal_webhooks.settle()
    assert fal_webhooks.received == []
    assert app.calls[0].path.startswith("/?seed=1?fal_webhook=")
