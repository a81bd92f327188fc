"""Websockets of deployments through ``fal.run`` and ``ws.fal.run`` [§6.5].

Without postponed annotations: the names in them do not go along when the SDK pickles an app.
"""

import asyncio
import json
import sys
import time
from contextlib import ExitStack

import fal
import fal.apps
import fal_client
import httpx
import pytest
import requests
from fal.exceptions import AppException
from fal_client.client import RealtimeError
from fastapi import WebSocket
from fastapi.responses import StreamingResponse
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

APP = "tester/app"
KEY = {"Authorization": "Key id:secret"}


class Live(fal.App):
    @fal.realtime("/realtime")
    def draw(self, input: dict) -> dict:
        if input.get("fail"):
            raise ValueError("no colours left")
        return {"drawn": input["prompt"]}

    @fal.realtime("/hasty/realtime", session_timeout=0.05)
    def be_hasty(self, input: dict) -> dict:
        return {}

    @fal.endpoint("/headers", is_websocket=True)
    async def tell_headers(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json({**websocket.headers, "query": websocket.url.query})
        await websocket.close()

    @fal.endpoint("/")
    def answer(self, input: dict) -> dict:
        if "status" in input:
            raise AppException("no", input["status"])
        return {"seed": input["seed"]}

    @fal.endpoint("/stream")
    def stream(self, input: dict) -> StreamingResponse:
        words = (f"data: {word}\n\n" for word in input["words"])
        return StreamingResponse(words, media_type="text/event-stream")

    @fal.endpoint("/broken")
    def broken(self, input: dict) -> StreamingResponse:
        return StreamingResponse(self.crash(), media_type="text/event-stream")

    def crash(self):
        import os

        yield "data: 1\n\n"
        os._exit(1)


@pytest.fixture(params=["thread", "process"])
def app(request, fal_gateway):
    return fal_gateway.deploy(APP, Live, isolation=request.param)


# --- realtime -------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_jwt", [True, False])
def test_each_message_is_answered(app, use_jwt):
    with fal_client.realtime(APP, use_jwt=use_jwt) as connection:
        for prompt in ("a cat", "a bird"):
            connection.send({"prompt": prompt})
            assert connection.recv() == {"drawn": prompt}


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio of Python 3.10 leaves a transport of TLS behind"
)
def test_the_async_client_is_answered_too(app):
    async def draw():
        async with fal_client.realtime_async(APP) as connection:
            await connection.send({"prompt": "a cat"})
            return await connection.recv()

    assert asyncio.run(draw()) == {"drawn": "a cat"}


def test_the_sdks_own_client_is_answered_too(app):
    with fal.apps._connect(APP) as connection:
        assert connection.run({"prompt": "a cat"}) == {"drawn": "a cat"}


def test_an_exception_is_told_and_ends_it(app):
    with fal_client.realtime(APP) as connection:
        connection.send({"prompt": "a cat", "fail": True})
        with pytest.raises(RealtimeError, match="INTERNAL_ERROR: no colours left"):
            connection.recv()


def test_a_session_that_is_silent_times_out(app):
    with (
        fal_client.realtime(f"{APP}/hasty") as connection,
        pytest.raises(RealtimeError, match="TIMEOUT"),
    ):
        connection.recv()


def test_the_runner_is_busy_as_long_as_it_is_open(app):
    with fal_client.realtime(APP) as connection:
        connection.send({"prompt": "a cat"})
        connection.recv()
        assert [runner.state for runner in app.runners] == ["RUNNING"]
        assert app.calls[0].status == "IN_PROGRESS"
        assert fal_client.run(APP, {"seed": 1}) == {"seed": 1}
        assert [runner.state for runner in app.runners] == ["RUNNING", "IDLE"]
    assert app.calls[0].over.wait(5)
    assert app.calls[0].attempts[0].status == 101


def test_a_killed_runner_ends_it_without_a_word(app):
    with fal_client.realtime(APP) as connection:
        connection.send({"prompt": "a cat"})
        connection.recv()
        app.runners[0].kill()
        with pytest.raises(RealtimeError, match="CONNECTION_CLOSED"):
            connection.recv()


def test_an_open_one_survives_a_redeploy_until_it_ends(app):
    with fal_client.realtime(APP) as connection:
        app.redeploy(Live)
        connection.send({"prompt": "a cat"})
        assert connection.recv() == {"drawn": "a cat"}
        assert [runner.state for runner in app.runners] == ["RUNNING"]
    assert app.calls[0].over.wait(5)
    app.settle()
    assert app.runners == []


def test_no_request_timeout_ends_it(app, fal_clock):
    with fal_client.realtime(APP) as connection:
        connection.send({"prompt": "a cat"})
        connection.recv()
        fal_clock.advance(hours=2)
        connection.send({"prompt": "a bird"})
        assert connection.recv() == {"drawn": "a bird"}


def told(query="", headers=KEY):
    with connect(f"wss://fal.run/{APP}/headers{query}", additional_headers=headers) as websocket:
        return json.loads(websocket.recv())


def test_the_app_knows_request_endpoint_and_caller(app):
    headers = told()
    assert headers["x-fal-request-id"] == app.calls[0].request_id
    assert headers["x-fal-endpoint"] == f"{APP}/headers"
    assert headers["x-fal-caller-user-id"] == "tester"


def test_the_query_reaches_the_app_but_for_the_token(app):
    token = requests.post(
        "https://rest.fal.ai/tokens/",
        json={"allowed_apps": ["app"], "token_expiration": 120},
        headers=KEY,
    ).json()
    headers = told(f"?max_buffering=2&fal_jwt_token={token}", {})
    assert headers["query"] == "max_buffering=2"
    assert "authorization" not in headers


def test_the_ledger_tells_how_it_went(app, fal_ledger):
    with fal_client.realtime(APP) as connection:
        connection.send({"prompt": "a cat"})
        connection.recv()
    assert app.calls[0].over.wait(5)
    (exchange,) = fal_ledger.requests(host="fal.run")
    assert exchange.status == 101
    assert exchange.notes == [
        "websocket: 1 message from the client, 1 message from the app; the client ended it with "
        "1000"
    ]


# --- who may --------------------------------------------------------------------------------------


def token(seconds=120, app="app"):
    body = {"allowed_apps": [app], "token_expiration": seconds}
    return httpx.post("https://rest.fal.ai/tokens/", json=body, headers=KEY).json()


def test_a_token_counts_until_it_expires(app, fal_clock):
    fal_clock.freeze()
    url = f"wss://fal.run/{APP}/headers?fal_jwt_token={token(seconds=60)}"
    fal_clock.advance(59)
    with connect(url) as websocket:
        assert "x-fal-request-id" in json.loads(websocket.recv())
    fal_clock.advance(1)
    with connect(url) as websocket:
        assert json.loads(websocket.recv()) == {"status": "error", "error": "Unauthorized"}


def test_a_token_is_for_its_app_alone(app):
    with connect(f"wss://fal.run/{APP}/headers?fal_jwt_token={token(app='other')}") as websocket:
        assert json.loads(websocket.recv()) == {"status": "error", "error": "Unauthorized"}


def test_a_token_lets_one_stream_as_well(app):
    url = f"https://fal.run/{APP}/stream?fal_jwt_token={token()}"
    assert httpx.post(url, json={"words": ["a"]}).text == "data: a\n\n"


def test_a_token_that_does_not_count_streams_nothing(app):
    url = f"https://fal.run/{APP}/stream?fal_jwt_token=nonsense"
    answer = httpx.post(url, json={"words": ["a"]})
    assert (answer.status_code, answer.json()) == (401, {"detail": "Unauthorized"})


@pytest.mark.parametrize(
    ("url", "headers", "status"),
    [
        (f"wss://fal.run/{APP}/headers", {}, 401),
        ("wss://fal.run/tester/other/realtime", KEY, 404),
        (f"wss://fal.run/{APP}/nowhere", KEY, 403),
    ],
)
def test_a_handshake_is_refused(app, url, headers, status):
    with pytest.raises(InvalidStatus) as caught, connect(url, additional_headers=headers):
        pass
    assert caught.value.response.status_code == status


def test_a_stand_in_has_no_websockets(fal_gateway):
    fal_gateway.deploy("fal-ai/live", {})
    with pytest.raises(InvalidStatus) as caught, fal_client.realtime("fal-ai/live", use_jwt=False):
        pass
    assert caught.value.response.status_code == 404
    assert b"a stand-in has no websockets" in caught.value.response.body


# --- HTTP over a websocket ------------------------------------------------------------------------


def test_requests_over_one_websocket(app):
    with fal.apps.ws(APP) as connection:
        answers = [json.loads(connection.run({"seed": seed})) for seed in (1, 2)]
    assert answers == [{"seed": 1}, {"seed": 2}]


def test_what_stands_around_an_answer(app):
    with connect(f"wss://ws.fal.run/{APP}", additional_headers=KEY) as websocket:
        websocket.send(json.dumps({"seed": 1}))
        start, body, end = (
            json.loads(websocket.recv()),
            websocket.recv(),
            json.loads(websocket.recv()),
        )
    assert (start["type"], start["status"]) == ("start", 200)
    assert start["headers"]["content-type"] == "application/json"
    assert body == b'{"seed":1}'
    assert (end["type"], end["status"]) == ("end", 200)
    assert start["request_id"] == end["request_id"] == app.calls[0].request_id
    assert end["time_to_first_byte_seconds"] >= 0


def test_an_answer_that_is_an_error(app):
    with connect(f"wss://ws.fal.run/{APP}", additional_headers=KEY) as websocket:
        websocket.send(json.dumps({"status": 418}))
        assert json.loads(websocket.recv())["status"] == 418


def test_an_answer_piece_by_piece(app):
    with fal.apps.ws(APP, path="/stream") as connection:
        connection.send({"words": ["once", "upon"]})
        text = b"".join(connection.stream())
    assert text == b"data: once\n\ndata: upon\n\n"


def test_an_answer_that_breaks_off(fal_gateway):
    fal_gateway.deploy(APP, Live, isolation="process")
    with connect(f"wss://ws.fal.run/{APP}/broken", additional_headers=KEY) as websocket:
        websocket.send("{}")
        with pytest.raises(ConnectionClosedError, match="the app broke off its answer"):
            list(websocket)


def test_the_time_to_first_byte_is_the_clocks(app, fal_gateway, fal_clock):
    fal_clock.freeze()
    fal_gateway.deploy("fal-ai/slow", lambda _: time.sleep(30) or {})
    with connect("wss://ws.fal.run/fal-ai/slow", additional_headers=KEY) as websocket:
        websocket.send("{}")
        *_, end = [websocket.recv() for _ in range(3)]
    assert json.loads(end)["time_to_first_byte_seconds"] == 30


# --- the end --------------------------------------------------------------------------------------


@pytest.fixture
def afterwards():
    """Ends what is left open when the emulation is gone."""
    with ExitStack() as stack:
        yield stack


def test_what_is_still_open_at_the_tests_end_is_cut(afterwards, app):
    connection = afterwards.enter_context(fal_client.realtime(APP))
    connection.send({"prompt": "a cat"})
    assert connection.recv() == {"drawn": "a cat"}
