"""Streaming endpoints through ``fal.run``: events come while the app makes them [§6.1]."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fal
import fal.apps
import fal_client
import httpx
import pytest
import requests
from fastapi.responses import Response, StreamingResponse

APP = "tester/app"
GATE = "https://example.com/gate"
CUT_SHORT = r"peer closed connection without sending complete message body"


class Counting(fal.App):
    @fal.endpoint("/stream")
    def count(self, input: dict) -> StreamingResponse:
        return StreamingResponse(self.events(input), media_type="text/event-stream")

    @fal.endpoint("/broken")
    def broken(self, input: dict) -> StreamingResponse:
        return StreamingResponse(iter([b"{"]), headers={"content-length": "26"})

    @fal.endpoint("/compressed")
    def compressed(self, input: dict) -> Response:
        body = gzip.compress(json.dumps({"text": "a" * 100}).encode())
        return Response(body, 200, {"content-encoding": "gzip"}, "application/json")

    @fal.endpoint("/cancel")
    def cancel(self) -> dict:
        Path("/data/cancelled").write_text(self.current_request.request_id)
        return {}

    @fal.endpoint("/stream/cancel")
    def cancel_stream(self) -> dict:
        return self.cancel()

    @fal.endpoint("/nested/stream")
    def nested(self, input: dict) -> StreamingResponse:
        def pass_on() -> Iterator[str]:
            for event in fal_client.stream("fal-ai/any-llm", input):
                yield f"data: {json.dumps(event)}\n\n"

        return StreamingResponse(pass_on(), media_type="text/event-stream")

    def events(self, input: dict) -> Iterator[str]:
        for number in range(input.get("count", 3)):
            if number == input.get("gate"):
                httpx.get(GATE)
            if number == input.get("crash"):
                import os

                os._exit(1)
            yield f"data: {json.dumps({'number': number})}\n\n"


@pytest.fixture(params=["thread", "process"])
def app(request, fal_gateway):
    return fal_gateway.deploy(APP, Counting, isolation=request.param)


NUMBERS = [{"number": 0}, {"number": 1}, {"number": 2}]


def test_the_events_of_a_stream(app):
    assert list(fal_client.stream(APP, {})) == NUMBERS


def test_the_async_client_streams(app):
    async def stream():
        return [event async for event in fal_client.stream_async(APP, {})]

    assert asyncio.run(stream()) == NUMBERS


def test_the_sdks_own_client_streams(app):
    lines = list(fal.apps.stream(APP, {}, path="/stream"))
    assert lines == [f"data: {json.dumps(event)}" for event in NUMBERS]


def test_requests_streams(app):
    url, key = f"https://fal.run/{APP}/stream", {"Authorization": "Key id:secret"}
    with requests.post(url, json={}, headers=key, stream=True) as response:
        assert next(line for line in response.iter_lines() if line) == b'data: {"number": 0}'


def test_an_event_comes_while_the_next_one_is_made(app, fal_origin, fal_faults):
    fal_origin.serve(GATE, content=b"")
    gate = fal_faults.gate(host="example.com")
    events = fal_client.stream(APP, {"gate": 1})
    assert next(events) == {"number": 0}
    gate.open()
    assert list(events) == NUMBERS[1:]


def test_the_runner_is_busy_until_the_stream_is_over(app, fal_origin, fal_faults):
    fal_origin.serve(GATE, content=b"")
    gate = fal_faults.gate(host="example.com")
    events = fal_client.stream(APP, {"gate": 1})
    next(events)
    (call,) = app.calls
    assert (call.status, app.runners[0].state) == ("IN_PROGRESS", "RUNNING")
    gate.open()
    list(events)
    assert (call.status, app.runners[0].state) == ("COMPLETED", "IDLE")


def test_its_head_is_the_gateways(app):
    with httpx.stream(
        "POST",
        f"https://fal.run/{APP}/stream",
        json={},
        headers={"Authorization": "Key id:secret"},
    ) as response:
        response.read()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-fal-request-id"] == app.calls[0].request_id
    assert response.headers["x-fal-served-from"] == "runner-1"


def test_a_stream_is_cut_short_by_a_crash(fal_gateway):
    app = fal_gateway.deploy(APP, Counting, isolation="process")
    with pytest.raises(httpx.RemoteProtocolError, match=CUT_SHORT):
        list(fal_client.stream(APP, {"crash": 1}))
    (attempt,) = app.calls[0].attempts  # direct calls are never retried
    assert attempt.ended == "died"


@pytest.mark.parametrize("ask", [fal_client.run, fal_client.subscribe])
def test_an_answer_of_known_length_that_breaks_off_is_a_502(app, ask):
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        ask(APP, {}, path="/broken")
    assert caught.value.status_code == 502
    assert caught.value.error_type == "runner_incomplete_response"


def test_the_app_is_told_of_a_client_that_leaves(app, fal_origin, fal_faults, fal_data):
    fal_origin.serve(GATE, content=b"")
    gate = fal_faults.gate(host="example.com")
    events = fal_client.stream(APP, {"gate": 1})
    next(events)
    events.close()
    (call,) = app.calls
    assert fal_data.read("cancelled").decode() == call.request_id
    gate.open()


def test_a_stream_through_the_queue_comes_whole(app):
    handle = fal_client.submit(APP, {}, path="/stream")
    while not isinstance(handle.status(), fal_client.Completed):
        pass
    answer = httpx.get(handle.response_url, headers={"Authorization": "Key id:secret"})
    assert answer.text.count("data: ") == 3


@pytest.mark.parametrize("ask", [fal_client.run, fal_client.subscribe])
def test_an_answer_may_be_compressed(app, ask):
    assert ask(APP, {}, path="/compressed") == {"text": "a" * 100}


def test_a_stand_in_streams_what_it_yields(fal_gateway):
    fal_gateway.deploy("fal-ai/any-llm", lambda arguments: ({"word": w} for w in ("a", "b")))
    assert list(fal_client.stream("fal-ai/any-llm", {})) == [{"word": "a"}, {"word": "b"}]


def test_a_stand_in_yields_while_it_is_read(fal_gateway):
    go_on = threading.Event()

    def answer(arguments):
        yield {"word": "a"}
        go_on.wait()
        yield {"word": "b"}

    fal_gateway.deploy("fal-ai/any-llm", answer)
    events = fal_client.stream("fal-ai/any-llm", {})
    assert next(events) == {"word": "a"}
    go_on.set()
    assert next(events) == {"word": "b"}


def test_an_app_passes_on_what_another_one_streams(app, fal_gateway):
    fal_gateway.deploy("fal-ai/any-llm", lambda arguments: iter([{"word": arguments["word"]}]))
    assert list(fal_client.stream(f"{APP}/nested", {"word": "a"})) == [{"word": "a"}]
