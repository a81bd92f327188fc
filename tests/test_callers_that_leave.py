"""Callers that wait no more, and calls that wait for each other: nothing hangs or is lost."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator

import fal
import fal_client
import httpx
import pytest
import requests
from fastapi.responses import StreamingResponse

from emulator.fleets import waiting

APP = "tester/app"
GATE = "https://example.com/gate"
KEY = {"Authorization": "Key id:secret"}


class Streaming(fal.App):
    max_concurrency = 1

    @fal.endpoint("/")
    def answer(self, input: dict) -> dict:
        return input

    @fal.endpoint("/stream")
    def stream(self, input: dict) -> StreamingResponse:
        return StreamingResponse(self.events(input["pause"]), media_type="text/event-stream")

    @fal.endpoint("/late")
    def late(self, input: dict) -> StreamingResponse:
        httpx.get(GATE)
        return StreamingResponse(self.events(0), media_type="text/event-stream")

    @fal.endpoint("/gated")
    def gated(self, input: dict) -> StreamingResponse:
        return StreamingResponse(self.one_and_a_gate(), media_type="text/event-stream")

    @fal.endpoint("/gated/cancel")
    def cancel(self) -> dict:
        from pathlib import Path

        Path("/data/cancelled").touch()
        return {}

    @fal.endpoint("/itself")
    def itself(self, input: dict) -> dict:
        return fal_client.run(APP, {}, timeout=input.get("timeout", 3), start_timeout=1000)

    def events(self, pause: float) -> Iterator[str]:
        for number in range(3):
            yield f"data: {number}\n\n"
            if pause:
                time.sleep(pause)

    def one_and_a_gate(self) -> Iterator[str]:
        yield "data: 0\n\n"
        httpx.get(GATE)
        yield "data: 1\n\n"


class Fanning(fal.App):
    max_multiplexing = 200

    @fal.endpoint("/")
    async def ask(self, input: dict) -> dict:
        return await fal_client.run_async(APP, input, path="/leaf")

    @fal.endpoint("/leaf")
    def leaf(self, input: dict) -> dict:
        return input


@pytest.fixture(params=["thread", "process"])
def app(request, fal_gateway):
    """It is warm, so that a short time-out is not over before it has begun."""
    deployment = fal_gateway.deploy(APP, Streaming, isolation=request.param, min_concurrency=1)
    deployment.settle()
    return deployment


@pytest.fixture
def gate(fal_origin, fal_faults):
    fal_origin.serve(GATE, content=b"")
    return fal_faults.gate(host="example.com")


def post_with_httpx():
    httpx.post(f"https://fal.run/{APP}/late", json={}, headers=KEY, timeout=0.2)


def post_with_requests():
    requests.post(f"https://fal.run/{APP}/late", json={}, headers=KEY, timeout=0.2)


def give_up_with_asyncio():
    call = fal_client.run_async(APP, {}, path="/late")
    asyncio.run(asyncio.wait_for(call, 0.2))


def told(app):
    """What the history tells of cancelling, once it tells anything."""
    for _ in range(200):
        lines = [line.partition(" ")[2] for line in app.history if "cancelled" in line]
        if lines:
            return lines
        app.calls[0].wait_for_news(0.05)
    return []


# --- before the answer ----------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [post_with_httpx, post_with_requests, give_up_with_asyncio])
def test_a_runner_is_free_again_whose_caller_left_before_a_stream_began(app, gate, leave):
    with pytest.raises((httpx.ReadTimeout, requests.ReadTimeout, asyncio.TimeoutError)):
        leave()
    assert told(app) == ["cancelled call-1: runner-1 answered 404 to POST /late/cancel"]
    gate.open()
    assert fal_client.run(APP, {"seed": 1}) == {"seed": 1}


def test_an_app_that_waits_for_itself_gets_its_time_out_on_a_stopped_clock(app, fal_clock):
    fal_clock.freeze()
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal_client.run(APP, {}, path="/itself")
    assert caught.value.status_code == 500


def test_an_app_that_waits_for_itself_for_ever_is_told(app, fal_clock, monkeypatch):
    monkeypatch.setattr(waiting, "_FOR_EVER", 0.2)
    fal_clock.freeze()
    with pytest.raises(fal_client.FalClientHTTPError):
        fal_client.run(APP, {"timeout": None}, path="/itself")
    said = "call-2 waits for a free runner of tester/app, and runner-1 had none of its requests end"
    assert said in app.runners[0].output or said in repr(app.calls[0].response.content)


# --- between the pieces ---------------------------------------------------------------------------


def test_pieces_that_come_in_time_are_no_time_out(app, fal_clock):
    fal_clock.freeze()
    events = fal_client.stream(APP, {"pause": 4}, timeout=5)
    assert list(events) == [0, 1, 2]


def test_a_piece_that_does_not_come_in_time_is_one(app, gate, fal_data):
    events = fal_client.stream(f"{APP}/gated", {}, path="", timeout=1)
    assert next(events) == 0
    with pytest.raises(httpx.ReadTimeout):
        next(events)
    assert fal_data.tree() == ["cancelled"]
    gate.open()
    assert fal_client.run(APP, {"seed": 1}) == {"seed": 1}


def test_it_is_one_by_the_clock_too(app, gate, fal_clock):
    fal_clock.freeze()
    events = fal_client.stream(f"{APP}/gated", {}, path="", timeout=60)
    assert next(events) == 0
    is_over = threading.Event()

    def let_time_pass():
        gate.wait()
        while not is_over.wait(0.01):
            fal_clock.advance(60)

    thread = threading.Thread(target=let_time_pass)
    thread.start()
    with pytest.raises(httpx.ReadTimeout):
        next(events)
    is_over.set()
    thread.join()
    gate.open()


# --- many at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_fifty_requests_that_each_wait_for_another_one(fal_gateway, isolation):
    fal_gateway.deploy(APP, Fanning, isolation=isolation)
    answers = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(fal_client.run(APP, {"n": n})))
        for n in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["n"] for answer in answers) == list(range(50))


def test_sixty_calls_of_one_event_loop_are_under_way_at_once(fal_gateway):
    everybody = threading.Barrier(60)

    def meet(arguments):
        everybody.wait(20)
        return arguments

    async def call_all():
        calls = [fal_client.run_async("fal-ai/meet", {"n": n}) for n in range(60)]
        return await asyncio.gather(*calls)

    fal_gateway.deploy("fal-ai/meet", meet)
    assert [answer["n"] for answer in asyncio.run(call_all())] == list(range(60))


# --- what is kept ---------------------------------------------------------------------------------


def test_a_stream_has_no_payload_that_is_kept(app):
    list(fal_client.stream(APP, {"pause": 0}))
    assert app.calls[0].payloads == (json.dumps({"pause": 0}, separators=(",", ":")).encode(), None)


def test_a_test_s_own_call_reads_a_stream_whole(app):
    assert app.post("/stream", json={"pause": 0}).text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
