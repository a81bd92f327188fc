"""The queue on the wire: every call, status code and field, without fal's client [facts §6]."""

# Without postponed annotations, for the apps in it.

import http.client
import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import fal
import fal_client
import httpx
import pytest
import requests
from fastapi import Request
from fastapi.responses import JSONResponse

from emulator.fleets.call import Call, Payloads
from pytest_fal import Clock, Deployment, Emulator, Faults, Gateway, Origin

HOST = "https://queue.fal.run"
#: What this version of httpx makes of it, to the byte: before 0.28 there is a space in it.
SENT = httpx.Request("POST", HOST, json={"a": 1}).content
APP = f"{HOST}/tester/studio"
URL = "https://example.com/slow.bin"

both = pytest.mark.parametrize("isolation", ["thread", "process"])


class Studio(fal.App):
    @fal.endpoint("/")
    def echo(self, input: dict) -> dict:
        return {"echo": input}

    @fal.endpoint("/query")
    def query(self, request: Request) -> dict:
        return dict(request.query_params)

    @fal.endpoint("/fetch")
    def fetch(self, input: dict) -> dict:
        print(f"{input['name']} begins")
        size = len(httpx.get(f"{URL}?{input['name']}").content)
        print(f"{input['name']} ends")
        return {"size": size}

    @fal.endpoint("/fetch/cancel")
    def cancel(self) -> dict:
        Path(f"/data/cancelled-{self.current_request.request_id}").touch()
        return {}

    @fal.endpoint("/answer")
    def answer(self, input: dict) -> JSONResponse:
        print("answering")
        with Path("/data/runs").open("a") as file:
            file.write("run\n")
        runs = len(Path("/data/runs").read_text().splitlines())
        statuses = input["statuses"]
        status = statuses[min(runs, len(statuses)) - 1]
        return JSONResponse({"run": runs}, status, headers=input.get("headers"))

    @fal.endpoint("/wait")
    def wait(self, input: dict) -> dict:
        time.sleep(input["seconds"])
        return {}


@pytest.fixture
def ask(fal_emulator: Emulator) -> Callable[..., httpx.Response]:
    """A request with the account's key, or another one."""

    def request(method: str, url: str, key: str | None = None, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Key {key or fal_emulator.owner.key}"}
        return httpx.request(
            method, url, headers={**headers, **options.pop("headers", {})}, **options
        )

    return request


Ask = Callable[..., httpx.Response]


def submit(ask: Ask, path: str = "", json: Any = None, **options: Any) -> dict[str, Any]:
    answer = ask("POST", APP + path, json={} if json is None else json, **options)
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    return body


def urls_of(request_id: str, app: str = APP) -> dict[str, str]:
    base = f"{app}/requests/{request_id}"
    return {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}


# --- submit ---------------------------------------------------------------------------------------


def test_what_a_submission_is_answered(ask: Ask, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio).hold()
    for position in range(2):
        answer = ask("POST", APP, json={})
        body = answer.json()
        assert body == {
            "status": "IN_QUEUE",
            "request_id": body["request_id"],
            "gateway_request_id": body["request_id"],
            "queue_position": position,
            **urls_of(body["request_id"]),
        }
        assert answer.headers["x-fal-request-id"] == body["request_id"]


@pytest.mark.parametrize("path", ["/query", "/query/", "/"])
def test_urls_are_without_the_endpoints_path(ask: Ask, path: str, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    body = submit(ask, path)
    assert body["status_url"] == urls_of(body["request_id"])["status_url"]


def test_the_gateways_parameters_do_not_reach_the_app(ask: Ask, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    submit(ask, "/query?a=1&fal_max_queue_length=5&b=2")
    (call,) = deployment.calls
    assert call.result().json() == {"a": "1", "b": "2"}


def test_a_queue_that_is_full(ask: Ask, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    submit(ask, "?fal_max_queue_length=1")
    answer = ask("POST", f"{APP}?fal_max_queue_length=1", json={})
    assert answer.status_code == 429
    assert answer.json() == {"detail": "The queue has 1 requests, fal_max_queue_length=1"}
    assert len(deployment.calls) == 1
    submit(ask, "?fal_max_queue_length=2")


def test_a_limit_that_is_no_number_is_none(ask: Ask, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    submit(ask, "?fal_max_queue_length=few")


@pytest.mark.parametrize("seconds", ["soon", "0.1", "-1", "inf", "nan"])
@pytest.mark.parametrize("host", ["fal.run", "queue.fal.run"])
def test_a_start_timeout_that_makes_no_sense(
    ask: Ask, host: str, seconds: str, fal_gateway: Gateway
) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    headers = {"X-Fal-Request-Timeout": seconds}
    answer = ask("POST", f"https://{host}/tester/studio", json={}, headers=headers)
    assert answer.status_code == 400
    assert answer.headers["x-fal-error-type"] == "bad_request"
    assert answer.json() == {
        "detail": f"X-Fal-Request-Timeout is {seconds!r} and has to be seconds, more than 0.1",
        "error_type": "bad_request",
    }


# --- status ---------------------------------------------------------------------------------------


def test_every_status(
    ask: Ask, fal_gateway: Gateway, fal_faults: Faults, fal_origin: Origin, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    fal_origin.serve(URL, b"123")
    gate = fal_faults.gate(host="example.com")
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    body = submit(ask, "/fetch", {"name": "one"})
    common = {"request_id": body["request_id"], **urls_of(body["request_id"])}

    queued = ask("GET", body["status_url"])
    assert queued.status_code == 202
    assert queued.json() == {"status": "IN_QUEUE", "queue_position": 0, **common}

    deployment.start_next()
    gate.wait()
    running = ask("GET", body["status_url"])
    assert running.status_code == 202
    assert running.json() == {"status": "IN_PROGRESS", "logs": None, **common}

    fal_clock.advance(seconds=2)
    gate.open()
    deployment.calls[0].result()
    completed = ask("GET", body["status_url"])
    assert completed.status_code == 200
    metrics = {"inference_time": 2.0}
    assert completed.json() == {"status": "COMPLETED", "logs": None, "metrics": metrics, **common}
    assert completed.headers["x-fal-request-id"] == body["request_id"]


@pytest.mark.parametrize(
    ("query", "messages"),
    [
        ("?logs=1", ["answering"]),
        ("?logs=true", ["answering"]),
        ("?logs=True", ["answering"]),
        ("?logs=0", None),
        ("?logs=false", None),
        ("", None),
    ],
)
def test_logs_are_asked_for(
    ask: Ask, query: str, messages: list[str] | None, fal_gateway: Gateway
) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    body = submit(ask, "/answer", {"statuses": [200]})
    deployment.calls[0].result()
    logs = ask("GET", body["status_url"] + query).json()["logs"]
    assert (logs and [entry["message"] for entry in logs]) == messages


@both
def test_an_exception_in_the_log(ask: Ask, isolation: str, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    body = submit(ask, "/fetch", {})
    deployment.calls[0].result()
    status = ask("GET", f"{body['status_url']}?logs=1").json()
    assert status["error"] == "Internal Server Error"
    (entry,) = status["logs"]
    assert entry["message"].startswith("Traceback (most recent call last):\n")
    assert entry["message"].endswith("\nKeyError: 'name'\n")


def test_what_is_printed_between_requests_is_nobodys(ask: Ask, fal_gateway: Gateway) -> None:
    class Loud(fal.App):
        def setup(self) -> None:
            print("setting up")

        @fal.endpoint("/")
        def answer(self) -> dict:
            print("answering")
            return {}

    deployment = fal_gateway.deploy("tester/studio", Loud)
    bodies = [submit(ask) for _ in range(2)]
    for call in deployment.calls:
        call.result()
    for body in bodies:
        logs = ask("GET", f"{body['status_url']}?logs=1").json()["logs"]
        assert [entry["message"] for entry in logs] == ["answering"]


def test_requests_side_by_side_have_a_log_each(
    ask: Ask, fal_gateway: Gateway, fal_faults: Faults, fal_origin: Origin
) -> None:
    fal_origin.serve(f"{URL}?one", b"1")
    fal_origin.serve(f"{URL}?two", b"2")
    gate = fal_faults.gate(host="example.com")
    deployment = fal_gateway.deploy("tester/studio", Studio, max_multiplexing=2, max_concurrency=1)
    bodies = {name: submit(ask, "/fetch", {"name": name}) for name in ("one", "two")}
    while len(gate.held) < 2:
        gate.wait()
    gate.open()
    for call in deployment.calls:
        call.result()
    for name, body in bodies.items():
        logs = ask("GET", f"{body['status_url']}?logs=1").json()["logs"]
        assert [entry["message"] for entry in logs] == [f"{name} begins", f"{name} ends"]


# --- the result -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "/", "/response", "/response/"])
def test_the_result_is_the_apps_answer_as_it_is(ask: Ask, end: str, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    headers = {"X-Custom": "mine", "X-Fal-Billable-Units": "3"}
    body = submit(ask, "/answer", {"statuses": [418], "headers": headers})
    deployment.calls[0].result()
    answer = ask("GET", body["response_url"] + end)
    assert (answer.status_code, answer.json()) == (418, {"run": 1})
    assert answer.headers["x-custom"] == "mine"
    assert answer.headers["x-fal-billable-units"] == "3"
    assert answer.headers["x-fal-request-id"] == body["request_id"]
    assert answer.headers["x-fal-served-from"] == "runner-1"


@pytest.mark.parametrize("end", ["status", "status/", "cancel/"])
def test_slashes_at_the_end(ask: Ask, end: str, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio).hold()
    body = submit(ask)
    method = "PUT" if end == "cancel/" else "GET"
    assert ask(method, f"{body['response_url']}/{end}").status_code == 202


def test_a_result_that_is_not_there_yet(ask: Ask, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio).hold()
    body = submit(ask)
    answer = ask("GET", body["response_url"])
    assert answer.status_code == 400
    assert answer.json() == {"detail": f"Request {body['request_id']} is IN_QUEUE"}


@pytest.mark.parametrize("end", ["", "/response", "/status", "/status/stream"])
def test_a_request_that_nobody_made(ask: Ask, end: str, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    answer = ask("GET", f"{APP}/requests/none{end}")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Request none not found"})


def test_a_request_stands_under_its_app_alone(ask: Ask, fal_gateway: Gateway) -> None:
    for name in ("tester/studio", "tester/other"):
        fal_gateway.deploy(name, Studio).hold()
    request_id = submit(ask)["request_id"]
    assert ask("GET", f"{HOST}/tester/other/requests/{request_id}/status").status_code == 404


def test_direct_calls_are_not_in_the_queue(ask: Ask, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    direct = ask("POST", "https://fal.run/tester/studio", json={})
    request_id = direct.headers["x-fal-request-id"]
    assert ask("GET", f"{APP}/requests/{request_id}/status").status_code == 404


@pytest.mark.parametrize(
    ("method", "end"), [("POST", "/status"), ("POST", "/cancel"), ("GET", "/cancel"), ("PUT", "")]
)
def test_methods_that_are_none(ask: Ask, method: str, end: str, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    answer = ask(method, submit(ask)["response_url"] + end)
    assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})
    assert len(deployment.calls) == 1


# --- cancel ---------------------------------------------------------------------------------------


def test_the_three_answers_to_a_cancellation(ask: Ask, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio).hold()
    body = submit(ask)
    answers = [ask("PUT", body["cancel_url"]) for _ in range(2)]
    answers.append(ask("PUT", f"{APP}/requests/none/cancel"))
    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (202, {"status": "CANCELLATION_REQUESTED"}),
        (400, {"status": "ALREADY_COMPLETED"}),
        (404, {"status": "NOT_FOUND"}),
    ]


@both
def test_a_cancellation_is_brought_to_the_app(
    ask: Ask,
    isolation: str,
    fal_gateway: Gateway,
    fal_faults: Faults,
    fal_origin: Origin,
    fal_emulator: Emulator,
) -> None:
    fal_origin.serve(f"{URL}?one", b"123")
    gate = fal_faults.gate(host="example.com")
    deployment = fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    body = submit(ask, "/fetch", {"name": "one"})
    gate.wait()
    assert ask("PUT", body["cancel_url"]).status_code == 202
    assert fal_emulator.data.tree() == [f"cancelled-{body['request_id']}"]
    gate.open()
    assert deployment.calls[0].result().json() == {"size": 3}


# --- who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic abc"}])
@pytest.mark.parametrize("host", ["fal.run", "queue.fal.run"])
def test_without_a_key(host: str, headers: dict[str, str], fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio)
    answer = httpx.post(f"https://{host}/tester/studio", json={}, headers=headers)
    assert answer.status_code == 401
    assert answer.json() == {
        "detail": "Authentication is required to access this app: there is no key, or none of the "
        'form "id:secret". Write os.environ["FAL_KEY"], or fal_emulator.user("bob").key'
    }


@pytest.mark.parametrize(
    ("method", "end"),
    [("GET", ""), ("GET", "/status"), ("GET", "/status/stream"), ("PUT", "/cancel")],
)
def test_somebody_elses_request_is_not_found(
    ask: Ask, method: str, end: str, fal_gateway: Gateway, fal_emulator: Emulator
) -> None:
    fal_gateway.deploy("tester/studio", Studio).hold()
    bob, eve = fal_emulator.user("bob"), fal_emulator.user("eve")
    url = submit(ask, key=bob.key)["response_url"] + end
    assert ask(method, url, key=eve.key).status_code == 404
    if not end.endswith("stream"):  # which goes on until the request is over
        assert ask(method, url, key=bob.key).status_code != 404


def test_the_apps_owner_sees_all_requests(
    ask: Ask, fal_gateway: Gateway, fal_emulator: Emulator
) -> None:
    fal_gateway.deploy("tester/studio", Studio).hold()
    body = submit(ask, key=fal_emulator.user("bob").key)
    assert ask("GET", body["status_url"]).status_code == 202


# --- where ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", ["workflows", "comfy"])
def test_a_namespace_is_one_segment_more(ask: Ask, namespace: str, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy(f"{namespace}/tester/studio", Studio)
    app = f"{HOST}/{namespace}/tester/studio"
    body = ask("POST", f"{app}/query", json={}).json()
    assert body["status_url"] == urls_of(body["request_id"], app)["status_url"]
    call = deployment.calls[0]
    call.result()
    assert call.headers["x-fal-endpoint"] == f"{namespace}/tester/studio/query"
    assert ask("GET", body["response_url"]).json() == {}
    assert deployment.owner == "tester"


@pytest.mark.parametrize("isolation", ["process"])
def test_an_app_in_a_namespace_knows_its_name(isolation: str, fal_gateway: Gateway) -> None:
    class Named(fal.App):
        @fal.endpoint("/")
        def name(self) -> list:
            import os

            return [os.environ["FAL_USER_NICKNAME"], os.environ["FAL_APP_NAME"]]

    deployment = fal_gateway.deploy("workflows/tester/studio", Named, isolation=isolation)
    assert deployment.post("/").json() == ["tester", "studio"]


def test_the_backup_domain_answers_with_its_own_urls(ask: Ask, fal_gateway: Gateway) -> None:
    fal_gateway.deploy("tester/studio", Studio).hold()
    body = ask("POST", "https://queue.falrun.com/tester/studio", json={}).json()
    assert body["status_url"].startswith("https://queue.falrun.com/tester/studio/requests/")
    other = body["status_url"].replace("falrun.com", "fal.run")
    assert [ask("GET", url).status_code for url in (body["status_url"], other)] == [202, 202]


def test_hosts_that_a_client_is_told_of(
    fal_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if FAL_RUN_HOST had been in the environment when fal_client was imported."""
    run, queue = "run.example.test", "queue.run.example.test"
    monkeypatch.setattr("fal_client.auth.FAL_RUN_HOST", run)
    monkeypatch.setattr("fal_client.auth.FAL_QUEUE_RUN_HOST", queue)
    monkeypatch.setattr("fal_client.client.RUN_URL_FORMAT", f"https://{run}/")
    monkeypatch.setattr("fal_client.client.QUEUE_URL_FORMAT", f"https://{queue}/")
    fal_gateway.deploy("tester/studio", Studio)
    client = fal_client.SyncClient()
    assert client.run("tester/studio", {"a": 1}) == {"echo": {"a": 1}}
    handle = client.submit("tester/studio", {"a": 1})
    assert handle.status_url.startswith(f"https://{queue}/tester/studio/requests/")
    assert client.result("tester/studio", handle.request_id) == {"echo": {"a": 1}}


# --- the stream of a request's statuses -----------------------------------------------------------


def read(lines: Iterator[str]) -> dict[str, Any]:
    """The next event of a stream."""
    line = next(line for line in lines if line.startswith("data: "))
    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return event


@pytest.mark.parametrize("client", ["httpx", "requests"])
def test_the_stream_has_an_event_for_each_change(
    ask: Ask,
    client: str,
    fal_gateway: Gateway,
    fal_faults: Faults,
    fal_origin: Origin,
    fal_emulator: Emulator,
) -> None:
    fal_origin.serve(f"{URL}?one", b"123")
    gate = fal_faults.gate(host="example.com")
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    submit(ask)
    body = submit(ask, "/fetch", {"name": "one"})
    common = {"request_id": body["request_id"], **urls_of(body["request_id"])}
    url = f"{body['status_url']}/stream?logs=1"
    headers = {"Authorization": f"Key {fal_emulator.owner.key}"}
    opened: Any = httpx.stream("GET", url, headers=headers)
    if client == "requests":
        opened = requests.get(url, headers=headers, stream=True)
    with opened as response:
        assert response.headers["content-type"] == "text/event-stream"
        lines = response.iter_lines()
        if client == "requests":
            lines = (line.decode() for line in response.iter_lines(chunk_size=1))
        assert read(lines) == {"status": "IN_QUEUE", "queue_position": 1, **common}
        deployment.run_next()
        assert read(lines) == {"status": "IN_QUEUE", "queue_position": 0, **common}
        deployment.start_next()
        gate.wait()
        running = read(lines)
        while not running["logs"]:
            running = read(lines)
        assert running["status"] == "IN_PROGRESS"
        assert [entry["message"] for entry in running["logs"]] == ["one begins"]
        gate.open()
        last = read(lines)
        logs = last["logs"]
        while last["status"] != "COMPLETED":
            last = read(lines)
            logs += last["logs"]
        # Clients collect them, so each is told once.
        assert [entry["message"] for entry in logs] == ["one ends"]
        assert [line for line in lines if line] == [], "nothing follows"


def test_the_stream_of_what_is_over_has_one_event(ask: Ask, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    body = submit(ask)
    deployment.calls[0].result()
    (line,) = [
        line for line in ask("GET", f"{body['status_url']}/stream").text.splitlines() if line
    ]
    assert read(iter([line]))["status"] == "COMPLETED"


def test_a_coroutine_may_read_the_stream(
    ask: Ask, fal_gateway: Gateway, fal_emulator: Emulator
) -> None:
    """Its event loop goes on meanwhile: here it is what releases the queue."""
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    body = submit(ask)
    headers = {"Authorization": f"Key {fal_emulator.owner.key}"}

    async def follow() -> list[str]:
        seen = []
        async with (
            httpx.AsyncClient(headers=headers) as client,
            client.stream("GET", f"{body['status_url']}/stream") as response,
        ):
            async for line in response.aiter_lines():
                if line:
                    seen.append(read(iter([line]))["status"])
                    deployment.release()
        return seen

    seen = anyio.run(follow)
    assert (seen[0], seen[-1]) == ("IN_QUEUE", "COMPLETED")


def test_a_quiet_stream_pings(
    ask: Ask, fal_gateway: Gateway, fal_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emulator.hosts.queue._PING_SECONDS", 0.1)
    fal_gateway.deploy("tester/studio", Studio).hold()
    url = f"{submit(ask)['status_url']}/stream"
    headers = {"Authorization": f"Key {fal_emulator.owner.key}"}
    with httpx.stream("GET", url, headers=headers) as response:
        lines = (line for line in response.iter_lines() if line)
        read(lines)
        assert next(lines) == ": ping"


# --- what is kept ---------------------------------------------------------------------------------


@pytest.fixture
def finished(ask: Ask, fal_gateway: Gateway, fal_clock: Clock) -> Call:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio)
    submit(ask, json={"a": 1})
    (call,) = deployment.calls
    call.result()
    return call


def result_of(ask: Ask, call: Call) -> int:
    return ask("GET", f"{APP}/requests/{call.request_id}").status_code


def test_a_result_can_be_fetched_for_thirty_days(
    ask: Ask, finished: Call, fal_clock: Clock
) -> None:
    fal_clock.advance(days=30, milliseconds=-1)
    assert result_of(ask, finished) == 200
    fal_clock.advance(milliseconds=1)
    assert result_of(ask, finished) == 404


@pytest.mark.fal(queue_result_lifetime=timedelta(hours=1))
def test_or_for_as_long_as_a_setting_says(ask: Ask, finished: Call, fal_clock: Clock) -> None:
    fal_clock.advance(hours=1)
    assert result_of(ask, finished) == 404


@pytest.mark.fal(queue_result_lifetime=None)
def test_or_for_ever(ask: Ask, finished: Call, fal_clock: Clock) -> None:
    fal_clock.advance(days=1000)
    assert result_of(ask, finished) == 200


def delete_payloads(ask: Ask, call: Call) -> int:
    url = f"https://api.fal.ai/v1/models/requests/{call.request_id}/payloads"
    return ask("DELETE", url).status_code


def test_deleted_payloads_take_the_result_along(ask: Ask, finished: Call) -> None:
    assert delete_payloads(ask, finished) == 200
    assert result_of(ask, finished) == 404
    assert ask("GET", f"{APP}/requests/{finished.request_id}/status").status_code == 200


def test_the_platform_keeps_the_bodies(finished: Call) -> None:
    assert finished.payloads == Payloads(SENT, b'{"echo":{"a":1}}')


def test_a_request_that_waits_has_no_output_yet(ask: Ask, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    deployment.hold()
    submit(ask, json={"a": 1})
    assert deployment.calls[0].payloads == Payloads(SENT, None)


def test_deleted_payloads_are_gone(ask: Ask, finished: Call) -> None:
    delete_payloads(ask, finished)
    assert finished.payloads is None


def test_payloads_are_kept_for_thirty_days(finished: Call, fal_clock: Clock) -> None:
    fal_clock.advance(days=30, milliseconds=-1)
    assert finished.payloads is not None
    fal_clock.advance(milliseconds=1)
    assert finished.payloads is None


@pytest.mark.fal(payload_retention=None)
def test_payloads_may_be_kept_for_ever(finished: Call, fal_clock: Clock) -> None:
    fal_clock.advance(days=1000)
    assert finished.payloads is not None


def test_payloads_that_are_not_to_be_stored(ask: Ask, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    submit(ask, json={"a": 1}, headers={"X-Fal-Store-IO": "0"})
    (call,) = deployment.calls
    call.result()
    assert call.payloads is None
    assert result_of(ask, call) == 200, "whoever asked gets the answer all the same"


# --- retries, as the caller sees them -------------------------------------------------------------


@both
def test_a_retry_is_back_in_the_queue(ask: Ask, isolation: str, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    deployment.hold()
    body = submit(ask, "/answer", {"statuses": [503, 200]})
    seen = []
    for _ in range(2):
        seen.append(ask("GET", body["status_url"]).json()["status"])
        deployment.run_next()
    answer = ask("GET", body["response_url"])
    assert seen == ["IN_QUEUE", "IN_QUEUE"]
    assert answer.json() == {"run": 2}
    assert answer.headers["x-fal-served-from"] == "runner-2", "the 503 has cost the first one"
    assert answer.headers["x-fal-request-id"] == body["request_id"]


def test_the_log_is_that_of_all_attempts(ask: Ask, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    body = submit(ask, "/answer", {"statuses": [503, 200]})
    deployment.calls[0].result()
    logs = ask("GET", f"{body['status_url']}?logs=1").json()["logs"]
    assert [entry["message"] for entry in logs] == ["answering", "answering"]


def test_after_ten_attempts_it_is_over(ask: Ask, fal_gateway: Gateway) -> None:
    deployment = fal_gateway.deploy("tester/studio", Studio)
    body = submit(ask, "/answer", {"statuses": [504]})
    deployment.calls[0].result()
    answer = ask("GET", body["response_url"])
    assert (answer.status_code, answer.json()) == (504, {"run": 10})
    assert ask("GET", body["status_url"]).json()["error"] == "Invalid status code: 504"


def test_a_request_that_ran_too_long(ask: Ask, fal_gateway: Gateway, fal_clock: Clock) -> None:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio, request_timeout=10)
    headers = {"X-Fal-No-Retry": "1"}
    body = submit(ask, "/wait", {"seconds": 60}, headers=headers)
    deployment.calls[0].result()
    answer = ask("GET", body["response_url"])
    assert answer.status_code == 504
    assert answer.json() == {"detail": "Request timed out", "error_type": "request_timeout"}
    assert "x-fal-request-timeout-type" not in answer.headers, "it was not the caller's limit"
    status = ask("GET", body["status_url"]).json()
    assert (status["error"], status["error_type"]) == ("Request timed out", "request_timeout")
    assert status["metrics"] == {"inference_time": 10.0}


# --- callers that leave ---------------------------------------------------------------------------


def until_noted(deployment: Deployment, sentence: str) -> None:
    """Wait until its history has this."""
    for _ in range(200):
        if any(line.endswith(sentence) for line in deployment.history):
            return
        deployment.calls[0].wait_for_news(0.05)
    pytest.fail(f"{sentence!r} is not in {deployment.history}")


def test_a_caller_that_hangs_up(
    fal_gateway: Gateway, fal_faults: Faults, fal_origin: Origin, fal_emulator: Emulator
) -> None:
    fal_origin.serve(f"{URL}?one", b"123")
    gate = fal_faults.gate(host="example.com")
    deployment = fal_gateway.deploy("tester/studio", Studio)
    headers = {"Authorization": f"Key {fal_emulator.owner.key}", "Content-Type": "application/json"}
    caller = http.client.HTTPSConnection("fal.run")
    caller.request("POST", "/tester/studio/fetch", '{"name": "one"}', headers)
    gate.wait()
    caller.close()
    until_noted(deployment, "cancelled call-1: runner-1 answered 200 to POST /fetch/cancel")
    gate.open()
    (call,) = deployment.calls
    assert fal_emulator.data.tree() == [f"cancelled-{call.request_id}"]
    assert call.result().status_code == 200, "an app that does not stop goes on for nobody"


@both
def test_a_caller_whose_time_is_over(
    ask: Ask, isolation: str, fal_gateway: Gateway, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio, isolation=isolation)
    with pytest.raises(httpx.ReadTimeout, match=r"^no answer within 5 s, the client's read time"):
        ask("POST", "https://fal.run/tester/studio/wait", json={"seconds": 60}, timeout=5)
    until_noted(deployment, "cancelled call-1: runner-1 answered 404 to POST /wait/cancel")


def test_a_caller_that_leaves_before_its_turn(
    ask: Ask, fal_gateway: Gateway, fal_clock: Clock
) -> None:
    fal_clock.freeze()
    deployment = fal_gateway.deploy("tester/studio", Studio, scaling_delay=60)
    with pytest.raises(httpx.ReadTimeout):
        ask("POST", "https://fal.run/tester/studio", json={}, timeout=5)
    (call,) = deployment.calls
    assert (call.result().status_code, call.attempts) == (499, [])
    assert call.result().json()["error_type"] == "client_disconnected"
